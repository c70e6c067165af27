//! A transient scope of the user's systemd for a process that is there already, with limits as its properties.
//!
//! The scope is systemd's: it makes the group, delegates it, and takes it away with the last process, so that nothing
//! is left however sbx ends. A scope that is in use is never touched.

use super::bus::{Bus, Refusal, refused};
use super::wire::{Body, Kind, Message, Parsed, path_of_unit};
use crate::error::{Error, Result, visible};
use crate::host::files::c_path;
use crate::host::manager::Door;
use crate::plan::limits::{Property, Value};
use crate::sys::event::{SIGKILL, monotonic_ms, poll};
use crate::sys::fs::write_file;
use crate::sys::sabotaged;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// How long systemd may take for a scope; it needs milliseconds.
const LIMIT_MS: u64 = 10_000;
/// How long what a killed sbx left may take to end: its processes die by themselves, and systemd has to hear of it.
const PATIENCE_MS: u64 = 500;
const PAUSE_MS: u64 = 10;
const LONGEST_DESCRIPTION: usize = 200;

const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// A scope to be made.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    /// The unit's name: `sbx-NAME.scope`.
    pub name: &'a str,
    /// What `systemctl status` shows of it.
    pub description: String,
    /// The slice it is put into; systemd's choice where there is none.
    pub slice: Option<&'a str>,
    /// The process that is moved into it.
    pub pid: i32,
    /// What is delegated, and the limits.
    pub properties: &'a [Property],
}

/// A connection that hears what becomes of a scope, before there is one.
#[derive(Debug)]
pub struct Ready<'a> {
    bus: Bus<'a>,
    beside: Option<Door>,
}

/// A scope that was asked for.
#[derive(Debug)]
pub struct Starting<'a> {
    bus: Bus<'a>,
    unit: String,
    request: Body,
    asked: u32,
    /// Where to ask when the manager is not at this door.
    beside: Option<Door>,
}

/// What became of a job of systemd's.
enum Job {
    Done,
    Ended(String),
    Refused(Refusal),
}

/// Makes the scope and waits until the process is in it.
///
/// # Errors
/// As [`connect`], [`Ready::begin`] and [`Starting::finish`].
pub fn start(door: &Door, scope: &Scope<'_>, interrupt: Option<BorrowedFd<'_>>) -> Result<()> {
    connect(door, scope.name)?.begin(scope)?.finish(interrupt)
}

/// Connects and does not wait: letting a client in takes the bus as long as sbx needs until it has a process to show.
///
/// # Errors
/// `Unsupported` where nobody trusted listens.
pub fn connect<'a>(door: &Door, unit: &str) -> Result<Ready<'a>> {
    let mut bus = Bus::open(door, LIMIT_MS)?;
    bus.listen(&format!(
        "type='signal',sender='org.freedesktop.systemd1',interface='{MANAGER}',member='JobRemoved',arg2='{unit}'"
    ));
    bus.send()?;
    Ok(Ready { bus, beside: door.beside() })
}

