//! What a call is about, and whether the sandbox is what refuses it: read from the memory and the places of who makes it.
//!
//! Nothing here decides what is allowed. Where the policy denies, the answer is the policy's; else the kernel is what
//! answers, or its own answer is given early, where no other is possible.
//!
//! A program can try the same a million times, so nothing here takes from the heap, which gives nothing back.

use super::seen::{Places, file};
use crate::plan::bpf::Action;
use crate::plan::explain::Why;
use crate::plan::{Plan, Step};
use crate::spec::access::Capabilities;
use crate::sys::fs::{self, HERE, Kind, Open};
use crate::sys::notify::{Call, read_memory};
use crate::sys::{EACCES, ENOENT, Errno};
use std::ffi::CStr;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

/// What is known of the sandbox.
pub(super) struct Facts<'a> {
    plan: &'a Plan,
    offline: bool,
    pub(super) files: bool,
    /// The caller's home and directory, as they are to be learned of.
    pub(super) learns: Option<(&'a [u8], &'a [u8])>,
    held: Capabilities,
    /// Where paths inside are the same outside: `@host`.
    pub(super) is_host: bool,
}

/// What to answer, and what to tell.
pub(super) struct Found {
    /// `None` lets the kernel answer.
    pub answer: Option<Errno>,
    /// What was refused, or is about to be.
    pub refused: Option<Refused>,
}

/// What refuses a call, with which answer.
pub(super) struct Refused {
    /// On what.
    pub object: Text,
    pub errno: u16,
    pub why: Why,
    /// Whether the answer is given here: nothing else can come of it.
    pub early: bool,
}

/// Bytes of the longest path, with the one that ends it.
pub(super) const PATH_MAX: usize = 4096;

/// A text of at most a path's length; what is longer loses its end.
pub(super) struct Text {
    pub(super) bytes: [u8; PATH_MAX],
    pub(super) length: usize,
}

impl Text {
    pub(super) fn new() -> Text {
        Text { bytes: [0; PATH_MAX], length: 0 }
    }

    fn of(text: &str) -> Text {
        let mut made = Text::new();
        made.push(text.as_bytes());
        made
    }

