//! The root by fuse-overlayfs, the child's part: lays the layers out where the program can name them, asks the parent
//! to start it, waits for its mount.
//!
//! One invariant: all names that the program gets are sbx's own, relative to the store, so that no name of the host
//! stands in an option.

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::{Call, Message, tell};
use super::child::decimal;
use super::mounts::{PLAIN, Tree, clone_tree, held, make_dir};
use super::script::{Failure, In, OverlayOp, UpperDirs};
use crate::sys::fs::{self, HERE, Open};
use crate::sys::mount::{self, Attr, Depth};
use crate::sys::{ETIMEDOUT, event};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Milliseconds until the mount must be there; it takes about ten.
const PATIENCE: u32 = 10_000;

/// A mount of the program's, detached. It is made below a mount that is shared with the program's own mount
/// namespace, and so appears here too; the layers stay where the program resolves them, also after the pivot.
pub(super) fn mount(tree: &Tree, channel: BorrowedFd<'_>, overlay: &OverlayOp) -> Result<OwnedFd, Failure> {
    let store = held(&tree.store)?;
    lay_out(tree, store, overlay)?;
    make_dir(store, c"shared", 0o755)?;
    let shared = clone_tree(store, c"shared", Depth::Single, PLAIN)?;
    mount::move_mount_to(shared.as_fd(), store, c"shared").called(Call::MoveMount)?;
    mount::share(shared.as_fd()).called(Call::MountSetattr)?;
    make_dir(shared.as_fd(), c"root", 0o755)?;
    let copy = mount::open_tree(store, c"", Depth::Recursive).called(Call::OpenTree)?;
    // The parent cannot enter it by init's pid: init is becoming non-dumpable at this moment.
    let user = fs::openat(HERE, c"/proc/self/ns/user", Open::Read).called(Call::Open)?;
    tell(channel, Message::UserNs, Some(user.as_fd())).called(Call::Send)?;
    tell(channel, Message::Fuse, Some(copy.as_fd())).called(Call::Send)?;
    drop((user, copy));
    let own = fs::mount_id(shared.as_fd(), c"").called(Call::Stat)?;
    for _ in 0..PATIENCE {
        if fs::mount_id(shared.as_fd(), c"root").called(Call::Stat)? != own {
            return clone_tree(shared.as_fd(), c"root", Depth::Single, PLAIN);
        }
        let _ = event::poll(&mut [], Some(1));
    }
    Err(Failure(Call::FuseOverlay, ETIMEDOUT))
}

/// `layers/0`, `layers/1`, …, read-only; `upper` and `work`, below `disk` where they are kept outside the store.
fn lay_out(tree: &Tree, store: BorrowedFd<'_>, overlay: &OverlayOp) -> Result<(), Failure> {
    make_dir(store, c"layers", 0o755)?;
    let layers = fs::openat(store, c"layers", Open::Directory).called(Call::Open)?;
    let read_only = Attr(PLAIN.0 | Attr::RDONLY.0);
    for (index, lower) in overlay.lower.iter().enumerate() {
        let bound = match (index, &tree.seeded) {
            (0, Some(seeded)) => clone_tree(seeded.lower.as_fd(), c"", Depth::Single, read_only)?,
            _ => {
                let layer = tree.layer(lower)?;
                if index == 0 {
                    drop(tree.upper_dirs(&overlay.upper, Some(layer.as_fd()))?);
                }
                clone_tree(layer.as_fd(), c"", Depth::Single, read_only)?
            }
        };
        let mut name = [0; 24];
        let name = decimal(&mut name, index as u64);
        make_dir(layers.as_fd(), name, 0o755)?;
        mount::move_mount_to(bound.as_fd(), layers.as_fd(), name).called(Call::MoveMount)?;
    }
    if let UpperDirs::Host(path) = &overlay.upper {
        make_dir(store, c"disk", 0o755)?;
        let disk = clone_tree(HERE, path, Depth::Single, PLAIN)?;
        mount::move_mount_to(disk.as_fd(), store, c"disk").called(Call::MoveMount)?;
    }
    Ok(())
}
