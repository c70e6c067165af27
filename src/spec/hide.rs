//! `[hide]` and `[protect]`: what of the root and of the mounts is not to be seen, and what of the writable not to be
//! changed.

use super::layer::{Layer, Origin};
use super::mount::destination;
use super::resolve::{all, mounts};
use super::text::{Caller, InnerPath, spelled};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// A place inside that cannot be changed, whoever could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// Where.
    pub path: InnerPath,
    /// What happens where there is nothing.
    pub missing: Missing,
}

/// See [`Protected`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It may be made.
    Free,
    /// An empty directory stands there while the sandbox runs, if the directory around it is there.
    Directory,
    /// As [`Missing::Directory`], an empty file.
    Empty,
    /// As [`Missing::Directory`], a file that says `.`: that all of a repository lies where it is.
    CommonDir,
}

/// What a repository's `commondir` says without meaning anything else: that all of it lies in its own directory
/// (gitrepository-layout(5)).
pub(crate) const HERE_TOO: &[u8] = b".\n";

/// What shells and sessions read or run in a home when they start: those of bash, zsh, ksh, csh and fish, of X11
/// sessions, of systemd and of desktops (bash(1), zsh(1), environment.d(5), XDG autostart). Nobody there writes them
/// but their owner.
pub(crate) const START_FILES: [&str; 27] = [
    ".bashrc",
    ".bash_profile",
    ".bash_login",
    ".bash_logout",
    ".bash_aliases",
    ".profile",
    ".zshenv",
    ".zprofile",
    ".zshrc",
    ".zlogin",
    ".zlogout",
    ".kshrc",
    ".mkshrc",
    ".cshrc",
    ".tcshrc",
    ".login",
    ".logout",
    ".inputrc",
    ".pam_environment",
    ".xprofile",
    ".xsession",
    ".xsessionrc",
    ".xinitrc",
    ".config/fish",
    ".config/autostart",
    ".config/environment.d",
    ".config/systemd",
];

/// Variables that name a socket, or the key to one, behind which somebody acts for the caller.
pub(crate) const DOORS: [&str; 13] = [
    "SSH_AUTH_SOCK",
    "GPG_AGENT_INFO",
    "DBUS_SESSION_BUS_ADDRESS",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "DOCKER_HOST",
    "CONTAINER_HOST",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "PULSE_SERVER",
    "NIX_REMOTE",
    "TMUX",
    "VSCODE_IPC_HOOK_CLI",
    "VSCODE_GIT_IPC_HANDLE",
];

/// Those that the caller has, and the paths in them: as they are, or as `unix://PATH` or `unix:PATH` (Docker, Podman, Nix,
/// PulseAudio), several of `unix:path=PATH,guid=…` (D-Bus), `PATH:PID:VERSION` (GnuPG) or `PATH,PID,NUMBER` (tmux).
pub(crate) fn doors(caller: &Caller) -> impl Iterator<Item = (&'static str, PathBuf)> {
    DOORS.iter().flat_map(|name| {
        let value = caller.var(name).and_then(|value| value.to_str()).unwrap_or_default();
        let paths = value.split(';').flat_map(|address| {
            let bare = address.split_once("path=").map_or(address, |(_, path)| path);
            let bare = bare.strip_prefix("unix://").or_else(|| bare.strip_prefix("unix:")).unwrap_or(bare);
            let first = bare.split([':', ',']).next().unwrap_or(bare);
            [bare, first].into_iter().take(if first == bare { 1 } else { 2 })
        });
        paths.map(|path| spelled(Path::new(path))).filter(|path| path.is_absolute()).map(|path| (*name, path))
    })
}

/// The hidden paths of all layers. A mount of the command line on the very path lifts it, and that is noted.
pub(super) fn hidden(layers: &[Layer], caller: &Caller, notes: &mut Vec<String>) -> Result<Vec<InnerPath>> {
    let mut paths = Vec::new();
    for text in all(layers, |layer| &layer.hide.paths) {
        let path = one(caller, text)?;
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Ok(paths);
    }
    let argv: Vec<Layer> = layers.iter().filter(|layer| layer.origin == Origin::Argv).cloned().collect();
    for mount in mounts(&argv, caller)? {
        if let Some(hidden) = paths.iter().position(|path| *path == mount.dst) {
            notes.push(format!("--volume {} lifts a policy's [hide]", mount.dst));
            paths.remove(hidden);
        }
    }
    Ok(paths)
}

fn one(caller: &Caller, text: &str) -> Result<InnerPath> {
    const FIELD: &str = "[hide] paths";
    let path = caller.inner_path(FIELD, text)?;
    if text.contains("**") {
        return Err(Error::spec(FIELD, text, "** would have to look through whole trees at each start")
            .or_try("* stands for any text within one name"));
    }
    destination(FIELD, &path.to_string())
}

/// The protected paths of all layers. A slash at the end means a directory that nobody may make either.
pub(super) fn protected(layers: &[Layer], caller: &Caller) -> Result<Vec<Protected>> {
    const FIELD: &str = "[protect] paths";
    let paths = all(layers, |layer| &layer.protect.paths).map(|text| {
        let path = destination(FIELD, &caller.inner_path(FIELD, text)?.to_string())?;
        let missing = if text.ends_with('/') { Missing::Directory } else { Missing::Free };
        Ok(Protected { path, missing })
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller {
        Caller { cwd: "/work".into(), home: "/home/me".into(), env: Vec::new() }
    }

    fn resolved(paths: &[&str], argv: &[&str]) -> (Result<Vec<String>>, Vec<String>) {
        let mut policy = Layer { origin: Origin::Policy("p".into()), ..Layer::default() };
        policy.hide.paths = paths.iter().map(|path| path.to_string()).collect();
        let mut own = Layer::default();
        own.mounts.volume = argv.iter().map(|text| text.to_string()).collect();
        let mut notes = Vec::new();
        let paths = hidden(&[policy, own], &caller(), &mut notes);
        (paths.map(|paths| paths.iter().map(InnerPath::to_string).collect()), notes)
    }

    #[test]
    fn paths_begin_as_those_of_mounts() {
        let (paths, notes) = resolved(&["~", "./.env*", "/srv/x", "~"], &[]);
        assert_eq!(paths, Ok(vec!["/home/me".into(), "/work/.env*".into(), "/srv/x".into()]));
        assert!(notes.is_empty());
    }

    #[test]
    fn what_cannot_be_hidden_is_refused() {
        for bad in ["/", "/proc/1", "/dev", "x", "**", "./**/x"] {
            assert!(resolved(&[bad], &[]).0.is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_lifts_one_by_a_mount_on_it() {
        let (paths, notes) = resolved(&["~", "~/.ssh"], &["/k:/home/me/.ssh:ro", "/x:/home/me/x"]);
        assert_eq!(paths, Ok(vec!["/home/me".into()]));
        assert_eq!(notes, ["--volume /home/me/.ssh lifts a policy's [hide]"]);
    }

    #[test]
    fn a_slash_keeps_a_missing_directory_from_being_made() {
        let mut layer = Layer::default();
        layer.protect.paths = ["./.git/hooks/", "./.git/config"].map(String::from).to_vec();
        let found = protected(&[layer], &caller()).expect("paths");
        assert_eq!(found[0].path.to_string(), "/work/.git/hooks");
        assert_eq!(found.iter().map(|found| found.missing).collect::<Vec<_>>(), [Missing::Directory, Missing::Free]);
    }
}
