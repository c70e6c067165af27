//! The git repository of the caller's directory, so that git can be used in a sandbox without a way into the caller's
//! next command.
//!
//! A project may be a stranger's, and so is its `.git`: a file there leads on only where the directory that it names
//! names it back, which nobody can arrange who could not write there before.

use super::files::read_text;
use std::path::{Path, PathBuf};

/// See the head of the file. All paths are without links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repository {
    /// `.git` of the working directory: a directory, or a file in a linked worktree (git-worktree(1)).
    pub entry: PathBuf,
    /// The directory with objects, hooks and configuration: `entry` itself, or that of the main worktree.
    pub common: PathBuf,
}

impl Repository {
    /// Whether it is a linked worktree, whose common directory lies elsewhere.
    pub fn is_linked(&self) -> bool {
        self.entry != self.common
    }
}

/// A line of git's is a path and no more.
const LINE: usize = 8192;

/// Of the directory itself, not of one above: what stands above is not the project.
pub(super) fn of(cwd: &Path) -> Option<Repository> {
    let entry = cwd.join(".git");
    let meta = std::fs::symlink_metadata(&entry).ok()?;
    if meta.is_dir() {
        return Some(Repository { common: entry.clone(), entry });
    }
    let line = |file: &Path| read_text(file, LINE).ok().map(|text| text.trim_end().to_owned());
    let dir = cwd.join(line(&entry).filter(|_| meta.is_file())?.strip_prefix("gitdir: ")?);
    let dir = std::fs::canonicalize(dir).ok()?;
    let back = std::fs::canonicalize(line(&dir.join("gitdir"))?).ok()?;
    let common = std::fs::canonicalize(dir.join(line(&dir.join("commondir"))?)).ok()?;
    let own = back == entry && dir.parent() == Some(&common.join("worktrees")) && is_repository(&common);
    own.then_some(Repository { entry, common })
}

/// What git itself asks of one (gitrepository-layout(5)).
fn is_repository(dir: &Path) -> bool {
    dir.join("HEAD").is_file() && dir.join("objects").is_dir() && dir.join("refs").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    fn main_and_linked() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let top = std::fs::canonicalize(dir.path()).expect("a path");
        let (common, linked) = (top.join("main/.git"), top.join("linked"));
        for below in ["objects", "refs", "worktrees/linked"] {
            create_dir_all(common.join(below)).expect("a directory");
        }
        create_dir_all(&linked).expect("a directory");
        write(common.join("HEAD"), "ref: refs/heads/main\n").expect("a file");
        write(linked.join(".git"), format!("gitdir: {}\n", common.join("worktrees/linked").display())).expect("a file");
        write(common.join("worktrees/linked/gitdir"), format!("{}\n", linked.join(".git").display())).expect("a file");
        write(common.join("worktrees/linked/commondir"), "../..\n").expect("a file");
        (dir, common, linked)
    }

    #[test]
    fn a_linked_worktree_leads_to_the_repository_that_names_it_back() {
        let (_dir, common, linked) = main_and_linked();
        let found = of(&linked).expect("a repository");
        assert!(found.is_linked() && found.common == common);
        assert!(!of(common.parent().expect("main")).expect("a repository").is_linked());
        assert_eq!(of(&common), None);
    }

    #[test]
    fn a_strangers_file_leads_nowhere() {
        let (dir, common, linked) = main_and_linked();
        let stranger = dir.path().join("stranger");
        create_dir_all(&stranger).expect("a directory");
        std::fs::copy(linked.join(".git"), stranger.join(".git")).expect("a copy");
        assert_eq!(of(&stranger), None);
        write(stranger.join(".git"), "gitdir: /etc\n").expect("a file");
        assert_eq!(of(&stranger), None);
        std::fs::remove_file(common.join("HEAD")).expect("removed");
        assert_eq!(of(&linked), None);
    }
}
