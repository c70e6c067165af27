//! The files that a call is about: what their paths lead to inside, and whether the sandbox refuses that or it is used.

use super::look::{Facts, PATH_MAX, Refused, Text, text};
use crate::plan::explain::Why;
use crate::sys::fs::{self, HERE, Kind, Open};
use crate::sys::mount;
use crate::sys::notify::Call;
use crate::sys::{EACCES, EBUSY, ENOENT, ENOTDIR, Errno};
use std::os::fd::{AsFd, OwnedFd};

/// How a call means a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Look,
    Write,
    /// It need not be there.
    Create,
    /// It may not be there.
    Make,
    /// The name goes, or something else comes to be under it.
    Replace,
    Execute,
}

impl Use {
    fn changes(self) -> bool {
        matches!(self, Use::Write | Use::Create | Use::Make | Use::Replace)
    }
}

/// Of a path of a call: which argument is its directory, which itself, and what is done with it.
type Meant = (Option<usize>, usize, Use);

/// The paths of a call on files. Of a renaming both.
fn means(name: &str, args: &[u64; 6]) -> Option<[Option<Meant>; 2]> {
    // O_CREAT; O_ACCMODE, O_TRUNC
    let opens = |flags: u64| match flags {
        _ if flags & 0o100 != 0 => Use::Create,
        _ if flags & 0o1003 != 0 => Use::Write,
        _ => Use::Look,
    };
    let first = match name {
        "open" => (None, 0, opens(args[1])),
        "openat" => (Some(0), 1, opens(args[2])),
        "openat2" => (Some(0), 1, Use::Look),
        "execve" => (None, 0, Use::Execute),
        "execveat" => (Some(0), 1, Use::Execute),
        "access" | "chdir" | "lstat" | "readlink" | "stat" => (None, 0, Use::Look),
        "faccessat" | "faccessat2" | "newfstatat" | "readlinkat" | "statx" => (Some(0), 1, Use::Look),
        "chmod" | "chown" | "lchown" | "truncate" | "utime" | "utimes" => (None, 0, Use::Write),
        "fchmodat" | "fchmodat2" | "fchownat" | "utimensat" => (Some(0), 1, Use::Write),
        "creat" => (None, 0, Use::Create),
        "mkdir" | "mknod" => (None, 0, Use::Make),
        "mkdirat" | "mknodat" => (Some(0), 1, Use::Make),
        "rename" | "rmdir" | "unlink" => (None, 0, Use::Replace),
        "renameat" | "renameat2" | "unlinkat" => (Some(0), 1, Use::Replace),
        "link" | "symlink" => (None, 1, Use::Make),
        "linkat" => (Some(2), 3, Use::Make),
        "symlinkat" => (Some(1), 2, Use::Make),
        _ => return None,
    };
    let second = match name {
        "rename" => Some((None, 1, Use::Replace)),
        "renameat" | "renameat2" => Some((Some(2), 3, Use::Replace)),
        _ => None,
    };
    Some([Some(first), second])
}

/// Files: what is hidden, read-only, or on a mount from which nothing is executed.
pub(super) fn file(facts: &Facts<'_>, name: &str, call: &Call) -> Option<Refused> {
    if !facts.files {
        return None;
    }
    let meant = means(name, &call.args)?;
    let places = Places::of(call.pid)?;
    meant.into_iter().flatten().find_map(|(dir, path, how)| {
        let path = text(call.pid, call.args[path])?;
        let path = places.whole(call.pid, dir.map(|dir| call.args[dir] as i32), &path)?;
        match refuses(facts, &places, &path, how) {
            Some((errno, why)) => Some(Refused { object: path, errno: errno.0 as u16, why, early: false }),
            None => used(facts, &places, &path, how),
        }
    })
}

/// What is used of the caller's home or directory: of the one the place that a policy could name, of the other itself.
fn used(facts: &Facts<'_>, places: &Places, path: &Text, how: Use) -> Option<Refused> {
    let (home, cwd) = facts.learns?;
    let why = if how.changes() { Why::Changed } else { Why::Used };
    let made = |object: &[u8]| {
        let mut text = Text::new();
        text.push(object);
        Some(Refused { object: text, errno: 0, why, early: false })
    };
    if within(path.bytes(), cwd).is_some() {
        return made(cwd);
    }
    let below = within(path.bytes(), home)?;
    let depth = depth(below)?;
    let end = below.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).nth(depth - 1);
    // A directory above the place is only looked at on the way there.
    let shallow = end.is_none() && below.iter().filter(|byte| **byte == b'/').count() + 1 < depth;
    let there = places.open(path).ok();
    let is_directory =
        there.as_ref().is_some_and(|file| fs::fstat(file.as_fd()).is_ok_and(|s| s.kind == Kind::Directory));
    if shallow && is_directory || there.is_none() && !how.changes() {
        return None;
    }
    made(&path.bytes()[..home.len() + 1 + end.unwrap_or(below.len())])
}

