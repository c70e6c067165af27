//! `sbx diff`: what the program of a sandbox has changed in its root.

use super::command::{command, flag, names, parse, state, value};
use super::exec::handles;
use sbx::error::{Error, Result, visible};
use sbx::host::all_ids::{self, Ids};
use sbx::host::files::c_path;
use sbx::launch::{Handles, STORE, USER};
use sbx::state::changes::{Change, Changed, Side, Sides};
use sbx::state::control::Request;
use sbx::state::{Found, Layer, Record, StateDir};
use sbx::sys::fs::{self, HERE, Open};
use sbx::sys::{ENOENT, cred, process};
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Runs the subcommand.
pub fn diff(words: &[OsString]) -> Result<u8> {
    let asked = command(
        "diff",
        "List what a sandbox's program has added (A), changed (C) and deleted (D)",
        "sbx diff [-p] NAME [--json]",
    )
    .arg(flag("patch", "Show what has changed in texts, as unified diffs").short('p').conflicts_with("json"))
    .arg(flag("json", "One JSON document: an array of objects with path and kind"))
    .arg(names(1).num_args(1).help("The sandbox"));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let name = value(&matches, "NAME").unwrap_or_default();
    let state = state(&matches)?;
    let out = Out { patch: matches.get_flag("patch"), ..Out::new(matches.get_flag("json")) };
    Ok(of(&state, name, out).unwrap_or_else(|error| {
        super::fail(&error);
        1
    }))
}

fn of(state: &StateDir, name: &str, out: Out) -> Result<u8> {
    let found = state.find(name)?;
    if !found.lives() {
        return ended(&found, out);
    }
    let handles = match handles(&found, Request::Look) {
        // It has ended meanwhile.
        Err(_) if !found.is_held() => return ended(&state.find(name)?, out),
        other => other?,
    };
    // Of one that had just begun there was no record before that.
    let record = state.find(name)?.record;
    let record = layered(name, record.as_ref())?;
    let missing = || Error::Bug("a supervisor handed out less than all".into());
    if cred::geteuid() != 0 {
        // As the program's own user inside one may read whatever modes it has given its files.
        let user = handles.fd(USER).ok_or_else(missing)?;
        let fail = |errno| Error::Sys { doing: "enter the user namespace of".into(), on: name.into(), errno };
        process::not_dumpable().and_then(|()| process::setns(user, process::Namespaces::USER)).map_err(fail)?;
    }
    show(record, &record.layers, Some(&handles), out)
}

/// Of one that has ended: what lies on disk.
fn ended(found: &Found, out: Out) -> Result<u8> {
    let record = layered(&found.name, found.record.as_ref())?;
    let (disk, memory): (Vec<Layer>, Vec<Layer>) =
        record.layers.iter().cloned().partition(|layer| layer.upper.is_absolute());
    if disk.is_empty() {
        let why = "its changes were in memory, and went when it ended".to_owned();
        let hint = Some("--name NAME, --upper disk or --upper DIR keeps them".into());
        return Err(Error::State { on: found.name.clone(), why, hint });
    }
    for layer in memory {
        super::say(&format!("the changes of {} were in memory, and went when it ended", layer.at.display()));
    }
    if cred::geteuid() == 0 {
        return show(record, &disk, None, out);
    }
    let status = all_ids::act(Ids::AllOrOwn, "read", &disk[0].upper, || {
        show(record, &disk, None, out).map_or_else(
            |error| {
                super::fail(&error);
                1
            },
            i32::from,
        )
    })?;
    Ok(status as u8)
}

pub(super) fn layered<'a>(name: &str, record: Option<&'a Record>) -> Result<&'a Record> {
    let fail = |why: &str, hint: Option<&str>| Error::State {
        on: name.into(),
        why: why.into(),
        hint: hint.map(str::to_owned),
    };
    match record {
        None => Err(fail("it has no record that can be read", None)),
        Some(record) if record.layers.is_empty() && record.keeps => Err(fail("its changes were discarded", None)),
        Some(record) if record.layers.is_empty() => {
            Err(fail("there is no layer with its changes: it writes into ROOTFS itself", Some("sbx run without --rw")))
        }
        Some(record) => Ok(record),
    }
}

fn show(record: &Record, layers: &[Layer], handles: Option<&Handles>, mut out: Out) -> Result<u8> {
    let root = record.layers.iter().find(|layer| layer.at == Path::new("/"));
    let root = root.map_or(Path::new("/"), |layer| layer.lower.as_path());
    let mut left_out = 0;
    let mut all = Vec::new();
    for layer in layers {
        let upper = upper(layer, handles)?;
        let sides = Sides::open(layer, upper, root, &record.own)?;
        left_out += match layers {
            _ if out.patch => sides.tell(&mut |change, path| {
                out.put(change, path)?;
                out.texts(path, sides.contents(path, LONGEST_TEXT))
            })?,
            [_] => sides.tell(&mut |change, path| out.put(change, path))?,
            _ => sides.tell(&mut |change, path| {
                all.push((path.to_owned(), change));
                Ok(())
            })?,
        };
    }
    all.sort();
    all.iter().try_for_each(|(path, change)| out.put(*change, path))?;
    out.end()?;
    if left_out > 0 {
        super::say(&format!(
            "not listed: what lies in {left_out} added directories, deeper than a path can be long (4096 bytes)"
        ));
    }
    Ok(0)
}

