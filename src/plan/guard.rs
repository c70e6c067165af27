//! What is laid over the mounts: hidden and protected paths, and the caller's git repository between the two.

use super::steps::Step;
use crate::host::{Host, Power};
use crate::spec::Spec;
use crate::spec::hide::{Missing, Protected};
use crate::spec::mount::{Access, Devices, Exec, Mount, Presence, Source};
use crate::spec::text::{HostPath, InnerPath};
use std::path::Path;

/// The steps, in no order yet.
pub(super) fn covers(spec: &Spec, host: &Host) -> Vec<Step> {
    let protected = spec.protect.iter().cloned().chain(repository_places(host));
    protected.map(Step::Protect).chain(hidden(spec, host).into_iter().map(Step::Conceal)).collect()
}

/// Among mounts, protected and hidden paths the longer one wins, and of equal ones the stricter.
pub(super) fn rank(step: &Step) -> (usize, u8) {
    match step {
        Step::Mount(mount) => (mount.dst.depth(), 0),
        Step::Protect(place) => (place.path.depth(), 1),
        Step::Conceal(path) => (path.depth(), 2),
        _ => (0, 0),
    }
}

/// What is hidden, without what `@host` shows empty already.
fn hidden(spec: &Spec, host: &Host) -> Vec<InnerPath> {
    let empty = |path: &InnerPath| host.emptied.iter().any(|(emptied, _)| emptied == path.as_path());
    let named = spec.hide.iter().filter(|path| !path.has_pattern());
    let mut paths: Vec<InnerPath> = named.chain(&host.hidden).filter(|path| !empty(path)).cloned().collect();
    paths.sort();
    paths.dedup();
    paths
}

/// The repository as a mount of its own, so that it can be neither moved away nor replaced, and so that a linked
/// worktree's is there at all. Where the project itself is kept from changes, so is it.
pub(super) fn repository(spec: &Spec, host: &Host) -> Option<Mount> {
    let repository = host.repository.as_ref()?;
    let around = spec.mounts.iter().rfind(|mount| host.caller.cwd.starts_with(mount.dst.as_path()));
    let written = around.is_some_and(|mount| matches!(mount.source, Source::Bind { access: Access::Rw, .. }));
    let dst = InnerPath::parse("[protect] git", &repository.common).ok()?;
    let named = spec.mounts.iter().any(|mount| mount.dst == dst);
    if named || !written && !repository.is_linked() {
        return None;
    }
    let source = Source::Bind {
        src: HostPath::new(&repository.common)?,
        // What is root's own would have to be refused (DESIGN 4.10).
        access: if written && !(repository.is_linked() && host.power != Power::Ordinary) {
            Access::Rw
        } else {
            Access::Overlay
        },
        exec: Exec::Exec,
        devices: Devices::Nodev,
        presence: Presence::Required,
    };
    Some(Mount { dst, source })
}

/// What of a repository leads to commands in the caller's next use of git: hooks, and the settings that name programs.
/// Submodules have repositories of their own below `modules`, with the same in each.
fn repository_places(host: &Host) -> Vec<Protected> {
    let Some(repository) = &host.repository else { return Vec::new() };
    let place = |path: &Path, missing| Some(Protected { path: InnerPath::parse("[protect] git", path).ok()?, missing });
    let mut places = vec![
        place(&repository.common.join("hooks"), Missing::Directory),
        place(&repository.common.join("config"), Missing::Free),
        place(&repository.common.join("config.worktree"), Missing::Free),
        place(&repository.common.join("modules"), Missing::Free),
    ];
    if repository.is_linked() {
        places.push(place(&repository.entry, Missing::Free));
    }
    places.into_iter().flatten().collect()
}
