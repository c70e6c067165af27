//! Real root's sandboxes (DESIGN 4.10): a private range of ids that nobody else uses, and sources shown through it.
//!
//! One invariant: the host's id 0 is never mapped. What root owns outside, the sandbox's user 0 owns inside by an
//! idmapped mount, and only where it cannot write: else it could leave set-id files of the host's root.

use super::script::{IdMapped, Script};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::files::c_path;
use crate::plan::{MapsBy, Plan, ROOT_BASE, ROOT_COUNT};
use crate::spec::ids::Extent;
use crate::sys::fs::{HERE, Open, openat, try_lock};
use crate::sys::mount::{mount_idmap, open_tree_with};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Where root keeps the locks of the ranges that are in use.
const LOCKS: &str = "/run/sbx-ids";
/// Ids from here on are left to others: the kernel's last are special, and many tools stop at 2^31.
const LAST: u32 = 1 << 31;

/// A range of ids, and the lock that keeps it.
pub(super) struct Range {
    base: u32,
    _lock: OwnedFd,
}

/// Makes a directory that everybody may pass through and nobody but root may list or write.
pub(super) fn passable(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path);
    made.map_err(|e| Error::Sys { doing: "make".into(), on: path.display().to_string(), errno: e.into() })
}

impl Range {
    /// Takes the first range that no line of /etc/subuid and /etc/subgid names and no other sandbox has. `None`
    /// where the plan needs none.
    pub(super) fn take(plan: &Plan, host: &Host) -> Result<Option<Range>> {
        let planned = [Extent { inner: 0, outer: ROOT_BASE, count: ROOT_COUNT }];
        if plan.identities.by != MapsBy::Root || plan.identities.uids != planned {
            return Ok(None);
        }
        let dir = crate::state::private_dir(Path::new(LOCKS))?;
        let overlaps = |base: u32| {
            host.foreign_ranges
                .iter()
                .any(|(first, count)| *first < base + ROOT_COUNT && base < first.saturating_add(*count))
        };
        for base in (ROOT_BASE..LAST).step_by(ROOT_COUNT as usize).filter(|base| !overlaps(*base)) {
            let name = c_path(Path::new(&base.to_string()));
            let fail = |errno| Error::Sys { doing: "lock the ids in".into(), on: LOCKS.into(), errno };
            let lock = openat(dir.as_fd(), &name, Open::Lock).map_err(fail)?;
            if try_lock(lock.as_fd()).map_err(fail)? {
                return Ok(Some(Range { base, _lock: lock }));
            }
        }
        let why = "every range of ids is in use or named in /etc/subuid".to_owned();
        Err(Error::Unsupported {
            feature: "a private range of ids".into(),
            why,
            hint: Some("--map with one of your own".into()),
        })
    }

    /// Makes a directory of root's the range's own.
    pub(super) fn give(&self, dir: &OwnedFd) -> Result<()> {
        let fail =
            |errno| Error::Sys { doing: "give away".into(), on: "the directory of the upper layer".into(), errno };
        crate::sys::fs::fchown(dir.as_fd(), self.base, self.base).map_err(fail)
    }

    /// The map of this range.
    pub(super) fn extents(&self) -> [Extent; 1] {
        [Extent { inner: 0, outer: self.base, count: ROOT_COUNT }]
    }
}

/// Makes the idmapped copies of the sources, detached, through the namespace of the process that has the maps.
pub(super) fn trees(script: &Script, pid: i32) -> Result<Vec<OwnedFd>> {
    if script.idmapped.is_empty() {
        return Ok(Vec::new());
    }
    let path = format!("/proc/{pid}/ns/user");
    let fail = |on: &str, errno| Error::Sys { doing: "open".into(), on: on.into(), errno };
    let userns = openat(HERE, &c_path(Path::new(&path)), Open::Read).map_err(|errno| fail(&path, errno))?;
    script.idmapped.iter().map(|source| idmapped(source, &userns)).collect()
}

fn idmapped(source: &IdMapped, userns: &OwnedFd) -> Result<OwnedFd> {
    let shown = source.path.to_string_lossy().into_owned();
    let refused = |errno| Error::Unsupported {
        feature: format!("showing {shown} in a sandbox of root's"),
        why: format!("its file system, or one below it, cannot be mounted with other owners (idmapped): {errno}"),
        hint: Some("copy it to ext4, xfs, btrfs or tmpfs; or run sbx as an ordinary user".into()),
    };
    let tree = open_tree_with(HERE, &source.path, source.attr, source.depth).map_err(refused)?;
    mount_idmap(tree.as_fd(), userns.as_fd(), source.depth).map_err(refused)?;
    Ok(tree)
}