impl<'a> Ready<'a> {
    /// Asks for the scope and does not wait: the answer takes systemd longer than the child needs for its namespaces.
    ///
    /// # Errors
    /// `Unsupported` where the connection is lost.
    pub fn begin(mut self, scope: &Scope<'_>) -> Result<Starting<'a>> {
        self.bus.renew(LIMIT_MS);
        let (unit, request) = (scope.name.into(), request(scope));
        let mut starting = Starting { bus: self.bus, unit, request, asked: 0, beside: self.beside };
        starting.ask();
        starting.bus.send()?;
        Ok(starting)
    }
}

/// Has the kernel get ready to move a process from group to group. The first move for some time waits for a grace
/// period of RCU, some 15 ms, and those that follow within it do not (`cgroup_threadgroup_rwsem`, percpu-rwsem.h): so it
/// is waited for while systemd reads the request. Nothing is moved: there is no process of this number (PID_MAX_LIMIT,
/// threads.h). Where it cannot be done, systemd waits by itself.
pub fn expect_move(manager: &Path) {
    const NOBODY: &[u8] = b"2147483647";
    let _nobody_is_moved = write_file(&c_path(&manager.join("cgroup.procs")), NOBODY);
}

impl<'a> Starting<'a> {
    fn ask(&mut self) {
        self.asked = self.bus.call(PATH, MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", &self.request);
    }

    /// Waits until the process is in the scope. One of the same name that a dead run left is cleared first.
    ///
    /// # Errors
    /// `State` where the name is in use; `Unsupported` where systemd refuses, or answers not at all or not in time;
    /// `Interrupted` by a signal that `interrupt`, a descriptor of signalfd(2), holds.
    pub fn finish(mut self, interrupt: Option<BorrowedFd<'a>>) -> Result<()> {
        let mut patience = None;
        loop {
            self.bus.interrupted_by(interrupt);
            match self.job(self.asked)? {
                Job::Done => return Ok(()),
                Job::Ended(how) => return Err(self.ended(&how)),
                Job::Refused(refusal) if refusal.name == UNIT_EXISTS => {}
                Job::Refused(refusal) => match self.beside.take() {
                    Some(door) if refusal.no_manager() => {
                        self.bus = Bus::open(&door, LIMIT_MS)?;
                        self.ask();
                        continue;
                    }
                    _ => return Err(refused("your systemd", &refusal)),
                },
            }
            let cleared = self.clear()?;
            let until = *patience.get_or_insert(monotonic_ms() + PATIENCE_MS);
            if monotonic_ms() >= until {
                return Err(self.in_use());
            }
            if !cleared {
                let _ = poll(&mut [], Some(PAUSE_MS));
            }
            self.ask();
        }
    }

    /// Waits for the answer to a call that starts a job, and for the job's end.
    fn job(&mut self, serial: u32) -> Result<Job> {
        // Each sender's messages keep their order, so the answer with the job's name comes before its end.
        let job = match self.bus.answer(serial)? {
            Ok(message) => message.body().text().map_err(|why| self.bus.garbled(why))?.to_owned(),
            Err(refusal) => return Ok(Job::Refused(refusal)),
        };
        loop {
            let message = self.bus.message()?;
            if message.kind == Kind::Signal && message.interface == MANAGER && message.member == "JobRemoved" {
                let (of, result) = removed(&message).map_err(|why| self.bus.garbled(why))?;
                match (of == job, result) {
                    (false, _) => {}
                    (true, "done") => return Ok(Job::Done),
                    (true, how) => return Ok(Job::Ended(how.into())),
                }
            }
        }
    }

    /// Clears a scope of our name that nobody lives in. False where somebody does, or where it is about to change.
    fn clear(&mut self) -> Result<bool> {
        let mut property = Body::default();
        property.text(UNIT).text("ActiveState");
        let mut unit = Body::default();
        unit.text(&self.unit);
        let state = self.bus.call(&path_of_unit(&self.unit), PROPERTIES, "Get", "ss", &property);
        let processes = self.bus.call(PATH, MANAGER, "GetUnitProcesses", "s", &unit);
        let Ok(state) = self.bus.answer(state)? else { return Ok(true) };
        let state = variant_text(&state).map_err(|why| self.bus.garbled(why))?.to_owned();
        let empty = match self.bus.answer(processes)? {
            Ok(message) => message.body().u32().map_err(|why| self.bus.garbled(why))? == 0,
            Err(_gone) => true,
        };
        match state.as_str() {
            "inactive" | "failed" => {
                let reset = self.bus.call(PATH, MANAGER, "ResetFailedUnit", "s", &unit);
                // It may be gone by itself, which is as good.
                self.bus.answer(reset).map(|_| true)
            }
            "active" if empty => {
                unit.text("replace");
                let stop = self.bus.call(PATH, MANAGER, "StopUnit", "ss", &unit);
                self.job(stop).map(|_| true)
            }
            _ => Ok(false),
        }
    }

    fn in_use(&self) -> Error {
        Error::State {
            on: self.unit.clone(),
            why: "your systemd has a scope of this name, with processes in it".into(),
            hint: Some(format!("another --name; `systemctl --user status {}` shows them", self.unit)),
        }
    }

    fn ended(&self, how: &str) -> Error {
        let words = format!("the start of {} ended as \"{how}\"; `journalctl --user -u {0}` tells why", self.unit);
        refused("your systemd", &Refusal { name: "job".into(), words })
    }
}

/// Ends a scope that a killed sbx left, and what lives in it. One that is not there is as good.
///
/// # Errors
/// `Unsupported` where nobody trusted listens or answers, or where systemd refuses.
pub fn stop(door: &Door, unit: &str) -> Result<()> {
    let mut bus = Bus::open(door, LIMIT_MS)?;
    let (mut kill, mut stop) = (Body::default(), Body::default());
    kill.text(unit).text("all").i32(SIGKILL);
    stop.text(unit).text("replace");
    // By itself, stopping would be a SIGTERM and a wait of 90 s.
    bus.call(PATH, MANAGER, "KillUnit", "ssi", &kill);
    let stopped = bus.call(PATH, MANAGER, "StopUnit", "ss", &stop);
    let answer = bus.answer(stopped)?;
    drop(bus);
    match (answer, door.beside()) {
        (Err(refusal), Some(beside)) if refusal.no_manager() => self::stop(&beside, unit),
        (Err(refusal), _) if refusal.name != NO_SUCH_UNIT => Err(refused("your systemd", &refusal)),
        _ => Ok(()),
    }
}

/// Puts one more process into a scope that is there, or into a group below it.
///
/// # Errors
/// `Unsupported` where nobody trusted listens or answers, or where systemd refuses.
pub fn attach(door: &Door, unit: &str, below: &Path, pid: i32) -> Result<()> {
    let mut bus = Bus::open(door, LIMIT_MS)?;
    let mut body = Body::default();
    let below = if below.as_os_str().is_empty() { String::new() } else { format!("/{}", below.display()) };
    body.text(unit).text(&below).array(4, |pids| {
        pids.u32(pid as u32);
    });
    let asked = bus.call(PATH, MANAGER, "AttachProcessesToUnit", "ssau", &body);
    bus.answer(asked)?.map(drop).map_err(|refusal| refused("your systemd", &refusal))
}

/// Clears a scope that a killed sbx left empty. False where somebody lives in it.
///
/// # Errors
/// `Unsupported` where nobody trusted listens or answers.
pub fn clear(door: &Door, unit: &str) -> Result<bool> {
    let bus = Bus::open(door, LIMIT_MS)?;
    Starting { bus, unit: unit.into(), request: Body::default(), asked: 0, beside: None }.clear()
}

/// The arguments of StartTransientUnit.
fn request(scope: &Scope<'_>) -> Body {
    let mut body = Body::default();
    body.text(scope.name).text("fail").array(8, |list| {
        let described: String = visible(&scope.description).chars().take(LONGEST_DESCRIPTION).collect();
        property(list, "Description", &Value::Text(described));
        scope.slice.iter().for_each(|slice| property(list, "Slice", &Value::Text((*slice).into())));
        // Without it a scope whose processes died badly would keep its name.
        property(list, "CollectMode", &Value::Text("inactive-or-failed".into()));
        let kept = |of: &&Property| of.name.starts_with("Delegate") || !sabotaged(c"cgroup-limits");
        scope.properties.iter().filter(kept).for_each(|of| property(list, of.name, &of.value));
        list.entry().text("PIDs").signature("au").array(4, |pids| {
            pids.u32(scope.pid as u32);
        });
    });
    body.array(8, |_no_other_units| {});
    body
}

fn property(list: &mut Body, name: &str, value: &Value) {
    list.entry().text(name);
    match value {
        Value::Bool(yes) => list.signature("b").bool(*yes),
        Value::Number(number) => list.signature("t").u64(*number),
        Value::Text(text) => list.signature("s").text(text),
        Value::Names(names) => list.signature("as").array(4, |list| {
            for name in names {
                list.text(name);
            }
        }),
        Value::Bytes(bytes) => list.signature("ay").array(1, |list| {
            for byte in bytes {
                list.byte(*byte);
            }
        }),
        Value::Paths(paths) => list.signature("a(st)").array(8, |list| {
            for (path, number) in paths {
                list.entry().text(path).u64(*number);
            }
        }),
    };
}

/// The job and the result of a JobRemoved: `uoss`.
fn removed(message: &Message) -> Parsed<(&str, &str)> {
    let mut body = message.body();
    body.u32()?;
    let job = body.text()?;
    body.text()?;
    Ok((job, body.text()?))
}

fn variant_text(message: &Message) -> Parsed<&str> {
    let mut body = message.body();
    body.signature()?;
    body.text()
}
