//! The ready policy `strict` against the checklists: what of the Kubernetes "restricted" profile and of the CIS Docker
//! benchmark, section 5, a sandbox can hold at all (security.md section 3). Each row is looked at from inside.

mod common;

use common::{Sandbox, Scratch, has, outside, sandbox};
use serde_json::Value;

fn strict() -> Sandbox {
    sandbox(&["-q", "--policy", "strict"])
}

/// What a row says, and whether it holds.
type Row = (&'static str, fn(&Facts) -> bool);

struct Facts {
    own: Value,
    host: Value,
    /// What a shell can do: a line for each that it can.
    able: String,
}

impl Facts {
    fn status(&self, key: &str) -> &str {
        self.own["status"][key].as_str().unwrap_or("?")
    }

    fn no_capability(&self) -> bool {
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].iter().all(|set| self.status(set) == "0000000000000000")
    }

    fn own_namespace(&self, namespace: &str) -> bool {
        self.own["ns"][namespace].is_string() && self.own["ns"][namespace] != self.host["ns"][namespace]
    }

    fn limit(&self, name: &str) -> &str {
        let lines = self.own["limits"].as_array().map(Vec::as_slice).unwrap_or_default();
        let line = lines.iter().filter_map(Value::as_str).find(|line| line.starts_with(name)).unwrap_or("");
        line[name.len().min(line.len())..].split_whitespace().next().unwrap_or("?")
    }

    fn cannot(&self, what: &str) -> bool {
        self.able.contains("looked") && !self.able.lines().any(|line| line == what)
    }

    /// The file systems, but for the probe itself.
    fn mounts(&self) -> Vec<&str> {
        let lines = self.own["mountinfo"].as_array().map(Vec::as_slice).unwrap_or_default();
        lines.iter().filter_map(Value::as_str).filter(|line| !line.contains(" /probe ")).collect()
    }
}

const ROWS: [Row; 21] = [
    ("Kubernetes: not privileged, all capabilities dropped (CIS 5.4, 5.5)", Facts::no_capability),
    ("Kubernetes: host namespaces (CIS 5.10, 5.16, 5.17, 5.21)", |f| {
        ["net", "pid", "ipc", "uts", "mnt"].iter().all(|ns| f.own_namespace(ns))
    }),
    ("Kubernetes: no host ports (CIS 5.8, 5.9)", |f| f.cannot("net device")),
    ("Kubernetes: no host path volumes (CIS 5.6)", |f| f.mounts().iter().all(|line| made_by_sbx(line))),
    ("Kubernetes: no privilege escalation (CIS 5.26)", |f| f.status("NoNewPrivs") == "1"),
    ("Kubernetes: a user namespace (CIS 5.31)", |f| f.own_namespace("user") && f.own["uid_map"] != f.host["uid_map"]),
    ("Kubernetes: seccomp (CIS 5.22)", |f| {
        f.status("Seccomp") == "2" && f.status("Seccomp_filters").parse::<u32>().is_ok_and(|n| n > 0)
    }),
    ("Kubernetes: procMount default", |f| f.cannot("read kcore") && f.cannot("read keys")),
    ("Kubernetes: sysctls", |f| f.cannot("write sysctl")),
    ("CIS 5.11 memory is limited", |_| planned("mem", "1073741824")),
    ("CIS 5.29 processes are limited", |_| planned("pids", "256")),
    ("CIS 5.13 the root file system is read-only", |f| f.cannot("write root") && f.cannot("write etc")),
    ("CIS 5.18 no devices of the host", |f| f.cannot("host device")),
    ("CIS 5.19 ulimits", |f| f.limit("Max open files") == "1024" && f.limit("Max core file size") == "0"),
    ("CIS 5.20 mounts do not propagate", |f| !f.mounts().iter().any(|line| line.contains(" shared:"))),
    ("CIS 5.25 the cgroup is the sandbox's own view", |f| {
        f.own["cgroup"].as_str().is_some_and(|text| !text.contains(".."))
    }),
    ("CIS 5.32 no socket of an engine", |f| f.cannot("engine socket")),
    ("strict: nothing that can be written can be executed", |f| {
        ["/tmp", "/run", "/dev/shm"].iter().all(|dir| f.cannot(dir))
    }),
    ("strict: it can write somewhere", |f| f.able.lines().any(|line| line == "write tmp")),
    ("strict: no set-id, no device, no new root", |f| f.cannot("mknod") && f.cannot("chroot")),
    ("no user namespaces inside", |f| f.own["max_user_namespaces"] == "0"),
];

