//! The child's stages `Root` and `Pivot`: the new root, built by descriptors only.
//!
//! One invariant: whatever ROOTFS holds, every name below the new root is resolved beneath its descriptor
//! (openat2) and acted on through the descriptor that came out (DESIGN 4.2, security.md S10).

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::{Call, Message, tell};
use super::child::{Child, decimal_path};
use super::script::{Base, Failure, In, Naming, Op, OverlayOp, Target, UpperDirs};
use crate::sys::fs::{self, HERE, Kind, Open};
use crate::sys::mount::{self, Attr, Depth};
use crate::sys::{self, EEXIST, EISDIR, ENOENT, ENOTDIR};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

type Done = Result<(), Failure>;

/// What is open while the root is built.
#[derive(Default)]
pub(super) struct Tree {
    /// The one tmpfs.
    store: Option<OwnedFd>,
    /// The new root's mount.
    root: Option<OwnedFd>,
    seeded: Option<Seeded>,
    dev: Option<OwnedFd>,
    devpts: Option<OwnedFd>,
    proc: Option<OwnedFd>,
    sys: Option<OwnedFd>,
    /// Where init says the number of its sysfs, and where the terminal's number goes back.
    pub sysfs_from: Option<OwnedFd>,
}

/// An open descriptor that an earlier step of every plan has made.
fn held(fd: &Option<OwnedFd>) -> Result<BorrowedFd<'_>, Failure> {
    fd.as_ref().map(AsFd::as_fd).ok_or(Failure(Call::Open, sys::Errno(0)))
}

