//! Bad inputs (research/security.md section 5): each gives one clear message and status 125 (126 and 127 for the
//! command), changes nothing, leaves nothing.

mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use support::{Place, lacks, tree};

fn bytes(text: &[u8]) -> OsString {
    OsString::from_vec(text.to_vec())
}

/// Each row is refused with 125 and names what it should; ROOTFS and the directory of records stay as they were.
#[track_caller]
fn all_refused(rows: &[(&[&str], &[&str])]) {
    let place = Place::new();
    let rootfs = place.own_rootfs("rootfs");
    let before = tree(&rootfs);
    let mut wrong = Vec::new();
    for (options, naming) in rows {
        let words = options.iter().map(OsStr::new).chain([rootfs.as_os_str(), OsStr::new("true")]);
        let done = place.sbx_run(words).done();
        let shown = format!("{options:?}: {} {:?}", done.code(), done.err);
        if std::panic::catch_unwind(|| done.refused(125, naming)).is_err() {
            wrong.push(shown);
        }
        place.assert_clean();
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert!(before == tree(&rootfs), "ROOTFS has changed");
}

#[test]
fn numbers_sizes_and_durations() {
    all_refused(&[
        (&["--pids", "0"], &["--pids", "\"0\""]),
        (&["--pids", "-1"], &["--pids", "\"-1\""]),
        (&["--pids=18446744073709551616"], &["--pids", "18446744073709551616"]),
        (&["--pids", "4194305"], &["--pids", "4194305"]),
        (&["--pids", "5.5"], &["--pids", "5.5"]),
        (&["--pids", "1e3"], &["--pids", "1e3"]),
        (&["--pids", "０５"], &["--pids", "０５"]),
        (&["--pids", "0x10"], &["--pids", "0x10"]),
        (&["--pids", " 5"], &["--pids", "\" 5\""]),
        (&["--pids", ""], &["--pids", "\"\""]),
        (&["--pids", "+5"], &["--pids", "+5"]),
        (&["--upper", "tmpfs:0"], &["--upper", "\"0\""]),
        (&["--upper", "tmpfs:4K"], &["--upper", "tmpfs:4K", "tmpfs:1M"]),
        (&["--upper", "tmpfs:65535"], &["--upper", "too small"]),
        (&["--upper", "tmpfs:-1"], &["--upper", "-1"]),
        (&["--upper", "tmpfs:512X"], &["--upper", "512X", "512M"]),
        (&["--upper", "tmpfs:1e9G"], &["--upper", "1e9G"]),
        (&["--upper", "tmpfs:18446744073709551616"], &["--upper", "18446744073709551616"]),
        (&["--upper", "tmpfs:99999999999T"], &["--upper", "99999999999T"]),
        (&["--upper", "tmpfs:０５M"], &["--upper", "０５M"]),
        (&["--upper", "tmpfs:"], &["--upper"]),
        (&["--upper", "somewhere"], &["--upper", "somewhere"]),
        (&["--tmpfs", "/t:size=0"], &["--tmpfs", "\"0\""]),
        (&["--tmpfs", "/t:size=1Q"], &["--tmpfs", "1Q"]),
        (&["--tmpfs", "/t:mode=8"], &["--tmpfs", "\"8\""]),
        (&["--tmpfs", "/t:mode=17777"], &["--tmpfs", "17777"]),
        (&["--timeout", "0"], &["--timeout", "\"0\""]),
        (&["--timeout", "-5"], &["--timeout", "-5"]),
        (&["--timeout", "99999999999999999999"], &["--timeout", "99999999999999999999"]),
        (&["--timeout", "9999999999999h"], &["--timeout", "9999999999999h"]),
        (&["--timeout", "1y"], &["--timeout", "1y"]),
        (&["--timeout", "NaN"], &["--timeout", "NaN"]),
        (&["--timeout", ""], &["--timeout", "\"\""]),
        (&["--kill-after", "x"], &["--kill-after", "\"x\""]),
        (&["--nice", "20"], &["--nice", "20"]),
        (&["--nice", "-21"], &["--nice", "-21"]),
        (&["--nice", "2147483648"], &["--nice", "2147483648"]),
        (&["--nice", "low"], &["--nice", "low"]),
        (&["--oom-score-adj", "1001"], &["--oom-score-adj", "1001"]),
        (&["--oom-score-adj", "-1001"], &["--oom-score-adj", "-1001"]),
        (&["--umask", "888"], &["--umask", "888"]),
        (&["--umask", "1777"], &["--umask"]),
        (&["--umask", "-1"], &["--umask", "-1"]),
        (&["--umask", ""], &["--umask"]),
        (&["--rlimit", "nofile"], &["--rlimit", "nofile"]),
        (&["--rlimit", "nofiles=5"], &["--rlimit", "nofiles", "nofile"]),
        (&["--rlimit", "nofile=9:5"], &["--rlimit", "nofile=9:5"]),
        (&["--rlimit", "nofile=-1"], &["--rlimit", "-1"]),
        (&["--rlimit", "nofile=18446744073709551616"], &["--rlimit", "18446744073709551616"]),
        (&["--rlimit", "nofile=1:99999999"], &["nofile"]),
        (&["--time-offset", "monotonic=abc"], &["--time-offset", "abc"]),
        (&["--time-offset", "monotonic=+9999999999"], &["--time-offset", "9999999999"]),
        (&["--time-offset", "realtime=+1"], &["--time-offset", "realtime"]),
        (&["--pass-fd", "-1"], &["--pass-fd", "-1"]),
        (&["--pass-fd", "0"], &["--pass-fd", "\"0\""]),
        (&["--pass-fd", "99999999999"], &["--pass-fd", "99999999999"]),
        (&["--pass-fd", "77"], &["--pass-fd", "77"]),
        (&["--status-fd", "88"], &["--status-fd", "88", "not open"]),
        (&["--status-fd", "-1"], &["--status-fd", "-1"]),
        (&["--status-fd", "4294967297"], &["--status-fd", "4294967297"]),
        (&["--status-fd", "x"], &["--status-fd", "\"x\""]),
    ]);
}

#[test]
fn limits_that_mean_nothing_are_refused() {
    let huge = (1u128 << 64).to_string();
    all_refused(&[
        (&["--mem", "0"], &["--mem \"0\"", "a size of 0"]),
        (&["--mem", "-1"], &["--mem \"-1\"", "not a size"]),
        (&["--mem", &huge], &["--mem", "not a size"]),
        (&["--mem", "512X"], &["--mem", "not a size", "512M"]),
        (&["--mem", "1e9G"], &["--mem", "not a size"]),
        (&["--mem", "０５"], &["--mem", "not a size"]),
        (&["--mem", "4K"], &["--mem", "too little"]),
        (&["--swap", "x"], &["--swap"]),
        (&["--cpus", "0"], &["--cpus", "less than 0.01"]),
        (&["--cpus", "NaN"], &["--cpus", "not a number"]),
        (&["--cpus", "1000000000"], &["--cpus"]),
        (&["--cpus", "0.001"], &["--cpus", "0.01"]),
        (&["--cpuset", "3-1"], &["--cpuset", "ends before"]),
        (&["--cpuset", "x"], &["--cpuset", "0-3,5"]),
        (&["--cpu-weight", "0"], &["--cpu-weight", "1 to 10000"]),
        (&["--io-weight", "10001"], &["--io-weight", "1 to 10000"]),
        (&["--io", "/dev/null"], &["--io", "rbps"]),
        (&["--hugetlb", "3M=1G"], &["--hugetlb", "2M=512M"]),
        (&["--pids", "0"], &["--pids"]),
        (&["--limits", "always"], &["--limits", "auto, cgroup, watch, off"]),
        (&["--limits", "off", "--mem", "1G"], &["--limits off and --mem"]),
        (&["--mount", "type=cgroup,dst=/proc/x"], &["--mount"]),
        (&["--mount", "type=cgroup", "--limits", "watch"], &["--limits watch"]),
    ]);
}

#[test]
fn options_of_a_later_issue_are_unknown() {
    all_refused(&[(&["-p", "80:80"], &["-p"]), (&["--publish", "80:80"], &["--publish"])]);
}

#[test]
fn options_that_mean_nothing_in_the_background_or_only_there_are_refused() {
    all_refused(&[
        (&["--log-size", "1M"], &["--log-size", "--detach"]),
        (&["-d", "--log-size", "1K"], &["--log-size", "1K", "64K"]),
        (&["-d", "--log-size", "x"], &["--log-size", "x"]),
        (&["-d", "--cgroup-report"], &["--detach", "--cgroup-report", "--status-fd"]),
    ]);
}

#[test]
fn options_of_other_programs_are_explained() {
    all_refused(&[
        (&["--rm"], &["--rm", "leave it out"]),
        (&["--init"], &["--init", "--no-init"]),
        (&["--privileged"], &["--privileged", "--nest", "--cap-add"]),
        (&["-p", "80:80"], &["-p", "--net host"]),
        (&["--publish=80:80"], &["--publish", "--net host"]),
        (&["-m", "512M"], &["-m", "--mem 512M"]),
        (&["--memory=512M"], &["--memory", "--mem 512M"]),
        (&["--memory-swap", "1G"], &["--memory-swap", "--swap"]),
        (&["--pids-limit", "9"], &["--pids-limit", "--pids"]),
    ]);
    let place = Place::new();
    let rootfs = place.own_rootfs("rootfs");
    let hint = "docker export \"$(docker create debian:12)\"";
    place.sbx_run(["debian:12", "true"]).done().refused(125, &["debian:12", hint]);
    let gone = place.sbx_run(["./gone", "true"]).done().refused(125, &["gone", "no such directory"]);
    assert!(!gone.err.contains("docker"), "{}", gone.err);
    let done = place.sbx_run(["-e".as_ref(), rootfs.as_os_str(), "true".as_ref()]).done();
    done.refused(125, &["--env", "variable's name"]);
    if !lacks(&["userns"]) {
        let words = [rootfs.as_os_str(), "--net".as_ref(), "host".as_ref(), "ip".as_ref()];
        place.sbx_run(words).done().refused(127, &["--net", "before ROOTFS"]);
        let run = format!("ulimit -n 5; exec {} run {} true", support::sbx().display(), rootfs.display());
        let done = place.run("sh", ["-c", &run]).done().refused(125, &["ulimit -n"]);
        assert!(!done.err.contains("off"), "{}", done.err);
    }
    place.assert_clean();
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let place = Place::new();
    let dry = format!("run --dry-run {}", place.rootfs().display());
    let all = ["--help", "--version", "run --help", "check", "check --json", "completions bash", "man --help", &dry];
    for words in all {
        let sbx = support::sbx();
        let line = format!("exec {} {words} >/dev/full", sbx.display());
        place.run("sh", ["-c", &line]).done().refused(125, &["standard output", "no space left"]);
        // A reader that is gone has all that it wanted.
        let line = format!("{{ sleep 0.2; {} {words}; echo $? >status; }} | :", sbx.display());
        let done = place.run("sh", ["-c", &line]).done();
        let status = fs::read_to_string(place.path("status")).expect("a status");
        assert!(["0\n", "1\n"].contains(&status.as_str()) && done.err.is_empty(), "{words}: {status}{}", done.err);
    }
    place.assert_clean();
}

#[test]
fn unknown_options_name_the_nearest() {
    all_refused(&[
        (&["--nam", "x"], &["--nam", "--name"]),
        (&["--read-onyl"], &["--read-onyl", "--read-only"]),
        (&["--enviroment", "x"], &["--enviroment"]),
        (&["--verbsoe"], &["--verbsoe", "--verbose"]),
        (&["-Z"], &["-Z"]),
        (&["--name"], &["--name"]),
        (&["--read-only=yes"], &["--read-only"]),
        (&["--\u{1b}[31mred"], &["red"]),
        (&["--wide\u{202e}"], &["wide"]),
    ]);
    let place = Place::new();
    place.sbx(["runn"]).done().refused(125, &["runn", "sbx run"]);
    place.sbx([""; 0]).done().refused(125, &["sbx --help"]);
    place.sbx([""]).done().refused(125, &["not a command"]);
    place.sbx(["run"]).done().refused(125, &["ROOTFS"]);
    place.sbx(["run", ""]).done().refused(125, &["ROOTFS", "empty"]);
    place.sbx(["--state"]).done().refused(125, &["no command"]);
    place.sbx(["\u{1b}]0;title\u{7}"]).done().refused(125, &["title"]);
    place.sbx([bytes(b"r\xffn")]).done().refused(125, &["not a command"]);
    place.assert_clean();
}

#[test]
fn names() {
    let long = "n".repeat(65);
    let huge = "n".repeat(5000);
    all_refused(&[
        (&["--name", ""], &["--name", "\"\""]),
        (&["--name", "."], &["--name", "\".\""]),
        (&["--name", ".."], &["--name", "\"..\""]),
        (&["--name", "a/b"], &["--name", "a/b"]),
        (&["--name", "/etc"], &["--name", "/etc"]),
        (&["--name", "-a"], &["--name", "-a"]),
        (&["--name=-a"], &["--name", "-a"]),
        (&["--name", &long], &["--name", "64"]),
        (&["--name", &huge], &["--name", "64"]),
        (&["--name", "a b"], &["--name", "a b"]),
        (&["--name", "a\nb"], &["--name", "a\\nb"]),
        (&["--name", "a\u{1b}[31mb"], &["--name", "\\u{1b}"]),
        (&["--name", "a\u{202e}b"], &["--name", "\\u{202e}"]),
        (&["--name", "ä"], &["--name", "ä"]),
        (&["--hostname", ""], &["--hostname"]),
        (&["--hostname", "a\nb"], &["--hostname", "a\\nb"]),
        (&["--hostname", "a/b"], &["--hostname", "a/b"]),
        (&["--hostname", &long], &["--hostname", "63"]),
        (&["--hostname", "-x"], &["--hostname", "-x"]),
        (&["--hostname", "h", "--share", "uts"], &["--hostname", "--share uts"]),
        (&["--share", "net"], &["--share", "net", "--net host"]),
        (&["--share", ""], &["--share"]),
        (&["--label", "novalue"], &["--label", "novalue"]),
        (&["--label", "=x"], &["--label", "=x"]),
        (&["--env", "=x"], &["--env"]),
        (&["--env", "A*"], &["--env", "A*"]),
        (&["--env", "A B=1"], &["--env", "A B", "spaces"]),
        (&["--env", "A B"], &["--env", "A B", "spaces"]),
        (&["--env", "./rootfs"], &["--env", "./rootfs", "-e K=V"]),
        (&["--env-file", "/nonexistent/env"], &["/nonexistent/env"]),
        (&["--env-file", "/tmp"], &["/tmp"]),
        (&["--env-file", "/dev/zero"], &["--env-file", "/dev/zero", "NUL byte", "K=V"]),
        (&["--env-file", "/bin/sh"], &["--env-file", "/bin/sh", "NUL byte"]),
        (&["--mask", "/"], &["--mask \"/\"", "paths below it"]),
        (&["--mask", "/proc/"], &["--mask \"/proc\"", "paths below it"]),
        (&["--mask", "/sys"], &["--mask \"/sys\"", "paths below it"]),
        (&["--mask", "/proc/self"], &["--mask", "/proc/self", "comes and goes"]),
        (&["--mask", "/proc/1/status"], &["--mask", "/proc/1/status", "comes and goes"]),
        (&["--net", "bridge"], &["--net", "bridge", "none"]),
        (&["--dns", "8.8.8"], &["--dns", "8.8.8"]),
        (&["--add-host", "a"], &["--add-host", "\"a\""]),
        (&["--add-host", "a:1.2.3.4.5"], &["--add-host", "1.2.3.4.5"]),
        (&["--add-host", "a\nb:1.2.3.4"], &["--add-host"]),
        (&["--sysctl", "kernel.core_pattern=|/x"], &["--sysctl", "kernel.core_pattern"]),
        (&["--sysctl", "net.."], &["--sysctl"]),
        (&["--sysctl", "net/../kernel/x=1"], &["--sysctl"]),
        (&["--sysctl", "net.ipv4.nothing=1"], &["net.ipv4.nothing"]),
        (&["--sysctl", "net.ipv4.ip_forward"], &["--sysctl"]),
        (&["--cap-add", "SYS_ADMINN"], &["--cap-add", "SYS_ADMINN"]),
        (&["--cap-drop", ""], &["--cap-drop"]),
        (&["--seccomp", "of"], &["--seccomp", "\"of\""]),
        (&["--seccomp", "./missing.toml"], &["missing.toml"]),
        (&["--landlock", "on"], &["--landlock", "\"on\""]),
        (&["--policy", "defualt"], &["--policy", "defualt", "default"]),
        (&["--policy", ""], &["--policy"]),
        (&["--policy", "a\nb"], &["--policy", "a\\nb"]),
        (&["--overlay", "aufs"], &["--overlay", "aufs"]),
        (&["--color", "maybe"], &["--color", "maybe"]),
        (&["--rw", "--read-only"], &["--rw", "--read-only"]),
        (&["--rw", "--upper", "tmpfs"], &["--rw", "--upper"]),
        (&["--share", "time", "--time-offset", "monotonic=+1"], &["--share time", "--time-offset"]),
        (&["--drop-groups", "--group-add", "5"], &["--drop-groups", "--group-add"]),
        (&["--net", "host", "--sysctl", "net.ipv4.ip_forward=1"], &["--net host"]),
        (&["--workdir", "rel"], &["--workdir", "\"rel\""]),
        (&["--workdir", "/a/../b"], &["--workdir", "/a/../b"]),
        (&["--workdir", ""], &["--workdir"]),
        (&["--state", ""], &[]),
    ]);
}

#[test]
fn users_and_maps() {
    all_refused(&[
        (&["--user", ""], &["--user"]),
        (&["--user", "nobodyknows"], &["nobodyknows"]),
        (&["--user", "-1"], &["--user", "-1"]),
        (&["--user", "4294967295"], &["--user", "4294967295"]),
        (&["--user", "4294967296"], &["--user", "4294967296"]),
        (&["--user", "18446744073709551616"], &["--user", "18446744073709551616"]),
        (&["--user", "007"], &["--user", "007"]),
        (&["--user", "0:4294967295"], &["4294967295"]),
        (&["--user", "0:nogroupknows"], &["nogroupknows"]),
        (&["--user", "0:0:0"], &["--user", "0:0:0"]),
        (&["--user", "a\nb"], &["--user", "a\\nb"]),
        (&["--user", "1:"], &["--user"]),
        (&["--map", "root", "--user", "5"], &["5"]),
        (&["--map", "some"], &["--map", "some"]),
        (&["--map", "0:1"], &["--map", "0:1"]),
        (&["--map", "0:0:1"], &["--map", "host's id 0"]),
        (&["--map", "0:100000:0"], &["--map", "0:100000:0"]),
        (&["--map", "0:1:4294967295"], &["--map"]),
        (&["--map", "0:100000:10", "--map", "5:200000:10"], &["--map", "overlap"]),
        (&["--map", "0:100000:10", "--map", "50:100005:10"], &["--map", "overlap"]),
        (&["--map", "0:4000000000:5"], &["4000000000"]),
        (&["--map", "root", "--map", "keep"], &["--map"]),
        (&["--map", "root", "--group-add", "5"], &["--group-add"]),
        (&["--map", "root", "--drop-groups"], &["--drop-groups"]),
    ]);
    let many: Vec<String> = (0..341).map(|n| format!("--map={n}:{}:1", 100_000 + n)).collect();
    let place = Place::new();
    place.sbx_run(many.iter().map(OsString::from).chain([place.rootfs().into()])).done().refused(125, &["340"]);
    place.assert_clean();
}

#[test]
fn mounts() {
    all_refused(&[
        (&["-v", ""], &["--volume"]),
        (&["-v", "/tmp"], &["--volume", "/tmp"]),
        (&["-v", ":/x"], &["--volume"]),
        (&["-v", "/tmp:"], &["--volume"]),
        (&["-v", "name:/x"], &["--volume", "name:/x"]),
        (&["-v", "/nonexistent/x:/mnt"], &["/nonexistent/x"]),
        (&["-v", "/tmp:mnt"], &["--volume", "\"mnt\""]),
        (&["-v", "/tmp:/a/../mnt"], &["--volume", "/a/../mnt"]),
        (&["-v", "/tmp:/"], &["--volume", "\"/\""]),
        (&["-v", "/tmp://"], &["--volume"]),
        (&["-v", "/tmp:/."], &["--volume"]),
        (&["-v", "/tmp:/proc"], &["--volume", "/proc"]),
        (&["-v", "/tmp:/proc/sys"], &["--volume", "/proc/sys"]),
        (&["-v", "/tmp:/./proc//self"], &["--volume", "/proc"]),
        (&["-v", "/tmp:/sys/fs"], &["--volume", "/sys"]),
        (&["-v", "/tmp:/mnt:ro,rw"], &["--volume", "rw"]),
        (&["-v", "/tmp:/mnt:exec,noexec"], &["--volume", "noexec"]),
        (&["-v", "/tmp:/mnt:overlay,ro"], &["--volume", "ro"]),
        (&["-v", "/tmp:/mnt:z"], &["--volume", "\"/tmp:/mnt:z\""]),
        (&["-v", "/tmp:/mnt:ro:x"], &["--volume", "--mount"]),
        (&["-v", "/tmp:/mnt", "-v", "/usr:/mnt"], &["/mnt"]),
        (&["-v", "/tmp:/mnt", "--tmpfs", "/mnt/"], &["/mnt"]),
        (&["-v", "/tmp/:/bin/sh/x:ro"], &["/bin/sh/x"]),
        (&["--mount", "type=nfs,dst=/mnt"], &["--mount", "nfs"]),
        (&["--mount", "type=bind,dst=/mnt"], &["--mount", "src"]),
        (&["--mount", "type=bind,src=/tmp"], &["--mount", "dst"]),
        (&["--mount", "type=tmpfs,src=/tmp,dst=/mnt"], &["--mount", "src"]),
        (&["--mount", "bogus=1"], &["--mount", "bogus"]),
        (&["--mount", ""], &["--mount"]),
        (&["--mount", "type=cgroup,dst=/mnt"], &["--mount", "cgroup"]),
        (&["--tmpfs", "rel"], &["--tmpfs", "\"rel\""]),
        (&["--tmpfs", "/"], &["--tmpfs"]),
        (&["--tmpfs", "/t:nope"], &["--tmpfs", "nope"]),
        (&["--device", "/dev/nothing-here"], &["/dev/nothing-here"]),
        (&["--device", "sda"], &["--device", "\"sda\"", "try: /dev/sda"]),
        (&["--device", "/etc/passwd"], &["--device", "/etc/passwd"]),
        (&["--device", "/dev/null:/etc/x"], &["--device", "/etc/x"]),
        (&["--device", "/dev/null:/dev"], &["--device"]),
        (&["--mask", "rel"], &["--mask", "\"rel\""]),
        (&["--mask", "/a/.."], &["--mask", "/a/.."]),
        (&["--unmask", "rel"], &["--unmask", "\"rel\""]),
    ]);
}

#[test]
fn sources_of_every_kind_work_or_are_named() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let socket = std::os::unix::net::UnixListener::bind(place.path("socket")).expect("bind");
    assert!(support::output("mkfifo", &[place.path("fifo").to_str().expect("utf-8")]).is_empty());
    place.write("file", "text");
    symlink("file", place.path("link")).expect("symlink");
    symlink("nowhere", place.path("dangling")).expect("symlink");
    for (source, kind) in [("socket", 's'), ("fifo", 'p'), ("file", '-'), ("link", '-')] {
        let volume = format!("{}:/mnt/x", place.path(source).display());
        // The entry's own type inside; a device would be `c`.
        place.shell(&["-v", &volume], "ls -ld /mnt/x | cut -c1").done().exits(0).says(&kind.to_string());
    }
    let dangling = format!("{}:/mnt/x", place.path("dangling").display());
    place.shell(&["-v", &dangling], "true").done().refused(125, &["dangling"]);
    let optional = format!("{dangling}:optional");
    place.shell(&["-v", &optional], "test -e /mnt/x || echo gone").done().exits(0).says("gone");
    // A device node is bound, and without `dev` it cannot be opened.
    place.shell(&["-v", "/dev/zero:/mnt/x"], "ls -l /mnt/x | cut -c1; head -c1 /mnt/x").done().says("c");
    place.assert_clean();
    drop(socket);
}

