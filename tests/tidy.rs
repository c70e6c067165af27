//! Reads the sources and holds the house: layers, unsafe, purity, printing, sizes, unfinished work, documents.
//!
//! Each rule is a function from a `Source` to its findings, and is seen to fail once on a small string at the end of
//! this file. A rule looks at `code`: the text with comments and literals blanked, byte for byte, so that positions in
//! it are positions in `text`; `body` is `code` without what is marked `#[cfg(test)]`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 60;

/// The layers, low to high: a module uses only what stands on a lower line, or on its own if there is no way back.
const LAYERS: [&[&str]; 9] = [
    &["error"],
    &["sys"],
    &["spec"],
    &["host"],
    &["plan"],
    &["cgroup", "state", "net", "image"],
    &["launch"],
    &["front"],
    &["hint", "cli", "main"],
];

/// Modules of the binary: they talk to people and read the environment.
const SPEAKERS: [&str; 3] = ["cli", "hint", "main"];

/// What runs between clone and exec.
const CHILD_FILES: [&str; 2] = ["src/launch/child.rs", "src/launch/init.rs"];
const CHILD_LINTS: &str = "#![deny(clippy::disallowed_types,clippy::disallowed_methods,clippy::disallowed_macros)]";

/// Where the policy keys are: the fields of the structs in this file.
const POLICY_SOURCE: &str = "src/spec/layer.rs";

// --- Sources ---

struct Source {
    path: String,
    text: String,
    code: String,
    body: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = blank_words(text);
        let body = blank(&code, &test_items(&code));
        Self { path: path.into(), text: text.into(), code, body }
    }

    /// The first folder or file below src: `spec` of src/spec/mount.rs, `error` of src/error.rs.
    fn module(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below.split('/').next().unwrap_or(below).trim_end_matches(".rs")
    }

    fn at(&self, position: usize, finding: &str) -> String {
        format!("{}:{}: {finding}", self.path, line_of(&self.text, position))
    }
}

fn line_of(text: &str, position: usize) -> usize {
    1 + text.as_bytes()[..position].iter().filter(|byte| **byte == b'\n').count()
}

fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file below `folder`, as paths from the root of the tree.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type().expect("the kind of a directory entry");
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                found.push(relative(&path));
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("a path below the root").to_string_lossy().into_owned()
}

/// The program's own sources; files that hold only tests are left out.
fn sources() -> Vec<Source> {
    let sources: Vec<_> = files("src")
        .iter()
        .filter(|path| path.ends_with(".rs") && !path.ends_with("/tests.rs") && !path.contains("/tests/"))
        .map(|path| Source::new(path, &read(path)))
        .collect();
    assert!(!sources.is_empty(), "no sources below {}", root().display());
    sources
}

fn hold(rule: impl Fn(&Source) -> Vec<String>) {
    tell(sources().iter().flat_map(rule).collect());
}

fn tell(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

// --- Scanning ---

/// Blanks comments, strings and characters.
fn blank_words(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = word_end(text, at);
        if end > at {
            ranges.push(at..end);
        }
        at = end.max(at + 1);
    }
    blank(text, &ranges)
}

/// The end of the comment or literal that starts at `at`, or `at` if none does.
fn word_end(text: &str, at: usize) -> usize {
    let rest = &text.as_bytes()[at..];
    let after_name = at > 0 && is_name(text.as_bytes()[at - 1]);
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + comment_length(rest),
        [b'r', b'"' | b'#', ..] if !after_name => at + raw_length(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !after_name => at + raw_length(rest, 2),
        [b'"', ..] => at + quoted_length(rest),
        [b'\'', ..] => at + character_length(rest),
        _ => at,
    }
}

