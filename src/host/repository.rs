//! The git repositories of the caller's directory and of what a sandbox can change, so that git can be used in it without
//! a way into the caller's next command.
//!
//! A project may be a stranger's, and so is its `.git`: a file there leads on only where the directory that it names
//! names it back, which nobody can arrange who could not write there before, and a link only to what lies beside it.

use super::files::read_text;
use super::written::Written;
use std::path::{Path, PathBuf};

/// See the head of the file. All paths are without links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repository {
    /// `.git` of a directory: a directory, a link, or a file in a linked worktree (git-worktree(1)).
    pub entry: PathBuf,
    /// The directory with objects, hooks and configuration: `entry` itself, what the link leads to, or that of the main
    /// worktree; `None` where `entry` is believed nothing.
    pub common: Option<PathBuf>,
}

impl Repository {
    /// Whether `entry` only leads to the repository, and must go on leading there.
    pub fn is_elsewhere(&self) -> bool {
        self.common.as_ref() != Some(&self.entry)
    }
}

/// A line of git's is a path and no more.
const LINE: usize = 8192;

/// Those of the caller's directory and of each that is written.
pub(super) fn all(cwd: &Path, written: &[Written]) -> Vec<Repository> {
    let mut found: Vec<Repository> = Vec::new();
    for dir in written.iter().map(|written| written.real.as_path()).chain([cwd]) {
        if found.iter().all(|known| known.entry.parent() != Some(dir)) {
            found.extend(of(dir));
        }
    }
    found
}

/// Of the directory itself, not of one above: what stands above is not the project.
fn of(dir: &Path) -> Option<Repository> {
    let entry = dir.join(".git");
    let kind = std::fs::symlink_metadata(&entry).ok()?.file_type();
    let common = match kind {
        kind if kind.is_dir() => Some(entry.clone()),
        kind if kind.is_symlink() => {
            let leads = std::fs::canonicalize(&entry).ok();
            leads.filter(|leads| leads.starts_with(dir) && is_repository(leads))
        }
        kind if kind.is_file() => linked(dir, &entry),
        _ => None,
    };
    Some(Repository { entry, common })
}

/// The repository that a linked worktree's file leads to.
fn linked(dir: &Path, entry: &Path) -> Option<PathBuf> {
    let line = |file: &Path| read_text(file, LINE).ok().map(|text| text.trim_end().to_owned());
    let own = std::fs::canonicalize(dir.join(line(entry)?.strip_prefix("gitdir: ")?)).ok()?;
    let back = std::fs::canonicalize(line(&own.join("gitdir"))?).ok()?;
    let common = std::fs::canonicalize(own.join(line(&own.join("commondir"))?)).ok()?;
    (back == entry && own.parent() == Some(&common.join("worktrees")) && is_repository(&common)).then_some(common)
}

/// What git itself asks of one (gitrepository-layout(5)).
fn is_repository(dir: &Path) -> bool {
    dir.join("HEAD").is_file() && dir.join("objects").is_dir() && dir.join("refs").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::text::InnerPath;
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
        assert!(found.is_elsewhere() && found.common.as_ref() == Some(&common));
        assert!(!of(common.parent().expect("main")).expect("a repository").is_elsewhere());
        assert_eq!(of(&common), None);
    }

    #[test]
    fn a_strangers_file_leads_nowhere() {
        let (dir, common, linked) = main_and_linked();
        let stranger = dir.path().join("stranger");
        create_dir_all(&stranger).expect("a directory");
        std::fs::copy(linked.join(".git"), stranger.join(".git")).expect("a copy");
        let leads = |dir: &Path| of(dir).expect("an entry").common;
        assert_eq!(leads(&stranger), None);
        write(stranger.join(".git"), "gitdir: /etc\n").expect("a file");
        assert_eq!(leads(&stranger), None);
        std::fs::remove_file(stranger.join(".git")).expect("removed");
        std::os::unix::fs::symlink(&common, stranger.join(".git")).expect("a link");
        assert_eq!(leads(&stranger), None);
        std::fs::remove_file(common.join("HEAD")).expect("removed");
        assert_eq!(leads(&linked), None);
    }

    #[test]
    fn a_link_leads_to_what_lies_beside_it() {
        let (_dir, common, _) = main_and_linked();
        let main = common.parent().expect("main");
        std::fs::rename(&common, main.join("git")).expect("renamed");
        std::os::unix::fs::symlink("git", &common).expect("a link");
        assert_eq!(of(main), Some(Repository { entry: common.clone(), common: Some(main.join("git")) }));
        assert_eq!(all(main, &[]), all(main, &[Written { real: main.into(), dst: InnerPath::known("/p") }]));
    }
}
