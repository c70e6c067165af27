//! Mounts by descriptor: open_tree, fsopen and their family (Linux 5.2), mount_setattr (5.12), pivot_root.

#![allow(unsafe_code)]

use super::{Result, done, fd};
use libc::{c_int, c_uint};
use std::ffi::CStr;
use std::ops::BitOr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::null;

/// Attributes of a mount, as the `MOUNT_ATTR_*` bits of mount_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr(pub u64);

impl Attr {
    /// None of them.
    pub const NONE: Attr = Attr(0);
    /// Read-only.
    pub const RDONLY: Attr = Attr(0x1);
    /// Set-id bits and file capabilities do nothing.
    pub const NOSUID: Attr = Attr(0x2);
    /// Device nodes cannot be opened.
    pub const NODEV: Attr = Attr(0x4);
    /// Nothing can be executed.
    pub const NOEXEC: Attr = Attr(0x8);
    /// What every mount of a sandbox's has.
    pub const PLAIN: Attr = Attr(Attr::NOSUID.0 | Attr::NODEV.0);
    /// What a copy has that nobody may write.
    pub const KEPT: Attr = Attr(Attr::PLAIN.0 | Attr::RDONLY.0);
    /// What mounts have that hold no programs.
    pub const GUARDED: Attr = Attr(Attr::PLAIN.0 | Attr::NOEXEC.0);

    /// Whether all of `other` is in this set.
    pub fn has(self, other: Attr) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Attr {
    type Output = Attr;
    fn bitor(self, other: Attr) -> Attr {
        Attr(self.0 | other.0)
    }
}

/// Whether a call means one mount or the whole tree of mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The mount itself.
    Single,
    /// All mounts below it too.
    Recursive,
    /// The same, and an automounter is not asked for what it would mount at the top (`AT_NO_AUTOMOUNT`).
    Dormant,
}

const AT_RECURSIVE: c_uint = 0x8000;
const AT_NO_AUTOMOUNT: c_uint = 0x800;
const AT_EMPTY_PATH: c_uint = 0x1000;
const OPEN_TREE_CLONE: c_uint = 1;
const OPEN_TREE_CLOEXEC: c_uint = libc::O_CLOEXEC as c_uint;

impl Depth {
    fn bits(self) -> c_uint {
        match self {
            Depth::Single => 0,
            Depth::Recursive => AT_RECURSIVE,
            Depth::Dormant => AT_RECURSIVE | AT_NO_AUTOMOUNT,
        }
    }
}

/// `open_tree(2)` with `OPEN_TREE_CLONE`: a detached copy of the mount at `path` below `dir`; an empty
/// path means `dir` itself.
pub fn open_tree(dir: BorrowedFd<'_>, path: &CStr, depth: Depth) -> Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | depth.bits();
    // SAFETY: the descriptor is open and the path a C string for the length of the call.
    fd(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// [`open_tree`] and [`mount_setattr`] in one: `open_tree_attr(2)`, Linux 6.15, else the two calls. A filter around
/// sbx that does not know the new call answers EPERM; then the two old ones tell the truth.
pub fn open_tree_with(dir: BorrowedFd<'_>, path: &CStr, set: Attr, depth: Depth) -> Result<OwnedFd> {
    const SYS_OPEN_TREE_ATTR: libc::c_long = 467;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | depth.bits();
    let attr = private(set);
    if super::sabotaged(c"recursive") {
        let tree = open_tree(dir, path, depth)?;
        return mount_setattr(tree.as_fd(), set, Depth::Single).map(|()| tree);
    }
    let (dir_fd, size) = (dir.as_raw_fd(), size_of::<MountAttr>());
    // SAFETY: the descriptor is open, the path a C string, the structure whole and only read.
    match fd(unsafe { libc::syscall(SYS_OPEN_TREE_ATTR, dir_fd, path.as_ptr(), flags, &raw const attr, size) }) {
        Err(super::ENOSYS | super::EPERM) => {
            let tree = open_tree(dir, path, depth)?;
            mount_setattr(tree.as_fd(), set, depth)?;
            Ok(tree)
        }
        other => other,
    }
}

/// The number that a mount never shares, of the mount whose root is at a path: `statx(2)` with `STATX_MNT_ID_UNIQUE`.
/// Linux 6.8.
///
/// # Errors
/// `EINVAL` where the path is no mount point or the kernel older.
fn mount_at(path: &CStr) -> Result<u64> {
    const UNIQUE: u32 = 0x4000;
    const MOUNT_ROOT: u64 = 0x2000;
    // SAFETY: all zero is a valid buffer, which the call fills in.
    let mut s: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and the buffer ours.
    done(unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), libc::AT_NO_AUTOMOUNT, UNIQUE, &mut s) })?;
    let known = s.stx_mask & UNIQUE != 0 && s.stx_attributes & MOUNT_ROOT != 0;
    if known { Ok(s.stx_mnt_id) } else { Err(super::EINVAL) }
}

