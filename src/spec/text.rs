//! The small text forms that options and policy keys share: sizes, durations, numbers, names, paths.
//!
//! Strict on purpose: what is not clearly meant is refused with the reason (security.md B1–B16).

pub use super::near::nearest;
use crate::error::{Error, Result};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// A path on this machine, outside the sandbox: absolute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPath(PathBuf);

/// A path inside the sandbox: absolute, without `.`, `..` or doubled slashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InnerPath(PathBuf);

impl HostPath {
    /// Takes an absolute path; `None` for a relative one.
    pub fn new(path: impl Into<PathBuf>) -> Option<HostPath> {
        let path = path.into();
        path.is_absolute().then_some(HostPath(path))
    }

    /// The path itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// A path below this one.
    pub fn join(&self, name: impl AsRef<Path>) -> HostPath {
        HostPath(self.0.join(name))
    }
}

impl InnerPath {
    /// Parses an absolute path; `field` is the option for the error.
    pub fn parse(field: &str, text: impl AsRef<OsStr>) -> Result<InnerPath> {
        let path = Path::new(text.as_ref());
        let refuse = |why: &str| Err(Error::spec(field, path.display(), why));
        if !path.is_absolute() {
            return refuse("a path inside the sandbox starts with /");
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return refuse("a path inside the sandbox may not hold ..");
        }
        if path.as_os_str().as_bytes().contains(&0) {
            return refuse("a path cannot hold a NUL byte");
        }
        if path.as_os_str().len() >= 4096 || path.components().any(|part| part.as_os_str().len() > 255) {
            return refuse("longer than a path can be (4095 bytes, 255 a name)");
        }
        Ok(InnerPath(path.components().collect()))
    }

    /// For paths that the code itself spells.
    pub fn known(path: &'static str) -> InnerPath {
        InnerPath(PathBuf::from(path))
    }

    /// The path itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path as seen from the root: without the leading slash, `.` for the root itself.
    pub fn below_root(&self) -> &Path {
        match self.0.strip_prefix("/") {
            Ok(rest) if !rest.as_os_str().is_empty() => rest,
            _ => Path::new("."),
        }
    }

    /// Whether this is `other` or lies below it.
    pub fn is_below(&self, other: &str) -> bool {
        self.0.starts_with(other)
    }

    /// Whether `*` in it stands for names that have to be looked up.
    pub fn has_pattern(&self) -> bool {
        self.0.as_os_str().as_bytes().contains(&b'*')
    }

    /// How many names it has: mounts are made in this order.
    pub fn depth(&self) -> usize {
        self.0.components().count()
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl fmt::Display for InnerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Who calls, as far as texts depend on it: filled in by `host`, for `spec` looks at nothing itself.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The caller's working directory.
    pub cwd: PathBuf,
    /// The caller's home directory.
    pub home: PathBuf,
    /// The caller's environment.
    pub env: Vec<(OsString, OsString)>,
}

impl Caller {
    /// The caller's value of a variable.
    pub fn var(&self, name: &str) -> Option<&OsStr> {
        self.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str())
    }

    /// Where the caller's programs keep data (XDG Base Directory Specification).
    pub fn data_home(&self) -> PathBuf {
        let named = self.var("XDG_DATA_HOME").map(Path::new).filter(|path| path.is_absolute());
        named.map_or_else(|| self.home.join(".local/share"), Path::to_owned)
    }

    /// A host path as typed: absolute, or from the working directory (`.`…), or from the home (`~`, `~/…`).
    pub fn host_path(&self, field: &str, text: impl AsRef<OsStr>) -> Result<HostPath> {
        let text = text.as_ref();
        let path = Path::new(text);
        if text.is_empty() {
            return Err(Error::spec(field, "", "an empty path"));
        }
        if text.as_bytes().contains(&0) {
            return Err(Error::spec(field, path.display(), "a path cannot hold a NUL byte"));
        }
        let full = match path.strip_prefix("~") {
            Ok(rest) => self.home.join(rest),
            Err(_) => self.cwd.join(path),
        };
        let clean: PathBuf = full.components().collect();
        HostPath::new(clean).ok_or_else(|| Error::spec(field, path.display(), "not an absolute path"))
    }
}

/// A path without `..`, each understood as it is spelled.
pub(crate) fn spelled(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
        path
    })
}

/// A whole number in ASCII digits, no sign, no leading zero.
pub fn number(field: &str, text: &str) -> Result<u64> {
    let refuse = |why: &str| Err(Error::spec(field, text, why));
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return refuse("not a whole number (digits 0 to 9 only)");
    }
    if text.len() > 1 && text.starts_with('0') {
        return refuse("a number does not start with 0");
    }
    text.parse().or_else(|_| refuse("larger than 18446744073709551615"))
}

/// A user or group id: [`number`] below 4294967295, which the kernel keeps for "no change".
pub fn id(field: &str, text: &str) -> Result<u32> {
    match number(field, text)? {
        n if n < u64::from(u32::MAX) => Ok(n as u32),
        _ => Err(Error::spec(field, text, "an id is at most 4294967294")),
    }
}

/// A size in bytes: `512M`, `512m`, `1.5G`, `65536`; powers of 1024; more than 0.
pub fn size(field: &str, text: &str) -> Result<u64> {
    let refuse = |why: &str| Error::spec(field, text, why).or_try("write it like 65536, 512M or 1.5G");
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(refuse("not a size")),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || (digits.contains('.') && (fraction.is_empty() || shift == 0)) || fraction.len() > 6 {
        return Err(refuse("not a size"));
    }
    let whole: u64 = whole.parse().map_err(|_| refuse("not a size"))?;
    let part = match fraction {
        "" => 0,
        _ => {
            let value: u128 = fraction.parse().map_err(|_| refuse("not a size"))?;
            ((value << shift) / 10u128.pow(fraction.len() as u32)) as u64
        }
    };
    let bytes = whole.checked_mul(1 << shift).and_then(|b| b.checked_add(part)).filter(|&b| b <= i64::MAX as u64);
    match bytes {
        Some(0) => Err(refuse("a size of 0")),
        Some(bytes) => Ok(bytes),
        None => Err(refuse("larger than the kernel can count (8 EiB)")),
    }
}

