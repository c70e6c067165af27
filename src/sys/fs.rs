//! Files by descriptor: lookups that cannot leave a root (openat2), creation, and small reads and writes.

#![allow(unsafe_code)]

use super::{Result, done, fd, ok, retry};
use libc::{c_int, c_void};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// How to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// `O_PATH`: a place, for `*at` calls and mounts.
    Path,
    /// `O_PATH | O_DIRECTORY`
    Directory,
    /// `O_PATH | O_NOFOLLOW`: the entry itself, also when it is a symlink.
    Entry,
    /// `O_RDONLY | O_DIRECTORY`: a directory whose entries can be read.
    List,
    /// `O_RDONLY | O_NONBLOCK | O_NOCTTY`: never waits for a FIFO's other end.
    Read,
    /// `O_WRONLY | O_NOCTTY`
    Write,
    /// `O_WRONLY | O_NOCTTY | O_NONBLOCK`: writing never waits.
    WriteNow,
    /// `O_RDWR | O_NOCTTY`
    ReadWrite,
    /// A new file for writing, which must not exist: `O_CREAT | O_EXCL | O_NOFOLLOW`.
    New,
    /// A lock file: opened or made, never followed.
    Lock,
}

impl Open {
    fn bits(self) -> c_int {
        libc::O_CLOEXEC
            | match self {
                Open::Path => libc::O_PATH,
                Open::Directory => libc::O_PATH | libc::O_DIRECTORY,
                Open::Entry => libc::O_PATH | libc::O_NOFOLLOW,
                Open::List => libc::O_RDONLY | libc::O_DIRECTORY,
                Open::Read => libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY,
                Open::Write => libc::O_WRONLY | libc::O_NOCTTY,
                Open::WriteNow => libc::O_WRONLY | libc::O_NOCTTY | libc::O_NONBLOCK,
                Open::ReadWrite => libc::O_RDWR | libc::O_NOCTTY,
                Open::New => libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW,
                Open::Lock => libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW,
            }
    }
}

/// The working directory, as a directory descriptor.
pub const HERE: BorrowedFd<'static> = {
    // SAFETY: AT_FDCWD is not -1 and names no descriptor that could be closed.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
};

/// `openat(2)` with mode 0600 for what it makes. For paths of the host, which are the caller's own business.
pub fn openat(dir: BorrowedFd<'_>, path: &CStr, how: Open) -> Result<OwnedFd> {
    openat_mode(dir, path, how, 0o600)
}

/// `openat(2)`; `mode` counts only where it makes a file.
pub fn openat_mode(dir: BorrowedFd<'_>, path: &CStr, how: Open, mode: u32) -> Result<OwnedFd> {
    // SAFETY: the path is a C string, the descriptor open.
    retry(|| fd(unsafe { libc::openat(dir.as_raw_fd(), path.as_ptr(), how.bits(), mode) }))
}

/// `openat2(2)` as if `root` were the root directory: neither `..` nor an absolute symlink leads out,
/// and magic links are refused. Linux 5.6.
///
/// # Errors
/// `EAGAIN` where a rename raced with `..`: tried again here, a bounded number of times.
pub fn open_in_root(root: BorrowedFd<'_>, path: &CStr, how: Open) -> Result<OwnedFd> {
    const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
    const RESOLVE_IN_ROOT: u64 = 0x10;
    let how_far = if super::sabotaged(c"in-root") { 0 } else { RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
    resolve(root, path, how, how_far)
}

/// `openat2(2)` of one component or more, following no symlink at all and never leaving `dir`.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &CStr, how: Open) -> Result<OwnedFd> {
    const RESOLVE_NO_SYMLINKS: u64 = 0x04;
    const RESOLVE_BENEATH: u64 = 0x08;
    resolve(dir, path, how, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
}

fn resolve(dir: BorrowedFd<'_>, path: &CStr, how: Open, resolve: u64) -> Result<OwnedFd> {
    let mode = if how.bits() & libc::O_CREAT != 0 { 0o600 } else { 0 };
    let open_how: [u64; 3] = [how.bits() as u64, mode, resolve];
    let size = size_of_val(&open_how);
    let mut tries = 0;
    loop {
        // SAFETY: `open_how` is a whole struct open_how, the path a C string; both are only read.
        let opened =
            fd(unsafe { libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), open_how.as_ptr(), size) });
        match opened {
            Err(super::EAGAIN | super::EINTR) if tries < 128 => tries += 1,
            other => return other,
        }
    }
}

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symlink.
    Symlink,
    /// A character device with this major and minor number.
    Character(u32, u32),
    /// A block device with this major and minor number.
    Block(u32, u32),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