/// Block comments nest.
fn comment_length(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// A raw string whose `r` is followed by the hashes at `start`; a raw name such as `r#type` is none.
fn raw_length(rest: &[u8], start: usize) -> usize {
    let hashes = rest[start..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(start + hashes) != Some(&b'"') {
        return 0;
    }
    let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let inner = start + hashes + 1;
    let end = rest[inner..].windows(close.len()).position(|window| window == close);
    end.map_or(rest.len(), |end| inner + end + close.len())
}

fn quoted_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// A character; nothing for a lifetime or a label.
fn character_length(rest: &[u8]) -> usize {
    let close = |from: usize| rest.iter().skip(from).position(|byte| *byte == b'\'').map(|end| from + end + 1);
    match rest {
        [_, b'\\', ..] => close(3).unwrap_or(rest.len()),
        // One character of UTF-8 is its first byte and those that go on.
        [_, _, more @ ..] => {
            let end = 2 + more.iter().take_while(|byte| (0x80..0xc0).contains(*byte)).count();
            if rest.get(end) == Some(&b'\'') { end + 1 } else { 0 }
        }
        _ => 0,
    }
}

fn blank(text: &str, ranges: &[Range<usize>]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for range in ranges {
        for byte in &mut bytes[range.clone()] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }
    String::from_utf8(bytes).expect("whole literals are blanked")
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The name that starts at `at`.
fn name_at(code: &str, at: usize) -> &str {
    let length = code.as_bytes()[at..].iter().take_while(|byte| is_name(**byte)).count();
    &code[at..at + length]
}

/// Where `word` stands in `code` and is not part of a longer name.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = *at == 0 || !is_name(bytes[at - 1]);
        let after = bytes.get(at + word.len()).is_none_or(|byte| !is_name(*byte));
        before && after
    })
}

