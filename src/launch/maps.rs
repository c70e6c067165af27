//! Writing the id maps, where the child cannot do that itself.

use super::ids;
use super::root::Range;
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::host::{Host, ranges};
use crate::plan::{MapsBy, Plan, Step};
use crate::sys::fs::{self, HERE, Open};
use std::os::fd::AsFd;
use std::path::Path;

/// Writes both maps of the child, where it cannot do that itself.
///
/// # Errors
/// `Step` where the kernel refuses, `Helper` where a helper fails.
pub(super) fn write(plan: &Plan, host: &Host, range: Option<&Range>, pid: i32) -> Result<()> {
    let who = &plan.identities;
    match who.by {
        MapsBy::Helpers => {
            ranges::write(pid, (host.newuidmap.as_deref(), &who.uids), (host.newgidmap.as_deref(), &who.gids))
        }
        // A single id the child maps itself.
        MapsBy::Caller => Ok(()),
        MapsBy::Root => {
            let private = range.map(Range::extents);
            let [uids, gids] = [&who.uids, &who.gids].map(|extents| private.as_ref().map_or(&extents[..], |p| &p[..]));
            put(plan, pid, "uid_map", &ids::lines(uids))?;
            put(plan, pid, "gid_map", &ids::lines(gids))
        }
    }
}

fn put(plan: &Plan, pid: i32, file: &str, text: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{file}");
    let written = fs::openat(HERE, &c_path(Path::new(&path)), Open::Write)
        .and_then(|file| fs::write_all(file.as_fd(), text.as_bytes()));
    let place = || plan.place(plan.number(|step| matches!(step, Step::Maps(_))));
    let call = if file == "uid_map" { "write uid_map" } else { "write gid_map" };
    written.map_err(|errno| Error::Step { place: place(), call, errno })
}
