//! Who the program is: maps, user, groups, home.

use super::limits::LimitsPlan;
use crate::error::{Error, Result};
use crate::host::{Host, Power};
use crate::spec::ids::{self, Extent, Map, User, Who, accounts, check, groups, maps};
use crate::spec::{Groups, RootSource, Spec};

/// Ids of one sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Identities {
    /// uid_map.
    pub uids: Vec<Extent>,
    /// gid_map.
    pub gids: Vec<Extent>,
    /// Who can write them.
    pub by: MapsBy,
    /// With a map of ranges: the process limit of a user namespace above the sandbox's own, init included.
    pub pids_above: Option<u64>,
    /// The program's user inside.
    pub uid: u32,
    /// The program's group inside.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: GroupSet,
    /// Login name inside.
    pub user: String,
    /// Home directory inside.
    pub home: String,
    /// What the user should be told.
    pub notes: Vec<String>,
}

/// Who writes the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapsBy {
    /// The caller: one id, its own.
    Caller,
    /// newuidmap and newgidmap.
    Helpers,
    /// The caller, who is root.
    Root,
}

/// Supplementary groups of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupSet {
    /// The caller's, this many: the kernel lets a single-id map change none (CVE-2014-8989).
    Kept(usize),
    /// These and no others.
    Exactly(Vec<u32>),
}

/// First id of the ranges that sbx takes for a sandbox of real root (DESIGN 4.10).
pub const ROOT_BASE: u32 = 524_288;
/// How many ids such a sandbox gets.
pub const ROOT_COUNT: u32 = 65_536;

/// The maps of both kinds, and who writes them.
struct Maps {
    uids: Vec<Extent>,
    gids: Vec<Extent>,
    by: MapsBy,
}

/// Decides all of it.
pub(super) fn identities(spec: &Spec, host: &Host, limits: &LimitsPlan) -> Result<Identities> {
    let asked = spec.user.as_ref().map(|user| find_user(user, host)).transpose()?;
    let mut notes = Vec::new();
    let maps = choose_maps(spec, host, asked, &mut notes)?;
    let (uid, gid) = asked.unwrap_or_else(|| default_user(spec, host, &maps));
    mapped(&maps, uid, gid)?;
    let groups = group_set(spec, host, &maps, uid)?;
    let account = accounts(&host.root.passwd).find(|account| account.uid == uid);
    let name =
        account.as_ref().map_or_else(|| if uid == 0 { "root".into() } else { uid.to_string() }, |a| a.name.clone());
    let home = account.map(|a| a.home).filter(|home| home.starts_with('/')).unwrap_or_else(|| "/".into());
    let pids_above =
        (maps.by != MapsBy::Caller).then(|| super::access::processes(spec, host, limits, 1)).transpose()?;
    Ok(Identities {
        uids: maps.uids,
        gids: maps.gids,
        by: maps.by,
        pids_above,
        uid,
        gid,
        groups,
        user: name,
        home,
        notes,
    })
}

pub(super) fn find_user(user: &User, host: &Host) -> Result<(u32, u32)> {
    let by_uid = |uid: u32| accounts(&host.root.passwd).find(|account| account.uid == uid).map(|a| (uid, a.gid));
    let (uid, gid) = match &user.user {
        Who::Id(uid) => by_uid(*uid).unwrap_or((*uid, 0)),
        Who::Name(name) => {
            let found = accounts(&host.root.passwd).find(|account| account.name == *name).map(|a| (a.uid, a.gid));
            found
                .ok_or_else(|| Error::spec("--user", name, "no such user in ROOTFS's /etc/passwd").or_try("a number"))?
        }
    };
    Ok((uid, user.group.as_ref().map_or(Ok(gid), |group| find_group("--user", group, host))?))
}

