//! /proc/self/mountinfo: what is mounted where, as far as it matters here.

use super::rootfs::unescape;
use crate::sys::mount::statmount;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// One line of /proc/self/mountinfo, as far as it matters here.
pub(crate) struct Mount {
    /// The mount's own number.
    pub id: u64,
    /// What of its file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Options of the mount, then of its file system.
    pub options: String,
    /// Type of the file system.
    pub kind: String,
}

/// All mounts, the lower ones first.
pub(crate) struct Mounts(pub Vec<Mount>);

/// Where systemd, and everybody since, mounts cgroup v2.
const CGROUP: &CStr = c"/sys/fs/cgroup";
/// What statfs(2) calls it (linux/magic.h).
const CGROUP2: u64 = 0x6367_7270;

impl Mounts {
    /// The mount of cgroup v2 alone, where it has the place to itself and shows the whole of this process's namespace:
    /// as nearly everywhere. `None` too where the kernel (before 6.11) or a filter around sbx does not tell it.
    pub(crate) fn unified() -> Option<Mounts> {
        let mount = statmount(CGROUP).ok().filter(|mount| mount.kind == CGROUP2 && mount.root == b"/")?;
        let point = Path::new(OsStr::from_bytes(CGROUP.to_bytes())).to_owned();
        Some(Mounts(vec![Mount { id: 0, root: "/".into(), point, options: mount.options, kind: "cgroup2".into() }]))
    }

    /// Lines that are not understood are left out (proc(5)).
    pub(crate) fn of(text: &str) -> Mounts {
        Mounts(text.lines().filter_map(Mount::of).collect())
    }

    /// The topmost mount at a point.
    pub(crate) fn at(&self, point: &Path) -> Option<&Mount> {
        self.0.iter().rev().find(|mount| mount.point == point)
    }

    /// What lies strictly below a place. The kernel itself puts automounts and the like on directories that are
    /// always empty; those hide nothing, and it lets them pass.
    pub(crate) fn covers(&self, place: &str) -> Vec<String> {
        const EMPTY: [&str; 13] = [
            "/proc/sys/fs/binfmt_misc",
            "/proc/fs/nfsd",
            "/sys/fs/cgroup",
            "/sys/fs/bpf",
            "/sys/fs/pstore",
            "/sys/fs/selinux",
            "/sys/fs/smackfs",
            "/sys/fs/fuse/connections",
            "/sys/kernel/security",
            "/sys/kernel/debug",
            "/sys/kernel/tracing",
            "/sys/kernel/config",
            "/sys/firmware/efi/efivars",
        ];
        let below = |mount: &&Mount| mount.point.starts_with(place) && mount.point != Path::new(place);
        let hides = |mount: &&Mount| !EMPTY.iter().any(|empty| mount.point.starts_with(empty));
        let shown = |mount: &Mount| mount.point.display().to_string();
        let mut found: Vec<String> = self.0.iter().filter(below).filter(hides).map(shown).collect();
        found.dedup();
        found
    }
}

impl Mount {
    fn of(line: &str) -> Option<Mount> {
        let (front, back) = line.split_once(" - ")?;
        let fields: Vec<&str> = front.split(' ').collect();
        let mut tail = back.split(' ');
        let kind = tail.next()?.to_owned();
        let options = format!("{},{}", fields.get(5)?, tail.nth(1).unwrap_or_default());
        let id = fields.first()?.parse().ok()?;
        let path = |n: usize| fields.get(n).map(|field| unescape(field));
        Some(Mount { id, root: path(3)?, point: path(4)?, options, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 28 0:21 / /sys rw,nosuid - sysfs sysfs rw
24 28 0:22 / /proc ro,nosuid - proc proc rw,hidepid=2
25 24 0:23 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
26 24 0:24 / /proc/kc\\040ore rw - tmpfs tmpfs rw
28 1 8:1 / / rw - ext4 /dev/sda1 rw
short
";

    #[test]
    fn what_covers_proc_is_found_and_what_hides_nothing_is_not() {
        let mounts = Mounts::of(MOUNTINFO);
        assert_eq!(mounts.covers("/proc"), ["/proc/kc ore"]);
        assert_eq!(mounts.covers("/sys"), Vec::<String>::new());
        assert_eq!(mounts.at(Path::new("/proc")).map(|m| m.options.as_str()), Some("ro,nosuid,rw,hidepid=2"));
    }

    proptest::proptest! {
        #[test]
        fn odd_lines_never_panic(text in "\\PC{0,80}|[0-9 :/,\\-\\\\a-z\\n]{0,80}") {
            let _ = Mounts::of(&text).covers("/proc");
        }
    }
}
