//! Callers with odd properties: each sets something up and executes what follows `--`.

use super::call;
use serde_json::Value;
use std::ffi::CString;
use std::os::fd::IntoRawFd;
use std::os::unix::process::CommandExt;

fn go_on(args: &[String]) -> Value {
    let at = args.iter().position(|a| a == "--").expect("-- COMMAND");
    let error = std::process::Command::new(&args[at + 1]).args(&args[at + 2..]).exec();
    panic!("{}: {error}", args[at + 1]);
}

/// `hold COUNT -- COMMAND`: with that many descriptors open that are not close-on-exec: directories, files, `O_PATH`
/// places, sockets, pidfds, pipes.
pub fn hold(args: &[String]) -> Value {
    let count: u32 = args[0].parse().expect("a number");
    // What the tests' own caller left open would shift the numbers.
    call(libc::SYS_close_range, &[3, u32::MAX.into(), 0]).expect("close_range");
    for n in 0..count {
        let root = c"/".as_ptr() as i64;
        let fd = match n % 6 {
            0 => call(libc::SYS_openat, &[-100, root, libc::O_DIRECTORY.into()]),
            1 => call(libc::SYS_openat, &[-100, root, libc::O_PATH.into()]),
            2 => call(libc::SYS_socket, &[1, 1, 0]),
            3 => call(libc::SYS_pidfd_open, &[std::process::id().into(), 0]),
            4 => call(libc::SYS_openat, &[-100, c"/etc/passwd".as_ptr() as i64, libc::O_RDONLY.into()]),
            _ => std::io::pipe().map(|(from, _)| i64::from(from.into_raw_fd())).map_err(|_| 0),
        };
        // pidfds and pipes of the standard library are close-on-exec.
        call(libc::SYS_fcntl, &[fd.expect("a descriptor"), libc::F_SETFD.into(), 0]).expect("fcntl");
    }
    go_on(args)
}

/// `keyring NAME -- COMMAND`: in a new session keyring that holds a key of this name.
pub fn keyring(args: &[String]) -> Value {
    let name = CString::new(args[0].as_str()).expect("no NUL");
    call(libc::SYS_keyctl, &[1, 0]).expect("a session keyring");
    let (kind, secret) = (c"user", b"canary");
    let key = [kind.as_ptr() as i64, name.as_ptr() as i64, secret.as_ptr() as i64, secret.len() as i64, -3];
    call(libc::SYS_add_key, &key).expect("a key");
    go_on(args)
}

/// `flip A B`: exchanges two names for ever, until it is killed or its parent is gone.
pub fn flip(args: &[String]) -> Value {
    const RENAME_EXCHANGE: i64 = 2;
    let path = |n: usize| CString::new(args[n].as_str()).expect("no NUL");
    let (a, b) = (path(0), path(1));
    call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG.into(), libc::SIGKILL.into()]).expect("prctl");
    loop {
        let names = [-100, a.as_ptr() as i64, -100, b.as_ptr() as i64, RENAME_EXCHANGE];
        call(libc::SYS_renameat2, &names).expect("renameat2");
    }
}
