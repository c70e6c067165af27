//! Probes of the file systems that a run mounts, each mounted as the run does it: by descriptor, in namespaces of
//! its own, with the same attributes. The kernel decides some of these only at the last call (fsmount).

use super::probe::{By, Outcome, Probes, Tried};
use crate::sys::fs::{HERE, Kind, Open, fchdir, mkdirat, mkfileat, openat, unlinkat};
use crate::sys::mount::{self, Attr, Depth};
use crate::sys::process::Namespaces;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const PLAIN: Attr = Attr::PLAIN;
const GUARDED: Attr = Attr::GUARDED;
const SEALED: Attr = Attr(GUARDED.0 | Attr::RDONLY.0);

/// The user and mount namespace that every mount needs.
const MOUNTING: Namespaces = Namespaces(Namespaces::USER.0 | Namespaces::MOUNT.0);

fn new_fs(kind: &CStr, options: &[(&CStr, &CStr)], attr: Attr) -> Tried<OwnedFd> {
    let name = kind.to_string_lossy();
    let context = mount::fsopen(kind).by(&format!("fsopen of {name}"))?;
    for (key, value) in options {
        mount::fsconfig_string(context.as_fd(), key, value).by(&format!("fsconfig of {name}"))?;
    }
    mount::fsconfig_create(context.as_fd()).by(&format!("fsconfig of {name}"))?;
    mount::fsmount(context.as_fd(), attr).by(&format!("fsmount of {name}"))
}

/// A tmpfs over `/`, as the one that holds all that a sandbox writes.
pub(super) fn tmpfs() -> Tried {
    store().map(drop)
}

fn store() -> Tried<OwnedFd> {
    let store = new_fs(c"tmpfs", &[(c"size", c"4m"), (c"mode", c"0755")], PLAIN)?;
    let top = openat(HERE, c"/", Open::Directory).by("open /")?;
    mount::move_mount(store.as_fd(), top.as_fd()).by("move_mount")?;
    Ok(store)
}

/// A fresh /proc needs a pid namespace, and an outer /proc that nothing covers ("mount too revealing").
pub(super) fn proc(probes: &Probes) -> Outcome {
    probes.run(MOUNTING | Namespaces::PID, || new_fs(c"proc", &[], GUARDED).map(drop))
}

/// A fresh /sys needs a network namespace, and an outer /sys that nothing covers.
pub(super) fn sysfs(probes: &Probes) -> Outcome {
    probes.run(MOUNTING | Namespaces::NET, || new_fs(c"sysfs", &[], SEALED).map(drop))
}

/// An overlay on tmpfs with `userxattr`. A plain mount lies: a directory is removed and made again, which without
/// user xattrs on the upper layer ends in EIO (tmpfs has them since Linux 6.6), and a file of the lower layer is
/// opened for writing, which copies it up.
pub(super) fn overlay(probes: &Probes) -> Outcome {
    probes.run(MOUNTING, || {
        let store = store()?;
        let store = store.as_fd();
        for name in [c"lower", c"upper", c"work", c"lower/directory", c"lower/directory/below"] {
            mkdirat(store, name, 0o755).by("mkdir on tmpfs")?;
        }
        mkfileat(store, c"lower/file", 0o644).by("mknod on tmpfs")?;
        // Names are resolved from the working directory: no /proc is needed for them.
        fchdir(store).by("fchdir")?;
        let context = mount::fsopen(c"overlay").by("fsopen of overlay")?;
        for (key, dir) in [(c"lowerdir", c"lower"), (c"upperdir", c"upper"), (c"workdir", c"work")] {
            mount::fsconfig_string(context.as_fd(), key, dir).by("fsconfig of overlay")?;
        }
        mount::fsconfig_flag(context.as_fd(), c"userxattr").by("fsconfig of overlay with userxattr")?;
        mount::fsconfig_create(context.as_fd()).by("fsconfig of overlay")?;
        let merged = mount::fsmount(context.as_fd(), PLAIN).by("fsmount of overlay")?;
        change(merged.as_fd())
    })
}

fn change(merged: BorrowedFd<'_>) -> Tried {
    openat(merged, c"file", Open::Write).map(drop).by("a copy-up in an overlay")?;
    unlinkat(merged, c"directory/below", Kind::Directory).by("rmdir in an overlay")?;
    unlinkat(merged, c"directory", Kind::Directory).by("rmdir in an overlay")?;
    mkdirat(merged, c"directory", 0o755).by("mkdir over a removed directory in an overlay")
}

/// What /dev is made of besides the nodes: a bind of one node, an own devpts, message queues.
pub(super) fn devices(probes: &Probes) -> Outcome {
    let node = probes.run(MOUNTING, || {
        let node = mount::open_tree(HERE, c"/dev/null", Depth::Single).by("open_tree of /dev/null")?;
        let attr = Attr(Attr::NOSUID.0 | Attr::NOEXEC.0);
        mount::mount_setattr(node.as_fd(), attr, Depth::Single).by("mount_setattr of /dev/null")
    });
    if !node.works() {
        return node;
    }
    let terminals = probes.run(MOUNTING, || {
        let options = [(c"mode", c"0620"), (c"ptmxmode", c"0666")];
        new_fs(c"devpts", &options, Attr(Attr::NOSUID.0 | Attr::NOEXEC.0)).map(drop)
    });
    if !terminals.works() {
        return terminals;
    }
    probes.run(MOUNTING | Namespaces::IPC, || new_fs(c"mqueue", &[], GUARDED).map(drop))
}

/// Opens /dev/fuse inside: one opened outside cannot be mounted in a user namespace.
pub(super) fn fuse(probes: &Probes) -> Outcome {
    probes.run(MOUNTING, || openat(HERE, c"/dev/fuse", Open::ReadWrite).map(drop).by("open /dev/fuse"))
}
