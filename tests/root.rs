//! The file system inside: nothing of the host's, /proc and /dev as small as they can be, and where writing goes
//! (security.md S13, S16–S19, S22, S51).

mod common;

use common::tree::picture;
use common::{Scratch, has, plain, sandbox, volume};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

/// `(mount point, root of the mount, options, tags, type)` of each line of a mountinfo.
fn mounts(facts: &Value) -> Vec<(String, String, String, String, String)> {
    let lines = facts["mountinfo"].as_array().expect("mountinfo");
    let line = |line: &Value| {
        let (left, right) = line.as_str()?.split_once(" - ")?;
        let words: Vec<&str> = left.split(' ').collect();
        let kind = right.split(' ').next()?;
        Some((words[4].into(), words[3].into(), words[5].into(), words[6..].join(" "), kind.into()))
    };
    lines.iter().filter_map(line).collect()
}

const MASKED: [&str; 10] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];

#[test]
fn only_declared_mounts_are_there() {
    let facts = plain().probe("self").sees();
    let found = mounts(&facts);
    let mut allowed: BTreeSet<String> = MASKED.iter().map(|name| format!("/proc/{name}")).collect();
    let must = [
        "/",
        "/dev",
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/random",
        "/dev/urandom",
        "/dev/tty",
        "/dev/pts",
        "/dev/mqueue",
        "/proc",
        "/proc/sys",
        "/sys",
        "/tmp",
        "/run",
        "/probe",
    ];
    allowed.extend(must.map(str::to_owned));
    allowed.extend(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger", "/sys/firmware"].map(str::to_owned));
    allowed.insert("/sys/devices/virtual/powercap".into());
    for (point, root, _, tags, kind) in &found {
        let throttle = point.starts_with("/sys/devices/system/cpu/") && point.ends_with("/thermal_throttle");
        assert!(allowed.contains(point) || throttle, "{point} is mounted: {found:?}");
        assert_eq!(tags, "", "{point} is joined to mounts of the host");
        let own = ["overlay", "tmpfs", "proc", "sysfs", "devpts", "mqueue"].contains(&kind.as_str());
        let device = point.starts_with("/dev/") && root.matches('/').count() == 1;
        let masked = point.starts_with("/proc/") && root == "/null";
        assert!(own || device || masked || point == "/probe", "{point} shows {root} of a {kind}");
    }
    for point in must {
        assert_eq!(found.iter().filter(|m| m.0 == point).count(), 1, "{point}: {found:?}");
    }
}

#[test]
fn no_mount_honours_set_id_files_or_devices() {
    let scratch = Scratch::new();
    let shared = scratch.dir("shared");
    let facts = plain().option("-v").option(volume(&shared, "/v")).option("--tmpfs").option("/t").probe("self").sees();
    for (point, _, options, _, kind) in mounts(&facts) {
        let has = |word: &str| options.split(',').any(|option| option == word);
        assert!(has("nosuid"), "{point}: {options}");
        assert!(
            has("nodev") || kind == "devpts" || point.starts_with("/dev/") || kind == "devtmpfs",
            "{point}: {options}"
        );
        let quiet = ["/dev", "/dev/shm", "/dev/pts", "/dev/mqueue", "/proc", "/sys"].contains(&point.as_str());
        assert!(has("noexec") || !quiet, "{point}: {options}");
        assert!(has("ro") || !(point == "/sys" || point == "/proc/sys"), "{point}: {options}");
    }
}

#[test]
fn the_old_root_is_gone() {
    let climb = "../".repeat(40);
    for options in [&[][..], &["--rw"], &["--read-only"], &["--landlock", "off"]] {
        let scratch = Scratch::new();
        let root = scratch.rootfs();
        fs::write(root.join("marker"), "inside").expect("marker");
        let script = format!(
            "cat /marker /../marker /{climb}marker /proc/1/root/marker /proc/self/root/../marker /proc/$$/cwd/../marker 2>/dev/null; \
             cd {climb}; cat marker; ls -d /root/../..{} 2>/dev/null; cd /proc/self/fd; ls -l | grep -c 'root\\|bin'",
            scratch.path().display()
        );
        let outcome = sandbox(options).root(&root).sh(&script).run();
        // Five ways lead to the same root, /proc/1/root nowhere, and the host's own path to nothing.
        assert_eq!(outcome.stdout.matches("inside").count(), 6, "{options:?} {outcome:?}");
        assert!(!outcome.stdout.contains(&*scratch.path().to_string_lossy()), "{options:?} {outcome:?}");
    }
}

#[test]
fn chroot_inside_leads_no_further() {
    let script = "mkdir /tmp/a; cd /; chroot /tmp/a /bin/true; cd ../../..; ls -d bin etc";
    plain().sh(script).run().exits(0).prints("bin\netc");
}

#[test]
fn mounts_of_the_host_do_not_come_in_later() {
    if !has("userns") {
        return;
    }
    let scratch = Scratch::new();
    let shared = scratch.dir("shared/sub");
    let shared = shared.parent().expect("shared").to_string_lossy().into_owned();
    // A caller whose mounts are all shared, and who mounts something while the sandbox runs.
    let script = "mkfifo $1/ready $1/go; d=$1; shift; \
                  (read x <$d/ready; mount -t tmpfs t $d/sub; echo late >$d/sub/file; echo >$d/go)& exec \"$@\"";
    let late = ["unshare", "-Urm", "--propagation", "shared", "sh", "-c", script, "sh", &shared];
    let inside = "echo >/v/ready; read x </v/go; ls /v/sub; grep -c ' /v/sub ' /proc/self/mountinfo";
    sandbox(&["-v", &format!("{shared}:/v")]).under(&late).sh(inside).run().exits(1).prints("0");
}

#[test]
fn proc_shows_own_processes_alone() {
    let facts = plain().probe("self").sees();
    let pids = facts["pids"].as_array().expect("pids");
    assert_eq!(pids.len(), 2, "{pids:?}");
    assert_eq!(pids[0], 1);
}

#[test]
fn masked_paths_read_empty_and_take_nothing() {
    for options in [&[][..], &["--landlock", "off"], &["--rw"]] {
        let scratch = Scratch::new();
        let script = MASKED.map(|name| {
            format!(
                "p=/proc/{name}; if [ -d $p ]; then ls -A $p; touch $p/x 2>/dev/null && echo wrote $p; \
                 elif [ -e $p ]; then cat $p; fi;"
            )
        });
        let sys = "for p in /sys/firmware /sys/devices/virtual/powercap /sys/devices/system/cpu/cpu*/thermal_throttle; \
                   do [ -d $p ] && ls -A $p; touch $p/x 2>/dev/null && echo wrote $p; done; true";
        let outcome = sandbox(options).root(scratch.rootfs()).sh(&format!("{}{sys}", script.concat())).run();
        outcome.exits(0).prints("");
    }
}

#[test]
fn kernel_settings_cannot_be_written() {
    let script = "for f in /proc/sys/kernel/hostname /proc/sys/kernel/core_pattern /proc/sys/user/max_user_namespaces \
                  /proc/sysrq-trigger /proc/irq/default_smp_affinity /proc/sys/vm/drop_caches; \
                  do echo 1 2>/dev/null >$f && echo wrote $f; done; for d in /proc/bus /proc/fs /proc/irq /proc/sys /sys; \
                  do touch $d/x 2>/dev/null && echo made $d/x; done; true";
    for options in [&[][..], &["--landlock", "off"], &["--landlock", "off", "--seccomp", "off"]] {
        sandbox(options).sh(script).run().exits(0).prints("");
    }
    // Read-only by mount, and not for want of a right.
    let open = format!("{} -100 s:/proc/sys/net/ipv4/ip_forward 1", libc::SYS_openat);
    let answers = sandbox(&["--landlock", "off", "--cap-add", "NET_ADMIN"]).probe_with("calls", &[&open]).sees();
    assert_eq!(answers[&open], libc::EROFS);
}

/// A link in ROOTFS leads the user's own volume onto /proc; what is read back there would be the volume's word.
#[test]
fn what_is_read_back_comes_from_a_real_proc() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    symlink("/proc", root.join("data")).expect("symlink");
    let honest = plain().sh("cat /proc/self/status").run().exits(0);
    scratch.file("forged/self/status", &honest.stdout);
    let volume = volume(&scratch.join("forged"), "/data:ro");
    sandbox(&["-v"]).option(volume).root(&root).sh("echo ran").run().refused().says("read back");
}

