//! sbx in a container of crun, rootless, confined as Docker and Podman do by default: `run` works there, or says which
//! knob of the container's is in the way.
//!
//! Moby's profile is data/moby-seccomp-default.json. Podman's lets everyone make namespaces and mounts besides.

mod support;

use serde_json::{Value, json};
use support::{Done, Place, lacks, sbx};

/// What Moby gives to containers by default.
const CAPS: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// What containers-common adds for everyone, as far as namespaces and mounts go.
const PODMAN: [&str; 16] = [
    "clone",
    "clone3",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "setns",
    "sethostname",
    "umount",
    "umount2",
    "unshare",
];
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Moby's profile as a runtime takes it: without the rules of other machines and for capabilities that are not given.
fn profile(more: &[&str]) -> Value {
    let moby: Value = serde_json::from_str(include_str!("data/moby-seccomp-default.json")).expect("JSON");
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let names = |rule: &Value, which: &str, what: &str| -> Vec<String> {
        let list = rule[which][what].as_array().into_iter().flatten();
        list.filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let given = |caps: Vec<String>| caps.iter().any(|cap| CAPS.contains(&cap.as_str()));
    let holds = |rule: &&Value| {
        let (arches, caps) = (names(rule, "includes", "arches"), names(rule, "includes", "caps"));
        (arches.is_empty() || arches.iter().any(|a| a == arch))
            && (caps.is_empty() || given(caps))
            && !names(rule, "excludes", "arches").iter().any(|a| a == arch)
            && !given(names(rule, "excludes", "caps"))
    };
    let bare = |rule: &Value| {
        let mut rule = rule.clone();
        let fields = rule.as_object_mut().expect("a rule");
        fields.retain(|key, value| ["names", "action", "args", "errnoRet"].contains(&key.as_str()) && !value.is_null());
        rule
    };
    let mut rules: Vec<Value> = moby["syscalls"].as_array().expect("rules").iter().filter(holds).map(bare).collect();
    if !more.is_empty() {
        let named = |rule: &Value| {
            rule["names"].as_array().is_some_and(|n| n.iter().any(|n| more.contains(&n.as_str().unwrap_or(""))))
        };
        rules.retain(|rule| rule["action"] == "SCMP_ACT_ALLOW" || !named(rule));
        rules.retain(|rule| rule["args"].is_null() || !named(rule));
        rules.push(json!({ "names": more, "action": "SCMP_ACT_ALLOW" }));
    }
    json!({ "defaultAction": moby["defaultAction"], "defaultErrnoRet": 1, "syscalls": rules })
}

/// `sbx WORDS` in a container; the fixture is its root and the root file system at /mnt/rootfs, /run and /tmp are free.
fn contained(place: &Place, seccomp: &Value, masked: bool, words: &[&str]) -> Done {
    let args: Vec<&str> = ["/mnt/sbx"].iter().chain(words).copied().collect();
    place.write("config.json", config(place, seccomp, masked, &args, &[]).to_string());
    let name = format!("sbx-{}", std::process::id());
    let root = place.path("crun");
    // crun refuses a machine whose /sys/fs/cgroup is not cgroup v2, even where it is to make no use of it.
    let script = "test -e /sys/fs/cgroup/cgroup.controllers || mount -t cgroup2 none /sys/fs/cgroup; \
        exec crun --root \"$0\" --cgroup-manager=disabled run \"$1\"";
    let words = ["--map-root-user", "--mount", "--cgroup", "sh", "-c", script, root.to_str().expect("UTF-8"), &name];
    place.run("unshare", words).done()
}

/// The bundle of a container in which these words run, with more mounts.
fn config(place: &Place, seccomp: &Value, masked: bool, args: &[&str], more: &[Value]) -> Value {
    let ids = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    let rootfs = place.own_rootfs("container");
    let mount = |kind: &str, at: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let bind = |src: &std::path::Path, at: &str| json!({ "destination": at, "type": "bind", "source": src, "options": ["rbind", "ro"] });
    let lists = if masked { (&MASKED[..], &READ_ONLY[..]) } else { (&[][..], &[][..]) };
    let caps = ["bounding", "effective", "permitted"].map(|set| (set.to_owned(), json!(CAPS)));
    let namespaces = ["user", "mount", "pid", "ipc", "uts", "network", "cgroup"].map(|kind| json!({ "type": kind }));
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": args,
            "env": ["PATH=/usr/bin:/bin", "XDG_RUNTIME_DIR=/run", "HOME=/root"],
            "capabilities": caps.into_iter().collect::<serde_json::Map<_, _>>(),
        },
        "root": { "path": rootfs, "readonly": true },
        "mounts": [
            mount("proc", "/proc", &[]),
            mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777"]),
            mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
            mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
            mount("tmpfs", "/mnt", &["mode=755"]), mount("tmpfs", "/run", &["mode=700"]), mount("tmpfs", "/tmp", &[]),
            bind(&sbx(), "/mnt/sbx"), bind(&place.rootfs(), "/mnt/rootfs"),
        ],
        "linux": {
            "namespaces": namespaces,
            "uidMappings": ids, "gidMappings": ids,
            "maskedPaths": lists.0, "readonlyPaths": lists.1, "seccomp": seccomp,
        },
    });
    config["mounts"].as_array_mut().expect("mounts").extend(more.iter().cloned());
    config
}

