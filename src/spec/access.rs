//! What the program is allowed: capabilities, the system call policy, Landlock, what may degrade.

use super::layer::Layer;
use super::seccomp::{Profile, Rule};
use super::text::{Caller, InnerPath, nearest, word};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A set of capabilities, bit n for number n of capabilities(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities(pub u64);

/// Every capability up to Linux 6.18, by number.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a sandbox's user 0 holds without any option: Podman's set, which leaves out MKNOD, NET_RAW and AUDIT_WRITE.
pub const DEFAULT: [&str; 11] = [
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

impl Capabilities {
    /// The set of [`DEFAULT`].
    pub fn default_set() -> Capabilities {
        Capabilities(NAMES.iter().enumerate().filter(|(_, name)| DEFAULT.contains(name)).map(|(n, _)| 1 << n).sum())
    }

    /// The set of one capability, named with or without `CAP_`, in any case; an unknown name is an error (S30).
    pub fn named(field: &str, text: &str) -> Result<Capabilities> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match NAMES.iter().position(|known| *known == name) {
            Some(number) => Ok(Capabilities(1 << number)),
            None => {
                let error = Error::spec(field, text, "no such capability");
                Err(nearest(name, NAMES).map_or(error.clone(), |near| error.or_try(near)))
            }
        }
    }

    /// Both sets together.
    pub fn with(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }

    /// This set less the other.
    pub fn without(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & !other.0)
    }

    /// Whether it has the capability of this number (linux/capability.h).
    pub fn holds(self, number: u8) -> bool {
        self.0 >> number & 1 == 1
    }

    /// The name of a number, without `CAP_`.
    pub fn name(number: u8) -> Option<&'static str> {
        NAMES.get(usize::from(number)).copied()
    }

    /// The names in the set, without `CAP_`, in the order of their numbers.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(n, _)| self.0 >> n & 1 == 1).map(|(_, name)| *name)
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("none"),
            _ => f.write_str(&self.names().collect::<Vec<_>>().join(" ")),
        }
    }
}

/// The system call policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seccomp {
    /// Whether calls are filtered at all.
    pub filter: Filter,
    /// Calls allowed beyond the default policy's, by name.
    pub allow: Vec<String>,
    /// Calls denied; these win over `allow`.
    pub deny: Vec<String>,
    /// Calls that are allowed and written to the kernel's log.
    pub log: Vec<String>,
    /// Rules on arguments.
    pub rules: Vec<Rule>,
    /// What stands in for the default policy.
    pub profile: Option<Profile>,
}

/// `--seccomp default|off`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// The policy of policies/syscalls.toml with the lists above.
    #[default]
    Default,
    /// None.
    Off,
}

/// `--landlock`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Landlock {
    /// What this kernel has; what is missing is said.
    #[default]
    Auto,
    /// Refuse where this kernel has less than sbx knows to use.
    Require,
    /// None.
    Off,
}

impl Landlock {
    /// Parses the option's word.
    pub fn parse(text: &str) -> Result<Landlock> {
        word("--landlock", text, &[("auto", Landlock::Auto), ("require", Landlock::Require), ("off", Landlock::Off)])
    }
}

/// What a policy asks of Landlock by name: where a kernel lacks it, the run is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LandlockRules {
    /// Where files may be executed, if not everywhere.
    pub exec: Option<Vec<InnerPath>>,
    /// TCP ports to bind, if not all.
    pub bind: Option<Vec<u16>>,
    /// TCP ports to connect to, if not all.
    pub connect: Option<Vec<u16>>,
    /// What does not reach out of the sandbox: signals, abstract sockets. Both, if nothing is said.
    pub scope: Option<(bool, bool)>,
}

impl LandlockRules {
    /// The rules of all layers: lists append.
    pub(super) fn resolve(layers: &[Layer], caller: &Caller) -> Result<LandlockRules> {
        let mut rules = LandlockRules::default();
        for Layer { landlock, .. } in layers {
            if let Some(paths) = &landlock.exec {
                if paths.is_empty() {
                    let why = "an empty list, under which nothing could be executed";
                    return Err(Error::spec("[landlock] exec", "[]", why).or_try("leave it out"));
                }
                for text in paths {
                    rules.exec.get_or_insert_default().push(caller.inner_path("[landlock] exec", text)?);
                }
            }
            for (all, these) in [(&mut rules.bind, &landlock.tcp_bind), (&mut rules.connect, &landlock.tcp_connect)] {
                if let Some(ports) = these {
                    all.get_or_insert_default().extend(ports);
                }
            }
            if let Some(words) = &landlock.scope {
                let known = [("signals", 0), ("abstract-sockets", 1)];
                let before = rules.scope.unwrap_or_default();
                let mut scope = [before.0, before.1];
                for text in words {
                    scope[word("[landlock] scope", text, &known)?] = true;
                }
                rules.scope = Some((scope[0], scope[1]));
            }
        }
        Ok(rules)
    }
}

/// Whether the program may make sandboxes of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Nesting {
    /// No new namespaces at all.
    #[default]
    Refused,
    /// User namespaces and what an inner sandbox needs.
    Allowed,
}

/// What happens when a step that may degrade cannot be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Degrade {
    /// The run is refused.
    #[default]
    Never,
    /// It is skipped and said: only what DESIGN 4.4 lists.
    BestEffort,
}

/// Whether the program may set set-id bits on files of the host that it can write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SetId {
    /// Refused by a filter of its own wherever a host path is writable.
    #[default]
    Refused,
    /// `--allow-setid`
    Allowed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_landlock_append() {
        let layer = |edit: fn(&mut super::super::layer::Landlock)| {
            let mut layer = Layer::default();
            edit(&mut layer.landlock);
            layer
        };
        let resolve = |layers: &[Layer]| LandlockRules::resolve(layers, &Caller::default());
        let signals = layer(|landlock| landlock.scope = Some(vec!["signals".into()]));
        let nothing = layer(|landlock| landlock.scope = Some(Vec::new()));
        assert_eq!(resolve(&[signals, nothing]).expect("rules").scope, Some((true, false)));
        assert!(resolve(&[layer(|landlock| landlock.exec = Some(Vec::new()))]).is_err());
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(Capabilities::named("--cap-add", "cap_sys_admin"), Ok(Capabilities(1 << 21)));
        assert_eq!(Capabilities::named("--cap-add", "BPF"), Ok(Capabilities(1 << 39)));
        let error = Capabilities::named("--cap-add", "NET_ADMN").err();
        assert_eq!(error.as_ref().and_then(|e| e.hint()), Some("NET_ADMIN"));
        assert_eq!(Capabilities::default_set().names().count(), DEFAULT.len());
    }
}
