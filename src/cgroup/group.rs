//! The sandbox's cgroup: made with its limits in it, read at the end, taken away with all that the program made in it.
//!
//! One invariant: a group is opened once, and everything goes through that descriptor; a limit that does not read back
//! as it was written is an error.

use super::files::{each_below, empty, populated, remove, text, value, write};
use super::usage::{Live, Usage};
use crate::error::{Error, Result};
use crate::host::cgroup::Direct;
use crate::host::files::c_path;
use crate::plan::limits::{ReadBack, Setting};
use crate::sys::event::poll;
use crate::sys::fs::{self, HERE, Kind, Open};
use crate::sys::{EAGAIN, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ERANGE, ETIMEDOUT, Errno, mount, process, sabotaged};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What statfs(2) calls a cgroup v2 file system (magic.h).
const CGROUP2: u64 = 0x6367_7270;
/// Milliseconds that the end of the last process is waited for: they have been killed, and only clear away.
const PATIENCE: u64 = 2_000;
/// The same for what a killed sbx left: its processes die by themselves, and somebody waits for the next command.
const LEFT_PATIENCE: u64 = 200;

/// A cgroup that holds one sandbox.
#[derive(Debug)]
pub struct Group {
    dir: OwnedFd,
    path: PathBuf,
    holder: Holder,
    cleared: bool,
}

/// Who takes the group away.
#[derive(Debug)]
enum Holder {
    /// sbx, who made it.
    Own(Made),
    /// systemd, at once when the last process is gone. What it had counted goes with it, but for what the group above
    /// counts too: that one, and the processes that memory limits had killed in it before.
    Systemd(OwnedFd, u64),
}

/// What sbx made, and what it did for that.
#[derive(Debug)]
struct Made {
    parent: OwnedFd,
    name: CString,
    /// Where sbx itself moved out of the way.
    leaf: Option<Leaf>,
}

/// A group for sbx alone: one that gives controllers to others may hold no process (cgroup-v2.rst, "No Internal
/// Process Constraint").
#[derive(Debug)]
struct Leaf {
    parent: OwnedFd,
    name: CString,
    /// What was switched on in the parent, and has to go before sbx can come back.
    switched_on: Vec<&'static str>,
}

/// The name of a sandbox's group.
pub fn name_of(sandbox: &str) -> String {
    format!("sbx-{sandbox}")
}

fn leaf_of(sandbox: &str) -> String {
    format!("sbx-{sandbox}.self")
}

impl Group {
    /// Makes the group of a sandbox, which has the controllers of these settings and no limits yet.
    ///
    /// # Errors
    /// `Unsupported` where the group cannot be made, `State` where one of this name is in use.
    pub fn make(at: &Direct, sandbox: &str, settings: &[Setting]) -> Result<Group> {
        let fail = |doing: &str, errno: Errno| refused(&at.at, doing, errno);
        let parent = fs::openat(HERE, &c_path(&at.at), Open::List).map_err(|errno| fail("opened", errno))?;
        let name = c_path(Path::new(&name_of(sandbox)));
        // Made first, so that its drop comes last: sbx can only come back when nothing else is left.
        let leaf = if at.own { Some(Leaf::enter(&at.at, sandbox)?) } else { None };
        let made = Made { parent, name, leaf };
        let dir = made.directory().map_err(|errno| match errno {
            EEXIST => in_use(sandbox),
            errno => fail("divided", errno),
        })?;
        let path = at.at.join(name_of(sandbox));
        let mut group = Group { dir, path, holder: Holder::Own(made), cleared: false };
        group.switch_on(settings).map_err(|errno| fail("divided", errno))?;
        Ok(group)
    }

    /// Has the group above give the controllers that it does not give yet: where it does, their files are here.
    fn switch_on(&mut self, settings: &[Setting]) -> crate::sys::Result<()> {
        let Holder::Own(made) = &mut self.holder else { return Ok(()) };
        let each = settings.chunk_by(|one, next| one.controller == next.controller).filter_map(|own| own.first());
        let lacks = |setting: &&Setting| fs::may_write(self.dir.as_fd(), &c_path(Path::new(&setting.file))).is_err();
        let lacking: Vec<&'static str> = each.filter(lacks).map(|setting| setting.controller).collect();
        let switched_on = if lacking.is_empty() { lacking } else { switch_on(made.parent.as_fd(), &lacking)? };
        if let Some(leaf) = &mut made.leaf {
            leaf.switched_on = switched_on;
        }
        Ok(())
    }

