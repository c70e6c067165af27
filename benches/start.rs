//! What a start costs, beside other tools, as an ordinary user: `cargo bench --bench start [-- --binds | --loop N]`.
//!
//! All commands run in one go, in a new random order each round, seen from outside (spawn to wait4); the figures are
//! medians over SBX_BENCH_RUNS rounds (60). sbx is the static release build, or what SBX_BIN names. Started as root it
//! makes the test user and runs again as that user, since root is not who sbx is for; what only root can see (calls
//! of set-id helpers, memory of a non-dumpable init) is measured before, also on that user's processes.

#![allow(unsafe_code)]

use std::env;
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USER: &str = "sbxtest";
const TRUE: &[&str] = &["/bin/true"];
const ECHO: &[&str] = &["/bin/echo", "ran"];
const SLEEP: &[&str] = &["/bin/sleep", "2"];
const BINDS: usize = 200;

/// The commands of the table, in its order.
const ROWS: [&str; 6] = ["sbx run", "sbx run --map full", "bwrap", "unshare", "crun run", "floor"];

fn main() -> Result<()> {
    let mode: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let Some(place) = env::var_os("SBX_BENCH_DIR") {
        return measure(&Place(place.into()), &mode);
    }
    if is_root()
        && env::var_os("SBX_BENCH_UNIFIED").is_none()
        && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
    {
        return again_with_cgroup2(&mode);
    }
    let place = Place::new()?;
    let done =
        prepare(&place).and_then(|()| if is_root() { again_as_user(&place, &mode) } else { measure(&place, &mode) });
    fs::remove_dir_all(&place.0)?;
    done
}

// --- The place: a directory with everything that the ordinary user runs ---

struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let stamp = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let path = PathBuf::from(format!("/var/tmp/sbx-bench.{stamp}"));
        fs::create_dir(&path)?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        Ok(Self(path))
    }

    fn of(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// The command of one row of the table, which runs `program` inside.
    fn row(&self, row: &str, program: &[&str]) -> Vec<String> {
        let (sbx, rootfs) = (self.of("sbx"), self.of("rootfs"));
        let mut command: Vec<String> = match row {
            "sbx run" => strings(&[&sbx, "run", &rootfs]),
            "sbx run --map full" => strings(&[&sbx, "run", "--map", "full", &rootfs]),
            "bwrap" => strings(&[
                "bwrap",
                "--unshare-all",
                "--die-with-parent",
                "--bind",
                &rootfs,
                "/",
                "--proc",
                "/proc",
                "--dev",
                "/dev",
                "--tmpfs",
                "/tmp",
                "--tmpfs",
                "/run",
            ]),
            "unshare" => strings(&[
                "unshare",
                "--user",
                "--map-root-user",
                "--mount",
                "--pid",
                "--ipc",
                "--uts",
                "--net",
                "--cgroup",
                "--fork",
                "--root",
                &rootfs,
            ]),
            "crun run" => {
                return strings(&[
                    "crun",
                    "--root",
                    &self.of("crun"),
                    "--cgroup-manager=disabled",
                    "run",
                    "--bundle",
                    &self.of(&bundle(program)),
                    "sbx-bench",
                ]);
            }
            "floor" => strings(&[&self.of("floor"), &rootfs]),
            _ => unreachable!("{row} is no row"),
        };
        command.extend(strings(program));
        command
    }
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// crun takes the program from a bundle, so each program has one.
fn bundle(program: &[&str]) -> String {
    format!("bundle{}", program[0].replace('/', "-"))
}

fn prepare(place: &Place) -> Result<()> {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = build(tree)?;
    let sbx = env::var_os("SBX_BIN").map_or_else(|| built.join("sbx"), PathBuf::from);
    fs::copy(sbx, place.of("sbx"))?;
    fs::copy(built.join("examples/floor"), place.of("floor"))?;
    fs::copy(env::current_exe()?, place.of("start"))?;
    run(Command::new(tree.join("tests/fixtures/rootfs")).arg(place.of("rootfs")))?;
    for n in 0..BINDS {
        fs::create_dir_all(place.of(&format!("binds/{n}")))?;
    }
    fs::create_dir(place.of("run"))?;
    fs::set_permissions(place.of("run"), PermissionsExt::from_mode(0o700))?;
    if is_root() {
        run(Command::new(tree.join("tests/run")).arg("--prepare"))?;
    }
    let (uid, gid) = (id_of("-u")?, id_of("-g")?);
    for program in [TRUE, ECHO, SLEEP] {
        let folder = place.0.join(bundle(program));
        fs::create_dir(&folder)?;
        fs::write(folder.join("config.json"), oci_config(&place.of("rootfs"), program, uid, gid).to_string())?;
    }
    if is_root() {
        run(Command::new("chown").args(["-R", &format!("{uid}:{gid}"), &place.of("")]))?;
    }
    Ok(())
}

/// Builds the static release binary and the floor; returns their directory.
fn build(tree: &Path) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", env::consts::ARCH);
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--locked", "--release", "--bin", "sbx", "--example", "floor", "--target", &target];
    run(Command::new(cargo).args(arguments).current_dir(tree))?;
    // This program is TARGET/release/deps/start-HASH.
    let own = env::current_exe()?;
    let top = own.ancestors().nth(3).ok_or("no target directory")?;
    Ok(top.join(target).join("release"))
}

