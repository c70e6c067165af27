//! The record of one sandbox: what later commands, and the clearing of a killed one, know of it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Version of this form; a record of a newer one is left alone.
pub const VERSION: u32 = 1;

/// See the head of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`] of the sbx that wrote it.
    pub version: u32,
    /// The sandbox's name.
    pub name: String,
    /// `starting`, `running`.
    pub state: String,
    /// pid of the sbx process that looks after it.
    pub supervisor_pid: i32,
    /// pid of its init, as the supervisor sees it.
    pub pid: Option<i32>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The command.
    pub command: Vec<String>,
    /// Supplementary groups that the program keeps.
    pub groups: Vec<u32>,
    /// Steps that were skipped.
    pub skipped: Vec<Skipped>,
    /// Landlock's ABI in force; 0 for none.
    pub landlock: u32,
    /// Mount points that may have to be removed from host directories.
    pub made: Vec<Made>,
    /// A private upper layer on disk, to be removed.
    #[serde(with = "paths")]
    pub upper: Option<PathBuf>,
}

/// A step that could not be done and was allowed to be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// The step's words.
    pub step: String,
    /// Why.
    pub why: String,
}

/// A mount point that did not exist in a host directory that the sandbox mounts writable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The host directory.
    #[serde(with = "paths")]
    pub tree: PathBuf,
    /// The place below it; symlinks on the way are resolved as if `tree` were the root.
    #[serde(with = "paths")]
    pub path: PathBuf,
    /// What is to be removed.
    pub kind: MadeKind,
}

/// See [`Made`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MadeKind {
    /// An empty directory.
    Directory,
    /// An empty file, or an empty directory: which is known only inside.
    Either,
}

/// Paths in JSON: a string, or the bytes of one that is no UTF-8, for which serde has no form.
mod paths {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        None(()),
        Text(String),
        Bytes(Vec<u8>),
    }

    /// What is one path or none.
    pub trait Paths: Sized {
        fn path(&self) -> Option<&Path>;
        fn of(path: Option<PathBuf>) -> Option<Self>;
    }

    impl Paths for PathBuf {
        fn path(&self) -> Option<&Path> {
            Some(self)
        }
        fn of(path: Option<PathBuf>) -> Option<Self> {
            path
        }
    }

    impl Paths for Option<PathBuf> {
        fn path(&self) -> Option<&Path> {
            self.as_deref()
        }
        fn of(path: Option<PathBuf>) -> Option<Self> {
            Some(path)
        }
    }

    pub fn serialize<S: Serializer>(path: &impl Paths, to: S) -> Result<S::Ok, S::Error> {
        let form = match path.path() {
            None => Form::None(()),
            Some(path) => match path.to_str() {
                Some(text) => Form::Text(text.to_owned()),
                None => Form::Bytes(path.as_os_str().as_bytes().to_vec()),
            },
        };
        form.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>, P: Paths>(from: D) -> Result<P, D::Error> {
        let path = match Form::deserialize(from)? {
            Form::None(()) => None,
            Form::Text(text) => Some(text.into()),
            Form::Bytes(bytes) => Some(OsString::from_vec(bytes).into()),
        };
        P::of(path).ok_or_else(|| serde::de::Error::custom("a path is missing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn paths_of_any_bytes_come_back() {
        let strange = PathBuf::from(OsString::from_vec(b"/a\xff\n".to_vec()));
        for tree in [PathBuf::from("/plain"), strange] {
            let made = Made { tree, path: "b".into(), kind: MadeKind::Either };
            let text = serde_json::to_string(&made).expect("JSON");
            assert_eq!(serde_json::from_str::<Made>(&text).expect("a record"), made);
        }
    }
}
