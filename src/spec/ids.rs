//! Users, groups, and the maps between the ids inside and those outside.

use super::text::{id, number};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A user id inside the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct InnerUid(pub u32);

/// A group id inside the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct InnerGid(pub u32);

/// A user id outside the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct HostUid(pub u32);

/// A group id outside the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct HostGid(pub u32);

/// One line of a uid_map or gid_map (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First id inside.
    pub inner: u32,
    /// First id outside.
    pub outer: u32,
    /// How many, at least 1.
    pub count: u32,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "{} is {}", self.inner, self.outer),
            n => write!(f, "{}-{} is {}-{}", self.inner, self.inner + (n - 1), self.outer, self.outer + (n - 1)),
        }
    }
}

/// What `--map` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Map {
    /// Chosen by what ROOTFS and `--user` are.
    #[default]
    Auto,
    /// One id: 0 inside is the caller.
    Root,
    /// The caller keeps its own ids.
    Keep,
    /// 0 is the caller, 1 and up the subordinate range.
    Full,
    /// As written, for users and groups alike.
    Explicit(Vec<Extent>),
}

/// The kernel takes at most 340 lines (Linux 4.15).
pub const MAX_EXTENTS: usize = 340;
/// And less than a page of text (user_namespaces(7)).
const MAX_TEXT: usize = 4095;

impl Map {
    /// Parses the values of all `--map` options of one layer.
    pub fn parse(texts: &[String]) -> Result<Map> {
        const FIELD: &str = "--map";
        match texts {
            [] => Ok(Map::Auto),
            [one] if !one.contains(':') => super::text::word(FIELD, one, &WORDS).map(|index| MAPS[index].clone()),
            many => {
                let extents: Vec<Extent> = many.iter().map(|text| extent(FIELD, text)).collect::<Result<_>>()?;
                check(FIELD, &extents)?;
                Ok(Map::Explicit(extents))
            }
        }
    }
}

const WORDS: [(&str, usize); 4] = [("auto", 0), ("root", 1), ("keep", 2), ("full", 3)];
const MAPS: [Map; 4] = [Map::Auto, Map::Root, Map::Keep, Map::Full];

fn extent(field: &str, text: &str) -> Result<Extent> {
    let form =
        || Error::spec(field, text, "not auto, root, keep, full or INNER:OUTER:COUNT").or_try("--map 0:100000:65536");
    let [inner, outer, count] = text.split(':').collect::<Vec<_>>().try_into().map_err(|_| form())?;
    let count = number(field, count)?;
    let (inner, outer) = (id(field, inner)?, id(field, outer)?);
    let fits = |first: u32| count > 0 && u64::from(first) + count <= u64::from(u32::MAX);
    if !fits(inner) || !fits(outer) {
        return Err(Error::spec(field, text, "the range is empty or goes past the last id, 4294967294"));
    }
    Ok(Extent { inner, outer, count: count as u32 })
}

/// Holds what the kernel and sbx ask of a map: at most 340 lines, no overlap on either side, never host id 0 (S31).
pub fn check(field: &str, extents: &[Extent]) -> Result<()> {
    if extents.len() > MAX_EXTENTS {
        return Err(Error::spec(field, format!("{} ranges", extents.len()), "the kernel takes at most 340"));
    }
    let text: usize = extents.iter().map(|e| format!("{} {} {}\n", e.inner, e.outer, e.count).len()).sum();
    if text > MAX_TEXT {
        let why = format!("a map of {text} bytes; the kernel takes at most {MAX_TEXT}");
        return Err(Error::spec(field, format!("{} ranges", extents.len()), why).or_try("fewer and longer ranges"));
    }
    if let Some(zero) = extents.iter().find(|e| e.outer == 0) {
        let why = "sbx never maps the host's id 0 into a sandbox";
        return Err(Error::spec(field, format!("{}:{}:{}", zero.inner, zero.outer, zero.count), why));
    }
    for side in [|e: &Extent| e.inner, |e: &Extent| e.outer] {
        let mut sorted: Vec<&Extent> = extents.iter().collect();
        sorted.sort_by_key(|e| side(e));
        if let Some(pair) = sorted.windows(2).find(|pair| side(pair[0]) + (pair[0].count - 1) >= side(pair[1])) {
            return Err(Error::spec(field, format!("{} and {}", pair[0], pair[1]), "these ranges overlap"));
        }
    }
    Ok(())
}

/// 0 is this id, 1 and up are these ranges: first id and count.
pub fn full(own: u32, ranges: &[(u32, u32)]) -> Vec<Extent> {
    let mut inner = 1;
    let mut extents = vec![Extent { inner: 0, outer: own, count: 1 }];
    for &(outer, count) in ranges {
        let count = count.min(u32::MAX - 1 - inner);
        extents.push(Extent { inner, outer, count });
        inner += count;
    }
    extents
}

/// Whether an id inside is mapped.
pub fn maps(extents: &[Extent], inner: u32) -> bool {
    outer(extents, inner).is_some()
}

/// The id outside that an id inside stands for.
pub fn outer(extents: &[Extent], inner: u32) -> Option<u32> {
    extents.iter().find(|e| inner >= e.inner && inner - e.inner < e.count).map(|e| e.outer + (inner - e.inner))
}

