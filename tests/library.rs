//! The library: Layer → Spec → Host → Plan → launch, as another program would use it. `launch` wants a process with
//! a single thread, which libtest's is not; so this file brings a main of its own (`harness = false`) and prints what
//! libtest would.

#![allow(unsafe_code)]

mod support;

use nix::sys::signal::{SigHandler, Signal, signal};
use sbx::error::Error;
use sbx::host::{self, Host};
use sbx::launch::{Ended, Event, Exit, Request, Told, launch};
use sbx::plan::plan;
use sbx::spec::layer::Count;
use sbx::spec::{Caller, Layer, Spec};
use sbx::state::StateDir;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use support::Place;

/// One sandbox through the library; what the observer heard comes in between.
fn run(rootfs: &Path, state: &Path, command: &[&str], heard: &mut Vec<String>) -> sbx::error::Result<Exit> {
    run_layer(Layer { rootfs: Some(rootfs.into()), ..Layer::default() }, state, command, heard)
}

fn run_layer(mut layer: Layer, state: &Path, command: &[&str], heard: &mut Vec<String>) -> sbx::error::Result<Exit> {
    let caller: Caller = host::caller()?;
    layer.command = command.iter().map(Into::into).collect();
    layer.program.tty = Some(false);
    let spec = Spec::resolve(&[layer], &caller)?;
    let host = Host::look(&spec, caller)?;
    let plan = plan(&spec, &host, "from-a-library")?;
    let state = StateDir::open(state)?;
    let request = Request { state: &state, told: Told::default(), exposed: Vec::new(), words: None };
    launch(&plan, &host, &request, &mut |event: &Event<'_>| heard.push(format!("{event:?}")))
}

fn a_sandbox_is_run(place: &Place) {
    let mut heard = Vec::new();
    let exit = run(&place.rootfs(), &place.state(), &["/bin/sh", "-c", "exit 7"], &mut heard).expect("a run");
    assert_eq!((exit.ended, exit.status(), exit.timed_out), (Ended::Code(7), 7, false));
    assert!(heard.iter().any(|event| event.starts_with("Started")), "{heard:?}");
    place.assert_clean();
}

fn several_runs_in_one_process(place: &Place) {
    let descriptors = || support::names(Path::new("/proc/self/fd")).len();
    let before = descriptors();
    for code in 0..20 {
        let exit = run(&place.rootfs(), &place.state(), &["sh", "-c", &format!("exit {code}")], &mut Vec::new());
        assert_eq!(exit.expect("a run").status(), code);
    }
    let exit = run(&place.rootfs(), &place.state(), &["sh", "-c", "kill -9 $$"], &mut Vec::new());
    assert_eq!(exit.expect("a run").ended, Ended::Signal(9));
    assert_eq!(before, descriptors(), "descriptors are left");
    place.assert_clean();
}

/// Mask and actions, and whether this descriptor would be closed at an exec.
fn surroundings(file: &File) -> (Vec<String>, bool) {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let of_signals = |line: &&str| ["SigBlk", "SigIgn", "SigCgt"].iter().any(|name| line.starts_with(name));
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).expect("fdinfo");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
    let closed = u32::from_str_radix(flags.trim(), 8).expect("octal") & 0o2_000_000 != 0;
    (status.lines().filter(of_signals).map(str::to_owned).collect(), closed)
}

fn the_caller_is_left_as_it_was(place: &Place) {
    let file = File::open("/").expect("open");
    sbx::sys::process::keep_open(file.as_fd()).expect("fcntl");
    // Made before any child would be lost.
    let rootfs = place.rootfs();
    let ranges = support::missing("subids").is_none();
    for how in [SigHandler::SigIgn, SigHandler::SigDfl] {
        // SAFETY: no handler is set.
        unsafe { signal(Signal::SIGCHLD, how) }.expect("signal");
        let before = surroundings(&file);
        run(&rootfs, &place.state(), &["true"], &mut Vec::new()).expect("a run");
        run(&rootfs, &place.state(), &["nothing-here"], &mut Vec::new()).expect_err("no command");
        if ranges {
            let mut layer = Layer { rootfs: Some(rootfs.clone().into()), ..Layer::default() };
            layer.identity.map = vec!["full".into()];
            run_layer(layer, &place.state(), &["true"], &mut Vec::new()).expect("a run");
        }
        assert_eq!(before, surroundings(&file));
    }
    place.assert_clean();
}

fn a_time_limit_counts_without_another_word(place: &Place) {
    let mut layer = Layer { rootfs: Some(place.rootfs().into()), ..Layer::default() };
    layer.limits.timeout = Some(Count::Text("300ms".into()));
    layer.limits.kill_after = Some(Count::Text("300ms".into()));
    let exit = run_layer(layer, &place.state(), &["sleep", "1000"], &mut Vec::new()).expect("a run");
    assert!(exit.timed_out && exit.status() == 124, "{exit:?}");
    place.assert_clean();
}

fn errors_are_values(place: &Place) {
    let error = run(&place.path("missing"), &place.state(), &["true"], &mut Vec::new()).expect_err("no root");
    assert!(matches!(&error, Error::Spec { field, .. } if field == "ROOTFS"), "{error:?}");
    let error = run(&place.rootfs(), &place.state(), &["nothing-here"], &mut Vec::new()).expect_err("no command");
    assert!(matches!(&error, Error::Command { command, .. } if command == "nothing-here"), "{error:?}");
    assert_eq!(error.exit_status(), 127);
    place.assert_clean();
}

fn a_second_thread_is_refused(place: &Place) {
    let (go, wait) = channel::<()>();
    let other = std::thread::spawn(move || wait.recv());
    let error = run(&place.rootfs(), &place.state(), &["true"], &mut Vec::new()).expect_err("two threads");
    assert!(matches!(&error, Error::Unsupported { why, .. } if why.contains("more than one thread")), "{error:?}");
    drop(go);
    let _ = other.join();
    place.assert_clean();
    // The thread is gone and all is well again.
    let exit = run(&place.rootfs(), &place.state(), &["true"], &mut Vec::new()).expect("a run");
    assert_eq!(exit.status(), 0);
    place.assert_clean();
}

type Case = (&'static str, fn(&Place));

fn main() -> ExitCode {
    let cases: [Case; 6] = [
        ("a_sandbox_is_run", a_sandbox_is_run),
        ("several_runs_in_one_process", several_runs_in_one_process),
        ("the_caller_is_left_as_it_was", the_caller_is_left_as_it_was),
        ("a_time_limit_counts_without_another_word", a_time_limit_counts_without_another_word),
        ("errors_are_values", errors_are_values),
        ("a_second_thread_is_refused", a_second_thread_is_refused),
    ];
    // The options of libtest that `cargo test` and `tests/run` use; what is left filters.
    let words: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let chosen: Vec<Case> = cases.into_iter().filter(|(name, _)| chosen(name)).collect();
    if words.iter().any(|word| word == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let (mut passed, mut skipped) = (0, Vec::new());
    for (name, case) in chosen {
        // A failed assertion ends the process: `panic = "abort"` or not, the child must never unwind into here.
        let place = Place::new();
        if let Some(reason) = support::missing("userns") {
            skipped.push(format!("SKIP {name}: {reason}"));
        } else {
            case(&place);
        }
        println!("test {name} ... ok");
        passed += 1;
    }
    if !skipped.is_empty() {
        println!("\nsuccesses:\n");
        skipped.iter().for_each(|line| println!("---- {line} ----\n{line}"));
    }
    println!("\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    ExitCode::SUCCESS
}
