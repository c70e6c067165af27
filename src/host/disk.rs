//! The disk on which a path lies, whose rates are limited.

use super::files;
use crate::spec::text::HostPath;
use crate::sys::{self, fs::Kind};
use std::path::{Path, PathBuf};

/// A path and the disk that it is or lies on.
#[derive(Clone, Debug)]
pub struct Disk {
    /// As the user gave it.
    pub path: HostPath,
    /// Major and minor number, or why it is none.
    pub device: Result<(u32, u32), String>,
}

impl Disk {
    pub(super) fn of(path: &HostPath) -> Disk {
        Disk { path: path.clone(), device: disk(path.as_path()) }
    }
}

/// The disk that a path is or lies on. A partition has no rates of its own (blk-cgroup: ENODEV), its disk has.
fn disk(path: &Path) -> Result<(u32, u32), String> {
    let stat = sys::fs::stat(&files::c_path(path)).map_err(|errno| errno.to_string())?;
    let (major, minor) = match stat.kind {
        Kind::Block(major, minor) => (major, minor),
        _ => stat.on(),
    };
    let node = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if files::exists(&node).is_err() {
        return Err("on no disk of its own (a file system in memory, of the network, or over several disks)".into());
    }
    let node = if files::exists(&node.join("partition")).is_ok() { node.join("..") } else { node };
    let text = files::read_value(&node.join("dev")).map_err(|errno| errno.to_string())?;
    let (major, minor) = text.trim().split_once(':').ok_or("the kernel does not tell its disk")?;
    let number = |text: &str| text.parse().map_err(|_| "the kernel does not tell its disk".to_owned());
    Ok((number(major)?, number(minor)?))
}
