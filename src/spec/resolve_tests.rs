//! Tests of precedence: what a layer may change of an earlier one.

use super::*;
use crate::spec::layer::{Count, MountTable};

fn caller() -> Caller {
    let env = [("SECRET", "s"), ("CARGO_HOME", "/c"), ("MY_TOKEN", "t")];
    let env = env.map(|(k, v)| (k.into(), v.into())).to_vec();
    Caller { cwd: "/work".into(), home: "/home/me".into(), env }
}

fn argv() -> Layer {
    Layer { rootfs: Some("./rootfs".into()), ..Layer::default() }
}

fn policy(edit: impl FnOnce(&mut Layer)) -> Layer {
    let mut layer = Layer { origin: Origin::Policy("p".into()), ..Layer::default() };
    edit(&mut layer);
    layer
}

fn resolved(layers: &[Layer]) -> Spec {
    Spec::resolve(layers, &caller()).expect("resolves")
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|t| t.to_string()).collect()
}

#[test]
fn defaults() {
    let spec = resolved(&[argv()]);
    assert_eq!(spec.limits.pids, None);
    assert_eq!(spec.program.umask, 0o022);
    assert_eq!(spec.root.writes, Writes::Upper(Upper::Tmpfs(None)));
    assert_eq!(spec.capabilities, Capabilities::default_set());
    assert!(spec.notes.is_empty());
}

#[test]
fn later_scalars_replace_and_lists_append() {
    let low = policy(|l| {
        l.limits.pids = Some(Count::Number(5));
        l.limits.rlimit = strings(&["nofile=5", "cpu=1"]);
        l.mounts.volume = strings(&["/a:/a"]);
    });
    let mut high = argv();
    high.limits.pids = Some(Count::Text("7".into()));
    high.limits.rlimit = strings(&["nofile=7"]);
    high.mounts.volume = strings(&["/b:/b/c", "/c:/c"]);
    let spec = resolved(&[low, high]);
    assert_eq!(spec.limits.pids, Some(7));
    let limits: Vec<_> = spec.limits.rlimits.iter().map(|limit| (limit.name.as_str(), limit.hard)).collect();
    assert_eq!(limits, [("cpu", 1), ("nofile", 7)]);
    let order: Vec<String> = spec.mounts.iter().map(|m| m.dst.to_string()).collect();
    assert_eq!(order, ["/a", "/c", "/b/c"]);
}

#[test]
fn a_named_drop_wins_over_adds_of_its_layer() {
    let mut layer = argv();
    layer.caps.add = strings(&["NET_RAW", "SYS_PTRACE"]);
    layer.caps.drop = strings(&["all", "NET_RAW"]);
    assert_eq!(resolved(&[layer]).capabilities.to_string(), "SYS_PTRACE");
}

#[test]
fn drop_all_empties_the_list_at_its_layer_only() {
    let low = policy(|l| l.caps.drop = strings(&["all"]));
    let mut high = argv();
    high.caps.add = strings(&["chown"]);
    assert_eq!(resolved(&[low, high]).capabilities.to_string(), "CHOWN");
}

#[test]
fn only_argv_lifts_a_denial_and_says_so() {
    let deny = policy(|l| l.caps.drop = strings(&["CHOWN"]));
    let add = policy(|l| l.caps.add = strings(&["CHOWN"]));
    assert!(!resolved(&[deny.clone(), add, argv()]).capabilities.names().any(|n| n == "CHOWN"));
    let mut lift = argv();
    lift.caps.add = strings(&["CHOWN"]);
    let spec = resolved(&[deny, lift]);
    assert!(spec.capabilities.names().any(|n| n == "CHOWN"));
    assert_eq!(spec.notes.len(), 1);
}

#[test]
fn seccomp_denials_follow_the_same_rule() {
    let deny = policy(|l| l.seccomp.deny = strings(&["ptrace"]));
    let allow = policy(|l| l.seccomp.allow = strings(&["ptrace"]));
    assert_eq!(resolved(&[deny.clone(), allow, argv()]).seccomp.deny, ["ptrace"]);
    let mut lift = argv();
    lift.seccomp.allow = strings(&["ptrace"]);
    assert!(resolved(&[deny, lift]).seccomp.deny.is_empty());
}

