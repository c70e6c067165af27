//! The compiled filters, run by an interpreter: what they answer is compared with a checked-in table,
//! with Moby's profile, and with a plain reading of the rules they were compiled from.

use proptest::prelude::*;
use sbx::plan::asking::{Asking, asking, between};
use sbx::plan::bpf::{self, Action, Condition, Insn, Rules, Test, Verdict, Width};
use sbx::plan::rules::CallRule;
use sbx::plan::seccomp::{self, Affinity, Init, Nesting, Policy, SetId, Unmapped};
use sbx::plan::setid;
use sbx::plan::syscalls::Arch;
use sbx::spec::access::Capabilities;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const AUDIT_I386: u32 = 0x4000_0003;
const AUDIT_ARM: u32 = 0x4000_0028;
const LAST: u32 = 469;
const EPERM: u32 = Action::Errno(1).value();
const ENOSYS: u32 = Action::Errno(38).value();
const ALLOW: u32 = Action::Allow.value();
const KILL: u32 = Action::KillProcess.value();

type Args = [u64; 6];

/// Runs a program on a call, as the kernel would.
fn run(program: &[Insn], audit: u32, number: u32, args: Args) -> u32 {
    trace(program, audit, number, args).0
}

/// The result of a run and the instructions it took; panics on what the kernel would not load.
fn trace(program: &[Insn], audit: u32, number: u32, args: Args) -> (u32, usize) {
    assert!(program.len() <= 4096);
    let (mut accumulator, mut at, mut steps) = (0, 0, 0);
    loop {
        let Insn { code, jt, jf, k } = program[at];
        (at, steps) = (at + 1, steps + 1);
        let holds = match code {
            0x20 => {
                accumulator = word(audit, number, args, k);
                continue;
            }
            0x54 => {
                accumulator &= k;
                continue;
            }
            0x05 => {
                at += k as usize;
                continue;
            }
            0x06 => return (k, steps),
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            0x45 => accumulator & k != 0,
            _ => panic!("the kernel does not know instruction {code:#x}"),
        };
        at += usize::from(if holds { jt } else { jf });
    }
}

/// A word of `struct seccomp_data`: number, architecture, instruction pointer, arguments.
fn word(audit: u32, number: u32, args: Args, at: u32) -> u32 {
    assert!(at < 64 && at.is_multiple_of(4));
    match at {
        0 => number,
        4 => audit,
        8 | 12 => 0x1234_5678,
        _ if at.is_multiple_of(8) => args[at as usize / 8 - 2] as u32,
        _ => (args[at as usize / 8 - 2] >> 32) as u32,
    }
}

/// What the rules say, read as plainly as can be.
fn expected(rules: &Rules, audit: u32, number: u32, args: Args) -> u32 {
    if audit != rules.arch.audit() {
        return KILL;
    }
    if rules.arch == Arch::X86_64 && (0x4000_0000..u32::MAX).contains(&number) {
        return KILL;
    }
    if rules.arch == Arch::X86_64 && number == u32::MAX {
        return rules.unlisted.value();
    }
    rules.calls.get(&number).map_or(rules.unlisted, |verdict| decided(verdict, args)).value()
}

fn decided(verdict: &Verdict, args: Args) -> Action {
    let holds = |all: &Vec<Condition>| all.iter().all(|one| matches(one, args));
    match verdict {
        Verdict::Always(action) => *action,
        Verdict::ByArgument { any, then, otherwise } => {
            if any.iter().any(holds) {
                *then
            } else {
                *otherwise
            }
        }
        Verdict::Ordered { first, then } => {
            let found = first.iter().find(|(all, _)| holds(all));
            found.map_or_else(|| decided(then, args), |(_, action)| *action)
        }
    }
}

fn matches(condition: &Condition, args: Args) -> bool {
    let argument = args[usize::from(condition.arg)];
    let argument = match condition.width {
        Width::Low32 => argument & 0xFFFF_FFFF,
        Width::Full64 => argument,
    };
    match &condition.test {
        Test::In(values) => values.contains(&(argument & condition.mask)),
        Test::NotIn(values) => !values.contains(&(argument & condition.mask)),
        Test::AtLeast(least) => argument & condition.mask >= *least,
        Test::Below(least) => argument & condition.mask < *least,
    }
}

