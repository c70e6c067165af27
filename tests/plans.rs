//! Golden plans: what is asked for, on a host that is written down here, against the plan as it is printed. No
//! privileges, no kernel: the whole of the planning in milliseconds. `SBX_BLESS=1` rewrites the files.

use sbx::host::cgroup::{Delegation, Direct, Layout};
use sbx::host::manager::Door;
use sbx::host::{Disk, Entry, EntryKind, Host, Power, RootFacts, Stdio};
use sbx::plan::{Plan, plan};
use sbx::spec::layer::{Count, Layer, Origin};
use sbx::spec::{Caller, Spec};
use std::path::Path;

fn caller() -> Caller {
    let env = [("TERM", "vt100"), ("LANG", "C.UTF-8"), ("PATH", "/bin"), ("SECRET", "s")];
    let env = env.map(|(name, value)| (name.into(), value.into())).to_vec();
    Caller { cwd: "/home/me/project".into(), home: "/home/me".into(), env }
}

/// An ordinary user of Linux 6.18 who lacks nothing.
fn host() -> Host {
    let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
    Host {
        kernel: (6, 18),
        uid: 1000,
        gid: 1000,
        user: "me".into(),
        groups: vec![1000, 27],
        power: Power::Ordinary,
        landlock: 7,
        subuids: vec![(100_000, 65_536)],
        subgids: vec![(100_000, 65_536)],
        newuidmap: Some("/usr/bin/newuidmap".into()),
        newgidmap: Some("/usr/bin/newgidmap".into()),
        core_piped: false,
        throttled_cpus: 0,
        stdio: [Stdio::Stream, Stdio::Stream, Stdio::Stream],
        root: RootFacts {
            passwd: passwd.into(),
            group: "root:x:0:\naudio:x:29:user\n".into(),
            etc: Some((0o755, 1000, 1000)),
            mode: 0o755,
            owner: 1000,
            entries: Vec::new(),
        },
        emptied: Vec::new(),
        hidden: Vec::new(),
        written: Vec::new(),
        repositories: Vec::new(),
        start_files: Vec::new(),
        hard_limits: Vec::new(),
        resolv_conf: "nameserver 192.0.2.1\n".into(),
        missing: Vec::new(),
        roots_own: Vec::new(),
        foreign_ranges: Vec::new(),
        fuse: None,
        passed: Vec::new(),
        delegation: Delegation { layout: Layout::Hybrid, ..Delegation::default() },
        disks: Vec::new(),
        has_swap: true,
        processors: vec![0, 1, 2, 3],
        token: 0x1234_abcd,
        layers: "/home/me/.local/share/sbx/upper".into(),
        caller: caller(),
    }
}

/// A root directory as Debian has it.
fn debian() -> Vec<Entry> {
    let link = |name: &str, to: &str| Entry { name: name.into(), kind: EntryKind::Link(to.into()) };
    let plain = |name: &str| Entry { name: name.into(), kind: EntryKind::Plain };
    let mounted = |name: &str| Entry { name: name.into(), kind: EntryKind::Mounted };
    vec![
        link("bin", "usr/bin"),
        mounted("boot"),
        mounted("dev"),
        plain("etc"),
        plain("home"),
        plain("usr"),
        plain("var"),
    ]
}

