//! The child's stages `Root` and `Pivot`: the new root, built by descriptors only.
//!
//! One invariant: whatever ROOTFS holds, every name below the new root is resolved beneath its descriptor
//! (openat2) and acted on through the descriptor that came out (DESIGN 4.2, security.md S10).

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::{Call, Message, tell};
use super::child::Child;
use super::covers::Text;
use super::handles::STORE;
use super::kernel_fs::{kernel_fs, terminal};
use super::layers::{Seeded, Trees};
use super::script::{Failure, In, Op, Script, Src, Target};
use crate::sys::fs::{self, HERE, Kind, Open};
use crate::sys::mount::{self, Attr, Depth};
use crate::sys::{self, EEXIST, EISDIR, ENOENT, ENOTDIR};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) type Done = Result<(), Failure>;

/// What is open while the root is built.
#[derive(Default)]
pub(super) struct Tree {
    /// User and group, as seen inside, of what this process makes.
    pub(super) creator: (u32, u32),
    /// Whether mounts can be made on a detached tree.
    pub(super) detached: bool,
    /// Whether a detached root has been attached.
    placed: bool,
    /// Numbers of the mounts that the parent made.
    pub(super) trees: Trees,
    /// The directory of the last protected place, where no link led to it.
    pub(super) walked: Text,
    /// The one tmpfs.
    pub(super) store: Option<OwnedFd>,
    /// The new root's mount.
    pub(super) root: Option<OwnedFd>,
    pub(super) seeded: Option<Seeded>,
    pub(super) dev: Option<OwnedFd>,
    pub(super) devpts: Option<OwnedFd>,
    pub(super) proc: Option<OwnedFd>,
    pub(super) sys: Option<OwnedFd>,
    /// An empty read-only directory that already masks something.
    pub(super) empty: Option<OwnedFd>,
    /// Where init says the numbers of its sysfs and cgroup, and where the terminal's number goes back.
    pub(super) mounts_from: Option<OwnedFd>,
}

/// An open descriptor that an earlier step of every plan has made.
pub(super) fn held(fd: &Option<OwnedFd>) -> Result<BorrowedFd<'_>, Failure> {
    fd.as_ref().map(AsFd::as_fd).ok_or(Failure(Call::Open, sys::Errno(0)))
}

pub(super) const GUARDED: Attr = Attr::GUARDED;
pub(super) const PLAIN: Attr = Attr::PLAIN;

/// Runs one operation of the two stages.
pub(super) fn step(child: &mut Child<'_>, op: &Op) -> Done {
    let tree = &mut child.tree;
    match op {
        Op::Store(size) => {
            tree.make_store(size)?;
            hand_store(child)
        }
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
            let bound = tree.bound(src, *attr, Depth::Recursive)?;
            let kind = fs::fstat(bound.as_fd()).called(Call::Stat)?.kind;
            tree.attach(bound, target, kind)
        }
        // Nothing of it is looked at: its server may be dead.
        Op::HostBind { src, target, attr } => {
            tree.attach(tree.bound(src, *attr, Depth::Dormant)?, target, Kind::Directory)
        }
        Op::OverlayBind(overlay, target, attr) => tree.attach(tree.overlay(overlay, *attr)?, target, Kind::Directory),
        Op::Tmpfs { size, mode, target, attr } => {
            let options = [(c"size", size.as_c_str()), (c"mode", mode.as_c_str())];
            let made = new_fs(c"tmpfs", &options, *attr)?;
            show(child, Message::Store, made.as_fd())?;
            child.tree.attach(made, target, Kind::Directory)
        }
        Op::Device { src, target } => tree.device(src, target),
        Op::Conceal { path, name, attr } => tree.conceal(path, name, *attr),
        Op::Protect { path, missing } => tree.protect(path, missing),
        Op::SealRoot(below) => tree.seal(below),
        Op::Pivot => tree.pivot(),
        Op::Terminal { .. } | Op::EnterTerminal { .. } => terminal(child, op),
        Op::Proc(_) => {
            kernel_fs(tree, op)?;
            show(child, Message::Proc, held(&child.tree.proc)?)
        }
        other => kernel_fs(tree, other),
    }
}

