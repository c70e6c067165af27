//! The library: Layer → Spec → Host → Plan → launch, as another program would use it. `launch` wants a process with
//! a single thread, which libtest's is not; so this file brings a main of its own (`harness = false`) and prints what
//! libtest would.

mod support;

use sbx::error::Error;
use sbx::host::{self, Host};
use sbx::launch::{Ended, Event, Exit, Limits, Request, Told, launch};
use sbx::plan::plan;
use sbx::spec::{Caller, Layer, Spec};
use sbx::state::StateDir;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::Duration;
use support::Place;

/// One sandbox through the library; what the observer heard comes in between.
fn run(rootfs: &Path, state: &Path, command: &[&str], heard: &mut Vec<String>) -> sbx::error::Result<Exit> {
    let caller: Caller = host::caller()?;
    let mut layer = Layer { rootfs: Some(rootfs.into()), ..Layer::default() };
    layer.command = command.iter().map(Into::into).collect();
    layer.program.tty = Some(false);
    let spec = Spec::resolve(&[layer], &caller)?;
    let host = Host::look(&spec, caller)?;
    let plan = plan(&spec, &host, "from-a-library")?;
    let state = StateDir::open(state)?;
    let request = Request {
        state: &state,
        limits: Limits { timeout: Some((Duration::from_secs(30), Duration::from_secs(1))) },
        labels: Default::default(),
        told: Told::default(),
    };
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
    let cases: [Case; 4] = [
        ("a_sandbox_is_run", a_sandbox_is_run),
        ("several_runs_in_one_process", several_runs_in_one_process),
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
