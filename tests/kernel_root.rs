//! What only root can set up: callers with many groups, files of other users, init seen from outside, and sbx run by
//! root itself (security.md S02, S28, S29; DESIGN 4.10). Run as root alone.

mod common;

use common::tree::picture;
use common::{Scratch, plain, probe, rootfs, sandbox, volume};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The ordinary user that tests/run makes.
const USER: &str = "sbxtest";
/// Groups that nothing on the machine has.
const GROUPS: std::ops::Range<u32> = 7_340_001..7_340_021;

/// Whether there is that user; without it there is nobody to be.
fn has_user() -> bool {
    let there = Command::new("id").arg(USER).output().is_ok_and(|output| output.status.success());
    if !there {
        println!("SKIP {}: no user {USER}", std::thread::current().name().unwrap_or("test"));
    }
    there
}

/// What turns the caller into the user with the twenty groups.
fn as_user() -> Vec<String> {
    let groups = GROUPS.map(|gid| gid.to_string()).collect::<Vec<_>>().join(",");
    ["setpriv", "--reuid", USER, "--regid", USER, "--groups", &groups].map(str::to_owned).to_vec()
}

/// A directory that the user may write to, and a home and state of its own.
fn place(scratch: &Scratch, name: &str) -> PathBuf {
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let dir = scratch.dir(name);
    let ids = |flag: &str| {
        let output = Command::new("id").args([flag, USER]).output().expect("id");
        String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().expect("a number")
    };
    chown(&dir, Some(ids("-u")), Some(ids("-g"))).expect("chown");
    dir
}

fn run_as_user(scratch: &Scratch, options: &[&str]) -> common::Sandbox {
    let state = place(scratch, "state");
    sandbox(options).option("--state").option(state.join("sbx")).under(&as_user()).env("HOME", scratch.path())
}

#[test]
fn twenty_groups_stay_and_deny_what_they_denied() {
    if !has_user() {
        return;
    }
    let scratch = Scratch::new();
    let facts = run_as_user(&scratch, &[]).probe("self").sees();
    let groups: Vec<&str> = facts["status"]["Groups"].as_str().expect("groups").split(' ').collect();
    assert_eq!((groups.len(), &facts["setgroups"]), (20, &"deny".into()), "{groups:?}");
    assert!(groups.iter().all(|gid| *gid == "65534"), "{groups:?}");
    // Open to all but the members of a group that the caller is in (CVE-2018-7169).
    let shared = place(&scratch, "shared");
    fs::write(shared.join("denied"), "secret").expect("file");
    chown(shared.join("denied"), Some(0), Some(GROUPS.start)).expect("chown");
    fs::set_permissions(shared.join("denied"), fs::Permissions::from_mode(0o604)).expect("chmod");
    fs::write(shared.join("open"), "public").expect("file");
    let option = volume(&shared, "/v:ro");
    for options in [&[][..], &["--map", "keep"], &["--landlock", "off"]] {
        let script = "cat /v/open; cat /v/denied 2>/dev/null && echo read; true";
        run_as_user(&scratch, options).option("-v").option(&option).sh(script).run().exits(0).prints("public");
    }
}

/// What is read back stands in /proc/self/status behind the groups, far beyond a page.
#[test]
fn thousands_of_groups_hide_nothing_that_is_read_back() {
    if !has_user() {
        return;
    }
    let scratch = Scratch::new();
    let state = place(&scratch, "state").join("sbx");
    let groups = (0..3000).map(|n| (GROUPS.start + n).to_string()).collect::<Vec<_>>().join(",");
    let many = ["setpriv", "--reuid", USER, "--regid", USER, "--groups", &groups];
    let asked = plain().option("--state").option(state).under(&many).env("HOME", scratch.path());
    asked.sh("grep ^Groups: /proc/self/status | wc -w").run().exits(0).prints("3001");
}

#[test]
fn a_range_map_takes_no_group_of_the_callers_along() {
    if !has_user() || !common::has("newuidmap") {
        return;
    }
    let scratch = Scratch::new();
    let groups = |options: &[&str]| {
        let facts = run_as_user(&scratch, &["--map", "full"]).options(options).probe("self").sees();
        facts["status"]["Groups"].as_str().map(str::to_owned)
    };
    assert_eq!(groups(&[]).as_deref(), Some(""));
    assert_eq!(groups(&["--group-add", "9"]).as_deref(), Some("9"));
}

