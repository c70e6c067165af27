//! `sbx apply` and `sbx discard`: what a sandbox that has ended has changed is taken over into the host's directories, or
//! dropped.

use super::command::{command, each, flag, names, parse, state, value, values};
use super::diff::{Out, layered, upper};
use clap::Arg;
use sbx::error::{Error, Result, visible};
use sbx::host;
use sbx::host::all_ids::{self, Ids};
use sbx::host::files::{c_path, without_links};
use sbx::state::apply::{Outcome, Wanted, apply as take, may_write};
use sbx::state::changes::Sides;
use sbx::state::{Found, Layer, Record, StateDir};
use sbx::sys::fs::{self, HERE, Open};
use sbx::sys::{cred, event};
use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Runs `apply`.
pub fn apply(words: &[OsString]) -> Result<u8> {
    let asked = command(
        "apply",
        "Take over what a sandbox has changed, into the directories that its layers lie on",
        "sbx apply [--all] NAME [PATH…]",
    )
    .arg(flag("all", "Also git hooks, dotfiles, executables, set-id files and links that lead out"))
    .arg(names(1).num_args(1).help("The sandbox"))
    .arg(Arg::new("PATH").num_args(0..).help("Only these, and what lies below them"));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let name = value(&matches, "NAME").unwrap_or_default();
    let state = state(&matches)?;
    let paths = values(&matches, "PATH");
    Ok(taken(&state, name, matches.get_flag("all"), &paths).unwrap_or_else(|error| {
        super::fail(&error);
        1
    }))
}

fn taken(state: &StateDir, name: &str, all: bool, paths: &[&str]) -> Result<u8> {
    let found = ended(state, name)?;
    let record = layered(name, found.record.as_ref())?;
    let layers = on_disk(record)?;
    let caller = host::caller()?;
    let take = || {
        let locks = locks(record, &layers)?;
        let sides = opened(record, &layers)?;
        let (home, cwd) = (without_links(&caller.home), caller.cwd.clone());
        let wanted = Wanted { all, paths: Vec::new(), since: since(record, &locks), name: name.to_owned(), home, cwd };
        let status = all_layers(&sides, &wanted.paths(paths, &sides)?)?;
        if status == 0 && paths.is_empty() {
            // Nothing in them is older than this now.
            locks.iter().try_for_each(|(path, _)| fs::set_mtime(HERE, path, event::real_time())).map_err(|errno| {
                Error::Sys { doing: "note the time in".into(), on: "the lock of the layer".into(), errno }
            })?;
        }
        Ok(status)
    };
    if cred::geteuid() == 0 {
        return take();
    }
    let status = all_ids::act(Ids::AllOrOwn, "take over", &layers[0].upper, || {
        take().map_or_else(
            |error| {
                super::fail(&error);
                1
            },
            i32::from,
        )
    })?;
    Ok(status as u8)
}

/// A lock and where it lies.
type Lock = (CString, OwnedFd);

/// The locks of layers that lie in directories of the caller's own, where other sandboxes may be at work on them.
///
/// # Errors
/// `State` where one is.
fn locks(record: &Record, layers: &[Layer]) -> Result<Vec<Lock>> {
    let mut locks = Vec::new();
    for layer in layers.iter().filter(|_| record.upper.is_none()) {
        let Some(dir) = layer.upper.parent() else { continue };
        let path = c_path(&dir.join("lock"));
        let Ok(lock) = fs::openat(HERE, &path, Open::ReadWrite) else { continue };
        if fs::try_lock(lock.as_fd()) == Ok(false) {
            let why = format!("another sandbox uses {}", dir.display());
            return Err(Error::State { on: record.name.clone(), why, hint: Some("wait for it to end".into()) });
        }
        locks.push((path, lock));
    }
    Ok(locks)
}

/// When the oldest that a layer holds may have been put there: at its first use, which made its lock.
fn since(record: &Record, locks: &[Lock]) -> (i64, i64) {
    let made = locks.iter().filter_map(|(_, lock)| fs::fstat(lock.as_fd()).ok()).map(|stat| stat.mtime);
    made.chain([record.began]).min().unwrap_or(record.began)
}

/// A sandbox that has ended, and what is known of it.
fn ended(state: &StateDir, name: &str) -> Result<Found> {
    let found = state.find(name)?;
    if found.lives() {
        let hint = Some(format!("sbx stop {name}"));
        return Err(Error::State { on: name.into(), why: "it is running, and changes still".into(), hint });
    }
    Ok(found)
}

fn on_disk(record: &Record) -> Result<Vec<Layer>> {
    let layers: Vec<Layer> = record.layers.iter().filter(|layer| layer.upper.is_absolute()).cloned().collect();
    if layers.is_empty() {
        let why = "its changes were in memory, and went when it ended".to_owned();
        let hint = Some("--name NAME, --upper disk or --upper DIR keeps them".into());
        return Err(Error::State { on: record.name.clone(), why, hint });
    }
    Ok(layers)
}

fn opened(record: &Record, layers: &[Layer]) -> Result<Vec<Sides>> {
    let root = record.layers.iter().find(|layer| layer.at == Path::new("/"));
    let root = root.map_or(Path::new("/"), |layer| layer.lower.as_path());
    layers.iter().map(|layer| Sides::open(layer, upper(layer, None)?, root, &record.own)).collect()
}

/// Status 1 where something that was wanted was not taken over.
fn all_layers(layers: &[Sides], wanted: &Wanted) -> Result<u8> {
    let (mut out, mut held, mut refused) = (Out::beside(), 0, 0);
    for layer in layers {
        // Of `@host` most is root's own.
        let writable = may_write(layer);
        let mut first = true;
        let too_deep = take(layer, wanted, &mut |change, path, outcome| {
            match outcome {
                Outcome::Taken => return out.put(change, path),
                Outcome::Left => return Ok(()),
                _ if writable.is_err() && layers.len() > 1 => {
                    if std::mem::take(&mut first) {
                        super::say(&format!(
                            "left alone: what has changed in {}, which is not yours",
                            layer.at().display()
                        ));
                    }
                    return Ok(());
                }
                Outcome::Held(what) => {
                    held += 1;
                    super::say(&format!("held back: {}: {what}", visible(&path.to_string_lossy())));
                }
                Outcome::Refused(why) => {
                    refused += 1;
                    super::say(&format!("not taken over: {}: {why}", visible(&path.to_string_lossy())));
                }
            }
            Ok(())
        })?;
        if too_deep > 0 {
            refused += 1;
            super::say(&format!("not taken over: what lies in {too_deep} directories, deeper than a path can be long"));
        }
    }
    out.end()?;
    if held > 0 {
        super::say(&format!("{held} held back; when you have read them (sbx diff -p {}): --all", wanted.name));
    }
    Ok(u8::from(held + refused > 0))
}

/// Runs `discard`.
pub fn discard(words: &[OsString]) -> Result<u8> {
    let asked =
        command("discard", "Drop what sandboxes that have ended have changed", "sbx discard NAME…").arg(names(1));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let state = state(&matches)?;
    each(&values(&matches, "NAME"), |name| {
        ended(&state, name)?;
        state.discard(name)
    })
}