fn oci_config(rootfs: &str, program: &[&str], uid: u32, gid: u32) -> serde_json::Value {
    let namespaces = ["user", "pid", "mount", "ipc", "uts", "cgroup", "network"];
    let namespaces: Vec<_> = namespaces.iter().map(|kind| serde_json::json!({ "type": kind })).collect();
    let mount = |kind: &str, at: &str| serde_json::json!({ "type": kind, "source": kind, "destination": at });
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": { "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": program, "cwd": "/", "env": [], "noNewPrivileges": true },
        "root": { "path": rootfs, "readonly": false },
        "mounts": [mount("proc", "/proc"), mount("tmpfs", "/dev"), mount("tmpfs", "/tmp"), mount("tmpfs", "/run")],
        "linux": {
            "uidMappings": [{ "containerID": 0, "hostID": uid, "size": 1 }],
            "gidMappings": [{ "containerID": 0, "hostID": gid, "size": 1 }],
            "namespaces": namespaces
        }
    })
}

// --- Who measures ---

fn is_root() -> bool {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The id of whom the commands run as.
fn id_of(which: &str) -> Result<u32> {
    let mut command = Command::new("id");
    command.arg(which);
    if is_root() {
        command.arg(USER);
    }
    Ok(String::from_utf8(command.output()?.stdout)?.trim().parse()?)
}

/// `command` as the ordinary user, in an environment of its own.
fn as_user(place: &Place, command: &[String]) -> Command {
    let drop = strings(&["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"]);
    let words: Vec<String> =
        if is_root() { drop.into_iter().chain(command.iter().cloned()).collect() } else { command.to_vec() };
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    clean(place, &mut command);
    command
}

fn clean(place: &Place, command: &mut Command) {
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LANG", "C.UTF-8");
    command.env("HOME", place.of("run")).env("XDG_RUNTIME_DIR", place.of("run"));
    command.current_dir(&place.0).stdin(Stdio::null());
}

/// crun refuses a machine whose /sys/fs/cgroup is not cgroup v2, so all commands get a mount namespace where it is.
fn again_with_cgroup2(mode: &[String]) -> Result<()> {
    let script = r#"mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$0" "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(env::current_exe()?).args(mode);
    run(command.env("SBX_BENCH_UNIFIED", "1"))
}

fn again_as_user(place: &Place, mode: &[String]) -> Result<()> {
    if mode.is_empty() {
        let facts: Vec<String> = ROWS.iter().map(|row| facts(place, row)).map(|facts| facts.join("\t")).collect();
        fs::write(place.of("facts"), facts.join("\n"))?;
    }
    let mut command = vec![place.of("start")];
    command.extend_from_slice(mode);
    let mut command = as_user(place, &command);
    command.env("SBX_BENCH_DIR", &place.0);
    if let Some(runs) = env::var_os("SBX_BENCH_RUNS") {
        command.env("SBX_BENCH_RUNS", runs);
    }
    run(&mut command)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

// --- What is measured ---

#[derive(Clone, Copy)]
struct Sample {
    wall: f64,
    cpu: f64,
}

/// One run, from before the spawn until after the wait, in milliseconds; nothing if it failed.
fn sample(place: &Place, words: &[String]) -> Option<Sample> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null());
    clean(place, &mut command);
    let start = Instant::now();
    #[allow(clippy::zombie_processes, reason = "wait4 below reaps it")]
    let child = command.spawn().ok()?;
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zeros are valid; both pointers are to locals that outlive the call.
    let (pid, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(child.id().cast_signed(), &mut status, 0, &mut usage), usage)
    };
    let wall = start.elapsed().as_secs_f64() * 1e3;
    let milliseconds = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    (pid > 0 && status == 0).then(|| Sample { wall, cpu: milliseconds(usage.ru_utime) + milliseconds(usage.ru_stime) })
}

