//! What a supervisor is asked over its socket, and what it answers: messages of a fixed size, as between it and init.
//!
//! The socket lies in the sandbox's own directory, which is closed to everybody else; who is at the other end is asked of
//! the kernel all the same, by both: where the directory lies in a volume, a program inside reaches it too, and could ask,
//! answer, or put one socket in the place of another. A connection ends when the supervisor has ended, and with it the
//! last of its sandbox.

use crate::sys::event::{self, Watch};
use crate::sys::fs::{self, Kind, Open};
use crate::sys::socket::{self, Wait};
use crate::sys::stream::{ECONNREFUSED, peer, peer_pidfd};
use crate::sys::{EINVAL, EMFILE, ENFILE, EPERM, ESRCH, ETIMEDOUT, Errno, Result};
use crate::sys::{cred, process};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The socket's name in the sandbox's directory.
pub(super) const SOCKET: &CStr = c"control";
/// Bytes of a message.
const SIZE: usize = 16;
/// How many may be waiting to be let in.
const BACKLOG: i32 = 64;

/// What a supervisor can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Pass this signal to the program.
    Signal(i32),
    /// End all at once.
    Kill,
    /// Send this signal to the program, and end all when so many milliseconds have not been enough.
    Stop(i32, u64),
    /// Let nothing in it run.
    Pause,
    /// Let it run again.
    Resume,
    /// Tell how it ends.
    Wait,
    /// Give what one more program needs to get in.
    Enter,
    /// Give the program's input and copies of what it writes, numbered as its descriptors; and tell how it ends. Who does
    /// not read the copies is refused later, with `ETIMEDOUT`.
    Attach,
    /// Give that by which the layers can be read.
    Look,
}

/// What a supervisor answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done, or for [`Request::Wait`]: it is noted.
    Done,
    /// It could not be done.
    Refused(Errno),
    /// Carries the handle of this number.
    Handle(i32),
    /// The sandbox has ended with this exit status of CLI.md.
    Ended(u8),
}

/// What stands for a sandbox's name in the upper bits of a request's kind, so that a supervisor takes only what is meant
/// for its own; 0 is anybody's.
fn mark(name: &str) -> u32 {
    // FNV-1a. It tells the names of one user apart, and is no secret.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash << 8) | (KIND + 1)
}

/// The bits of a message's kind itself.
const KIND: u32 = 0xff;

fn encode(kind: u32, a: i32, b: u64) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[4..8].copy_from_slice(&a.to_ne_bytes());
    bytes[8..].copy_from_slice(&b.to_ne_bytes());
    bytes
}

/// Kind and both numbers; `None` for bytes that are no message.
fn decode(bytes: &[u8]) -> Option<(u32, i32, u64)> {
    let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
    let (head, b) = bytes.split_at(8);
    let (kind, a) = head.split_at(4);
    Some((
        u32::from_ne_bytes(kind.try_into().ok()?),
        i32::from_ne_bytes(a.try_into().ok()?),
        u64::from_ne_bytes(b.try_into().ok()?),
    ))
}

impl Request {
    fn encode(self) -> [u8; SIZE] {
        match self {
            Request::Signal(number) => encode(1, number, 0),
            Request::Kill => encode(2, 0, 0),
            Request::Stop(signal, grace) => encode(3, signal, grace),
            Request::Pause => encode(4, 0, 0),
            Request::Resume => encode(5, 0, 0),
            Request::Wait => encode(6, 0, 0),
            Request::Enter => encode(7, 0, 0),
            Request::Attach => encode(8, 0, 0),
            Request::Look => encode(9, 0, 0),
        }
    }

    /// The same, for the supervisor of the sandbox of this name alone.
    fn encode_for(self, name: &str) -> [u8; SIZE] {
        let mut bytes = self.encode();
        mark(name).to_ne_bytes().iter().zip(&mut bytes).for_each(|(mark, byte)| *byte |= mark);
        bytes
    }

    /// A request and the mark of whom it is meant for.
    fn decode(bytes: &[u8]) -> Option<(Request, u32)> {
        let (kind, a, b) = decode(bytes)?;
        let request = match (kind & KIND, a, b) {
            (1, number @ 1..=64, _) => Request::Signal(number),
            (2, ..) => Request::Kill,
            (3, signal @ 1..=64, grace) => Request::Stop(signal, grace),
            (4, ..) => Request::Pause,
            (5, ..) => Request::Resume,
            (6, ..) => Request::Wait,
            (7, ..) => Request::Enter,
            (8, ..) => Request::Attach,
            (9, ..) => Request::Look,
            _ => return None,
        };
        Some((request, kind & !KIND))
    }
}

