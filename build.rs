//! Reads `policies/syscalls.toml` and leaves its seccomp tables and its compiled program as Rust
//! statics, for the architecture the crate is built for (which need not be the one this runs on).

#[allow(dead_code)]
#[path = "src/plan/asking.rs"]
mod asking;
#[allow(dead_code)]
#[path = "src/plan/bpf.rs"]
mod bpf;
#[allow(dead_code)]
#[path = "src/plan/invariants.rs"]
mod invariants;
#[path = "src/spec/near.rs"]
mod near;
#[allow(dead_code)]
#[path = "src/plan/rules.rs"]
mod rules;
#[allow(dead_code)]
#[path = "src/plan/syscalls/mod.rs"]
mod syscalls;

/// Where the crate has it.
mod spec {
    pub(crate) use super::near;
}

use bpf::{Condition, Insn, Test, Width};
use rules::{Base, Group, Guard, Policy, SetId, Unmapped};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;
use syscalls::Arch;

const POLICY: &str = "policies/syscalls.toml";

#[derive(Deserialize)]
struct File {
    seccomp: Tables,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    allow: Vec<String>,
    eperm: Vec<String>,
    enosys: Vec<String>,
    nest: Vec<String>,
    caps: BTreeMap<String, Vec<String>>,
    rule: Vec<Rule>,
    groups: BTreeMap<String, Calls>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Calls {
    about: String,
    calls: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    calls: Vec<String>,
    cap: Option<String>,
    any: Vec<Vec<Comparison>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Comparison {
    arg: u8,
    bits: u8,
    mask: Option<u64>,
    r#in: Option<Vec<u64>>,
    not_in: Option<Vec<u64>>,
}

fn main() -> Result<(), Box<dyn Error>> {
    for input in [
        "build.rs",
        POLICY,
        "src/plan/asking.rs",
        "src/plan/bpf.rs",
        "src/plan/invariants.rs",
        "src/plan/rules.rs",
        "src/plan/syscalls",
        "src/spec/near.rs",
    ] {
        println!("cargo::rerun-if-changed={input}");
    }
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH")?;
    let arch = Arch::from_name(&arch)
        .ok_or_else(|| format!("sbx has no system call table for {arch}: see src/plan/syscalls"))?;
    let file: File = toml::from_str(&std::fs::read_to_string(POLICY)?).map_err(|error| format!("{POLICY}: {error}"))?;
    check(&file.seccomp).map_err(|error| format!("{POLICY}: {error}"))?;
    let base = base(file.seccomp)?;
    let mut programs = Vec::new();
    for set_id in [SetId::Allow, SetId::Deny] {
        for unmapped in [Unmapped::Allow, Unmapped::DenyFiles, Unmapped::Deny] {
            let policy = Policy { set_id, unmapped, ..Policy::default() };
            let rules = rules::resolve(&base, &policy, arch)?;
            let listening = bpf::compile(&asking::asking(&rules, &asking::Asking::USUAL))?;
            programs.push((set_id, unmapped, bpf::compile(&rules)?, listening));
        }
    }
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(format!("{out}/seccomp.rs"), source(&base, arch, &programs)?)?;
    Ok(())
}

/// Holds the policy to one decision for every call that any architecture has.
fn check(tables: &Tables) -> Result<(), String> {
    let guarded = |cap: bool| {
        let rules = tables.rule.iter().filter(move |rule| rule.cap.is_some() == cap);
        rules.flat_map(|rule| &rule.calls)
    };
    let decided = [&tables.allow, &tables.eperm, &tables.enosys];
    let mut seen = BTreeSet::new();
    for name in decided.into_iter().flatten().chain(guarded(false)) {
        if !seen.insert(name.as_str()) {
            return Err(format!("`{name}` stands in two places"));
        }
    }
    let opened = tables.caps.values().flatten().chain(guarded(true));
    let grouped = tables.groups.values().flat_map(|group| &group.calls);
    seen.extend(opened.chain(&tables.nest).chain(grouped).map(String::as_str));
    if let Some(name) = seen.iter().find(|name| !syscalls::is_known(name)) {
        return Err(format!("no architecture has a call `{name}`"));
    }
    let all = Arch::ALL.iter().flat_map(|arch| arch.table());
    match all.into_iter().find(|(name, _)| !seen.contains(name)) {
        Some((name, _)) => Err(format!("`{name}` is nowhere: allow it, or say how it is denied")),
        None => Ok(()),
    }
}

fn base(tables: Tables) -> Result<Base, String> {
    let mut guards = Vec::new();
    for rule in tables.rule {
        let any = rule.any.into_iter().map(|all| {
            let all: Result<Vec<_>, _> = all.into_iter().map(condition).collect();
            Ok(&*all?.leak())
        });
        let any: &'static [_] = any.collect::<Result<Vec<_>, String>>()?.leak();
        let cap: Option<&'static str> = rule.cap.map(|cap| &*cap.leak());
        let calls = rule.calls.into_iter();
        guards.extend(calls.map(|call| Guard { call: call.leak(), cap, any }));
    }
    let groups = tables.groups.into_iter().map(|(name, group)| Group {
        name: name.leak(),
        about: group.about.leak(),
        calls: keep(group.calls),
    });
    let groups = groups.collect::<Vec<_>>().leak();
    let caps = tables.caps.into_iter().map(|(cap, calls)| (&*cap.leak(), keep(calls)));
    Ok(Base {
        allow: keep(tables.allow),
        enosys: keep(tables.enosys),
        guards: guards.leak(),
        caps: caps.collect::<Vec<_>>().leak(),
        nest: keep(tables.nest),
        groups,
    })
}

fn keep(names: Vec<String>) -> &'static [&'static str] {
    let names = names.into_iter().map(|name| &*name.leak());
    names.collect::<Vec<_>>().leak()
}

fn condition(comparison: Comparison) -> Result<Condition, String> {
    let Comparison { arg, bits, mask, r#in, not_in } = comparison;
    let width = match bits {
        32 => Width::Low32,
        64 => Width::Full64,
        _ => return Err(format!("bits = {bits}: it is 32 or 64")),
    };
    let test = match (r#in, not_in) {
        (Some(values), None) => Test::In(values.into()),
        (None, Some(values)) => Test::NotIn(values.into()),
        _ => return Err("a comparison takes one of `in` and `not_in`".into()),
    };
    Ok(Condition { arg, width, mask: mask.unwrap_or(u64::MAX), test })
}

fn source(
    base: &Base,
    arch: Arch,
    programs: &[(SetId, Unmapped, Vec<Insn>, Vec<Insn>)],
) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    writeln!(out, "const ARCH: Arch = Arch::{arch:?};")?;
    writeln!(out, "static BASE: Base = Base {{")?;
    writeln!(out, "allow: &{:?},\nenosys: &{:?},\nnest: &{:?},", base.allow, base.enosys, base.nest)?;
    writeln!(out, "caps: &[")?;
    for (cap, calls) in base.caps {
        writeln!(out, "({cap:?}, &{calls:?}),")?;
    }
    writeln!(out, "],\nguards: &[")?;
    for Guard { call, cap, any } in base.guards {
        writeln!(out, "Guard {{ call: {call:?}, cap: {cap:?}, any: &[")?;
        for all in *any {
            let all: Vec<String> = all.iter().map(literal).collect();
            writeln!(out, "&[{}],", all.join(", "))?;
        }
        writeln!(out, "] }},")?;
    }
    writeln!(out, "],\ngroups: &[")?;
    for Group { name, about, calls } in base.groups {
        writeln!(out, "Group {{ name: {name:?}, about: {about:?}, calls: &{calls:?} }},")?;
    }
    writeln!(out, "] }};")?;
    writeln!(out, "static PROGRAMS: [(SetId, Unmapped, &[Insn]); {}] = [", programs.len())?;
    for (set_id, unmapped, program, _) in programs {
        writeln!(out, "(SetId::{set_id:?}, Unmapped::{unmapped:?}, &{program:#?}),")?;
    }
    writeln!(out, "];")?;
    writeln!(out, "static LISTENING: [&[Insn]; {}] = [", programs.len())?;
    for (.., listening) in programs {
        writeln!(out, "&{listening:#?},")?;
    }
    writeln!(out, "];")?;
    Ok(out)
}

fn literal(condition: &Condition) -> String {
    let Condition { arg, width, mask, test } = condition;
    let (test, values) = match test {
        Test::In(values) => ("In", values),
        Test::NotIn(values) => ("NotIn", values),
        Test::AtLeast(_) | Test::Below(_) => unreachable!("the table has none"),
    };
    format!(
        "Condition {{ arg: {arg}, width: Width::{width:?}, mask: {mask}, \
         test: Test::{test}(Cow::Borrowed(&{values:?})) }}"
    )
}