/// All that a verdict looks at.
fn conditions(verdict: &Verdict) -> Vec<&Condition> {
    match verdict {
        Verdict::Always(_) => Vec::new(),
        Verdict::ByArgument { any, .. } => any.iter().flatten().collect(),
        Verdict::Ordered { first, then } => first.iter().flat_map(|(all, _)| all).chain(conditions(then)).collect(),
    }
}

/// Arguments at and around every value the verdict looks at, each pair of them in each place.
fn edges(verdict: Option<&Verdict>) -> Vec<Args> {
    let mut edges = BTreeSet::from([0, 1, 37, 38, 39, 40, 41, u64::MAX, 1 << 32, 1 << 63]);
    if let Some(verdict) = verdict {
        for Condition { mask, test, .. } in conditions(verdict) {
            let values = match test {
                Test::In(values) | Test::NotIn(values) => values.to_vec(),
                Test::AtLeast(value) | Test::Below(value) => vec![*value],
            };
            for value in values.iter().chain([mask]) {
                edges.extend([*value, value ^ 1, value.wrapping_add(1), value.wrapping_sub(1)]);
                edges.extend([value | !mask, value | 1 << 32, value & 0xFFFF_FFFF]);
            }
            edges.extend((0..64).map(|bit| mask & (1 << bit)));
        }
    }
    let pairs = edges.iter().flat_map(|a| edges.iter().map(move |b| (*a, *b)));
    pairs.flat_map(|(a, b)| [[a, b, b, a, b, a], [b, a, b, b, a, a]]).collect()
}

fn assert_runs_as_read(rules: &Rules, program: &[Insn], number: u32) {
    let audit = rules.arch.audit();
    for args in edges(rules.calls.get(&number)) {
        let wanted = expected(rules, audit, number, args);
        assert_eq!(run(program, audit, number, args), wanted, "{number} {args:x?}");
    }
}

fn rules(policy: &Policy, arch: Arch) -> Rules {
    seccomp::rules(policy, arch).unwrap()
}

fn describe(verdict: &Verdict) -> String {
    let word = |action: &Action| match action {
        Action::Allow => "allow".to_owned(),
        Action::Log => "log".to_owned(),
        Action::Errno(1) => "errno EPERM".to_owned(),
        Action::Errno(38) => "errno ENOSYS".to_owned(),
        Action::Errno(other) => format!("errno {other}"),
        Action::Trap => "trap".to_owned(),
        Action::KillThread => "kill thread".to_owned(),
        Action::Notify => "ask".to_owned(),
        Action::KillProcess => "kill".to_owned(),
    };
    let condition = |Condition { arg, width, mask, test }: &Condition| {
        let (is, values) = match test {
            Test::In(values) => ("in", values),
            Test::NotIn(values) => ("not in", values),
            Test::AtLeast(_) | Test::Below(_) => panic!("no ready policy has one"),
        };
        let values: Vec<_> = values.iter().map(|value| format!("{value:#x}")).collect();
        let mask = if *mask == u64::MAX { String::new() } else { format!(" & {mask:#x}") };
        let bits = if *width == Width::Low32 { 32 } else { 64 };
        format!("arg{arg}:{bits}{mask} {is} {{{}}}", values.join(", "))
    };
    match verdict {
        Verdict::Always(action) => word(action),
        Verdict::ByArgument { any, then, otherwise } => {
            let any = any.iter().map(|all| all.iter().map(condition).collect::<Vec<_>>());
            let any: Vec<_> = any.map(|all| all.join(" and ")).collect();
            format!("by argument: {} if {}; else {}", word(then), any.join(" or "), word(otherwise))
        }
        Verdict::Ordered { .. } => panic!("no ready policy has one"),
    }
}