#[test]
fn root_file_systems_that_are_none() {
    let place = Place::new();
    place.write("file", "");
    symlink("loop", place.path("loop")).expect("symlink");
    symlink("nowhere", place.path("dangling")).expect("symlink");
    fs::create_dir_all(place.path("hidden/root")).expect("mkdir");
    fs::set_permissions(place.path("hidden"), fs::Permissions::from_mode(0o000)).expect("chmod");
    let far = format!("/{}", "d/".repeat(2500));
    let long = format!("./{}", "d".repeat(300));
    for (root, naming) in [
        ("./missing", "missing"),
        ("missing", "missing"),
        ("./file", "file"),
        ("./file/", "file"),
        ("./file/below", "file"),
        ("./loop", "loop"),
        ("./dangling", "dangling"),
        ("/", "@host"),
        ("//", "@host"),
        ("/.", "@host"),
        ("/tmp/..", "@host"),
        ("./hidden/root", "hidden"),
        (far.as_str(), "ROOTFS"),
        (long.as_str(), "ROOTFS"),
        ("./mis\nsing", "mis\\nsing"),
        ("./mis\u{1b}[2Jsing", "\\u{1b}"),
        ("/dev/null", "/dev/null"),
        ("~nobody", "~nobody"),
    ] {
        place.sbx_run([root, "true"]).done().refused(125, &[naming]);
        place.assert_clean();
    }
    // Somebody else's, which the caller may not even list; root may.
    if fs::read_dir("/root").is_err() {
        for options in [&[][..], &["--rw"]] {
            let words = options.iter().chain(&["/root", "true"]);
            place.sbx_run(words).done().refused(125, &["/root"]);
            place.assert_clean();
        }
    }
    // Writable as a whole it is never, however it is spelled.
    symlink("/", place.path("own")).expect("symlink");
    for root in ["/", "/usr/..", "./own"] {
        place.sbx_run(["--rw", root, "true"]).done().refused(125, &["@host"]);
    }
    // Neither root nor command line in a working directory that is gone.
    let gone = place.path("gone");
    fs::create_dir(&gone).expect("mkdir");
    let script = format!("rmdir {0}; exec {1} run ./x true", gone.display(), support::sbx().display());
    place.run("sh", ["-c", &script]).dir(&gone).done().refused(125, &["working directory"]);
    place.assert_clean();
}

