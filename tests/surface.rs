//! What the program can ask of the kernel: system calls, socket families, namespaces, foreign ABIs, keys, Landlock
//! (security.md S35–S41, S45, S46, S50).

mod common;

use common::{has, plain, sandbox};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Makes each call of `(number, arguments)` and holds the answers against one error number.
#[track_caller]
fn answer(options: &[&str], calls: &[(i64, &str)], wanted: i32) {
    let texts: Vec<String> =
        calls.iter().map(|(number, args)| format!("{number} {args}").trim_end().to_owned()).collect();
    let answers = sandbox(options).probe_with("calls", &texts).sees();
    for text in &texts {
        assert_eq!(answers[text], wanted, "call {text} under {options:?}");
    }
}

const BARE: [&str; 4] = ["--seccomp", "off", "--landlock", "off"];

#[test]
fn input_cannot_be_put_into_a_terminal() {
    let ioctl = libc::SYS_ioctl;
    // TIOCSTI and TIOCLINUX, plain and with a bit that the kernel drops (CVE-2019-10063); fd 0 is no terminal.
    let calls =
        [(ioctl, "0 0x5412 s:x"), (ioctl, "0 0x541c s:x"), (ioctl, "0 0x100005412 s:x"), (ioctl, "0 0x10000541c s:x")];
    for options in [&[][..], &["--cap-add", "SYS_ADMIN"], &["--nest"]] {
        answer(options, &calls, libc::EPERM);
    }
    answer(&[], &[(ioctl, "0 0x5401 p"), (ioctl, "0 0x5413 p")], libc::ENOTTY);
}