fn skip_space(code: &str, at: usize) -> usize {
    at + code.as_bytes()[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// The position after the brace that closes the one at `open`.
fn close_of(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (n, byte) in code.as_bytes()[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return open + n + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// The first `{` or `;` from `at` on that stands in no parentheses or brackets.
fn body_or_end(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (n, byte) in code.as_bytes()[at..].iter().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' | b';' if depth == 0 => return Some(at + n),
            _ => {}
        }
    }
    None
}

/// Where the items marked `#[cfg(test)]` stand.
fn test_items(code: &str) -> Vec<Range<usize>> {
    let mark = "#[cfg(test)]";
    code.match_indices(mark)
        .map(|(at, _)| {
            let end = match body_or_end(code, at + mark.len()) {
                Some(open) if code.as_bytes()[open] == b'{' => close_of(code, open),
                Some(end) => end + 1,
                None => code.len(),
            };
            at..end
        })
        .collect()
}

/// The names that follow `start::`, also in braces: `start::{a, b::c}` gives a and b.
fn followers<'a>(code: &'a str, start: &str) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    for at in words(code, start) {
        let Some(path) = code[at + start.len()..].trim_start().strip_prefix("::") else {
            continue;
        };
        let next = skip_space(code, code.len() - path.len());
        if code.as_bytes().get(next) == Some(&b'{') {
            found.extend(members(code, next).map(|name| (name, name_at(code, name))));
        } else {
            found.push((next, name_at(code, next)));
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

/// Where the members of the braces at `open` start.
fn members(code: &str, open: usize) -> impl Iterator<Item = usize> + '_ {
    let mut depth = 0;
    let starts = code.as_bytes()[open..close_of(code, open)].iter().enumerate().filter_map(move |(n, byte)| {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        (matches!(byte, b'{' | b',') && depth == 1).then_some(open + n + 1)
    });
    starts.map(|start| skip_space(code, start))
}

// --- Rules on one source ---

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The modules of the crate that `source` names: by `crate::`, and by a chain of `super::` that leaves its folder.
fn uses(source: &Source) -> Vec<(usize, &str)> {
    let below = source.path.strip_prefix("src/").unwrap_or(&source.path);
    let depth = below.trim_end_matches(".rs").trim_end_matches("/mod").split('/').count();
    let chain = vec!["super"; depth].join("::");
    let mut found = followers(&source.body, "crate");
    found.extend(followers(&source.body, &chain).into_iter().filter(|(_, name)| layer(name).is_some()));
    found
}

fn imports_point_up(source: &Source) -> Vec<String> {
    let own = source.module();
    if own == "lib" {
        return Vec::new();
    }
    let Some(rank) = layer(own) else {
        return vec![source.at(0, &format!("`{own}` stands in no layer (LAYERS in tests/tidy.rs)"))];
    };
    let too_high = |name: &str| layer(name).is_some_and(|other| other > rank) || (own, name) == ("spec", "sys");
    let uses = uses(source).into_iter().filter(|(_, name)| *name != own && too_high(name));
    uses.map(|(at, name)| source.at(at, &format!("`{own}` may not use `{name}`"))).collect()
}

fn unsafe_only_in_sys(source: &Source) -> Vec<String> {
    if source.module() == "sys" {
        return Vec::new();
    }
    let places = ["unsafe", "unsafe_code"].into_iter().flat_map(|word| words(&source.code, word));
    places
        .filter(|at| !source.code[..*at].ends_with("forbid("))
        .map(|at| source.at(at, "unsafe outside src/sys"))
        .collect()
}

fn data_is_pure(source: &Source) -> Vec<String> {
    if !["spec", "plan"].contains(&source.module()) {
        return Vec::new();
    }
    let names = followers(&source.body, "std").into_iter();
    names
        .filter(|(_, name)| ["fs", "env", "process"].contains(name))
        .map(|(at, name)| source.at(at, &format!("std::{name} in `{}`, which is pure", source.module())))
        .collect()
}

fn library_is_silent(source: &Source) -> Vec<String> {
    if SPEAKERS.contains(&source.module()) {
        return Vec::new();
    }
    let printers = ["print", "println", "eprint", "eprintln", "dbg"];
    let places = printers.into_iter().flat_map(|name| words(&source.body, name).map(move |at| (at, name)));
    places
        .filter(|(at, name)| source.body[at + name.len()..].starts_with('!'))
        .map(|(at, name)| source.at(at, &format!("{name}! in the library; only `cli` prints")))
        .collect()
}

/// Files that name the environment without using what stands in it: where the arguments lie, to overwrite them;
/// and the switch of test builds that leaves a protection off.
const ENVIRONMENT_UNREAD: [&str; 2] = ["src/sys/process.rs", "src/sys/mod.rs"];

fn environment_is_read_by_host_and_cli(source: &Source) -> Vec<String> {
    if ENVIRONMENT_UNREAD.contains(&source.path.as_str()) {
        return Vec::new();
    }
    if SPEAKERS.contains(&source.module()) || source.module() == "host" {
        return Vec::new();
    }
    let names = followers(&source.body, "std")
        .into_iter()
        .filter(|(at, name)| *name == "env" && !source.body[at + name.len()..].starts_with("::consts"));
    let calls = ["getenv", "secure_getenv", "environ"].into_iter().flat_map(|word| words(&source.body, word));
    let places = names.map(|(at, _)| at).chain(calls);
    places.map(|at| source.at(at, "reads the environment; only `host` and `cli` do")).collect()
}

fn file_is_short(source: &Source) -> Vec<String> {
    let lines = source.code.lines().count();
    let in_tests: usize = test_items(&source.code).into_iter().map(|range| source.code[range].lines().count()).sum();
    let lines = lines.saturating_sub(in_tests);
    if lines <= FILE_LINES {
        return Vec::new();
    }
    vec![source.at(0, &format!("{lines} lines without tests, of at most {FILE_LINES}"))]
}

fn functions_are_short(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    for at in words(&source.body, "fn") {
        let name = name_at(&source.body, skip_space(&source.body, at + 2));
        let Some(open) = body_or_end(&source.body, at) else {
            continue;
        };
        // A type such as `fn(u8)` has no name, a declaration no body.
        if name.is_empty() || source.body.as_bytes()[open] == b';' {
            continue;
        }
        let lines = source.body[at..close_of(&source.body, open)].lines().count();
        if lines > FUNCTION_LINES {
            findings.push(source.at(at, &format!("`{name}` has {lines} lines, of at most {FUNCTION_LINES}")));
        }
    }
    findings
}

fn nothing_is_unfinished(source: &Source) -> Vec<String> {
    // In two pieces, so that this file passes.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let macros = [concat!("to", "do"), concat!("unimpl", "emented")];
    let marks = marks.into_iter().flat_map(|word| words(&source.text, word));
    let macros = macros
        .into_iter()
        .flat_map(|word| words(&source.code, word).filter(move |at| source.code[at + word.len()..].starts_with('!')));
    marks.chain(macros).map(|at| source.at(at, "unfinished work")).collect()
}

fn head_tells_the_job(source: &Source) -> Vec<String> {
    if source.text.starts_with("//!") {
        return Vec::new();
    }
    vec![source.at(0, "the first line is no head comment (//!)")]
}

fn child_allocates_nothing(source: &Source) -> Vec<String> {
    let attributes: String = source.code.split_whitespace().collect();
    if !CHILD_FILES.contains(&source.path.as_str()) || attributes.contains(CHILD_LINTS) {
        return Vec::new();
    }
    vec![source.at(0, &format!("lacks {CHILD_LINTS}"))]
}

// --- Rules on all sources ---

/// Modules of one layer that use each other in a circle.
fn circles(sources: &[Source]) -> Vec<String> {
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in sources {
        let same = |name: &&str| *name != source.module() && layer(name) == layer(source.module());
        let names = uses(source).into_iter().map(|(_, name)| name).filter(same);
        edges.entry(source.module()).or_default().extend(names);
    }
    let starts = edges.keys().filter(|start| reaches(&edges, start, start));
    starts.map(|start| format!("src/{start}: uses a module of its layer that uses it")).collect()
}

fn reaches(edges: &BTreeMap<&str, BTreeSet<&str>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        for follower in edges.get(module).into_iter().flatten() {
            if *follower == to {
                return true;
            }
            if seen.insert(*follower) {
                next.push(follower);
            }
        }
    }
    false
}

// --- Documents ---

/// The text of a man page as it is read.
fn man_text(page: &str) -> String {
    page.replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace("\\fP", "")
}

/// The long flags in a help text.
fn long_flags(help: &str) -> BTreeSet<String> {
    let is_flag = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let starts = help.match_indices("--").map(|(at, _)| at).filter(|at| *at == 0 || !is_flag(help.as_bytes()[at - 1]));
    let flags = starts.map(|at| {
        let length = help.as_bytes()[at..].iter().take_while(|byte| is_flag(**byte)).count();
        help[at..at + length].trim_end_matches('-').to_owned()
    });
    flags.filter(|flag| flag.len() > 2).collect()
}

/// Which of `wanted` do not stand in `text` as whole words; `-` is part of a word.
fn missing(wanted: &BTreeSet<String>, text: &str) -> Vec<String> {
    let is_word = |byte: Option<&u8>| byte.is_some_and(|byte| is_name(*byte) || *byte == b'-');
    let stands = |word: &String| {
        text.match_indices(word.as_str()).any(|(at, _)| {
            let before = at.checked_sub(1).and_then(|at| text.as_bytes().get(at));
            !is_word(before) && !is_word(text.as_bytes().get(at + word.len()))
        })
    };
    wanted.iter().filter(|word| !stands(word)).cloned().collect()
}

fn help_of(arguments: &[&str]) -> String {
    let program = std::env::var_os("SBX_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_sbx").into());
    let output = Command::new(program).args(arguments).output().expect("start sbx");
    assert!(output.status.success(), "sbx {arguments:?} ended with {}", output.status);
    String::from_utf8(output.stdout).expect("help in UTF-8")
}

