//! A user's systemd as it answers in these tests: a script on a socket of ours. The real one is asked in `tests/scope.rs`.

use super::bus::Bus;
use super::scope::{Scope, Starting, connect, start, stop};
use super::wire::{Body, Kind, Message, length};
use crate::error::{Error, Result};
use crate::host::manager::Door;
use crate::plan::limits::{Property, Value};
use crate::sys::event::monotonic_ms;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

const UNIT: &str = "sbx-t.scope";
const WELCOME: &[u8] = b"DATA\r\nOK 1234deadbeef\r\n";

fn scope(properties: &[Property]) -> Scope<'_> {
    let description = "a\ntest".into();
    Scope { name: UNIT, description, slice: Some("x.slice"), pid: 42, properties }
}

fn begin<'a>(door: &Door, scope: &Scope<'_>) -> Result<Starting<'a>> {
    connect(door, scope.name)?.begin(scope)
}

/// Runs `ask` against a listener that serves one connection.
fn served<T>(bus: bool, serve: impl FnOnce(UnixStream) + Send + 'static, ask: impl FnOnce(&Door) -> T) -> T {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).expect("bound");
    let server = thread::spawn(move || serve(listener.accept().expect("a connection").0));
    let answer = ask(&if bus { Door::Bus(path) } else { Door::Private(path) });
    server.join().expect("the server");
    answer
}

/// One connection as the server sees it.
struct Served {
    socket: UnixStream,
    unread: Vec<u8>,
}

impl Served {
    /// Lets the client in.
    fn new(mut socket: UnixStream) -> Served {
        let mut opening = [0; 29];
        socket.read_exact(&mut opening).expect("an opening");
        assert_eq!(&opening, b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n");
        // A signal may have taken the client away.
        let _ = socket.write_all(WELCOME);
        Served { socket, unread: Vec::new() }
    }

    fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(length) = length(&self.unread).expect("a call").filter(|length| *length <= self.unread.len()) {
                let message = Message::parse(&self.unread).expect("a call");
                self.unread.drain(..length);
                return Some(message);
            }
            let mut chunk = [0; 999];
            match self.socket.read(&mut chunk) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.unread.extend(&chunk[..count]),
            }
        }
    }

    fn tell(&mut self, bytes: &[u8]) {
        // The client may be gone.
        let _ = self.socket.write_all(bytes);
    }

    /// Answers calls by name until the client goes, and returns what was called.
    fn answers(&mut self, mut answer: impl FnMut(&str, u32) -> Vec<u8>) -> Vec<String> {
        let mut called = Vec::new();
        for serial in 1.. {
            let Some(message) = self.next() else { break };
            assert_eq!(message.kind, Kind::Call);
            let bytes = answer(&message.member, serial);
            called.push(message.member);
            self.tell(&bytes);
        }
        called
    }
}

/// A message of the server's: kind, the call that it answers, its error's or its signal's name, and its body.
fn message(kind: u8, reply_to: u32, name: &str, signature: &str, fill: impl FnOnce(&mut Body)) -> Vec<u8> {
    let mut body = Body::default();
    fill(&mut body);
    let mut out = Body::default();
    out.byte(b'l').byte(kind).byte(1).byte(1).u32(body.bytes().len() as u32).u32(9);
    out.array(8, |fields| {
        match kind {
            3 => fields.entry().byte(4).signature("s").text(name),
            4 => fields.entry().byte(2).signature("s").text("org.freedesktop.systemd1.Manager"),
            _ => fields,
        };
        if kind == 4 {
            fields.entry().byte(3).signature("s").text(name);
        } else {
            fields.entry().byte(5).signature("u").u32(reply_to);
        }
        fields.entry().byte(8).signature("g").signature(signature);
    });
    out.entry();
    [out.bytes(), body.bytes()].concat()
}

fn returned(serial: u32, signature: &str, fill: impl FnOnce(&mut Body)) -> Vec<u8> {
    message(2, serial, "", signature, fill)
}

fn error(serial: u32, name: &str, words: &str) -> Vec<u8> {
    message(3, serial, name, "s", |body| {
        body.text(words);
    })
}

fn job_removed(job: &str, result: &str) -> Vec<u8> {
    message(4, 0, "JobRemoved", "uoss", |body| {
        body.u32(1).text(job).text(UNIT).text(result);
    })
}