fn find_group(field: &str, group: &Who, host: &Host) -> Result<u32> {
    match group {
        Who::Id(gid) => Ok(*gid),
        Who::Name(name) => groups(&host.root.group)
            .find(|(known, ..)| known == name)
            .map(|(_, gid, _)| gid)
            .ok_or_else(|| Error::spec(field, name, "no such group in ROOTFS's /etc/group").or_try("a number")),
    }
}

fn single(inner_uid: u32, inner_gid: u32, host: &Host) -> Maps {
    Maps {
        uids: vec![Extent { inner: inner_uid, outer: host.uid, count: 1 }],
        gids: vec![Extent { inner: inner_gid, outer: host.gid, count: 1 }],
        by: MapsBy::Caller,
    }
}

fn choose_maps(spec: &Spec, host: &Host, asked: Option<(u32, u32)>, notes: &mut Vec<String>) -> Result<Maps> {
    if host.power != Power::Ordinary {
        return root_maps(spec);
    }
    let grouped = spec.groups_kept == Groups::Dropped || !spec.groups.is_empty();
    match (&spec.map, asked) {
        (Map::Explicit(extents), _) => explicit(extents, host),
        (Map::Full, _) => full(host),
        (Map::Keep, _) => Ok(single(host.uid, host.gid, host)),
        (Map::Root, _) => Ok(single(0, 0, host)),
        (Map::Auto, None) if spec.root.source == RootSource::Host && !grouped => Ok(single(host.uid, host.gid, host)),
        (Map::Auto, None | Some((0, 0))) if !grouped => Ok(single(0, 0, host)),
        (Map::Auto, Some((uid, gid)))
            if !grouped && (uid, gid) == (host.uid, host.gid) && spec.root.source == RootSource::Host =>
        {
            Ok(single(uid, gid, host))
        }
        (Map::Auto, _) => full(host).or_else(|refusal| match asked {
            Some((uid, gid)) if !grouped => {
                notes.push(format!("user {uid} inside is you outside, and the only user there: {refusal}"));
                Ok(single(uid, gid, host))
            }
            _ => Err(refusal),
        }),
    }
}

/// 0 is the caller, 1 and up the subordinate ranges.
fn full(host: &Host) -> Result<Maps> {
    helpers(host)?;
    let (uids, gids) = (ids::full(host.uid, &host.subuids), ids::full(host.gid, &host.subgids));
    let maps = Maps { uids, gids, by: MapsBy::Helpers };
    check("/etc/subuid", &maps.uids)?;
    check("/etc/subgid", &maps.gids)?;
    Ok(maps)
}

/// Refuses where a map of ranges cannot be written, naming the missing line or package.
fn helpers(host: &Host) -> Result<()> {
    let missing = |feature: &str, why: String, hint: String| {
        Err(Error::Unsupported { feature: feature.into(), why, hint: Some(hint) })
    };
    for (ranges, file) in [(&host.subuids, "/etc/subuid"), (&host.subgids, "/etc/subgid")] {
        if ranges.is_empty() {
            let why = format!("{file} has no range for {}", host.user);
            let line = format!("{}:100000:65536", host.user);
            return missing(
                "a map of ranges",
                why,
                format!("as root: echo {line} >>{file} (a range that no other line has)"),
            );
        }
    }
    for (found, program) in [(&host.newuidmap, "newuidmap"), (&host.newgidmap, "newgidmap")] {
        if found.is_none() {
            let hint = "install the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora)";
            return missing("a map of ranges", format!("{program} is not installed"), hint.into());
        }
    }
    Ok(())
}

