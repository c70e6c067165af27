//! What is mounted besides the root, in the text forms of `-v`, `--mount`, `--tmpfs` and `--device`.

use super::layer::MountTable;
use super::text::{Caller, HostPath, InnerPath, size, word};
use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// What the program may do with a bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read only, submounts included.
    Ro,
    /// Read and write.
    Rw,
    /// Read; changes go to a layer of the sandbox's own.
    Overlay,
}

/// Whether files on a mount can be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Exec {
    /// They can.
    Exec,
    /// They cannot.
    Noexec,
}

/// Whether device nodes on a mount can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Devices {
    /// They cannot: the default everywhere.
    Nodev,
    /// They can.
    Dev,
}

/// Whether a source that is not there is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It is.
    Required,
    /// The mount is then left out.
    Optional,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file or directory of the host, with all mounts below it.
    Bind {
        /// Where it lies outside.
        src: HostPath,
        /// What may be done with it.
        access: Access,
        /// Whether it can be executed.
        exec: Exec,
        /// Whether its device nodes work.
        devices: Devices,
        /// Whether it must be there.
        presence: Presence,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Its own limit in bytes; without one the sandbox's one tmpfs holds it.
        size: Option<u64>,
        /// Mode of its root.
        mode: u32,
        /// Whether it can be executed.
        exec: Exec,
    },
    /// POSIX message queues of the sandbox's IPC namespace.
    Mqueue,
    /// The sandbox's own cgroup, writable.
    Cgroup,
    /// One device node of the host.
    Device {
        /// Where it lies outside.
        src: HostPath,
    },
}

/// One mount and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is seen inside.
    pub dst: InnerPath,
    /// What is seen there.
    pub source: Source,
}

impl Mount {
    /// Parses `SRC:DST[:OPTION,…]` of `-v`.
    pub fn volume(caller: &Caller, text: &str) -> Result<Mount> {
        const FIELD: &str = "--volume";
        let refuse = |why: &str| Error::spec(FIELD, text, why).or_try("write SRC:DST or SRC:DST:ro");
        let mut parts = text.split(':');
        let (src, dst) = match (parts.next(), parts.next()) {
            (Some(src), Some(dst)) if !src.is_empty() && !dst.is_empty() => (src, dst),
            _ => return Err(refuse("not SRC:DST")),
        };
        let options = parts.next().unwrap_or("");
        if parts.next().is_some() {
            return Err(refuse("more than two colons; for a path with a colon use --mount src=…,dst=…"));
        }
        if !src.starts_with(['/', '.', '~']) {
            return Err(refuse("SRC starts with /, . or ~ (sbx has no named volumes)"));
        }
        let mut bind = Bind::new(FIELD, text);
        options.split(',').filter(|o| !o.is_empty()).try_for_each(|option| bind.word(option))?;
        bind.at(caller.host_path(FIELD, src)?, destination(FIELD, dst)?)
    }