/// The keys of a policy file: the public fields of the structs in `POLICY_SOURCE`, by the name serde gives them.
/// This is the one place to change when the keys come to live elsewhere.
fn policy_keys(source: &Source) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for at in words(&source.body, "struct") {
        let Some(open) = body_or_end(&source.body, at).filter(|open| source.body.as_bytes()[*open] == b'{') else {
            continue;
        };
        let kebab = attributes_before(source, at).contains("rename_all = \"kebab-case\"");
        for field in fields(&source.body[..close_of(&source.body, open)], open) {
            let attributes = attributes_before(source, field);
            if !attributes.contains("skip") && !attributes.contains("flatten") {
                // A raw name, `r#type`, is the key `type`.
                let field = if source.body[field..].starts_with("r#") { field + 2 } else { field };
                keys.insert(key_of(name_at(&source.body, field), &attributes, kebab));
            }
        }
    }
    keys
}

/// Where the names of the public fields of the struct at `open` start.
fn fields(code: &str, open: usize) -> Vec<usize> {
    let publics = words(&code[open..], "pub").map(|at| open + at + 3);
    publics
        .map(|at| if code[at..].starts_with('(') { at + code[at..].find(')').map_or(0, |end| end + 1) } else { at })
        .map(|at| skip_space(code, at))
        .filter(|at| !name_at(code, *at).is_empty())
        .collect()
}