const GUARDED: Attr = Attr(Attr::NOSUID.0 | Attr::NODEV.0 | Attr::NOEXEC.0);
const PLAIN: Attr = Attr(Attr::NOSUID.0 | Attr::NODEV.0);

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
            tree.attach(bound, target, Kind::Directory)
        }
        Op::Supply { name, content, parent, entry } => tree.supply(name, content, parent, entry),
        Op::Place { path, content } => new_file(held(&tree.store)?, path, content),
        Op::Bind { src, target, attr } => {
            let bound = clone_tree(HERE, src, Depth::Recursive, *attr)?;
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
        Op::SealRoot => mount::mount_setattr(held(&tree.root)?, Attr::RDONLY, Depth::Single).called(Call::MountSetattr),
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
        Op::Mqueue(target) => {
            let made = new_fs(c"mqueue", &[], GUARDED)?;
            tree.attach(made, target, Kind::Directory)
        }
        Op::Proc(target) => {
            let proc = new_fs(c"proc", &[], GUARDED)?;
            let at = open_target(held(&tree.root)?, target, Kind::Directory)?;
            mount::move_mount(proc.as_fd(), at.as_fd()).called(Call::MoveMount)?;
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

/// A new file system, detached.
fn new_fs(kind: &CStr, options: &[(&CStr, &CStr)], attr: Attr) -> Result<OwnedFd, Failure> {
    let context = mount::fsopen(kind).called(Call::Fsopen)?;
    for (key, value) in options {
        mount::fsconfig_string(context.as_fd(), key, value).called(Call::Fsconfig)?;
    }
    mount::fsconfig_create(context.as_fd()).called(Call::Fsconfig)?;
    mount::fsmount(context.as_fd(), attr).called(Call::Fsmount)
}

/// A sysfs of the caller's network namespace; read-only, for most of it is the host's.
pub(super) fn new_sysfs() -> Result<OwnedFd, Failure> {
    new_fs(c"sysfs", &[], Attr(GUARDED.0 | Attr::RDONLY.0))
}

/// A detached copy of a mount with attributes added before anybody can see it.
fn clone_tree(dir: BorrowedFd<'_>, path: &CStr, depth: Depth, attr: Attr) -> Result<OwnedFd, Failure> {
    let tree = mount::open_tree(dir, path, depth).called(Call::OpenTree)?;
    mount::mount_setattr(tree.as_fd(), attr, depth).called(Call::MountSetattr)?;
    Ok(tree)
}

fn make_dir(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Done {
    match fs::mkdirat(dir, name, mode) {
        Ok(()) | Err(EEXIST) => Ok(()),
        Err(errno) => Err(Failure(Call::Mkdir, errno)),
    }
}

fn new_file(dir: BorrowedFd<'_>, path: &CStr, content: &[u8]) -> Done {
    let file = fs::openat_mode(dir, path, Open::New, 0o644).called(Call::Open)?;
    fs::write_all(file.as_fd(), content).called(Call::Write)
}

/// Opens a place beneath the root, making what is missing: directories, and at last an entry of this kind.
/// Nothing that exists is changed; an entry of another kind is refused.
fn open_target(root: BorrowedFd<'_>, target: &Target, kind: Kind) -> Result<OwnedFd, Failure> {
    let found = match fs::open_in_root(root, &target.path, Open::Path) {
        Err(ENOENT) => make_parts(root, target, kind)?,
        other => other.called(Call::Openat2)?,
    };
    let is_directory = fs::fstat(found.as_fd()).called(Call::Stat)?.kind == Kind::Directory;
    match (is_directory, kind == Kind::Directory) {
        (true, false) => Err(Failure(Call::Openat2, EISDIR)),
        (false, true) => Err(Failure(Call::Openat2, ENOTDIR)),
        _ => Ok(found),
    }
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
    /// The store is attached on top of `/`, where it hides nothing from this process, whose own root lies
    /// below: kernels before 6.15 take no layer of an overlay from a detached mount.
    fn make_store(&mut self, size: &CStr) -> Done {
        let store = new_fs(c"tmpfs", &[(c"size", size), (c"mode", c"0755")], PLAIN)?;
        let top = fs::openat(HERE, c"/", Open::Directory).called(Call::Open)?;
        mount::move_mount(store.as_fd(), top.as_fd()).called(Call::MoveMount)?;
        self.store = Some(store);
        Ok(())
    }

    /// Attaches the new root below the store, so that everything else can be mounted on it by descriptor.
    fn set_root(&mut self, root: OwnedFd) -> Done {
        let store = held(&self.store)?;
        make_dir(store, c"root", 0o755)?;
        mount::move_mount_to(root.as_fd(), store, c"root").called(Call::MoveMount)?;
        self.root = Some(root);
        Ok(())
    }

    fn attach(&self, tree: OwnedFd, target: &Target, kind: Kind) -> Done {
        let at = open_target(held(&self.root)?, target, kind)?;
        mount::move_mount(tree.as_fd(), at.as_fd()).called(Call::MoveMount)
    }

    /// A directory of the store as a mount of its own.
    fn store_dir(&self, name: &CStr, mode: u32, attr: Attr) -> Result<OwnedFd, Failure> {
        let store = held(&self.store)?;
        make_dir(store, name, mode)?;
        clone_tree(store, name, Depth::Single, attr)
    }

    /// The upper and work directories of an overlay; a new upper gets mode and owner of the layer below it.
    fn upper_dirs(&self, upper: &UpperDirs, like: Option<BorrowedFd<'_>>) -> Result<(OwnedFd, OwnedFd), Failure> {
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
            // Fails for an owner outside the map; the layer then belongs to the sandbox's root.
            let _ = fs::fchown(upper.as_fd(), stat.uid, stat.gid);
        }
        Ok((upper, fs::open_beneath(dir, names.1, Open::Directory).called(Call::Openat2)?))
    }

    /// Writes a file into the root's upper layer before the overlay exists.
    fn seed(&mut self, overlay: &OverlayOp, dir: &CStr, like: (u32, u32, u32), file: &CStr, content: &[u8]) -> Done {
        if self.seeded.is_none() {
            let lower = fs::openat(HERE, &overlay.lower[0], Open::Directory).called(Call::Open)?;
            let (upper, work) = self.upper_dirs(&overlay.upper, Some(lower.as_fd()))?;
            let (mode, uid, gid) = like;
            fs::mkdirat(upper.as_fd(), dir, mode).called(Call::Mkdir)?;
            let etc = fs::openat(upper.as_fd(), dir, Open::Directory).called(Call::Open)?;
            let _ = fs::fchown(etc.as_fd(), uid, gid);
            self.seeded = Some(Seeded { upper, work, etc });
        }
        match &self.seeded {
            Some(seeded) => new_file(seeded.etc.as_fd(), file, content),
            None => Ok(()),
        }
    }

    /// An overlay, detached. `userxattr` is what makes removal and renaming work without privileges (images.md 2).
    fn overlay(&self, overlay: &OverlayOp, attr: Attr) -> Result<OwnedFd, Failure> {
        let context = mount::fsopen(c"overlay").called(Call::Fsopen)?;
        let context = context.as_fd();
        let mut top = None;
        for lower in &overlay.lower {
            let layer = fs::openat(HERE, lower, Open::Directory).called(Call::Open)?;
            add_layer(context, c"lowerdir+", layer.as_fd(), overlay.naming).called(Call::Fsconfig)?;
            if top.is_none() {
                top = Some(layer);
            } else if overlay.naming != Naming::Descriptor {
                // Named by number, a layer has to stay open until the overlay is made; this process ends soon.
                std::mem::forget(layer);
            }
        }
        let made;
        let (upper, work) = match &self.seeded {
            Some(seeded) if overlay.is_root => (seeded.upper.as_fd(), seeded.work.as_fd()),
            _ => {
                made = self.upper_dirs(&overlay.upper, top.as_ref().map(AsFd::as_fd))?;
                (made.0.as_fd(), made.1.as_fd())
            }
        };
        for (key, dir) in [(c"upperdir", upper), (c"workdir", work)] {
            add_layer(context, key, dir, overlay.naming).called(Call::Fsconfig)?;
        }
        mount::fsconfig_flag(context, c"userxattr").called(Call::Fsconfig)?;
        if overlay.volatile {
            mount::fsconfig_flag(context, c"volatile").called(Call::Fsconfig)?;
        }
        mount::fsconfig_create(context).called(Call::Fsconfig)?;
        mount::fsmount(context, attr).called(Call::Fsmount)
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

    /// /dev: the six devices of the host, each proven to be the one it is named (S12), links, shm.
    fn make_dev(&mut self, target: &Target) -> Done {
        let dev = self.store_dir(c"dev", 0o755, GUARDED)?;
        let at = open_target(held(&self.root)?, target, Kind::Directory)?;
        mount::move_mount(dev.as_fd(), at.as_fd()).called(Call::MoveMount)?;
        for (path, name, numbers) in DEVICES {
            fs::mkfileat(dev.as_fd(), name, 0o666).called(Call::Mknod)?;
            let node = device_tree(path, Some(numbers))?;
            mount::move_mount_to(node.as_fd(), dev.as_fd(), name).called(Call::MoveMount)?;
        }
        for (name, to) in LINKS {
            fs::symlinkat(to, dev.as_fd(), name).called(Call::Symlink)?;
        }
        for name in [c"pts", c"shm", c"mqueue"] {
            make_dir(dev.as_fd(), name, 0o755)?;
        }
        let shm = self.store_dir(c"shm", 0o1777, GUARDED)?;
        mount::move_mount_to(shm.as_fd(), dev.as_fd(), c"shm").called(Call::MoveMount)?;
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
        let node = device_tree(src, None)?;
        self.attach(node, target, Kind::File)
    }

    /// A path of our own /proc under a read-only mount of itself; absent ones need none.
    fn read_only(&self, path: &CStr) -> Done {
        let at = match fs::open_beneath(held(&self.proc)?, path, Open::Path) {
            Err(ENOENT) => return Ok(()),
            other => other.called(Call::Openat2)?,
        };
        let tree = clone_tree(at.as_fd(), c"", Depth::Single, Attr(GUARDED.0 | Attr::RDONLY.0))?;
        mount::move_mount(tree.as_fd(), at.as_fd()).called(Call::MoveMount)
    }

    /// Directories read as empty, files as the null device.
    fn mask(&self, base: Base, path: &CStr, asked: bool) -> Done {
        let found = match base {
            Base::Proc => fs::open_beneath(held(&self.proc)?, path, Open::Path),
            Base::Sys if self.sys.is_none() => return Ok(()),
            Base::Sys => fs::open_beneath(held(&self.sys)?, path, Open::Path),
            Base::Root => fs::open_in_root(held(&self.root)?, path, Open::Path),
        };
        let at = match found {
            Err(ENOENT) if !asked => return Ok(()),
            other => other.called(Call::Openat2)?,
        };
        let cover = match fs::fstat(at.as_fd()).called(Call::Stat)?.kind {
            Kind::Directory => self.store_dir(c"empty", 0o555, Attr(GUARDED.0 | Attr::RDONLY.0))?,
            _ => device_tree(c"/dev/null", Some((1, 3)))?,
        };
        mount::move_mount(cover.as_fd(), at.as_fd()).called(Call::MoveMount)
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
        mount::move_mount(sysfs.as_fd(), at.as_fd()).called(Call::MoveMount)?;
        self.sys = Some(sysfs);
        Ok(())
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
        let top = fs::openat(HERE, c"/..", Open::Path).called(Call::Open)?;
        let id = |of: BorrowedFd<'_>| fs::mount_id(of).called(Call::Stat);
        if id(top.as_fd())? == id(held(&self.root)?)? { Ok(()) } else { Err(Failure(Call::ReadBack, sys::NOT_TAKEN)) }
    }

    /// The number that the helper's terminal has in the table that both share.
    pub(super) fn adopt_terminal(&self, from: BorrowedFd<'_>, wanted: bool) -> Option<OwnedFd> {
        let mut number = [0; 4];
        let length = if wanted { fs::read(from, &mut number).ok()? } else { 0 };
        (length == 4).then(|| sys::adopt(i32::from_ne_bytes(number)))
    }
}

/// The root's upper layer while files are put into it.
struct Seeded {
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

/// A device node of the host as a mount, proven to be a device, and the one with these numbers.
fn device_tree(path: &CStr, numbers: Option<(u32, u32)>) -> Result<OwnedFd, Failure> {
    let tree = clone_tree(HERE, path, Depth::Single, Attr(Attr::NOSUID.0 | Attr::NOEXEC.0))?;
    match (fs::fstat(tree.as_fd()).called(Call::Stat)?.kind, numbers) {
        (Kind::Character(major, minor), Some(numbers)) if (major, minor) == numbers => Ok(tree),
        (Kind::Character(..) | Kind::Block, None) => Ok(tree),
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