    /// Parses `type=bind,src=…,dst=…,…` of `--mount`.
    pub fn key_values(caller: &Caller, text: &str) -> Result<Mount> {
        const FIELD: &str = "--mount";
        let refuse = |why: String| Error::spec(FIELD, text, why);
        let (mut kind, mut src, mut dst, mut bytes, mut mode) = (None, None, None, None, None);
        let mut bind = Bind::new(FIELD, text);
        for pair in text.split(',') {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("type", value) => kind = Some(value),
                ("src" | "source", value) => src = Some(value),
                ("dst" | "destination" | "target", value) => dst = Some(value),
                ("size" | "tmpfs-size", value) => bytes = Some(size(FIELD, value)?),
                ("mode" | "tmpfs-mode", value) => mode = Some(octal(FIELD, value)?),
                ("readonly", "" | "true") => bind.word("ro")?,
                (word, "") => bind.word(word)?,
                (key, _) => return Err(refuse(format!("{key} is not one of its keys (type, src, dst, size, mode)"))),
            }
        }
        let kind = kind.unwrap_or("bind");
        let dst = match (kind, dst) {
            ("cgroup", None | Some(CGROUP)) => InnerPath::known(CGROUP),
            (_, dst) => destination(FIELD, dst.ok_or_else(|| refuse("dst= is missing".into()))?)?,
        };
        if !TYPES.contains(&kind) {
            return Err(refuse(format!("type={kind} is not one of {}", TYPES.join(", "))));
        }
        let given = [
            ("src", src.is_some()),
            ("ro", bind.access == Some(Access::Ro)),
            // A tmpfs is writable whether that is said or not.
            ("rw", bind.access == Some(Access::Rw) && kind != "tmpfs"),
            ("overlay", bind.access == Some(Access::Overlay)),
            ("dev", bind.devices == Devices::Dev),
            ("optional", bind.presence == Presence::Optional),
            ("size", bytes.is_some()),
            ("mode", mode.is_some()),
            ("exec", bind.exec.is_some()),
        ];
        foreign_key(FIELD, kind, &given)?;
        match kind {
            "tmpfs" => {
                let source = Source::Tmpfs { size: bytes, mode: mode.unwrap_or(0o1777), exec: bind.exec() };
                Ok(Mount { dst, source })
            }
            "mqueue" => Ok(Mount { dst, source: Source::Mqueue }),
            "cgroup" => Ok(Mount { dst, source: Source::Cgroup }),
            _ => bind.at(caller.host_path(FIELD, src.ok_or_else(|| refuse("src= is missing".into()))?)?, dst),
        }
    }

    /// Parses `DST[:size=…,mode=…,exec,noexec]` of `--tmpfs`.
    pub fn tmpfs(text: &str) -> Result<Mount> {
        const FIELD: &str = "--tmpfs";
        let (dst, options) = text.split_once(':').unwrap_or((text, ""));
        let (mut bytes, mut mode, mut exec) = (None, 0o1777, Exec::Exec);
        for option in options.split(',').filter(|o| !o.is_empty()) {
            match option.split_once('=').unwrap_or((option, "")) {
                ("size", value) => bytes = Some(size(FIELD, value)?),
                ("mode", value) => mode = octal(FIELD, value)?,
                ("exec", "") => exec = Exec::Exec,
                ("noexec", "") => exec = Exec::Noexec,
                ("rw" | "nosuid" | "nodev", "") => {}
                _ => {
                    return Err(Error::spec(FIELD, text, format!("{option} is not one of size=, mode=, exec, noexec")));
                }
            }
        }
        Ok(Mount { dst: destination(FIELD, dst)?, source: Source::Tmpfs { size: bytes, mode, exec } })
    }

    /// Parses `PATH[:DST]` of `--device`.
    pub fn device(caller: &Caller, text: &str) -> Result<Mount> {
        const FIELD: &str = "--device";
        let (src, dst) = text.split_once(':').unwrap_or((text, text));
        if !src.starts_with(['/', '.', '~']) {
            let why = "PATH is the host's, and starts with /, . or ~";
            return Err(Error::spec(FIELD, text, why).or_try(format!("/dev/{text}")));
        }
        let dst = InnerPath::parse(FIELD, dst)?;
        if !dst.is_below("/dev") || dst.depth() < 3 {
            return Err(Error::spec(FIELD, text, "a device goes below /dev"));
        }
        Ok(Mount { dst, source: Source::Device { src: caller.host_path(FIELD, src)? } })
    }

    /// Takes a `[[mount]]` of a policy.
    pub fn table(caller: &Caller, table: &MountTable) -> Result<Mount> {
        const FIELD: &str = "[[mount]]";
        let kind = table.r#type.as_deref().unwrap_or("bind");
        if !TYPES.contains(&kind) {
            return Err(Error::spec("type", kind, format!("not one of {}", TYPES.join(", "))));
        }
        let missing = |key: &str| Error::spec(FIELD, kind, format!("{key} is missing"));
        let given = [
            ("src", table.src.is_some()),
            ("access", table.access.is_some()),
            ("dev", table.dev.is_some()),
            ("optional", table.optional.is_some()),
            ("size", table.size.is_some()),
            ("mode", table.mode.is_some()),
            ("exec", table.exec.is_some()),
        ];
        foreign_key(FIELD, kind, &given)?;
        let exec = if table.exec.unwrap_or(true) { Exec::Exec } else { Exec::Noexec };
        let source = match kind {
            "bind" => {
                let accesses = [("ro", Access::Ro), ("rw", Access::Rw), ("overlay", Access::Overlay)];
                Source::Bind {
                    src: caller.policy_path(FIELD, table.src.as_deref().ok_or_else(|| missing("src"))?)?,
                    access: table.access.as_deref().map_or(Ok(Access::Ro), |a| word("access", a, &accesses))?,
                    exec,
                    devices: if table.dev.unwrap_or(false) { Devices::Dev } else { Devices::Nodev },
                    presence: if table.optional.unwrap_or(false) { Presence::Optional } else { Presence::Required },
                }
            }
            "tmpfs" => Source::Tmpfs {
                size: table.size.as_deref().map(|s| size("size", s)).transpose()?,
                mode: table.mode.as_deref().map_or(Ok(0o1777), |m| octal("mode", m))?,
                exec,
            },
            "cgroup" => Source::Cgroup,
            _ => Source::Mqueue,
        };
        let dst = match (&table.dst, &source) {
            (dst, Source::Cgroup) if dst.as_deref().is_none_or(|dst| dst == CGROUP) => {
                return Ok(Mount { dst: InnerPath::known(CGROUP), source });
            }
            (Some(dst), _) => caller.inner_path(FIELD, dst)?.to_string(),
            (None, Source::Bind { .. }) => {
                caller.inner_path(FIELD, table.src.as_deref().unwrap_or_default())?.to_string()
            }
            (None, _) => return Err(missing("dst")),
        };
        Ok(Mount { dst: destination(FIELD, &dst)?, source })
    }
}