/// The text between the item at `at` and the one before it.
fn attributes_before(source: &Source, at: usize) -> String {
    let mut depth = 0_i32;
    let start = source.code.as_bytes()[..at].iter().rposition(|byte| {
        match byte {
            b')' | b']' => depth += 1,
            b'(' | b'[' => depth -= 1,
            _ => {}
        }
        depth == 0 && matches!(byte, b',' | b'{' | b'}' | b';')
    });
    let lines = source.text[start.map_or(0, |start| start + 1)..at].lines();
    lines.filter(|line| !line.trim_start().starts_with("//")).collect()
}

fn key_of(field: &str, attributes: &str, kebab: bool) -> String {
    let renamed = attributes.split_once("rename = \"").and_then(|(_, rest)| rest.split_once('"'));
    match renamed {
        Some((name, _)) => name.to_owned(),
        None if kebab => field.replace('_', "-"),
        None => field.to_owned(),
    }
}

// --- The house as it stands ---

#[test]
fn imports_only_point_up_the_layers() {
    hold(imports_point_up);
    tell(circles(&sources()));
}

#[test]
fn unsafe_stands_only_in_sys() {
    hold(unsafe_only_in_sys);
}

#[test]
fn spec_and_plan_touch_nothing_outside() {
    hold(data_is_pure);
}

#[test]
fn the_library_never_prints() {
    hold(library_is_silent);
}

#[test]
fn only_host_and_cli_read_the_environment() {
    hold(environment_is_read_by_host_and_cli);
}

#[test]
fn files_and_functions_are_short() {
    hold(file_is_short);
    hold(functions_are_short);
}

#[test]
fn every_file_tells_its_job() {
    hold(head_tells_the_job);
}

#[test]
fn the_childs_files_deny_what_allocates() {
    hold(child_allocates_nothing);
    let present: BTreeSet<_> = files("src").into_iter().collect();
    let absent = CHILD_FILES.iter().filter(|path| !present.contains(**path));
    tell(absent.map(|path| format!("{path}: not there, so nothing holds its rule")).collect());
}

#[test]
fn no_work_is_left_unfinished() {
    let folders = ["src", "tests", "benches", "man", "policies"];
    let paths = folders.into_iter().flat_map(files).chain(["Cargo.toml".to_owned()]);
    let texts = paths.filter_map(|path| Some(Source::new(&path, &fs::read_to_string(root().join(&path)).ok()?)));
    tell(texts.flat_map(|source| nothing_is_unfinished(&source)).collect());
}

#[test]
fn every_long_flag_stands_in_the_man_page() {
    let helps = [&["--help"][..], &["run", "--help"], &["logs", "--help"], &["attach", "--help"], &["check", "--help"]];
    let flags: BTreeSet<String> = helps.into_iter().flat_map(|words| long_flags(&help_of(words))).collect();
    assert!(!flags.is_empty(), "sbx run --help names no flag");
    let missing = missing(&flags, &man_text(&read("man/sbx.1")));
    tell(missing.into_iter().map(|flag| format!("man/sbx.1: lacks {flag}")).collect());
}