/// What `--map full` makes of this text in /etc/subuid and /etc/subgid: how many ids of the range there are inside.
fn mapped(text: &str) -> Result<u64, common::Outcome> {
    let scratch = Scratch::new();
    let file = scratch.file("ranges", text);
    let bind = "mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && exec \"$@\"";
    let state = place(&scratch, "state").join("sbx");
    let sandbox = sandbox(&["--map", "full", "--state"]).option(state).env("HOME", scratch.path());
    let sandbox = sandbox.under(&["unshare", "--mount", "sh", "-c", bind]).under(&[file]).under(&as_user());
    let outcome = sandbox.probe("self").run();
    if outcome.status != 0 {
        return Err(outcome);
    }
    let map = outcome.facts()["uid_map"].as_str().expect("a map").to_owned();
    let (own, range) = map.split_at(6);
    assert_eq!(own, "0 0 1 ", "{text:?}");
    range.split(' ').skip(2).step_by(3).map(|count| Ok(count.parse::<u64>().expect("a count"))).sum()
}

#[test]
fn hostile_lines_for_ranges_are_ignored_or_refused_in_words() {
    if !has_user() || !common::has("newuidmap") {
        return;
    }
    let good = format!("{USER}:200000:1000");
    let uid = Command::new("id").args(["-u", USER]).output().expect("id").stdout;
    let uid = String::from_utf8_lossy(&uid).trim().to_owned();
    let long = "x".repeat(100_000);
    // As newuidmap reads them: what makes no sense is no line, and stands in the way of none.
    let nonsense = ["", "::", ":", "#", "{USER}", "{USER}:", "{USER}:200000", "{USER}:200000:", "{USER}:200000:1000:7"]
        .into_iter()
        .chain(["{USER}:x:1000", "{USER}:200000:x", "{USER}:200000:0", "{USER}:-1:10", "{USER}:0x10:10"])
        .chain(["{USER}:4294967296:1", "{USER}:99999999999999999999:1", "{USER}:4294967295:2", "{USER} :200000:1000"])
        .chain(["{USER}2:200000:1000", "{OTHER}:200000:1000", " {USER}:200000:1000", "root:200000:1000", &long]);
    for line in nonsense {
        let line = line.replace("{USER}", USER).replace("{OTHER}", &USER[..3]);
        let none = mapped(&format!("{line}\n")).expect_err("no range");
        none.refused().says("/etc/subuid has no range for");
        for text in [format!("{line}\n{good}\n"), format!("{good}\n{line}\n")] {
            assert_eq!(mapped(&text).expect("the good line is used"), 1000, "{line:?}");
        }
    }
    for (text, count) in [
        (good.clone(), 1000),
        (format!("{uid}:200000:1000\n"), 1000),
        (format!("{good}\n{USER}:300000:500\n"), 1500),
        (format!("{USER}:4294960000:100\n"), 100),
    ] {
        assert_eq!(mapped(&text).expect("a range"), count, "{text:?}");
    }
    for (text, words) in [
        (format!("{USER}:0:1000\n"), "/etc/subuid"),
        (format!("{good}\n{USER}:200500:1000\n"), "/etc/subuid"),
        (format!("{good}\n{good}\n"), "/etc/subuid"),
        (format!("{USER}:{uid}:10\n"), "/etc/subuid"),
        (format!("{good}\r\n"), "/etc/subuid"),
        (format!("{good}\0\n"), "/etc/subuid"),
        (format!("{USER}:200000\0:1000\n"), "/etc/subuid"),
    ] {
        mapped(&text).expect_err("refused").refused().says(words);
    }
}

#[test]
fn a_set_id_file_of_sbx_refuses_to_run() {
    if !has_user() {
        return;
    }
    let scratch = Scratch::new();
    let file = place(&scratch, "set-id").join("sbx");
    fs::copy(common::sbx(), &file).expect("copy");
    for (mode, runs) in [(0o4755, false), (0o2755, false), (0o755, true)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("chmod");
        let caller = as_user();
        let told = Command::new(&caller[0]).args(&caller[1..]).arg(&file).arg("--version").output().expect("setpriv");
        assert_eq!(told.status.success(), runs, "mode {mode:o}: {told:?}");
    }
}

