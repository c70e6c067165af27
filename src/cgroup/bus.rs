//! A connection to a user's systemd: by its bus or by its own socket, with a deadline for all that is asked.
//!
//! The authentication, the greeting and the calls are written with no answer in between, for each that is waited for
//! costs two switches of process; a server takes them in their order. Whatever the other end does, each wait ends by the
//! deadline, and a signal that ends sbx ends it at once.

use super::wire::{self, Body, Kind, Message, Target};
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::host::manager::{Door, trusted};
use crate::sys::event::{self, Watch, monotonic_ms, next_signal, poll};
use crate::sys::fs::read;
use crate::sys::stream::{connect, send_some};
use crate::sys::{EAGAIN, ECONNRESET, EINTR, EPIPE, Errno, cred};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The user is the one that the kernel tells the server, so that it needs no number: in a user namespace ours would
/// be another (sd-bus does the same).
const OPENING: &[u8] = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";
/// No line of the authentication is longer.
const LINE: usize = 512;
const LONGEST_WORDS: usize = 300;
/// How long a listener that cannot take us yet is left alone.
const PAUSE_MS: u64 = 10;

/// What the manager is called on the bus.
const MANAGER: &str = "org.freedesktop.systemd1";
/// The bus itself.
const DRIVER: Target<'static> =
    Target { name: Some("org.freedesktop.DBus"), path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

/// A refusal in D-Bus's own terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Such as `org.freedesktop.systemd1.UnitExists`.
    pub name: String,
    /// The words of who refused.
    pub words: String,
}

/// An open connection.
#[derive(Debug)]
pub struct Bus<'a> {
    socket: OwnedFd,
    /// The socket's path, for people.
    at: String,
    shared: bool,
    deadline: u64,
    interrupt: Option<BorrowedFd<'a>>,
    /// Signals that came and are not for us.
    held: Vec<i32>,
    serial: u32,
    /// Calls whose refusal is the end of all.
    needed: Vec<u32>,
    unsent: Vec<u8>,
    unread: Vec<u8>,
    welcome: bool,
}

