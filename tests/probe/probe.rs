//! The probe of the kernel tests: says as JSON what it finds where it runs. `probe NAME ARGS…`
//!
//! Static, so that it runs in any root file system; the tests bind it to /probe. Those of its names that end by
//! executing what follows `--` are callers with odd properties, for the outside.

#![allow(unsafe_code)]

mod callers;
mod calls;
mod facts;
mod memory;

use serde_json::Value;
use std::os::raw::c_long;

fn main() {
    let args: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let Some((name, args)) = args.split_first() else { panic!("probe NAME ARGS…") };
    let facts: Value = match name.as_str() {
        "host" => facts::host(),
        "self" => facts::own(),
        "pids" => facts::pids(),
        "list" => facts::list(&args[0]),
        "calls" => calls::calls(args),
        "sockets" => calls::sockets(),
        "i386" => calls::i386(),
        "x32" => calls::x32(),
        "abstract" => calls::abstract_socket(&args[0]),
        "forks" => calls::forks(args),
        "setuid" => calls::setuid(&args[0]),
        "deep" => calls::deep(&args[0]),
        "fill" => memory::fill(args),
        "inherit" => memory::inherit(args),
        "shared" => memory::shared(args),
        "leaderless" => memory::leaderless(args),
        "vfork" => memory::vfork(args),
        "read" => memory::read(args),
        "direct" => memory::direct(args),
        "bomb" => memory::bomb(args),
        "segment" => memory::segment(&args[0]),
        "buffers" => memory::buffers(),
        "processors" => memory::processors(),
        "hold" => callers::hold(args),
        "keyring" => callers::keyring(args),
        "flip" => callers::flip(args),
        _ => panic!("no probe {name}"),
    };
    println!("{facts}");
}

/// One system call by number; its value, or the error number.
fn call(number: c_long, args: &[c_long]) -> Result<c_long, i32> {
    let arg = |n: usize| args.get(n).copied().unwrap_or(0);
    // SAFETY: only calls whose pointers the callers keep valid, or that are meant to be refused, come here.
    let value = unsafe { libc::syscall(number, arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)) };
    if value == -1 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(value) }
}

/// Runs `child` in a process of its own and waits for it: its exit status, or 1000 + N when signal N killed it.
fn in_child(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: this program has a single thread, so the child may do anything.
    match unsafe { libc::fork() } {
        // SAFETY: leaves at once.
        0 => unsafe { libc::_exit(child()) },
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        pid => {
            let mut status = 0;
            // SAFETY: waits for our own child, into our own variable.
            unsafe { libc::waitpid(pid, &mut status, 0) };
            if libc::WIFSIGNALED(status) { 1000 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
        }
    }
}