/// The descriptors of a process: number and where it leads.
fn descriptors(pid: &str) -> Vec<(u32, String)> {
    let dir = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let one = |entry: fs::DirEntry| {
        let to = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        Some((entry.file_name().to_str()?.parse().ok()?, to))
    };
    dir.flatten().filter_map(one).collect()
}

#[test]
fn init_keeps_no_way_to_the_host() {
    if !has_user() {
        return;
    }
    let scratch = Scratch::new();
    let pid_file = place(&scratch, "pid").join("pid");
    let mut running = run_as_user(&scratch, &["--pid-file", pid_file.to_str().expect("UTF-8")])
        .caller("hold", &["50"])
        .sh("echo ready >/run/ready; read wait")
        .start();
    let program = loop {
        let text = fs::read_to_string(&pid_file).unwrap_or_default();
        if text.ends_with('\n') {
            break text.trim().to_owned();
        }
        std::thread::yield_now();
    };
    let status = fs::read_to_string(format!("/proc/{program}/status")).expect("status");
    let init = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent").trim().to_owned();
    // Its own end of the channel, its signals, the sandbox's own /proc and tmpfs, and the caller's three; no other
    // directory, nothing that was held open, and in that tmpfs nothing of another file system. The pid is told a moment before init closes what it built the root with.
    let deadline = Instant::now() + Duration::from_secs(20);
    let file_system = |path: &str| fs::metadata(path).map(|file| file.dev()).ok();
    let own_proc = |number: &u32| file_system(&format!("/proc/{init}/fd/{number}")) != file_system("/proc");
    let own_store = |number: &u32| {
        let top = format!("/proc/{init}/fd/{number}");
        let own = file_system(&format!("/proc/{init}/root/tmp"));
        let within = fs::read_dir(&top).into_iter().flatten().flatten();
        own.is_some()
            && file_system(&top) == own
            && within.into_iter().all(|e| e.metadata().map(|m| m.dev()).ok() == own)
    };
    let foreign = |(number, to): &(u32, String)| {
        let ours = to.starts_with("socket:")
            || to.contains("signalfd")
            || to == "/proc" && own_proc(number)
            || own_store(number);
        *number > 2 && !ours
    };
    loop {
        let left: Vec<_> = descriptors(&init).into_iter().filter(foreign).collect();
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "init keeps {left:?}");
        std::thread::yield_now();
    }
    let numbers: Vec<u32> = descriptors(&program).into_iter().map(|(number, _)| number).filter(|n| *n > 2).collect();
    assert!(numbers.is_empty() || numbers == [10], "the shell's own at most: {numbers:?}");
    running.stdin = None;
    running.wait().exits(1);
}

#[test]
fn root_maps_no_id_of_the_host() {
    let scratch = Scratch::new();
    let pid_file = scratch.join("pid");
    let words = ["--pid-file", pid_file.to_str().expect("UTF-8")];
    let mut running = sandbox(&words).sh("read wait").start();
    let program = loop {
        let text = fs::read_to_string(&pid_file).unwrap_or_default();
        if text.ends_with('\n') {
            break text.trim().to_owned();
        }
        std::thread::yield_now();
    };
    for kind in ["uid_map", "gid_map"] {
        let map = fs::read_to_string(format!("/proc/{program}/{kind}")).expect("a map");
        for line in map.lines() {
            let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            assert!(numbers[1] >= 524_288, "{kind}: {map}");
        }
    }
    let status = fs::read_to_string(format!("/proc/{program}/status")).expect("status");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned());
    assert!(
        field("Uid:").is_some_and(|ids| ids.split_whitespace().all(|id| id.parse().is_ok_and(|n: u64| n >= 524_288)))
    );
    assert_eq!(field("Groups:").as_deref(), Some(""));
    running.stdin = None;
    running.wait().exits(1);
}

