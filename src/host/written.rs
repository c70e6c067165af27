//! Which directories of the host a sandbox can change, and where it sees what lies in them.

use crate::spec::Spec;
use crate::spec::mount::{Access, Source};
use crate::spec::text::InnerPath;
use std::path::{Path, PathBuf};

/// A writable mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What is mounted, without links.
    pub real: PathBuf,
    /// Where.
    pub dst: InnerPath,
}

impl Written {
    /// Where the sandbox sees a path of the host, which has no links either.
    pub fn inside(&self, real: &Path) -> Option<InnerPath> {
        let below = real.strip_prefix(&self.real).ok()?;
        let path = self.dst.as_path().join(below);
        InnerPath::parse("--volume", path.components().collect::<PathBuf>()).ok()
    }
}

/// Those of the spec. What is not there is not written either.
pub(super) fn of(spec: &Spec) -> Vec<Written> {
    let written = spec.mounts.iter().filter_map(|mount| match &mount.source {
        Source::Bind { src, access: Access::Rw, .. } => {
            Some(Written { real: std::fs::canonicalize(src.as_path()).ok()?, dst: mount.dst.clone() })
        }
        _ => None,
    });
    written.collect()
}