/// A job that is over as soon as it is asked for, and another that is not ours.
fn job(serial: u32, result: &str) -> Vec<u8> {
    let named = returned(serial, "o", |body| {
        body.text("/job/7");
    });
    [named, job_removed("/job/6", "failed"), job_removed("/job/7", result)].concat()
}

fn state(serial: u32, state: &str) -> Vec<u8> {
    returned(serial, "v", |body| {
        body.signature("s").text(state);
    })
}

/// The array of GetUnitProcesses, of so many bytes.
fn processes(serial: u32, size: u32) -> Vec<u8> {
    returned(serial, "a(sus)", |body| {
        body.u32(size);
    })
}

fn exists(serial: u32) -> Vec<u8> {
    error(serial, "org.freedesktop.systemd1.UnitExists", "Unit sbx-t.scope was already loaded.")
}

fn why(result: Result<()>) -> String {
    let error = result.expect_err("a refusal");
    assert!(error.hint().is_some(), "{error:?}");
    error.to_string()
}

// --- The way it should be ---

#[test]
fn over_the_bus_it_greets_and_listens_first() {
    let serve = |socket| {
        let called = Served::new(socket).answers(|method, serial| match method {
            "StartTransientUnit" => job(serial, "done"),
            _ => returned(serial, "", |_| {}),
        });
        assert_eq!(called, ["Hello", "AddMatch", "StartTransientUnit"]);
    };
    assert_eq!(served(true, serve, |door| start(door, &scope(&[]), None)), Ok(()));
}

#[test]
fn no_answer_is_waited_for() {
    let serve = |mut socket: UnixStream| {
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).expect("read");
        let holds = |text: &[u8]| bytes.windows(text.len()).any(|part| part == text);
        assert!(holds(b"BEGIN") && holds(b"Hello") && holds(b"AddMatch") && holds(b"StartTransientUnit"));
    };
    served(true, serve, |door| drop(begin(door, &scope(&[])).expect("begun")));
}

#[test]
fn the_managers_own_socket_is_asked_at_once() {
    let serve = |socket| {
        let called = Served::new(socket).answers(|_, serial| job(serial, "done"));
        assert_eq!(called, ["StartTransientUnit"]);
    };
    assert_eq!(served(false, serve, |door| start(door, &scope(&[]), None)), Ok(()));
}

#[test]
fn the_request_says_what_was_asked_for() {
    let limits = [
        Property { name: "MemoryMax", value: Value::Number(1 << 30) },
        Property { name: "DelegateControllers", value: Value::Names(vec!["memory", "pids"]) },
        Property { name: "AllowedCPUs", value: Value::Bytes(vec![5]) },
        Property { name: "IOReadBandwidthMax", value: Value::Paths(vec![("/dev/vda".into(), 9)]) },
    ];
    let serve = |socket| {
        let mut served = Served::new(socket);
        let call = served.next().expect("a call");
        assert_eq!(call.signature, "ssa(sv)a(sa(sv))");
        let mut body = call.body();
        assert_eq!((body.text(), body.text()), (Ok(UNIT), Ok("fail")));
        served.tell(&job(1, "done"));
        let bytes = body.rest();
        let holds = |name: &str| bytes.windows(name.len()).any(|part| part == name.as_bytes());
        ["a\\ntest", "x.slice", "DelegateControllers", "inactive-or-failed", "AllowedCPUs", "a(st)", "PIDs"]
            .iter()
            .for_each(|name| assert!(holds(name), "{name}"));
        // Only what was asked for: the table of limits has what switches the counting on.
        assert!(!holds("Accounting"));
        served.next();
    };
    assert_eq!(served(false, serve, |door| start(door, &scope(&limits), None)), Ok(()));
}