/// The rest of a path that lies below another.
fn within<'p>(path: &'p [u8], dir: &[u8]) -> Option<&'p [u8]> {
    path.strip_prefix(dir)?.strip_prefix(b"/").filter(|rest| !rest.is_empty())
}

/// How many names of a path below the home make a place that a policy names: never the home itself, and a directory with
/// settings of many programs, or with credentials, never as a whole.
fn depth(below: &[u8]) -> Option<usize> {
    let mut names = below.split(|byte| *byte == b'/');
    let (first, second) = (names.next()?, names.next().unwrap_or_default());
    Some(match first {
        b".local" if [&b"share"[..], b"state"].contains(&second) => 3,
        b".rustup" | b".nvm" | b".pyenv" | b".volta" | b".npm" => 1,
        _ => 2,
    })
}

const EROFS: Errno = Errno(30);

fn refuses(facts: &Facts<'_>, places: &Places, path: &Text, how: Use) -> Option<(Errno, Why)> {
    // What `self` is there is told to each process by itself.
    if path.bytes().starts_with(b"/proc/") && how != Use::Write {
        return None;
    }
    let read_only = |file: &OwnedFd| mount::refuses(file.as_fd()).is_ok_and(|refuses| refuses.write);
    match (places.open(path), how) {
        (Ok(_), Use::Look | Use::Make) => None,
        (Ok(file), Use::Execute) => mount::refuses(file.as_fd()).ok()?.exec.then_some((EACCES, Why::NoExec)),
        // A mount point is neither removed nor replaced.
        (Ok(_), Use::Replace) if places.is_mount_point(path) => Some((EBUSY, Why::ReadOnly)),
        (Ok(file), _) => (read_only(&file) && !is_device(&file)).then_some((EROFS, Why::ReadOnly)),
        (Err(ENOENT | ENOTDIR), _) => {
            let parent = path.parent().and_then(|parent| places.open(&parent).ok());
            match parent {
                Some(parent) if matches!(how, Use::Create | Use::Make) => {
                    read_only(&parent).then_some((EROFS, Why::ReadOnly))
                }
                // Outside the same path is the same file, and it is there.
                _ => (facts.is_host && is_there(path)).then_some((ENOENT, Why::Hidden)),
            }
        }
        (Err(_), _) => None,
    }
}

/// Whether a path leads to something outside; below /dev to a device.
fn is_there(path: &Text) -> bool {
    let device = |kind| matches!(kind, Kind::Character(..) | Kind::Block(..));
    fs::lstat(HERE, path.as_c()).is_ok_and(|stat| !path.bytes().starts_with(b"/dev/") || device(stat.kind))
}

/// A device can be written wherever it lies.
fn is_device(file: &OwnedFd) -> bool {
    fs::fstat(file.as_fd()).is_ok_and(|stat| !matches!(stat.kind, Kind::File | Kind::Directory | Kind::Symlink))
}

/// How a process sees paths.
pub(super) struct Places {
    root: OwnedFd,
}

impl Places {
    pub(super) fn of(pid: i32) -> Option<Places> {
        let root = fs::openat(HERE, Text::formatted(format_args!("/proc/{pid}/root")).as_c(), Open::Directory).ok()?;
        Some(Places { root })
    }

    /// A path of a call as one from the root: without `.` and `..`, which are taken as they are spelled.
    pub(super) fn whole(&self, pid: i32, dir: Option<i32>, path: &Text) -> Option<Text> {
        let mut from = Text::new();
        if !path.starts_with_slash() {
            let link = match dir {
                None | Some(libc::AT_FDCWD) => Text::formatted(format_args!("/proc/{pid}/cwd")),
                Some(number) => Text::formatted(format_args!("/proc/{pid}/fd/{number}")),
            };
            let mut buffer = [0; PATH_MAX];
            from.push(fs::readlinkat(HERE, link.as_c(), &mut buffer).ok()?);
        }
        let mut whole = Text::new();
        for part in from.bytes().split(|byte| *byte == b'/').chain(path.bytes().split(|byte| *byte == b'/')) {
            match part {
                b"" | b"." => {}
                b".." => whole.length = whole.bytes().iter().rposition(|byte| *byte == b'/').unwrap_or(0),
                name => {
                    whole.push(b"/");
                    whole.push(name);
                }
            }
        }
        whole.bytes[whole.length..].fill(0);
        if whole.length == 0 {
            whole.push(b"/");
        }
        Some(whole)
    }

    /// Whether another mount lies on the name itself.
    fn is_mount_point(&self, path: &Text) -> bool {
        let id = |path: &Text| {
            let entry = fs::open_in_root(self.root.as_fd(), path.as_c(), Open::Entry).ok()?;
            fs::mount_id(entry.as_fd(), c"").ok()
        };
        path.parent().is_some_and(|parent| id(&parent) != id(path))
    }

    /// What the path leads to inside; nothing of it is opened but its name.
    pub(super) fn open(&self, path: &Text) -> Result<OwnedFd, Errno> {
        fs::open_in_root(self.root.as_fd(), path.as_c(), Open::Path)
    }
}
