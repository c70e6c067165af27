//! The seccomp filter of a sandbox: the default policy with a user's changes, as a program.
//!
//! `policies/syscalls.toml` is read by the build script, which leaves its tables and the compiled
//! default program here, so that a run without changes costs no work at all.

pub use super::rules::{Affinity, Init, Nesting, Policy, SeccompError, SetId, Unmapped};

use super::bpf::{self, Action, Condition, Insn, Rules, Test, Verdict, Width};
use super::rules::{self, Base, Group, Guard};
use super::syscalls::Arch;
use std::borrow::Cow;

// `BASE`, `ARCH`, `PROGRAMS` and in their order `LISTENING`.
include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));

/// The architecture this binary is built for.
pub const NATIVE: Arch = ARCH;

/// The default policy's program, made at build time.
pub fn default_program() -> &'static [Insn] {
    PROGRAMS[0].2
}

/// The program of a policy in which nothing is a user's but what it guards against; made at build time.
fn made(policy: &Policy) -> Option<&'static [Insn]> {
    let (set_id, unmapped) = (policy.set_id, policy.unmapped);
    let plain = *policy == Policy { set_id, unmapped, ..Policy::default() };
    let of = |known: &&(SetId, Unmapped, &'static [Insn])| (known.0, known.1) == (set_id, unmapped);
    PROGRAMS.iter().find(of).filter(|_| plain).map(|known| known.2)
}

/// The same that asks where it denies, of a sandbox without options.
pub fn listening(policy: &Policy) -> Option<&'static [Insn]> {
    let at = made(policy).and_then(|made| PROGRAMS.iter().position(|known| std::ptr::eq(known.2, made)))?;
    LISTENING.get(at).copied()
}

/// Whether a program is one of sbx's own, under which init can be as well.
pub fn is_own(program: &[Insn]) -> bool {
    PROGRAMS.iter().any(|known| known.2 == program)
}

/// The program without the guard of set-id bits, of one of sbx's own: what a test build may be told to take.
pub fn unguarded(program: &[Insn]) -> Option<&'static [Insn]> {
    let (_, unmapped, _) = PROGRAMS.iter().find(|known| known.0 == SetId::Deny && known.2 == program)?;
    made(&Policy { unmapped: *unmapped, ..Policy::default() })
}

/// The program for a policy.
pub fn program(policy: &Policy) -> Result<Vec<Insn>, SeccompError> {
    match made(policy) {
        Some(program) => Ok(program.to_vec()),
        None => {
            let archs = std::iter::once(NATIVE).chain(policy.further.iter().copied());
            let all = archs.map(|arch| rules(policy, arch)).collect::<Result<Vec<_>, _>>()?;
            Ok(bpf::compile_all(&all)?)
        }
    }
}

/// The verdict on each call under a policy, for `policy show` and for tests.
pub fn rules(policy: &Policy, arch: Arch) -> Result<Rules, SeccompError> {
    rules::resolve(&BASE, policy, arch)
}

/// Whether a policy lets a call by for any arguments.
pub fn may_run(policy: &Policy, call: &str) -> bool {
    rules::may_run(&BASE, policy, call)
}

/// The groups of calls, in the order of their names.
pub fn groups() -> &'static [Group] {
    BASE.groups
}

