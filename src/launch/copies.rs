//! What a program in the background writes, for those who look on (`sbx attach`): a pipe to each for each stream.
//!
//! Nothing is held here. While somebody looks on, no more is read of the program at once than goes into a pipe that has
//! room, and nothing while one has none. So a client that is slow slows the program; one that stands still is let go, and
//! what follows it can have from the log.

use super::monitor::Monitor;
use super::output::Outside;
use super::relay::CHUNK;
use crate::state::control::hand;
use crate::sys::event::{Watch, monotonic_ms, poll};
use crate::sys::{EBUSY, EOPNOTSUPP, Result, fs, sabotaged, tty};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How many may look on at a time.
pub const MOST: usize = 8;
/// Milliseconds after which who has taken nothing, though there is something to take, is let go.
pub const STILL: u64 = 5_000;
/// The same when the sandbox is to end.
const HURRY: u64 = 500;
/// Standard output, or the terminal, and standard error.
pub(super) const STREAMS: usize = 2;

/// See the head of the file.
pub(super) struct Copies {
    places: [Option<Copy>; MOST],
    /// Milliseconds for who takes nothing.
    patience: u64,
}

struct Copy {
    /// The number of the client whom it is for.
    client: usize,
    /// The writing ends; none once it is let go.
    pipes: [Option<OwnedFd>; STREAMS],
    /// For a pipe without room: the monotonic milliseconds at which it is let go.
    until: [Option<u64>; STREAMS],
}

impl Default for Copies {
    fn default() -> Copies {
        Copies { places: [const { None }; MOST], patience: STILL }
    }
}

impl Copies {
    /// At most so much may be read at once of a stream.
    pub(super) fn most(&self) -> usize {
        if self.places.iter().all(Option::is_none) { usize::MAX } else { CHUNK }
    }

    /// What has to come before more may be read of a stream, where that is not the stream's own turn.
    pub(super) fn watch(&self, stream: usize) -> Option<Watch> {
        let mut full = self.places.iter().flatten().filter(|copy| copy.until[stream].is_some());
        full.find_map(|copy| copy.pipes[stream].as_ref()).map(|pipe| Watch::write(pipe.as_fd()))
    }

    /// When somebody has to be let go.
    pub(super) fn due(&self, stream: usize) -> Option<u64> {
        self.places.iter().flatten().filter_map(|copy| copy.until[stream]).min()
    }

    /// Whether all have room for what is read of a stream; who has had none for too long is let go.
    pub(super) fn have_room(&mut self, stream: usize) -> bool {
        let mut all = true;
        for copy in self.places.iter_mut().flatten() {
            let Some(pipe) = &copy.pipes[stream] else { continue };
            if has_room(pipe.as_fd()) {
                copy.until[stream] = None;
                continue;
            }
            let now = monotonic_ms();
            if now >= *copy.until[stream].get_or_insert(now + self.patience) {
                copy.let_go();
            }
            all &= copy.pipes[stream].is_none();
        }
        all
    }

    /// The sandbox is to end: a program that is held up could not, so nobody holds it up for long any more.
    pub(super) fn hurry(&mut self) {
        self.patience = HURRY;
        let soon = monotonic_ms() + HURRY;
        let full = self.places.iter_mut().flatten().flat_map(|copy| copy.until.iter_mut().flatten());
        full.for_each(|until| *until = soon.min(*until));
    }

    /// Waits until all have room, at most until then by the monotonic clock. Who has none by then is let go.
    pub(super) fn wait_for_room(&mut self, stream: usize, until: u64) {
        while !self.have_room(stream) {
            let next = self.due(stream).map_or(until, |due| due.min(until));
            let mut watch = [self.watch(stream).unwrap_or(Watch::off())];
            let _ = poll(&mut watch, Some(next.saturating_sub(monotonic_ms())));
            if monotonic_ms() >= until {
                self.places.iter_mut().flatten().filter(|copy| copy.until[stream].is_some()).for_each(Copy::let_go);
            }
        }
    }

    /// Gives all what was read of a stream, at most [`CHUNK`] bytes. Whose reader is gone, is let go.
    pub(super) fn give(&mut self, stream: usize, bytes: &[u8]) {
        for copy in self.places.iter_mut().flatten() {
            let written = copy.pipes[stream].as_ref().map(|pipe| fs::write(pipe.as_fd(), bytes));
            if written.is_some_and(|written| written != Ok(bytes.len())) {
                copy.let_go();
            }
        }
    }

    /// One of those who were let go, until nobody was.
    pub(super) fn next_let_go(&mut self) -> Option<usize> {
        let gone = self
            .places
            .iter_mut()
            .find(|copy| copy.as_ref().is_some_and(|copy| copy.pipes.iter().all(Option::is_none)));
        gone?.take().map(|copy| copy.client)
    }

    /// A client has left.
    pub(super) fn forget(&mut self, client: usize) {
        self.places.iter_mut().for_each(|copy| drop(copy.take_if(|copy| copy.client == client)));
    }
}

impl Copy {
    fn let_go(&mut self) {
        if !sabotaged(c"let-go") {
            (self.pipes, self.until) = (Default::default(), Default::default());
        }
    }
}

/// A pipe has room for a page, and so for [`CHUNK`] bytes at once; or nobody reads it any more.
fn has_room(pipe: BorrowedFd<'_>) -> bool {
    let mut watch = [Watch::write(pipe)];
    poll(&mut watch, Some(0)) == Ok(1)
}

impl Monitor<'_> {
    /// Gives a client the program's input, where it has one, and a copy of what it writes from now on.
    pub(super) fn attach(&mut self, number: usize) -> Result<()> {
        let Some(Outside::Log(output)) = &self.terminal else { return Err(EOPNOTSUPP) };
        let service = &mut self.service;
        let place =
            service.copies.places.iter_mut().find(|copy| copy.as_ref().is_none_or(|copy| copy.client == number));
        let (Some(place), Some(client)) = (place, &service.clients[number]) else { return Err(EBUSY) };
        let socket = client.socket.as_fd();
        if let Some(input) = output.input() {
            hand(socket, 0, input)?;
        }
        let mut copy = Copy { client: number, pipes: Default::default(), until: Default::default() };
        let streams = if output.is_terminal() { 1 } else { STREAMS };
        for (stream, pipe) in copy.pipes.iter_mut().enumerate().take(streams) {
            let (read, write) = fs::pipe()?;
            tty::set_nonblocking(write.as_fd())?;
            hand(socket, stream + 1, read.as_fd())?;
            *pipe = Some(write);
        }
        *place = Some(copy);
        Ok(())
    }
}
