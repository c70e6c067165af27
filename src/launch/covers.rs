//! What is laid over the finished tree: hidden places, and those that nobody inside may change.
//!
//! Two invariants: a place is where its path leads when it is covered, which is proved afterwards; and the way to a
//! protected one, links and directories alike, is made of mount points, which can be neither renamed nor replaced
//! (rename(2), EBUSY).

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::Call;
use super::mounts::{Done, PLAIN, Tree, attach_at, clone_tree, held, new_file};
use super::script::{Failure, In, StandIn};
use crate::sys::fs::{self, Kind, Open};
use crate::sys::mount::{Attr, Depth};
use crate::sys::{self, EACCES, EEXIST, ENAMETOOLONG, ENOENT, ENOTDIR, EROFS};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

impl Tree {
    /// Covers what a path leads to, if it leads to anything.
    pub(super) fn conceal(&self, path: &CStr, name: &CStr, attr: Attr) -> Done {
        let at = match fs::open_in_root(held(&self.root)?, path, Open::Path) {
            Err(ENOENT | ENOTDIR | sys::ELOOP) => return Ok(()),
            other => other.called(Call::Openat2)?,
        };
        let kind = fs::fstat(at.as_fd()).called(Call::Stat)?.kind;
        let cover = match kind {
            Kind::Directory => self.store_dir(name, 0o700, attr)?,
            _ => self.cover(kind)?,
        };
        attach_at(&cover, at.as_fd(), kind)?;
        self.leads_to(path, Open::Path, &cover)
    }

    /// Proof that a path leads to what was laid over it: whoever can write around it may have moved the place meanwhile.
    fn leads_to(&self, path: &CStr, how: Open, cover: &OwnedFd) -> Done {
        let there = fs::open_in_root(held(&self.root)?, path, how).called(Call::Openat2)?;
        let [there, cover] = [&there, cover].map(|fd| fs::mount_id(fd.as_fd(), c"").called(Call::Stat));
        if there? == cover? { Ok(()) } else { Err(Failure(Call::ReadBack, sys::NOT_TAKEN)) }
    }

    /// Lays a read-only copy of a place, with what is mounted below it, over itself, and pins the way to it.
    pub(super) fn protect(&mut self, path: &CStr, missing: &StandIn) -> Done {
        let mut way = Way::new(path, &self.walked)?;
        self.walked = Text::EMPTY;
        let done = self.walk(&mut way, missing);
        if way.links == 0 {
            self.walked = way.parent();
        }
        done
    }

