//! `sbx logs`: what a sandbox in the background has written, its stdout to stdout and its stderr to stderr.

use super::print;
use sbx::error::{Error, Result};
use sbx::host;
use sbx::spec::text;
use sbx::state::StateDir;
use sbx::state::log::{Entry, Stream, Tag};
use sbx::state::time::Moment;
use sbx::sys::event::{Watch, poll};
use sbx::sys::{self, EAGAIN, EPIPE, borrow, fs};
use std::ffi::OsString;
use std::path::Path;

pub const HELP: &str = "\
What a sandbox in the background (run --detach) has written

Usage: sbx logs [-f] [--tail N] [--since T] [-t] NAME

Options:
  -f, --follow      go on until the sandbox has ended
      --tail N      the last N lines only
      --since T     only lines since then: 10m (ago), or 2026-11-26T01:25:00Z
  -t, --timestamps  the time before each line
  -h, --help        this help

Its standard output goes to standard output, its standard error and sbx's own notices to standard error.
";

/// What was asked for.
#[derive(Default)]
struct Asked {
    follow: bool,
    stamps: bool,
    tail: Option<u64>,
    since: Option<Moment>,
    state: Option<OsString>,
    name: String,
}

/// Runs the subcommand; the result is the exit status.
pub fn logs(words: &[OsString]) -> Result<u8> {
    let Some(asked) = parse(words)? else { return print(HELP) };
    let caller = host::caller()?;
    let path = match &asked.state {
        Some(path) => caller.host_path("--state", path)?.as_path().to_owned(),
        None => super::default_state(&caller),
    };
    match show(&path, &asked) {
        // Nobody reads any more.
        Ok(()) | Err(Error::Sys { errno: EPIPE, .. }) => Ok(0),
        Err(error) => {
            super::fail(&error);
            Ok(1)
        }
    }
}

fn parse(words: &[OsString]) -> Result<Option<Asked>> {
    let mut asked = Asked::default();
    let mut names = Vec::new();
    let mut words = words.iter().flat_map(|word| match word.to_str().and_then(|text| text.split_once('=')) {
        Some((name, value)) if name.starts_with("--") => vec![OsString::from(name), value.into()],
        _ => vec![word.clone()],
    });
    while let Some(word) = words.next() {
        let option = word.to_string_lossy().into_owned();
        let mut value = || {
            let missing = || super::usage_of(&format!("{option} needs a value"), "sbx logs --help");
            words.next().map_or_else(|| missing().map(|_| OsString::new()), Ok)
        };
        match option.as_str() {
            "-h" | "--help" => return Ok(None),
            "-f" | "--follow" => asked.follow = true,
            "-t" | "--timestamps" => asked.stamps = true,
            "-ft" | "-tf" => (asked.follow, asked.stamps) = (true, true),
            "-q" | "--quiet" | "--verbose" => {}
            "-n" | "--tail" => asked.tail = tail(&value()?.to_string_lossy())?,
            "--since" => asked.since = Some(Moment::given("--since", &value()?.to_string_lossy())?),
            "--state" => asked.state = Some(value()?),
            "--color" => super::choose_color(Some(&value()?.to_string_lossy()))?,
            text if text.starts_with('-') => {
                super::usage_of(&format!("{text} is not an option of sbx logs"), "sbx logs --help")?;
            }
            _ => names.push(word.to_string_lossy().into_owned()),
        }
    }
    match <[String; 1]>::try_from(names) {
        Ok([name]) => Ok(Some(Asked { name, ..asked })),
        Err(_) => super::usage_of("sbx logs needs one name", "sbx logs NAME").map(|_| None),
    }
}

/// A number of lines, or `all`.
fn tail(text: &str) -> Result<Option<u64>> {
    if text == "all" { Ok(None) } else { text::number("--tail", text).map(Some) }
}