fn layer(edit: impl FnOnce(&mut Layer)) -> Layer {
    let mut layer = Layer { rootfs: Some("./rootfs".into()), command: vec!["true".into()], ..Layer::default() };
    edit(&mut layer);
    layer
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

fn planned(layer: Layer, host: &Host) -> sbx::error::Result<Plan> {
    let spec = Spec::resolve(&[layer], &caller())?;
    plan(&spec, host, "calm-otter-1234")
}

/// Compares a plan with its file, or writes the file.
fn golden(name: &str, layer: Layer, host: &Host) {
    let plan = planned(layer, host).unwrap_or_else(|error| panic!("{name}: {error}"));
    let notes: String = plan.notes().iter().map(|note| format!("note: {note}\n")).collect();
    let text = format!("{notes}{plan}");
    let path = Path::new("tests/golden/plans").join(format!("{name}.txt"));
    if std::env::var_os("SBX_BLESS").is_some() {
        std::fs::create_dir_all("tests/golden/plans").expect("the directory");
        std::fs::write(&path, &text).expect("the file");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name}: SBX_BLESS=1 cargo test --test plans rewrites {}", path.display());
}

fn refused(layer: Layer, host: &Host, words: &[&str]) {
    let error = planned(layer, host).expect_err("a refusal");
    let text = format!("{error}; {}", error.hint().unwrap_or(""));
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

/// A host on which the caller may divide a group that has these controllers.
fn delegated(controllers: &[&str]) -> Host {
    let at = "/sys/fs/cgroup/user.slice/app.slice".into();
    let direct = Direct { at, own: false, controllers: strings(controllers) };
    let delegation =
        Delegation { layout: Layout::Unified, direct: Some(direct), nsdelegate: true, ..Delegation::default() };
    Host { delegation, ..host() }
}

/// One with a systemd of the caller's own.
fn managed(controllers: &[&str]) -> Host {
    let mut host = delegated(controllers);
    host.delegation.door = Some(Door::Bus("/run/user/1000/bus".into()));
    host.delegation.managed = Some(strings(controllers));
    host
}

const ALL: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

fn limited(edit: impl FnOnce(&mut sbx::spec::layer::Limits)) -> Layer {
    layer(|l| edit(&mut l.limits))
}

fn text(text: &str) -> Option<Count> {
    Some(Count::Text(text.into()))
}

fn every_limit(limits: &mut sbx::spec::layer::Limits) {
    limits.mem = text("512M");
    limits.swap = text("64M");
    limits.cpus = text("1.5");
    limits.cpuset = text("0,2-3");
    limits.cpu_weight = text("50");
    limits.pids = text("64");
    limits.io_weight = text("200");
    limits.io = strings(&["/dev/vda:rbps=1M,wiops=100"]);
    limits.hugetlb = strings(&["2M=64M"]);
}

#[test]
fn limits() {
    let disks = |host: Host| {
        let disk = sbx::spec::HostPath::new("/dev/vda").expect("absolute");
        Host { disks: vec![Disk { path: disk, device: Ok((254, 0)) }], ..host }
    };
    golden("limits-direct", limited(every_limit), &disks(delegated(&ALL)));
    golden("limits-systemd", limited(every_limit), &disks(managed(&ALL)));
    let simple = |l: &mut sbx::spec::layer::Limits| {
        l.mem = text("64M");
        l.cpus = text("2");
        l.pids = text("64");
    };
    golden("limits-watch", limited(simple), &host());
    golden(
        "limits-shared",
        layer(|l| {
            simple(&mut l.limits);
            l.namespaces.share = strings(&["cgroup"]);
        }),
        &delegated(&ALL),
    );
    let cgroup = layer(|l| {
        l.mounts.mount = strings(&["type=cgroup"]);
        l.net.mode = Some("host".into());
    });
    golden("limits-mounted", cgroup, &delegated(&ALL));
}

#[test]
fn limits_that_nobody_can_enforce_are_refused() {
    let cpuset = |l: &mut sbx::spec::layer::Limits| l.cpuset = text("0");
    refused(limited(cpuset), &managed(&ALL[3..5]), &["--cpuset", "controller cpuset", "Delegate=cpu cpuset io memory"]);
    refused(limited(cpuset), &delegated(&ALL[3..5]), &["--cpuset", "no controller cpuset"]);
    refused(limited(|l| l.cpus = text("1.5")), &host(), &["--cpus", "whole processors", "--best-effort"]);
    let edits: [fn(&mut sbx::spec::layer::Limits); 4] = [
        |l| l.swap = text("1G"),
        |l| l.cpu_weight = text("1"),
        |l| l.io_weight = text("1"),
        |l| l.hugetlb = strings(&["2M=2M"]),
    ];
    for edit in edits {
        refused(limited(edit), &host(), &["without a cgroup", "hybrid", "--best-effort"]);
    }
    let off = |l: &mut sbx::spec::layer::Limits| {
        l.mem = text("1G");
        l.limits = Some("off".into());
    };
    refused(limited(off), &delegated(&ALL), &["--limits off and --mem"]);
    let only = |l: &mut sbx::spec::layer::Limits| l.limits = Some("cgroup".into());
    refused(limited(only), &host(), &["--limits cgroup", "hybrid", "--limits watch"]);
    let mut open = delegated(&ALL);
    open.delegation.nsdelegate = false;
    let nested = layer(|l| {
        l.hardening.nest = Some(true);
        l.limits.mem = text("1G");
    });
    refused(nested, &open, &["without nsdelegate", "lift its own limits"]);
}

#[test]
fn the_default() {
    golden("default", layer(|_| {}), &host());
}

#[test]
fn roots() {
    golden("rw", layer(|l| l.root.rw = Some(true)), &host());
    golden("read-only", layer(|l| l.root.read_only = Some(true)), &host());
    golden("kept-upper", layer(|l| l.root.upper = Some("./changes".into())), &host());
    let served = Host { fuse: Some(Ok("/usr/bin/fuse-overlayfs".into())), ..host() };
    golden("fuse", layer(|l| l.root.overlay = Some("fuse".into())), &served);
    golden("disk", layer(|l| l.root.upper = Some("disk".into())), &host());
    let old = Host { kernel: (6, 1), landlock: 2, ..host() };
    golden("old-kernel", layer(|l| l.root.upper = Some("tmpfs:64M".into())), &old);
    let linked = Host { root: RootFacts { etc: None, ..host().root }, ..host() };
    golden("etc-is-no-directory", layer(|_| {}), &linked);
}

#[test]
fn this_machines_own_root() {
    let emptied = [("/home", 0o755), ("/root", 0o700), ("/mnt", 0o755), ("/media", 0o755), ("/var/tmp", 0o1777)];
    let emptied = emptied.into_iter().chain([("/home/me", 0o700)]).map(|(path, mode)| (path.into(), mode)).collect();
    let here = Host { root: RootFacts { entries: debian(), etc: None, ..host().root }, emptied, ..host() };
    let at_host = |edit: fn(&mut Layer)| {
        layer(|l| {
            l.rootfs = Some("@host".into());
            edit(l);
        })
    };
    golden("host", at_host(|_| {}), &here);
    golden("host-project-writable", at_host(|l| l.mounts.volume = strings(&[".:/home/me/project"])), &here);
    golden("host-read-only", at_host(|l| l.root.read_only = Some(true)), &here);
}

#[test]
fn identities() {
    golden("map-full", layer(|l| l.identity.map = strings(&["full"])), &host());
    golden("map-keep", layer(|l| l.identity.map = strings(&["keep"])), &host());
    golden("user-by-name", layer(|l| l.identity.user = Some("user".into())), &host());
    let alone = Host { subuids: Vec::new(), subgids: Vec::new(), ..host() };
    golden("user-without-ranges", layer(|l| l.identity.user = Some("1000".into())), &alone);
    let root = Host { uid: 0, gid: 0, user: "root".into(), power: Power::Root, ..host() };
    golden("root", layer(|_| {}), &root);
}

#[test]
fn mounts_and_namespaces() {
    let many = layer(|l| {
        l.mounts.volume = strings(&["/src:/src:ro", "/cache:/cache:overlay,noexec", "/out:/out"]);
        l.mounts.tmpfs = strings(&["/scratch:size=1M", "/src/target"]);
        l.mounts.device = strings(&["/dev/fuse"]);
        l.mounts.mask = strings(&["/etc/secret"]);
        l.mounts.unmask = strings(&["/proc/kcore", "/proc/sys"]);
    });
    golden("mounts", many, &host());
    golden("net-host", layer(|l| l.net.mode = Some("host".into())), &host());
    golden("share", layer(|l| l.namespaces.share = strings(&["ipc,uts,time,cgroup"])), &host());
    golden("nest", layer(|l| l.hardening.nest = Some(true)), &host());
    let tuned = layer(|l| {
        l.namespaces.time_offset = Some("monotonic=+60,boottime=-60".into());
        l.namespaces.sysctl = [("net.ipv4.ip_forward".to_string(), "1".to_string())].into();
        l.limits.pids = Some(Count::Number(7));
        l.limits.rlimit = strings(&["nofile=64:128"]);
        l.limits.nice = Some(5);
        l.limits.oom_score_adj = Some(100);
    });
    golden("tuned", tuned, &host());
}

#[test]
fn hardening() {
    golden("seccomp-off", layer(|l| l.seccomp.filter = Some("off".into())), &host());
    golden("no-landlock", layer(|_| {}), &Host { landlock: 0, core_piped: true, throttled_cpus: 2, ..host() });
    golden("best-effort", layer(|l| l.hardening.best_effort = Some(true)), &host());
    golden("no-init", layer(|l| l.program.no_init = Some(true)), &host());
    golden("caps", layer(|l| l.caps.add = strings(&["SYS_PTRACE"])), &host());
    let terminal = Host { stdio: [Stdio::Terminal, Stdio::Terminal, Stdio::Stream], ..host() };
    golden("terminal", layer(|_| {}), &terminal);
}

#[test]
fn what_cannot_work_here_is_refused_before_anything_starts() {
    let refuse = |edit: fn(&mut Layer), host: Host, words: &[&str]| refused(layer(edit), &host, words);
    refuse(|l| l.identity.map = strings(&["full"]), Host { subuids: Vec::new(), ..host() }, &["/etc/subuid", "me:"]);
    refuse(|l| l.identity.map = strings(&["full"]), Host { newgidmap: None, ..host() }, &["newgidmap", "uidmap"]);
    refuse(|l| l.identity.map = strings(&["0:5:1"]), host(), &["0:5:1", "/etc/subuid"]);
    refuse(|l| l.identity.user = Some("nobody".into()), host(), &["nobody", "passwd"]);
    refuse(|l| l.identity.drop_groups = Some(true), Host { subuids: Vec::new(), ..host() }, &["/etc/subuid"]);
    refuse(|l| l.landlock.mode = Some("require".into()), Host { landlock: 0, ..host() }, &["Landlock", "auto"]);
    refuse(|l| l.seccomp.deny = strings(&["execve"]), host(), &["execve"]);
    refuse(|l| l.seccomp.deny = strings(&["opne"]), host(), &["opne", "open"]);
    refuse(
        |l| (l.net.mode, l.mounts.mask) = (Some("host".into()), strings(&["/sys/x"])),
        host(),
        &["--mask", "/sys is empty"],
    );
    let limited = |name: &str, hard| Host { hard_limits: vec![(name.into(), hard)], ..host() };
    refuse(|l| l.limits.pids = Some(Count::Number(100)), limited("nproc", 100), &["hard limit of 100", "--pids 99"]);
    refuse(|l| l.limits.rlimit = strings(&["nofile=9"]), limited("nofile", 8), &["limit of 8", "nofile=8:8"]);
    refuse(|_| {}, Host { core_piped: true, ..limited("core", 0) }, &["core_pattern", "ulimit -Hc"]);
    refuse(|l| l.mounts.unmask = strings(&["/etc"]), host(), &["--unmask", "/etc"]);
    refuse(|_| {}, Host { stdio: [Stdio::Place, Stdio::Stream, Stdio::Stream], ..host() }, &["directory"]);
    let absent = sbx::error::Error::Unsupported { feature: "f".into(), why: "not there".into(), hint: None };
    let without = Host { fuse: Some(Err(absent)), ..host() };
    refuse(|l| l.root.overlay = Some("fuse".into()), without, &["not there"]);
    let root = Host { uid: 0, gid: 0, power: Power::Root, root: RootFacts { owner: 0, ..host().root }, ..host() };
    refuse(|l| l.root.rw = Some(true), root, &["--rw", "root"]);
}

#[test]
fn defaults_give_way_to_the_callers_hard_limits() {
    let limited = |hard| Host { core_piped: true, hard_limits: hard, ..host() };
    let text = |layer, host: &Host| planned(layer, host).expect("a plan").to_string();
    let few = limited(vec![("nproc".into(), 100), ("core".into(), 1)]);
    assert!(text(layer(|_| {}), &few).contains("limit the processes to 100\n"));
    assert!(text(layer(|l| l.limits.pids = Some(Count::Number(99))), &few).contains("limit the processes to 100\n"));
    let full = text(layer(|l| l.identity.map = strings(&["full"])), &few);
    assert!(full.contains("at most 100 processes over all of them"), "{full}");
    let closed = limited(vec![("core".into(), 0)]);
    let text = text(layer(|l| l.hardening.best_effort = Some(true)), &closed);
    assert!(text.contains("limit core to 1:1 (if it can be had)"), "{text}");
}

#[test]
fn a_plan_is_data_too() {
    let plan = planned(layer(|_| {}), &host()).expect("a plan");
    let json = plan.to_json();
    assert_eq!(json["steps"].as_array().map(Vec::len), Some(plan.steps().len()));
    assert_eq!(json["steps"][0]["number"], 1);
    assert_eq!(json["name"], "calm-otter-1234");
    assert_eq!(json["limits"], serde_json::json!([]));
    let limited =
        planned(layer(|l| l.limits.mem = Some(Count::Text("64M".into()))), &host()).expect("a plan").to_json();
    assert_eq!(limited["limits"][0], serde_json::json!({ "option": "mem", "value": "67108864", "by": "watch" }));
}

#[test]
fn only_a_policys_own_layer_is_weaker_than_argv() {
    let policy = Layer { origin: Origin::Policy("p".into()), ..layer(|l| l.limits.pids = Some(Count::Number(3))) };
    let spec = Spec::resolve(&[policy, layer(|l| l.limits.pids = Some(Count::Number(9)))], &caller()).expect("a spec");
    let plan = plan(&spec, &host(), "n").expect("a plan");
    assert!(plan.to_string().contains("limit the processes to 10"), "{plan}");
}