    pub(super) fn formatted(what: fmt::Arguments<'_>) -> Text {
        let mut made = Text::new();
        let _ = made.write_fmt(what);
        made
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        // The last byte stays 0.
        let taken = &bytes[..bytes.len().min(PATH_MAX - 1 - self.length)];
        self.bytes[self.length..self.length + taken.len()].copy_from_slice(taken);
        self.length += taken.len();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(super) fn as_c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    pub(super) fn starts_with_slash(&self) -> bool {
        self.bytes().first() == Some(&b'/')
    }

    /// The directory that a path names something in.
    pub(super) fn parent(&self) -> Option<Text> {
        let end = self.bytes().iter().rposition(|byte| *byte == b'/')?;
        let mut parent = Text::new();
        parent.push(&self.bytes()[..end.max(1)]);
        Some(parent)
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

const ENETUNREACH: u16 = 101;
const ECONNREFUSED: u16 = 111;
const NET_BIND_SERVICE: u8 = 10;
const NET_RAW: u8 = 13;
const SYS_CHROOT: u8 = 18;

impl<'a> Facts<'a> {
    pub(super) fn of(plan: &'a Plan) -> Facts<'a> {
        let heard = plan.heard.as_ref();
        let held = plan.steps.iter().find_map(|p| match p.step {
            Step::Capabilities(held) => Some(held),
            _ => None,
        });
        Facts {
            plan,
            offline: heard.is_some_and(|heard| heard.offline),
            files: heard.is_some_and(|heard| heard.files),
            learns: heard
                .and_then(|heard| heard.learns.as_ref())
                .map(|(home, cwd)| (home.as_os_str().as_bytes(), cwd.as_os_str().as_bytes())),
            held: held.unwrap_or_default(),
            is_host: plan.root == "@host",
        }
    }
}

/// Looks at a call of this name, which the policy answers so.
pub(super) fn look(facts: &Facts<'_>, call: &Call, name: Option<&'static str>, action: Action) -> Found {
    let refused = match (action, name) {
        (Action::Errno(errno), _) if errno != 0 => {
            let object = name.map_or_else(Text::new, |name| about(name, call));
            Some(Refused { object, errno, why: Why::Policy, early: true })
        }
        (_, Some("connect")) => connect(facts, call, call.args[1], call.args[2]),
        (_, Some("sendto")) => connect(facts, call, call.args[4], call.args[5]),
        (_, Some(name)) => by_capability(facts, name, call).or_else(|| file(facts, name, call)),
        _ => None,
    };
    let answer = refused.as_ref().filter(|refused| refused.early).map(|refused| Errno(refused.errno.into()));
    Found { answer, refused }
}

/// The name of a process as the kernel has it.
pub(super) fn comm(pid: i32) -> [u8; 16] {
    let mut name = [0; 16];
    let file = fs::openat(HERE, Text::formatted(format_args!("/proc/{pid}/comm")).as_c(), Open::Read);
    let read = file.and_then(|file| fs::read(file.as_fd(), &mut name)).unwrap_or(0);
    name[..read].iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = 0);
    name
}

/// Bytes of another process, also where they lie in two pages; returns how many there are.
fn memory(pid: i32, address: u64, into: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < into.len() {
        match address.checked_add(filled as u64).map(|at| read_memory(pid, at, &mut into[filled..])) {
            Some(Ok(count)) if count > 0 => filled += count,
            _ => break,
        }
    }
    filled
}

/// A C string of another process.
pub(super) fn text(pid: i32, address: u64) -> Option<Text> {
    let (mut found, mut buffer) = (Text::new(), [0; PATH_MAX]);
    while address != 0 && found.length < PATH_MAX - 1 {
        let count = read_memory(pid, address.checked_add(found.length as u64)?, &mut buffer).ok()?;
        let end = buffer[..count].iter().position(|byte| *byte == 0);
        found.push(&buffer[..end.unwrap_or(count)]);
        if end.is_some() {
            return Some(found);
        }
    }
    None
}

/// Which argument of a call that a policy may deny is a path, or another text.
const TEXTS: [(&str, usize); 27] = [
    ("acct", 0),
    ("chmod", 0),
    ("chroot", 0),
    ("creat", 0),
    ("fchmodat", 1),
    ("fchmodat2", 1),
    ("fsopen", 0),
    ("link", 1),
    ("linkat", 3),
    ("mkdir", 0),
    ("mkdirat", 1),
    ("mknod", 0),
    ("mknodat", 1),
    ("mount", 1),
    ("move_mount", 3),
    ("name_to_handle_at", 1),
    ("open", 0),
    ("open_tree", 1),
    ("openat", 1),
    ("pivot_root", 0),
    ("rename", 1),
    ("setdomainname", 0),
    ("sethostname", 0),
    ("swapoff", 0),
    ("swapon", 0),
    ("umount2", 0),
    ("unlinkat", 1),
];

const FAMILIES: [(u64, &str); 17] = [
    (0, "AF_UNSPEC"),
    (1, "AF_UNIX"),
    (2, "AF_INET"),
    (4, "AF_IPX"),
    (5, "AF_APPLETALK"),
    (9, "AF_X25"),
    (10, "AF_INET6"),
    (15, "AF_KEY"),
    (16, "AF_NETLINK"),
    (17, "AF_PACKET"),
    (21, "AF_RDS"),
    (29, "AF_CAN"),
    (30, "AF_TIPC"),
    (31, "AF_BLUETOOTH"),
    (38, "AF_ALG"),
    (40, "AF_VSOCK"),
    (44, "AF_XDP"),
];

const NAMESPACES: [(u64, &str); 8] = [
    (0x0002_0000, "mount"),
    (0x0200_0000, "cgroup"),
    (0x0400_0000, "uts"),
    (0x0800_0000, "ipc"),
    (0x1000_0000, "user"),
    (0x2000_0000, "pid"),
    (0x4000_0000, "net"),
    (0x0000_0080, "time"),
];

/// What a denied call is about, in a word or two.
fn about(name: &str, call: &Call) -> Text {
    let args = &call.args;
    match name {
        "socket" if args[0] as u32 == 16 => Text::formatted(format_args!("AF_NETLINK, protocol {}", args[2] as u32)),
        "socket" | "socketpair" => {
            let family = args[0] as u32;
            match FAMILIES.iter().find(|(number, _)| *number == u64::from(family)) {
                Some((_, name)) => Text::of(name),
                None => Text::formatted(format_args!("family {family}")),
            }
        }
        "clone" | "unshare" => {
            // Of clone the lowest byte is a signal.
            let flags = args[0] & if name == "clone" { !0xFF } else { u64::MAX };
            let mut made = Text::new();
            for (_, name) in NAMESPACES.iter().filter(|(bit, _)| flags & bit != 0) {
                made.push(if made.length > 0 { b", " } else { b"" });
                made.push(name.as_bytes());
            }
            made
        }
        "ioctl" => match args[1] as u32 {
            0x5412 => Text::of("TIOCSTI"),
            0x541C => Text::of("TIOCLINUX"),
            other => Text::formatted(format_args!("{other:#x}")),
        },
        "personality" => Text::formatted(format_args!("{:#x}", args[0])),
        "prctl" | "keyctl" | "ptrace" | "bpf" => Text::formatted(format_args!("operation {}", args[0] as u32)),
        _ => {
            let place = TEXTS.iter().find(|(known, _)| *known == name).map(|(_, place)| args[*place]);
            place.and_then(|address| text(call.pid, address)).unwrap_or_else(Text::new)
        }
    }
}

/// Where the network is none but the sandbox's own loopback; and sockets of the host's that are not shown.
fn connect(facts: &Facts<'_>, call: &Call, address: u64, length: u64) -> Option<Refused> {
    let mut bytes = [0; 128];
    let length = (length as usize).min(bytes.len());
    let read = memory(call.pid, address, &mut bytes[..length]);
    if read < 2 {
        return None;
    }
    let bytes = &bytes[..read];
    let family = u16::from_ne_bytes([bytes[0], bytes[1]]);
    let port = || Some(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
    let address = match family {
        1 if facts.files => return local_socket(facts, call, bytes.get(2..)?),
        2 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?)),
        10 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?)).to_canonical(),
        _ => return None,
    };
    let port = port()?;
    let inside = address.is_loopback() || address.is_unspecified();
    // Where a resolver asks that has no name server.
    let asks = inside && port == 53;
    if !facts.offline || inside && !asks {
        return None;
    }
    let mut object = Text::of(if asks { "name server " } else { "" });
    let _ = write!(object, "{}", std::net::SocketAddr::from((address, port)));
    Some(Refused { object, errno: if asks { ECONNREFUSED } else { ENETUNREACH }, why: Why::Offline, early: !asks })
}