#[test]
fn two_sandboxes_of_root_have_ranges_of_their_own() {
    let outer = |sandbox: common::Sandbox, pid_file: &Path| {
        let running = sandbox.option("--pid-file").option(pid_file).sh("read wait").start();
        loop {
            let text = fs::read_to_string(pid_file).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n') {
                return (running, fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("a map"));
            }
            std::thread::yield_now();
        }
    };
    let scratch = Scratch::new();
    let (first, one) = outer(plain(), &scratch.join("one"));
    let (second, two) = outer(plain(), &scratch.join("two"));
    assert_ne!(one, two);
    drop((first, second));
}

#[test]
fn files_of_root_are_not_written_by_its_sandbox() {
    let scratch = Scratch::new();
    let shared = scratch.dir("shared");
    fs::write(shared.join("private"), "secret").expect("file");
    fs::set_permissions(shared.join("private"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let before = picture(&shared);
    sandbox(&["-v"]).option(volume(&shared, "/v")).command(&["true"]).run().refused().says("belongs to root");
    let root = scratch.rootfs();
    sandbox(&["--rw"]).root(&root).command(&["true"]).run().refused().says("belongs to root");
    let script = "cat /v/private; echo x 2>/dev/null >/v/private; touch /v/new 2>/dev/null; true";
    sandbox(&["-v"]).option(volume(&shared, "/v:ro")).sh(script).run().exits(0).prints("secret");
    assert_eq!(picture(&shared), before);
}

/// Its owners would be ids of a range that the next run does not have.
#[test]
fn root_keeps_no_upper_layer() {
    let scratch = Scratch::new();
    let kept = scratch.join("kept");
    sandbox(&["--upper"]).option(&kept).command(&["true"]).run().refused().says("change from run to run");
    assert!(!kept.exists(), "the refused directory was made");
}

#[test]
fn this_machines_own_root_forgets_what_root_changes() {
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let project = scratch.dir("project");
    fs::write(scratch.file("project/file", "old"), "mine\n").expect("file");
    let before = (picture(&project), fs::read("/etc/hostname").ok());
    let script = "id -u; cat file; echo new >file && cat file; ls -A /root /home | grep -v -e '^$' -e ':$'; \
                  echo x >/etc/sbx-new && echo x >/root/x && cat /etc/sbx-new; pwd";
    let wanted = format!("0\nmine\nnew\nx\n{}", project.display());
    plain().root("@host").cwd(&project).sh(script).run().exits(0).prints(&wanted);
    assert_eq!((picture(&project), fs::read("/etc/hostname").ok()), before);
    assert!(!Path::new("/etc/sbx-new").exists());
    // What a volume shows writable belongs to root.
    let own = volume(&project, project.to_str().expect("UTF-8"));
    sandbox(&["-v"]).option(own).root("@host").cwd(&project).command(&["true"]).run().refused().says("belongs to root");
}

#[test]
fn root_is_confined_as_everybody_else() {
    let facts = plain().caller("hold", &["100"]).probe("self").sees();
    let status = &facts["status"];
    assert_eq!(
        (&status["NoNewPrivs"], &status["Seccomp"], &status["CapBnd"]),
        (&"1".into(), &"2".into(), &"00000000800405fb".into())
    );
    assert_eq!((&status["CapEff"], &status["CapInh"]), (&"00000000800405fb".into(), &"0000000000000000".into()));
    let numbers: Vec<&String> = facts["fds"].as_object().expect("fds").keys().collect();
    assert_eq!(numbers, ["0", "1", "2"]);
    let pids = plain().probe("pids").sees();
    assert_eq!(pids["1"]["exe"]["errno"], libc::EACCES);
    for device in ["/dev/vda", "/dev/sda", "/dev/mem", "/dev/kmsg"] {
        plain().command(&["ls", device]).run().exits(1);
    }
}

#[test]
fn a_device_node_in_rootfs_cannot_be_opened() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let node = root.join("null");
    assert!(
        Command::new("mknod").args(["-m", "666"]).arg(&node).args(["c", "1", "3"]).status().expect("mknod").success()
    );
    for options in [&[][..], &["--landlock", "off"], &["--seccomp", "off", "--landlock", "off"]] {
        sandbox(options)
            .root(&root)
            .sh("ls /null; echo x 2>/dev/null >/null || echo closed")
            .run()
            .exits(0)
            .prints("/null\nclosed");
    }
    assert!(probe().exists() && rootfs().exists());
}