#[test]
fn no_policy_turns_off_what_another_denies() {
    let deny = policy(|l| l.seccomp.deny = strings(&["mkdir"]));
    let off = policy(|l| l.seccomp.filter = Some("off".into()));
    assert!(Spec::resolve(&[deny.clone(), off.clone(), argv()], &caller()).is_err());
    assert!(Spec::resolve(&[off, argv()], &caller()).is_ok());
    let mut lift = argv();
    lift.seccomp.filter = Some("off".into());
    assert_eq!(resolved(&[deny, lift]).notes.len(), 1);
}

#[test]
fn nothing_of_the_callers_environment_comes_in_unasked() {
    assert!(resolved(&[argv()]).env.set.is_empty());
    let pass = policy(|l| {
        l.env.pass = strings(&["CARGO_*", "*TOKEN*"]);
        l.env.deny = strings(&["*TOKEN*"]);
    });
    let names = |spec: Spec| spec.env.set.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(resolved(&[pass.clone(), argv()])), ["CARGO_HOME"]);
    let mut lift = argv();
    lift.env.pass = strings(&["MY_TOKEN"]);
    assert_eq!(names(resolved(&[pass, lift])), ["CARGO_HOME", "MY_TOKEN"]);
}

#[test]
fn a_pattern_of_stars_matches_what_it_should() {
    for (pattern, text, expected) in
        [("*", "", true), ("A*", "AB", true), ("*TOKEN*", "MY_TOKEN", true), ("A*C", "ABD", false), ("A", "AB", false)]
    {
        assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
    }
    assert!(matches("*a*b", "xxaxab") && !matches("*a*b", "xxaxabc") && matches(".env*", b".env\xff"));
    // No pattern takes longer than its length times that of the text.
    assert!(!matches("*a".repeat(40) + "*b", "a".repeat(4000)));
}

#[test]
fn contradictions_are_refused() {
    let bad = |edit: fn(&mut Layer)| {
        let mut layer = argv();
        edit(&mut layer);
        assert!(Spec::resolve(&[layer], &caller()).is_err());
    };
    bad(|l| (l.root.rw, l.root.read_only) = (Some(true), Some(true)));
    bad(|l| (l.root.rw, l.rootfs) = (Some(true), Some("@host".into())));
    bad(|l| l.mounts.volume = strings(&["/a:/x", "/b:/x"]));
    bad(|l| l.rootfs = None);
    bad(|l| (l.program.no_init, l.seccomp.filter) = (Some(true), Some("off".into())));
    bad(|l| l.command = vec!["".into()]);
    bad(|l| l.limits.pids = Some(Count::Number(0)));
    bad(|l| l.limits.pids = Some(Count::Number(-1)));
    bad(|l| l.limits.nice = Some(20));
    bad(|l| l.limits.rlimit = strings(&["nofile=2:1"]));
    bad(|l| l.limits.rlimit = strings(&["nofiles=1"]));
    bad(|l| l.program.pass_fd = vec![1]);
    bad(|l| l.program.umask = Some("1777".into()));
    bad(|l| l.namespaces.share = strings(&["net"]));
    bad(|l| l.namespaces.time_offset = Some("monotonic=1.5".into()));
    bad(|l| l.namespaces.sysctl = [("kernel.hostname".to_string(), "x".to_string())].into());
    bad(|l| (l.namespaces.share, l.identity.hostname) = (strings(&["uts"]), Some("h".into())));
    bad(|l| l.root.upper = Some("tmpfs:0".into()));
    bad(|l| l.root.upper = Some("name".into()));
    bad(|l| l.net.add_host = strings(&["a:b"]));
    bad(|l| l.net.dns = strings(&["1.2.3"]));
    bad(|l| l.env.set = [("A=B".to_string(), String::new())].into());
}

#[test]
fn a_mount_table_follows_the_callers_directory() {
    let layer = policy(|l| {
        l.mount = vec![MountTable {
            src: Some(".".into()),
            dst: Some(".".into()),
            access: Some("rw".into()),
            ..MountTable::default()
        }];
    });
    assert_eq!(resolved(&[layer, argv()]).mounts[0].to_string(), "bind /work on /work, writable");
}