/// What stat(2) says, as far as sbx asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id and sticky included.
    pub mode: u32,
    /// Owner, as this process sees it.
    pub uid: u32,
    /// Group, as this process sees it.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Device number of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// How many names it has.
    pub links: u64,
    /// When its content was last changed: seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// When anything of it was last changed, which nobody can set.
    pub ctime: (i64, i64),
}

impl Stat {
    /// Major and minor number of the device that the file system lies on.
    pub fn on(&self) -> (u32, u32) {
        (libc::major(self.dev), libc::minor(self.dev))
    }
}

/// `fstat(2)`
pub fn fstat(of: BorrowedFd<'_>) -> Result<Stat> {
    stat_at(of, c"", libc::AT_EMPTY_PATH)
}

/// `fstatat(2)` of the entry itself: a symlink is not followed.
pub fn lstat(dir: BorrowedFd<'_>, path: &CStr) -> Result<Stat> {
    stat_at(dir, path, libc::AT_SYMLINK_NOFOLLOW)
}

/// `stat(2)` of what the path leads to.
pub fn stat(path: &CStr) -> Result<Stat> {
    stat_at(HERE, path, 0)
}

fn stat_at(dir: BorrowedFd<'_>, path: &CStr, flags: c_int) -> Result<Stat> {
    // SAFETY: all zero is a valid buffer, which the call fills in.
    let mut s: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and the buffer ours.
    done(unsafe { libc::fstatat(dir.as_raw_fd(), path.as_ptr(), &mut s, flags) })?;
    let kind = match s.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFREG => Kind::File,
        libc::S_IFLNK => Kind::Symlink,
        libc::S_IFCHR => Kind::Character(libc::major(s.st_rdev), libc::minor(s.st_rdev)),
        libc::S_IFBLK => Kind::Block(libc::major(s.st_rdev), libc::minor(s.st_rdev)),
        libc::S_IFIFO => Kind::Fifo,
        _ => Kind::Socket,
    };
    Ok(Stat {
        kind,
        mode: s.st_mode & 0o7777,
        uid: s.st_uid,
        gid: s.st_gid,
        size: s.st_size as u64,
        dev: s.st_dev,
        ino: s.st_ino,
        links: s.st_nlink as u64,
        mtime: (s.st_mtime, s.st_mtime_nsec),
        ctime: (s.st_ctime, s.st_ctime_nsec),
    })
}

/// The number of the mount that a path leads to, by `statx(2)` with `STATX_MNT_ID`; an empty path means the
/// descriptor itself. Linux 5.8.
pub fn mount_id(dir: BorrowedFd<'_>, path: &CStr) -> Result<u64> {
    statx(dir, path, libc::STATX_MNT_ID).map(|s| s.stx_mnt_id)
}

/// Whether something is mounted at an open place. Linux 5.8.
pub fn is_mount_root(of: BorrowedFd<'_>) -> Result<bool> {
    statx(of, c"", 0).map(|s| s.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}

fn statx(dir: BorrowedFd<'_>, path: &CStr, mask: u32) -> Result<libc::statx> {
    // SAFETY: all zero is a valid buffer, which the call fills in.
    let mut s: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and the buffer ours.
    done(unsafe { libc::statx(dir.as_raw_fd(), path.as_ptr(), libc::AT_EMPTY_PATH, mask, &mut s) })?;
    Ok(s)
}

/// `mkdirat(2)`
pub fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: a C string and integers.
    done(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) })
}

