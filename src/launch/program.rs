//! The program as the child executes it: its strings, its filters, its descriptors.

use super::prepare::{c_text, resource};
use super::script::Program;
use crate::error::{Error, Result};
use crate::plan::explain::LISTENING;
use crate::plan::limits::Way;
use crate::plan::seccomp::{default_program, is_own, unguarded};
use crate::plan::{Plan, Stage, Step, Terminal, bpf};
use crate::spec::{Init, Rlimit};
use crate::sys::cred::Limit;
use crate::sys::process::{Pointers, argv_area};
use crate::sys::seccomp::Insn;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;

fn instructions(filter: &[bpf::Insn]) -> Vec<Insn> {
    filter.iter().map(|i| Insn { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect()
}

/// The strings that execve takes, leaked: they have to stay where they are until the exec, and sbx runs once.
fn pointers(texts: &[OsString]) -> Result<Pointers> {
    let texts: Vec<CString> = texts.iter().map(|text| c_text(text.as_bytes())).collect::<Result<_>>()?;
    Ok(Pointers::to(texts.leak()))
}

/// Whether the program gets one filter, and that may be init's too: init itself does nothing that one would ask about, as
/// long as that is not about files.
pub(super) fn inherits_filter(plan: &Plan) -> bool {
    let asks = plan.heard.as_ref().is_some_and(|heard| heard.files || heard.gap.is_some());
    plan.process.init == Init::Own && !asks && matches!(plan.filters.as_slice(), [one] if is_own(one))
}

/// The filters; a test build may be told to leave out what guards set-id bits.
fn filters(plan: &Plan) -> Vec<&[bpf::Insn]> {
    let bare = |filter| if crate::sys::sabotaged(c"set-id") { unguarded(filter) } else { None };
    plan.filters.iter().map(|filter| bare(filter).unwrap_or(filter)).collect()
}

pub(super) fn program(plan: &Plan, want_pidfd: bool) -> Result<Program> {
    let process = &plan.process;
    let mut argv = process.command.clone();
    argv[0] = process.argv0.clone();
    if argv.iter().any(|word| word.as_bytes().contains(&0)) {
        return Err(Error::spec("COMMAND", "", "an argument cannot hold a NUL byte"));
    }
    let unfiltered = plan.filters.is_empty();
    let inherits_filter = inherits_filter(plan);
    let all = filters(plan);
    let of_init = if inherits_filter { all[0] } else { default_program() };
    let own = if inherits_filter { &[] } else { all.as_slice() };
    let numbered = (1..).zip(&plan.steps);
    let limits = numbered.clone().filter(|(_, planned)| planned.stage == Stage::Exec);
    let limits = limits.filter_map(|(number, planned)| match &planned.step {
        Step::Rlimit(limit) => Some((number, limit)),
        _ => None,
    });
    let limit = |(number, asked): (u16, &Rlimit)| {
        Ok((number, resource(&asked.name)?, Limit { soft: asked.soft, hard: asked.hard }))
    };
    let steps = numbered.filter(|(_, planned)| matches!(planned.step, Step::Filter(..))).map(|(number, _)| number);
    Ok(Program {
        step: plan.steps.len() as u16,
        candidates: process.candidates.iter().map(|path| c_text(path.as_bytes())).collect::<Result<_>>()?,
        argv: pointers(&argv)?,
        env: pointers(&process.env)?,
        limits: limits.map(limit).collect::<Result<_>>()?,
        filters: steps.zip(own).map(|(step, filter)| (step, instructions(filter))).collect(),
        listening: plan.heard.as_ref().map(|heard| {
            let step = plan.number(|step| matches!(step, Step::Filter(LISTENING, _))) as u16;
            (step, instructions(&heard.listening), heard.gap.as_deref().map(instructions))
        }),
        inherits_filter,
        init_filter: (!unfiltered).then(|| instructions(of_init)),
        umask: process.umask,
        passed: process.pass_fds.clone(),
        terminals: match process.terminal {
            Terminal::None => 0,
            Terminal::InOut => 2,
            Terminal::All => 3,
        },
        is_init: process.init == Init::Program,
        orphaned: plan.is_detached() && plan.joins(),
        stdio: [const { None }; 3],
        counted: matches!(plan.limits.way, Some(Way::Systemd(_))),
        want_pidfd,
        argv_area: argv_area(),
    })
}
