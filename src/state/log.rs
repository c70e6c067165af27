//! The log of a sandbox in the background: `log`, and with its older files `log.1` and `log.2`.
//!
//! A record is a line: time, stream, `F` for the end of a line or `P` for a part of one, and the bytes, each with a
//! space between (the form of Kubernetes' container runtimes). Its head has a fixed length. One invariant: a file holds
//! whole records only, however little space there is. Nothing is allocated once the log is open.

use super::time::{Moment, TEXT};
use super::{Claim, unusable};
use crate::error::Result;
use crate::sys::cred;
use crate::sys::daemon::{SIGXFSZ, ignore};
use crate::sys::fs::{self, Kind, Open};
use crate::sys::{ENOENT, ENOSPC, Errno, sabotaged};
use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

/// The files, the newest first.
pub(super) const FILES: [&CStr; 3] = [c"log", c"log.1", c"log.2"];
const NEW: &CStr = c"log.new";
/// Every file that a log may have.
pub(super) const ALL: [&CStr; 4] = [FILES[0], FILES[1], FILES[2], NEW];

/// The longest piece of a line that a record holds.
pub const PIECE: usize = 8192;
/// Time, stream, tag and a space behind each.
pub(super) const HEAD: usize = TEXT + 1 + 6 + 1 + 1 + 1;
/// Room for records that are written at once: two of the longest.
const ROOM: usize = 2 * (HEAD + PIECE + 1);

/// Where a record's bytes come from. The words are equally long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The program's standard output, or its terminal.
    Output,
    /// Its standard error.
    Error,
    /// sbx itself.
    Notice,
}

impl Stream {
    const WORDS: [(Stream, &'static [u8; 6]); 3] =
        [(Stream::Output, b"stdout"), (Stream::Error, b"stderr"), (Stream::Notice, b"notice")];

    fn word(self) -> &'static [u8; 6] {
        Stream::WORDS[self as usize].1
    }
}

/// Whether a line ends with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// It does.
    Full,
    /// More of it may follow.
    Partial,
}

/// One record as it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// When the bytes were taken from the program.
    pub time: Moment,
    /// Where they come from.
    pub stream: Stream,
    /// Whether a line ends with them.
    pub tag: Tag,
    /// The bytes, without the line's end.
    pub text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads a line of a log, without its end.
    pub(super) fn parse(line: &'a [u8]) -> Option<Entry<'a>> {
        let (head, text) = line.split_at_checked(HEAD)?;
        let (word, tag) = (&head[TEXT + 1..TEXT + 7], head[TEXT + 8]);
        let (stream, _) = Stream::WORDS.into_iter().find(|(_, known)| *known == word)?;
        let tag = match tag {
            b'F' => Tag::Full,
            b'P' => Tag::Partial,
            _ => return None,
        };
        Some(Entry { time: Moment::parse(&head[..TEXT])?, stream, tag, text })
    }
}

/// A log that is being written.
#[derive(Debug)]
pub struct Log {
    /// Not the claim's own descriptor: its lock would live as long as this.
    dir: OwnedFd,
    file: OwnedFd,
    /// Bytes of the file's whole records.
    length: u64,
    /// How large a file may become.
    limit: u64,
    records: Box<[u8]>,
    filled: usize,
    /// Bytes of the program's that found no room since the log last said so, and in all.
    dropped: u64,
    lost: u64,
    why: Errno,
}

impl Claim<'_> {
    /// Makes the log.
    ///
    /// # Errors
    /// `State` where there is no room for it.
    pub fn open_log(&self, limit: u64) -> Result<Log> {
        let fail = |errno| unusable(&self.path, format!("cannot make the log: {errno}"));
        let dir = fs::open_beneath(self.dir.as_fd(), c".", Open::List).map_err(fail)?;
        let file = fs::openat(dir.as_fd(), FILES[0], Open::New).map_err(fail)?;
        // The caller's limit on the size of files holds for the log too; a smaller file of it is no reason to die.
        ignore(SIGXFSZ);
        let most = cred::resource("fsize").and_then(|fsize| cred::getrlimit(fsize).ok()).map_or(u64::MAX, |l| l.soft);
        let records = vec![0; ROOM].into();
        let limit = limit.min(most);
        Ok(Log { dir, file, length: 0, limit, records, filled: 0, dropped: 0, lost: 0, why: ENOSPC })
    }
}