#[test]
fn every_policy_key_stands_in_its_man_page() {
    let keys = policy_keys(&Source::new(POLICY_SOURCE, &read(POLICY_SOURCE)));
    assert!(!keys.is_empty(), "no policy key found in {POLICY_SOURCE}");
    let missing = missing(&keys, &man_text(&read("man/sbx-policy.5")));
    tell(missing.into_iter().map(|key| format!("man/sbx-policy.5: lacks {key}")).collect());
}

// --- The rules themselves ---

/// `rule` finds something in `bad` as a file at `path`, and nothing in `good`.
fn bites(rule: fn(&Source) -> Vec<String>, path: &str, bad: &str, good: &str) {
    assert!(!rule(&Source::new(path, bad)).is_empty(), "passed: {bad}");
    assert_eq!(rule(&Source::new(path, good)), Vec::<String>::new(), "found in: {good}");
}

#[test]
fn comments_and_literals_are_blanked() {
    let text = "a/*x/*y*/z*/b //c\n'd' '\\'' 'ü' \"e\\\"f\" r#\"g\"h\"# b\"i\" c\"j\" &'k l 'm: r#type";
    let code = blank_words(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "b", "c", "&'k", "l", "'m:", "r#type"]);
}

#[test]
fn tests_are_cut_out() {
    let source =
        Source::new("src/a.rs", "use a;\n#[cfg(test)]\nmod tests {\n { bad }\n}\n#[cfg(test)] use bad;\nfn b() {}");
    assert!(!source.body.contains("bad") && source.body.contains("fn b"));
}

#[test]
fn a_finding_names_file_and_line() {
    let findings = unsafe_only_in_sys(&Source::new("src/plan/mod.rs", "//! Plans.\n\nfn a() { unsafe {} }"));
    assert_eq!(findings, ["src/plan/mod.rs:3: unsafe outside src/sys"]);
}

#[test]
fn imports_bite() {
    let rule = imports_point_up;
    bites(rule, "src/spec/mount.rs", "use crate::plan::Plan;", "use crate::error::Error; use crate::spec::Spec;");
    bites(
        rule,
        "src/spec/mount.rs",
        "use crate::{error::Error, host};",
        "// use crate::plan;\n#[cfg(test)] use crate::plan;",
    );
    bites(rule, "src/spec/mount.rs", "fn a(p: &crate::launch::Script) {}", "const A: &str = \"crate::launch\";");
    bites(rule, "src/spec/mod.rs", "use super::host::Host;", "use self::mount::Mount;");
    bites(rule, "src/spec/mount.rs", "use super::super::host::Host;", "use super::Spec;");
    bites(rule, "src/spec/mod.rs", "use crate::sys::Errno;", "use crate::error::Error;");
    bites(rule, "src/error.rs", "use crate::sys::Errno;", "use std::fmt;");
    bites(rule, "src/net/relay.rs", "use crate::launch::Script;", "use crate::state::Record;");
    bites(rule, "src/launch/mod.rs", "use crate::front::policy;", "use crate::{net, cgroup, state::Record};");
    assert_eq!(rule(&Source::new("src/helpers.rs", "")).len(), 1, "a module of no layer");
}

#[test]
fn circles_bite() {
    let net = Source::new("src/net/mod.rs", "use crate::state::Record;");
    let state = Source::new("src/state/mod.rs", "use crate::image::Store;");
    let image = Source::new("src/image/mod.rs", "use crate::net::Relay;");
    assert_eq!(circles(&[net, state]), Vec::<String>::new());
    let net = Source::new("src/net/mod.rs", "use crate::state::Record;");
    let state = Source::new("src/state/mod.rs", "use crate::image::Store;");
    assert_eq!(circles(&[net, state, image]).len(), 3);
}

#[test]
fn unsafe_bites() {
    bites(unsafe_only_in_sys, "src/host/mod.rs", "fn a() { unsafe { b() } }", "// unsafe\nconst A: &str = \"unsafe\";");
    bites(unsafe_only_in_sys, "src/host/mod.rs", "#![allow(unsafe_code)]", "#![forbid(unsafe_code)]");
}

