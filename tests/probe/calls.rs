//! What the kernel answers.

use super::{call, in_child};
use serde_json::{Map, Value, json};
use std::ffi::CString;
use std::os::raw::c_long;

/// Each argument is one call, "NUMBER ARG…", made in a process of its own; an argument of it is a number, `s:TEXT`
/// for a string, `p` for a zeroed buffer, or `v` for an iovec of it. The answer is 0 for a success, an error number, or 1000 + a signal.
pub fn calls(texts: &[String]) -> Value {
    let outcome = |text: &String| in_child(|| one(text).err().unwrap_or(0));
    Value::Object(texts.iter().map(|text| (text.clone(), json!(outcome(text)))).collect())
}

fn one(text: &str) -> Result<c_long, i32> {
    let mut words = text.split(' ');
    let number = parse(words.next().unwrap_or(""));
    let strings: Vec<CString> =
        words.clone().map(|w| CString::new(w.strip_prefix("s:").unwrap_or("")).expect("no NUL")).collect();
    let mut buffer = [0u64; 512];
    let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 8 };
    let args: Vec<c_long> = words
        .enumerate()
        .map(|(n, word)| match word {
            "p" => buffer.as_mut_ptr() as c_long,
            "v" => &raw const vector as c_long,
            _ if word.starts_with("s:") => strings[n].as_ptr() as c_long,
            _ => parse(word),
        })
        .collect();
    call(number, &args)
}

fn parse(word: &str) -> c_long {
    let number = match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).map(|n| n as c_long).ok(),
        None => word.parse().ok(),
    };
    number.unwrap_or_else(|| panic!("{word} is not a number"))
}

/// Families × types × protocols of socket(2): `[family, type, protocol, error number]` of what is not EPERM.
pub fn sockets() -> Value {
    let mut other = Vec::new();
    let mut count = 0;
    for family in 0..=45 {
        for kind in [1, 2, 3, 5] {
            let protocols = if family == libc::AF_NETLINK { 0..=22 } else { 0..=1 };
            for protocol in protocols {
                count += 1;
                let answer = call(libc::SYS_socket, &[family.into(), kind, protocol]);
                let errno = answer.map(|fd| call(libc::SYS_close, &[fd])).err().unwrap_or(0);
                if errno != libc::EPERM {
                    other.push(json!([family, kind, protocol, errno]));
                }
            }
        }
    }
    json!({ "tried": count, "not EPERM": other })
}

/// getpid of i386, by `int 0x80`.
pub fn i386() -> Value {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: getpid takes nothing and changes nothing but eax; r8 to r11 may be lost.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") 20 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    json!("alive")
}

/// getpid of x32.
pub fn x32() -> Value {
    json!(call(0x4000_0000 + libc::SYS_getpid, &[]).err().unwrap_or(0))
}

/// Connects to an abstract Unix socket; the error number, 0 for success.
pub fn abstract_socket(name: &str) -> Value {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let address = SocketAddr::from_abstract_name(name).expect("a socket name");
    json!(UnixStream::connect_addr(&address).err().map_or(0, |e| e.raw_os_error().unwrap_or(-1)))
}

/// `forks MOST UID…`: as each user, makes processes that wait, until the kernel refuses or there are MOST: how many.
pub fn forks(args: &[String]) -> Value {
    let most: u32 = args[0].parse().expect("a number");
    let mut made = Map::new();
    for uid in &args[1..] {
        let number: u32 = uid.parse().expect("a user id");
        let (mut from, to) = std::io::pipe().expect("a pipe");
        // SAFETY: one thread; the child leaves by _exit or waits for the end of the sandbox.
        if unsafe { libc::fork() } == 0 {
            let count = if number == 0 || call(libc::SYS_setuid, &[number.into()]).is_ok() { fill(most) } else { 9999 };
            use std::io::Write;
            let _ = (&to).write_all(&count.to_ne_bytes());
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        }
        drop(to);
        let mut count = [0; 4];
        let told = std::io::Read::read_exact(&mut from, &mut count).is_ok();
        made.insert(uid.clone(), json!(if told { u32::from_ne_bytes(count) as i64 } else { -1 }));
    }
    Value::Object(made)
}

fn fill(most: u32) -> u32 {
    for count in 0..most {
        // SAFETY: one thread; the child only waits.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            },
            -1 => return count,
            _ => {}
        }
    }
    most
}

/// Becomes another user and says who it is.
pub fn setuid(uid: &str) -> Value {
    let errno = call(libc::SYS_setuid, &[parse(uid)]).err().unwrap_or(0);
    // SAFETY: takes nothing.
    json!({ "errno": errno, "uid": unsafe { libc::geteuid() } })
}

/// `deep COUNT`: makes that many directories, each in the last, from here.
pub fn deep(count: &str) -> Value {
    let count: u32 = count.parse().expect("a number");
    for _ in 0..count {
        std::fs::create_dir("d").and_then(|()| std::env::set_current_dir("d")).expect("one more directory");
    }
    json!(count)
}