/// Runs in a container with these calls open besides Moby's, and checks there: the two have to agree.
fn run_and_check(more: &[&str], masked: bool) -> Option<Done> {
    if lacks(&["userns", "crun", "tmpfs-xattrs"]) {
        return None;
    }
    let place = Place::new();
    let status = "grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status; cat /proc/self/uid_map";
    let ran = contained(&place, &profile(more), masked, &["run", "/mnt/rootfs", "/bin/sh", "-c", status]);
    let checked = contained(&place, &profile(more), masked, &["check", "--json"]);
    let report: Value = serde_json::from_slice(&checked.out).unwrap_or_else(|e| panic!("{e}: {}", checked.err));
    assert_eq!(
        (checked.code(), &report["works"]),
        (i32::from(ran.code() != 0), &json!(ran.code() == 0)),
        "{}",
        ran.err
    );
    place.assert_no_processes();
    Some(ran)
}

#[test]
fn mobys_profile_refuses_user_namespaces_and_is_named() {
    let Some(ran) = run_and_check(&[], true) else { return };
    ran.refused(125, &["namespaces", "a seccomp filter", "--security-opt seccomp=unconfined"]);
}

#[test]
fn a_masked_proc_is_named_with_its_option() {
    let Some(ran) = run_and_check(&PODMAN, true) else { return };
    ran.refused(125, &["/proc", "masked", "systempaths=unconfined", "--security-opt unmask=ALL"]);
}

#[test]
fn behind_podmans_profile_it_works() {
    let Some(ran) = run_and_check(&PODMAN, false) else { return };
    let said = ran.exits(0).text();
    let words: Vec<&str> = said.split_whitespace().collect();
    let confined = ["CapEff:", "00000000800405fb", "NoNewPrivs:", "1", "Seccomp:", "2", "0", "0", "1"];
    assert_eq!(words, confined, "{said}");
}

/// As `podman run --cgroupns=private` with a delegated cgroup: what is seen of the hierarchy is the container's own group.
#[test]
fn alone_in_a_container_with_a_group_of_its_own_limits_hold() {
    if lacks(&["userns", "crun", "tmpfs-xattrs", "cgroup", "without-systemd"]) {
        return;
    }
    let place = Place::new();
    let own = std::fs::read_to_string("/proc/self/cgroup").expect("our group");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup v2");
    let group = std::path::Path::new("/sys/fs/cgroup").join(own).with_file_name(format!("box-{}", std::process::id()));
    let cgroup = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["rw", "nosuid", "noexec", "nodev"] });
    let run = |command: &str| {
        std::fs::create_dir(&group).expect("a group");
        let args = ["/bin/sh", "-c", command];
        let config = config(&place, &profile(&PODMAN), false, &args, std::slice::from_ref(&cgroup));
        place.write("config.json", config.to_string());
        // Detached, so that crun stands not in the group while the container runs.
        let script = "echo $$ >\"$2/cgroup.procs\" && \
            exec unshare --map-root-user --mount crun --root \"$0\" --cgroup-manager=disabled run --detach \"$1\"";
        let (root, name) = (place.path("crun"), format!("sbx-{}-{}", std::process::id(), command.len()));
        let words = ["-c", script, root.to_str().expect("UTF-8"), &name, group.to_str().expect("UTF-8")];
        let done = place.run("sh", words).done();
        place.assert_no_processes();
        let control = std::fs::read_to_string(group.join("cgroup.subtree_control")).expect("a file of the group");
        assert_eq!(control, "", "{}", done.err);
        // With anything below it, it could not be removed.
        std::fs::remove_dir(&group).expect("an empty group");
        done
    };
    let sbx = "/mnt/sbx run --mem 64M --pids 20 /mnt/rootfs";
    let said = run(&format!("sleep 1; exec {sbx} cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max"));
    assert_eq!((said.text().trim(), said.err.as_str()), ("67108864\n21", ""));
    let hog = run(&format!("sleep 1; exec {sbx} sh -c 'x=x; while :; do x=$x$x; done'"));
    assert!(hog.err.contains("killed by the memory limit (64M)"), "{}", hog.err);
    let beside = run(&format!("sleep 1; {sbx} true; true"));
    assert!(beside.err.contains("limits by watch") && beside.err.contains("holds other processes"), "{}", beside.err);
}
