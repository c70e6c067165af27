//! Doing something with files of ids that are not the caller's own: those of its subordinate ranges, by which its
//! sandboxes may have written.

use super::ranges;
use crate::error::{Error, Result};
use crate::sys::fs::{self, HERE, Open};
use crate::sys::process::{self, ChildOf, Ended, Forked, Namespaces, WaitFor, Which};
use crate::sys::{EPERM, cred};
use std::os::fd::AsFd;
use std::path::Path;

/// For which ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// All that the caller can map.
    All,
    /// The same, or where there are none its own: with that it may read its own files whatever their modes are.
    AllOrOwn,
}

/// Does something in a process that may act for other ids, and returns the exit code of that.
///
/// # Errors
/// `Sys` where there can be no such process, `on` being what it is for; of the maps.
pub fn act(ids: Ids, doing: &str, on: &Path, act: impl FnOnce() -> i32) -> Result<i32> {
    let fail = |errno| Error::Sys { doing: doing.into(), on: on.display().to_string(), errno };
    // The new process goes on with our heap, whose lock a thread could hold.
    if process::single_threaded() != Ok(true) {
        return Err(fail(EPERM));
    }
    let (word, go) = fs::pipe().map_err(fail)?;
    match process::clone3(Namespaces::USER, ChildOf::Caller, None).map_err(fail)? {
        Forked::Child { .. } => {
            drop(go);
            let mapped = process::die_with_parent().is_ok() && fs::read(word.as_fd(), &mut [0]) == Ok(1);
            process::exit_now(if mapped { act() } else { EPERM.0 })
        }
        Forked::Parent { pid, pidfd } => {
            let mapped = match (ids, ranges::map_all(pid)) {
                (Ids::AllOrOwn, Err(_)) => map_own(pid).map_err(fail),
                (_, mapped) => mapped,
            };
            if mapped.is_ok() {
                let _ = fs::write_all(go.as_fd(), b".");
            }
            drop((go, word));
            let ended = process::wait(Which::Pidfd(pidfd.as_fd()), WaitFor::End);
            mapped?;
            match ended.map_err(fail)? {
                Some((_, Ended::Code(code))) => Ok(code),
                _ => Err(fail(EPERM)),
            }
        }
    }
}

/// Maps the caller alone, to 0 (user_namespaces(7)).
fn map_own(pid: i32) -> crate::sys::Result<()> {
    let (uid, gid) = (cred::geteuid(), cred::getegid());
    for (file, text) in
        [("setgroups", "deny".into()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
    {
        let path = super::files::c_path(&Path::new("/proc").join(pid.to_string()).join(file));
        fs::write_all(fs::openat(HERE, &path, Open::Write)?.as_fd(), text.as_bytes())?;
    }
    Ok(())
}
