//! What a policy grants that its reader should know of: `sbx policy check`, and before one is accepted.
//!
//! A look at the Spec, and at where its mounts' sources lead on this machine; what else lies there does not matter, for
//! a policy is read for others too.

use crate::plan::invariants::LOCKED;
use crate::plan::seccomp::{default_answer, groups};
use crate::spec::access::{DEFAULT, Filter, Landlock, Nesting, SetId};
use crate::spec::hide::{DOORS, START_FILES, doors};
use crate::spec::mount::{Access, Devices, Mount, Source};
use crate::spec::seccomp::{Answer, Rule};
use crate::spec::text::{Caller, InnerPath};
use crate::spec::{NetMode, RootSource, Spec};
use std::path::{Path, PathBuf};

/// Directories and files of a home that hold keys.
pub(super) const SECRETS: [&str; 16] = [
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".config/gcloud",
    ".kube",
    ".docker/config.json",
    ".netrc",
    ".npmrc",
    ".pypirc",
    ".git-credentials",
    ".cargo/credentials.toml",
    ".password-store",
    ".mozilla",
    ".config/google-chrome",
    ".local/share/keyrings",
];
/// On the caller's PATH, and of no shell's.
const PROGRAMS: &str = ".local/bin";
/// Sockets behind which somebody acts for the caller.
const SOCKETS: [(&str, &str); 7] = [
    ("/run/docker.sock", "the Docker daemon, which is root"),
    ("/var/run/docker.sock", "the Docker daemon, which is root"),
    ("/run/podman/podman.sock", "the Podman service"),
    ("/run/dbus/system_bus_socket", "the system's D-Bus"),
    ("/run/systemd/private", "systemd"),
    ("/run/user", "your session: D-Bus, systemd, agents, displays"),
    ("/tmp/.X11-unix", "your display, with its keyboard"),
];
/// The warnings, as sentences; `files` are those of the policy itself.
pub fn warnings(spec: &Spec, caller: &Caller, files: &[PathBuf]) -> Vec<String> {
    let mut found = Vec::new();
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let without_links = Caller { home: real(&caller.home), ..caller.clone() };
    for mount in &spec.mounts {
        let Source::Bind { src, .. } = &mount.source else { continue };
        shown(src.as_path(), mount, spec, caller, files, &mut found);
        shown(&real(src.as_path()), mount, spec, &without_links, files, &mut found);
    }
    let mut told = std::collections::HashSet::new();
    found.retain(|warning| told.insert(warning.clone()));
    let words = |name: &str| {
        ["TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "API_KEY"].iter().any(|word| name.to_uppercase().contains(word))
    };
    for (name, _) in spec.env.set.iter().filter(|(name, _)| words(name) || DOORS.contains(&name.as_str())) {
        found.push(format!("the variable {name} is passed"));
    }
    let lost = [
        (spec.seccomp.filter == Filter::Off, "system calls are not filtered"),
        (spec.landlock == Landlock::Off, "Landlock is off"),
        (spec.net.mode == NetMode::Host, "the network is the host's, with all that listens on it"),
        (spec.share.ipc, "System V IPC and /dev/shm are the host's"),
        (spec.root.setid == SetId::Allowed, "set-id files can be left in writable host directories"),
        (spec.nesting == Nesting::Allowed, "user namespaces can be made, the way to most of the kernel's bugs"),
    ];
    found.extend(lost.into_iter().filter(|(is, _)| *is).map(|(_, text)| text.to_owned()));
    let opened = opened(&spec.seccomp.rules);
    found.extend(opened.map(|call| format!("a seccomp rule opens {call} whatever its arguments; give it args")));
    let added = spec.capabilities.names().filter(|name| !DEFAULT.contains(name));
    found.extend(added.map(|name| format!("the capability {name} is added")));
    found
}

/// Calls that the default policy allows by their arguments, and a rule whatever these are.
fn opened(rules: &[Rule]) -> impl Iterator<Item = &str> {
    let whole = rules.iter().filter(|rule| rule.args.is_empty() && matches!(rule.answer, Answer::Allow | Answer::Log));
    let calls = whole.flat_map(|rule| &rule.calls).flat_map(|name| {
        match name.strip_prefix('@').and_then(|name| groups().iter().find(|g| g.name == name)) {
            Some(group) => group.calls.to_vec(),
            None => vec![name.as_str()],
        }
    });
    calls.filter(|call| !LOCKED.contains(call) && default_answer(call) == "by argument")
}

fn shown(src: &Path, mount: &Mount, spec: &Spec, caller: &Caller, files: &[PathBuf], found: &mut Vec<String>) {
    let Source::Bind { access, devices, .. } = &mount.source else { return };
    let written = *access == Access::Rw;
    let path = src.display();
    if written && (src == Path::new("/") || caller.home != Path::new("/") && caller.home.starts_with(src)) {
        found.push(format!("{path} is writable, and your home with it"));
        return;
    }
    if *devices == Devices::Dev {
        found.push(format!("device nodes in {path} can be opened"));
    }
    for kernel in ["/proc", "/sys", "/dev"].iter().filter(|kernel| src.starts_with(kernel)) {
        found.push(format!("{path} is the host's own {kernel}"));
    }
    for (socket, who) in SOCKETS.iter().filter(|(socket, _)| reaches(src, Path::new(socket))) {
        found.push(format!("{path} shows {socket}: {who}"));
    }
    let inner = |outside: &Path| outside.strip_prefix(src).ok().map(|below| mount.dst.as_path().join(below));
    let hidden = |outside: &Path| {
        // The longer one wins between the two.
        let over = |path: &InnerPath| path.depth() >= mount.dst.depth();
        let mut hides = spec.hide.iter().filter(|path| over(path));
        inner(outside).is_some_and(|inner| hides.any(|path| inner.starts_with(path.as_path())))
    };
    // On this machine's own root what only lies in a mount is hidden there.
    let shown = |socket: &Path| socket == src || socket.starts_with(src) && spec.root.source != RootSource::Host;
    for (name, socket) in doors(caller).filter(|(_, socket)| shown(socket) && !hidden(socket)) {
        found.push(format!("{path} shows {}, which {name} leads to", socket.display()));
    }
    for secret in SECRETS.iter().map(|secret| caller.home.join(secret)).filter(|secret| reaches(src, secret)) {
        if !hidden(&secret) {
            found.push(format!("{} can be read", secret.display()));
        }
    }
    let kept = |outside: &Path| {
        inner(outside).is_some_and(|inner| spec.protect.iter().any(|place| inner.starts_with(place.path.as_path())))
    };
    let open = |outside: &Path| written && reaches(src, outside) && !hidden(outside) && !kept(outside);
    for file in START_FILES.iter().chain([&PROGRAMS]).map(|file| caller.home.join(file)).filter(|file| open(file)) {
        found.push(format!("{} can be written, which your next shell or session runs", file.display()));
    }
    for file in files.iter().filter(|file| open(file)) {
        found.push(format!("{} can be written: the sandbox could change its own policy", file.display()));
    }
}

/// Whether a mount of one shows the other: it is it, holds it, or lies in it.
fn reaches(src: &Path, place: &Path) -> bool {
    place.starts_with(src) || src.starts_with(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::{policy, ready};
    use crate::spec::layer::{Layer, Origin};

    fn warned(text: &str) -> Vec<String> {
        let env = [("SSH_AUTH_SOCK", "/tmp/agent/sock"), ("MY_TOKEN", "t")].map(|(k, v)| (k.into(), v.into()));
        let caller = Caller { cwd: "/home/me/p".into(), home: "/home/me".into(), env: env.to_vec() };
        let read = policy::parse("p", text).expect("parses");
        let read = Layer { origin: Origin::Policy("p".into()), ..read };
        let layers = [read, Layer { rootfs: Some("@host".into()), ..Layer::default() }];
        let spec = Spec::resolve(&layers, &caller).expect("resolves");
        warnings(&spec, &caller, &["/home/me/p/.sbx.toml".into()])
    }

    fn says(text: &str, word: &str) {
        let found = warned(text);
        assert!(found.iter().any(|warning| warning.contains(word)), "{text}: {found:?}");
    }

    #[test]
    fn over_grants_are_told() {
        let mount = |src: &str, access: &str| format!("[[mount]]\nsrc = \"{src}\"\naccess = \"{access}\"\n");
        says(&mount("~", "rw"), "your home with it");
        says(&mount("/home", "rw"), "your home with it");
        says(&mount("/var/run", "ro"), "the Docker daemon");
        says(&mount("/run/user/1000/bus", "ro"), "your session");
        says(&mount("/tmp/agent/sock", "ro"), "SSH_AUTH_SOCK leads to");
        says(&mount("~", "ro"), ".ssh can be read");
        says(&mount("~/.config", "rw"), ".config/autostart can be written");
        says(&mount(".", "rw"), "its own policy");
        says("env.pass = [\"*\"]\n", "MY_TOKEN is passed");
        says("[[seccomp.rule]]\ncalls = [\"socket\", \"ioctl\"]\naction = \"allow\"\n", "opens socket whatever");
        says("seccomp.filter = \"off\"\n", "not filtered");
        says("net.mode = \"host\"\n", "network is the host's");
        says("caps.add = [\"SYS_ADMIN\"]\n", "SYS_ADMIN is added");
        says("root.allow-setid = true\n", "set-id files");
    }

    #[test]
    fn what_is_hidden_or_protected_is_no_grant() {
        let text = "hide.paths = [\"~/.ssh\"]\nprotect.paths = [\"./.sbx.toml\"]\n[[mount]]\nsrc = \"~/.ssh\"\n\
                    [[mount]]\nsrc = \".\"\naccess = \"rw\"\n";
        assert_eq!(warned(text), Vec::<String>::new());
    }

    /// The mount is the longer one.
    #[test]
    fn what_lies_in_a_hidden_home_and_is_mounted_is_a_grant() {
        says("extends = [\"build\"]\nhide.paths = [\"~\"]\n[[mount]]\nsrc = \"~/.ssh\"\n", ".ssh can be read");
        says("hide.paths = [\"~\"]\n[[mount]]\nsrc = \"~/.bashrc\"\naccess = \"rw\"\n", ".bashrc can be written");
    }

    #[test]
    fn ready_policies_grant_no_more_than_they_say() {
        for name in ready::names().filter(|name| *name != "nest") {
            let caller = Caller { cwd: "/home/me/p".into(), home: "/home/me".into(), env: Vec::new() };
            let mut layers = policy::load(name, &caller).expect("ready");
            layers.push(Layer { rootfs: Some("@host".into()), ..Layer::default() });
            let spec = Spec::resolve(&layers, &caller).expect("resolves");
            assert_eq!(warnings(&spec, &caller, &[caller.cwd.join(".sbx.toml")]), Vec::<String>::new(), "{name}");
        }
    }
}
