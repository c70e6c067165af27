//! /dev, /proc and /sys: what the kernel fills, what of it is masked, and the sandbox's own terminal.
//!
//! Part of the child's stage `Root`, under the same rules as `mounts`.

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::{Call, Message, tell};
use super::child::Child;
use super::mounts::{Done, GUARDED, Tree, attach_at, clone_tree, held, new_fs, open_target};
use super::script::{Base, Failure, In, Op, Target};
use crate::sys::fs::{self, HERE, Kind, Open};
use crate::sys::mount::{self, Attr, Depth};
use crate::sys::tty::Size;
use crate::sys::{self, ENOENT};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The operations on the file systems that the kernel itself fills.
pub(super) fn kernel_fs(tree: &mut Tree, op: &Op) -> Done {
    match op {
        Op::Dev(target) => tree.make_dev(target),
        Op::Devpts { gid } => tree.make_devpts(gid.as_deref()),
        Op::HostShm => tree.host_shm(),
        Op::DevMqueue => {
            let made = new_fs(c"mqueue", &[], GUARDED)?;
            mount::move_mount_to(made.as_fd(), held(&tree.dev)?, c"mqueue").called(Call::MoveMount)?;
            std::mem::forget(made);
            Ok(())
        }
        Op::Mqueue(target) => {
            let made = new_fs(c"mqueue", &[], GUARDED)?;
            tree.attach(made, target, Kind::Directory)
        }
        Op::Proc(target) => {
            let proc = new_fs(c"proc", &[], GUARDED)?;
            let at = open_target(held(&tree.root)?, target, Kind::Directory)?;
            attach_at(&proc, at.as_fd(), Kind::Directory)?;
            std::mem::forget(at);
            tree.proc = Some(proc);
            Ok(())
        }
        Op::NoUserNamespaces => {
            let file = fs::open_beneath(held(&tree.proc)?, c"sys/user/max_user_namespaces", Open::Write);
            fs::write_all(file.called(Call::Openat2)?.as_fd(), b"0").called(Call::Write)
        }
        Op::ReadOnly(path) => tree.read_only(path),
        Op::Mask { base, path, asked } => tree.mask(*base, path, *asked),
        Op::Sys(target) => tree.attach_sys(target),
        Op::EmptySys { target, cgroup } => {
            let bound = tree.store_dir(c"sys", 0o555, Attr(GUARDED.0 | Attr::RDONLY.0))?;
            if *cgroup {
                [c"sys/fs", c"sys/fs/cgroup"]
                    .iter()
                    .try_for_each(|dir| fs::mkdirat(held(&tree.store)?, dir, 0o555).called(Call::Mkdir))?;
            }
            tree.attach(bound, target, Kind::Directory)
        }
        Op::Cgroup(target) => tree.attach_cgroup(target),
        _ => Err(Failure(Call::ReadBack, sys::ENOSYS)),
    }
}

/// A sysfs of the caller's network namespace; read-only, for most of it is the host's.
pub(super) fn new_sysfs() -> Result<OwnedFd, Failure> {
    new_fs(c"sysfs", &[], Attr(GUARDED.0 | Attr::RDONLY.0))
}