#[test]
fn an_empty_root_is_usable_as_far_as_it_goes() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("empty")).expect("mkdir");
    place.sbx_run(["./empty"]).done().refused(127, &["/bin/sh"]);
    place.sbx_run(["./empty", "true"]).done().refused(127, &["true"]);
    assert_eq!(support::names(&place.path("empty")), [""; 0], "the root was written to");
    place.assert_clean();
}

#[test]
fn strange_names_of_a_root_work() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let names: &[&[u8]] = &[
        b"a:b",
        b"a,b",
        b"a\\b",
        b"a b",
        b"lowerdir=x,upperdir=y",
        b"a\\:b\\,c",
        b"q\"uo'te",
        b"new\nline",
        b"tab\t",
        b"not\xffutf8",
        "grüße".as_bytes(),
        b"-dash",
        b"@host",
        b"#hash",
        b"%s%n",
        b"$HOME",
    ];
    for name in names {
        let name = bytes(name);
        let root = place.own_rootfs(Path::new(&name));
        place.write("probe", "");
        fs::write(root.join("mark"), name.as_bytes()).expect("write");
        let mut word = bytes(b"./");
        word.push(&name);
        for extra in [&[][..], &["--upper", "disk"], &["--rw"]] {
            let words = extra.iter().map(OsString::from).chain([word.clone(), "cat".into(), "/mark".into()]);
            let done = place.sbx_run(words).done().exits(0);
            assert_eq!(done.out, name.as_bytes(), "{name:?} {extra:?}");
        }
        fs::remove_dir_all(root).expect("remove");
    }
    place.assert_clean();
}