#[test]
fn a_manager_that_is_not_on_the_bus_is_asked_beside_it() {
    const NOBODY: &str = "org.freedesktop.DBus.Error.NameHasNoOwner";
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("systemd")).expect("a directory");
    let bus = UnixListener::bind(dir.path().join("bus")).expect("bound");
    let private = UnixListener::bind(dir.path().join("systemd/private")).expect("bound");
    let server = thread::spawn(move || {
        let accepted = |listener: &UnixListener| Served::new(listener.accept().expect("a connection").0);
        for wanted in ["StartTransientUnit", "StopUnit"] {
            let called = accepted(&bus).answers(|method, serial| match method {
                "Hello" | "AddMatch" => returned(serial, "", |_| {}),
                _ => error(serial, NOBODY, ""),
            });
            assert!(called.iter().any(|method| method == wanted), "{called:?}");
            assert!(accepted(&private).answers(|_, serial| job(serial, "done")).iter().any(|method| method == wanted));
        }
    });
    let door = Door::Bus(dir.path().join("bus"));
    assert_eq!(start(&door, &scope(&[]), None), Ok(()));
    assert_eq!(stop(&door, UNIT), Ok(()));
    server.join().expect("the server");
}

// --- A name that is still there ---

/// A manager that has the unit until it is cleared by the method of this name.
fn clears_by(method: &'static str, active: &'static str, size: u32) -> (Result<()>, Vec<String>) {
    let (tell, told) = std::sync::mpsc::channel();
    let serve = move |socket| {
        let mut there = true;
        let called = Served::new(socket).answers(|called, serial| match called {
            "StartTransientUnit" if there => exists(serial),
            "StartTransientUnit" => job(serial, "done"),
            "Get" => state(serial, active),
            "GetUnitProcesses" => processes(serial, size),
            "StopUnit" => {
                there = method != "StopUnit";
                job(serial, "done")
            }
            _ => {
                there = there && called != method;
                returned(serial, "", |_| {})
            }
        });
        tell.send(called).expect("told");
    };
    let result = served(true, serve, |door| start(door, &scope(&[]), None));
    (result, told.recv().expect("what was called"))
}

#[test]
fn what_a_dead_run_left_is_cleared() {
    for active in ["failed", "inactive"] {
        let (result, called) = clears_by("ResetFailedUnit", active, 0);
        assert_eq!(result, Ok(()));
        assert_eq!(called[3..], ["Get", "GetUnitProcesses", "ResetFailedUnit", "StartTransientUnit"]);
    }
    let (result, called) = clears_by("StopUnit", "active", 0);
    assert_eq!(result, Ok(()));
    assert_eq!(called[3..], ["Get", "GetUnitProcesses", "StopUnit", "StartTransientUnit"]);
}

#[test]
fn what_lives_is_not_touched() {
    for (active, size) in [("active", 40), ("deactivating", 40)] {
        let (result, called) = clears_by("", active, size);
        let error = result.expect_err("a refusal");
        assert!(matches!(&error, Error::State { on, .. } if on == UNIT), "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.starts_with("another --name")), "{error:?}");
        assert!(!called.iter().any(|method| ["StopUnit", "ResetFailedUnit", "KillUnit"].contains(&method.as_str())));
    }
}

#[test]
fn what_cannot_be_cleared_ends_too() {
    let (result, _) = clears_by("", "failed", 0);
    assert!(matches!(result, Err(Error::State { .. })), "{result:?}");
}

#[test]
fn stopping_what_is_gone_is_as_good() {
    let stopped = |name: &'static str| {
        let serve = move |socket| {
            let called = Served::new(socket).answers(|_, serial| error(serial, name, "no"));
            assert_eq!(called, ["KillUnit", "StopUnit"]);
        };
        served(false, serve, |door| stop(door, UNIT))
    };
    assert_eq!(stopped("org.freedesktop.systemd1.NoSuchUnit"), Ok(()));
    assert!(why(stopped("org.freedesktop.DBus.Error.AccessDenied")).contains("AccessDenied"));
}

// --- Refusals ---

#[test]
fn a_refusal_carries_its_words() {
    let words = |socket| {
        Served::new(socket).answers(|_, serial| error(serial, "a.b.C", "no\u{1b}[31m"));
    };
    let text = why(served(false, words, |door| start(door, &scope(&[]), None)));
    assert!(text.ends_with("your systemd refuses it: no\\u{1b}[31m (a.b.C)"), "{text}");
    let greeting = |socket| {
        Served::new(socket).answers(|_, serial| error(serial, "a.b.LimitsExceeded", &"x".repeat(9999)));
    };
    let text = why(served(true, greeting, |door| start(door, &scope(&[]), None)));
    assert!(text.contains("the bus refuses it: xxx") && text.len() < 500, "{text}");
    let failed = |socket| {
        Served::new(socket).answers(|_, serial| job(serial, "failed"));
    };
    assert!(why(served(false, failed, |door| start(door, &scope(&[]), None))).contains("ended as \"failed\""));
}

