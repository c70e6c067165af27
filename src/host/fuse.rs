//! Whether fuse-overlayfs can be used: the program and /dev/fuse. Looked at only where it is asked for, or where
//! the kernel has refused its own overlay.

use super::{Power, find_program};
use crate::error::{Error, Result};
use crate::spec::text::Caller;
use crate::sys::fs::{HERE, Open, openat, stat};
use crate::sys::{EACCES, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM, Errno};
use std::path::PathBuf;

/// Whether this refusal of an overlay is one that fuse-overlayfs is tried for: the kernel's own, and not the layers'.
pub fn replaces(call: &str, errno: Errno) -> bool {
    ["fsopen", "fsconfig", "fsmount"].contains(&call) && [EPERM, EINVAL, EOPNOTSUPP, ENODEV].contains(&errno)
}

const DEVICE: &std::ffi::CStr = c"/dev/fuse";

/// Finds the program.
///
/// # Errors
/// `Unsupported` where it is not installed, or /dev/fuse cannot be opened.
pub fn look(caller: &Caller, power: Power) -> Result<PathBuf> {
    let refuse =
        |why: String, hint: &str| Error::Unsupported { feature: "fuse-overlayfs".into(), why, hint: Some(hint.into()) };
    let Some(program) = find_program(caller, "fuse-overlayfs") else {
        return Err(refuse("it is not installed".into(), "install the package fuse-overlayfs"));
    };
    // Root's sandboxes run with ids that are nobody's outside, so what counts is what everybody may.
    let opened = match power {
        Power::Ordinary => openat(HERE, DEVICE, Open::ReadWrite).map(drop),
        Power::Root | Power::RootWithoutAdmin => stat(DEVICE).and_then(|found| match found.mode & 0o006 {
            0o006 => Ok(()),
            _ => Err(EACCES),
        }),
    };
    match opened {
        Ok(()) => Ok(program),
        Err(errno @ (EACCES | EPERM)) => {
            let why = format!("/dev/fuse: {errno}; most systems let everybody open it");
            Err(refuse(why, "as root: chmod 666 /dev/fuse; in a container its --device /dev/fuse"))
        }
        Err(errno) => {
            let hint = match errno {
                ENOENT => "as root: modprobe fuse; in a container its --device /dev/fuse",
                _ => "as root: modprobe fuse",
            };
            Err(refuse(format!("/dev/fuse: {errno}"), hint))
        }
    }
}