/// `mknodat(2)` of an empty regular file: a mount point for files. `EEXIST` also for a dangling symlink.
pub fn mkfileat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: a C string and integers.
    done(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), libc::S_IFREG | mode, 0) })
}

/// `symlinkat(2)`
pub fn symlinkat(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: two C strings.
    done(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) })
}

/// `readlinkat(2)` into a caller's buffer; an empty path reads the link that `dir` itself is.
pub fn readlinkat<'a>(dir: BorrowedFd<'_>, path: &CStr, into: &'a mut [u8]) -> Result<&'a [u8]> {
    // SAFETY: the pointer and the length describe the buffer.
    let n =
        ok(unsafe { libc::readlinkat(dir.as_raw_fd(), path.as_ptr(), into.as_mut_ptr().cast(), into.len()) } as i64)?;
    Ok(&into[..n as usize])
}

/// `unlinkat(2)` of a file, or with `Kind::Directory` of an empty directory.
pub fn unlinkat(dir: BorrowedFd<'_>, name: &CStr, kind: Kind) -> Result<()> {
    let flags = if kind == Kind::Directory { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: a C string.
    done(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) })
}

/// `fchownat(2)` of an open object, `O_PATH` ones included.
pub fn fchown(of: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: a C string and integers.
    done(unsafe { libc::fchownat(of.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) })
}

/// `fchownat(2)` of an open object to a user, its group as it is.
pub fn chown_user(of: BorrowedFd<'_>, uid: u32) -> Result<()> {
    fchown(of, uid, u32::MAX)
}

/// `chmod(2)` of an open object, `O_PATH` ones included, by its name in /proc/self/fd: fchmodat(2) itself takes no
/// `AT_EMPTY_PATH` before Linux 6.6, and follows links. Parent only.
pub fn chmod_open(of: BorrowedFd<'_>, mode: u32) -> Result<()> {
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", of.as_raw_fd())).map_err(|_| super::EINVAL)?;
    // SAFETY: a C string and integers.
    done(unsafe { libc::chmod(path.as_ptr(), mode) })
}

/// `fchdir(2)`
pub fn fchdir(to: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes a descriptor.
    done(unsafe { libc::fchdir(to.as_raw_fd()) })
}

/// `chdir(2)`
pub fn chdir(to: &CStr) -> Result<()> {
    // SAFETY: a C string.
    done(unsafe { libc::chdir(to.as_ptr()) })
}

/// `getcwd(2)`, the raw call: its answer starts with `(unreachable)` outside the root. Returns the length.
pub fn getcwd(into: &mut [u8]) -> Result<usize> {
    // SAFETY: the pointer and the length describe the buffer.
    ok(unsafe { libc::syscall(libc::SYS_getcwd, into.as_mut_ptr(), into.len()) }).map(|n| n as usize - 1)
}

/// `write(2)`, once.
pub fn write(to: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the pointer and the length describe the slice.
    retry(|| ok(unsafe { libc::write(to.as_raw_fd(), bytes.as_ptr().cast::<c_void>(), bytes.len()) } as i64))
        .map(|n| n as usize)
}

/// Writes all of it. A file of /proc takes a value only in one write, which is what it gets.
pub fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[write(to, bytes)?..];
    }
    Ok(())
}

/// `read(2)`, once.
pub fn read(from: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the pointer and the length describe the buffer.
    retry(|| ok(unsafe { libc::read(from.as_raw_fd(), into.as_mut_ptr().cast::<c_void>(), into.len()) } as i64))
        .map(|n| n as usize)
}