    /// Takes the group that systemd has made and put the process into.
    ///
    /// # Errors
    /// `Unsupported` where the group cannot be opened.
    pub fn scope(path: PathBuf) -> Result<Group> {
        let open = |path: &Path| fs::openat(HERE, &c_path(path), Open::List);
        let dir = open(&path).map_err(|errno| refused(&path, "opened", errno))?;
        let above = path.parent().unwrap_or(&path);
        let above = open(above).map_err(|errno| refused(above, "opened", errno))?;
        let before = kills(above.as_fd());
        Ok(Group { dir, path, holder: Holder::Systemd(above, before), cleared: false })
    }

    /// Sets limits, those too for which systemd knows no property, and reads everything back.
    ///
    /// # Errors
    /// `Spec` for a value that the kernel refuses, `Unsupported` where a controller is lacking.
    pub fn limit(&self, settings: &[Setting]) -> Result<()> {
        settings.iter().try_for_each(|setting| self.set(setting))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For clone3(2), or to attach a process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Lets nothing in it run, or lets it run again, and waits until that is so.
    ///
    /// # Errors
    /// Of the file; `ETIMEDOUT` where a process does not stop within a second (it waits in the kernel).
    pub fn freeze(&self, frozen: bool) -> crate::sys::Result<()> {
        let (word, line) = if frozen { ("1", "frozen 1") } else { ("0", "frozen 0") };
        write(self.fd(), c"cgroup.freeze", word)?;
        for _ in 0..1000 {
            if text(self.fd(), "cgroup.events")?.lines().any(|read| read == line) {
                return Ok(());
            }
            let _ = poll(&mut [], Some(1));
        }
        Err(ETIMEDOUT)
    }

    /// What all of it has used, and what limits did, as far as it stands in these files; `None` where systemd was
    /// faster.
    pub fn usage(&self, wanted: impl Fn(&str) -> bool) -> Option<Usage> {
        let usage = Usage::read(|file| if wanted(file) { text(self.fd(), file).ok() } else { None });
        (!self.is_scope() || text(self.fd(), "cgroup.events").is_ok()).then_some(usage)
    }

    /// What its own memory limit does, to be waited for (memory.events.local, Linux 5.2).
    pub fn memory_events(&self) -> Option<OwnedFd> {
        let events = fs::openat(self.fd(), c"memory.events.local", Open::Read).ok()?;
        Usage::says_oom(events.as_fd());
        Some(events)
    }

    /// Whether systemd takes it away.
    pub fn is_scope(&self) -> bool {
        matches!(self.holder, Holder::Systemd(..))
    }

    /// Whether a memory limit has killed in the group above since this one was made: what is known of a scope that is
    /// gone. The kernel counts a kill in all groups above (cgroup-v2.rst, memory.events).
    pub fn killed_above(&self) -> bool {
        match &self.holder {
            Holder::Own(_) => false,
            Holder::Systemd(above, before) => kills(above.as_fd()) > *before,
        }
    }

    fn set(&self, setting: &Setting) -> Result<()> {
        if sabotaged(c"cgroup-limits") || setting.file == "memory.oom.group" && sabotaged(c"oom-group") {
            return Ok(());
        }
        let name = c_path(Path::new(&setting.file));
        let file = match fs::openat(self.fd(), &name, Open::ReadWrite) {
            Ok(file) => file,
            Err(ENOENT) if setting.optional => return Ok(()),
            Err(errno) => return Err(unset(setting, errno)),
        };
        let read = || value(file.as_fd()).map_err(|errno| unset(setting, errno));
        // What systemd has set already is only read.
        if !self.is_scope() || !setting.holds(&read()?) {
            match fs::write_all(file.as_fd(), setting.value.as_bytes()) {
                Ok(()) => {}
                Err(EINVAL | ERANGE) if setting.reads == ReadBack::Cpus => {
                    let all = text(self.fd(), "cpuset.cpus.effective").unwrap_or_default();
                    return Err(foreign(setting, all.trim()));
                }
                Err(errno) => return Err(unset(setting, errno)),
            }
            let read = read()?;
            if !setting.holds(&read) {
                let why = format!("{} reads {} after {} was written", setting.file, read.trim(), setting.value);
                return Err(Error::spec(&format!("--{}", setting.option), &setting.asked, why));
            }
        }
        if setting.reads == ReadBack::Cpus {
            let given = text(self.fd(), "cpuset.cpus.effective").map_err(|errno| unset(setting, errno))?;
            if given.trim() != setting.value {
                return Err(foreign(setting, given.trim()));
            }
        }
        Ok(())
    }
}

/// What the group of this directory uses now; `None` where there is none.
pub fn live(group: &Path) -> Option<Live> {
    let dir = fs::openat(HERE, &c_path(group), Open::List).ok()?;
    let live = Live::read(|file| text(dir.as_fd(), file).ok());
    text(dir.as_fd(), "cgroup.events").ok().map(|_there| live)
}

impl Group {
    /// Ends what is in it and takes it away; whether nothing is left. A scope is systemd's, and goes with its last
    /// process.
    pub fn clear(&mut self) -> bool {
        let gone = match &self.holder {
            Holder::Own(_) if sabotaged(c"cgroup-removal") => true,
            // As nearly always, for the program's end was waited for.
            Holder::Own(made) if fs::unlinkat(made.parent.as_fd(), &made.name, Kind::Directory).is_ok() => true,
            Holder::Own(made) => {
                self.kill();
                empty(self.fd(), PATIENCE);
                remove(made.parent.as_fd(), &made.name).is_ok()
            }
            Holder::Systemd(..) => {
                self.kill();
                false
            }
        };
        self.cleared = true;
        gone && matches!(&self.holder, Holder::Own(Made { leaf: None, .. }))
    }