pub(super) fn upper(layer: &Layer, handles: Option<&Handles>) -> Result<std::os::fd::OwnedFd> {
    let path = c_path(&layer.upper);
    let opened = match handles.and_then(|handles| handles.fd(STORE)) {
        // No link on the way: the program may have put one there.
        _ if layer.upper.is_absolute() && layer.below.is_some() => {
            let below = layer.upper.strip_prefix("/").unwrap_or(&layer.upper);
            fs::openat(HERE, c"/", Open::Directory)
                .and_then(|top| fs::open_beneath(top.as_fd(), &c_path(below), Open::Directory))
        }
        _ if layer.upper.is_absolute() => fs::openat(HERE, &path, Open::Directory),
        Some(store) => fs::open_beneath(store.as_fd(), &path, Open::Directory),
        None => Err(ENOENT),
    };
    opened.map_err(|errno| Error::Sys {
        doing: "open the layer".into(),
        on: visible(&layer.upper.to_string_lossy()),
        errno,
    })
}

/// Bytes of a text that is compared line by line.
const LONGEST_TEXT: usize = 1 << 20;
/// How many lines around a change are shown.
const AROUND: usize = 3;

/// Where changes are written, as lines or as one JSON array.
pub(super) struct Out {
    json: bool,
    /// Whether texts are shown too.
    patch: bool,
    begun: bool,
    /// Whether the output is all that is wanted.
    only: bool,
    text: Vec<u8>,
}

impl Out {
    /// Bytes that are written at a time.
    const PIECE: usize = 64 << 10;

    pub(super) fn new(json: bool) -> Out {
        Out { json, patch: false, begun: false, only: true, text: Vec::new() }
    }

    /// Of a command that does something besides.
    pub(super) fn beside() -> Out {
        Out { only: false, ..Out::new(false) }
    }

    pub(super) fn put(&mut self, change: Change, path: &Path) -> Result<()> {
        if self.json {
            self.text.extend_from_slice(if self.begun { b",\n  " } else { b"[\n  " });
            let changed = Changed { path: path.to_owned(), kind: change };
            self.text.extend(serde_json::to_vec(&changed).map_err(|error| Error::Bug(error.to_string()))?);
        } else {
            let letter = match change {
                Change::Added => 'A',
                Change::Changed => 'C',
                Change::Deleted => 'D',
            };
            self.text.extend_from_slice(format!("{letter} {}\n", shown(path)).as_bytes());
        }
        self.begun = true;
        if self.text.len() > Out::PIECE { self.write() } else { Ok(()) }
    }

    pub(super) fn end(&mut self) -> Result<()> {
        if self.json {
            self.text.extend_from_slice(if self.begun { b"\n]\n" } else { b"[]\n" });
        }
        self.write()
    }

    /// What stood there before and after: the mode where it has changed, and texts.
    fn texts(&mut self, path: &Path, sides: [Side; 2]) -> Result<()> {
        let [before, after] = &sides;
        if let (Some(old), Some(new)) = (before.mode, after.mode)
            && old != new
        {
            self.text.extend_from_slice(format!("old mode {old:04o}\nnew mode {new:04o}\n").as_bytes());
        }
        if sides.iter().all(|side| side.content.is_none()) {
            return self.write();
        }
        if sides.iter().any(|side| side.mode.is_some() && side.content.is_none()) {
            self.text.extend_from_slice(b"Not shown: no file, or one of more than 1 MiB\n");
            return self.write();
        }
        let text = |side: &Side| String::from_utf8(side.content.clone().unwrap_or_default());
        let (Ok(one), Ok(other)) = (text(before), text(after)) else {
            self.text.extend_from_slice(b"Binary files differ\n");
            return self.write();
        };
        let label = |side: &Side, letter: &str| match side.content {
            None => "/dev/null".to_owned(),
            Some(_) => format!("{letter}{}", shown(path)),
        };
        let diff = similar::TextDiff::from_lines(&one, &other);
        let mut unified = diff.unified_diff();
        unified.context_radius(AROUND).header(&label(before, "a"), &label(after, "b"));
        // What a program has written may steer a terminal.
        for line in unified.to_string().lines() {
            self.text.extend_from_slice(visible_line(line).as_bytes());
            self.text.push(b'\n');
        }
        self.write()
    }

    /// A reader that has gone wants no more; where something is done besides, that goes on.
    fn write(&mut self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        match out.write_all(&self.text).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe && self.only => process::exit_now(0),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.text.clear();
                Ok(())
            }
            Err(error) => {
                Err(Error::Sys { doing: "write to".into(), on: "standard output".into(), errno: error.into() })
            }
            Ok(()) => {
                self.text.clear();
                Ok(())
            }
        }
    }
}

/// A line of a text: tabs stay.
fn visible_line(line: &str) -> String {
    line.split('\t').map(visible).collect::<Vec<_>>().join("\t")
}

/// A path in one line, with what steers terminals and what is no UTF-8 written out.
fn shown(path: &Path) -> String {
    path.as_os_str().as_bytes().utf8_chunks().fold(String::new(), |mut text, chunk| {
        text.push_str(&visible(chunk.valid()));
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_in_its_line() {
        use std::os::unix::ffi::OsStringExt;
        use std::path::PathBuf;
        let odd = PathBuf::from(OsString::from_vec(b"/a\nb\x1b[31m\xff\xc3\xbc".to_vec()));
        assert_eq!(shown(&odd), "/a\\nb\\u{1b}[31m\\xff\u{fc}");
    }
}