/// The table of one architecture; each line is checked against the compiled program first.
fn table(policy: &Policy, arch: Arch) -> String {
    let rules = rules(policy, arch);
    let program = bpf::compile(&rules).unwrap();
    let mut out = String::new();
    for number in 0..=LAST + 1 {
        assert_runs_as_read(&rules, &program, number);
        let unlisted = Verdict::Always(rules.unlisted);
        let name = arch.name(number).unwrap_or("-");
        let outcome = describe(rules.calls.get(&number).unwrap_or(&unlisted));
        writeln!(out, "{number} {name} {outcome}").unwrap();
    }
    let mut row = |what: &str, audit: u32, number: u32| {
        let answer = match run(&program, audit, number, [0; 6]) {
            KILL => "kill",
            ENOSYS => "errno ENOSYS",
            other => panic!("{what}: {other:#x}"),
        };
        writeln!(out, "{number:#x} {what} {answer}").unwrap();
    };
    match arch {
        Arch::X86_64 => {
            row("i386:exit", AUDIT_I386, 1);
            row("i386:socketcall", AUDIT_I386, 102);
            row("x32:read", arch.audit(), 0x4000_0000);
            row("x32:ioctl", arch.audit(), 0x4000_0000 + 514);
            row("x32:last", arch.audit(), 0xFFFF_FFFE);
            row("skipped-by-tracer", arch.audit(), u32::MAX);
        }
        Arch::X86 => {}
        Arch::Aarch64 => {
            row("arm:exit", AUDIT_ARM, 1);
            row("skipped-by-tracer", arch.audit(), u32::MAX);
        }
    }
    out
}

fn compare_with_golden(policy: &Policy, arch: Arch, name: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let table = table(policy, arch);
    if std::env::var_os("SBX_BLESS").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    let (mut old, mut new) = (golden.lines(), table.lines());
    loop {
        match (old.next(), new.next()) {
            (None, None) => return,
            (old, new) => assert_eq!(old, new, "{name} differs; SBX_BLESS=1 rewrites it"),
        }
    }
}

#[test]
fn default_answers_as_the_golden_table_x86_64() {
    compare_with_golden(&Policy::default(), Arch::X86_64, "seccomp-default.x86_64.txt");
}

#[test]
fn default_answers_as_the_golden_table_aarch64() {
    compare_with_golden(&Policy::default(), Arch::Aarch64, "seccomp-default.aarch64.txt");
}

/// What the ready policy `strict` denies beyond the default.
fn strict() -> Policy {
    let layers = sbx::front::policy::load("strict", &sbx::spec::Caller::default()).unwrap();
    let deny = layers.iter().flat_map(|layer| layer.seccomp.deny.clone()).collect();
    assert!(layers.iter().all(|layer| layer.seccomp.allow.is_empty() && layer.seccomp.rule.is_empty()));
    Policy { deny, ..Policy::default() }
}

#[test]
fn strict_answers_as_the_golden_table_and_is_nowhere_wider_than_default() {
    compare_with_golden(&strict(), Arch::X86_64, "seccomp-strict.x86_64.txt");
    compare_with_golden(&strict(), Arch::Aarch64, "seccomp-strict.aarch64.txt");
    for arch in Arch::ALL {
        let (strict, default) = (rules(&strict(), arch), rules(&Policy::default(), arch));
        for (number, verdict) in &strict.calls {
            let denied = matches!(verdict, Verdict::Always(Action::Errno(_)));
            assert!(denied || *verdict == default.calls[number], "{number}");
        }
    }
}

#[test]
fn the_program_made_at_build_time_is_the_default() {
    for set_id in [SetId::Allow, SetId::Deny] {
        for unmapped in [Unmapped::Allow, Unmapped::DenyFiles, Unmapped::Deny] {
            let policy = Policy { set_id, unmapped, ..Policy::default() };
            let compiled = bpf::compile(&rules(&policy, seccomp::NATIVE)).unwrap();
            assert_eq!(seccomp::program(&policy).unwrap(), compiled);
        }
    }
    assert_eq!(seccomp::program(&Policy::default()).unwrap(), seccomp::default_program());
}

#[test]
fn default_is_small() {
    for arch in Arch::ALL {
        let program = bpf::compile(&rules(&Policy::default(), arch)).unwrap();
        assert!(program.len() <= 160, "{arch:?}: {} instructions", program.len());
        // A line of comparisons would be as long as the program; a tree is not.
        let steps = |number| trace(&program, arch.audit(), number, [0; 6]).1;
        let longest = (0..=LAST).map(steps).max().unwrap();
        assert!(longest <= 24, "{arch:?}: {longest} steps");
    }
}

#[test]
fn tables_have_the_numbers_of_libc() {
    for (name, number) in [
        ("execve", libc::SYS_execve),
        ("ptrace", libc::SYS_ptrace),
        ("openat2", libc::SYS_openat2),
        ("landlock_add_rule", libc::SYS_landlock_add_rule),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("set_mempolicy_home_node", libc::SYS_set_mempolicy_home_node),
    ] {
        assert_eq!(seccomp::NATIVE.number(name).map(i64::from), Some(number), "{name}");
    }
}