/// What is known of a mount without reading /proc/self/mountinfo, all of which the kernel would write for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The type of its file system, as statfs(2) has it.
    pub kind: u64,
    /// What of the file system is mounted, as this process sees it.
    pub root: Vec<u8>,
    /// Options of the file system, with commas between them.
    pub options: String,
}

/// `statmount(2)` of the mount whose root is at a path. Linux 6.11.
///
/// # Errors
/// `EINVAL` where there is no mount point, or the kernel does not tell all of it.
pub fn statmount(path: &CStr) -> Result<Mounted> {
    const SYS_STATMOUNT: libc::c_long = 457;
    const SB_BASIC: u64 = 0x1;
    const ROOT: u64 = 0x8;
    const OPTIONS: u64 = 0x80;
    // Offsets in struct statmount (linux/mount.h), whose strings lie behind its 512 bytes.
    const OPTIONS_AT: usize = 4;
    const MASK_AT: usize = 8;
    const MAGIC_AT: usize = 24;
    const ROOT_AT: usize = 104;
    const STRINGS: usize = 512;
    let wanted = SB_BASIC | ROOT | OPTIONS;
    let request: [u64; 3] = [24, mount_at(path)?, wanted];
    let mut buffer = [0u8; 1024];
    // SAFETY: the request is a whole struct mnt_id_req (24 bytes, 6.8), and the size that of the buffer.
    done(unsafe { libc::syscall(SYS_STATMOUNT, request.as_ptr(), buffer.as_mut_ptr(), buffer.len(), 0) } as c_int)?;
    let number = |at: usize| u64::from_ne_bytes(std::array::from_fn(|n| buffer[at + n]));
    let text = |at: usize| {
        let text = buffer.get(STRINGS + (number(at) as u32) as usize..).unwrap_or_default();
        text.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
    };
    if number(MASK_AT) & wanted != wanted {
        return Err(super::EINVAL);
    }
    let options = String::from_utf8_lossy(&text(OPTIONS_AT)).into_owned();
    Ok(Mounted { kind: number(MAGIC_AT), root: text(ROOT_AT), options })
}

/// `move_mount(2)`: attaches the detached `tree` at the object `at` itself.
pub fn move_mount(tree: BorrowedFd<'_>, at: BorrowedFd<'_>) -> Result<()> {
    move_mount_to(tree, at, c"")
}

/// `move_mount(2)` onto the last component of `path` below `dir`, which is not followed if it is a symlink.
pub fn move_mount_to(tree: BorrowedFd<'_>, dir: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    const F_EMPTY_PATH: c_uint = 0x4;
    const T_EMPTY_PATH: c_uint = 0x40;
    let (from, to) = (tree.as_raw_fd(), dir.as_raw_fd());
    let flags = F_EMPTY_PATH | T_EMPTY_PATH;
    // SAFETY: both descriptors are open, both strings C strings that are only read.
    done(unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, path.as_ptr(), flags) })
}

/// `struct mount_attr` of mount_setattr(2), version 0.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// These attributes, and no events from or to the mounts it was copied from.
fn private(set: Attr) -> MountAttr {
    const PRIVATE: u64 = 1 << 18;
    let propagation = if super::sabotaged(c"propagation") { 0 } else { PRIVATE };
    let lost = if super::sabotaged(c"nosuid") { Attr::NOSUID } else { Attr::NONE };
    MountAttr { set: set.0 & !lost.0, clear: 0, propagation, userns: 0 }
}

fn setattr(tree: BorrowedFd<'_>, attr: &MountAttr, flags: c_uint) -> Result<()> {
    let size = size_of::<MountAttr>();
    // SAFETY: the structure is whole and only read; the descriptor is open.
    done(unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), AT_EMPTY_PATH | flags, attr, size)
    })
}

/// `mount_setattr(2)`: adds attributes, and makes the mounts private so that no event crosses out.
/// Flags that the kernel has locked stay as they are, for nothing is cleared. Linux 5.12.
pub fn mount_setattr(tree: BorrowedFd<'_>, set: Attr, depth: Depth) -> Result<()> {
    setattr(tree, &private(set), depth.bits())
}

/// `mount_setattr(2)` with `MS_SHARED`: what is mounted below this mount appears below its copies too.
pub fn share(tree: BorrowedFd<'_>) -> Result<()> {
    const SHARED: u64 = 1 << 20;
    setattr(tree, &MountAttr { set: 0, clear: 0, propagation: SHARED, userns: 0 }, 0)
}

/// `mount_setattr(2)` with `MOUNT_ATTR_IDMAP`: shows the mount's owners through the map of the user
/// namespace `userns`. Needs CAP_SYS_ADMIN over the file system. Linux 5.12.
pub fn mount_idmap(tree: BorrowedFd<'_>, userns: BorrowedFd<'_>, depth: Depth) -> Result<()> {
    const IDMAP: u64 = 0x0010_0000;
    let attr = MountAttr { set: IDMAP, clear: 0, propagation: 0, userns: userns.as_raw_fd() as u64 };
    setattr(tree, &attr, depth.bits())
}