const NAMESPACES: [i64; 8] =
    [0x80, 0x20000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

#[test]
fn no_namespace_can_be_made() {
    let flags = NAMESPACES.map(|flag| flag.to_string());
    let unshare: Vec<(i64, &str)> = flags.iter().map(|flag| (libc::SYS_unshare, flag.as_str())).collect();
    answer(&[], &unshare, libc::EPERM);
    // In clone, 0x80 is a part of the exit signal.
    let flags = NAMESPACES.map(|flag| format!("{} 0 0 0 0", flag | 17));
    let clone: Vec<(i64, &str)> = flags[1..].iter().map(|flags| (libc::SYS_clone, flags.as_str())).collect();
    answer(&[], &clone, libc::EPERM);
    answer(&[], &[(libc::SYS_clone3, "p 88"), (libc::SYS_clone3, "p 64")], libc::ENOSYS);
    answer(&[], &[(libc::SYS_setns, "0 0"), (libc::SYS_setns, "0 0x10000000")], libc::EPERM);
}

#[test]
fn no_user_namespace_can_be_made_even_without_the_filter() {
    assert_eq!(plain().probe("self").sees()["max_user_namespaces"], "0");
    answer(&BARE, &[(libc::SYS_unshare, "0x10000000"), (libc::SYS_clone, "0x10000011 0 0 0 0")], libc::ENOSPC);
    let others: Vec<String> = NAMESPACES.iter().filter(|f| **f != 0x1000_0000).map(i64::to_string).collect();
    let unshare: Vec<(i64, &str)> = others.iter().map(|flag| (libc::SYS_unshare, flag.as_str())).collect();
    answer(&BARE, &unshare, libc::EPERM);
}

#[test]
fn the_rights_over_its_namespaces_are_gone() {
    let calls = [
        (libc::SYS_mount, "s:t s:/mnt s:tmpfs 0 0"),
        (libc::SYS_mount, "0 s:/ 0 4096 0"),
        (libc::SYS_umount2, "s:/proc 2"),
        (libc::SYS_sethostname, "s:x 1"),
        (libc::SYS_setdomainname, "s:x 1"),
        (libc::SYS_pivot_root, "s:/ s:/"),
        (libc::SYS_socket, "17 3 768"),
        (libc::SYS_socket, "2 3 1"),
        (libc::SYS_reboot, "0 0 0"),
        (libc::SYS_settimeofday, "p 0"),
        (libc::SYS_fsopen, "s:tmpfs 0"),
    ];
    answer(&BARE, &calls, libc::EPERM);
    sandbox(&BARE)
        .sh("ip link set lo down 2>/dev/null && echo took it down; ip link show lo | grep -c UP")
        .run()
        .exits(0)
        .prints("1");
}

#[test]
fn socket_families_are_the_four() {
    for options in [&[][..], &["--net", "host"], &["--cap-add", "NET_RAW"]] {
        let facts = sandbox(options).probe("sockets").sees();
        assert_eq!(facts["tried"], 452);
        for one in facts["not EPERM"].as_array().expect("a list") {
            let (family, protocol) = (one[0].as_i64(), one[2].as_i64());
            assert!(matches!((family, protocol), (Some(1 | 2 | 10), _) | (Some(16), Some(0))), "{options:?} {one}");
        }
        let made = |triple: [i64; 3]| {
            facts["not EPERM"].as_array().is_some_and(|all| {
                all.iter().any(|one| *one == serde_json::json!([triple[0], triple[1], triple[2], 0]))
            })
        };
        for triple in [[1, 1, 0], [1, 2, 0], [1, 5, 0], [2, 1, 0], [2, 2, 0], [16, 3, 0]] {
            assert!(made(triple), "{options:?} {triple:?}");
        }
    }
    let pairs: Vec<String> = (0..46).filter(|family| *family != 1).map(|family| format!("{family} 1 0 p")).collect();
    let pairs: Vec<(i64, &str)> = pairs.iter().map(|args| (libc::SYS_socketpair, args.as_str())).collect();
    answer(&[], &pairs, libc::EPERM);
    // The upper half of the argument does not count.
    answer(&[], &[(libc::SYS_socket, "0x100000026 5 0"), (libc::SYS_socket, "0x10000000000011 3 0")], libc::EPERM);
}

#[test]
fn foreign_abis_are_killed_and_named() {
    if !has("x86_64") {
        return;
    }
    for options in [&[][..], &["--map", "keep"]] {
        for probe in ["i386", "x32"] {
            sandbox(options).probe(probe).run().exits(128 + libc::SIGSYS).says("foreign ABI");
        }
    }
    let scratch = common::Scratch::new();
    let shared = common::volume(&scratch.dir("shared"), "/v");
    for probe in ["i386", "x32"] {
        // The filter that guards set-id bits holds by itself, too.
        let guarded = sandbox(&["--seccomp", "off", "-v"]).option(&shared).probe(probe).run();
        guarded.exits(128 + libc::SIGSYS);
    }
}

/// A profile that speaks of i386 opens it, under sbx's own rules; x32 it does not.
#[test]
fn a_profile_opens_the_abi_that_it_names() {
    if !has("x86_64") {
        return;
    }
    let scratch = common::Scratch::new();
    let with = |abi: &str| {
        let text =
            format!("{{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"architectures\": [\"SCMP_ARCH_X86_64\", \"{abi}\"]}}");
        let file = scratch.file(format!("{abi}.json"), &text);
        sandbox(&["--seccomp"]).option(file)
    };
    with("SCMP_ARCH_X86").probe("i386").run().exits(0);
    with("SCMP_ARCH_X86").probe("x32").run().exits(128 + libc::SIGSYS);
    for probe in ["i386", "x32"] {
        with("SCMP_ARCH_X32").probe(probe).run().exits(128 + libc::SIGSYS);
    }
}

#[test]
fn the_new_mount_calls_look_absent() {
    let calls = [
        (libc::SYS_open_tree, "-100 s:/ 0"),
        (libc::SYS_move_mount, "-100 s:/ -100 s:/ 0"),
        (libc::SYS_fsopen, "s:tmpfs 0"),
        (libc::SYS_fsconfig, "0 0 0 0 0"),
        (libc::SYS_fsmount, "0 0 0"),
        (libc::SYS_fspick, "-100 s:/ 0"),
        (libc::SYS_mount_setattr, "-100 s:/ 0 p 32"),
    ];
    answer(&[], &calls, libc::ENOSYS);
    let unknown: Vec<(i64, &str)> = [470, 480, 500, 511, 1000, 100_000].map(|number| (number, "")).to_vec();
    answer(&[], &unknown, libc::ENOSYS);
}

#[test]
fn dangerous_calls_are_refused() {
    let calls = [
        (libc::SYS_io_uring_setup, "1 p"),
        (libc::SYS_io_uring_enter, "0 0 0 0 0 0"),
        (libc::SYS_io_uring_register, "0 0 0 0"),
        (libc::SYS_add_key, "s:user s:a s:b 1 -3"),
        (libc::SYS_request_key, "s:user s:a 0 0"),
        (libc::SYS_keyctl, "0 -3 0"),
        (libc::SYS_bpf, "0 p 32"),
        (libc::SYS_userfaultfd, "1"),
        (libc::SYS_perf_event_open, "p 0 -1 -1 0"),
        (libc::SYS_kexec_load, "0 0 0 0"),
        (libc::SYS_swapon, "s:/x 0"),
        (libc::SYS_swapoff, "s:/x"),
        (libc::SYS_quotactl, "0 s:/x 0 p"),
        (libc::SYS_acct, "0"),
        (libc::SYS_personality, "0x40000"),
        (libc::SYS_personality, "0x100000000"),
        (libc::SYS_mount, "s:t s:/mnt s:tmpfs 0 0"),
        (libc::SYS_umount2, "s:/proc 2"),
        (libc::SYS_pivot_root, "s:/ s:/"),
        (libc::SYS_name_to_handle_at, "-100 s:/ p p 0"),
        (libc::SYS_open_by_handle_at, "0 p 0"),
        (libc::SYS_vmsplice, "1 v 1 0"),
        (libc::SYS_move_pages, "0 0 0 0 0 0"),
        (libc::SYS_migrate_pages, "0 0 p p"),
        (libc::SYS_init_module, "p 0 s:x"),
        (libc::SYS_finit_module, "0 s:x 0"),
        (libc::SYS_delete_module, "s:x 0"),
        (libc::SYS_reboot, "0 0 0"),
        (libc::SYS_settimeofday, "p 0"),
        (libc::SYS_clock_settime, "0 p"),
        (libc::SYS_syslog, "3 p 10"),
        (libc::SYS_kcmp, "1 1 0 0 0"),
        (libc::SYS_pidfd_getfd, "0 0 0"),
        (libc::SYS_process_madvise, "0 v 1 0 0"),
        (libc::SYS_lookup_dcookie, "0 p 1"),
        (libc::SYS_fanotify_init, "0 0"),
        (libc::SYS_sethostname, "s:x 1"),
        (libc::SYS_vhangup, ""),
    ];
    for options in [&[][..], &["--map", "keep"]] {
        answer(options, &calls, libc::EPERM);
    }
    #[cfg(target_arch = "x86_64")]
    answer(
        &[],
        &[
            (libc::SYS_iopl, "3"),
            (libc::SYS_ioperm, "0 1 1"),
            (libc::SYS_modify_ldt, "0 p 8"),
            (libc::SYS_kexec_file_load, "0 0 0 0 0"),
        ],
        libc::EPERM,
    );
}

#[test]
fn what_programs_need_works() {
    let calls = [
        (libc::SYS_personality, "0xffffffff"),
        (libc::SYS_prctl, "4 1"),
        (libc::SYS_memfd_create, "s:x 0"),
        (libc::SYS_eventfd2, "0 0"),
        (libc::SYS_inotify_init1, "0"),
        (libc::SYS_mq_unlink, "s:none"),
    ];
    answer(&[], &calls[..5], 0);
    answer(&[], &calls[5..], libc::ENOENT);
    // A debugger inside traces what is inside.
    answer(&[], &[(libc::SYS_ptrace, "0 0 0 0")], 0);
}

#[test]
fn keys_of_the_caller_are_not_seen() {
    let find = format!("{} s:user s:sbx-canary 0 0", libc::SYS_request_key);
    let keyring = |options: &[&str]| sandbox(options).caller("keyring", &["sbx-canary"]);
    let ask = |options: &[&str]| keyring(options).probe_with("calls", &[&find]).sees()[&find].clone();
    assert_eq!(ask(&[]), libc::EPERM);
    assert_eq!(ask(&BARE), libc::ENOKEY);
    keyring(&[]).sh("cat /proc/keys").run().exits(0).prints("");
    // A policy that allows the call, or has it logged, opens a keyring of the sandbox's own.
    let scratch = common::Scratch::new();
    let profile = scratch.file("profile.json", "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}");
    for opened in [
        "[seccomp]\nallow = [\"request_key\"]\n".to_owned(),
        "[seccomp]\nlog = [\"request_key\"]\n".to_owned(),
        "[seccomp]\nallow = [\"@keyring\"]\n".to_owned(),
        "[[seccomp.rule]]\ncalls = [\"request_key\"]\naction = \"allow\"\n".to_owned(),
        format!("[seccomp]\nfilter = {:?}\n", profile.display().to_string()),
    ] {
        let policy = scratch.file("policy.toml", &opened);
        assert_eq!(ask(&["--policy", policy.to_str().expect("UTF-8")]), libc::ENOKEY, "{opened}");
    }
}

#[test]
fn landlock_is_in_force() {
    if !has("landlock") {
        return;
    }
    // Landlock forbids every mount to those it confines, whatever rights they hold.
    let mount = (libc::SYS_mount, "s:t s:/mnt s:tmpfs 0 0");
    answer(&["--cap-add", "SYS_ADMIN", "--landlock", "require"], &[mount], libc::EPERM);
    answer(&["--cap-add", "SYS_ADMIN"], &[mount], libc::EPERM);
    answer(&["--cap-add", "SYS_ADMIN", "--landlock", "off"], &[mount], 0);
    sandbox(&["--landlock", "require", "--nest"]).command(&["true"]).run().refused().says("--nest");
}

#[test]
fn abstract_sockets_of_the_host_are_out_of_reach() {
    let name = format!("sbx-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("an abstract socket");
    let connect = |options: &[&str]| sandbox(options).probe_with("abstract", &[&name]).sees();
    assert_eq!(connect(&[]), libc::ECONNREFUSED, "another network namespace has other names");
    if has("landlock") {
        assert_eq!(connect(&["--net", "host"]), libc::EPERM);
        assert_eq!(connect(&["--net", "host", "--nest"]), libc::EPERM);
    }
    // The socket is there: without Landlock the host's network is the host's.
    assert_eq!(connect(&["--net", "host", "--landlock", "off"]), 0);
}

#[test]
fn the_network_is_an_empty_one() {
    let script = "ip -o link | wc -l; ip -o link | grep -c 'lo:.*UP'; ip route | wc -l; ls /sys/class/net";
    plain().sh(script).run().exits(0).prints("1\n1\n0\nlo");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port of the host");
    let port = listener.local_addr().expect("an address").port();
    let outcome = plain().sh(&format!("nc -w 1 127.0.0.1 {port} </dev/null")).run();
    assert_ne!(outcome.status, 0, "the host's loopback answers");
}