/// A map as written, each range one that this user may use.
fn explicit(extents: &[Extent], host: &Host) -> Result<Maps> {
    let own = |e: &Extent| e.outer == host.uid && e.count == 1;
    if let [one] = extents
        && own(one)
    {
        return Ok(single(one.inner, one.inner, host));
    }
    helpers(host)?;
    let within = |ranges: &[(u32, u32)], e: &Extent| {
        ranges
            .iter()
            .any(|&(first, count)| e.outer >= first && e.outer - first <= count && e.count <= count - (e.outer - first))
    };
    for (ranges, file) in [(&host.subuids, "/etc/subuid"), (&host.subgids, "/etc/subgid")] {
        if let Some(foreign) = extents.iter().find(|e| !own(e) && !within(ranges, e)) {
            let text = format!("{}:{}:{}", foreign.inner, foreign.outer, foreign.count);
            return Err(Error::spec("--map", text, format!("not within a range that {file} gives to {}", host.user)));
        }
    }
    let as_group = |e: &Extent| if own(e) { Extent { outer: host.gid, ..*e } } else { *e };
    let gids: Vec<Extent> = extents.iter().map(as_group).collect();
    check("--map", &gids)?;
    Ok(Maps { uids: extents.to_vec(), gids, by: MapsBy::Helpers })
}

/// Root maps a private range, whatever word was said; `launch` moves it to one that nobody uses.
fn root_maps(spec: &Spec) -> Result<Maps> {
    let extents = match &spec.map {
        Map::Explicit(extents) => extents.clone(),
        _ => vec![Extent { inner: 0, outer: ROOT_BASE, count: ROOT_COUNT }],
    };
    Ok(Maps { uids: extents.clone(), gids: extents, by: MapsBy::Root })
}

/// 0 where it is mapped, else what the caller is inside, else the first id there is.
fn default_user(spec: &Spec, host: &Host, found: &Maps) -> (u32, u32) {
    let pick = |extents: &[Extent], caller: u32| {
        let keep = spec.map == Map::Keep || (spec.map == Map::Auto && spec.root.source == RootSource::Host);
        let inner = extents.iter().find(|e| e.outer == caller && e.count == 1).map(|e| e.inner);
        let first = extents.first().map_or(0, |e| e.inner);
        match (keep, maps(extents, 0)) {
            (true, _) | (false, false) => inner.unwrap_or(first),
            (false, true) => 0,
        }
    };
    (pick(&found.uids, host.uid), pick(&found.gids, host.gid))
}

fn mapped(found: &Maps, uid: u32, gid: u32) -> Result<()> {
    for (extents, id, word) in [(&found.uids, uid, "user"), (&found.gids, gid, "group")] {
        if !maps(extents, id) {
            return Err(Error::spec("--user", id, format!("this {word} is outside the map"))
                .or_try("--map full, or a --map that holds it"));
        }
    }
    Ok(())
}

fn group_set(spec: &Spec, host: &Host, found: &Maps, uid: u32) -> Result<GroupSet> {
    if found.by == MapsBy::Caller {
        let feature = match (spec.groups_kept, spec.groups.is_empty()) {
            (Groups::Dropped, _) => "--drop-groups",
            (_, false) => "--group-add",
            _ => return Ok(GroupSet::Kept(host.groups.len())),
        };
        let why = "with a single-id map the kernel lets nobody change the groups (user_namespaces(7))";
        return Err(Error::Unsupported { feature: feature.into(), why: why.into(), hint: Some("--map full".into()) });
    }
    if spec.groups_kept == Groups::Dropped {
        return Ok(GroupSet::Exactly(Vec::new()));
    }
    let name = accounts(&host.root.passwd).find(|a| a.uid == uid).map(|a| a.name);
    let member = |members: &[&str]| name.as_deref().is_some_and(|name| members.contains(&name));
    let mut set: Vec<u32> = groups(&host.root.group).filter(|(_, _, m)| member(m)).map(|(_, gid, _)| gid).collect();
    set.retain(|gid| maps(&found.gids, *gid));
    for group in &spec.groups {
        let gid = find_group("--group-add", group, host)?;
        if !maps(&found.gids, gid) {
            return Err(Error::spec("--group-add", gid, "this group is outside the map"));
        }
        set.push(gid);
    }
    set.sort_unstable();
    set.dedup();
    Ok(GroupSet::Exactly(set))
}