impl Reply {
    fn encode(self) -> [u8; SIZE] {
        match self {
            Reply::Done => encode(1, 0, 0),
            Reply::Refused(errno) => encode(2, errno.0, 0),
            Reply::Ended(status) => encode(3, status.into(), 0),
            Reply::Handle(number) => encode(4, number, 0),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Reply> {
        Some(match decode(bytes)? {
            (1, ..) => Reply::Done,
            (2, errno, _) => Reply::Refused(Errno(errno)),
            (3, status, _) => Reply::Ended(u8::try_from(status).ok()?),
            (4, number, _) => Reply::Handle(number),
            _ => return None,
        })
    }
}

/// A path to an open object that fits into a socket's address, however deep it lies, with a name in it where that is a
/// directory.
fn address(of: BorrowedFd<'_>, name: &str) -> CString {
    CString::new(format!("/proc/self/fd/{}{name}", of.as_raw_fd())).unwrap_or_default()
}

/// Proves that the other end is a process of this user that stands in no sandbox, or in the same one as this process: its
/// user namespace is ours.
///
/// # Errors
/// `EPERM` where it is not, `ECONNREFUSED` where the process has ended meanwhile.
fn prove(end: BorrowedFd<'_>) -> Result<()> {
    let peer = peer(end)?;
    if peer.uid != cred::geteuid() {
        return if crate::sys::sabotaged(c"peer") { Ok(()) } else { Err(EPERM) };
    }
    // Held while its namespace is looked at, so that its number is no other's.
    let held = process_at(end).map_err(|errno| match errno {
        // Its pid namespace is not seen from here.
        ESRCH if peer.pid == 0 => EPERM,
        errno @ (EMFILE | ENFILE) => errno,
        _ => ECONNREFUSED,
    })?;
    let namespace = |of: &str| fs::stat(&CString::new(format!("/proc/{of}/ns/user")).unwrap_or_default());
    let (own, theirs) = (namespace("self")?, namespace(&peer.pid.to_string()));
    if event::poll(&mut [Watch::read(held.as_fd())], Some(0)) != Ok(0) {
        return Err(ECONNREFUSED);
    }
    let same = theirs.is_ok_and(|theirs| (own.dev, own.ino) == (theirs.dev, theirs.ino));
    if same || crate::sys::sabotaged(c"peer-namespace") { Ok(()) } else { Err(EPERM) }
}

/// The process at the other end, and surely no other's: one that has died would have closed this connection.
///
/// # Errors
/// `ESRCH` where it is gone, or lives in a pid namespace that is not seen from here.
pub fn process_at(end: BorrowedFd<'_>) -> Result<OwnedFd> {
    if let Ok(pidfd) = peer_pidfd(end) {
        return Ok(pidfd);
    }
    // Before Linux 6.5 its number has to be opened, and is its own for as long as it holds the other end.
    let pid = peer(end)?.pid;
    if pid <= 0 {
        return Err(ESRCH);
    }
    let pidfd = process::pidfd_open(pid)?;
    if socket::hung_up(end) { Err(ESRCH) } else { Ok(pidfd) }
}

/// A supervisor's end. Its name goes with the claim of the sandbox's.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens in a sandbox's directory.
    ///
    /// # Errors
    /// Of bind(2) and listen(2).
    pub(super) fn new(dir: BorrowedFd<'_>) -> Result<Listener> {
        socket::listen(&address(dir, "/control"), BACKLOG).map(Listener)
    }

    /// To be watched.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next that waits, where it is the same user's, and in no sandbox.
    ///
    /// # Errors
    /// `EAGAIN` where nobody waits, `EPERM` for somebody else.
    pub fn accept(&self) -> Result<OwnedFd> {
        let client = socket::accept(self.fd())?;
        prove(client.as_fd()).map(|()| client)
    }
}

/// Takes a request to the supervisor of the sandbox of this name from a client; `None` is its close.
///
/// # Errors
/// `EINVAL` for bytes that are no request, `ESRCH` for one that is meant for another.
pub fn hear(client: BorrowedFd<'_>, name: &str) -> Result<Option<Request>> {
    let mut bytes = [0; SIZE];
    // A descriptor that somebody sends along is closed here.
    match socket::receive(client, &mut bytes, Wait::No)? {
        (0, _) => Ok(None),
        (length, _) => match Request::decode(&bytes[..length]).ok_or(EINVAL)? {
            (request, whom) if whom == 0 || whom == mark(name) => Ok(Some(request)),
            _ => Err(ESRCH),
        },
    }
}

/// Answers a client. One that does not read is not waited for.
pub fn answer(client: BorrowedFd<'_>, reply: Reply) {
    let _ = socket::send_now(client, &reply.encode());
}

/// Gives a client a handle. One that has no room for it does without, and asks again.
///
/// # Errors
/// Of the socket.
pub fn hand(client: BorrowedFd<'_>, number: usize, handle: BorrowedFd<'_>) -> Result<()> {
    socket::send_with(client, &Reply::Handle(number as i32).encode(), handle)
}

/// A client's end.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// Of the sandbox that is meant.
    name: String,
}

