//! The child's stages `Root` and `Pivot`: the new root, built by descriptors only.
//!
//! One invariant: whatever ROOTFS holds, every name below the new root is resolved beneath its descriptor
//! (openat2) and acted on through the descriptor that came out (DESIGN 4.2, security.md S10).

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::{Call, Message, tell};
use super::child::{Child, decimal_path};
use super::prepare::MAX_TREES;
use super::script::{Base, Failure, In, Naming, Op, OverlayOp, Src, Target, UpperDirs};
use crate::sys::fs::{self, HERE, Kind, Open};
use crate::sys::mount::{self, Attr, Depth};
use crate::sys::{self, EEXIST, EISDIR, ENOENT, ENOTDIR};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub(super) type Done = Result<(), Failure>;

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

/// What is open while the root is built.
#[derive(Default)]
pub(super) struct Tree {
    /// User and group, as seen inside, of what this process makes.
    creator: (u32, u32),
    /// Numbers of the mounts that the parent made.
    trees: Trees,
    /// The one tmpfs.
    pub store: Option<OwnedFd>,
    /// The new root's mount.
    root: Option<OwnedFd>,
    pub seeded: Option<Seeded>,
    dev: Option<OwnedFd>,
    devpts: Option<OwnedFd>,
    proc: Option<OwnedFd>,
    sys: Option<OwnedFd>,
    /// An empty read-only directory that already masks something.
    empty: Option<OwnedFd>,
    /// Where init says the number of its sysfs, and where the terminal's number goes back.
    pub sysfs_from: Option<OwnedFd>,
}

/// An open descriptor that an earlier step of every plan has made.
pub(super) fn held(fd: &Option<OwnedFd>) -> Result<BorrowedFd<'_>, Failure> {
    fd.as_ref().map(AsFd::as_fd).ok_or(Failure(Call::Open, sys::Errno(0)))
}

const GUARDED: Attr = Attr(Attr::NOSUID.0 | Attr::NODEV.0 | Attr::NOEXEC.0);
pub(super) const PLAIN: Attr = Attr(Attr::NOSUID.0 | Attr::NODEV.0);

/// Runs one operation of the two stages.
pub(super) fn step(child: &mut Child<'_>, op: &Op) -> Done {
    let tree = &mut child.tree;
    match op {
        Op::Store(size) => tree.make_store(size),
        Op::Seed { overlay, dir, like, file, content } => tree.seed(overlay, dir, *like, file, content),
        Op::Overlay(overlay) => {
            let made = tree.overlay(overlay, PLAIN)?;
            tree.set_root(made)
        }
        Op::Fuse(overlay) => {
            let made = super::fuse_root::mount(tree, child.channel, overlay)?;
            tree.set_root(made)
        }
        Op::BindRoot(src) => {
            let bound = clone_tree(HERE, src, Depth::Recursive, PLAIN)?;
            tree.set_root(bound)
        }
        Op::EmptyRoot => {
            let bound = tree.store_dir(c"host", 0o755, PLAIN)?;
            tree.set_root(bound)
        }
        Op::Link(target, at) => tree.link(target, at),
        Op::Scratch { name, target, mode, attr } => {
            let bound = tree.store_dir(name, *mode, *attr)?;
            tree.attach_and_leave(bound, target)
        }
        Op::Supply { name, content, parent, entry } => tree.supply(name, content, parent, entry),
        Op::Place { path, content } => new_file(held(&tree.store)?, path, content),
        Op::Bind { src, target, attr } => {
            let bound = match src {
                Src::Path(path) => clone_tree(HERE, path, Depth::Recursive, *attr)?,
                Src::Tree(index, _) => tree.handed_over(*index)?,
            };
            let kind = fs::fstat(bound.as_fd()).called(Call::Stat)?.kind;
            tree.attach(bound, target, kind)
        }
        Op::OverlayBind(overlay, target, attr) => {
            let made = tree.overlay(overlay, *attr)?;
            tree.attach(made, target, Kind::Directory)
        }
        Op::Tmpfs { size, mode, target, attr } => {
            let options = [(c"size", size.as_c_str()), (c"mode", mode.as_c_str())];
            let made = new_fs(c"tmpfs", &options, *attr)?;
            tree.attach(made, target, Kind::Directory)
        }
        Op::Device { src, target } => tree.device(src, target),
        Op::SealRoot(below) => tree.seal(below),
        Op::Pivot => tree.pivot(),
        Op::Terminal { uid } => open_terminal(child, *uid),
        other => kernel_fs(tree, other),
    }
}

