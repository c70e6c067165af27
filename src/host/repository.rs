//! The git repositories of the caller's directory and of what a sandbox can change, so that git can be used in it without
//! a way into the caller's next command.
//!
//! A project may be a stranger's, and so is its `.git`: a file there leads on only where the directory that it names
//! names it back, which nobody can arrange who could not write there before, or to what lies beside it, as a link does.

use super::files::read_text;
use super::written::Written;
use std::path::{Path, PathBuf};

/// See the head of the file. All paths are without links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repository {
    /// `.git` of a directory: a directory, a link, or a file in a linked worktree (git-worktree(1)) or a submodule; or
    /// a bare repository itself.
    pub entry: PathBuf,
    /// The directory with objects, hooks and configuration: `entry` itself, what it leads to, or that of the main
    /// worktree; `None` where `entry` is believed nothing.
    pub common: Option<PathBuf>,
    /// The directories of its linked worktrees in `common`.
    pub worktrees: Vec<PathBuf>,
    /// Whether the configuration says that there is more of it in `config.worktree`.
    pub settings_apart: bool,
}

impl Repository {
    /// Whether `entry` only leads to the repository, and must go on leading there.
    pub fn is_elsewhere(&self) -> bool {
        self.common.as_ref() != Some(&self.entry)
    }

    fn new(entry: PathBuf, common: Option<PathBuf>) -> Repository {
        let (mut worktrees, mut settings_apart) = (Vec::new(), false);
        if let Some(common) = &common {
            let names = std::fs::read_dir(common.join("worktrees")).into_iter().flatten().flatten();
            worktrees = names.take(MOST).map(|name| name.path()).filter(|path| path.is_dir()).collect();
            let config = read_text(&common.join("config"), TEXT);
            settings_apart = config.is_ok_and(|text| text.to_lowercase().contains("worktreeconfig"));
        }
        worktrees.sort();
        Repository { entry, common, worktrees, settings_apart }
    }
}

/// A line of git's is a path and no more.
const LINE: usize = 8192;
/// Bytes of a file that a person writes.
const TEXT: usize = 1 << 20;
/// Worktrees, and repositories, that are looked at: what is protected costs mounts.
const MOST: usize = 100;

/// Those of the caller's directory, of each that is written, and of their submodules.
pub(super) fn all(cwd: &Path, written: &[Written]) -> Vec<Repository> {
    let mut dirs: Vec<PathBuf> = written.iter().map(|written| written.real.clone()).chain([cwd.to_owned()]).collect();
    let mut found: Vec<Repository> = Vec::new();
    let mut next = 0;
    while let (Some(dir), true) = (dirs.get(next).cloned(), found.len() < MOST) {
        next += 1;
        let Some(repository) = of(&dir).filter(|new| found.iter().all(|known| known.entry != new.entry)) else {
            continue;
        };
        if repository.entry != dir {
            dirs.extend(submodules(&dir));
        }
        found.push(repository);
    }
    found
}

/// Of the directory itself, not of one above: what stands above is not the project.
fn of(dir: &Path) -> Option<Repository> {
    let entry = dir.join(".git");
    let Ok(kind) = std::fs::symlink_metadata(&entry).map(|meta| meta.file_type()) else {
        return is_repository(dir).then(|| Repository::new(dir.to_owned(), Some(dir.to_owned())));
    };
    let beside = |leads: Option<PathBuf>| leads.filter(|leads| leads.starts_with(dir) && is_repository(leads));
    let common = match kind {
        kind if kind.is_dir() => Some(entry.clone()),
        kind if kind.is_symlink() => beside(std::fs::canonicalize(&entry).ok()),
        kind if kind.is_file() => linked(dir, &entry).or_else(|| beside(named(dir, &entry))),
        _ => None,
    };
    Some(Repository::new(entry, common))
}

/// The directories of a project's submodules, as far as they lie in it (gitmodules(5)).
fn submodules(dir: &Path) -> Vec<PathBuf> {
    let text = read_text(&dir.join(".gitmodules"), TEXT).unwrap_or_default();
    let path = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let path = (key.trim() == "path").then(|| dir.join(value.trim().trim_matches('"')))?;
        std::fs::canonicalize(path).ok().filter(|path| path.starts_with(dir))
    };
    text.lines().filter_map(path).collect()
}

fn line(file: &Path) -> Option<String> {
    read_text(file, LINE).ok().map(|text| text.trim_end().to_owned())
}

/// Where a `.git` file says that it leads.
fn named(dir: &Path, entry: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(dir.join(line(entry)?.strip_prefix("gitdir: ")?)).ok()
}

/// The repository that a linked worktree's file leads to.
fn linked(dir: &Path, entry: &Path) -> Option<PathBuf> {
    let own = named(dir, entry)?;
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
        assert_eq!(found.worktrees, [common.join("worktrees/linked")]);
        // A bare one, or the caller stands in it.
        assert!(!of(&common).expect("a repository").is_elsewhere());
        assert_eq!(of(&common.join("objects")), None);
    }

    #[test]
    fn submodules_and_repositories_beside_are_found() {
        let (_dir, common, _) = main_and_linked();
        let main = common.parent().expect("main");
        create_dir_all(main.join("sub")).expect("a directory");
        write(main.join("sub/.git"), "gitdir: ../.git/modules/sub\n").expect("a file");
        write(main.join(".gitmodules"), "[submodule \"s\"]\n\tpath = sub\n[submodule \"t\"]\n\tpath = ../linked\n")
            .expect("a file");
        let entries: Vec<PathBuf> = all(main, &[]).into_iter().map(|found| found.entry).collect();
        assert_eq!(entries, [common.clone(), main.join("sub/.git")]);
        std::fs::rename(&common, main.join("gd")).expect("renamed");
        write(&common, "gitdir: gd\n").expect("a file");
        assert_eq!(of(main).expect("a repository").common, Some(main.join("gd")));
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
        let found = of(main).expect("a repository");
        assert_eq!((&found.entry, &found.common), (&common, &Some(main.join("git"))));
        assert_eq!(all(main, &[]), all(main, &[Written { real: main.into(), dst: InnerPath::known("/p") }]));
    }
}