/// Where the program itself is pid 1, nobody inside can be asked for the store later.
fn hand_store(child: &Child<'_>) -> Done {
    let store = held(&child.tree.store)?;
    if child.script.program.is_init {
        tell(child.channel, Message::Handle(STORE as i32), Some(store)).called(Call::Send)?;
    }
    show(child, Message::Store, store)
}

/// Hands something over to be watched.
fn show(child: &Child<'_>, what: Message, of: BorrowedFd<'_>) -> Done {
    if !child.script.watched {
        return Ok(());
    }
    tell(child.channel, what, Some(of)).called(Call::Send)
}

/// A new file system, detached. Its context stays open: see `attach_at`.
pub(super) fn new_fs(kind: &CStr, options: &[(&CStr, &CStr)], attr: Attr) -> Result<OwnedFd, Failure> {
    let context = mount::fsopen(kind).called(Call::Fsopen)?;
    for (key, value) in options {
        mount::fsconfig_string(context.as_fd(), key, value).called(Call::Fsconfig)?;
    }
    mount::fsconfig_create(context.as_fd()).called(Call::Fsconfig)?;
    let made = mount::fsmount(context.as_fd(), attr).called(Call::Fsmount);
    std::mem::forget(context);
    made
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

pub(super) fn new_file(dir: BorrowedFd<'_>, path: &CStr, content: &[u8]) -> Done {
    let file = fs::openat_mode(dir, path, Open::New, 0o644).called(Call::Open)?;
    let written = fs::write_all(file.as_fd(), content).called(Call::Write);
    std::mem::forget(file);
    written
}

/// Opens a place beneath the root, making what is missing: directories, and at last an entry of this kind.
/// Nothing that exists is changed.
pub(super) fn open_target(root: BorrowedFd<'_>, target: &Target, kind: Kind) -> Result<OwnedFd, Failure> {
    match fs::open_in_root(root, &target.path, Open::Path) {
        Err(ENOENT) => make_parts(root, target, kind),
        other => other.called(Call::Openat2),
    }
}

/// Attaches a tree at an open place, and leaves its descriptor open: closing costs more than the few that a
/// launch makes are worth, and this process ends soon. Whoever makes many closes them (`Tree::attach`).
pub(super) fn attach_at(tree: &OwnedFd, at: BorrowedFd<'_>, kind: Kind) -> Done {
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

pub(super) fn make_parts(root: BorrowedFd<'_>, target: &Target, kind: Kind) -> Result<OwnedFd, Failure> {
    // The lowest directory that is there: in the usual case the first that is tried.
    let mut missing = target.parts.len();
    let mut place = loop {
        missing = missing.saturating_sub(1);
        let above = missing.checked_sub(1).map_or(c".", |above| target.parts[above].0.as_c_str());
        match fs::open_in_root(root, above, Open::Path) {
            Err(ENOENT) if missing > 0 => {}
            other => break other.called(Call::Openat2)?,
        }
    };
    for (index, (_, name)) in target.parts.iter().enumerate().skip(missing) {
        if index + 1 == target.parts.len() && kind != Kind::Directory {
            fs::mkfileat(place.as_fd(), name, 0o444).called(Call::Mknod)?;
        } else {
            fs::mkdirat(place.as_fd(), name, 0o755).called(Call::Mkdir)?;
        }
        place = fs::open_beneath(place.as_fd(), name, Open::Path).called(Call::Openat2)?;
    }
    Ok(place)
}

impl Tree {
    /// Nothing is open yet.
    pub(super) fn new(script: &Script, trees: Trees) -> Tree {
        Tree { creator: script.creator, detached: script.detached, trees, ..Tree::default() }
    }

    /// Kernels before 6.15 take no layer of an overlay from a detached mount and mount nothing on one. There the
    /// store is attached on top of `/`, where it hides nothing from this process, whose own root lies below, but
    /// for `..` that leads up to it; `prepare` gives such kernels no path that could hold one.
    pub(super) fn make_store(&mut self, size: &CStr) -> Done {
        let store = new_fs(c"tmpfs", &[(c"size", size)], PLAIN)?;
        if !self.detached {
            mount::move_mount_to(store.as_fd(), HERE, c"/").called(Call::MoveMount)?;
        }
        self.store = Some(store);
        Ok(())
    }

    /// Takes the new root; on older kernels it goes on top of the store.
    pub(super) fn set_root(&mut self, root: OwnedFd) -> Done {
        if !self.detached {
            mount::move_mount_to(root.as_fd(), HERE, c"/").called(Call::MoveMount)?;
        }
        self.root = Some(root);
        Ok(())
    }

    pub(super) fn attach(&self, tree: OwnedFd, target: &Target, kind: Kind) -> Done {
        let at = open_target(held(&self.root)?, target, kind)?;
        attach_at(&tree, at.as_fd(), kind)
    }

    /// A copy of what the host shows at a path.
    fn bound(&self, src: &Src, attr: Attr, depth: Depth) -> Result<OwnedFd, Failure> {
        match src {
            Src::Path(path) => clone_tree(HERE, path, depth, attr),
            Src::Tree(index, _) => self.handed_over(*index),
        }
    }

    /// As `attach`, without the closing.
    pub(super) fn attach_and_leave(&self, tree: OwnedFd, target: &Target) -> Done {
        let at = open_target(held(&self.root)?, target, Kind::Directory)?;
        let done = attach_at(&tree, at.as_fd(), Kind::Directory);
        std::mem::forget((tree, at));
        done
    }

    /// A directory of the store as a mount of its own.
    pub(super) fn store_dir(&self, name: &CStr, mode: u32, attr: Attr) -> Result<OwnedFd, Failure> {
        let store = held(&self.store)?;
        make_dir(store, name, mode)?;
        // The store itself is mounted so, and private: a copy of it needs nothing more.
        match attr {
            PLAIN => mount::open_tree(store, name, Depth::Single).called(Call::OpenTree),
            _ => clone_tree(store, name, Depth::Single, attr),
        }
    }

    pub(super) fn link(&self, target: &CStr, at: &Target) -> Done {
        let (parent, name) = self.parent_of(at)?;
        fs::symlinkat(target, parent.as_fd(), name).called(Call::Symlink)
    }

    /// The directory that holds a place, and the place's own name.
    pub(super) fn parent_of<'t>(&self, at: &'t Target) -> Result<(OwnedFd, &'t CStr), Failure> {
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
    pub(super) fn supply(&self, name: &CStr, content: &[u8], parent: &Target, entry: &CStr) -> Done {
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

    /// Makes the root's mount read-only, and the overlays that `@host` is made of.
    pub(super) fn seal(&mut self, below: &[Target]) -> Done {
        self.place_root()?;
        let root = held(&self.root)?;
        for place in below {
            let at = fs::open_in_root(root, &place.path, Open::Path).called(Call::Openat2)?;
            mount::mount_setattr(at.as_fd(), Attr::RDONLY, Depth::Single).called(Call::MountSetattr)?;
        }
        mount::mount_setattr(root, Attr::RDONLY, Depth::Single).called(Call::MountSetattr)
    }

    /// Attaches the new root, if it is not yet: pivot_root takes no other.
    fn place_root(&mut self) -> Done {
        if self.detached && !self.placed {
            mount::move_mount_to(held(&self.root)?, HERE, c"/").called(Call::MoveMount)?;
            self.placed = true;
        }
        Ok(())
    }

    /// The new root becomes the root, and nothing of the old one stays reachable (S18).
    pub(super) fn pivot(&mut self) -> Done {
        self.place_root()?;
        fs::fchdir(held(&self.root)?).called(Call::Chdir)?;
        mount::pivot_root_here().called(Call::Pivot)?;
        if sys::sabotaged(c"pivot-detach") {
            return fs::chdir(c"/").called(Call::Chdir);
        }
        // On top of the new root lies now the old one, and on that the store where it is attached.
        let stacked = if self.detached { 1 } else { 2 };
        for _ in 0..stacked {
            mount::detach_here().called(Call::Umount)?;
        }
        fs::chdir(c"/").called(Call::Chdir)?;
        // Proof: what lies on top of the root, which `..` of it leads to, is the new root's own mount.
        let top = fs::mount_id(HERE, c"/..").called(Call::Stat)?;
        let root = fs::mount_id(held(&self.root)?, c"").called(Call::Stat)?;
        if top == root { Ok(()) } else { Err(Failure(Call::ReadBack, sys::NOT_TAKEN)) }
    }
}