impl Client {
    /// Connects to the supervisor of a sandbox's directory.
    ///
    /// # Errors
    /// `ENOENT` or `ECONNREFUSED` where none listens, `EPERM` where it is somebody else's, or a program in a sandbox.
    pub(super) fn connect(dir: BorrowedFd<'_>, name: &str) -> Result<Client> {
        let place = fs::openat(dir, SOCKET, Open::Entry)?;
        // Of a link it would be another's.
        if fs::fstat(place.as_fd())?.kind != Kind::Socket {
            return Err(ECONNREFUSED);
        }
        let socket = socket::connect(&address(place.as_fd(), ""))?;
        prove(socket.as_fd())?;
        Ok(Client { socket, name: name.to_owned() })
    }

    /// Asks; [`Client::next`] tells the answer. `false` where the supervisor has ended instead.
    ///
    /// # Errors
    /// Of the socket.
    pub fn tell(&self, request: Request) -> Result<bool> {
        match socket::send(self.socket.as_fd(), &request.encode_for(&self.name), None) {
            Err(crate::sys::EPIPE | crate::sys::ECONNRESET) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Asks, and waits for the answer for so many milliseconds; `None` where the supervisor ended instead.
    ///
    /// # Errors
    /// `ETIMEDOUT`, and those of the socket.
    pub fn ask(&self, request: Request, patience: u64) -> Result<Option<Reply>> {
        match self.tell(request)? {
            true => self.next(Some(event::monotonic_ms().saturating_add(patience))),
            false => Ok(None),
        }
    }

    /// Waits for what else it says, at most until then by the monotonic clock; `None` at its end.
    ///
    /// # Errors
    /// `ETIMEDOUT`, and those of the socket.
    pub fn next(&self, until: Option<u64>) -> Result<Option<Reply>> {
        self.take(until).map(|taken| taken.map(|(reply, _)| reply))
    }

    /// Asks for what is handed out, by [`Request::Enter`], [`Request::Look`] or [`Request::Attach`], and takes each with
    /// its number.
    ///
    /// # Errors
    /// Of the socket; what the supervisor refuses with; `EPIPE` where it ended instead, `ETIMEDOUT` where it says nothing
    /// for so many milliseconds.
    pub fn handles(&self, request: Request, patience: u64, mut keep: impl FnMut(usize, OwnedFd)) -> Result<()> {
        socket::send(self.socket.as_fd(), &request.encode_for(&self.name), None)?;
        loop {
            match self.take(Some(event::monotonic_ms().saturating_add(patience)))? {
                Some((Reply::Handle(number), Some(handle))) => keep(number as usize, handle),
                Some((Reply::Done, _)) => return Ok(()),
                Some((Reply::Refused(errno), _)) => return Err(errno),
                // The kernel leaves away what there is no number for.
                Some((Reply::Handle(_), None)) => return Err(EMFILE),
                Some(_) => return Err(EINVAL),
                None => return Err(crate::sys::EPIPE),
            }
        }
    }

    fn take(&self, until: Option<u64>) -> Result<Option<(Reply, Option<OwnedFd>)>> {
        let mut bytes = [0; SIZE];
        loop {
            match socket::receive(self.socket.as_fd(), &mut bytes, Wait::No) {
                Ok((0, _)) | Err(crate::sys::ECONNRESET) => return Ok(None),
                Ok((length, carried)) => {
                    return Reply::decode(&bytes[..length]).map(|reply| Some((reply, carried))).ok_or(EINVAL);
                }
                Err(crate::sys::EAGAIN) => {}
                Err(errno) => return Err(errno),
            }
            let left = until.map(|until| until.saturating_sub(event::monotonic_ms()));
            if left == Some(0) {
                return Err(ETIMEDOUT);
            }
            match event::poll(&mut [Watch::read(self.socket.as_fd())], left) {
                Ok(_) | Err(crate::sys::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// To be watched.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The supervisor's process.
    ///
    /// # Errors
    /// As [`process_at`].
    pub fn supervisor(&self) -> Result<OwnedFd> {
        process_at(self.socket.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::{HERE, Open, openat};

    #[test]
    fn messages_come_out_as_they_went_in() {
        for request in [
            Request::Signal(15),
            Request::Kill,
            Request::Stop(2, u64::MAX),
            Request::Pause,
            Request::Resume,
            Request::Wait,
            Request::Enter,
            Request::Attach,
            Request::Look,
        ] {
            assert_eq!(Request::decode(&request.encode()), Some((request, 0)));
            assert_eq!(Request::decode(&request.encode_for("x")), Some((request, mark("x"))));
        }
        for reply in [Reply::Done, Reply::Refused(EPERM), Reply::Ended(255)] {
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
        assert_eq!(Request::decode(&encode(1, 0, 0)), None);
        assert_eq!(Request::decode(&encode(1, 65, 0)), None);
        assert_eq!(Reply::decode(&encode(3, 256, 0)), None);
    }

    #[test]
    fn a_client_is_heard_and_hears_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("d".repeat(200));
        std::fs::create_dir(&deep).expect("a directory of a long name");
        let dir = openat(HERE, &crate::host::files::c_path(&deep), Open::Directory).expect("open");
        let listener = Listener::new(dir.as_fd()).expect("listen");
        assert_eq!(listener.accept().map(drop), Err(crate::sys::EAGAIN));
        let client = Client::connect(dir.as_fd(), "x").expect("connect");
        let server = listener.accept().expect("the client");
        assert_eq!(hear(server.as_fd(), "x"), Err(crate::sys::EAGAIN));
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| client.ask(Request::Pause, 60_000));
            while hear(server.as_fd(), "x") == Err(crate::sys::EAGAIN) {}
            answer(server.as_fd(), Reply::Done);
            assert_eq!(asked.join().expect("no panic"), Ok(Some(Reply::Done)));
        });
        assert_eq!(client.ask(Request::Pause, 10), Err(ETIMEDOUT));
        let supervisor = client.supervisor().expect("this process");
        assert_eq!(process::pid_of(supervisor.as_fd()), Ok(process::getpid()));
        answer(server.as_fd(), Reply::Ended(7));
        drop((server, listener));
        std::fs::remove_file(deep.join("control")).expect("its name");
        assert_eq!(client.next(None), Ok(Some(Reply::Ended(7))));
        assert_eq!(client.next(None), Ok(None));
        assert_eq!(client.ask(Request::Pause, 10), Ok(None));
        assert!(Client::connect(dir.as_fd(), "x").is_err());
    }

    #[test]
    fn what_is_meant_for_another_is_not_done() {
        let (ours, theirs) = socket::pair().expect("a pair");
        for (whom, heard) in
            [(Some("x"), Ok(Some(Request::Kill))), (None, Ok(Some(Request::Kill))), (Some("y"), Err(ESRCH))]
        {
            let request = whom.map_or(Request::Kill.encode(), |name| Request::Kill.encode_for(name));
            socket::send(theirs.as_fd(), &request, None).expect("sent");
            assert_eq!(hear(ours.as_fd(), "x"), heard, "{whom:?}");
        }
    }

    #[test]
    fn a_link_is_no_socket() {
        let dir = tempfile::tempdir().expect("a directory");
        let [one, other] = ["one", "other"].map(|name| {
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
            openat(HERE, &crate::host::files::c_path(&dir.path().join(name)), Open::Directory).expect("open")
        });
        let listener = Listener::new(other.as_fd()).expect("listen");
        std::os::unix::fs::symlink("../other/control", dir.path().join("one/control")).expect("a link");
        assert_eq!(Client::connect(one.as_fd(), "x").map(drop), Err(ECONNREFUSED));
        Client::connect(other.as_fd(), "x").expect("connect");
        listener.accept().expect("the client");
    }

    proptest::proptest! {
        #[test]
        fn strange_bytes_are_refused_without_a_panic(bytes: Vec<u8>) {
            proptest::prop_assert!(bytes.len() == SIZE || Request::decode(&bytes).is_none());
            let _ = Reply::decode(&bytes);
        }
    }
}
