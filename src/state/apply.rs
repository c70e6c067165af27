//! Taking over what a layer holds into the directory that lies below it.
//!
//! Every name is looked up beneath the descriptor of that directory, no link is followed, and a file stands there either
//! as it was or as it is to be, whenever this is killed: it is written under a name of its own first. What was changed on
//! the host since the sandbox began is refused. Done again, it goes on where it was.

use super::changes::{Change, Sides, for_each};
use super::leftovers::remove_tree;
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::spec::text::spelled;
use crate::sys::fs::{self, Kind, Open, Stat};
use crate::sys::{EEXIST, ELOOP, ENOENT, ENOTDIR, Errno, Result as SysResult, sabotaged, xattr};
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was taken over.
    Taken,
    /// It was not asked for.
    Left,
    /// It is of a kind that has to be asked for; what it is.
    Held(&'static str),
    /// It cannot be taken over, for this reason.
    Refused(String),
}

/// What is to be taken over.
#[derive(Debug)]
pub struct Wanted {
    /// Also what has things executed: see [`Outcome::Held`].
    pub all: bool,
    /// Only these, and what lies below them; none means everything. Paths inside: see [`Wanted::paths`].
    pub paths: Vec<PathBuf>,
    /// When the sandbox began: what has changed on the host later is refused.
    pub since: (i64, i64),
    /// The sandbox's name.
    pub name: String,
    /// The caller's home.
    pub home: PathBuf,
    /// The caller's directory.
    pub cwd: PathBuf,
}

/// What is told of each change.
pub type Tell<'a> = dyn FnMut(Change, &Path, Outcome) -> Result<()> + 'a;

/// Takes a layer over, as far as it is wanted. Returns how many directories were too deep to go into.
///
/// # Errors
/// `State` where another is at work on the layer: both would write under the same name. Of what cannot be read of the
/// layer, and of `tell`. What cannot be written is an [`Outcome`].
pub fn apply(sides: &Sides, wanted: &Wanted, tell: &mut Tell<'_>) -> Result<u64> {
    // It goes with the descriptor, also after a kill.
    let lock =
        fs::open_beneath(sides.upper.as_fd(), c".", Open::List).and_then(|dir| Ok((fs::try_lock(dir.as_fd())?, dir)));
    if !matches!(lock, Ok((true, _))) && !sabotaged(c"apply-lock") {
        let why = "another sbx apply takes its changes over".to_owned();
        return Err(Error::State { on: wanted.name.clone(), why, hint: Some("wait for it to end".into()) });
    }
    let temporary = c_path(Path::new(&format!(".sbx-apply.{}", wanted.name)));
    let away = c_path(Path::new(&format!(".sbx-removed.{}", wanted.name)));
    let mut taking = Taking { sides, wanted, temporary, away, directories: Vec::new(), repositories: HashMap::new() };
    // Left by one that was killed.
    taking.clear_away();
    let told = sides.tell(&mut |change, path| {
        let outcome = taking.one(change, path);
        tell(change, path, outcome)
    });
    taking.close();
    told
}

struct Taking<'a> {
    sides: &'a Sides,
    wanted: &'a Wanted,
    /// Under which name a file is written before it stands in its place.
    temporary: CString,
    /// Where a directory goes, in the layer's own, before it is removed.
    away: CString,
    /// Directories whose modes and times are set when all is in them.
    directories: Vec<(PathBuf, Stat)>,
    /// Directories that were looked at, and whether git takes each for a repository.
    repositories: HashMap<PathBuf, bool>,
}

/// Why something is not taken over, in words.
type Refusal = String;

fn words(doing: &str) -> impl Fn(Errno) -> Refusal {
    move |errno| match errno {
        ENOENT | ENOTDIR | ELOOP => "its directory on the host is gone, or was not taken over".into(),
        errno => format!("{doing}: {errno}"),
    }
}