impl Tree {
    /// /dev: the six devices of the host, each proven to be the one it is named (S12), links, shm. Each is guarded,
    /// and cut off from the host's mount events, before it is attached: in a tree that is attached nowhere only the
    /// root can be changed.
    pub(super) fn make_dev(&mut self, target: &Target) -> Done {
        let dev = self.store_dir(c"dev", 0o755, GUARDED)?;
        let at = open_target(held(&self.root)?, target, Kind::Directory)?;
        attach_at(&dev, at.as_fd(), Kind::Directory)?;
        for (path, name, numbers) in DEVICES {
            fs::mkfileat(dev.as_fd(), name, 0o666).called(Call::Mknod)?;
            let node = clone_tree(HERE, path, Depth::Single, Attr(Attr::NOSUID.0 | Attr::NOEXEC.0))?;
            prove_device(node.as_fd(), Some(numbers))?;
            mount::move_mount_to(node.as_fd(), dev.as_fd(), name).called(Call::MoveMount)?;
            std::mem::forget(node);
        }
        for (name, to) in LINKS {
            fs::symlinkat(to, dev.as_fd(), name).called(Call::Symlink)?;
        }
        for (name, mode) in [(c"pts", 0o755), (c"shm", 0o1777), (c"mqueue", 0o1777)] {
            fs::mkdirat(dev.as_fd(), name, mode).called(Call::Mkdir)?;
        }
        std::mem::forget(at);
        self.dev = Some(dev);
        Ok(())
    }

    pub(super) fn make_devpts(&mut self, gid: Option<&CStr>) -> Done {
        let context = mount::fsopen(c"devpts").called(Call::Fsopen)?;
        let options = [(c"mode", c"0620"), (c"ptmxmode", c"0666")];
        for (key, value) in options.into_iter().chain(gid.map(|gid| (c"gid", gid))) {
            mount::fsconfig_string(context.as_fd(), key, value).called(Call::Fsconfig)?;
        }
        mount::fsconfig_create(context.as_fd()).called(Call::Fsconfig)?;
        let devpts = mount::fsmount(context.as_fd(), Attr(Attr::NOSUID.0 | Attr::NOEXEC.0)).called(Call::Fsmount)?;
        std::mem::forget(context);
        mount::move_mount_to(devpts.as_fd(), held(&self.dev)?, c"pts").called(Call::MoveMount)?;
        self.devpts = Some(devpts);
        Ok(())
    }

    pub(super) fn host_shm(&self) -> Done {
        for (path, name) in [(c"/dev/shm", c"shm"), (c"/dev/mqueue", c"mqueue")] {
            match mount::open_tree(HERE, path, Depth::Recursive) {
                Ok(tree) => {
                    mount::mount_setattr(tree.as_fd(), GUARDED, Depth::Recursive).called(Call::MountSetattr)?;
                    mount::move_mount_to(tree.as_fd(), held(&self.dev)?, name).called(Call::MoveMount)?;
                }
                Err(ENOENT) => {}
                Err(errno) => return Err(Failure(Call::OpenTree, errno)),
            }
        }
        Ok(())
    }

    pub(super) fn device(&self, src: &CStr, target: &Target) -> Done {
        let node = device_tree(src)?;
        self.attach(node, target, Kind::File)
    }

    /// A path of our own /proc under a read-only mount of itself; absent ones need none. What the kernel put into
    /// a proc file system of our own is no hostile path, so the call's own lookup will do.
    pub(super) fn read_only(&self, path: &CStr) -> Done {
        let proc = held(&self.proc)?;
        let tree = match mount::open_tree_with(proc, path, Attr::RDONLY, Depth::Single) {
            Err(ENOENT) => return Ok(()),
            other => other.called(Call::OpenTree)?,
        };
        mount::move_mount_to(tree.as_fd(), proc, path).called(Call::MoveMount)?;
        std::mem::forget(tree);
        Ok(())
    }

    /// Directories read as empty, files as the null device.
    pub(super) fn mask(&mut self, base: Base, path: &CStr, asked: bool) -> Done {
        let kernels = match base {
            Base::Proc => held(&self.proc)?,
            Base::Sys if self.sys.is_none() && asked => return Err(Failure(Call::Stat, ENOENT)),
            Base::Sys if self.sys.is_none() => return Ok(()),
            Base::Sys => held(&self.sys)?,
            Base::Root => return self.mask_in_root(path, asked),
        };
        let kind = match fs::lstat(kernels, path) {
            Err(ENOENT) if !asked => return Ok(()),
            found => found.called(Call::Stat)?.kind,
        };
        let cover = self.cover(kind)?;
        mount::move_mount_to(cover.as_fd(), kernels, path).called(Call::MoveMount)?;
        match kind {
            Kind::Directory => self.empty = Some(cover),
            _ => std::mem::forget(cover),
        }
        Ok(())
    }