#[test]
fn strange_names_of_volumes_work() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for name in [&b"a,b"[..], b"a\\b", b"a b", b"new\nline", "grüße".as_bytes(), b"lowerdir=x"] {
        let name = bytes(name);
        fs::create_dir(place.path(&name)).expect("mkdir");
        fs::write(place.path(&name).join("f"), "there").expect("write");
        for access in ["rw", "ro", "overlay"] {
            let mut volume = bytes(b"./");
            volume.push(&name);
            volume.push(format!(":/mnt:{access}"));
            let words = ["-v".into(), volume, place.rootfs().into(), "cat".into(), "/mnt/f".into()];
            place.sbx_run(words).done().exits(0).says("there");
        }
    }
    fs::create_dir(place.path("a:b")).expect("mkdir");
    fs::write(place.path("a:b/f"), "there").expect("write");
    let words = ["--mount", "type=bind,src=./a:b,dst=/mnt"].map(OsString::from);
    let words = words.into_iter().chain([place.rootfs().into(), "cat".into(), "/mnt/f".into()]);
    place.sbx_run(words).done().exits(0).says("there");
    place.assert_clean();
}

#[test]
fn words_that_are_not_utf8() {
    let place = Place::new();
    let bad = bytes(b"a\xff\xfeb");
    let rootfs = OsString::from(place.rootfs());
    for option in [
        "--name",
        "--hostname",
        "--user",
        "--map",
        "--pids",
        "--policy",
        "--umask",
        "--net",
        "--status-fd",
        "--workdir",
    ] {
        let words = [option.into(), bad.clone(), rootfs.clone(), "true".into()];
        place.sbx_run(words).done().refused(125, &[]);
        let mut joined = OsString::from(option);
        joined.push("=");
        joined.push(&bad);
        place.sbx_run([joined, rootfs.clone(), "true".into()]).done().refused(125, &[]);
        place.assert_clean();
    }
    place.sbx_run([bad.clone()]).done().refused(125, &["ROOTFS"]);
    if lacks(&["userns"]) {
        return;
    }
    // What is the program's own passes as it is.
    let words = [rootfs.clone(), "printf".into(), "%s".into(), bad.clone()];
    assert_eq!(place.sbx_run(words).done().exits(0).out, bad.as_bytes());
    place.sbx_run([rootfs, bad]).done().refused(127, &[]);
    place.assert_clean();
}