impl Taking<'_> {
    fn one(&mut self, change: Change, inside: &Path) -> Outcome {
        let wanted = &self.wanted.paths;
        let named = wanted.is_empty() || wanted.iter().any(|path| inside.starts_with(path));
        // What is wanted may lie in a directory that is new.
        let leads = change == Change::Added && wanted.iter().any(|path| path.starts_with(inside));
        if !named && !leads {
            return Outcome::Left;
        }
        let below = inside.strip_prefix(&self.sides.at).unwrap_or(inside).to_owned();
        let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else { return Outcome::Left };
        let name = c_path(Path::new(name));
        if name == self.temporary || name == self.away {
            return Outcome::Refused("sbx apply uses this name itself".into());
        }
        let upper = match change {
            Change::Deleted => None,
            _ => match self.layer(parent).and_then(|dir| fs::lstat(dir.as_fd(), &name)) {
                Ok(stat) => Some(stat),
                Err(errno) => return Outcome::Refused(words("read the layer")(errno)),
            },
        };
        if !named && upper.is_none_or(|upper| upper.kind != Kind::Directory) {
            return Outcome::Left;
        }
        if let Some(held) = self.held(&below, upper.as_ref()).filter(|_| !self.wanted.all) {
            return Outcome::Held(held);
        }
        match self.take(change, &below, parent, &name, upper.as_ref()) {
            Ok(()) => Outcome::Taken,
            Err(why) => Outcome::Refused(why),
        }
    }

    fn layer(&self, dir: &Path) -> SysResult<OwnedFd> {
        beneath(self.sides.upper.as_fd(), dir)
    }

    /// What has things executed, by git, a shell, the user or the kernel, or leads to where the sandbox could not write.
    fn held(&mut self, path: &Path, upper: Option<&Stat>) -> Option<&'static str> {
        if sabotaged(c"apply-held") {
            return None;
        }
        let whole = self.whole(path);
        let mut parts = whole.components().map(Component::as_os_str);
        let hook = parts.clone().zip(parts.clone().skip(1)).any(|(one, other)| one == ".git" && other == "hooks");
        match upper {
            _ if hook => Some("a git hook"),
            _ if parts.any(|part| part.as_bytes().starts_with(b".")) => Some("a dotfile"),
            _ if path.ancestors().any(|dir| self.is_repository(dir)) => Some("part of a git repository"),
            Some(stat) if stat.kind == Kind::File && stat.mode & 0o6000 != 0 => Some("a set-id file"),
            Some(stat) if stat.kind == Kind::File && stat.mode & 0o111 != 0 => Some("an executable"),
            Some(stat) if stat.kind == Kind::Symlink && self.leads_out(path) => Some("a link that leads out"),
            Some(stat) if stat.kind != Kind::Symlink && stat.mode & 0o1002 == 0o002 => Some("writable by everybody"),
            _ => None,
        }
    }

    /// The names by which a path is judged: its own, and those of the directory that the layer lies on, from the home
    /// on. What the caller stands in is a project, wherever it lies.
    fn whole(&self, path: &Path) -> PathBuf {
        let host = &self.sides.host;
        match host.strip_prefix(&self.wanted.home) {
            _ if self.wanted.cwd.starts_with(host) => path.to_owned(),
            Ok(below) => below.join(path),
            Err(_) => Path::new(host.file_name().unwrap_or_default()).join(path),
        }
    }

    /// Whether git would take a directory for a repository, and its settings for its own, with what is taken over.
    fn is_repository(&mut self, dir: &Path) -> bool {
        if let Some(known) = self.repositories.get(dir) {
            return *known;
        }
        let has = |name: &CStr| {
            [&self.sides.upper, &self.sides.lower]
                .into_iter()
                .any(|top| beneath(top.as_fd(), dir).and_then(|dir| fs::lstat(dir.as_fd(), name)).is_ok())
        };
        let is = [c"HEAD", c"objects", c"refs"].into_iter().all(has);
        self.repositories.insert(dir.to_owned(), is);
        is
    }

    /// Whether a link of the layer leads out of the tree on the host, as it is spelled. One that cannot be read does, and
    /// one that goes up from what may be a link itself.
    fn leads_out(&self, path: &Path) -> bool {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return true };
        let mut buffer = [0; 4096];
        let target = self.layer(parent).and_then(|dir| {
            let target = fs::readlinkat(dir.as_fd(), &c_path(Path::new(name)), &mut buffer)?;
            Ok(PathBuf::from(OsStr::from_bytes(target)))
        });
        let Ok(target) = target else { return true };
        let (mut depth, mut down) = (parent.components().count(), false);
        let target = match target.strip_prefix(&self.sides.host) {
            Ok(below) => {
                depth = 0;
                below
            }
            Err(_) if target.is_absolute() => return true,
            Err(_) => &target,
        };
        for part in target.components() {
            match part {
                Component::ParentDir if down || depth == 0 => return true,
                Component::ParentDir => depth -= 1,
                Component::Normal(_) => down = true,
                _ => {}
            }
        }
        false
    }

    fn take(
        &mut self,
        change: Change,
        below: &Path,
        parent: &Path,
        name: &CStr,
        upper: Option<&Stat>,
    ) -> std::result::Result<(), Refusal> {
        let dir = beneath(self.sides.lower.as_fd(), parent).map_err(words("open its directory"))?;
        let dir = dir.as_fd();
        let lower = match fs::lstat(dir, name) {
            Ok(stat) => Some(stat),
            Err(ENOENT) => None,
            Err(errno) => return Err(words("look at the host's")(errno)),
        };
        // Left by one that was killed.
        let _ = fs::unlinkat(dir, &self.temporary, Kind::File);
        if self.is_taken(dir, name, parent, upper, lower.as_ref()).map_err(words("compare"))? {
            return Ok(());
        }
        self.unchanged(dir, name, lower.as_ref(), upper)?;
        match (upper, lower, change) {
            (None, None, _) => Ok(()),
            (None, Some(lower), _) => self.remove(dir, name, lower.kind).map_err(words("remove")),
            (Some(_), None, Change::Changed) => Err("it is gone on the host".into()),
            (Some(upper), lower, _) => match upper.kind {
                Kind::Directory => self.directory(dir, name, below, upper, lower),
                Kind::File | Kind::Symlink => self.file(dir, name, parent, upper, lower),
                _ => Err("neither a file, a directory nor a link".into()),
            },
        }
    }

    /// Whether nothing differs but the owner, which nobody takes over.
    fn is_taken(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        parent: &Path,
        upper: Option<&Stat>,
        lower: Option<&Stat>,
    ) -> SysResult<bool> {
        match (upper, lower) {
            (Some(upper), Some(lower)) if upper.kind != Kind::Directory => {
                self.sides.is_same_but_owner((self.layer(parent)?.as_fd(), upper), (dir, lower), name)
            }
            _ => Ok(false),
        }
    }

    /// Removes an entry. A directory goes as a whole first, so that what is done when this is killed is done.
    fn remove(&self, dir: BorrowedFd<'_>, name: &CStr, kind: Kind) -> SysResult<()> {
        if kind != Kind::Directory {
            return fs::unlinkat(dir, name, kind);
        }
        fs::renameat(dir, name, self.sides.lower.as_fd(), &self.away)?;
        remove_tree(&self.sides.host.join(OsStr::from_bytes(self.away.to_bytes())))
    }

    fn clear_away(&self) {
        if fs::lstat(self.sides.lower.as_fd(), &self.away).is_ok() {
            let _ = remove_tree(&self.sides.host.join(OsStr::from_bytes(self.away.to_bytes())));
        }
    }

    /// Refuses what was changed on the host since the sandbox began. Of a directory that stays one its content counts,
    /// name by name.
    fn unchanged(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        lower: Option<&Stat>,
        upper: Option<&Stat>,
    ) -> std::result::Result<(), Refusal> {
        let Some(lower) = lower else { return Ok(()) };
        let both = lower.kind == Kind::Directory && upper.is_some_and(|upper| upper.kind == Kind::Directory);
        let changed = match lower.kind {
            _ if both || sabotaged(c"apply-ctime") => false,
            Kind::Directory => newer_within(dir, name, self.wanted.since).map_err(words("look into the host's"))?,
            _ => lower.ctime > self.wanted.since,
        };
        if changed { Err("changed on the host since the sandbox began".into()) } else { Ok(()) }
    }

    fn directory(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        below: &Path,
        upper: &Stat,
        lower: Option<Stat>,
    ) -> std::result::Result<(), Refusal> {
        let is_there = lower.is_some_and(|lower| lower.kind == Kind::Directory);
        if let (false, Some(lower)) = (is_there, lower) {
            self.remove(dir, name, lower.kind).map_err(words("remove"))?;
        }
        if !is_there {
            fs::mkdirat(dir, name, upper.mode & 0o777 | 0o700).map_err(words("make"))?;
        }
        self.directories.push((below.to_owned(), *upper));
        Ok(())
    }

    fn file(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        parent: &Path,
        upper: &Stat,
        lower: Option<Stat>,
    ) -> std::result::Result<(), Refusal> {
        let layer = self.layer(parent).map_err(words("read the layer"))?;
        let made = match upper.kind {
            Kind::Symlink => {
                let mut buffer = [0; 4096];
                fs::readlinkat(layer.as_fd(), name, &mut buffer).and_then(|target| {
                    let target = c_path(Path::new(OsStr::from_bytes(target)));
                    fs::symlinkat(&target, dir, &self.temporary)
                })
            }
            _ => copy(layer.as_fd(), name, dir, &self.temporary, upper),
        };
        let placed = made.and_then(|()| fs::set_mtime(dir, &self.temporary, upper.mtime)).and_then(|()| match lower {
            Some(lower) if lower.kind == Kind::Directory => {
                self.remove(dir, name, lower.kind)?;
                fs::rename_new(dir, &self.temporary, name)
            }
            Some(_) => fs::rename(dir, &self.temporary, name),
            None => fs::rename_new(dir, &self.temporary, name),
        });
        placed.map_err(|errno| {
            let _ = fs::unlinkat(dir, &self.temporary, Kind::File);
            if errno == EEXIST { "it has come to be on the host meanwhile".into() } else { words("write")(errno) }
        })
    }

    /// Modes and times of the directories, the deepest first: a mode may keep everybody out, and what is put into one
    /// changes its time.
    fn close(&mut self) {
        while let Some((path, stat)) = self.directories.pop() {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let Ok(parent) = beneath(self.sides.lower.as_fd(), parent) else { continue };
            let name = c_path(Path::new(name));
            if let Ok(dir) = fs::open_beneath(parent.as_fd(), &name, Open::List) {
                let _ = fs::chmod_open(dir.as_fd(), stat.mode & 0o1777);
                let _ = fs::set_mtime(parent.as_fd(), &name, stat.mtime);
            }
        }
    }
}