/// The operations on the file systems that the kernel itself fills.
fn kernel_fs(tree: &mut Tree, op: &Op) -> Done {
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
        Op::EmptySys(target) => {
            let bound = tree.store_dir(c"sys", 0o555, Attr(GUARDED.0 | Attr::RDONLY.0))?;
            tree.attach(bound, target, Kind::Directory)
        }
        _ => Err(Failure(Call::ReadBack, sys::ENOSYS)),
    }
}

/// A new file system, detached. Its context stays open: see `attach_at`.
fn new_fs(kind: &CStr, options: &[(&CStr, &CStr)], attr: Attr) -> Result<OwnedFd, Failure> {
    let context = mount::fsopen(kind).called(Call::Fsopen)?;
    for (key, value) in options {
        mount::fsconfig_string(context.as_fd(), key, value).called(Call::Fsconfig)?;
    }
    mount::fsconfig_create(context.as_fd()).called(Call::Fsconfig)?;
    let made = mount::fsmount(context.as_fd(), attr).called(Call::Fsmount);
    std::mem::forget(context);
    made
}

/// A sysfs of the caller's network namespace; read-only, for most of it is the host's.
pub(super) fn new_sysfs() -> Result<OwnedFd, Failure> {
    new_fs(c"sysfs", &[], Attr(GUARDED.0 | Attr::RDONLY.0))
}

/// A detached copy of a mount with attributes added before anybody can see it.
pub(super) fn clone_tree(dir: BorrowedFd<'_>, path: &CStr, depth: Depth, attr: Attr) -> Result<OwnedFd, Failure> {
    mount::open_tree_with(dir, path, attr, depth).called(Call::OpenTree)
}