#[test]
fn unmask_and_mask_do_what_they_say() {
    let lifted = sandbox(&["--unmask", "/proc/interrupts"]).sh("grep -c . /proc/interrupts").run().exits(0);
    assert_ne!(lifted.stdout.trim(), "0");
    let masked = sandbox(&["--mask", "/etc/passwd", "--mask", "/home"]).sh("cat /etc/passwd; ls /home").run();
    masked.exits(0).prints("");
    sandbox(&["--mask", "/no/such"]).command(&["true"]).run().refused();
}

#[test]
fn dev_holds_the_six_devices_and_no_others() {
    let found = plain().probe_with("list", &["/dev"]).sees();
    let devices = [
        ("/dev/null", [1, 3]),
        ("/dev/zero", [1, 5]),
        ("/dev/full", [1, 7]),
        ("/dev/random", [1, 8]),
        ("/dev/urandom", [1, 9]),
        ("/dev/tty", [5, 0]),
        ("/dev/pts/ptmx", [5, 2]),
    ];
    let other =
        ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/ptmx", "/dev/pts", "/dev/shm", "/dev/mqueue"];
    let wanted: BTreeSet<&str> = devices.iter().map(|d| d.0).chain(other).collect();
    let names: BTreeSet<&str> = found.as_object().expect("entries").keys().map(String::as_str).collect();
    assert_eq!(names, wanted);
    for (path, numbers) in devices {
        assert_eq!((&found[path]["kind"], &found[path]["rdev"]), (&"char".into(), &numbers.to_vec().into()), "{path}");
    }
}