/// `fsopen(2)`: a context for a new file system of this type.
pub fn fsopen(kind: &CStr) -> Result<OwnedFd> {
    const FSOPEN_CLOEXEC: c_uint = 1;
    // SAFETY: the type is a C string.
    fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })
}

fn fsconfig(context: BorrowedFd<'_>, command: c_uint, key: *const i8, value: *const i8, aux: c_int) -> Result<()> {
    let call = libc::SYS_fsconfig;
    // SAFETY: the callers pass null or C strings that live for the call.
    done(unsafe { libc::syscall(call, context.as_raw_fd(), command, key, value, aux) })
}

/// `fsconfig(2)`, `FSCONFIG_SET_FLAG`.
pub fn fsconfig_flag(context: BorrowedFd<'_>, key: &CStr) -> Result<()> {
    fsconfig(context, 0, key.as_ptr().cast(), null(), 0)
}

/// `fsconfig(2)`, `FSCONFIG_SET_STRING`; the value has at most 255 bytes.
pub fn fsconfig_string(context: BorrowedFd<'_>, key: &CStr, value: &CStr) -> Result<()> {
    fsconfig(context, 1, key.as_ptr().cast(), value.as_ptr().cast(), 0)
}

/// `fsconfig(2)`, `FSCONFIG_SET_FD`; overlayfs takes layers so since Linux 6.13.
pub fn fsconfig_fd(context: BorrowedFd<'_>, key: &CStr, value: BorrowedFd<'_>) -> Result<()> {
    fsconfig(context, 5, key.as_ptr().cast(), null(), value.as_raw_fd())
}

/// `fsconfig(2)`, `FSCONFIG_CMD_CREATE`: makes the superblock.
pub fn fsconfig_create(context: BorrowedFd<'_>) -> Result<()> {
    fsconfig(context, 6, null(), null(), 0)
}

/// `fsmount(2)`: a detached mount of the context's superblock.
pub fn fsmount(context: BorrowedFd<'_>, attr: Attr) -> Result<OwnedFd> {
    const FSMOUNT_CLOEXEC: c_uint = 1;
    // SAFETY: takes a descriptor and integers.
    fd(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attr.0 as c_uint) })
}

/// `pivot_root(".", ".")`: the working directory becomes the root and the old root is stacked on it.
pub fn pivot_root_here() -> Result<()> {
    // SAFETY: two C strings.
    done(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })
}

/// `umount2(2)` of the working directory's mount with `MNT_DETACH`.
pub fn detach_here() -> Result<()> {
    // SAFETY: a C string.
    done(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })
}

/// What statfs(2) says of a file system: what it is, and how much room it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// `f_type`: the magic number of the file system.
    pub kind: u64,
    /// Blocks free to an ordinary user, times their size: bytes.
    pub free: u64,
    /// All blocks, in bytes.
    pub total: u64,
    /// Inodes still free.
    pub free_inodes: u64,
    /// Inodes in all; 0 where the file system does not count them.
    pub inodes: u64,
}

/// What a mount refuses, by statvfs(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refuses {
    /// `ST_RDONLY`: to be changed.
    pub write: bool,
    /// `ST_NOEXEC`: to have something on it executed.
    pub exec: bool,
}

/// `fstatvfs(3)` of what is open, also by its name alone.
pub fn refuses(of: BorrowedFd<'_>) -> Result<Refuses> {
    // SAFETY: all zero is a valid buffer, which the call fills in.
    let mut s: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer is ours.
    done(unsafe { libc::fstatvfs(of.as_raw_fd(), &mut s) })?;
    Ok(Refuses { write: s.f_flag & libc::ST_RDONLY != 0, exec: s.f_flag & libc::ST_NOEXEC != 0 })
}

/// `statfs(2)`
pub fn statfs(path: &CStr) -> Result<Space> {
    // SAFETY: all zero is a valid buffer, which the call fills in.
    let mut s: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer is ours.
    done(unsafe { libc::statfs(path.as_ptr(), &mut s) })?;
    Ok(space(&s))
}

/// `fstatfs(2)`
pub fn fstatfs(of: BorrowedFd<'_>) -> Result<Space> {
    // SAFETY: all zero is a valid buffer, which the call fills in.
    let mut s: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer is ours.
    done(unsafe { libc::fstatfs(of.as_raw_fd(), &mut s) })?;
    Ok(space(&s))
}

impl Space {
    /// What is taken, in bytes.
    pub fn used(&self) -> u64 {
        self.total.saturating_sub(self.free)
    }
}

fn space(s: &libc::statfs) -> Space {
    let block = s.f_bsize as u64;
    Space {
        kind: s.f_type as u64,
        free: s.f_bavail.saturating_mul(block),
        total: s.f_blocks.saturating_mul(block),
        free_inodes: s.f_ffree,
        inodes: s.f_files,
    }
}