fn beneath(top: BorrowedFd<'_>, dir: &Path) -> SysResult<OwnedFd> {
    let dir = if dir.as_os_str().is_empty() { c".".to_owned() } else { c_path(dir) };
    if sabotaged(c"apply-links") {
        return fs::openat(top, &dir, Open::Directory);
    }
    fs::open_beneath(top, &dir, Open::Directory)
}

/// Copies a regular file with its mode and the attributes that a user can give.
fn copy(from: BorrowedFd<'_>, name: &CStr, to: BorrowedFd<'_>, new: &CStr, stat: &Stat) -> SysResult<()> {
    let source = fs::open_beneath(from, name, Open::Read)?;
    let target = fs::openat(to, new, Open::New)?;
    copy_content(source.as_fd(), target.as_fd(), stat.size)?;
    for attribute in xattr::list(source.as_fd()).unwrap_or_default() {
        let bytes = attribute.to_bytes();
        if bytes.starts_with(b"user.")
            && !bytes.starts_with(b"user.overlay.")
            && !bytes.starts_with(b"user.fuseoverlayfs.")
        {
            let value = xattr::get(source.as_fd(), &attribute)?;
            // Where the host's file system has none, the content is what counts.
            let _ = xattr::set(target.as_fd(), &attribute, &value);
        }
    }
    // The mode last: with set-id bits no byte may be written any more. An access list says what of it is the group's.
    fs::chmod_open(target.as_fd(), stat.mode)?;
    match xattr::get(source.as_fd(), ACCESS_LIST) {
        Ok(list) => xattr::set(target.as_fd(), ACCESS_LIST, &list),
        Err(_) => Ok(()),
    }
}