#[test]
fn nobody_and_strangers_are_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let door = Door::Bus(dir.path().join("s"));
    assert!(why(start(&door, &scope(&[]), None)).contains("no such file"));
    drop(UnixListener::bind(door.path()).expect("bound"));
    assert!(why(stop(&door, UNIT)).contains("connection refused"));
    assert!(why(start(&Door::Bus(PathBuf::from("/x".repeat(99))), &scope(&[]), None)).contains("too long"));
}

/// What `start` says of a server that sends this and closes.
fn said(bytes: Vec<u8>) -> String {
    let serve = move |mut socket: UnixStream| {
        let mut opening = [0; 4096];
        let _ = socket.read(&mut opening);
        let _ = socket.write_all(&bytes);
    };
    why(served(true, serve, |door| start(door, &scope(&[]), None)))
}

#[test]
fn whatever_the_other_end_does_is_an_error() {
    assert!(said(Vec::new()).contains("closed the connection"));
    assert!(said(b"REJECTED EXTERNAL\r\n".to_vec()).contains("does not let you in"));
    assert!(said(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).contains("does not speak D-Bus"));
    assert!(said(vec![b'x'; 5000]).contains("does not speak D-Bus"));
    let after = |bytes: &[u8]| said([WELCOME, bytes].concat());
    assert!(after(b"").contains("closed the connection"));
    assert!(after(b"l\x02\x00\x01\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00").contains("too long"));
    assert!(after(b"l\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\x7f").contains("too long"));
    assert!(after(&[0; 64]).contains("byte order"));
    assert!(after(&returned(3, "", |_| {})).contains("shorter than it says"));
}

#[test]
fn silence_ends_by_the_deadline() {
    let serve = |mut socket: UnixStream| {
        let mut served = [0; 4096];
        while socket.read(&mut served).is_ok_and(|count| count > 0) {}
    };
    let before = monotonic_ms();
    let result = served(true, serve, |door| Bus::open(door, 50)?.message().map(drop));
    assert!(why(result).contains("in time"));
    assert!(monotonic_ms() - before < 5000);
}

#[test]
fn a_flood_ends_by_the_deadline() {
    let serve = |mut socket: UnixStream| {
        let _ = socket.write_all(WELCOME);
        while socket.write_all(&job_removed("/job/1", "done")).is_ok() {}
    };
    let answer = |door: &Door| Bus::open(door, 100)?.answer(77).map(drop);
    assert!(why(served(true, serve, answer)).contains("in time"));
}

#[test]
fn one_byte_at_a_time_is_understood() {
    let serve = |socket| {
        let mut served = Served::new(socket);
        served.next();
        for byte in job(1, "done") {
            served.tell(&[byte]);
        }
    };
    assert_eq!(served(false, serve, |door| start(door, &scope(&[]), None)), Ok(()));
}

#[test]
fn a_signal_ends_the_wait() {
    // The first field of what signalfd(2) gives is the number.
    let (mut signals, given) = UnixStream::pair().expect("a pair");
    given.set_nonblocking(true).expect("set");
    let mut info = [0; 128];
    info[0] = 15;
    signals.write_all(&info).expect("written");
    let serve = |socket| {
        Served::new(socket).answers(|_, _| Vec::new());
    };
    let finish = |starting: Starting<'_>| starting.finish(Some(given.as_fd()));
    let result = served(false, serve, |door| finish(begin(door, &scope(&[])).expect("begun")));
    assert_eq!(result, Err(Error::Interrupted(15)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_answer_makes_it_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..300), welcome: bool) {
        let start: &[u8] = if welcome { WELCOME } else { b"" };
        said([start, &bytes].concat());
    }

    #[test]
    fn no_damaged_answer_makes_it_panic_or_hang(at in 0..400usize, with: u8) {
        let mut bytes = [WELCOME.to_vec(), exists(3), state(4, "failed"), processes(5, 0)].concat();
        let count = bytes.len();
        bytes[at % count] = with;
        said(bytes);
    }
}
