//! What this process and its surroundings are.

use super::{call, in_child};
use serde_json::{Map, Value, json};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What the tests ask of a host before they start.
pub fn host() -> Value {
    // SAFETY: these take no arguments.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let landlock = call(libc::SYS_landlock_create_ruleset, &[0, 0, 1]).unwrap_or(0);
    let userns = in_child(|| call(libc::SYS_unshare, &[i64::from(libc::CLONE_NEWUSER)]).err().unwrap_or(0));
    let memory = call(libc::SYS_memfd_create, &[c"".as_ptr() as i64, 0]).expect("memfd_create");
    let value = [memory, c"user.sbx".as_ptr() as i64, c"1".as_ptr() as i64, 1, 0];
    let tmpfs_xattrs = call(libc::SYS_fsetxattr, &value).err().unwrap_or(0);
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mine = |line: &&str| line.split(':').nth(2) == Some(uid.to_string().as_str());
    let user = passwd.lines().find(mine).and_then(|line| line.split(':').next()).unwrap_or("?").to_owned();
    json!({ "uid": uid, "gid": gid, "user": user, "landlock": landlock, "userns": userns, "tmpfs-xattrs": tmpfs_xattrs })
}

/// Everything about this process.
pub fn own() -> Value {
    let text = |path: &str| fs::read_to_string(path).map_or_else(failed, |t| json!(t.trim()));
    let words = |path: &str| text(path).as_str().map(|t| t.split_whitespace().collect::<Vec<_>>().join(" "));
    let lines = |path: &str| text(path).as_str().map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>());
    let prctl = |option: i32| call(libc::SYS_prctl, &[i64::from(option)]).unwrap_or(-1);
    json!({
        "status": status("/proc/self/status"),
        "ns": links("/proc/self/ns"),
        "fds": descriptors(),
        "env": std::env::vars_os().map(|(k, v)| format!("{}={}", k.to_string_lossy(), v.to_string_lossy())).collect::<Vec<_>>(),
        "args": std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "cwd": std::env::current_dir().map_or_else(failed, |p| json!(p)),
        "mountinfo": lines("/proc/self/mountinfo"),
        "pids": numbers("/proc"),
        "dumpable": prctl(libc::PR_GET_DUMPABLE),
        "securebits": prctl(libc::PR_GET_SECUREBITS),
        "pid": std::process::id(),
        "sid": call(libc::SYS_getsid, &[0]).unwrap_or(-1),
        "hostname": text("/proc/sys/kernel/hostname"),
        "uid_map": words("/proc/self/uid_map"),
        "gid_map": words("/proc/self/gid_map"),
        "setgroups": text("/proc/self/setgroups"),
        "cgroup": text("/proc/self/cgroup"),
        "limits": lines("/proc/self/limits"),
        "max_user_namespaces": text("/proc/sys/user/max_user_namespaces"),
    })
}

fn failed(error: std::io::Error) -> Value {
    json!({ "errno": error.raw_os_error().unwrap_or(0) })
}

/// The fields of a status file.
fn status(path: &str) -> Value {
    let text = fs::read_to_string(path).unwrap_or_default();
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), json!(value.split_whitespace().collect::<Vec<_>>().join(" "))))
    };
    Value::Object(text.lines().filter_map(field).collect())
}

fn links(dir: &str) -> Value {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let link = |path: &Path| fs::read_link(path).map_or_else(failed, |to| json!(to.to_string_lossy()));
    Value::Object(entries.map(|e| (e.file_name().to_string_lossy().into_owned(), link(&e.path()))).collect())
}

/// The open descriptors but the one that this takes to look: number, where it leads, what it is.
fn descriptors() -> Value {
    let mut found = Map::new();
    for number in 0..1024 {
        if call(libc::SYS_fcntl, &[number, i64::from(libc::F_GETFD)]).is_ok() {
            let path = format!("/proc/self/fd/{number}");
            let to = fs::read_link(&path).map(|to| to.to_string_lossy().into_owned()).unwrap_or_default();
            found.insert(number.to_string(), json!(to));
        }
    }
    Value::Object(found)
}

fn numbers(dir: &str) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Every process that /proc shows, as far as this one may look; a child of this one's is there too.
pub fn pids() -> Value {
    let mut all = Map::new();
    for pid in numbers("/proc") {
        let base = format!("/proc/{pid}");
        let open = |name: &str| fs::File::open(format!("{base}/{name}")).map_or_else(failed, |_| json!("opened"));
        let link =
            |name: &str| fs::read_link(format!("{base}/{name}")).map_or_else(failed, |to| json!(to.to_string_lossy()));
        let list = |name: &str| fs::read_dir(format!("{base}/{name}")).map_or_else(failed, |d| json!(d.count()));
        let words = |name: &str| {
            let bytes = fs::read(format!("{base}/{name}")).unwrap_or_default();
            json!(String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).to_owned())
        };
        let read = |name: &str| fs::read(format!("{base}/{name}")).map_or_else(failed, |bytes| json!(bytes.len()));
        let facts = json!({
            "status": status(&format!("{base}/status")),
            "cmdline": words("cmdline"), "comm": words("comm"),
            "exe": link("exe"), "cwd": link("cwd"), "root": link("root"),
            "open exe": open("exe"), "fd": list("fd"), "map_files": list("map_files"), "ns": link("ns/user"),
            "environ": read("environ"), "mem": open("mem"), "maps": read("maps"), "auxv": read("auxv"),
        });
        all.insert(pid.to_string(), facts);
    }
    Value::Object(all)
}

/// Every entry below a directory, not crossing into /proc: `path: {kind, mode, rdev, link}`.
pub fn list(dir: &str) -> Value {
    let mut found = Map::new();
    walk(Path::new(dir), &mut found);
    Value::Object(found)
}

fn walk(dir: &Path, found: &mut Map<String, Value>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        let Ok(meta) = path.symlink_metadata() else { continue };
        let kind = meta.file_type();
        let word = match () {
            () if kind.is_dir() => "dir",
            () if kind.is_symlink() => "link",
            () if kind.is_char_device() => "char",
            () if kind.is_block_device() => "block",
            () if kind.is_file() => "file",
            () => "other",
        };
        let device = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        let link = fs::read_link(&path).map(|to| to.to_string_lossy().into_owned()).unwrap_or_default();
        let name = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
        let mode = format!("{:o}", meta.mode() & 0o7777);
        found.insert(name, json!({ "kind": word, "mode": mode, "rdev": [device.0, device.1], "link": link }));
        if kind.is_dir() {
            walk(&path, found);
        }
    }
}