/// The capabilities sbx gives by default.
const CAPS: [&str; 11] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// The entries of Moby's profile that hold on `arch` with `caps`, by name of the call.
fn moby(arch: Arch, caps: &[&str]) -> BTreeMap<String, Vec<Value>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/moby-seccomp-default.json");
    let profile: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let arch = match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
        Arch::X86 => "386",
    };
    // `minKernel` is left out: 4.8 is the only one, and sbx asks for more.
    let names = |set: &Value, key: &str| -> Option<Vec<String>> {
        let list = set.get(key)?.as_array()?.iter();
        Some(list.map(|name| name.as_str().unwrap().replace("CAP_", "")).collect())
    };
    let held = |wanted: Vec<String>| wanted.iter().all(|cap| caps.contains(&cap.as_str()));
    let here = |wanted: Vec<String>| wanted.iter().any(|name| name == arch);
    let mut calls: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for entry in profile["syscalls"].as_array().unwrap() {
        let (includes, excludes) = (&entry["includes"], &entry["excludes"]);
        let included = names(includes, "caps").is_none_or(held) && names(includes, "arches").is_none_or(here);
        let excluded = names(excludes, "caps").is_some_and(held) || names(excludes, "arches").is_some_and(here);
        if included && !excluded && entry["action"] == "SCMP_ACT_ALLOW" {
            for name in entry["names"].as_array().unwrap() {
                calls.entry(name.as_str().unwrap().into()).or_default().push(entry.clone());
            }
        }
    }
    calls
}

fn moby_allows(entries: &[Value], args: Args) -> bool {
    entries.iter().any(|entry| {
        let empty = Vec::new();
        let comparisons = entry["args"].as_array().unwrap_or(&empty);
        comparisons.iter().all(|comparison| {
            let number = |key: &str| comparison[key].as_u64().unwrap_or(0);
            let (arg, value) = (args[number("index") as usize], number("value"));
            match comparison["op"].as_str().unwrap() {
                "SCMP_CMP_EQ" => arg == value,
                "SCMP_CMP_LT" => arg < value,
                "SCMP_CMP_GT" => arg > value,
                "SCMP_CMP_MASKED_EQ" => arg & value == number("valueTwo"),
                other => panic!("unknown comparison {other}"),
            }
        })
    })
}

/// Panics if the policy lets a call by that Moby's profile with the same capabilities stops.
fn assert_not_wider(policy: &Policy, caps: &[&str]) {
    for arch in Arch::ALL {
        let rules = rules(policy, arch);
        let program = bpf::compile(&rules).unwrap();
        let moby = moby(arch, caps);
        for (name, number) in arch.table() {
            let entries = moby.get(*name).map_or(&[][..], Vec::as_slice);
            for args in edges(rules.calls.get(number)) {
                let open = run(&program, arch.audit(), *number, args) == ALLOW;
                let wider = open && !moby_allows(entries, args);
                assert!(!wider, "{arch:?} {name} {args:x?} with {caps:?}");
            }
        }
    }
}

#[test]
fn default_is_never_wider_than_moby() {
    assert_not_wider(&Policy::default(), &CAPS);
}

#[test]
fn a_capability_never_opens_more_than_in_moby() {
    let base = rules(&Policy::default(), Arch::X86_64);
    for cap in [
        "BPF",
        "DAC_READ_SEARCH",
        "NET_ADMIN",
        "PERFMON",
        "SYSLOG",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_MODULE",
        "SYS_NICE",
        "SYS_PACCT",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
    ] {
        let policy = Policy { cap_add: vec![format!("CAP_{cap}")], ..Policy::default() };
        assert_not_wider(&policy, &[&CAPS[..], &[cap]].concat());
        let opens = rules(&policy, Arch::X86_64) != base;
        assert_eq!(opens, cap != "NET_ADMIN", "{cap}");
    }
}