#[test]
fn commands_that_cannot_run() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let root = place.own_rootfs("rootfs");
    let program = |name: &str, content: &[u8], mode: u32| {
        let path = root.join("bin").join(name);
        fs::write(&path, content).expect("write");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    program("text", b"no magic here\n", 0o755);
    program("empty", b"", 0o755);
    program("plain", b"#!/bin/sh\n", 0o644);
    program("no-interpreter", b"#!/bin/nothing-here\n", 0o755);
    program("loop-a", b"#!/bin/loop-b\n", 0o755);
    program("loop-b", b"#!/bin/loop-a\n", 0o755);
    // A 64-bit little-endian ELF header of a machine that nobody has (EM_S390 = 22), and of a cut file.
    let mut elf = fs::read(root.join("bin/busybox")).expect("read")[..4096].to_vec();
    elf[18] = 22;
    program("foreign", &elf, 0o755);
    elf[18] = 62;
    program("short-elf", &elf[..40], 0o755);
    symlink("nowhere", root.join("bin/dangling")).expect("symlink");
    symlink("self", root.join("bin/self")).expect("symlink");
    fs::create_dir(root.join("bin/closed")).expect("mkdir");
    program("closed/x", b"#!/bin/sh\n", 0o755);
    let before = tree(&root);
    for (command, status) in [
        ("/etc", 126),
        ("/", 126),
        ("/bin/text", 126),
        ("text", 126),
        ("/bin/empty", 126),
        ("/bin/plain", 126),
        ("plain", 126),
        ("/bin/no-interpreter", 127),
        ("/bin/loop-a", 126),
        ("/bin/foreign", 126),
        ("foreign", 126),
        ("/bin/short-elf", 126),
        ("/bin/dangling", 127),
        ("/bin/self", 126),
        ("/bin/nothing", 127),
        ("nothing", 127),
        ("./nothing", 127),
        ("/etc/passwd/x", 127),
        ("..", 126),
        ("not\u{1b}[31mred", 127),
    ] {
        for extra in [&[][..], &["--no-init"]] {
            let words = extra.iter().map(OsString::from).chain([root.clone().into(), command.into()]);
            let done = place.sbx_run(words).done();
            let name = command.split('\u{1b}').next().unwrap_or(command);
            assert_eq!((done.code(), done.err.is_empty()), (status, false), "{command} {extra:?}: {}", done.err);
            done.refused(status, &[name]);
        }
        place.assert_clean();
    }
    let long = "c".repeat(5000);
    let done = place.sbx_run([root.as_os_str(), OsStr::new(&long)]).done();
    assert!([126, 127].contains(&done.code()), "{}", done.err);
    place.sbx_run([root.as_os_str(), OsStr::new("")]).done().refused(125, &["COMMAND"]);
    // A command after the one `--` that is dropped, and a second `--` that is the command.
    place.sbx_run([root.as_os_str(), "--".as_ref(), "echo".as_ref(), "--".as_ref()]).done().exits(0).says("--");
    place.sbx_run([root.as_os_str(), "--".as_ref(), "--".as_ref()]).done().refused(127, &["--"]);
    assert!(before == tree(&root), "ROOTFS has changed");
    place.assert_clean();
}