/// The types of a mount that is written as keys.
const TYPES: [&str; 4] = ["bind", "tmpfs", "mqueue", "cgroup"];
/// Where programs look for their cgroup.
pub const CGROUP: &str = "/sys/fs/cgroup";

/// A key that means nothing for a type of mount is refused: the author meant something by it.
fn foreign_key(field: &str, kind: &str, given: &[(&str, bool)]) -> Result<()> {
    let types = |key: &str| match key {
        "size" | "mode" => ["tmpfs"].as_slice(),
        "exec" => &["bind", "tmpfs"],
        _ => &["bind"],
    };
    match given.iter().find(|(key, given)| *given && !types(key).contains(&kind)) {
        Some((key, _)) => {
            let why = format!("a key of type {}, and this is {kind}", types(key).join(" or "));
            Err(Error::spec(field, key, why))
        }
        None => Ok(()),
    }
}

/// The options of a bind while they are read; contradictions are refused (B35).
struct Bind<'a> {
    field: &'static str,
    text: &'a str,
    access: Option<Access>,
    exec: Option<Exec>,
    devices: Devices,
    presence: Presence,
}

impl<'a> Bind<'a> {
    fn new(field: &'static str, text: &'a str) -> Bind<'a> {
        Bind { field, text, access: None, exec: None, devices: Devices::Nodev, presence: Presence::Required }
    }

    fn word(&mut self, word: &str) -> Result<()> {
        let clash = match word {
            "ro" => self.access.replace(Access::Ro).is_some_and(|old| old != Access::Ro),
            "rw" => self.access.replace(Access::Rw).is_some_and(|old| old != Access::Rw),
            "overlay" => self.access.replace(Access::Overlay).is_some_and(|old| old != Access::Overlay),
            "exec" => self.exec.replace(Exec::Exec) == Some(Exec::Noexec),
            "noexec" => self.exec.replace(Exec::Noexec) == Some(Exec::Exec),
            "dev" => {
                self.devices = Devices::Dev;
                false
            }
            "optional" => {
                self.presence = Presence::Optional;
                false
            }
            _ => {
                let why = format!("{word} is not one of ro, rw, overlay, exec, noexec, dev, optional");
                return Err(Error::spec(self.field, self.text, why));
            }
        };
        if clash {
            Err(Error::spec(self.field, self.text, format!("{word} contradicts an earlier option")))
        } else {
            Ok(())
        }
    }

    fn exec(&self) -> Exec {
        self.exec.unwrap_or(Exec::Exec)
    }

    fn at(self, src: HostPath, dst: InnerPath) -> Result<Mount> {
        let (access, exec) = (self.access.unwrap_or(Access::Rw), self.exec());
        Ok(Mount { dst, source: Source::Bind { src, access, exec, devices: self.devices, presence: self.presence } })
    }
}

/// A place where something may be mounted: not `/`, and not in the file systems sbx itself guards (B33).
pub fn destination(field: &str, text: &str) -> Result<InnerPath> {
    let dst = InnerPath::parse(field, text)?;
    if dst.depth() == 1 {
        return Err(
            Error::spec(field, text, "the root itself is ROOTFS, not a mount").or_try("give that directory as ROOTFS")
        );
    }
    if dst.as_path() == Path::new("/dev") {
        // What it holds is sbx's own, and the store of all that is writable is measured through it.
        let why = "sbx makes /dev itself; only places below it can be mounted on";
        return Err(Error::spec(field, text, why).or_try("--device PATH for a device of the host"));
    }
    match ["/proc", "/sys"].iter().find(|guarded| dst.is_below(guarded)) {
        Some(guarded) => Err(Error::spec(field, text, format!("nothing may be mounted on or below {guarded}"))),
        None => Ok(dst),
    }
}

