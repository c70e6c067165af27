//! A sandbox in the background, as the tests of `run --detach` and `logs` use it. Each ends its own by killing the
//! supervisor that its record names, and looks that all is gone.

use super::{Done, Place, kill, soon};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

pub struct Detached<'a> {
    pub place: &'a Place,
    pub name: String,
}

impl Place {
    /// `sbx run -d` with these words, to be looked at.
    pub fn sbx_detach<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Done {
        let words = words.into_iter().map(|w| w.as_ref().to_owned());
        self.sbx_run([OsString::from("-d")].into_iter().chain(words)).done()
    }

    /// `sbx run -d OPTIONS ROOTFS sh -c SCRIPT`, which has to start.
    #[track_caller]
    pub fn detach(&self, options: &[&str], script: &str) -> Detached<'_> {
        let words = options.iter().map(OsString::from);
        let rest = [self.rootfs().into(), "sh".into(), "-c".into(), OsString::from(script)];
        let done = self.sbx_detach(words.chain(rest)).exits(0);
        assert_eq!(done.err, "", "a start says nothing");
        let text = done.text();
        let name = text.strip_suffix('\n').filter(|name| !name.is_empty() && !name.contains('\n'));
        Detached { place: self, name: name.unwrap_or_else(|| panic!("no name: {text:?}")).to_owned() }
    }
}

impl Detached<'_> {
    pub fn dir(&self) -> PathBuf {
        self.place.state().join(&self.name)
    }

    pub fn record(&self) -> Value {
        let text = std::fs::read(self.dir().join("record.json")).expect("a record");
        serde_json::from_slice(&text).expect("JSON of a record")
    }

    pub fn supervisor(&self) -> i32 {
        self.record()["supervisor_pid"].as_i64().expect("a pid") as i32
    }

    /// Waits for its end; the record of that.
    #[track_caller]
    pub fn ended(&self) -> Value {
        assert!(soon(|| self.record()["state"] == "exited"), "has not ended: {}", self.record());
        self.record()
    }

    pub fn logs(&self, options: &[&str]) -> Done {
        self.place.sbx(["logs"].iter().chain(options).chain(&[self.name.as_str()])).done()
    }

    /// What it has written by now, once the log shows this.
    #[track_caller]
    pub fn shows(&self, text: &str) -> String {
        let mut shown = String::new();
        let seen = soon(|| {
            shown = self.logs(&[]).text();
            shown.contains(text)
        });
        assert!(seen, "{text:?} is not logged: {shown:?}");
        shown
    }

    /// Another command, which clears what is left.
    pub fn sweep(&self) {
        self.place.sbx(["logs", &self.name]).done();
    }

    /// Kills the supervisor, of which nothing may be left then, and forgets the sandbox.
    #[track_caller]
    pub fn end(self) {
        if self.record()["state"] != "exited" {
            kill(self.supervisor(), "KILL");
        }
        self.place.assert_no_processes();
        self.forget();
    }

    /// Forgets a sandbox that has ended.
    pub fn forget(self) {
        self.place.sbx(["rm", &self.name]).done().exits(0);
    }
}