    fn walk(&self, way: &mut Way, missing: &StandIn) -> Done {
        let root = held(&self.root)?;
        while let Some(last) = way.next()? {
            let at = match fs::open_in_root(root, way.path(), Open::Entry) {
                Err(ENOENT) => return self.stand_in(way, last, missing),
                Err(ENOTDIR | sys::ELOOP) => return Ok(()),
                found => found.called(Call::Openat2)?,
            };
            match fs::fstat(at.as_fd()).called(Call::Stat)?.kind {
                Kind::Symlink => {
                    self.lay(way, at.as_fd(), Kind::Symlink, PLAIN)?;
                    if !way.follow(at.as_fd())? {
                        return Ok(());
                    }
                }
                Kind::Directory if !last => self.lay(way, at.as_fd(), Kind::Directory, PLAIN)?,
                kind if last => return self.lay(way, at.as_fd(), kind, Attr::KEPT),
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// A copy of what lies at the end of the way, over itself. Where something is mounted already, that is no more to be
    /// moved.
    fn lay(&self, way: &Way, at: BorrowedFd<'_>, kind: Kind, attr: Attr) -> Done {
        if attr == PLAIN && (fs::is_mount_root(at).called(Call::Stat)? || sys::sabotaged(c"pins")) {
            return Ok(());
        }
        let cover = clone_tree(at, c"", Depth::Recursive, attr)?;
        attach_at(&cover, at, kind)?;
        self.leads_to(way.path(), Open::Entry, &cover)
    }

    /// Where there is nothing, and nothing may be made. What a link leads to may be made from its first missing name on.
    fn stand_in(&self, way: &Way, last: bool, missing: &StandIn) -> Done {
        let parent = way.parent();
        let parent = fs::open_in_root(held(&self.root)?, parent.as_c_str(), Open::Directory).called(Call::Openat2)?;
        let (parent, name) = (parent.as_fd(), way.name());
        let made = match missing {
            StandIn::None => return Ok(()),
            _ if sys::sabotaged(c"stand-in") => return Ok(()),
            // Nothing around it, so there is nothing to be got at through it.
            _ if !last && way.links == 0 => return Ok(()),
            StandIn::File(content) if way.links == 0 => new_file(parent, name, content),
            _ => fs::mkdirat(parent, name, 0o755).called(Call::Mkdir),
        };
        match made {
            // Nor can the program make it.
            Err(Failure(_, EROFS | EACCES)) => return Ok(()),
            // Another sandbox's of the same moment.
            Err(Failure(_, EEXIST)) => {}
            made => made?,
        }
        let at = fs::open_beneath(parent, name, Open::Path).called(Call::Openat2)?;
        let kind = fs::fstat(at.as_fd()).called(Call::Stat)?.kind;
        self.lay(way, at.as_fd(), kind, Attr::KEPT)
    }
}

/// A path inside as it is walked: what is behind, without links, and what is ahead. Both lie in place, for nothing is
/// allocated here.
struct Way {
    behind: Text,
    ahead: Text,
    links: u32,
}

impl Way {
    /// As many links as the kernel follows on one way (path_resolution(7)).
    const LINKS: u32 = 40;

    /// `walked` is a directory without links on its way, all of which is pinned already.
    fn new(path: &CStr, walked: &Text) -> Result<Way, Failure> {
        let mut way = Way { behind: Text::EMPTY, ahead: Text::EMPTY, links: 0 };
        let path = path.to_bytes();
        match path.strip_prefix(walked.bytes()) {
            Some(name) if walked.length > 0 && name.iter().rposition(|byte| *byte == b'/') == Some(0) => {
                way.behind = *walked;
                way.ahead.push(name)?;
            }
            _ => way.ahead.push(path)?,
        }
        Ok(way)
    }

    /// Goes on by one name, and says whether it is the last; `None` at the end.
    fn next(&mut self) -> Result<Option<bool>, Failure> {
        loop {
            let ahead = self.ahead.bytes();
            let start = ahead.iter().take_while(|byte| **byte == b'/').count();
            let length = ahead[start..].iter().take_while(|byte| **byte != b'/').count();
            let mut name = Text::EMPTY;
            name.push(&ahead[start..start + length])?;
            self.ahead.drop_first(start + length);
            match name.bytes() {
                b"" => return Ok(None),
                b"." => {}
                b".." => self.up(),
                name => {
                    if self.behind.length > 0 {
                        self.behind.push(b"/")?;
                    }
                    self.behind.push(name)?;
                    return Ok(Some(self.ahead.bytes().iter().all(|byte| *byte == b'/')));
                }
            }
        }
    }

    fn up(&mut self) {
        let slash = self.behind.bytes().iter().rposition(|byte| *byte == b'/');
        self.behind.cut(slash.unwrap_or(0));
    }

    /// Goes on to where the link that it has come to leads; false where no path leads there.
    fn follow(&mut self, link: BorrowedFd<'_>) -> Result<bool, Failure> {
        let mut buffer = [0; Text::LONGEST];
        let leads = fs::readlinkat(link, c"", &mut buffer).called(Call::Openat2)?;
        self.links += 1;
        if self.links > Way::LINKS {
            return Ok(false);
        }
        if leads.starts_with(b"/") {
            self.behind.cut(0);
        } else {
            self.up();
        }
        let mut ahead = Text::EMPTY;
        ahead.push(leads)?;
        ahead.push(b"/")?;
        ahead.push(self.ahead.bytes())?;
        self.ahead = ahead;
        Ok(true)
    }

    fn path(&self) -> &CStr {
        self.behind.as_c_str()
    }

    fn parent(&self) -> Text {
        let mut parent = Way { behind: self.behind, ahead: Text::EMPTY, links: 0 };
        parent.up();
        parent.behind
    }

    fn name(&self) -> &CStr {
        let start = self.behind.bytes().iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        CStr::from_bytes_until_nul(&self.behind.bytes[start..]).unwrap_or(c".")
    }
}

/// Text with an end, of a length that a system call takes.
#[derive(Clone, Copy)]
pub(super) struct Text {
    bytes: [u8; Text::LONGEST],
    length: usize,
}

impl Default for Text {
    fn default() -> Text {
        Text::EMPTY
    }
}

impl Text {
    /// Bytes of a path that a system call takes, its end included.
    const LONGEST: usize = 4096;
    const EMPTY: Text = Text { bytes: [0; Text::LONGEST], length: 0 };

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The root, where it is empty.
    fn as_c_str(&self) -> &CStr {
        if self.length == 0 { c"." } else { CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c".") }
    }

    fn push(&mut self, more: &[u8]) -> Result<(), Failure> {
        let end = self.length + more.len();
        if end >= Text::LONGEST {
            return Err(Failure(Call::Openat2, ENAMETOOLONG));
        }
        self.bytes[self.length..end].copy_from_slice(more);
        self.length = end;
        Ok(())
    }

    fn cut(&mut self, length: usize) {
        self.bytes[length..].fill(0);
        self.length = length;
    }

    fn drop_first(&mut self, count: usize) {
        self.bytes.copy_within(count..self.length, 0);
        self.cut(self.length - count);
    }
}