/// What the default policy answers to a call here: `allowed`, `by argument`, `EPERM`, `ENOSYS`, or `-` where this
/// architecture has no such call.
pub fn default_answer(call: &str) -> &'static str {
    let rules = rules(&Policy::default(), NATIVE).ok();
    match NATIVE.number(call).and_then(|number| rules?.calls.get(&number).cloned()) {
        Some(Verdict::Always(Action::Allow)) => "allowed",
        Some(Verdict::Always(Action::Errno(38))) => "ENOSYS",
        Some(Verdict::Always(_)) => "EPERM",
        Some(_) => "by argument",
        None => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::rules::Profile;

    const ALLOW: Verdict = Verdict::Always(Action::Allow);
    const LOG: Verdict = Verdict::Always(Action::Log);
    const EPERM: Verdict = Verdict::Always(Action::Errno(1));
    const ENOSYS: Verdict = Verdict::Always(Action::Errno(38));

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn verdict(policy: &Policy, name: &str) -> Verdict {
        let rules = rules(policy, Arch::X86_64).unwrap();
        rules.calls[&Arch::X86_64.number(name).unwrap()].clone()
    }

    fn error(policy: Policy) -> SeccompError {
        program(&policy).unwrap_err()
    }

    #[test]
    fn deny_wins_over_allow_log_capability_and_nesting() {
        let policy = Policy {
            allow: names(&["mount", "clone3"]),
            log: names(&["mount"]),
            deny: names(&["mount", "clone3"]),
            cap_add: names(&["SYS_ADMIN"]),
            nesting: Nesting::Allow,
            ..Policy::default()
        };
        assert_eq!(verdict(&policy, "mount"), EPERM);
        assert_eq!(verdict(&policy, "clone3"), ENOSYS, "libraries go on only after ENOSYS");
        assert_eq!(verdict(&policy, "umount2"), ALLOW);
    }

    #[test]
    fn allow_and_log_open_a_call() {
        let policy = Policy {
            allow: names(&["keyctl", "open_tree"]),
            log: names(&["io_uring_setup", "read"]),
            ..Policy::default()
        };
        for (name, wanted) in
            [("keyctl", ALLOW), ("open_tree", ALLOW), ("io_uring_setup", LOG), ("read", LOG), ("add_key", EPERM)]
        {
            assert_eq!(verdict(&policy, name), wanted, "{name}");
        }
    }

    #[test]
    fn an_allowed_name_keeps_its_argument_rules() {
        let default = Policy::default();
        let guarded = names(&["clone", "ioctl", "socket", "mknod", "personality"]);
        let policy = Policy { allow: guarded.clone(), ..Policy::default() };
        for name in &guarded {
            assert_eq!(verdict(&policy, name), verdict(&default, name), "{name}");
        }
        let policy = Policy { log: names(&["unshare"]), ..Policy::default() };
        let Verdict::ByArgument { then, otherwise, .. } = verdict(&policy, "unshare") else {
            panic!("unshare would open user namespaces");
        };
        assert_eq!((then, otherwise), (Action::Log, Action::Errno(1)));
    }

    #[test]
    fn nesting_opens_what_an_inner_sandbox_needs() {
        let policy = Policy { nesting: Nesting::Allow, ..Policy::default() };
        for name in ["clone", "clone3", "unshare", "setns", "mount", "fsopen", "pivot_root"] {
            assert_eq!(verdict(&policy, name), ALLOW, "{name}");
        }
        for name in ["keyctl", "io_uring_setup", "bpf", "kexec_load"] {
            assert_eq!(verdict(&policy, name), EPERM, "{name}");
        }
    }

    #[test]
    fn a_program_without_init_keeps_its_death_signal() {
        let policy = Policy { init: Init::Absent, ..Policy::default() };
        let Verdict::Ordered { first, then } = verdict(&policy, "prctl") else {
            panic!("prctl is open");
        };
        let [(all, answer)] = &first[..] else { panic!("{first:?}") };
        assert_eq!((all[0].arg, all[0].width), (0, Width::Low32));
        assert_eq!(all[0].test, Test::In(vec![1].into()));
        assert_eq!((*answer, *then), (Action::Errno(1), ALLOW));
        assert_eq!(verdict(&Policy::default(), "prctl"), ALLOW);
    }

    #[test]
    fn hidden_modes_are_shut_even_when_allowed() {
        let allow = names(&["openat2", "io_uring_setup", "io_uring_enter"]);
        let policy = Policy { allow, set_id: SetId::Deny, ..Policy::default() };
        assert_eq!(verdict(&policy, "openat2"), ENOSYS);
        assert_eq!(verdict(&policy, "io_uring_setup"), EPERM);
        assert_eq!(verdict(&policy, "io_uring_enter"), EPERM);
        assert_eq!(verdict(&Policy::default(), "openat2"), ALLOW);
    }

    #[test]
    fn what_a_watch_could_not_see_is_shut_even_when_allowed() {
        let allow = names(&["memfd_create", "memfd_secret", "shmget", "sched_setaffinity"]);
        let policy = |unmapped, affinity| Policy { allow: allow.clone(), unmapped, affinity, ..Policy::default() };
        let all = policy(Unmapped::Deny, Affinity::Fixed);
        assert_eq!(allow.iter().map(|name| verdict(&all, name)).collect::<Vec<_>>(), [ENOSYS, ENOSYS, ENOSYS, EPERM]);
        let files = policy(Unmapped::DenyFiles, Affinity::Free);
        assert_eq!(allow.iter().map(|name| verdict(&files, name)).collect::<Vec<_>>(), [ENOSYS, ENOSYS, ALLOW, ALLOW]);
        let none = policy(Unmapped::Allow, Affinity::Free);
        assert!(allow.iter().all(|name| verdict(&none, name) == ALLOW));
        assert_eq!(verdict(&all, "shmat"), ALLOW);
        assert_eq!(verdict(&none, "setsockopt"), ALLOW);
        for policy in [all, files] {
            let Verdict::Ordered { first, .. } = verdict(&policy, "setsockopt") else {
                panic!("buffers have no bound");
            };
            assert_eq!((first.len(), first[0].0.len(), first[0].1), (1, 2, Action::Errno(0)));
        }
    }

    #[test]
    fn lists_of_names_count_beside_a_profile() {
        let profile = Some(Profile { default: Action::Errno(1), rules: Vec::new() });
        let policy = Policy { profile, allow: names(&["keyctl", "clone"]), log: names(&["read"]), ..Policy::default() };
        let of = |name: &str| {
            rules(&policy, Arch::X86_64).map(|rules| rules.calls[&Arch::X86_64.number(name).unwrap()].clone())
        };
        // It lets nothing start, and so no rules come of it.
        assert!(matches!(of("keyctl"), Err(SeccompError::Needed { .. })));
        let profile = Some(Profile { default: Action::Allow, rules: Vec::new() });
        let policy = Policy { deny: names(&["keyctl"]), log: names(&["read"]), profile, ..policy };
        assert_eq!(verdict(&policy, "keyctl"), EPERM);
        assert_eq!(verdict(&policy, "read"), LOG);
        assert_eq!(verdict(&policy, "bpf"), ALLOW);
        assert_ne!(verdict(&policy, "clone"), ALLOW);
    }

    #[test]
    fn an_unknown_name_is_an_error_that_knows_better() {
        let misspelt = error(Policy { deny: names(&["opennat"]), ..Policy::default() });
        assert!(misspelt.to_string().contains("Did you mean `openat`?"), "{misspelt}");
        let invented = error(Policy { log: names(&["make_coffee_now"]), ..Policy::default() });
        assert!(invented.to_string().contains("`make_coffee_now`, which no architecture has"));
    }

    #[test]
    fn a_name_of_another_architecture_is_skipped() {
        let policy = Policy { deny: names(&["open", "fork"]), ..Policy::default() };
        assert!(rules(&policy, Arch::Aarch64).is_ok());
        assert_eq!(verdict(&policy, "open"), EPERM);
    }

    #[test]
    fn what_a_start_needs_cannot_be_denied() {
        for name in ["execve", "exit_group", "mmap"] {
            let error = error(Policy { deny: names(&[name]), ..Policy::default() });
            assert!(error.to_string().contains(&format!("denies `{name}`")), "{error}");
        }
    }

    #[test]
    fn clone3_comes_with_nesting_only() {
        let allow = names(&["clone3"]);
        let error = error(Policy { allow: allow.clone(), ..Policy::default() });
        assert!(error.to_string().contains("--nest"), "{error}");
        let nest = Policy { allow, nesting: Nesting::Allow, ..Policy::default() };
        assert_eq!(verdict(&nest, "clone3"), ALLOW);
    }
}