impl Log {
    /// Adds a record of at most [`PIECE`] bytes, which is written when there is no room for more or at
    /// [`Log::flush`].
    pub fn add(&mut self, time: Moment, stream: Stream, tag: Tag, text: &[u8]) {
        let text = &text[..text.len().min(PIECE)];
        let length = HEAD + text.len() + 1;
        if self.filled + length > self.records.len() {
            self.flush();
        }
        put(&mut self.records[self.filled..self.filled + length], time, stream, tag, text);
        self.filled += length;
    }

    /// Writes what was added. What finds no room is counted and dropped: the program goes on whatever becomes of its
    /// log.
    pub fn flush(&mut self) {
        if self.filled == 0 {
            return;
        }
        let records = std::mem::take(&mut self.records);
        let told = self.dropped == 0 || self.tell_dropped();
        let written = if told { self.write(&records[..self.filled]) } else { 0 };
        self.dropped += payload(&records[written..self.filled]);
        (self.records, self.filled) = (records, 0);
    }

    /// How much of the program's output found no room.
    pub fn lost(&self) -> u64 {
        self.lost + self.dropped
    }

    /// Says how much is missing, where there is room for that again.
    fn tell_dropped(&mut self) -> bool {
        let mut words = [0; 160];
        let mut rest = &mut words[..];
        let why = match self.why {
            ENOSPC => "there was no space left",
            _ => "the log could not be written",
        };
        let _ = write!(rest, "{} bytes of output are missing here: {why}", self.dropped);
        let length = 160 - rest.len();
        let mut record = [0; HEAD + 160 + 1];
        let record = &mut record[..HEAD + length + 1];
        put(record, Moment::now(), Stream::Notice, Tag::Full, &words[..length]);
        if self.write(record) < record.len() {
            return false;
        }
        self.lost += self.dropped;
        self.dropped = 0;
        true
    }

    /// Writes whole records, as many of them as there is room for; returns their bytes.
    fn write(&mut self, records: &[u8]) -> usize {
        if self.length > 0
            && self.length + records.len() as u64 > self.limit
            && let Err(errno) = self.rotate()
        {
            self.why = errno;
            return 0;
        }
        let mut written = 0;
        while written < records.len() {
            match fs::pwrite(self.file.as_fd(), &records[written..], self.length + written as u64) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(errno) => {
                    self.why = errno;
                    break;
                }
            }
        }
        let mut whole = written;
        if written < records.len() {
            whole = records[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            // A torn record would be taken for a part of the next.
            whole = if sabotaged(c"log-whole") { written } else { whole };
            let _ = fs::ftruncate(self.file.as_fd(), self.length + whole as u64);
        }
        self.length += whole as u64;
        whole
    }

    /// Goes on in a new file. That is made first: without it the old one stays where it is. Who reads sees each file
    /// under its own name or the next older one.
    fn rotate(&mut self) -> crate::sys::Result<()> {
        let dir = self.dir.as_fd();
        let _ = fs::unlinkat(dir, NEW, Kind::File);
        let file = fs::openat(dir, NEW, Open::New)?;
        match fs::rename(dir, FILES[1], FILES[2]) {
            Ok(()) | Err(ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        fs::rename(dir, FILES[0], FILES[1])?;
        fs::rename(dir, NEW, FILES[0])?;
        (self.file, self.length) = (file, 0);
        Ok(())
    }
}

/// Puts a record into a place of just its length.
fn put(record: &mut [u8], time: Moment, stream: Stream, tag: Tag, text: &[u8]) {
    record.fill(b' ');
    record[..TEXT].copy_from_slice(&time.text());
    record[TEXT + 1..TEXT + 7].copy_from_slice(stream.word());
    record[TEXT + 8] = if tag == Tag::Full { b'F' } else { b'P' };
    record[HEAD..HEAD + text.len()].copy_from_slice(text);
    record[HEAD + text.len()] = b'\n';
}

/// The bytes of the program's that these records hold, its line ends among them.
fn payload(records: &[u8]) -> u64 {
    let each = records.split_inclusive(|byte| *byte == b'\n').filter(|record| record.len() > HEAD);
    each.map(|record| (record.len() - HEAD - usize::from(record[TEXT + 8] == b'P')) as u64).sum()
}
