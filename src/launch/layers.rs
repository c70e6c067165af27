//! Overlays: their layers, the files put into an upper layer beforehand, and the mounts that the parent made.
//!
//! Part of the child's stage `Root`, under the same rules as `mounts`.

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::Call;
use super::child::decimal;
use super::mounts::{Done, Tree, held, make_dir, new_file};
use super::script::{Failure, In, Naming, OverlayOp, Src, UpperDirs};
use super::sources::MAX_TREES;
use crate::sys::fs::{self, HERE, Open};
use crate::sys::mount::{self, Attr};
use crate::sys::{self, ENOENT};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Descriptor numbers in the order in which the parent sent them.
#[derive(Clone, Copy)]
pub(super) struct Trees {
    numbers: [i32; MAX_TREES],
    count: usize,
}

impl Trees {
    /// Takes the next one over. More than there is room for are never sent.
    pub(super) fn keep(&mut self, tree: OwnedFd) {
        if let Some(place) = self.numbers.get_mut(self.count) {
            *place = tree.as_raw_fd();
            std::mem::forget(tree);
            self.count += 1;
        }
    }

    fn get(&self, index: usize) -> Option<&i32> {
        self.numbers[..self.count].get(index)
    }
}

impl Default for Trees {
    fn default() -> Self {
        Trees { numbers: [-1; MAX_TREES], count: 0 }
    }
}

/// The root's upper layer while files are put into it.
pub(super) struct Seeded {
    /// The layer below it.
    pub(super) lower: OwnedFd,
    upper: OwnedFd,
    work: OwnedFd,
    etc: OwnedFd,
}

impl Tree {
    /// The upper and work directories of an overlay; a new upper gets mode and owner of the layer below it.
    pub(super) fn upper_dirs(
        &self,
        upper: &UpperDirs,
        like: Option<BorrowedFd<'_>>,
    ) -> Result<(OwnedFd, OwnedFd), Failure> {
        let (dir, names) = match upper {
            UpperDirs::Store(upper, work) => (None, (upper.as_c_str(), work.as_c_str())),
            UpperDirs::Host(path) => {
                (Some(fs::openat(HERE, path, Open::Directory).called(Call::Open)?), (c"upper", c"work"))
            }
        };
        let dir = match &dir {
            Some(dir) => dir.as_fd(),
            None => held(&self.store)?,
        };
        let stat = like.map(fs::fstat).transpose().called(Call::Stat)?;
        let fresh = fs::mkdirat(dir, names.0, stat.map_or(0o755, |s| s.mode)).is_ok();
        make_dir(dir, names.1, 0o700)?;
        // In a kept layer these could be links to anywhere.
        let upper = fs::open_beneath(dir, names.0, Open::Directory).called(Call::Openat2)?;
        if let (true, Some(stat)) = (fresh, stat) {
            self.give(upper.as_fd(), stat.uid, stat.gid);
        }
        Ok((upper, fs::open_beneath(dir, names.1, Open::Directory).called(Call::Openat2)?))
    }

    /// Gives a directory that this process made the owner of the one below it. Fails for an owner outside the map;
    /// the layer then belongs to the sandbox's root.
    pub(super) fn give(&self, dir: BorrowedFd<'_>, uid: u32, gid: u32) {
        if (uid, gid) != self.creator {
            let _ = fs::fchown(dir, uid, gid);
        }
    }

    /// Writes a file into the root's upper layer before the overlay exists.
    pub(super) fn seed(
        &mut self,
        overlay: &OverlayOp,
        dir: &CStr,
        like: (u32, u32, u32),
        file: &CStr,
        content: &[u8],
    ) -> Done {
        if self.seeded.is_none() {
            let lower = self.layer(&overlay.lower[0])?;
            let (upper, work) = self.upper_dirs(&overlay.upper, Some(lower.as_fd()))?;
            let (mode, uid, gid) = like;
            fs::mkdirat(upper.as_fd(), dir, mode).called(Call::Mkdir)?;
            let etc = fs::openat(upper.as_fd(), dir, Open::Directory).called(Call::Open)?;
            self.give(etc.as_fd(), uid, gid);
            self.seeded = Some(Seeded { lower, upper, work, etc });
        }
        match &self.seeded {
            Some(seeded) => new_file(seeded.etc.as_fd(), file, content),
            None => Ok(()),
        }
    }