#[test]
fn devices_cannot_be_made_or_opened() {
    let (block, tape) = (libc::S_IFBLK | 0o666, libc::S_IFCHR | 0o666);
    let makes = [
        format!("{} -100 s:/tmp/b {block} {}", libc::SYS_mknodat, libc::makedev(8, 0)),
        format!("{} -100 s:/tmp/c {tape} {}", libc::SYS_mknodat, libc::makedev(1, 1)),
        format!("{} -100 s:/dev/shm/n {tape} {}", libc::SYS_mknodat, libc::makedev(1, 3)),
    ];
    for options in [&[][..], &["--seccomp", "off", "--landlock", "off"]] {
        let answers = sandbox(options).probe_with("calls", &makes).sees();
        for make in &makes {
            assert_eq!(answers[make], libc::EPERM, "{options:?} {make}");
        }
    }
    plain()
        .sh("echo x >/dev/null; head -c 4 /dev/zero | wc -c; echo 2>/dev/null >/dev/full || echo full")
        .run()
        .exits(0)
        .prints("4\nfull");
}

#[test]
fn supplied_files_stand_where_links_were() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    let _ = fs::remove_file(root.join("etc/hostname"));
    symlink("../run/systemd/resolve/stub-resolv.conf", root.join("etc/resolv.conf")).expect("link");
    symlink("/nowhere/at/all", root.join("etc/hosts")).expect("link");
    symlink("hostname", root.join("etc/hostname")).expect("a loop");
    let before = picture(&root);
    let upper = scratch.join("kept");
    for options in [&[][..], &["--upper", upper.to_str().expect("UTF-8")], &["--rw"], &["--read-only"]] {
        let script = "cat /etc/hostname; grep -c localhost /etc/hosts; cat /etc/resolv.conf";
        let asked = sandbox(&["--hostname", "box", "--dns", "9.9.9.9"]).options(options).root(&root);
        asked.sh(script).run().exits(0).prints("box\n2\nnameserver 9.9.9.9");
        if options != ["--rw"] {
            assert_eq!(picture(&root), before, "{options:?}");
        }
    }
    assert_eq!(fs::read_link(root.join("etc/hosts")).expect("still a link").to_str(), Some("/nowhere/at/all"));
}

#[test]
fn changes_are_dropped_and_rootfs_is_never_written() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    let before = picture(&root);
    let script = "echo new >/new; rm -r /home/user; mkdir /home/user; echo x >>/etc/passwd; chmod 700 /bin; mv /usr /u; cat /new";
    for options in [&[][..], &["--upper", "tmpfs:64M"], &["--upper", "disk"]] {
        sandbox(options).root(&root).sh(script).run().exits(0).prints("new");
        assert_eq!(picture(&root), before, "{options:?}");
    }
    plain().root(&root).sh("ls /new 2>/dev/null; ls -d /usr /home/user").run().exits(0).prints("/home/user\n/usr");
}

#[test]
fn read_only_is_read_only() {
    let script = "for d in / /etc /home /usr/bin; do touch $d/x 2>/dev/null && echo wrote $d; done; \
                  for d in /tmp /run /dev/shm; do touch $d/x || echo cannot write $d; done";
    for options in [&[][..], &["--landlock", "off"]] {
        sandbox(&["--read-only"]).options(options).sh(script).run().exits(0).prints("");
    }
    let open = format!("{} -100 s:/etc/x {} 420", libc::SYS_openat, libc::O_CREAT | libc::O_WRONLY);
    let answers = sandbox(&["--read-only", "--landlock", "off"]).probe_with("calls", &[&open]).sees();
    assert_eq!(answers[&open], libc::EROFS);
}

#[test]
fn a_root_with_mounts_below_it_is_refused_by_name() {
    if !has("userns") {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    let mount = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs t $1/mnt && shift && exec \"$@\"", "sh"];
    let root_text = root.to_string_lossy().into_owned();
    let asked = || sandbox::<&str>(&[]).root(&root).under(&mount).under(&[&root_text]);
    asked().command(&["true"]).run().refused().says("/mnt");
    sandbox(&["--rw"]).root(&root).under(&mount).under(&[&root_text]).command(&["true"]).run().exits(0);
}
