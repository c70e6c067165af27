//! Where the caller's home really lies: `@host` hides it however it is spelled, through links and all. And where
//! upper layers on disk lie below it.

use super::{Power, files};
use crate::spec::hide::START_FILES;
use crate::spec::ids::{self, Account};
use crate::spec::text::Caller;
use std::path::{Component, Path, PathBuf};

/// What `@host` always shows empty, and with which mode.
const EMPTIED: [(&str, u32); 5] =
    [("/home", 0o755), ("/root", 0o700), ("/mnt", 0o755), ("/media", 0o755), ("/var/tmp", 0o1777)];

/// The directory for upper layers on disk. Its last two names are always these: by them a record is believed that
/// names a layer to be removed (`state/leftovers.rs`). Where it is a link to a place of another name, it lies in there.
pub(super) fn layers(caller: &Caller, power: Power) -> PathBuf {
    const NAME: &str = "sbx/upper";
    // Root's own home is closed to the ids of its sandboxes.
    let base = if power == Power::Ordinary { caller.data_home() } else { "/var/lib".into() };
    let real = files::without_links(&base.join(NAME));
    if real.ends_with(NAME) { real } else { real.join(NAME) }
}

/// The line of /etc/passwd of a user.
pub(super) fn account(uid: u32) -> Option<Account> {
    let text = files::read_text(Path::new("/etc/passwd"), 1 << 20).ok()?;
    ids::accounts(&text).find(|account| account.uid == uid)
}

/// The home that /etc/passwd gives a user.
pub(super) fn of_passwd(uid: u32) -> Option<PathBuf> {
    account(uid).map(|account| PathBuf::from(account.home)).filter(|home| home.is_absolute())
}

/// The directories that `@host` shows empty and their modes, the outer ones first: those of every machine and the
/// caller's home, each as it is spelled and where it leads. A home that leads nowhere is not the one to hide, and a file
/// is none.
pub(super) fn emptied(caller: &Caller, uid: u32) -> Vec<(PathBuf, u32)> {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let leads = |home: &Path| real(home).is_some_and(|real| real != Path::new("/") && real.is_dir());
    let other = if leads(&caller.home) { None } else { of_passwd(uid) };
    let homes = [Some(caller.home.clone()), other].into_iter().flatten();
    let homes = homes.filter(|home| !home.exists() || home.is_dir()).map(|home| (home, 0o700));
    let mut found: Vec<(PathBuf, u32)> = Vec::new();
    for (path, mode) in EMPTIED.map(|(path, mode)| (PathBuf::from(path), mode)).into_iter().chain(homes) {
        let spelled: PathBuf = path.components().collect();
        for path in [Some(spelled), real(&path)].into_iter().flatten().filter(|path| can_be_emptied(path)) {
            if found.iter().all(|(known, _)| *known != path) {
                found.push((path, mode));
            }
        }
    }
    found.sort_by_key(|(path, _)| path.components().count());
    found
}

/// Neither the root nor part of what sbx itself makes; `..` is understood by where the path leads.
fn can_be_emptied(path: &Path) -> bool {
    let made = ["/dev", "/proc", "/sys"].iter().any(|made| path.starts_with(made));
    !made && path != Path::new("/") && path.components().all(|part| part != Component::ParentDir)
}

/// What the caller's next shell or session runs, and the policies that the caller has accepted; of what is a link also
/// what it leads to.
pub(super) fn start_files(caller: &Caller) -> Vec<PathBuf> {
    let Ok(home) = std::fs::canonicalize(&caller.home) else { return Vec::new() };
    let places = START_FILES.iter().map(|name| home.join(name)).chain([caller.data_home().join("sbx/trust")]);
    let also = |place: PathBuf| {
        let link = place.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
        let leads = if link { std::fs::canonicalize(&place).ok() } else { None };
        std::iter::once(place).chain(leads)
    };
    places.flat_map(also).collect()
}