#[test]
fn working_directories_that_are_none() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let root = place.own_rootfs("rootfs");
    symlink("loop", root.join("loop")).expect("symlink");
    let before = tree(&root);
    for dir in ["/missing", "/etc/passwd", "/loop", "/etc/passwd/x"] {
        let words = [OsStr::new("-w"), dir.as_ref(), root.as_os_str(), "true".as_ref()];
        place.sbx_run(words).done().refused(125, &["--workdir", dir]);
        place.assert_clean();
    }
    assert!(before == tree(&root), "ROOTFS has changed");
}

#[test]
fn very_many_and_very_long_words() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    // As much as execve takes here: MAX_ARG_STRLEN is 128 KiB, all together a quarter of the stack's limit.
    let long = "x".repeat(131_000);
    let words = [place.rootfs().into(), OsString::from("printf"), "%s".into(), long.clone().into()];
    assert_eq!(place.sbx_run(words).done().exits(0).out.len(), long.len());
    let many = std::iter::repeat_n(OsString::from("x"), 100_000);
    let words = [place.rootfs().into(), "sh".into(), "-c".into(), "echo $#".into()].into_iter().chain(many);
    place.sbx_run(words).done().exits(0).says("99999");
    // 10^5 variables, below the limit of an execve.
    let variables = (0..100_000).map(|n| OsString::from(format!("-eV{n}=")));
    let words = variables.chain([place.rootfs().into(), "sh".into(), "-c".into(), "env | grep -c ^V".into()]);
    place.sbx_run(words).limit(120).done().exits(0).says("100000");
    // What fits sbx's own stack limit but not the program's with what sbx adds: refused by the kernel, and said so.
    let script =
        format!("ulimit -s unlimited; exec {} run {} true \"$@\"", support::sbx().display(), place.rootfs().display());
    let words = ["-c", script.as_str(), "sh"].map(OsString::from).into_iter();
    let done = place.run("sh", words.chain(std::iter::repeat_n(OsString::from(&long[..100_000]), 15))).done();
    assert!([0, 126].contains(&done.code()), "{}: {}", done.code(), done.err);
    let words = [OsString::from("--rlimit"), "stack=1M".into(), place.rootfs().into(), "true".into()];
    let done = place.sbx_run(words.into_iter().chain(std::iter::repeat_n(OsString::from(&long[..100_000]), 10))).done();
    done.refused(126, &["true", "argument list too long"]);
    // A file of variables as long as that.
    let file: String = (0..100_000).map(|n| format!("V{n}=\n")).collect();
    place.write("env", file);
    place.shell(&["--env-file", "./env"], "env | grep -c ^V").done().exits(0).says("100000");
    place.assert_clean();
}

