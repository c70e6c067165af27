//! What is laid over the mounts: hidden and protected paths, those of git repositories and of the caller's shell among them.

use super::steps::Step;
use crate::host::{Host, Power, Repository, Written};
use crate::spec::hide::{Missing, Protected, doors};
use crate::spec::mount::{Access, Devices, Exec, Mount, Presence, Source};
use crate::spec::text::{HostPath, InnerPath};
use crate::spec::{RootSource, Spec};
use std::path::Path;

/// For errors.
const GIT: &str = "[protect] git";

/// What is hidden, in no order yet.
pub(super) fn concealed(spec: &Spec, host: &Host) -> impl Iterator<Item = Step> {
    hidden(spec, host).into_iter().map(|path| Step::Conceal(path, spec.root.exec))
}

/// What is protected, after all that is mounted, so that it holds for that too; `linked` are the mounts that [`linked`]
/// gave.
pub(super) fn protected(spec: &Spec, host: &Host, linked: &[Mount]) -> Vec<Step> {
    let own = repository_places(host, linked).into_iter().chain(start_files(spec, host));
    let mut protected: Vec<Protected> = Vec::new();
    for place in spec.protect.iter().cloned().chain(own) {
        match protected.iter_mut().find(|known| known.path == place.path) {
            Some(known) if known.missing == Missing::Free => known.missing = place.missing,
            Some(_) => {}
            None => protected.push(place),
        }
    }
    protected.into_iter().map(Step::Protect).collect()
}

/// Of mounts and hidden paths the longer one wins, and of equal ones the stricter.
pub(super) fn rank(step: &Step) -> (usize, u8) {
    match step {
        Step::Mount(mount) => (mount.dst.depth(), 0),
        Step::Conceal(path, _) => (path.depth(), 1),
        _ => (0, 0),
    }
}

/// What is hidden, without what `@host` shows empty already.
fn hidden(spec: &Spec, host: &Host) -> Vec<InnerPath> {
    let empty = |path: &InnerPath| host.emptied.iter().any(|(emptied, _)| emptied == path.as_path());
    let named = spec.hide.iter().filter(|path| !path.has_pattern());
    let mut paths: Vec<InnerPath> = named.chain(&host.hidden).filter(|path| !empty(path)).cloned().collect();
    paths.extend(sockets(spec, host));
    paths.sort();
    paths.dedup();
    paths
}

/// On `@host`, the sockets that the caller's variables name: where they lie on the root, and in what is mounted. A mount
/// of the very socket says that it is meant.
fn sockets(spec: &Spec, host: &Host) -> Vec<InnerPath> {
    if spec.root.source != RootSource::Host {
        return Vec::new();
    }
    let source = |mount: &Mount| match &mount.source {
        Source::Bind { src, .. } => Some(src.as_path().to_owned()),
        _ => None,
    };
    let mut found = Vec::new();
    for (_, socket) in doors(&host.caller) {
        let socket = socket.as_path();
        let meant = |mount: &Mount| source(mount).as_deref() == Some(socket) || mount.dst.as_path() == socket;
        if spec.mounts.iter().any(meant) {
            continue;
        }
        let below = spec
            .mounts
            .iter()
            .filter_map(|mount| Some(mount.dst.as_path().join(socket.strip_prefix(source(mount)?).ok()?)));
        let mut emptied = host.emptied.iter().map(|(path, _)| path.as_path()).chain(["/run", "/tmp"].map(Path::new));
        let empty = !socket.starts_with(&host.caller.cwd) && emptied.any(|path| socket.starts_with(path));
        let own = (!empty).then(|| socket.to_owned());
        found.extend(below.chain(own).filter_map(|path| InnerPath::parse("[hide]", path).ok()));
    }
    found
}

/// The repository of a linked worktree, without which git would find nothing in it: writable where the worktree is.
pub(super) fn linked(spec: &Spec, host: &Host) -> Vec<Mount> {
    let mount = |repository: &Repository| {
        let beside = |common: &Path| repository.entry.parent().is_some_and(|dir| common.starts_with(dir));
        let common = repository.common.as_ref().filter(|common| !beside(common))?;
        let dst = InnerPath::parse(GIT, common).ok()?;
        if spec.mounts.iter().any(|mount| mount.dst == dst) || seen(&host.written, common).next().is_some() {
            return None;
        }
        // What is root's own would have to be refused (DESIGN 4.10).
        let written = seen(&host.written, &repository.entry).next().is_some() && host.power == Power::Ordinary;
        let source = Source::Bind {
            src: HostPath::new(common)?,
            access: if written { Access::Rw } else { Access::Overlay },
            exec: Exec::Exec,
            devices: Devices::Nodev,
            presence: Presence::Required,
        };
        Some(Mount { dst, source })
    };
    host.repositories.iter().filter_map(mount).collect()
}

/// Where the sandbox can change what lies at a path of the host.
fn seen<'a>(written: &'a [Written], real: &'a Path) -> impl Iterator<Item = InnerPath> + 'a {
    written.iter().filter_map(|written| written.inside(real))
}

/// What of the repositories leads to commands in the caller's next use of git: hooks, the settings that name programs,
/// and what says that these lie elsewhere. Submodules have repositories of their own below `modules`, with the same in
/// each.
fn repository_places(host: &Host, linked: &[Mount]) -> Vec<Protected> {
    let of_linked = linked.iter().filter_map(|mount| match &mount.source {
        Source::Bind { src, access: Access::Rw, .. } => {
            Some(Written { real: src.as_path().to_owned(), dst: mount.dst.clone() })
        }
        _ => None,
    });
    let written: Vec<Written> = host.written.iter().cloned().chain(of_linked).collect();
    let mut places = Vec::new();
    let mut protect =
        |path: &Path, missing| places.extend(seen(&written, path).map(|path| Protected { path, missing }));
    for repository in &host.repositories {
        // Made where it is missing, it would count only where the configuration says so.
        let settings = if repository.settings_apart { Missing::Empty } else { Missing::Free };
        if let Some(common) = &repository.common {
            protect(&common.join("hooks"), Missing::Directory);
            protect(&common.join("config"), Missing::Empty);
            protect(&common.join("config.worktree"), settings);
            protect(&common.join("modules"), Missing::Free);
            protect(&common.join("commondir"), Missing::CommonDir);
        }
        for worktree in &repository.worktrees {
            protect(&worktree.join("config.worktree"), settings);
            protect(&worktree.join("commondir"), Missing::Free);
        }
        if repository.is_elsewhere() {
            protect(&repository.entry, Missing::Free);
        }
    }
    places
}

/// What the caller's next shell or session runs, as far as it is there, and what it leads to. A mount on the very file
/// says that it is meant.
fn start_files(spec: &Spec, host: &Host) -> Vec<Protected> {
    let meant = |path: &InnerPath| spec.mounts.iter().any(|mount| mount.dst == *path);
    let seen = host.start_files.iter().flat_map(|place| seen(&host.written, place));
    seen.filter(|path| !meant(path)).map(|path| Protected { path, missing: Missing::Free }).collect()
}
