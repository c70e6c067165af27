//! Small reads of files whose content may come from anybody: bounded, never waiting.

use crate::sys::fs::{HERE, Kind, Open, fstat, openat, read};
use crate::sys::{EINVAL, Errno, Result};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Whether others than its owner may write to a file through its group.
pub fn writable_by_group(path: &Path) -> bool {
    crate::sys::fs::stat(&c_path(path)).is_ok_and(|stat| stat.mode & 0o020 != 0)
}

/// A path as the kernel takes it. A NUL byte, which no parser of sbx lets through, ends it.
pub fn c_path(path: &Path) -> CString {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

/// The text of a file of the host, at most `limit` bytes; bytes that are no UTF-8 are replaced.
pub fn read_text(path: &Path, limit: usize) -> Result<String> {
    let file = openat(HERE, &c_path(path), Open::Read)?;
    read_open(file.as_fd(), limit, limit).map(text)
}

/// The text of a file of /proc that holds one short value: one read has all of it.
pub fn read_value(path: &Path) -> Result<String> {
    let file = openat(HERE, &c_path(path), Open::Read)?;
    read_value_of(file.as_fd())
}

/// The same of an open file.
pub fn read_value_of(file: BorrowedFd<'_>) -> Result<String> {
    read_open(file, 4096, 1).map(text)
}

/// The bytes of an open file of a kernel's own, whose size it does not tell, at most `limit`.
pub fn read_bytes_of(file: BorrowedFd<'_>, limit: usize) -> Result<Vec<u8>> {
    read_open(file, limit, limit)
}

/// The bytes of an open regular file, at most `limit`: as [`read_regular`].
pub fn read_bytes(file: BorrowedFd<'_>, limit: usize) -> Result<Vec<u8>> {
    let stat = fstat(file)?;
    match stat.kind {
        Kind::File if stat.size <= limit as u64 => read_open(file, limit, stat.size as usize),
        Kind::File => Err(Errno(libc_efbig())),
        _ => Err(EINVAL),
    }
}

/// The text of an open regular file, at most `limit` bytes: a FIFO, a device or a directory is refused,
/// a larger file too (security.md S08).
pub fn read_regular(file: BorrowedFd<'_>, limit: usize) -> Result<String> {
    read_bytes(file, limit).map(text)
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// EFBIG, "file too large".
const fn libc_efbig() -> i32 {
    27
}

/// `enough` is where the end is known to be.
fn read_open(file: BorrowedFd<'_>, limit: usize, enough: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while bytes.len() < limit {
        match read(file, &mut chunk)? {
            0 => break,
            n => bytes.extend_from_slice(&chunk[..n]),
        }
        if bytes.len() >= enough {
            break;
        }
    }
    bytes.truncate(limit);
    Ok(bytes)
}

/// The kernel's release text, by uname(2).
pub fn release() -> String {
    crate::sys::host::release()
}

/// How many processors the kernel may ever have.
pub fn cpus_possible() -> usize {
    let text = read_text(Path::new("/sys/devices/system/cpu/possible"), 256).unwrap_or_default();
    text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok()).map_or(1, |last| last + 1)
}

/// The same path with the symlinks in it resolved, as far as it exists.
pub fn without_links(path: &Path) -> PathBuf {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(real), ..) => real,
        (Err(_), Some(parent), Some(name)) => without_links(parent).join(name),
        _ => path.to_owned(),
    }
}

/// Whether a path of the host leads to something.
///
/// # Errors
/// The errno of stat(2).
pub fn exists(path: &Path) -> Result<()> {
    crate::sys::fs::stat(&c_path(path)).map(drop)
}