/// Nobody reads a hundred thousand characters; a path is shown whole.
#[test]
fn errors_do_not_repeat_the_longest_words() {
    let place = Place::new();
    let rootfs = place.rootfs().display().to_string();
    let long = "y".repeat(100_000);
    let path = "/p".repeat(1000);
    let [option, file] = [format!("--{long}"), format!("/{long}:/x")];
    for words in [
        &["stop", &long][..],
        &["exec", &long, "true"],
        &["logs", &long],
        &["ps", &option],
        &[&long],
        &["run", &option, &rootfs],
        &["run", "--mem", &long, &rootfs],
        &["run", "--policy", &file, &rootfs],
        &["run", &long],
        &["run", "-v", &file, &rootfs],
    ] {
        let done = place.sbx(words).done();
        assert_ne!(done.code(), 0);
        assert!(done.err.len() < 2000, "{words:.20?}: {} bytes", done.err.len());
    }
    place.sbx(["run", &path]).done().refused(125, &[&path]);
}

#[test]
fn closed_standard_descriptors() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let run = |redirect: &str, program: &str| {
        let script =
            format!("exec {} run {} sh -c '{program}' {redirect}", support::sbx().display(), place.rootfs().display());
        place.run("sh", ["-c", &script]).done()
    };
    // Whatever becomes 0 to 2 inside, it must be nothing of sbx's own: each is closed or /dev/null.
    let list = "! ls -l /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2 2>/tmp/none | grep -v -e /dev/null -e pipe: >/tmp/l";
    for redirect in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        let done = run(redirect, list);
        assert_eq!(done.code(), 0, "{redirect}: {} {}", done.text(), done.err);
        let done = run(redirect, "exit 3");
        assert_eq!(done.code(), 3, "{redirect}: {}", done.err);
    }
    run("<&-", "cat; echo alive").says("alive");
    // A status descriptor or a lock that lands on 0 to 2 would be overwritten by the first echo.
    let script = format!(
        "{} run --status-fd 3 {} sh -c 'echo spoiled; echo spoiled >&2' 3>status <&- >&- 2>&-",
        support::sbx().display(),
        place.rootfs().display()
    );
    place.run("sh", ["-c", &script]).done().exits(0);
    let status = fs::read_to_string(place.path("status")).expect("status");
    assert!(!status.contains("spoiled") && status.contains("\"exit\""), "{status}");
    place.assert_clean();
}

#[test]
fn descriptors_that_open_the_host() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let run = |redirect: &str, options: &str, program: &str| {
        let sbx = support::sbx();
        let script = format!("exec {} run {options} {} {program} {redirect}", sbx.display(), place.rootfs().display());
        place.run("bash", ["-c", &script]).done()
    };
    run("</", "", "true").refused(125, &["0", "directory"]);
    run("3</", "--pass-fd 3", "true").refused(125, &["3", "directory"]);
    run("2</", "", "true").exits(125);
    // Not passed on, it is no matter.
    run("3</", "", "true").exits(0);
    place.assert_clean();
}

/// A policy's errors point at the place.
#[track_caller]
fn policy_refused(content: &[u8], at: &str, naming: &[&str]) {
    let place = Place::new();
    place.write("p.toml", content);
    let rootfs = place.rootfs();
    let words = ["--policy".as_ref(), "./p.toml".as_ref(), rootfs.as_os_str(), "true".as_ref()];
    let done = place.sbx_run(words).done().refused(125, naming);
    assert!(
        done.err.starts_with(&format!("sbx: ./p.toml{at}")),
        "{:?}: {}",
        String::from_utf8_lossy(content),
        done.err
    );
    let column = at.trim_end_matches(": ").rsplit(':').next().and_then(|c| c.parse::<usize>().ok());
    if let Some(column) = column {
        let mut lines = done.err.lines();
        let shown = lines.find(|line| line.contains("at:")).unwrap_or_else(|| panic!("no line shown: {}", done.err));
        let caret = lines.next().unwrap_or("");
        let start = shown.find("at:").expect("found") + "at:  ".len();
        assert_eq!(caret.trim_end().chars().count(), start + column, "the caret stands elsewhere: {}", done.err);
        assert!(caret.ends_with('^'), "{}", done.err);
    }
    place.assert_clean();
}

#[test]
fn policies_that_are_wrong() {
    policy_refused(b"[limits]\npid = 5\n", ":2:1: ", &["pid", "pids"]);
    policy_refused(b"[limist]\n", ":1:2: ", &["limist", "limits"]);
    policy_refused(b"[limits]\npids = [1]\n", ":2:8: ", &[]);
    policy_refused(b"[root]\nrw = \"yes\"\n", ":2:6: ", &["boolean"]);
    policy_refused(b"[caps]\ndrop = \"all\"\n", ":2:8: ", &[]);
    policy_refused(b"[limits]\npids = 1\npids = 2\n", ":3:1: ", &["duplicate"]);
    policy_refused(b"[limits]\n[limits]\n", ":2:", &["duplicate"]);
    policy_refused(b"about = \"x\n", ":1:", &[]);
    policy_refused(b"= 1\n", ":1:", &[]);
    policy_refused(b"about = 1\n", ":1:9: ", &[]);
    policy_refused(b"\xef\xbb\xbf[limits]\r\npid = 5\r\n", ":2:1: ", &["pids"]);
    policy_refused("about = \"grüße\"; x\n".as_bytes(), ":1:", &[]);
    policy_refused("[limits]\npids = \"ä\" x\n".as_bytes(), ":2:", &[]);
    policy_refused(b"about = \"\x1b[31m\"\n", ":1:", &[]);
    policy_refused(b"\x1b[31m\n", ":1:", &[]);
    policy_refused(b"about = \"\xff\xfe\"\n", ":", &["UTF-8"]);
    policy_refused(b"\0\0\0\0", ":1:", &[]);
    policy_refused("[".repeat(5000).as_bytes(), ":", &[]);
    policy_refused("[".repeat(20_000).as_bytes(), ":", &[]);
    policy_refused(format!("about = {}\n", "[".repeat(9_999)).as_bytes(), ":", &[]);
    policy_refused(format!("about = {}\n", "{a=".repeat(9_000)).as_bytes(), ":", &[]);
    policy_refused(format!("{}\n", "a.".repeat(100_000)).as_bytes(), ":", &[]);
    policy_refused(format!("about = \"{}\nx = 1\n", "y".repeat(100_000)).as_bytes(), ":", &[]);
}