/// A user or group as typed: a number is never looked up as a name (S07, CVE-2024-40635).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// By number.
    Id(u32),
    /// By name, found in ROOTFS's own passwd or group file.
    Name(String),
}

impl Who {
    /// Parses one side of `UID:GID`.
    pub fn parse(field: &str, text: &str) -> Result<Who> {
        let numeric = text.strip_prefix(['+', '-']).unwrap_or(text);
        if !numeric.is_empty() && numeric.bytes().all(|b| b.is_ascii_digit()) {
            return id(field, text).map(Who::Id);
        }
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-$".contains(&b);
        match text.as_bytes() {
            [] => Err(Error::spec(field, text, "an empty user or group")),
            bytes if bytes.len() <= 256 && bytes.iter().all(|&b| fine(b)) && bytes[0] != b'-' => {
                Ok(Who::Name(text.to_owned()))
            }
            _ => Err(Error::spec(field, text, "neither a number nor a name of letters, digits, _ . and -")),
        }
    }
}

/// The program's user, `UID[:GID]` or `NAME[:GROUP]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub user: Who,
    /// The group, where one was said.
    pub group: Option<Who>,
}

impl User {
    /// Parses the value of `--user`.
    pub fn parse(text: &str) -> Result<User> {
        const FIELD: &str = "--user";
        let mut parts = text.split(':');
        let user = Who::parse(FIELD, parts.next().unwrap_or(""))?;
        let group = parts.next().map(|group| Who::parse(FIELD, group)).transpose()?;
        match parts.next() {
            None => Ok(User { user, group }),
            Some(_) => Err(Error::spec(FIELD, text, "not UID[:GID] or NAME[:GROUP]")),
        }
    }
}

/// One user of a passwd file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: String,
}

/// The accounts of a passwd(5) text; lines that are none are passed over.
pub fn accounts(passwd: &str) -> impl Iterator<Item = Account> + '_ {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, _] = fields.as_slice() else { return None };
        let (uid, gid) = (id("uid", uid).ok()?, id("gid", gid).ok()?);
        Some(Account { name: (*name).into(), uid, gid, home: (*home).into() })
    })
}

/// The groups of a group(5) text: name, id, members.
pub fn groups(group: &str) -> impl Iterator<Item = (&str, u32, Vec<&str>)> + '_ {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members] = fields.as_slice() else { return None };
        Some((*name, id("gid", gid).ok()?, members.split(',').filter(|m| !m.is_empty()).collect()))
    })
}

/// The ranges that subuid(5) or subgid(5) gives to a user, named or by number: first id and count.
pub fn subordinate(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    owned_ranges(text)
        .filter(|(owner, ..)| *owner == name || *owner == number)
        .map(|(_, first, count)| (first, count))
        .collect()
}

/// All ranges of a subuid(5) text, whoever has them.
pub fn all_subordinate(text: &str) -> Vec<(u32, u32)> {
    owned_ranges(text).map(|(_, first, count)| (first, count)).collect()
}

/// Owner, first id and count of each line that makes sense.
fn owned_ranges(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let whole = fields.next().is_none() && count > 0 && first.checked_add(count).is_some();
        whole.then_some((owner, first, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Map> {
        Map::parse(&texts.iter().map(|t| t.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn maps_are_checked() {
        assert_eq!(parse(&["keep"]), Ok(Map::Keep));
        assert_eq!(
            parse(&["0:1000:1", "1:100000:10"]).map(|m| matches!(m, Map::Explicit(e) if e.len() == 2)),
            Ok(true)
        );
        let many = |first: u32| (1..=341).map(|n| format!("{n}:{}:1", n + first)).collect::<Vec<String>>();
        assert!(Map::parse(&many(1000)[..340]).is_ok());
        assert!(Map::parse(&many(1000)).is_err());
        assert!(Map::parse(&many(1_000_000)[..340]).is_err_and(|e| e.to_string().contains("bytes")));
        for bad in [
            &["0:0:1"][..],
            &["0:1:0"],
            &["0:1:2", "1:9:1"],
            &["0:5:2", "7:6:1"],
            &["4294967290:1:10"],
            &["0:4294967290:10"],
            &["0:1"],
            &["x"],
            &["0:1:2:3"],
            &["-1:1:1"],
            &["keep", "root"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_are_never_names() {
        assert_eq!(User::parse("0").map(|u| u.user), Ok(Who::Id(0)));
        assert_eq!(User::parse("1:1").map(|u| u.group), Ok(Some(Who::Id(1))));
        assert_eq!(User::parse("nobody").map(|u| u.user), Ok(Who::Name("nobody".into())));
        for bad in
            ["", ":", "1:", ":1", "01", "-1", "+1", " 1", "4294967295", "4294967296", "1:2:3", "a b", &"9".repeat(40)]
        {
            assert!(User::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn subordinate_ranges_by_name_and_number() {
        let text = "me:100000:65536\n1000:300000:10\nyou:5:5\nme:x:1\nme:4294967295:9\n";
        assert_eq!(subordinate(text, "me", 1000), [(100000, 65536), (300000, 10)]);
    }

    proptest::proptest! {
        #[test]
        fn readers_of_files_never_panic(text in "[a-z0-9:,\\n-]{0,80}") {
            let _ = (accounts(&text).count(), groups(&text).count(), subordinate(&text, "me", 1), User::parse(&text));
        }
    }
}
