//! Filters as Docker, Podman and the OCI runtime specification write them, in JSON.
//!
//! What is in such a file and cannot be done here is refused by name: a filter that is weaker than its author meant it
//! is worse than none.

use crate::error::{Error, Result};
use crate::spec::errno;
use crate::spec::seccomp::{Answer, Applies, Compare, Op, Profile, Rule};
use serde::Deserialize;

/// A profile. Unknown keys are refused, for they might say what the filter has to do.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    default_errno: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    listener_path: String,
    #[serde(default)]
    listener_metadata: String,
    #[serde(default)]
    syscalls: Option<Vec<Calls>>,
}

/// Which ABIs are filtered along: here all but the machine's own end the process, whatever a profile says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Calls {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    errno: Option<String>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[allow(dead_code)]
    #[serde(default)]
    comment: String,
    #[serde(default)]
    includes: Option<Filters>,
    #[serde(default)]
    excludes: Option<Filters>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Arg {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Filters {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// EPERM, as all three have it where nothing is said.
const USUAL: u16 = 1;

/// Whether a file holds JSON and not a policy.
pub fn is_json(text: &str) -> bool {
    text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).starts_with('{')
}

/// Reads a profile; `file` is its name for errors and reports.
///
/// # Errors
/// `Policy` with line and column for what is no profile, and without for what sbx cannot do.
pub fn parse(file: &str, text: &str) -> Result<Profile> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let read: File = serde_json::from_str(text).map_err(|error| {
        let shown = text.lines().nth(error.line().saturating_sub(1)).unwrap_or("");
        let message = error.to_string();
        let why = message.rsplit_once(" at line ").map_or(message.as_str(), |(why, _)| why);
        located(file, Some((error.line().max(1), error.column().max(1))), shown, why)
    })?;
    let refuse = |why: String| located(file, None, "", &why);
    if !read.listener_path.is_empty() || !read.listener_metadata.is_empty() {
        return Err(refuse("listenerPath: nobody is asked about calls here".into()));
    }
    // These change how a filter is loaded, not what it does.
    let known = ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"];
    if let Some(flag) = read.flags.iter().find(|flag| !known.contains(&flag.as_str())) {
        return Err(refuse(format!("flags: {flag} is not supported")));
    }
    let errno = errno(read.default_errno.as_deref(), read.default_errno_ret).map_err(refuse)?;
    let default = answer(&read.default_action, errno).map_err(refuse)?;
    let mut rules = Vec::new();
    for calls in read.syscalls.into_iter().flatten() {
        rules.extend(all_of(calls).map_err(refuse)?);
    }
    let foreign = foreign(&read.architectures, &read.arch_map);
    Ok(Profile { file: file.into(), default, rules, foreign })
}

