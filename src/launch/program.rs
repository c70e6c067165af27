//! The program as the child executes it: its strings, its filters, its descriptors.

use super::prepare::{c_text, resource};
use super::script::Program;
use crate::error::{Error, Result};
use crate::plan::limits::Way;
use crate::plan::seccomp::default_program;
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

/// Whether init's filter, the default one, is all that the program gets.
pub(super) fn inherits_filter(plan: &Plan) -> bool {
    let of_init = default_program();
    plan.process.init == Init::Own && matches!(plan.filters.as_slice(), [one] if one == of_init)
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
    // The filter that guards set-id bits is the first of two.
    let skipped = usize::from(inherits_filter || plan.filters.len() > 1 && crate::sys::sabotaged(c"set-id"));
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
        filters: steps.zip(&plan.filters).skip(skipped).map(|(step, filter)| (step, instructions(filter))).collect(),
        inherits_filter,
        init_filter: (!unfiltered).then(|| instructions(default_program())),
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