    fn kill(&self) {
        if populated(self.fd()) {
            let _ = write(self.fd(), c"cgroup.kill", "1");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.cleared {
            self.clear();
        }
    }
}

impl Made {
    /// The new directory. One that a dead sandbox left is taken away first.
    fn directory(&self) -> crate::sys::Result<OwnedFd> {
        let parent = self.parent.as_fd();
        match fs::mkdirat(parent, &self.name, 0o755) {
            Err(EEXIST) => {
                let left = fs::open_beneath(parent, &self.name, Open::List)?;
                if !empty(left.as_fd(), LEFT_PATIENCE) {
                    return Err(EEXIST);
                }
                remove(parent, &self.name)?;
                fs::mkdirat(parent, &self.name, 0o755)?;
            }
            other => other?,
        }
        fs::open_beneath(parent, &self.name, Open::List)
    }
}

impl Leaf {
    fn enter(at: &Path, sandbox: &str) -> Result<Leaf> {
        let name = c_path(Path::new(&leaf_of(sandbox)));
        let enter = || {
            let parent = fs::openat(HERE, &c_path(at), Open::Directory)?;
            match fs::mkdirat(parent.as_fd(), &name, 0o755) {
                Ok(()) | Err(EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            move_here(fs::open_beneath(parent.as_fd(), &name, Open::Directory)?.as_fd())?;
            Ok(parent)
        };
        let parent = enter().map_err(|errno| refused(at, "divided", errno))?;
        Ok(Leaf { parent, name, switched_on: Vec::new() })
    }
}

impl Drop for Leaf {
    /// Back to where sbx was.
    fn drop(&mut self) {
        if sabotaged(c"cgroup-leaf") {
            return;
        }
        let parent = self.parent.as_fd();
        let off: Vec<String> = self.switched_on.iter().map(|controller| format!("-{controller}")).collect();
        let _ = write(parent, c"cgroup.subtree_control", &off.join(" "));
        let _ = move_here(parent);
        let _ = fs::unlinkat(parent, &self.name, Kind::Directory);
    }
}

/// Clears the group that a killed sbx left, where its processes have ended. The path is a record's, so it is believed
/// only where it is a cgroup of this sandbox's name.
///
/// # Errors
/// `EBUSY` while processes live in it.
pub fn remove_left(path: &Path, sandbox: &str) -> crate::sys::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    if name.to_str() != Some(&name_of(sandbox)) {
        return Ok(());
    }
    let gone = |errno| if errno == ENOENT { Ok(()) } else { Err(errno) };
    let parent = match fs::openat(HERE, &c_path(parent), Open::List) {
        Ok(parent) => parent,
        Err(errno) => return gone(errno),
    };
    if mount::fstatfs(parent.as_fd())?.kind != CGROUP2 {
        return Ok(());
    }
    let name = c_path(Path::new(name));
    match fs::open_beneath(parent.as_fd(), &name, Open::List) {
        Ok(dir) if !empty(dir.as_fd(), LEFT_PATIENCE) => return Err(EBUSY),
        Ok(_) => remove(parent.as_fd(), &name)?,
        Err(errno) => gone(errno)?,
    }
    let leaf = c_path(Path::new(&leaf_of(sandbox)));
    if fs::unlinkat(parent.as_fd(), &leaf, Kind::Directory).is_ok() {
        reopen(parent.as_fd());
    }
    Ok(())
}

/// Lets processes into a group again that sbx had to itself, so that it was sbx that switched its controllers on.
fn reopen(dir: BorrowedFd<'_>) {
    let mut below = false;
    each_below(dir, |_, _| below = true);
    if !below && let Ok(on) = text(dir, "cgroup.subtree_control") {
        let off: Vec<String> = on.split_whitespace().map(|controller| format!("-{controller}")).collect();
        let _ = write(dir, c"cgroup.subtree_control", &off.join(" "));
    }
}

fn in_use(sandbox: &str) -> Error {
    Error::State {
        on: name_of(sandbox),
        why: "a cgroup of this name is in use".into(),
        hint: Some("another --name".into()),
    }
}

/// Why a group could not be made, for a person.
fn refused(at: &Path, doing: &str, errno: Errno) -> Error {
    let (why, hint) = match errno {
        EBUSY => ("processes stand in it".to_owned(), "start sbx from a group below it, or --limits watch"),
        EAGAIN => {
            ("its cgroup.max.descendants or cgroup.max.depth is reached".to_owned(), "raise it, or --limits watch")
        }
        errno => (errno.to_string(), "sbx check tells what is in the way; --limits watch does without"),
    };
    let why = format!("{} cannot be {doing}: {why}", at.display());
    Error::Unsupported { feature: "a cgroup of its own".into(), why, hint: Some(hint.into()) }
}

/// Processors that there are not, or that are not given to this group.
fn foreign(setting: &Setting, given: &str) -> Error {
    let why = format!("not all of them can be had here: {given}");
    Error::spec("--cpuset", &setting.asked, why).or_try(format!("processors among {given}"))
}

/// Why a limit could not be set.
fn unset(setting: &Setting, errno: Errno) -> Error {
    let option = format!("--{}", setting.option);
    match errno {
        ENOENT => {
            let why = format!("the cgroup has no {}: the controller {} lacks it", setting.file, setting.controller);
            let hint = format!("leave out {option}, or --best-effort");
            Error::Unsupported { feature: option, why, hint: Some(hint) }
        }
        EINVAL | ERANGE | ENODEV => {
            let why = format!("the kernel refuses {} in {}: {errno}", setting.value, setting.file);
            Error::spec(&option, &setting.asked, why)
        }
        errno => {
            let why = format!("{}: {errno}", setting.file);
            let hint = Some("sbx check tells which limits can be had".into());
            Error::Unsupported { feature: option, why, hint }
        }
    }
}

/// Processes that memory limits have killed in a group and below it.
fn kills(dir: BorrowedFd<'_>) -> u64 {
    Usage::read(|file| if file == "memory.events" { text(dir, file).ok() } else { None }).memory_kills
}

fn move_here(dir: BorrowedFd<'_>) -> crate::sys::Result<()> {
    write(dir, c"cgroup.procs", &process::getpid().to_string())
}

/// Lets the groups below have the controllers; returns those that they had not. They stay: others may use them by
/// then, and without a limit they limit nothing.
fn switch_on(dir: BorrowedFd<'_>, controllers: &[&'static str]) -> crate::sys::Result<Vec<&'static str>> {
    let had = text(dir, "cgroup.subtree_control")?;
    let lacks = |name: &&&'static str| !had.split_whitespace().any(|word| word == **name);
    let missing: Vec<&'static str> = controllers.iter().filter(lacks).copied().collect();
    if !missing.is_empty() {
        let on: Vec<String> = missing.iter().map(|controller| format!("+{controller}")).collect();
        write(dir, c"cgroup.subtree_control", &on.join(" "))?;
    }
    Ok(missing)
}