impl<'a> Bus<'a> {
    /// Connects, makes sure who listens, and has the greeting ready to be sent.
    ///
    /// # Errors
    /// `Unsupported` where nobody trusted listens or room in the listener's queue comes too late.
    pub fn open(door: &Door, limit_ms: u64) -> Result<Bus<'a>> {
        let at = door.path().display().to_string();
        let deadline = monotonic_ms().saturating_add(limit_ms);
        let socket = loop {
            match connect(&c_path(door.path())) {
                Err(EAGAIN) if monotonic_ms() < deadline => drop(poll(&mut [], Some(PAUSE_MS))),
                Ok(socket) => break socket,
                Err(errno) => return Err(unusable(&format!("cannot connect to {at}: {errno}"))),
            }
        };
        // A socket in a directory that somebody else can write to may be anybody's.
        if !trusted(socket.as_fd(), cred::geteuid()).map_err(|errno| unusable(&format!("{at}: {errno}")))? {
            return Err(unusable(&format!(
                "who listens on {at} is neither you nor root, or outside of this container"
            )));
        }
        let mut bus = Bus {
            socket,
            at,
            shared: matches!(door, Door::Bus(_)),
            deadline,
            interrupt: None,
            held: Vec::new(),
            serial: 0,
            needed: Vec::new(),
            unsent: OPENING.to_vec(),
            unread: Vec::new(),
            welcome: false,
        };
        bus.need("Hello", None);
        Ok(bus)
    }

    /// From now on so many milliseconds are left for all.
    pub fn renew(&mut self, limit_ms: u64) {
        self.deadline = monotonic_ms().saturating_add(limit_ms);
    }

    /// Lets a signal that ends sbx end each wait: a descriptor of signalfd(2). Others that it holds are put back.
    pub fn interrupted_by(&mut self, signals: Option<BorrowedFd<'a>>) {
        self.interrupt = signals;
    }

    /// Asks the bus for signals; the manager's own socket brings them all.
    pub fn listen(&mut self, rule: &str) {
        self.need("AddMatch", Some(rule));
    }

    fn need(&mut self, method: &str, text: Option<&str>) {
        if self.shared {
            let mut body = Body::default();
            let signature = text.map_or("", |text| {
                body.text(text);
                "s"
            });
            let serial = self.queue(DRIVER, method, signature, &body);
            self.needed.push(serial);
        }
    }

    /// Has a call to the manager ready to be sent, with the next wait; returns its number.
    pub fn call(&mut self, path: &str, interface: &str, method: &str, signature: &str, body: &Body) -> u32 {
        let name = self.shared.then_some(MANAGER);
        self.queue(Target { name, path, interface }, method, signature, body)
    }

    fn queue(&mut self, to: Target<'_>, method: &str, signature: &str, body: &Body) -> u32 {
        self.serial += 1;
        self.unsent.extend(wire::call(to, method, self.serial, signature, body));
        self.serial
    }

    /// Waits for the answer to a call and drops all else.
    ///
    /// # Errors
    /// As [`Bus::message`].
    pub fn answer(&mut self, serial: u32) -> Result<std::result::Result<Message, Refusal>> {
        loop {
            let message = self.message()?;
            match message.kind {
                Kind::Return if message.reply_to == Some(serial) => return Ok(Ok(message)),
                Kind::Error if message.reply_to == Some(serial) => return Ok(Err(Refusal::of(&message))),
                _ => {}
            }
        }
    }

    /// The next message of whatever kind.
    ///
    /// # Errors
    /// `Unsupported` where the other end refuses us, closes, breaks the protocol or is too slow; `Interrupted` by a
    /// signal.
    pub fn message(&mut self) -> Result<Message> {
        self.send()?;
        loop {
            while !self.welcome && self.greeted()? {}
            if let Some(message) = self.take()? {
                if message.kind == Kind::Error && message.reply_to.is_some_and(|serial| self.needed.contains(&serial)) {
                    return Err(refused("the bus", &Refusal::of(&message)));
                }
                return Ok(message);
            }
            self.wait()?;
        }
    }

    /// Takes one line of the authentication, if it is there.
    fn greeted(&mut self) -> Result<bool> {
        let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") else {
            return if self.unread.len() > LINE { Err(self.garbled("its greeting has no end")) } else { Ok(false) };
        };
        let line: Vec<u8> = self.unread.drain(..end + 2).collect();
        self.welcome = line.starts_with(b"OK");
        match () {
            () if self.welcome || line.starts_with(b"DATA") => Ok(true),
            () if line.starts_with(b"REJECTED") => Err(unusable(&format!("{} does not let you in", self.at))),
            () => Err(self.garbled("its greeting is unknown")),
        }
    }

    fn take(&mut self) -> Result<Option<Message>> {
        if !self.welcome {
            return Ok(None);
        }
        match wire::length(&self.unread) {
            Ok(Some(length)) if length <= self.unread.len() => {
                let message = Message::parse(&self.unread[..length]).map_err(|why| self.garbled(why))?;
                self.unread.drain(..length);
                Ok(Some(message))
            }
            Ok(_) => Ok(None),
            Err(why) => Err(self.garbled(why)),
        }
    }

    /// Sends as much as there is room for.
    ///
    /// # Errors
    /// `Unsupported` where the connection is lost.
    pub fn send(&mut self) -> Result<()> {
        while !self.unsent.is_empty() {
            match send_some(self.socket.as_fd(), &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(EAGAIN) => break,
                // It closed, perhaps with a reason that is still to be read.
                Err(EPIPE | ECONNRESET) => self.unsent.clear(),
                Err(errno) => return Err(self.lost(errno)),
            }
        }
        Ok(())
    }

    /// Waits for something to read, or for room to write, and does it.
    fn wait(&mut self) -> Result<()> {
        let left = self.deadline.saturating_sub(monotonic_ms());
        if left == 0 {
            return Err(unusable(&format!("no answer from {} in time", self.at)));
        }
        let writing = if self.unsent.is_empty() { Watch::off() } else { Watch::write(self.socket.as_fd()) };
        let mut watches = [Watch::read(self.socket.as_fd()), writing, Watch::read_if(self.interrupt)];
        match poll(&mut watches, Some(left)) {
            Ok(_) => {}
            Err(EINTR) => return Ok(()),
            Err(errno) => return Err(self.lost(errno)),
        }
        if watches[2].ready() {
            self.signals()?;
        }
        if watches[1].ready() {
            self.send()?;
        }
        if watches[0].ready() { self.receive() } else { Ok(()) }
    }

    fn receive(&mut self) -> Result<()> {
        let mut chunk = [0; 4096];
        match read(self.socket.as_fd(), &mut chunk) {
            Ok(0) | Err(ECONNRESET) => Err(unusable(&format!("{} closed the connection", self.at))),
            Ok(count) => {
                self.unread.extend(&chunk[..count]);
                Ok(())
            }
            Err(EAGAIN | EINTR) => Ok(()),
            Err(errno) => Err(self.lost(errno)),
        }
    }

    fn signals(&mut self) -> Result<()> {
        const ENDING: [i32; 4] = [event::SIGTERM, event::SIGINT, event::SIGHUP, event::SIGQUIT];
        let Some(from) = self.interrupt else { return Ok(()) };
        loop {
            match next_signal(from) {
                Ok(Some(signal)) if ENDING.contains(&signal) => return Err(Error::Interrupted(signal)),
                Ok(Some(signal)) => self.held.push(signal),
                Ok(None) => return Ok(()),
                // Nothing that could be waited for again.
                Err(_) => {
                    self.interrupt = None;
                    return Ok(());
                }
            }
        }
    }

    /// What came breaks the protocol.
    pub fn garbled(&self, why: &str) -> Error {
        unusable(&format!("{} does not speak D-Bus: {why}", self.at))
    }

    fn lost(&self, errno: Errno) -> Error {
        unusable(&format!("{}: {errno}", self.at))
    }
}

impl Drop for Bus<'_> {
    /// The monitor has still to hear of a child that ended, or of a terminal that changed. The signals are blocked, so
    /// they wait for it.
    fn drop(&mut self) {
        for signal in &self.held {
            let _ = event::raise(*signal);
        }
    }
}

impl Refusal {
    /// The manager has no name on this bus: not yet, or never.
    pub fn no_manager(&self) -> bool {
        const NOBODY: [&str; 2] =
            ["org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.ServiceUnknown"];
        NOBODY.contains(&self.name.as_str())
    }

    fn of(message: &Message) -> Refusal {
        let words = if message.signature.starts_with('s') { message.body().text().unwrap_or_default() } else { "" };
        Refusal { name: short(&message.error), words: short(words) }
    }
}

fn short(text: &str) -> String {
    text.chars().take(LONGEST_WORDS).collect()
}

/// Says who refused, in their words. `Display` of the error makes what is in them visible.
pub fn refused(who: &str, refusal: &Refusal) -> Error {
    match refusal.words.is_empty() {
        true => unusable(&format!("{who} refuses it: {}", refusal.name)),
        false => unusable(&format!("{who} refuses it: {} ({})", refusal.words, refusal.name)),
    }
}

fn unusable(why: &str) -> Error {
    Error::Unsupported {
        feature: "limits by a scope of your systemd".into(),
        why: why.into(),
        hint: Some("--limits watch; `systemctl --user status` tells whether your systemd is well".into()),
    }
}
