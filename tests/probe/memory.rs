//! Programs that use memory, processes and processors.

use super::call;
use serde_json::{Value, json};
use std::time::Duration;

const PAGE: usize = 4096;

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| panic!("{text} is not a number"))
}

fn sleep(milliseconds: &str) {
    std::thread::sleep(Duration::from_millis(number(milliseconds) as u64));
}

/// Touches every page of so many MiB that are its own, or shared with its children.
fn touch(mib: &str, flags: i32) {
    let size = number(mib) << 20;
    // SAFETY: an anonymous mapping at an address of the kernel's choice overlaps nothing.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), size, 3, flags | libc::MAP_ANONYMOUS, -1, 0) };
    assert_ne!(base, libc::MAP_FAILED, "mmap");
    for at in (0..size).step_by(PAGE) {
        // SAFETY: inside the mapping, which is never unmapped.
        unsafe { base.cast::<u8>().add(at).write_volatile(1) };
    }
}

/// Makes so many processes; true in each of them.
fn fork(count: &str) -> bool {
    // SAFETY: one thread, so the child may do anything.
    (0..number(count)).any(|_| unsafe { libc::fork() } == 0)
}

/// Waits for all children.
fn wait() {
    // SAFETY: waits for our own children.
    while unsafe { libc::wait(std::ptr::null_mut()) } > 0 {}
}

/// `fill MIB FORKS MS`: so many more processes, each of which fills so much of its own and waits.
pub fn fill(args: &[String]) -> Value {
    let child = fork(&args[1]);
    touch(&args[0], libc::MAP_PRIVATE);
    sleep(&args[2]);
    end(child)
}

/// `inherit MIB FORKS MS`: fills so much, and then makes so many processes that have the same pages and wait.
pub fn inherit(args: &[String]) -> Value {
    touch(&args[0], libc::MAP_PRIVATE);
    let child = fork(&args[1]);
    sleep(&args[2]);
    end(child)
}

/// `shared MIB FORKS MS`: the same with memory that all of them may write.
pub fn shared(args: &[String]) -> Value {
    touch(&args[0], libc::MAP_SHARED);
    let child = fork(&args[1]);
    sleep(&args[2]);
    end(child)
}

fn end(child: bool) -> Value {
    if child {
        // SAFETY: leaves at once.
        unsafe { libc::_exit(0) }
    }
    wait();
    json!("done")
}

/// `leaderless MIB MS`: the first thread ends, and another goes on and fills so much.
pub fn leaderless(args: &[String]) -> Value {
    let (mib, time) = (args[0].clone(), args[1].clone());
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        touch(&mib, libc::MAP_PRIVATE);
        sleep(&time);
        println!("\"done\"");
        std::process::exit(0);
    });
    // SAFETY: ends this thread alone; nothing on its stack is used by the other.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    json!("still there")
}

/// `vfork MIB MS`: fills so much, and has a child that runs for that long in the same memory.
pub fn vfork(args: &[String]) -> Value {
    touch(&args[0], libc::MAP_PRIVATE);
    let mut stack = vec![0u8; 64 << 10];
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    time.tv_sec = number(&args[1]) as i64 / 1000;
    extern "C" fn child(time: *mut libc::c_void) -> i32 {
        // SAFETY: the parent passes a timespec and stands still.
        unsafe { libc::nanosleep(time.cast(), std::ptr::null_mut()) }
    }
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack and the time outlive the child, which has ended when this returns.
    let pid = unsafe { libc::clone(child, stack.as_mut_ptr_range().end.cast(), flags, (&raw mut time).cast()) };
    assert!(pid > 0, "clone");
    wait();
    json!("done")
}

/// `read FILE MS`: maps a file and reads all of it.
pub fn read(args: &[String]) -> Value {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open(&args[0]).expect("the file");
    let size = file.metadata().expect("its size").len() as usize;
    // SAFETY: a mapping at an address of the kernel's choice overlaps nothing.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), size, 1, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(base, libc::MAP_FAILED, "mmap");
    // SAFETY: inside the mapping; nobody makes the file shorter.
    let sum: u64 =
        (0..size).step_by(PAGE).map(|at| u64::from(unsafe { base.cast::<u8>().add(at).read_volatile() })).sum();
    sleep(&args[1]);
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let resident = statm.split(' ').nth(1).map_or(0, number);
    json!({ "sum": sum, "resident": resident * PAGE })
}