    pub(super) fn mask_in_root(&self, path: &CStr, asked: bool) -> Done {
        let at = match fs::open_in_root(held(&self.root)?, path, Open::Path) {
            Err(ENOENT) if !asked => return Ok(()),
            other => other.called(Call::Openat2)?,
        };
        let kind = fs::fstat(at.as_fd()).called(Call::Stat)?.kind;
        attach_at(&self.cover(kind)?, at.as_fd(), kind)
    }

    /// What lies over a masked place: an empty directory of the store, or the null device of our own /dev, which
    /// was proven to be one.
    pub(super) fn cover(&self, kind: Kind) -> Result<OwnedFd, Failure> {
        match (kind, &self.empty) {
            // A copy of a read-only mount is one too.
            (Kind::Directory, Some(empty)) => {
                mount::open_tree(empty.as_fd(), c"", Depth::Single).called(Call::OpenTree)
            }
            (Kind::Directory, None) => self.store_dir(c"empty", 0o555, Attr(GUARDED.0 | Attr::RDONLY.0)),
            _ => mount::open_tree(held(&self.dev)?, c"null", Depth::Single).called(Call::OpenTree),
        }
    }

    /// Takes the sysfs that init made in the sandbox's network namespace.
    pub(super) fn attach_sys(&mut self, target: &Target) -> Done {
        let sysfs = self.handed_mount()?;
        let at = open_target(held(&self.root)?, target, Kind::Directory)?;
        attach_at(&sysfs, at.as_fd(), Kind::Directory)?;
        std::mem::forget(at);
        self.sys = Some(sysfs);
        Ok(())
    }

    /// Takes the mount that init made in the sandbox's cgroup namespace.
    fn attach_cgroup(&self, target: &Target) -> Done {
        let cgroup = self.handed_mount()?;
        let at = open_target(held(&self.root)?, target, Kind::Directory)?;
        attach_at(&cgroup, at.as_fd(), Kind::Directory)?;
        std::mem::forget((cgroup, at));
        Ok(())
    }

    /// The next mount that init hands over, by its number in the table that both share, or why there is none.
    fn handed_mount(&self) -> Result<OwnedFd, Failure> {
        let mut number = [0; 4];
        let length = fs::read(held(&self.mounts_from)?, &mut number).called(Call::Fsmount)?;
        match i32::from_ne_bytes(number) {
            number if length == 4 && number > 0 => Ok(sys::adopt(number)),
            number => Err(Failure(Call::Fsmount, sys::Errno(-number))),
        }
    }

    /// What the helper has opened, by the number that it has in the table that both share.
    pub(super) fn adopt(&self, from: BorrowedFd<'_>, wanted: bool) -> Option<OwnedFd> {
        let mut number = [0; 4];
        let length = if wanted { fs::read(from, &mut number).ok()? } else { 0 };
        (length == 4).then(|| sys::adopt(i32::from_ne_bytes(number)))
    }
}

const DEVICES: [(&CStr, &CStr, (u32, u32)); 6] = [
    (c"/dev/null", c"null", (1, 3)),
    (c"/dev/zero", c"zero", (1, 5)),
    (c"/dev/full", c"full", (1, 7)),
    (c"/dev/random", c"random", (1, 8)),
    (c"/dev/urandom", c"urandom", (1, 9)),
    (c"/dev/tty", c"tty", (5, 0)),
];

const LINKS: [(&CStr, &CStr); 5] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];

/// A device node of the host as a mount.
fn device_tree(path: &CStr) -> Result<OwnedFd, Failure> {
    let tree = clone_tree(HERE, path, Depth::Single, Attr(Attr::NOSUID.0 | Attr::NOEXEC.0))?;
    prove_device(tree.as_fd(), None)?;
    Ok(tree)
}