#[test]
fn purity_bites() {
    bites(data_is_pure, "src/plan/mod.rs", "use std::{fmt, fs};", "use std::{fmt, path::{Path, fs}};");
    bites(data_is_pure, "src/spec/mod.rs", "fn a() { std::env::var(B) }", "#[cfg(test)] mod tests { use std::fs; }");
}

#[test]
fn silence_bites() {
    bites(library_is_silent, "src/launch/mod.rs", "fn a() { println!(B) }", "/// println!(B)\nfn println() {}");
    bites(library_is_silent, "src/sys/mod.rs", "fn a() { dbg!(b) }", "fn a() { sprintln!(b) }");
}

#[test]
fn environment_bites() {
    let rule = environment_is_read_by_host_and_cli;
    bites(rule, "src/state/mod.rs", "fn a() { std::env::var_os(B) }", "const A: &str = std::env::consts::ARCH;");
    bites(rule, "src/net/mod.rs", "use std::{env, io};", "use std::{io::{env}};");
    bites(rule, "src/sys/net.rs", "fn a() { libc::getenv(b) }", "const A: &str = env!(B);");
}

#[test]
fn sizes_bite() {
    let lines = |count: usize| "a;\n".repeat(count);
    bites(
        file_is_short,
        "src/sys/fs.rs",
        &lines(501),
        &format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", lines(500), lines(90)),
    );
    let function = |count: usize| format!("fn a(b: [u8; 2]) -> u8 {{\n{}}}\n", lines(count));
    bites(functions_are_short, "src/sys/fs.rs", &function(59), &function(58));
    bites(
        functions_are_short,
        "src/sys/fs.rs",
        &format!("impl A {{ {} }}", function(59)),
        &format!("fn a(b: fn(u8));\n{}", lines(70)),
    );
}

#[test]
fn unfinished_work_bites() {
    let (mark, call) = (concat!("// TO", "DO: later"), concat!("to", "do!()"));
    bites(nothing_is_unfinished, "src/a.rs", mark, "mktemp(XXXXXX)");
    bites(nothing_is_unfinished, "src/a.rs", &format!("fn a() {{ {call} }}"), "fn a(todo: u8) {}");
}

#[test]
fn heads_bite() {
    bites(head_tells_the_job, "src/a.rs", "use std::fmt;\n//! Late.", "//! Reads.\nuse std::fmt;");
    let good = "//! Runs.\n#![deny(\n    clippy::disallowed_types,\n    clippy::disallowed_methods,\n    clippy::disallowed_macros\n)]";
    bites(child_allocates_nothing, "src/launch/child.rs", "//! Runs.\n#![deny(clippy::disallowed_types)]", good);
}

#[test]
fn flags_are_found_and_missed() {
    let flags = long_flags("  -v, --volume SRC\n  --no-tty --rw[=X]\n a--b -- ---\n");
    assert_eq!(flags.iter().map(String::as_str).collect::<Vec<_>>(), ["--no-tty", "--rw", "--volume"]);
    let page = man_text("\\fB\\-\\-volume\\fR, \\-\\-no\\-tty=X, \\-\\-rw\\-all");
    assert_eq!(missing(&flags, &page), ["--rw"]);
}

#[test]
fn policy_keys_are_found() {
    let text = "/// A, b.\n#[derive(A, B)]\n#[serde(rename_all = \"kebab-case\", deny_unknown_fields)]\npub struct Layer {\n\
        /// pub c: d,\npub read_only: Option<Vec<(u8, u8)>>,\n#[serde(rename = \"volume\", default)]\npub volumes: A,\n\
        #[serde(skip)]\npub(crate) origin: B,\n}\nstruct Pair(pub u8);\npub struct Limits { pub max_size: u8 }";
    let keys = policy_keys(&Source::new(POLICY_SOURCE, text));
    assert_eq!(keys.iter().map(String::as_str).collect::<Vec<_>>(), ["max_size", "read-only", "volume"]);
}
