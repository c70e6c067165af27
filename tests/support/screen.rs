//! A pty of the test's own: what is typed into it, and what it shows.

use super::{Place, Run, Running, within};
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A terminal as a user has one: what is typed, what is shown.
pub struct Screen {
    pub keyboard: File,
    pub slave: OwnedFd,
    pub shown: Arc<Mutex<Vec<u8>>>,
}

/// `setsid -c`: `sbx` with these words, and the terminal of stdin becomes the controlling one.
pub fn on_terminal(place: &Place, words: &[&str]) -> Run {
    let sbx = super::sbx();
    let first = ["-c", sbx.to_str().expect("utf-8")];
    place.run_in_group("setsid", first.iter().chain(words))
}

/// How often the reader of a terminal looks.
#[derive(Clone, Copy, PartialEq)]
pub enum Reader {
    Fast,
    /// 4 KiB each 20 ms.
    Slow,
    /// Never.
    Stopped,
}

impl Screen {
    pub fn new(reader: Reader) -> Screen {
        // Close-on-exec from the first: another test may start a child at any moment.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a pty");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a slave");
        let name = ptsname_r(&master).expect("a slave's name");
        let slave = fs::OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(name);
        let slave = OwnedFd::from(slave.expect("a slave"));
        let keyboard = File::from(OwnedFd::from(master));
        let shown = Arc::new(Mutex::new(Vec::new()));
        if reader != Reader::Stopped {
            let (mut from, into) = (keyboard.try_clone().expect("dup"), shown.clone());
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = from.read(&mut bytes) {
                    into.lock().expect("lock").extend_from_slice(&bytes[..n]);
                    if reader == Reader::Slow {
                        thread::sleep(Duration::from_millis(20));
                    }
                }
            });
        }
        Screen { keyboard, slave, shown }
    }

    pub fn slave(&self) -> Stdio {
        self.slave.try_clone().expect("dup").into()
    }

    /// Starts a program of this terminal's own session, with all three descriptors on it.
    pub fn start(&self, run: Run) -> Running {
        let mut run = run.stdin(self.slave());
        run.command.stdout(self.slave()).stderr(self.slave());
        run.start_as_is()
    }

    /// As `stty` writes them down: the C library's structure has bytes that nobody fills in.
    pub fn modes(&self) -> String {
        let out = Command::new("stty").arg("-g").stdin(self.slave()).output().expect("stty");
        String::from_utf8(out.stdout).expect("text")
    }

    pub fn type_in(&self, text: &str) {
        (&self.keyboard).write_all(text.as_bytes()).expect("type");
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("lock")).into_owned()
    }

    /// Waits until the screen shows this.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        let shown = within(Duration::from_secs(10), || self.text().contains(text));
        assert!(shown, "{text:?} is not shown: {:?}", self.text());
    }

    pub fn stty(&self, words: &[&str]) {
        let done = Command::new("stty").args(words).stdin(self.slave()).status().expect("stty");
        assert!(done.success());
    }
}