pub(super) fn make_dir(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Done {
    match fs::mkdirat(dir, name, mode) {
        Ok(()) | Err(EEXIST) => Ok(()),
        Err(errno) => Err(Failure(Call::Mkdir, errno)),
    }
}

fn new_file(dir: BorrowedFd<'_>, path: &CStr, content: &[u8]) -> Done {
    let file = fs::openat_mode(dir, path, Open::New, 0o644).called(Call::Open)?;
    let written = fs::write_all(file.as_fd(), content).called(Call::Write);
    std::mem::forget(file);
    written
}

/// Opens a place beneath the root, making what is missing: directories, and at last an entry of this kind.
/// Nothing that exists is changed.
fn open_target(root: BorrowedFd<'_>, target: &Target, kind: Kind) -> Result<OwnedFd, Failure> {
    match fs::open_in_root(root, &target.path, Open::Path) {
        Err(ENOENT) => make_parts(root, target, kind),
        other => other.called(Call::Openat2),
    }
}

/// Attaches a tree at an open place, and leaves its descriptor open: closing costs more than the few that a
/// launch makes are worth, and this process ends soon. Whoever makes many closes them (`Tree::attach`).
fn attach_at(tree: &OwnedFd, at: BorrowedFd<'_>, kind: Kind) -> Done {
    mount::move_mount(tree.as_fd(), at).map_err(|errno| match (errno, fs::fstat(at)) {
        // A directory goes on a directory, everything else on something else.
        (sys::EINVAL, Ok(stat)) if kind == Kind::Directory && stat.kind != Kind::Directory => {
            Failure(Call::MoveMount, ENOTDIR)
        }
        (sys::EINVAL, Ok(stat)) if kind != Kind::Directory && stat.kind == Kind::Directory => {
            Failure(Call::MoveMount, EISDIR)
        }
        _ => Failure(Call::MoveMount, errno),
    })
}

fn make_parts(root: BorrowedFd<'_>, target: &Target, kind: Kind) -> Result<OwnedFd, Failure> {
    let mut parent = fs::open_in_root(root, c".", Open::Path).called(Call::Openat2)?;
    for (index, (path, name)) in target.parts.iter().enumerate() {
        let last = index + 1 == target.parts.len();
        parent = match fs::open_in_root(root, path, Open::Path) {
            Err(ENOENT) => {
                if last && kind != Kind::Directory {
                    fs::mkfileat(parent.as_fd(), name, 0o444).called(Call::Mknod)?;
                } else {
                    fs::mkdirat(parent.as_fd(), name, 0o755).called(Call::Mkdir)?;
                }
                fs::open_beneath(parent.as_fd(), name, Open::Path).called(Call::Openat2)?
            }
            other => other.called(Call::Openat2)?,
        };
    }
    Ok(parent)
}

impl Tree {
    /// Nothing is open yet.
    pub(super) fn new(creator: (u32, u32), trees: Trees) -> Tree {
        Tree { creator, trees, ..Tree::default() }
    }

    /// The store is attached on top of `/`, where it hides nothing from this process, whose own root lies
    /// below: kernels before 6.15 take no layer of an overlay from a detached mount.
    fn make_store(&mut self, size: &CStr) -> Done {
        let store = new_fs(c"tmpfs", &[(c"size", size)], PLAIN)?;
        mount::move_mount_to(store.as_fd(), HERE, c"/").called(Call::MoveMount)?;
        self.store = Some(store);
        Ok(())
    }

    /// Attaches the new root on top of the store, so that everything else can be mounted on it by descriptor.
    fn set_root(&mut self, root: OwnedFd) -> Done {
        mount::move_mount_to(root.as_fd(), HERE, c"/").called(Call::MoveMount)?;
        self.root = Some(root);
        Ok(())
    }

    fn attach(&self, tree: OwnedFd, target: &Target, kind: Kind) -> Done {
        let at = open_target(held(&self.root)?, target, kind)?;
        attach_at(&tree, at.as_fd(), kind)
    }

    /// As `attach`, without the closing.
    fn attach_and_leave(&self, tree: OwnedFd, target: &Target) -> Done {
        let at = open_target(held(&self.root)?, target, Kind::Directory)?;
        let done = attach_at(&tree, at.as_fd(), Kind::Directory);
        std::mem::forget((tree, at));
        done
    }

    /// A directory of the store as a mount of its own.
    fn store_dir(&self, name: &CStr, mode: u32, attr: Attr) -> Result<OwnedFd, Failure> {
        let store = held(&self.store)?;
        make_dir(store, name, mode)?;
        // The store itself is mounted so, and private: a copy of it needs nothing more.
        match attr {
            PLAIN => mount::open_tree(store, name, Depth::Single).called(Call::OpenTree),
            _ => clone_tree(store, name, Depth::Single, attr),
        }
    }

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
    fn give(&self, dir: BorrowedFd<'_>, uid: u32, gid: u32) {
        if (uid, gid) != self.creator {
            let _ = fs::fchown(dir, uid, gid);
        }
    }

    /// Writes a file into the root's upper layer before the overlay exists.
    fn seed(&mut self, overlay: &OverlayOp, dir: &CStr, like: (u32, u32, u32), file: &CStr, content: &[u8]) -> Done {
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
    fn overlay(&self, overlay: &OverlayOp, attr: Attr) -> Result<OwnedFd, Failure> {
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

    /// A read-only layer: a directory of the host, or an idmapped mount, which has to be attached before an overlay
    /// takes it.
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
    fn handed_over(&self, index: usize) -> Result<OwnedFd, Failure> {
        match self.trees.get(index) {
            Some(&number) if number >= 0 => Ok(sys::adopt(number)),
            _ => Err(Failure(Call::Receive, ENOENT)),
        }
    }

    fn link(&self, target: &CStr, at: &Target) -> Done {
        let (parent, name) = self.parent_of(at)?;
        fs::symlinkat(target, parent.as_fd(), name).called(Call::Symlink)
    }

    /// The directory that holds a place, and the place's own name.
    fn parent_of<'t>(&self, at: &'t Target) -> Result<(OwnedFd, &'t CStr), Failure> {
        let root = held(&self.root)?;
        match at.parts.as_slice() {
            [.., (path, _), (_, name)] => {
                Ok((fs::open_in_root(root, path, Open::Directory).called(Call::Openat2)?, name))
            }
            [(_, name)] => Ok((fs::open_in_root(root, c".", Open::Directory).called(Call::Openat2)?, name)),
            [] => Err(Failure(Call::Openat2, sys::EINVAL)),
        }
    }

    /// Mounts a supplied file on the entry itself, also where that is a symlink (DESIGN 4.2).
    fn supply(&self, name: &CStr, content: &[u8], parent: &Target, entry: &CStr) -> Done {
        let store = held(&self.store)?;
        new_file(store, name, content)?;
        let tree = clone_tree(store, name, Depth::Single, GUARDED)?;
        let dir = open_target(held(&self.root)?, parent, Kind::Directory)?;
        let at = match fs::open_beneath(dir.as_fd(), entry, Open::Entry) {
            Err(ENOENT) => {
                fs::mkfileat(dir.as_fd(), entry, 0o644).called(Call::Mknod)?;
                fs::open_beneath(dir.as_fd(), entry, Open::Entry)
            }
            other => other,
        };
        mount::move_mount(tree.as_fd(), at.called(Call::Openat2)?.as_fd()).called(Call::MoveMount)
    }

    /// /dev: the six devices of the host, each proven to be the one it is named (S12), links, shm. One call at the
    /// end guards all of it, and cuts it off from the host's mount events.
    fn make_dev(&mut self, target: &Target) -> Done {
        let dev = self.store_dir(c"dev", 0o755, PLAIN)?;
        let at = open_target(held(&self.root)?, target, Kind::Directory)?;
        attach_at(&dev, at.as_fd(), Kind::Directory)?;
        for (path, name, numbers) in DEVICES {
            fs::mkfileat(dev.as_fd(), name, 0o666).called(Call::Mknod)?;
            let node = mount::open_tree(HERE, path, Depth::Single).called(Call::OpenTree)?;
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
        let guarded = Attr(Attr::NOSUID.0 | Attr::NOEXEC.0);
        mount::mount_setattr(dev.as_fd(), guarded, Depth::Recursive).called(Call::MountSetattr)?;
        std::mem::forget(at);
        self.dev = Some(dev);
        Ok(())
    }

    fn make_devpts(&mut self, gid: Option<&CStr>) -> Done {
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

    fn host_shm(&self) -> Done {
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

    fn device(&self, src: &CStr, target: &Target) -> Done {
        let node = device_tree(src)?;
        self.attach(node, target, Kind::File)
    }

    /// A path of our own /proc under a read-only mount of itself; absent ones need none. What the kernel put into
    /// a proc file system of our own is no hostile path, so the call's own lookup will do.
    fn read_only(&self, path: &CStr) -> Done {
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
    fn mask(&mut self, base: Base, path: &CStr, asked: bool) -> Done {
        let kernels = match base {
            Base::Proc => held(&self.proc)?,
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

    fn mask_in_root(&self, path: &CStr, asked: bool) -> Done {
        let at = match fs::open_in_root(held(&self.root)?, path, Open::Path) {
            Err(ENOENT) if !asked => return Ok(()),
            other => other.called(Call::Openat2)?,
        };
        let kind = fs::fstat(at.as_fd()).called(Call::Stat)?.kind;
        attach_at(&self.cover(kind)?, at.as_fd(), kind)
    }

    /// What lies over a masked place: an empty directory of the store, or the null device of our own /dev, which
    /// was proven to be one.
    fn cover(&self, kind: Kind) -> Result<OwnedFd, Failure> {
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
    fn attach_sys(&mut self, target: &Target) -> Done {
        let mut number = [0; 4];
        let from = held(&self.sysfs_from)?;
        let length = fs::read(from, &mut number).called(Call::Fsmount)?;
        let number = i32::from_ne_bytes(number);
        if length != 4 || number < 0 {
            return Err(Failure(Call::Fsmount, sys::Errno(-number)));
        }
        let sysfs = sys::adopt(number);
        let at = open_target(held(&self.root)?, target, Kind::Directory)?;
        attach_at(&sysfs, at.as_fd(), Kind::Directory)?;
        std::mem::forget(at);
        self.sys = Some(sysfs);
        Ok(())
    }

    /// Makes the root's mount read-only, and the overlays that `@host` is made of.
    fn seal(&self, below: &[CString]) -> Done {
        let root = held(&self.root)?;
        for path in below {
            let at = fs::open_in_root(root, path, Open::Path).called(Call::Openat2)?;
            mount::mount_setattr(at.as_fd(), Attr::RDONLY, Depth::Single).called(Call::MountSetattr)?;
        }
        mount::mount_setattr(root, Attr::RDONLY, Depth::Single).called(Call::MountSetattr)
    }

    /// The new root becomes the root, and nothing of the old one stays reachable (S18).
    fn pivot(&self) -> Done {
        fs::fchdir(held(&self.root)?).called(Call::Chdir)?;
        mount::pivot_root_here().called(Call::Pivot)?;
        // On top of the new root lies now the old one, and on that the store.
        for _ in 0..2 {
            mount::detach_here().called(Call::Umount)?;
        }
        fs::chdir(c"/").called(Call::Chdir)?;
        // Proof: what lies on top of the root, which `..` of it leads to, is the new root's own mount.
        let top = fs::mount_id(HERE, c"/..").called(Call::Stat)?;
        let root = fs::mount_id(held(&self.root)?, c"").called(Call::Stat)?;
        if top == root { Ok(()) } else { Err(Failure(Call::ReadBack, sys::NOT_TAKEN)) }
    }

    /// The number that the helper's terminal has in the table that both share.
    pub(super) fn adopt_terminal(&self, from: BorrowedFd<'_>, wanted: bool) -> Option<OwnedFd> {
        let mut number = [0; 4];
        let length = if wanted { fs::read(from, &mut number).ok()? } else { 0 };
        (length == 4).then(|| sys::adopt(i32::from_ne_bytes(number)))
    }
}

/// The root's upper layer while files are put into it.
pub(super) struct Seeded {
    /// The layer below it.
    pub lower: OwnedFd,
    upper: OwnedFd,
    work: OwnedFd,
    etc: OwnedFd,
}

/// Overlay takes layers by descriptor since 6.13, and by path where the kernel is older.
fn add_layer(context: BorrowedFd<'_>, key: &CStr, layer: BorrowedFd<'_>, naming: Naming) -> sys::Result<()> {
    if naming == Naming::Descriptor {
        return mount::fsconfig_fd(context, key, layer);
    }
    let mut number = [0; 24];
    let number = decimal_path(&mut number, layer.as_raw_fd()).to_bytes_with_nul();
    const DIR: &[u8] = b"/proc/self/fd/";
    let mut path = [0; 40];
    path[..DIR.len()].copy_from_slice(DIR);
    path[DIR.len()..DIR.len() + number.len()].copy_from_slice(number);
    let path = CStr::from_bytes_until_nul(&path).unwrap_or(c"");
    // Before 6.5 there is no `lowerdir+`; a single layer goes by the old word.
    let key = if naming == Naming::OneOption && key == c"lowerdir+" { c"lowerdir" } else { key };
    mount::fsconfig_string(context, key, path)
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
        (Kind::Character(..) | Kind::Block, None) => Ok(()),
        _ => Err(Failure(Call::ReadBack, sys::ENXIO)),
    }
}

/// The master goes to the parent, the slave to the program; /dev/console is the slave too (S13: the slave comes
/// from the master's own devpts, and no name of ROOTFS is looked at).
fn open_terminal(child: &mut Child<'_>, uid: u32) -> Done {
    let tree = &child.tree;
    let master = fs::open_beneath(held(&tree.devpts)?, c"ptmx", Open::ReadWrite).called(Call::Openat2)?;
    sys::tty::unlock(master.as_fd()).called(Call::Ioctl)?;
    let slave = sys::tty::peer(master.as_fd()).called(Call::Terminal)?;
    fs::chown_user(slave.as_fd(), uid).called(Call::Chown)?;
    let dev = held(&tree.dev)?;
    fs::mkfileat(dev, c"console", 0o620).called(Call::Mknod)?;
    let console = clone_tree(slave.as_fd(), c"", Depth::Single, Attr(Attr::NOSUID.0 | Attr::NOEXEC.0))?;
    mount::move_mount_to(console.as_fd(), dev, c"console").called(Call::MoveMount)?;
    tell(child.channel, Message::Terminal, Some(master.as_fd())).called(Call::Send)?;
    let back = sys::borrow(child.terminal_back);
    fs::write_all(back, &slave.as_raw_fd().to_ne_bytes()).called(Call::Write)?;
    std::mem::forget(slave);
    Ok(())
}