#[test]
fn values_in_policies_that_are_wrong() {
    let place = Place::new();
    for (content, naming) in [
        ("[seccomp]\ndeny = [\"opne\"]\n", &["opne"][..]),
        ("[seccomp]\nallow = [\"no_such_call\"]\n", &["no_such_call"]),
        ("[seccomp]\nlog = [\"\"]\n", &[]),
        ("[seccomp]\ndeny = [\"execve\"]\n", &["execve"]),
        ("[seccomp]\ndeny = [\"exit_group\"]\n", &["exit_group"]),
        ("[caps]\nadd = [\"SYS_ADMINN\"]\n", &["SYS_ADMINN"]),
        ("[caps]\ndrop = [\"al\"]\n", &["al"]),
        ("[limits]\npids = -1\n", &["--pids", "-1"]),
        ("[limits]\npids = 0\n", &["--pids"]),
        ("[limits]\ntimeout = \"soon\"\n", &["--timeout", "soon"]),
        ("[limits]\nnice = 99\n", &["--nice", "99"]),
        ("[root]\nupper = \"tmpfs:9X\"\n", &["9X"]),
        ("[[mount]]\nsrc = \"/tmp\"\ndst = \"/proc\"\n", &["/proc"]),
        ("[[mount]]\ndst = \"/x\"\n", &["src"]),
        ("[[mount]]\nsrc = \"/nonexistent/y\"\ndst = \"/x\"\n", &["/nonexistent/y"]),
        ("[[mount]]\ntype = \"tmpfs\"\nsrc = \"/tmp\"\ndst = \"/x\"\n", &["src"]),
        ("[[mount]]\ntype = \"tmpfs\"\naccess = \"ro\"\ndst = \"/x\"\n", &["access"]),
        ("[identity]\nname = \"a/b\"\n", &["a/b"]),
        ("[identity]\nhostname = \"a\\u001bb\"\n", &["a\\u{1b}b"]),
        ("[env.set]\n\"A=B\" = \"x\"\n", &["A=B"]),
        ("[env.set]\nA = \"x\\u0000y\"\n", &["NUL"]),
        ("[program]\nworkdir = \"x\"\n", &["--workdir"]),
        ("[program]\npass-fd = [-1]\n", &["--pass-fd"]),
        ("[net]\nmode = \"bridge\"\n", &["bridge"]),
        ("extends = [\"./p.toml\"]\n", &["circle"]),
        ("extends = [\"./missing.toml\"]\n", &["missing.toml"]),
        ("extends = [\"defaul\"]\n", &["defaul", "default"]),
    ] {
        place.write("p.toml", content);
        let rootfs = place.rootfs();
        let words = ["--policy".as_ref(), "./p.toml".as_ref(), rootfs.as_os_str(), "true".as_ref()];
        let done = place.sbx_run(words).done();
        assert_eq!(done.code(), 125, "{content}: {}", done.err);
        done.refused(125, naming);
        place.assert_clean();
    }
}

#[test]
fn policies_that_are_no_plain_files() {
    let place = Place::new();
    let refuse = |name: &str, naming: &[&str]| {
        let rootfs = place.rootfs();
        for option in ["--policy", "--seccomp"] {
            let words = [option.as_ref(), name.as_ref(), rootfs.as_os_str(), "true".as_ref()];
            place.sbx_run(words).limit(20).done().refused(125, naming);
        }
        place.assert_clean();
    };
    assert!(support::output("mkfifo", &[place.path("fifo.toml").to_str().expect("utf-8")]).is_empty());
    fs::File::create(place.path("huge.toml")).and_then(|file| file.set_len(1 << 30)).expect("a sparse file");
    fs::create_dir(place.path("dir.toml")).expect("mkdir");
    symlink("loop.toml", place.path("loop.toml")).expect("symlink");
    refuse("./fifo.toml", &["fifo.toml"]);
    refuse("./huge.toml", &["huge.toml", "too large"]);
    refuse("./dir.toml", &["dir.toml"]);
    refuse("./loop.toml", &["loop.toml"]);
    refuse("./none.toml", &["none.toml", "no such file"]);
    refuse("/dev/zero", &["/dev/zero"]);
    refuse("/dev/stdin", &["/dev/stdin"]);
    refuse("/proc/self/mem", &["/proc/self/mem"]);
}

#[test]
fn policies_that_are_right_though_odd() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for content in ["", "\n\n", "# nothing\n", "\u{feff}", "\u{feff}about = \"x\"\r\n[limits]\r\npids = 50\r\n"] {
        place.write("p.toml", content);
        place.shell(&["--policy", "./p.toml"], "echo ran").done().exits(0).says("ran");
    }
    place.write("deny.toml", "[seccomp]\ndeny = [\"mkdir\", \"mkdirat\"]\n");
    place.shell(&["--policy", "./deny.toml"], "mkdir /tmp/x || echo denied").done().exits(0).says("denied");
    place.shell(&["--seccomp", "./deny.toml"], "mkdir /tmp/x || echo denied").done().exits(0).says("denied");
    place.assert_clean();
}

#[test]
fn nothing_is_done_by_a_dry_run() {
    let place = Place::new();
    let rootfs = place.own_rootfs("rootfs");
    let before = tree(&rootfs);
    let words = |extra: &[&str]| {
        let all = ["--dry-run"].iter().chain(extra).map(OsString::from);
        all.chain([rootfs.clone().into(), "true".into()]).collect::<Vec<_>>()
    };
    place.sbx_run(words(&[])).done().exits(0);
    let done = place.sbx_run(words(&["--json", "--rw", "--tmpfs", "/new/place"])).done().exits(0);
    serde_json::from_slice::<serde_json::Value>(&done.out).expect("one JSON document");
    place.sbx_run(words(&["--pid-file", "./pid", "--upper", "disk"])).done().exits(0);
    place.sbx_run(words(&["--upper", "./kept"])).done().exits(0);
    assert_eq!(support::names(&place.path("home")), [""; 0]);
    assert!(!place.path("pid").exists() && !place.path("kept").exists() && !place.state().exists());
    assert!(before == tree(&rootfs), "ROOTFS has changed");
}
