//! The directories of upper layers on disk: made, marked, locked; and the way without, where the disk cannot hold them.

use super::script::Script;
use super::{root, sources};
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::plan::{EtcWay, Plan, Step, UpperAt};
use crate::state::{mark_layer, private_dir};
use crate::sys;
use crate::sys::fs::{HERE, Open, openat, try_lock};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// How a layer is named that cannot be made where it should.
const FIELD: &str = "--upper";

/// The lock of an upper layer that is kept.
#[derive(Default)]
pub(super) struct Upper {
    _lock: Option<OwnedFd>,
}

impl Upper {
    /// Makes what the plan needs.
    pub(super) fn make(plan: &Plan, script: &Script, range: Option<&root::Range>) -> Result<Upper> {
        if let Some(path) = &plan.layers {
            match drop_place(script, path.as_path(), range) {
                Err(error) if plan.or_memory => return Err(Error::spec(FIELD, "disk", error)),
                made => made?,
            }
        }
        match Upper::place(plan) {
            Some(UpperAt::Kept(path)) => Ok(Upper { _lock: Some(lock(path.as_path())?) }),
            _ => Ok(Upper::default()),
        }
    }

    pub(super) fn place(plan: &Plan) -> Option<&UpperAt> {
        plan.steps.iter().find_map(|p| match &p.step {
            Step::Overlay(layers) => Some(&layers.upper),
            _ => None,
        })
    }
}

/// The private directory of the root's layer, and below it those of the other overlays.
fn drop_place(script: &Script, path: &Path, range: Option<&root::Range>) -> Result<()> {
    match (path.parent(), range) {
        // The ids of root's sandboxes have to get through.
        (Some(parent), Some(_)) => root::passable(parent)?,
        (Some(parent), None) => drop(private_dir(parent)?),
        (None, _) => {}
    }
    let dir = private_dir(path)?;
    mark_layer(dir.as_fd(), path)?;
    range.map_or(Ok(()), |range| range.give(&dir))?;
    let layers = sources::layers(script);
    let others = layers.iter().filter_map(|layer| layer.upper.parent()).filter(|dir| dir.parent() == Some(path));
    others.into_iter().try_for_each(|other| {
        let dir = private_dir(other)?;
        range.map_or(Ok(()), |range| range.give(&dir))
    })
}

/// The kernel lets one upper layer be mounted twice and then does anything, so the lock is sbx's own.
fn lock(path: &Path) -> Result<OwnedFd> {
    let refuse = |why: String| Error::spec(FIELD, path.display(), why);
    std::fs::create_dir_all(path).map_err(|e| refuse(sys::Errno::from(e).to_string()))?;
    let lock = openat(HERE, &c_path(&path.join("lock")), Open::Lock).map_err(|e| refuse(e.to_string()))?;
    match try_lock(lock.as_fd()) {
        Ok(true) => Ok(lock),
        Ok(false) if sys::sabotaged(c"upper-lock") => Ok(lock),
        Ok(false) => Err(refuse("another sandbox uses it".into()).or_try("another directory, or wait for it to end")),
        Err(errno) => Err(refuse(errno.to_string())),
    }
}

/// The plan with the changes in memory, where nobody has asked for the disk and that has refused them: file systems differ
/// in what an upper layer needs of them, which only the mount itself tells (overlayfs.rst, "upperdir").
///
/// # Errors
/// The refusal, where it is another's.
pub(super) fn instead(plan: &Plan, refused: Error) -> std::result::Result<(Plan, String), Error> {
    let in_layer = |number: usize| {
        let step = number.checked_sub(1).and_then(|index| plan.steps.get(index)).map(|planned| &planned.step);
        match step {
            Some(Step::Overlay(_) | Step::HostOverlay(_) | Step::Mount(_)) => true,
            Some(Step::Supply(etc)) => matches!(etc.way, EtcWay::Upper(..)),
            _ => false,
        }
    };
    let why = match &refused {
        _ if !plan.or_memory => return Err(refused),
        Error::Step { place, call, errno } if in_layer(place.number) => format!("{call}: {errno}"),
        Error::Spec { field, why, .. } if field == FIELD => why.clone(),
        _ => return Err(refused),
    };
    let mut plan = plan.clone();
    plan.or_memory = false;
    let at = plan.layers.take();
    plan.keeps = plan.is_detached();
    let at = at.map(|at| at.to_string()).unwrap_or_default();
    let note = format!("the changes go to memory, and are lost at the end: {at} takes no layer ({why})");
    for planned in &mut plan.steps {
        if let Step::Overlay(layers) = &mut planned.step
            && let UpperAt::Dropped(_) = &layers.upper
        {
            layers.upper = UpperAt::Store;
        }
    }
    Ok((plan, note))
}