/// The further ABIs of this machine that a profile wants filtered along.
fn foreign(architectures: &[String], map: &[ArchMap]) -> Vec<String> {
    let (own, others): (&str, &[&str]) = match cfg!(target_arch = "x86_64") {
        true => ("SCMP_ARCH_X86_64", &["SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        false => ("SCMP_ARCH_AARCH64", &["SCMP_ARCH_ARM"]),
    };
    let mapped = map.iter().filter(|entry| entry.architecture == own);
    let named = mapped.flat_map(|entry| entry.sub_architectures.iter().flatten()).chain(architectures);
    named.filter(|name| others.contains(&name.as_str())).cloned().collect()
}

fn located(file: &str, at: Option<(usize, usize)>, text: &str, why: &str) -> Error {
    Error::Policy { file: file.into(), at, text: text.into(), why: why.into() }
}

fn answer(action: &str, errno: Option<u16>) -> std::result::Result<Answer, String> {
    match action {
        "SCMP_ACT_ALLOW" => Ok(Answer::Allow),
        "SCMP_ACT_LOG" => Ok(Answer::Log),
        "SCMP_ACT_ERRNO" => match errno.unwrap_or(USUAL) {
            // The kernel takes no more (seccomp(2), SECCOMP_RET_ERRNO).
            errno if errno <= 4095 => Ok(Answer::Errno(errno)),
            errno => Err(format!("errnoRet {errno}: at most 4095")),
        },
        "SCMP_ACT_TRAP" => Ok(Answer::Trap),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(Answer::KillThread),
        "SCMP_ACT_KILL_PROCESS" => Ok(Answer::KillProcess),
        "SCMP_ACT_TRACE" => Err("SCMP_ACT_TRACE is not supported: there is no tracer".into()),
        "SCMP_ACT_NOTIFY" => Err("SCMP_ACT_NOTIFY is not supported: nobody is asked about calls here".into()),
        other => Err(format!("{other} is not an action")),
    }
}

/// Podman's word for an error, which wins over a number.
fn errno(name: Option<&str>, number: Option<u16>) -> std::result::Result<Option<u16>, String> {
    match name.filter(|name| !name.is_empty()) {
        None => Ok(number),
        Some(name) => errno::number(name).map(Some).ok_or_else(|| format!("errno {name}: no such error")),
    }
}

/// A rule; one that compares an argument more than once counts where one of its comparisons holds, as with runc and crun,
/// of whose library a rule can hold only one of each.
fn all_of(calls: Calls) -> std::result::Result<Vec<(Applies, Rule)>, String> {
    let (applies, whole) = rule(calls)?;
    let twice = |n: usize| whole.args[..n].iter().any(|other| other.index == whole.args[n].index);
    if !(0..whole.args.len()).any(twice) {
        return Ok(vec![(applies, whole)]);
    }
    let alone = |arg: &Compare| (applies.clone(), Rule { args: vec![*arg], ..whole.clone() });
    Ok(whole.args.iter().map(alone).collect())
}

fn rule(calls: Calls) -> std::result::Result<(Applies, Rule), String> {
    let names: Vec<String> = calls.names.into_iter().chain(calls.name).collect();
    if names.is_empty() {
        return Err("a rule without names".into());
    }
    let answer = answer(&calls.action, errno(calls.errno.as_deref(), calls.errno_ret)?)?;
    let args = calls.args.into_iter().flatten().map(compare).collect::<std::result::Result<Vec<_>, _>>()?;
    let (includes, excludes) = (calls.includes.unwrap_or_default(), calls.excludes.unwrap_or_default());
    let applies = Applies {
        with_caps: includes.caps.unwrap_or_default(),
        without_caps: excludes.caps.unwrap_or_default(),
        on: includes.arches.unwrap_or_default(),
        not_on: excludes.arches.unwrap_or_default(),
        kernel: includes.min_kernel.as_deref().map(kernel).transpose()?,
        before_kernel: excludes.min_kernel.as_deref().map(kernel).transpose()?,
    };
    Ok((applies, Rule { calls: names, args, answer }))
}

/// Of `SCMP_CMP_MASKED_EQ` the value is the mask and the second value what is compared (seccomp_rule_add(3)).
fn compare(arg: Arg) -> std::result::Result<Compare, String> {
    let (mask, op, value) = match arg.op.as_str() {
        "SCMP_CMP_NE" => (u64::MAX, Op::Unequal, arg.value),
        "SCMP_CMP_LT" => (u64::MAX, Op::Less, arg.value),
        "SCMP_CMP_LE" => (u64::MAX, Op::AtMost, arg.value),
        "SCMP_CMP_EQ" => (u64::MAX, Op::Equal, arg.value),
        "SCMP_CMP_GE" => (u64::MAX, Op::AtLeast, arg.value),
        "SCMP_CMP_GT" => (u64::MAX, Op::More, arg.value),
        "SCMP_CMP_MASKED_EQ" => (arg.value, Op::Equal, arg.value_two),
        other => return Err(format!("{other} is not a comparison")),
    };
    match arg.index {
        0..=5 => Ok(Compare { index: arg.index, mask, op, value }),
        index => Err(format!("argument {index}: they are counted from 0 to 5")),
    }
}

fn kernel(text: &str) -> std::result::Result<(u32, u32), String> {
    let parts = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parts.ok_or_else(|| format!("minKernel {text}: not of the form 4.8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse("p.json", text).map_or_else(|error| error.to_string(), |_| "accepted".into())
    }

    #[test]
    fn mobys_profile_is_read_whole() {
        let text = include_str!("../../tests/data/moby-seccomp-default.json");
        let profile = parse("moby", text).expect("a profile");
        assert_eq!(profile.default, Answer::Errno(1));
        assert!(profile.rules.len() > 20);
        let named = |name: &'static str| {
            profile.rules.iter().filter(move |(_, rule)| rule.calls.iter().any(|call| call == name))
        };
        assert_eq!(named("socket").count(), 3);
        let (applies, rule) = named("clone3").find(|(_, rule)| rule.answer == Answer::Errno(38)).expect("clone3");
        assert!(applies.without_caps == ["CAP_SYS_ADMIN"] && rule.args.is_empty());
        assert!(
            named("ptrace")
                .all(|(applies, _)| applies.kernel == Some((4, 8)) || applies.with_caps == ["CAP_SYS_PTRACE"])
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn other_abis_are_named() {
        let text = include_str!("../../tests/data/moby-seccomp-default.json");
        assert_eq!(parse("moby", text).expect("a profile").foreign, ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
        let text =
            "{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"architectures\": [\"SCMP_ARCH_X86_64\", \"SCMP_ARCH_ARM\"]}";
        assert_eq!(parse("p", text).expect("a profile").foreign, Vec::<String>::new());
    }

    #[test]
    fn comparisons_of_one_argument_are_alternatives_and_names_of_errors_count() {
        let arg = |value: u64| format!("{{\"index\": 0, \"value\": {value}, \"op\": \"SCMP_CMP_EQ\"}}");
        let text = format!(
            "{{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": [{{\"names\": [\"read\"], \"errno\": \"ENOSYS\", \
             \"errnoRet\": 1, \"action\": \"SCMP_ACT_ERRNO\", \"args\": [{}, {}]}}]}}",
            arg(0),
            arg(1)
        );
        let profile = parse("p", &text).expect("a profile");
        let found: Vec<_> = profile.rules.iter().map(|(_, rule)| (rule.answer, rule.args[0].value)).collect();
        assert_eq!(found, [(Answer::Errno(38), 0), (Answer::Errno(38), 1)]);
        assert!(error(&text.replace("ENOSYS", "GARBAGE")).contains("no such error"));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let with = |rest: &str| format!("{{\"defaultAction\": \"SCMP_ACT_ERRNO\", {rest}}}");
        let rule = |rest: &str| with(&format!("\"syscalls\": [{{\"names\": [\"read\"], {rest}}}]"));
        for (text, word) in [
            ("{}".into(), "missing field `defaultAction`"),
            ("{\"defaultAction\": 1}".into(), "p.json:1:"),
            (with("\"frob\": 1"), "unknown field `frob`"),
            (with("\"defaultAction\": \"SCMP_ACT_ALLOW\""), "duplicate field"),
            (with("\"listenerPath\": \"/x\""), "listenerPath"),
            (with("\"flags\": [\"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV\"]"), "WAIT_KILLABLE_RECV is not supported"),
            (rule("\"action\": \"SCMP_ACT_NOTIFY\""), "SCMP_ACT_NOTIFY is not supported"),
            (rule("\"action\": \"SCMP_ACT_TRACE\""), "SCMP_ACT_TRACE is not supported"),
            (rule("\"action\": \"ALLOW\""), "ALLOW is not an action"),
            (rule("\"action\": \"SCMP_ACT_ERRNO\", \"errnoRet\": 5000"), "at most 4095"),
            (
                rule(
                    "\"action\": \"SCMP_ACT_ALLOW\", \"args\": [{\"index\": 6, \"value\": 1, \"op\": \"SCMP_CMP_EQ\"}]",
                ),
                "counted from 0 to 5",
            ),
            (
                rule("\"action\": \"SCMP_ACT_ALLOW\", \"args\": [{\"index\": 0, \"value\": 1, \"op\": \"EQ\"}]"),
                "EQ is not a comparison",
            ),
            (rule("\"action\": \"SCMP_ACT_ALLOW\", \"includes\": {\"minKernel\": \"x\"}"), "not of the form"),
        ] {
            assert!(error(&text).contains(word), "{text}: {}", error(&text));
        }
        assert_eq!(error(&with("\"syscalls\": null")), "accepted");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}|[\\[\\]{}a-zA-Z\":, 0-9]{0,80}") {
            let _ = (is_json(&text), parse("p.json", &text));
        }
    }
}