#[test]
fn no_capability_opens_user_namespaces() {
    const NEWUSER: u64 = 0x1000_0000;
    const NEWNET: u64 = 0x4000_0000;
    let policy = Policy { cap_add: vec!["SYS_ADMIN".into()], ..Policy::default() };
    for arch in Arch::ALL {
        let program = bpf::compile(&rules(&policy, arch)).unwrap();
        let call = |name: &str, flags: u64| {
            let args = if name == "setns" { [3, flags, 0, 0, 0, 0] } else { [flags, 0, 0, 0, 0, 0] };
            run(&program, arch.audit(), arch.number(name).unwrap(), args)
        };
        for name in ["clone", "unshare", "setns"] {
            assert_eq!(call(name, NEWUSER), EPERM, "{name}");
            assert_eq!(call(name, NEWUSER | NEWNET), EPERM, "{name}");
            assert_eq!(call(name, NEWNET), ALLOW, "{name}");
        }
        assert_eq!(call("clone3", 0), ENOSYS);
    }
}

#[test]
fn terminal_input_is_refused_whatever_the_upper_half_says() {
    for arch in Arch::ALL {
        let program = bpf::compile(&rules(&Policy::default(), arch)).unwrap();
        let ioctl = |request: u64| {
            let number = arch.number("ioctl").unwrap();
            run(&program, arch.audit(), number, [0, request, 0, 0, 0, 0])
        };
        for request in [0x5412, 0x541C] {
            assert_eq!(ioctl(request), EPERM);
            assert!((32..64).all(|bit| ioctl(request | 1 << bit) == EPERM));
            assert_eq!(ioctl(request | 0xFFFF_FFFF_0000_0000), EPERM);
        }
        assert_eq!(ioctl(0x5413), ALLOW);
    }
}

#[test]
fn socket_families_are_a_list() {
    for arch in Arch::ALL {
        let program = bpf::compile(&rules(&Policy::default(), arch)).unwrap();
        let number = arch.number("socket").unwrap();
        for (family, protocol) in (0..64).flat_map(|f| (0..32).map(move |p| (f, p))) {
            let open = matches!(family, 1 | 2 | 10) || family == 16 && protocol == 0;
            let wanted = if open { ALLOW } else { EPERM };
            for high in [0, 1 << 32, 0xFFFF_FFFF_0000_0000] {
                let args = [family | high, 3, protocol | high, 0, 0, 0];
                assert_eq!(run(&program, arch.audit(), number, args), wanted, "{args:x?}");
            }
        }
    }
}

#[test]
fn set_id_bits_are_refused_wherever_a_mode_can_be_set() {
    const CREAT: u64 = 0o100;
    const TMPFILE: u64 = 0o20_200_000;
    // Alone, in sbx's own policy, and in one that a user has had a say in.
    let within = |allow: &[&str]| Policy { allow: names(allow), set_id: SetId::Deny, ..Policy::default() };
    let own = |policy: Policy, arch| bpf::compile(&rules(&policy, arch)).unwrap();
    let programs =
        |arch| [setid::program(arch), own(within(&[]), arch), own(within(&["chmod", "openat", "keyctl"]), arch)];
    for (arch, program) in Arch::ALL.into_iter().flat_map(|arch| programs(arch).map(|program| (arch, program))) {
        let answer = |name: &str, args: &[u64]| {
            let mut all = [0; 6];
            all[..args.len()].copy_from_slice(args);
            Some(run(&program, arch.audit(), arch.number(name)?, all))
        };
        for mode in 0..0o10_000 {
            let wanted = if mode & 0o6000 == 0 { ALLOW } else { EPERM };
            for high in [0, 1 << 32] {
                let mode = mode | high;
                for name in ["chmod", "fchmod", "creat", "mknod"] {
                    assert!(answer(name, &[0, mode]).is_none_or(|got| got == wanted), "{name}");
                }
                for name in ["fchmodat", "fchmodat2", "mknodat"] {
                    assert_eq!(answer(name, &[0, 0, mode | 0o100_000]), Some(wanted), "{name}");
                }
                for flags in [CREAT, TMPFILE, CREAT | TMPFILE | high] {
                    assert_eq!(answer("openat", &[0, 0, flags, mode]), Some(wanted));
                    assert!(answer("open", &[0, flags, mode]).is_none_or(|got| got == wanted));
                }
                assert_eq!(answer("openat", &[0, 0, 0o200_000, mode]), Some(ALLOW));
            }
        }
        assert_eq!(answer("mkdirat", &[0, 0, 0o6777]), Some(ALLOW));
        assert_eq!(answer("chmod", &[]).is_some(), arch == Arch::X86_64);
        let hidden = setid::hidden_modes_program(arch);
        for (name, wanted) in [("openat2", ENOSYS), ("io_uring_setup", EPERM), ("read", ALLOW)] {
            let number = arch.number(name).unwrap();
            assert_eq!(run(&hidden, arch.audit(), number, [0; 6]), wanted);
        }
    }
    let x32_chmod = 0x4000_0000 + 90;
    let program = setid::program(Arch::X86_64);
    assert_eq!(run(&program, Arch::X86_64.audit(), x32_chmod, [0; 6]), KILL);
    assert_eq!(run(&program, AUDIT_I386, 15, [0; 6]), KILL);
    assert_eq!(run(&program, Arch::X86_64.audit(), u32::MAX, [0; 6]), ALLOW);
}