/// `direct FILE MIB`: reads so much past the page cache, from the file's start over and over; how much it was.
pub fn direct(args: &[String]) -> Value {
    use std::io::{Read, Seek};
    use std::os::unix::fs::OpenOptionsExt;
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&args[0]);
    let mut file = opened.expect("the file, past the page cache");
    let layout = std::alloc::Layout::from_size_align(1 << 20, PAGE).expect("a layout");
    // SAFETY: the size is not 0, and the memory is never given back.
    let buffer = unsafe { std::slice::from_raw_parts_mut(std::alloc::alloc_zeroed(layout), 1 << 20) };
    let wanted = number(&args[1]) << 20;
    let mut read = 0;
    while read < wanted {
        match file.read(buffer).expect("a read") {
            0 => file.rewind().expect("the start"),
            some => read += some,
        }
    }
    json!(read >> 20)
}

/// `bomb MS`: every process makes two, for that long; how many there were at most.
pub fn bomb(args: &[String]) -> Value {
    let end = std::time::Instant::now() + Duration::from_millis(number(&args[0]) as u64);
    let first = std::process::id();
    let mut most = 0;
    while std::time::Instant::now() < end {
        // SAFETY: one thread, so the child may do anything.
        if unsafe { libc::fork() } == -1 {
            std::thread::sleep(Duration::from_millis(5));
        }
        if std::process::id() == first {
            let names = std::fs::read_dir("/proc").into_iter().flatten().flatten();
            let all = names.filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())).count();
            most = most.max(all);
        }
    }
    if std::process::id() != first {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
    json!(most)
}

/// `segment BYTES`: makes a System V segment of that size; the error number.
pub fn segment(size: &str) -> Value {
    json!(call(libc::SYS_shmget, &[0, number(size) as i64, 0o600]).err().unwrap_or(0))
}

/// The processors that this process may use, and the error number of choosing one of them.
pub fn processors() -> Value {
    let mut mask = [0u64; 16];
    let size = size_of_val(&mask) as i64;
    call(libc::SYS_sched_getaffinity, &[0, size, mask.as_mut_ptr() as i64]).expect("sched_getaffinity");
    let may: Vec<usize> = (0..1024).filter(|cpu| mask[cpu / 64] >> (cpu % 64) & 1 == 1).collect();
    let chosen = call(libc::SYS_sched_setaffinity, &[0, size, mask.as_ptr() as i64]).err().unwrap_or(0);
    json!({ "may": may, "choose": chosen })
}

/// `buffers`: how large a socket's buffers are, before and after as much was asked for as can be; and an option of TCP's
/// that has the number of SO_RCVBUF, set to 7.
pub fn buffers() -> Value {
    // SAFETY: takes integers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    let get = |level, option| {
        let (mut value, mut length) = (0i32, 4u32);
        // SAFETY: value and its length are ours.
        let got = unsafe { libc::getsockopt(socket, level, option, (&raw mut value).cast(), &raw mut length) };
        assert_eq!(got, 0, "getsockopt");
        value
    };
    let set = |level, option, value: i32| {
        // SAFETY: the value is read only.
        unsafe { libc::setsockopt(socket, level, option, (&raw const value).cast(), 4) }
    };
    let grow = |option, force| {
        let before = get(libc::SOL_SOCKET, option);
        assert_eq!(set(libc::SOL_SOCKET, option, 1 << 24), 0);
        set(libc::SOL_SOCKET, force, 1 << 24);
        [before, get(libc::SOL_SOCKET, option)]
    };
    let [send, receive] =
        [(libc::SO_SNDBUF, libc::SO_SNDBUFFORCE), (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE)].map(|(o, f)| grow(o, f));
    set(libc::IPPROTO_TCP, libc::TCP_LINGER2, 7);
    json!({ "send": send, "receive": receive, "linger": get(libc::IPPROTO_TCP, libc::TCP_LINGER2) })
}