const ACCESS_LIST: &CStr = c"system.posix_acl_access";

/// Copies what a file holds, and leaves holes as they are: of a few bytes a program makes a file of terabytes.
fn copy_content(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> SysResult<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while let Some(data) = fs::next_data(from, at)? {
        at = data.start;
        while at < data.end {
            let room = (data.end - at).min(buffer.len() as u64) as usize;
            let count = fs::pread(from, &mut buffer[..room], at)?;
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let written = fs::pwrite(to, rest, at)?;
                rest = &rest[written..];
                at += written as u64;
            }
            if count == 0 {
                break;
            }
        }
    }
    fs::ftruncate(to, size)
}

/// Whether something in a tree is younger than that, a directory that was put there too.
fn newer_within(dir: BorrowedFd<'_>, name: &CStr, since: (i64, i64)) -> SysResult<bool> {
    // Paths, not descriptors: there may be more directories than one may open.
    let mut open = vec![PathBuf::from(OsStr::from_bytes(name.to_bytes()))];
    while let Some(path) = open.pop() {
        let inner = fs::open_beneath(dir, &c_path(&path), Open::List)?;
        let mut newer = fs::fstat(inner.as_fd())?.ctime > since;
        for_each(inner.as_fd(), |entry| {
            let stat = fs::lstat(inner.as_fd(), entry)?;
            match stat.kind {
                Kind::Directory => open.push(path.join(OsStr::from_bytes(entry.to_bytes()))),
                _ => newer |= stat.ctime > since,
            }
            Ok(())
        })?;
        if newer {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Wanted {
    /// Takes paths as they were typed: of the host where one of the layers lies there, else of the sandbox; from the
    /// caller's directory where they are not absolute.
    ///
    /// # Errors
    /// `State` for one that neither a layer nor what lies below it has.
    pub fn paths(self, typed: &[&str], layers: &[Sides]) -> Result<Wanted> {
        let meant = |typed: &&str| {
            meant(layers, spelled(&self.cwd.join(typed))).ok_or_else(|| {
                let why = "neither the sandbox nor the host has it".to_owned();
                let hint = Some(format!("sbx diff {}: lists what has changed", self.name));
                Error::State { on: (*typed).to_owned(), why, hint }
            })
        };
        let paths = typed.iter().map(meant).collect::<Result<_>>()?;
        Ok(Wanted { paths, ..self })
    }
}

/// The path inside that is meant by one of the host or of the sandbox. In this order: what lies inside the program has
/// made.
fn meant(layers: &[Sides], typed: PathBuf) -> Option<PathBuf> {
    let of_host = layers.iter().filter_map(|layer| Some(layer.at.join(typed.strip_prefix(&layer.host).ok()?)));
    of_host.chain([typed.clone()]).find(|path| layers.iter().any(|layer| has(layer, path)))
}

/// Whether a layer or what lies below it has a path inside.
fn has(layer: &Sides, inside: &Path) -> bool {
    let Ok(below) = inside.strip_prefix(&layer.at) else { return false };
    let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else { return true };
    let is_in =
        |top: &OwnedFd| beneath(top.as_fd(), parent).and_then(|dir| fs::lstat(dir.as_fd(), &c_path(Path::new(name))));
    is_in(&layer.upper).or_else(|_| is_in(&layer.lower)).is_ok()
}

/// Whether the caller may write into the directory of a layer at all.
///
/// # Errors
/// `State` where it may not.
pub fn may_write(sides: &Sides) -> Result<()> {
    fs::may_write(sides.lower.as_fd(), c".").map_err(|errno| {
        let why = format!("nothing can be taken over into it: {errno}");
        Error::State { on: sides.at.display().to_string(), why, hint: None }
    })
}