#[test]
fn every_switch_compiles_to_what_its_rules_say() {
    let name = |name: &str| vec![name.to_owned()];
    for policy in [
        Policy { nesting: Nesting::Allow, ..Policy::default() },
        Policy { init: Init::Absent, set_id: SetId::Deny, ..Policy::default() },
        Policy { allow: name("unshare"), log: name("socket"), ..Policy::default() },
        Policy { cap_add: name("sys_admin"), deny: name("chroot"), ..Policy::default() },
        Policy { unmapped: Unmapped::Deny, affinity: Affinity::Fixed, ..Policy::default() },
    ] {
        for arch in Arch::ALL {
            let rules = rules(&policy, arch);
            let program = bpf::compile(&rules).unwrap();
            for number in 0..=LAST + 1 {
                assert_runs_as_read(&rules, &program, number);
            }
        }
    }
}

/// What asks in place of denying lets nothing by, and is answered as the plain one would have; the two calls that it leaves
/// open are shut by the filter after it.
#[test]
fn a_listening_filter_is_nowhere_wider() {
    let name = |name: &str| vec![name.to_owned()];
    let all = Asking { files: true, offline: true, lacks: [true; 3], clone3: true };
    for policy in [
        Policy::default(),
        Policy { nesting: Nesting::Allow, ..Policy::default() },
        Policy { set_id: SetId::Deny, unmapped: Unmapped::Deny, ..Policy::default() },
        Policy { deny: ["sendmsg", "seccomp", "getcwd"].map(String::from).to_vec(), ..Policy::default() },
        Policy { cap_add: name("sys_admin"), deny: name("chroot"), ..Policy::default() },
    ] {
        for (arch, what) in Arch::ALL.into_iter().flat_map(|arch| [(arch, Asking::USUAL), (arch, all)]) {
            let rules = rules(&policy, arch);
            let plain = bpf::compile(&rules).unwrap();
            let listening = bpf::compile(&asking(&rules, &what)).unwrap();
            let gap = bpf::compile(&between(&rules)).unwrap();
            let mut asked = 0;
            for number in 0..=LAST + 1 {
                for args in edges(rules.calls.get(&number)) {
                    let audit = arch.audit();
                    let [plain, heard, gap] =
                        [&plain, &listening, &gap].map(|program| run(program, audit, number, args));
                    let allowed = [Action::Allow.value(), Action::Log.value()];
                    let call = arch.name(number).unwrap_or_default();
                    match heard {
                        _ if heard == Action::Notify.value() => asked += 1,
                        // Of the two of one chain the stricter answer counts.
                        _ if allowed.contains(&heard) => assert_eq!(gap.min(heard), plain, "{call} {args:?}"),
                        _ => assert_eq!(heard, plain, "{call} {args:?}"),
                    }
                }
            }
            assert!(asked > 50, "{asked}");
        }
    }
}

const POOL: [u64; 8] = [0, 1, 2, 3, 1 << 32, (1 << 32) | 1, 0xFFFF_FFFF, u64::MAX];

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        Just(Action::Log),
        Just(Action::Trap),
        Just(Action::KillThread),
        Just(Action::KillProcess),
        (1..400_u16).prop_map(Action::Errno),
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![4 => prop::sample::select(&POOL[..]), 1 => any::<u64>()]
}