/// Why `row` cannot be measured here. It must really run a program: a command that does nothing is fast.
fn hindrance(place: &Place, row: &str) -> Option<String> {
    let command = place.row(row, ECHO);
    let installed = env::split_paths("/usr/local/bin:/usr/bin:/bin").any(|folder| folder.join(&command[0]).exists());
    if !installed {
        return Some("not installed".into());
    }
    let limited: Vec<String> = strings(&["timeout", "20"]).into_iter().chain(command).collect();
    let output = match as_user(place, &limited).output() {
        Ok(output) => output,
        Err(error) => return Some(error.to_string()),
    };
    if output.status.success() && output.stdout == b"ran\n" {
        return None;
    }
    let words = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("ran nothing").to_owned();
    Some(format!("fails: {words}"))
}

/// System calls, private memory and size of `row`, as text.
fn facts(place: &Place, row: &str) -> [String; 3] {
    let text = |value: Option<u64>| value.map_or_else(|| "n/a".to_owned(), |value| value.to_string());
    if hindrance(place, row).is_some() {
        return [text(None), text(None), text(None)];
    }
    [text(system_calls(place, row)), text(private_kib(place, row)), text(binary_kib(&place.row(row, TRUE)[0]))]
}

/// All system calls of all processes of one run, by strace. Only root's strace lets set-id helpers be set-id.
fn system_calls(place: &Place, row: &str) -> Option<u64> {
    let table = place.of("run/strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-U", "calls,name", "-o", &table]);
    if is_root() {
        command.args(["-u", USER]);
    }
    command.args(place.row(row, TRUE)).stdout(Stdio::null()).stderr(Stdio::null());
    clean(place, &mut command);
    if !command.status().ok()?.success() {
        return None;
    }
    let table = fs::read_to_string(table).ok()?;
    let total = table.lines().find(|line| line.trim_end().ends_with(" total"))?;
    total.split_whitespace().next()?.parse().ok()
}

/// The private memory of the tool's processes while the program sleeps.
fn private_kib(place: &Place, row: &str) -> Option<u64> {
    let mut command = as_user(place, &place.row(row, SLEEP));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    sleep(Duration::from_secs(1));
    let processes = family(child.id());
    let sum = processes.into_iter().filter(|pid| comm(*pid) != "sleep").map(private_of).sum();
    child.wait().ok()?;
    sum
}

fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}

fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn private_of(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let private =
        rollup.lines().filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"));
    private.map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

fn binary_kib(program: &str) -> Option<u64> {
    let folders = env::split_paths("/usr/local/bin:/usr/bin:/bin").map(|folder| folder.join(program));
    Some(folders.filter_map(|path| fs::metadata(path).ok()).next()?.len().div_ceil(1024))
}

// --- The rounds ---

/// Runs every command once a round, in a random order, so that none always follows the same one.
fn rounds(place: &Place, commands: &[Vec<String>]) -> Vec<Vec<Sample>> {
    let mut samples = vec![Vec::new(); commands.len()];
    let mut order: Vec<usize> = (0..commands.len()).collect();
    let mut state = u64::from(std::process::id()) | 1;
    // The first five rounds warm the caches and are not counted.
    for round in 0..runs() + 5 {
        shuffle(&mut order, &mut state);
        for row in &order {
            let sample = sample(place, &commands[*row]);
            samples[*row].extend(sample.filter(|_| round >= 5));
        }
    }
    samples
}

/// Fisher and Yates', with xorshift numbers.
fn shuffle(order: &mut [usize], state: &mut u64) {
    for last in (1..order.len()).rev() {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        order.swap(last, (*state % (last as u64 + 1)) as usize);
    }
}

fn runs() -> usize {
    env::var("SBX_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(60)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn wall(samples: &[Sample]) -> f64 {
    median(samples.iter().map(|sample| sample.wall))
}

// --- The tables ---

fn measure(place: &Place, mode: &[String]) -> Result<()> {
    println!("{}, {} cpus\n", machine(), std::thread::available_parallelism()?);
    match mode.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(place),
        ["--binds"] => binds(place),
        ["--loop"] => one_after_the_other(place, 2000),
        ["--loop", count] => one_after_the_other(place, count.parse()?),
        _ => return Err("usage: cargo bench --bench start [-- --binds | --loop N]".into()),
    }
    Ok(())
}

fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", kernel.trim())
}