fn local_socket(facts: &Facts<'_>, call: &Call, name: &[u8]) -> Option<Refused> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let mut path = Text::new();
    path.push(&name[..end]);
    let places = Places::of(call.pid)?;
    let path = places.whole(call.pid, None, &path).filter(|_| end > 0)?;
    let outside = || fs::lstat(HERE, path.as_c()).is_ok_and(|stat| stat.kind == Kind::Socket);
    let hidden = places.open(&path).err() == Some(ENOENT) && outside() && !facts.plan.joins();
    hidden.then_some(Refused { object: path, errno: ENOENT.0 as u16, why: Why::Hidden, early: false })
}

/// What no program without a certain capability can do, whatever else is so.
fn by_capability(facts: &Facts<'_>, name: &str, call: &Call) -> Option<Refused> {
    let lacks = |number: u8| !facts.held.holds(number);
    let refused = |object: Text, number, errno: Errno| Refused {
        object,
        errno: errno.0 as u16,
        why: Why::Capability(number),
        early: true,
    };
    match name {
        "socket" if lacks(NET_RAW) && is_raw(call) => {
            Some(refused(Text::of("a raw socket"), NET_RAW, crate::sys::EPERM))
        }
        "chroot" if lacks(SYS_CHROOT) => Some(refused(text(call.pid, call.args[0])?, SYS_CHROOT, crate::sys::EPERM)),
        "bind" if lacks(NET_BIND_SERVICE) => {
            let mut bytes = [0; 4];
            if memory(call.pid, call.args[1], &mut bytes) != 4 {
                return None;
            }
            let port = u16::from_be_bytes([bytes[2], bytes[3]]);
            let inet = [2, 10].contains(&u16::from_ne_bytes([bytes[0], bytes[1]]));
            (inet && (1..1024).contains(&port))
                .then(|| refused(Text::formatted(format_args!("port {port}")), NET_BIND_SERVICE, EACCES))
        }
        _ => None,
    }
}

/// SOCK_RAW of IPv4 and IPv6.
fn is_raw(call: &Call) -> bool {
    [2, 10].contains(&(call.args[0] as u32)) && call.args[1] & 0xF == 3
}