/// Of the host there are the six devices that lead nowhere.
fn made_by_sbx(line: &str) -> bool {
    let own = ["overlay", "tmpfs", "proc", "sysfs", "devpts", "mqueue"];
    let device = ["null", "zero", "full", "random", "urandom", "tty"];
    own.iter().any(|kind| line.contains(&format!(" - {kind} ")))
        || line.contains(" - devtmpfs ") && device.iter().any(|name| line.contains(&format!(" /{name} /")))
}

/// Whether the plan has a limit, whoever enforces it on this host.
fn planned(option: &str, value: &str) -> bool {
    let plan = strict().options(&["--dry-run", "--json"]).command(&["true"]).run().exits(0);
    let plan: Value = serde_json::from_str(&plan.stdout).expect("JSON");
    let limits = plan["limits"].as_array().map(Vec::as_slice).unwrap_or_default();
    limits.iter().any(|limit| limit["option"] == option && limit["value"] == value)
}

#[test]
fn the_checklists_hold() {
    if !has("userns") || !has("tmpfs-xattrs") {
        return;
    }
    let script = "try() { name=$1; shift; \"$@\" >/dev/null 2>&1 && echo $name; }; echo looked
        try 'net device' sh -c 'ls /sys/class/net | grep -v -x lo'
        try 'read kcore' sh -c 'test -s /proc/kcore && head -c 1 /proc/kcore | grep -q .'
        try 'read keys' grep -q . /proc/keys
        try 'write sysctl' sh -c 'echo 0 >/proc/sys/kernel/shmmax'
        try 'write root' touch /x; try 'write etc' touch /etc/x; try 'write tmp' touch /tmp/x
        try 'host device' sh -c 'ls /dev | grep -E \"^(sd|vd|nvme|mem|kmsg|fuse|kvm)\"'
        try 'engine socket' sh -c 'ls /run/docker.sock /var/run/docker.sock /run/podman/podman.sock | grep -q .'
        for dir in /tmp /run /dev/shm; do cp /bin/busybox $dir/true; try $dir $dir/true; done
        try mknod mknod /tmp/n c 1 3; try mknod mknod /tmp/p p; try chroot chroot / true; true";
    let own = strict().probe("self").sees();
    let facts = Facts { own, host: outside("self", &[]), able: strict().sh(script).run().exits(0).stdout };
    let broken: Vec<&str> = ROWS.iter().filter(|(_, holds)| !holds(&facts)).map(|(row, _)| *row).collect();
    assert!(broken.is_empty(), "{broken:#?}\n{}\n{:#}", facts.able, facts.own);
}

/// Nor where `@host` shows empty directories and a copy of the caller's.
#[test]
fn nothing_that_it_writes_is_executed_on_the_hosts_root_either() {
    if !has("userns") || !has("tmpfs-xattrs") {
        return;
    }
    let scratch = Scratch::new();
    let script = "for dir in /var/tmp /home /mnt /media /tmp /run $HOME .; do
        cp /bin/true $dir/tried 2>/dev/null && echo written && $dir/tried 2>/dev/null && echo executed in $dir; done; true";
    let asked = sandbox(&["--policy", "strict"]).root("@host").cwd(scratch.dir("p")).env("HOME", scratch.dir("home"));
    let ran = asked.command(&["/bin/sh", "-c", script]).run().exits(0);
    assert!(ran.stdout.contains("written") && !ran.stdout.contains("executed"), "{ran:?}");
}

#[test]
fn ordinary_programs_live_in_it() {
    if !has("userns") || !has("tmpfs-xattrs") {
        return;
    }
    let script = "seq 1000 | sort -rn | head -1; echo x >/tmp/f && sed s/x/y/ /tmp/f; find /etc -name passwd; \
                  tar -cf - /etc 2>/dev/null | wc -c | grep -q . && (sleep 0.01 & wait) && echo done";
    strict().sh(script).run().exits(0).prints("1000\ny\n/etc/passwd\ndone");
}