fn condition() -> impl Strategy<Value = Condition> {
    let width = prop::sample::select(vec![Width::Low32, Width::Full64]);
    let mask = prop_oneof![3 => Just(u64::MAX), 3 => value(), 1 => Just(u64::MAX << 32)];
    let values = prop::collection::vec(value(), 0..5);
    let lists =
        (0..6_u8, width.clone(), mask.clone(), values, any::<bool>()).prop_map(|(arg, width, mask, values, inside)| {
            let values = values.into();
            let test = if inside { Test::In(values) } else { Test::NotIn(values) };
            Condition { arg, width, mask, test }
        });
    let bounds = (0..6_u8, width, mask, value(), any::<bool>()).prop_map(|(arg, width, mask, value, least)| {
        let test = if least { Test::AtLeast(value) } else { Test::Below(value) };
        Condition { arg, width, mask, test }
    });
    prop_oneof![2 => lists, 1 => bounds]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let any = prop::collection::vec(prop::collection::vec(condition(), 0..4), 0..4);
    let first = prop::collection::vec((prop::collection::vec(condition(), 0..4), action()), 0..4);
    prop_oneof![
        8 => action().prop_map(Verdict::Always),
        1 => (any, action(), action())
            .prop_map(|(any, then, otherwise)| Verdict::ByArgument { any, then, otherwise }),
        1 => (first, action()).prop_map(|(first, then)| {
            Verdict::Ordered { first, then: Box::new(Verdict::Always(then)) }
        }),
    ]
}

/// Rules from none to so many that jumps must cross more than the 255 instructions they can.
fn any_rules() -> impl Strategy<Value = Rules> {
    let arch = prop::sample::select(Arch::ALL.to_vec());
    let number = prop_oneof![20 => 0..600_u32, 1 => any::<u32>()];
    let calls = prop::collection::btree_map(number, verdict(), 0..250);
    (arch, action(), calls).prop_map(|(arch, unlisted, calls)| Rules { arch, unlisted, calls })
}