/// What root has measured before, or else what this user can see.
fn known_facts(place: &Place) -> Vec<[String; 3]> {
    let Ok(table) = fs::read_to_string(place.of("facts")) else {
        return ROWS.iter().map(|row| facts(place, row)).collect();
    };
    let field = |line: &str, n| line.split('\t').nth(n).unwrap_or("n/a").to_owned();
    table.lines().map(|line| [field(line, 0), field(line, 1), field(line, 2)]).collect()
}

fn compare(place: &Place) {
    let facts = known_facts(place);
    let hindrances: Vec<_> = ROWS.iter().map(|row| hindrance(place, row)).collect();
    let able: Vec<usize> = (0..ROWS.len()).filter(|row| hindrances[*row].is_none()).collect();
    let commands: Vec<_> = able.iter().map(|row| place.row(ROWS[*row], TRUE)).collect();
    let samples = rounds(place, &commands);
    let of = |row: usize| able.iter().position(|able| *able == row).map(|n| &samples[n]);
    let ratio = |own: f64, other: &str| {
        let other = ROWS.iter().position(|row| *row == other).and_then(of);
        other.map_or_else(|| "n/a".to_owned(), |other| format!("{:.2}", own / wall(other)))
    };
    println!("{} rounds, medians, milliseconds; memory and size in KiB\n", runs());
    println!("| command | wall | min | user+sys | × bwrap | × floor | system calls | private memory | binary |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for (n, name) in ROWS.iter().enumerate() {
        let Some(samples) = of(n) else {
            println!("| {name} | {} | | | | | | | |", hindrances[n].as_deref().unwrap_or_default());
            continue;
        };
        let own = wall(samples);
        let least = samples.iter().map(|sample| sample.wall).fold(f64::INFINITY, f64::min);
        let cpu = median(samples.iter().map(|sample| sample.cpu));
        let [calls, memory, size] = &facts[n];
        let (bwrap, floor) = (ratio(own, "bwrap"), ratio(own, "floor"));
        println!("| {name} | {own:.2} | {least:.2} | {cpu:.2} | {bwrap} | {floor} | {calls} | {memory} | {size} |");
        if samples.len() < runs() {
            eprintln!("{name}: {} of {} runs failed and are not counted", runs() - samples.len(), runs());
        }
    }
}

/// What 200 read-only binds cost over none.
fn binds(place: &Place) {
    if let Some(why) = hindrance(place, "sbx run") {
        return println!("sbx run: {why}");
    }
    let bare = place.row("sbx run", TRUE);
    let volumes =
        (0..BINDS).flat_map(|n| ["-v".to_owned(), format!("{}:/mnt/{n}:ro", place.of(&format!("binds/{n}")))]);
    let mut full = bare.clone();
    full.splice(2..2, volumes);
    let samples = rounds(place, &[bare, full]);
    let (none, all) = (wall(&samples[0]), wall(&samples[1]));
    println!("| binds | wall, ms |\n|---|---|\n| none | {none:.2} |\n| {BINDS} read-only | {all:.2} |");
    println!("| difference | {:.2} |", all - none);
}

/// Whether starts become slower: the last tenth of `count` against the first.
fn one_after_the_other(place: &Place, count: usize) {
    if let Some(why) = hindrance(place, "sbx run") {
        return println!("sbx run: {why}");
    }
    let command = place.row("sbx run", TRUE);
    // The first ones warm the caches and are not counted.
    let _ = (0..20).filter_map(|_| sample(place, &command)).count();
    let samples: Vec<Sample> = (0..count).filter_map(|_| sample(place, &command)).collect();
    let part = (samples.len() / 10).max(1).min(samples.len());
    let (first, last) = (wall(&samples[..part]), wall(&samples[samples.len() - part..]));
    println!("| starts | wall, ms |\n|---|---|\n| first {part} | {first:.2} |\n| last {part} | {last:.2} |");
    println!("| ratio | {:.2} |\n\n{} of {count} failed", last / first, count - samples.len());
}