/// Proves that a node is a device, and the one with these numbers.
fn prove_device(node: BorrowedFd<'_>, numbers: Option<(u32, u32)>) -> Done {
    match (fs::fstat(node).called(Call::Stat)?.kind, numbers) {
        (Kind::Character(major, minor), Some(numbers)) if (major, minor) == numbers => Ok(()),
        (Kind::Character(..) | Kind::Block(..), None) => Ok(()),
        _ => Err(Failure(Call::ReadBack, sys::ENXIO)),
    }
}

/// A terminal of the sandbox's own.
pub(super) fn terminal(child: &mut Child<'_>, op: &Op) -> Done {
    match op {
        Op::Terminal { uid, size } => open_terminal(child, *uid, *size),
        Op::EnterTerminal { uid, size } => enter_terminal(child, *uid, *size),
        _ => Err(Failure(Call::ReadBack, sys::ENOSYS)),
    }
}

/// statfs(2)'s number of a devpts file system.
const DEVPTS: u64 = 0x1cd1;

/// A terminal on the /dev/pts of a sandbox that runs. Its program may have put anything into /dev, but it cannot mount:
/// what is a devpts there is the sandbox's own.
fn enter_terminal(child: &mut Child<'_>, uid: u32, size: Size) -> Done {
    let root = fs::openat(HERE, c"/", Open::Directory).called(Call::Open)?;
    let master = fs::open_beneath(root.as_fd(), c"dev/pts/ptmx", Open::ReadWrite).called(Call::Openat2)?;
    if mount::fstatfs(master.as_fd()).called(Call::Stat)?.kind != DEVPTS {
        return Err(Failure(Call::ReadBack, sys::NOT_TAKEN));
    }
    sys::tty::unlock(master.as_fd()).called(Call::Ioctl)?;
    // The parent may come later than the program's first look.
    let _ = sys::tty::set_size(master.as_fd(), size);
    let slave = sys::tty::peer(master.as_fd()).called(Call::Terminal)?;
    fs::chown_user(slave.as_fd(), uid).called(Call::Chown)?;
    tell(child.channel, Message::Terminal, Some(master.as_fd())).called(Call::Send)?;
    child.terminal = Some(slave);
    std::mem::forget((root, master));
    Ok(())
}

/// The master goes to the parent, the slave to the program; /dev/console is the slave too (S13: the slave comes
/// from the master's own devpts, and no name of ROOTFS is looked at).
fn open_terminal(child: &mut Child<'_>, uid: u32, size: Size) -> Done {
    let tree = &child.tree;
    let master = fs::open_beneath(held(&tree.devpts)?, c"ptmx", Open::ReadWrite).called(Call::Openat2)?;
    sys::tty::unlock(master.as_fd()).called(Call::Ioctl)?;
    // The parent may come later than the program's first look.
    let _ = sys::tty::set_size(master.as_fd(), size);
    let slave = sys::tty::peer(master.as_fd()).called(Call::Terminal)?;
    fs::chown_user(slave.as_fd(), uid).called(Call::Chown)?;
    let dev = held(&tree.dev)?;
    fs::mkfileat(dev, c"console", 0o620).called(Call::Mknod)?;
    let console = clone_tree(slave.as_fd(), c"", Depth::Single, Attr(Attr::NOSUID.0 | Attr::NOEXEC.0))?;
    mount::move_mount_to(console.as_fd(), dev, c"console").called(Call::MoveMount)?;
    tell(child.channel, Message::Terminal, Some(master.as_fd())).called(Call::Send)?;
    fs::write_all(sys::borrow(child.between), &slave.as_raw_fd().to_ne_bytes()).called(Call::Write)?;
    std::mem::forget(slave);
    Ok(())
}