/// A size as people write it: `512M`, or with one digit behind the point where it is no whole number of its unit.
pub fn shown_size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        None => bytes.to_string(),
        Some((shift, unit)) if bytes & ((1 << shift) - 1) == 0 => format!("{}{unit}", bytes >> shift),
        Some((shift, unit)) => format!("{:.1}{unit}", bytes as f64 / (1u64 << shift) as f64),
    }
}

/// A duration: `90` (seconds), `1m30s`, `2h`, `500ms`; more than 0, at most ten years.
pub fn duration(field: &str, text: &str) -> Result<Duration> {
    let refuse = |why: &str| Error::spec(field, text, why).or_try("write it like 90, 1m30s or 2h");
    let mut total: u64 = 0;
    let mut rest = text;
    let mut smallest = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (count, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "" if smallest == u64::MAX && after.is_empty() => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(refuse("not a duration")),
        };
        if millis >= smallest {
            return Err(refuse("units of a duration go from large to small, each once"));
        }
        smallest = millis;
        let count: u64 = count.parse().map_err(|_| refuse("not a duration"))?;
        total = count.checked_mul(millis).and_then(|t| total.checked_add(t)).ok_or_else(|| refuse("too long"))?;
        rest = after;
    }
    match total {
        0 => Err(refuse("a duration of 0")),
        t if t > 315_360_000_000 => Err(refuse("longer than ten years")),
        t => Ok(Duration::from_millis(t)),
    }
}

/// A sandbox's name: 1 to 64 of `[A-Za-z0-9][A-Za-z0-9_.-]*`.
pub fn name(field: &str, text: &str) -> Result<String> {
    let refuse = |why: &str| Err(Error::spec(field, text, why).or_try("use letters, digits, _ . and -, such as web-1"));
    match text.as_bytes() {
        [] => refuse("an empty name"),
        [first, ..] if !first.is_ascii_alphanumeric() => refuse("a name starts with a letter or a digit"),
        bytes if bytes.len() > 64 => refuse("a name has at most 64 characters"),
        bytes if bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b)) => Ok(text.to_owned()),
        _ => refuse("a name holds only letters, digits, _ . and -"),
    }
}

/// A host name: 1 to 63 bytes of letters, digits, `.` and `-`. The kernel allows 64 bytes of anything,
/// but programs that print it should not meet control characters (B15).
pub fn hostname(field: &str, text: &str) -> Result<String> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    match text.as_bytes() {
        [] => Err(Error::spec(field, text, "an empty host name")),
        bytes if bytes.len() > 63 => Err(Error::spec(field, text, "a host name has at most 63 characters")),
        [b'-', ..] => Err(Error::spec(field, text, "a host name does not start with -")),
        bytes if bytes.iter().all(|&b| fine(b)) => Ok(text.to_owned()),
        _ => Err(Error::spec(field, text, "a host name holds only letters, digits, _ . and -")),
    }
}

/// One of a fixed list of words.
pub fn word<T: Copy>(field: &str, text: &str, known: &[(&str, T)]) -> Result<T> {
    known.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        Error::spec(field, text, "not one of its values").or_try(words.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let size = |text| size("--mem", text);
        assert_eq!(size("65536"), Ok(65536));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("1.5G"), Ok(3 << 29));
        for bad in
            ["", "0", "-1", "512X", "1e9G", "０５", ".5G", "1.G", "1.5", "18446744073709551616", "9999999T", " 1"]
        {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        let duration = |text| duration("--timeout", text).map(|d| d.as_millis());
        assert_eq!(duration("90"), Ok(90_000));
        assert_eq!(duration("1m30s"), Ok(90_000));
        assert_eq!(duration("2h"), Ok(7_200_000));
        assert_eq!(duration("250ms"), Ok(250));
        for bad in ["", "0", "0s", "-1", "1s1m", "1m1m", "5x", "1.5h", "99999999999999999999h", "9999999999999h", "11y"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_never_wrapped() {
        let id = |text| id("--user", text);
        assert_eq!(id("0"), Ok(0));
        assert_eq!(id("4294967294"), Ok(4_294_967_294));
        for bad in ["4294967295", "4294967296", "01", "-1", "+1", " 1", "", "1:"] {
            assert!(id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names() {
        for good in ["a", "web-1", "0.x_y", &"n".repeat(64)] {
            assert!(name("--name", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-a", "a b", "a\n", "ä", "\u{202e}a", &"n".repeat(65)] {
            assert!(name("--name", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn inner_paths_are_absolute_and_clean() {
        let inner = |text: &str| InnerPath::parse("-v", text).map(|p| p.to_string());
        assert_eq!(inner("/a//b/./c/"), Ok("/a/b/c".into()));
        for bad in ["", "a", "./a", "/a/../b", "/a\0b", &format!("/{}", "n".repeat(256))] {
            assert!(inner(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC{0,24}|[0-9a-zA-Z.:~/-]{0,24}") {
            let caller = Caller { cwd: "/c".into(), home: "/h".into(), env: Vec::new() };
            let _ = (size("f", &text), duration("f", &text), id("f", &text), name("f", &text));
            let _ = (hostname("f", &text), InnerPath::parse("f", &text), caller.host_path("f", &text));
        }
    }
}