fn show(path: &Path, asked: &Asked) -> Result<()> {
    let state = StateDir::open(path)?;
    // A sandbox whose supervisor was killed has ended.
    state.sweep();
    let mut replay = state.replay(&asked.name)?;
    if asked.follow {
        replay.follow();
    }
    let fail = |errno| Error::Sys { doing: "show the log of".into(), on: asked.name.clone(), errno };
    let mut choice = Choice { since: asked.since, skip: 0, started: 0, lines: [Line::default(); 3] };
    if let Some(tail) = asked.tail {
        let start = replay.place();
        let mut count = |entry: Entry<'_>| {
            let _ = choice.takes(&entry);
            Ok(())
        };
        replay.read_held(&mut count).map_err(fail)?;
        choice = Choice { skip: choice.started.saturating_sub(tail), started: 0, lines: Default::default(), ..choice };
        replay.go(start);
    }
    let mut printer = Printer { stamps: asked.stamps, waiting: Vec::with_capacity(2 * FULL), to: Stream::Output };
    loop {
        let last = !asked.follow || !replay.lives();
        replay.read(&mut |entry| choice.print(&entry, &mut printer)).and_then(|()| printer.flush()).map_err(fail)?;
        if std::mem::take(&mut replay.missed) {
            super::say("lines are missing here: they were written faster than they were read");
        }
        if last {
            return Ok(());
        }
        replay.wait().map_err(fail)?;
    }
}

/// Which lines are shown. A line counts, and has its time, where it starts; its parts follow it.
struct Choice {
    since: Option<Moment>,
    /// How many lines are passed over.
    skip: u64,
    /// How many have started.
    started: u64,
    /// The line of each stream that goes on.
    lines: [Line; 3],
}

#[derive(Clone, Copy, Default)]
struct Line {
    open: bool,
    shown: bool,
}

/// Where in a line a record stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    First,
    Later,
}

impl Choice {
    /// Whether an entry is shown, and as what.
    fn takes(&mut self, entry: &Entry<'_>) -> Option<Part> {
        let line = &mut self.lines[entry.stream as usize];
        let part = if line.open { Part::Later } else { Part::First };
        if part == Part::First {
            let late = self.since.is_none_or(|since| entry.time >= since);
            line.shown = late && self.started >= self.skip;
            self.started += u64::from(late);
        }
        line.open = entry.tag == Tag::Partial;
        line.shown.then_some(part)
    }

    fn print(&mut self, entry: &Entry<'_>, printer: &mut Printer) -> sys::Result<()> {
        match self.takes(entry) {
            Some(part) => printer.print(entry, part),
            None => Ok(()),
        }
    }
}

/// How much is written at once.
const FULL: usize = 32 << 10;

/// Writes to both outputs in the order of the log. It holds what is for one of them.
struct Printer {
    stamps: bool,
    waiting: Vec<u8>,
    to: Stream,
}

impl Printer {
    fn print(&mut self, entry: &Entry<'_>, part: Part) -> sys::Result<()> {
        if entry.stream != self.to || self.waiting.len() >= FULL {
            self.flush()?;
            self.to = entry.stream;
        }
        if part == Part::First && self.stamps {
            use std::io::Write;
            let _ = write!(self.waiting, "{} ", entry.time);
        }
        if part == Part::First && entry.stream == Stream::Notice {
            self.waiting.extend_from_slice(b"sbx: ");
        }
        self.waiting.extend_from_slice(entry.text);
        if entry.tag == Tag::Full {
            self.waiting.push(b'\n');
        }
        Ok(())
    }

    fn flush(&mut self) -> sys::Result<()> {
        let to = borrow(if self.to == Stream::Output { 1 } else { 2 });
        let mut rest = &self.waiting[..];
        while !rest.is_empty() {
            match fs::write(to, rest) {
                Ok(written) => rest = &rest[written..],
                Err(EAGAIN) => drop(poll(&mut [Watch::write(to)], None)),
                Err(errno) => return Err(errno),
            }
        }
        self.waiting.clear();
        Ok(())
    }
}