/// Permission bits in octal digits.
pub fn octal(field: &str, text: &str) -> Result<u32> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(mode),
        _ => Err(Error::spec(field, text, "a mode is octal, at most 7777, such as 1777")),
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dst = &self.dst;
        match &self.source {
            Source::Bind { src, access, exec, devices, .. } => {
                let word = match access {
                    Access::Ro => "read-only",
                    Access::Rw => "writable",
                    Access::Overlay => "overlay",
                };
                write!(f, "bind {src} on {dst}, {word}")?;
                write!(f, "{}", if *exec == Exec::Noexec { ", noexec" } else { "" })?;
                write!(f, "{}", if *devices == Devices::Dev { ", devices" } else { "" })
            }
            Source::Tmpfs { size: Some(size), .. } => write!(f, "mount a tmpfs of {size} bytes on {dst}"),
            Source::Tmpfs { .. } => write!(f, "mount a tmpfs on {dst}"),
            Source::Mqueue => write!(f, "mount the message queues on {dst}"),
            Source::Cgroup => write!(f, "mount the sandbox's cgroup on {dst}, writable"),
            Source::Device { src } => write!(f, "bind device {src} on {dst}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller {
        Caller { cwd: "/work".into(), home: "/home/me".into(), env: Vec::new() }
    }

    fn shown(mount: Result<Mount>) -> String {
        mount.map_or_else(|e| format!("error: {e}"), |m| m.to_string())
    }

    #[test]
    fn volumes() {
        let volume = |text| shown(Mount::volume(&caller(), text));
        assert_eq!(volume("./src:/src"), "bind /work/src on /src, writable");
        assert_eq!(volume("~/.cargo:/c:ro,noexec"), "bind /home/me/.cargo on /c, read-only, noexec");
        assert_eq!(volume(".:/w:overlay"), "bind /work on /w, overlay");
        assert_eq!(volume("/a:/dev/x"), "bind /a on /dev/x, writable");
        for bad in [
            "",
            "/a",
            "/a:/dev",
            "/a:/dev/",
            "name:/x",
            "/a:b",
            "/a:/../b",
            "/a:/",
            "/a:/proc/x",
            "/a:/b:ro,rw",
            "/a:/b:z",
            "/a:/b:ro:x",
        ] {
            assert!(volume(bad).starts_with("error"), "{bad}");
        }
    }

    #[test]
    fn key_values() {
        let mount = |text: &str| shown(Mount::key_values(&caller(), text));
        assert_eq!(mount("type=bind,src=/a:b,dst=/c,ro"), "bind /a:b on /c, read-only");
        assert_eq!(mount("type=tmpfs,dst=/t,size=1M"), "mount a tmpfs of 1048576 bytes on /t");
        assert_eq!(mount("type=mqueue,dst=/q"), "mount the message queues on /q");
        assert_eq!(mount("type=cgroup"), "mount the sandbox's cgroup on /sys/fs/cgroup, writable");
        assert_eq!(mount("type=cgroup,dst=/cg"), "mount the sandbox's cgroup on /cg, writable");
        assert!(mount("type=cgroup,dst=/sys/fs").starts_with("error"));
        for bad in
            ["", "type=bind,dst=/c", "type=nfs,dst=/c", "type=tmpfs,src=/a,dst=/c", "dst=/c,src=/a,size=1", "x=y"]
        {
            assert!(mount(bad).starts_with("error"), "{bad}");
        }
        assert_eq!(mount("type=tmpfs,dst=/t,rw,noexec"), "mount a tmpfs on /t");
        for foreign in ["ro", "readonly", "overlay", "dev", "optional"] {
            let text = mount(&format!("type=tmpfs,dst=/t,{foreign}"));
            assert!(text.contains("a key of type bind, and this is tmpfs"), "{foreign}: {text}");
        }
        for foreign in ["rw", "exec", "size=1M", "mode=700"] {
            assert!(mount(&format!("type=mqueue,dst=/q,{foreign}")).contains("and this is mqueue"), "{foreign}");
        }
    }

    #[test]
    fn tmpfs_and_devices() {
        assert_eq!(shown(Mount::tmpfs("/t:size=1M,mode=700")), "mount a tmpfs of 1048576 bytes on /t");
        assert!(Mount::tmpfs("/t:mode=8").is_err() && Mount::tmpfs("t").is_err() && Mount::tmpfs("/t:size=0").is_err());
        assert_eq!(shown(Mount::device(&caller(), "/dev/fuse")), "bind device /dev/fuse on /dev/fuse");
        assert!(Mount::device(&caller(), "/dev/fuse:/etc/x").is_err());
    }
}