    /// An overlay, detached. `userxattr` is what makes removal and renaming work without privileges (images.md 2).
    pub(super) fn overlay(&self, overlay: &OverlayOp, attr: Attr) -> Result<OwnedFd, Failure> {
        let context = mount::fsopen(c"overlay").called(Call::Fsopen)?;
        let seeded = self.seeded.as_ref().filter(|_| overlay.is_root);
        let mut top = None;
        for (index, lower) in overlay.lower.iter().enumerate() {
            if let (0, Some(seeded)) = (index, seeded) {
                add_layer(context.as_fd(), c"lowerdir+", seeded.lower.as_fd(), overlay.naming)
                    .called(Call::Fsconfig)?;
                continue;
            }
            let layer = self.layer(lower)?;
            add_layer(context.as_fd(), c"lowerdir+", layer.as_fd(), overlay.naming).called(Call::Fsconfig)?;
            if top.is_none() {
                top = Some(layer);
            } else if overlay.naming != Naming::Descriptor {
                // Named by number, a layer has to stay open until the overlay is made.
                std::mem::forget(layer);
            }
        }
        let made;
        let (upper, work) = match seeded {
            Some(seeded) => (seeded.upper.as_fd(), seeded.work.as_fd()),
            None => {
                made = self.upper_dirs(&overlay.upper, top.as_ref().map(AsFd::as_fd))?;
                (made.0.as_fd(), made.1.as_fd())
            }
        };
        for (key, dir) in [(c"upperdir", upper), (c"workdir", work)] {
            add_layer(context.as_fd(), key, dir, overlay.naming).called(Call::Fsconfig)?;
        }
        for (flag, _) in [(c"userxattr", true), (c"volatile", overlay.volatile)].iter().filter(|(_, wanted)| *wanted) {
            mount::fsconfig_flag(context.as_fd(), flag).called(Call::Fsconfig)?;
        }
        mount::fsconfig_create(context.as_fd()).called(Call::Fsconfig)?;
        let made = mount::fsmount(context.as_fd(), attr).called(Call::Fsmount);
        if overlay.is_root {
            std::mem::forget((context, top));
        }
        made
    }

    /// A read-only layer: a directory of the host, or an idmapped mount, which has to be
    /// attached in this namespace: its own belongs to the host's root.
    pub(super) fn layer(&self, src: &Src) -> Result<OwnedFd, Failure> {
        match src {
            Src::Path(path) => fs::openat(HERE, path, Open::Directory).called(Call::Open),
            Src::Tree(index, name) => {
                let tree = self.handed_over(*index)?;
                let store = held(&self.store)?;
                make_dir(store, name, 0o755)?;
                mount::move_mount_to(tree.as_fd(), store, name).called(Call::MoveMount)?;
                Ok(tree)
            }
        }
    }

    /// A mount that the parent made.
    pub(super) fn handed_over(&self, index: usize) -> Result<OwnedFd, Failure> {
        match self.trees.get(index) {
            Some(&number) if number >= 0 => Ok(sys::adopt(number)),
            _ => Err(Failure(Call::Receive, ENOENT)),
        }
    }
}

/// Overlay takes layers by descriptor since 6.13, and by path where the kernel is older.
fn add_layer(context: BorrowedFd<'_>, key: &CStr, layer: BorrowedFd<'_>, naming: Naming) -> sys::Result<()> {
    if naming == Naming::Descriptor {
        return mount::fsconfig_fd(context, key, layer);
    }
    let mut number = [0; 24];
    let number = decimal(&mut number, layer.as_raw_fd() as u64).to_bytes_with_nul();
    const DIR: &[u8] = b"/proc/self/fd/";
    let mut path = [0; 40];
    path[..DIR.len()].copy_from_slice(DIR);
    path[DIR.len()..DIR.len() + number.len()].copy_from_slice(number);
    let path = CStr::from_bytes_until_nul(&path).unwrap_or(c"");
    // Before 6.5 there is no `lowerdir+`; a single layer goes by the old word.
    let key = if naming == Naming::OneOption && key == c"lowerdir+" { c"lowerdir" } else { key };
    mount::fsconfig_string(context, key, path)
}