proptest! {
    #[test]
    fn a_program_does_what_its_rules_say(
        rules in any_rules(),
        random in prop::collection::vec((any::<u32>(), prop::array::uniform6(value())), 20),
    ) {
        let program = bpf::compile(&rules).unwrap();
        let own = rules.arch.audit();
        let near = rules.calls.keys().flat_map(|n| [n.wrapping_sub(1), *n, n.wrapping_add(1)]);
        let args: Vec<Args> = random.iter().map(|(_, args)| *args).collect();
        for (number, args) in near.zip(args.iter().cycle()).chain(random.iter().map(|(n, a)| (*n, a))) {
            for audit in [own, AUDIT_I386] {
                prop_assert_eq!(
                    run(&program, audit, number, *args),
                    expected(&rules, audit, number, *args)
                );
            }
        }
        for number in rules.calls.keys() {
            for args in &args {
                prop_assert_eq!(run(&program, own, *number, *args), expected(&rules, own, *number, *args));
            }
        }
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A policy as its author reads it: a second, plain reading, without the tables' own code.
fn as_read(policy: &Policy, arch: Arch, name: &str, args: Args) -> Action {
    let default = || decided(&rules(&Policy::default(), arch).calls[&arch.number(name).unwrap()], args);
    let mine = policy.rules.iter().filter(|rule| rule.calls.iter().any(|call| call == name));
    let hit = |rule: &&CallRule| rule.all.iter().all(|one| matches(one, args));
    let actions: Vec<Action> = mine.filter(hit).map(|rule| rule.action).collect();
    let first = |wanted: fn(&Action) -> bool| actions.iter().copied().find(wanted);
    if policy.deny.iter().any(|call| call == name) {
        return decided(
            &rules(&Policy { deny: vec![name.into()], ..Policy::default() }, arch).calls[&arch.number(name).unwrap()],
            args,
        );
    }
    first(|action| *action == Action::KillProcess)
        .or_else(|| first(|action| matches!(action, Action::Errno(_))))
        .or_else(|| first(|action| *action == Action::Log))
        .or_else(|| first(|action| *action == Action::Allow))
        .unwrap_or_else(default)
}

/// Calls of every kind: open, shut, guarded, by capability.
const CALLS: [&str; 8] = ["getpid", "socket", "keyctl", "personality", "mount", "sync", "kcmp", "io_uring_setup"];

fn call_rule() -> impl Strategy<Value = CallRule> {
    let calls = prop::collection::vec(prop::sample::select(&CALLS[..]), 1..3);
    let action = prop::sample::select(vec![
        Action::Allow,
        Action::Log,
        Action::Errno(1),
        Action::Errno(13),
        Action::KillProcess,
    ]);
    (calls, prop::collection::vec(condition(), 0..3), action).prop_map(|(calls, all, action)| CallRule {
        calls: calls.into_iter().map(str::to_owned).collect(),
        all,
        action,
    })
}

proptest! {
    #[test]
    fn a_filter_does_what_its_policy_says(
        arch in prop::sample::select(Arch::ALL.to_vec()),
        deny in prop::collection::vec(prop::sample::select(&CALLS[..]), 0..2),
        mut call_rules in prop::collection::vec(call_rule(), 0..6),
        random in prop::collection::vec(prop::array::uniform6(value()), 12),
    ) {
        // Of two denials with different errors either is right; here there is one.
        let errno = call_rules.iter().find_map(|rule| match rule.action {
            Action::Errno(errno) => Some(errno),
            _ => None,
        });
        for rule in &mut call_rules {
            if let (Action::Errno(_), Some(errno)) = (rule.action, errno) {
                rule.action = Action::Errno(errno);
            }
        }
        let deny = deny.into_iter().map(str::to_owned).collect();
        let policy = Policy { deny, rules: call_rules, ..Policy::default() };
        let program = bpf::compile(&rules(&policy, arch)).unwrap();
        for name in CALLS {
            let number = arch.number(name).unwrap();
            for args in &random {
                let wanted = as_read(&policy, arch, name, *args).value();
                prop_assert_eq!(run(&program, arch.audit(), number, *args), wanted, "{} {:x?}", name, args);
            }
        }
    }
}

/// Moby's own profile, imported, against the reading of it that the test of the default policy has.
#[test]
fn mobys_profile_means_here_what_it_means_there() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/moby-seccomp-default.json"));
    let profile = sbx::front::seccomp_json::parse("moby", &text.unwrap()).unwrap();
    for caps in [&CAPS[..], &[], &["SYS_ADMIN", "SYS_PTRACE", "SYS_NICE", "BPF"]] {
        let held = caps.iter().map(|cap| Capabilities::named("caps", cap).unwrap());
        let held = held.fold(Capabilities::default(), Capabilities::with);
        let arch = seccomp::NATIVE;
        let profile = Some(sbx::plan::call_rules::applied(&profile, held, (6, 1)));
        let further = vec![Arch::X86];
        let policy = Policy { profile, further, cap_add: names(caps), ..Policy::default() };
        let program = if arch == Arch::X86_64 { seccomp::program(&policy).unwrap() } else { return };
        // The names that hold on the machine hold for both of its ABIs.
        let allowed = moby(arch, caps);
        let both = [arch, Arch::X86].into_iter().flat_map(|abi| abi.table().iter().map(move |call| (abi, call)));
        for (arch, (name, number)) in both {
            let rules = rules(&policy, arch);
            assert_runs_as_read(&rules, &program, *number);
            for args in edges(rules.calls.get(number)) {
                let open = run(&program, arch.audit(), *number, args) == Action::Allow.value();
                let theirs = allowed.get(*name).is_some_and(|entries| moby_allows(entries, args));
                match *name {
                    // sbx decides on these by itself, and no wider.
                    "clone" | "clone3" | "unshare" | "setns" | "ioctl" => assert!(theirs || !open, "{name} {args:x?}"),
                    _ => assert_eq!(open, theirs, "{name} {args:x?} with {caps:?}"),
                }
            }
        }
    }
}

#[test]
fn groups_are_their_members() {
    for group in seccomp::groups() {
        let all = Policy { deny: vec![format!("@{}", group.name)], ..Policy::default() };
        let each = Policy { deny: names(group.calls), ..Policy::default() };
        match group.name {
            // Nothing could start without it.
            "namespaces" => {}
            _ => assert_eq!(rules(&all, Arch::X86_64), rules(&each, Arch::X86_64), "{}", group.name),
        }
        assert!(!group.about.is_empty());
    }
    let unknown = seccomp::rules(&Policy { allow: names(&["@nett"]), ..Policy::default() }, Arch::X86_64);
    assert!(unknown.unwrap_err().to_string().contains("Did you mean `@net`?"));
}

#[test]
fn a_rule_opens_nothing_that_is_sbxs_own_to_decide() {
    for call in ["clone", "unshare", "setns", "clone3", "ioctl", "@namespaces"] {
        let rule = CallRule { calls: names(&[call]), all: Vec::new(), action: Action::Allow };
        let refused = seccomp::rules(&Policy { rules: vec![rule], ..Policy::default() }, Arch::X86_64);
        assert!(refused.unwrap_err().to_string().contains("sbx itself decides"), "{call}");
    }
}
