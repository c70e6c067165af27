//! The record of one sandbox: what later commands, and the clearing of a killed one, know of it.

use crate::host::manager::Door;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Version of this form; a record of a newer one is left alone.
pub const VERSION: u32 = 1;

/// See the head of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the form, by the sbx that wrote it.
    pub version: u32,
    /// The sandbox's name.
    pub name: String,
    /// `starting`, `running`, and of one that is kept `exited`.
    pub state: String,
    /// ROOTFS: a directory, or `@host`.
    #[serde(default)]
    pub rootfs: String,
    /// Who enforces which limit.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// pid of the sbx process that looks after it.
    pub supervisor_pid: i32,
    /// pid of its init, as the supervisor sees it.
    pub pid: Option<i32>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The command, or as much of a long one as is recorded.
    pub command: Vec<String>,
    /// Supplementary groups that the program keeps.
    pub groups: Vec<u32>,
    /// Steps that were skipped.
    pub skipped: Vec<Skipped>,
    /// Landlock's ABI in force; 0 for none.
    pub landlock: u32,
    /// Mount points that may have to be removed from host directories.
    pub made: Vec<Made>,
    /// Host directories that the sandbox mounts writable, in which its mounts may lie; no symlinks on the way.
    #[serde(default)]
    pub trees: Vec<Tree>,
    /// A cgroup that sbx made, to be removed.
    #[serde(default, with = "super::path::optional")]
    pub group: Option<PathBuf>,
    /// A scope of systemd's that may stay empty, for it was asked for and nothing has run in it yet.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// A private upper layer on disk, to be removed; no symlinks on the way.
    #[serde(with = "super::path::optional")]
    pub upper: Option<PathBuf>,
    /// The layers that hold what the program changes.
    #[serde(default)]
    pub layers: Vec<Layer>,
    /// Where sbx itself has put something on them.
    #[serde(default)]
    pub own: Vec<Own>,
    /// Whether it runs in the background.
    #[serde(default)]
    pub detached: bool,
    /// Whether its record stays when it has ended.
    #[serde(default)]
    pub keeps: bool,
    /// When it began: seconds and nanoseconds since 1970.
    #[serde(default)]
    pub began: (i64, i64),
    /// When its program started, as RFC 3339 writes it.
    #[serde(default)]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default)]
    pub exited_at: Option<String>,
    /// The exit status of CLI.md.
    #[serde(default)]
    pub exit_status: Option<u8>,
    /// What ended it, where it was not the program itself.
    #[serde(default)]
    pub exit_why: Option<String>,
    /// Bytes of its output that the log had no room for.
    #[serde(default)]
    pub log_lost: u64,
    /// How much it is exposed, of one whose record stays.
    #[serde(default)]
    pub exposed: Vec<Exposure>,
    /// What the sandbox has refused, where that was to be explained.
    #[serde(default)]
    pub denied: Vec<Denied>,
}

/// A setting, and how much a sandbox is exposed by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// What it is about.
    pub heading: String,
    /// The setting, in words of what it opens.
    pub setting: String,
    /// How much it counts.
    pub weight: u32,
    /// From 0 to 100.
    pub exposure: u32,
    /// What would lower it.
    pub fix: String,
}

/// Something that was tried, and what has refused it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// The system call.
    pub call: String,
    /// On what: a path, an address, a kind of socket. Empty where the call says it all.
    pub object: String,
    /// The program's name.
    pub program: String,
    /// What it got for an answer, such as `EPERM`.
    pub errno: String,
    /// How often.
    pub count: u64,
    /// What has refused it.
    pub rule: String,
    /// Where that is asked for: `FILE:LINE`, a ready policy's name.
    pub origin: Option<String>,
    /// The option that allows it.
    pub option: Option<String>,
    /// The same as a line of a policy.
    pub toml: Option<String>,
    /// Where no option does: why, or what to do instead.
    pub note: Option<String>,
}

/// How much of a command a record holds, in bytes.
const COMMAND: usize = 4096;

/// The most that a record may have, in bytes. A record that cannot be read again clears nothing.
pub(super) const MOST: usize = 1 << 24;

/// A command as it is recorded: its start, and an ellipsis where more would have come. It is for people, and may be as
/// long as the kernel lets it.
pub(crate) fn short(command: &[OsString]) -> Vec<String> {
    let mut left = COMMAND;
    let mut shown = Vec::new();
    for word in command {
        let word = word.to_string_lossy();
        // Each word costs something, however short it is.
        if word.len() >= left {
            let end = (0..left).rev().find(|end| word.is_char_boundary(*end)).unwrap_or(0);
            shown.push(format!("{}…", &word[..end]));
            break;
        }
        left -= word.len() + 1;
        shown.push(word.into_owned());
    }
    shown
}

/// A scope of the user's systemd, and where that listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The unit's name.
    pub unit: String,
    /// Where.
    pub door: Door,
}

/// A limit and who enforces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The option, without dashes.
    pub option: String,
    /// What was asked for.
    pub value: String,
    /// `cgroup`, `systemd`, `kernel`, `affinity` or `watch`.
    pub by: String,
}

/// A step that could not be done and was allowed to be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// The step's words.
    pub step: String,
    /// Why.
    pub why: String,
}

/// A writable layer over a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Where both are seen inside.
    #[serde(with = "super::path")]
    pub at: PathBuf,
    /// The directory of the host below it.
    #[serde(with = "super::path")]
    pub lower: PathBuf,
    /// The layer: an absolute path of the host, or one in the sandbox's own tmpfs.
    #[serde(with = "super::path")]
    pub upper: PathBuf,
    /// Whether fuse-overlayfs writes it.
    pub fuse: bool,
    /// Device and inode of the directory below, of one that is kept: what is taken over goes into no other.
    #[serde(default)]
    pub below: Option<(u64, u64)>,
}

/// A place inside that is sbx's own: a mount point, a file, a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// As it was named.
    #[serde(with = "super::path")]
    pub path: PathBuf,
    /// Whether its last name was followed where it is a link.
    pub followed: bool,
}

/// A host directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree(#[serde(with = "super::path")] pub PathBuf);

/// A mount point that did not exist in a host directory that the sandbox mounts writable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The host directory; no symlinks on the way.
    #[serde(with = "super::path")]
    pub tree: PathBuf,
    /// The place below it; no symlinks on the way, which were resolved as if `tree` were the root.
    #[serde(with = "super::path")]
    pub path: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_is_cut_and_says_so() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(short(&words(&["sh", "-c", "ü"])), ["sh", "-c", "ü"]);
        let long = "ü".repeat(COMMAND);
        let cut = short(&words(&["sh", &long, "x"]));
        assert!(cut.len() == 2 && cut[1].ends_with("ü…") && cut[1].len() < COMMAND + 4, "{cut:?}");
        let many = short(&vec![OsString::new(); 2 * COMMAND]);
        assert!(many.len() <= COMMAND + 1 && many.last().is_some_and(|last| last == "…"), "{}", many.len());
    }
}