/// `pwrite(2)`, once: at a place of the file, wherever its own offset stands.
pub fn pwrite(to: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<usize> {
    let (start, length) = (bytes.as_ptr().cast::<c_void>(), bytes.len());
    // SAFETY: the pointer and the length describe the slice.
    retry(|| ok(unsafe { libc::pwrite(to.as_raw_fd(), start, length, at as libc::off_t) } as i64)).map(|n| n as usize)
}

/// `pread(2)`, once.
pub fn pread(from: BorrowedFd<'_>, into: &mut [u8], at: u64) -> Result<usize> {
    let (start, length) = (into.as_mut_ptr().cast::<c_void>(), into.len());
    // SAFETY: the pointer and the length describe the buffer.
    retry(|| ok(unsafe { libc::pread(from.as_raw_fd(), start, length, at as libc::off_t) } as i64)).map(|n| n as usize)
}

/// `ftruncate(2)`
pub fn ftruncate(of: BorrowedFd<'_>, length: u64) -> Result<()> {
    // SAFETY: takes integers.
    retry(|| done(unsafe { libc::ftruncate(of.as_raw_fd(), length as libc::off_t) }))
}

/// The next stretch of a file that holds data, from an offset on: `lseek(2)`. What lies between reads as zeros.
pub fn next_data(of: BorrowedFd<'_>, from: u64) -> Result<Option<std::ops::Range<u64>>> {
    // SAFETY: takes integers.
    let seek = |at, how| ok(unsafe { libc::lseek(of.as_raw_fd(), at as libc::off_t, how) }).map(|at| at as u64);
    match seek(from, libc::SEEK_DATA) {
        Err(super::ENXIO) => Ok(None),
        start => start.and_then(|start| Ok(Some(start..seek(start, libc::SEEK_HOLE)?))),
    }
}

/// Opens a file of the host, writes `bytes` in one go and closes it.
pub fn write_file(path: &CStr, bytes: &[u8]) -> Result<()> {
    write_all(std::os::fd::AsFd::as_fd(&openat(HERE, path, Open::Write)?), bytes)
}

/// `flock(2)`, exclusive and without waiting: `false` where somebody else holds it.
pub fn try_lock(of: BorrowedFd<'_>) -> Result<bool> {
    const EWOULDBLOCK: super::Errno = super::Errno(libc::EWOULDBLOCK);
    // SAFETY: takes integers.
    match retry(|| done(unsafe { libc::flock(of.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })) {
        Ok(()) => Ok(true),
        Err(EWOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether somebody else holds the exclusive lock. Looked at by a shared one, so that two who look do not see each other.
pub fn is_locked(of: BorrowedFd<'_>) -> Result<bool> {
    // SAFETY: takes integers.
    let flock = |how| retry(|| done(unsafe { libc::flock(of.as_raw_fd(), how) }));
    match flock(libc::LOCK_SH | libc::LOCK_NB) {
        Ok(()) => flock(libc::LOCK_UN).map(|()| false),
        Err(super::Errno(libc::EWOULDBLOCK)) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// `renameat(2)` within one directory.
pub fn rename(dir: BorrowedFd<'_>, from: &CStr, to: &CStr) -> Result<()> {
    renameat(dir, from, dir, to)
}

/// `renameat(2)`
pub fn renameat(dir: BorrowedFd<'_>, from: &CStr, to_dir: BorrowedFd<'_>, to: &CStr) -> Result<()> {
    // SAFETY: two C strings.
    done(unsafe { libc::renameat(dir.as_raw_fd(), from.as_ptr(), to_dir.as_raw_fd(), to.as_ptr()) })
}

/// `renameat2(2)` with `RENAME_NOREPLACE`.
///
/// # Errors
/// `EEXIST` where something of that name is there.
pub fn rename_new(dir: BorrowedFd<'_>, from: &CStr, to: &CStr) -> Result<()> {
    let dir = dir.as_raw_fd();
    // SAFETY: two C strings and an open descriptor.
    done(unsafe { libc::syscall(libc::SYS_renameat2, dir, from.as_ptr(), dir, to.as_ptr(), libc::RENAME_NOREPLACE) })
}

/// `futimens(2)`, or of a name that is not followed `utimensat(2)`: the time of the last change of content.
pub fn set_mtime(dir: BorrowedFd<'_>, name: &CStr, mtime: (i64, i64)) -> Result<()> {
    let time = |seconds, nanos| libc::timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = [time(0, libc::UTIME_OMIT), time(mtime.0, mtime.1)];
    // SAFETY: a C string, and two times.
    done(unsafe { libc::utimensat(dir.as_raw_fd(), name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) })
}

/// `faccessat(2)`: whether the effective user may execute it.
pub fn may_execute(dir: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    // SAFETY: a C string and integers.
    done(unsafe { libc::faccessat(dir.as_raw_fd(), path.as_ptr(), libc::X_OK, libc::AT_EACCESS) })
}

/// `faccessat(2)`: whether the effective user may write a file, or make and remove names in a directory.
pub fn may_write(dir: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    // SAFETY: a C string and integers.
    done(unsafe { libc::faccessat(dir.as_raw_fd(), path.as_ptr(), libc::W_OK, libc::AT_EACCESS) })
}

/// `memfd_create(2)`: a file in memory without a name, close-on-exec, that can be sealed.
pub fn memfd(name: &CStr) -> Result<OwnedFd> {
    // SAFETY: a C string and an integer.
    fd(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) })
}

/// `fcntl(2)`, `F_ADD_SEALS`: nobody changes this file in memory any more.
pub fn seal(of: BorrowedFd<'_>) -> Result<()> {
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: takes integers.
    done(unsafe { libc::fcntl(of.as_raw_fd(), libc::F_ADD_SEALS, seals) })
}

/// `pipe2(2)`, close-on-exec: the reading and the writing end.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends: [c_int; 2] = [-1; 2];
    // SAFETY: the array holds two descriptors.
    done(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((fd(ends[0])?, fd(ends[1])?))
}

/// Makes room for so many descriptors, by a number that is taken and given back. To be called while the table is this
/// process's alone: a shared one waits for an RCU grace period, milliseconds, to grow (expand_files in fs/file.c).
pub fn make_room(of: BorrowedFd<'_>, count: c_int) {
    // Close-on-exec would be one more call of the C library's, for a number that is gone at once.
    // SAFETY: takes integers.
    let _ = fd(unsafe { libc::fcntl(of.as_raw_fd(), libc::F_DUPFD, count - 1) });
}

/// `getdents64(2)`, once: the names in a directory opened with [`Open::List`], but for `.` and `..`. An empty
/// batch that took no bytes is the end.
pub fn getdents<'b>(dir: BorrowedFd<'_>, into: &'b mut Entries) -> Result<Batch<'b>> {
    // SAFETY: the pointer and the length describe the buffer, which is aligned as the records are.
    let n = ok(unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), into.0.as_mut_ptr(), into.0.len()) })?;
    Ok(Batch { rest: &into.0[..n as usize] })
}

/// Room for some directory entries.
#[repr(align(8))]
pub struct Entries([u8; 4096]);

impl Entries {
    /// An empty buffer.
    pub const fn new() -> Entries {
        Entries([0; 4096])
    }
}

impl Default for Entries {
    fn default() -> Self {
        Entries::new()
    }
}

/// The names of one [`getdents`].
#[derive(Debug)]
pub struct Batch<'b> {
    rest: &'b [u8],
}

impl Batch<'_> {
    /// Whether the directory has no more entries.
    pub fn is_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whether one more entry may have had no room: asked of a batch of which nothing is taken yet.
    pub fn is_full(&self) -> bool {
        const LONGEST: usize = 19 + 255 + 1;
        self.rest.len() + LONGEST.next_multiple_of(8) > size_of::<Entries>()
    }
}

impl<'b> Iterator for Batch<'b> {
    type Item = &'b CStr;

    fn next(&mut self) -> Option<&'b CStr> {
        // struct linux_dirent64: inode and offset (8 bytes each), record length (2), type (1), name.
        const NAME: usize = 19;
        loop {
            let length = u16::from_ne_bytes([*self.rest.get(16)?, *self.rest.get(17)?]) as usize;
            let (record, rest) = self.rest.split_at_checked(length.max(NAME))?;
            self.rest = rest;
            match CStr::from_bytes_until_nul(&record[NAME..]) {
                Ok(name) if name == c"." || name == c".." => {}
                Ok(name) => return Some(name),
                Err(_) => return None,
            }
        }
    }
}
