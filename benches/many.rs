//! What 200 living sandboxes cost: `cargo bench --bench many [-- N]`. How long `sbx ps`, `ps --json` and `stats` take
//! among them, and the private memory of a supervisor and of an init.
//!
//! sbx is the static release build, or what SBX_BIN names. As root the sandboxes are those of the test user
//! (`tests/run --prepare` makes it), whose non-dumpable inits only root can look into.

use std::env;
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USER: &str = "sbxtest";
const ROUNDS: usize = 31;

fn main() -> Result<()> {
    let number = env::args().skip(1).find(|argument| argument != "--bench");
    let number = number.map_or(Ok(200), |number| number.parse::<usize>())?;
    let place = PathBuf::from(format!("/var/tmp/sbx-many.{}", std::process::id()));
    fs::create_dir(&place)?;
    let done = prepare(&place).and_then(|()| measure(&place, number));
    fs::remove_dir_all(&place)?;
    done
}

fn prepare(place: &Path) -> Result<()> {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))?;
    let sbx = match env::var_os("SBX_BIN") {
        Some(sbx) => sbx.into(),
        None => build(tree)?,
    };
    fs::copy(sbx, place.join("sbx"))?;
    run(Command::new(tree.join("tests/fixtures/rootfs")).arg(place.join("rootfs")))?;
    fs::create_dir(place.join("run"))?;
    fs::set_permissions(place.join("run"), fs::Permissions::from_mode(0o700))?;
    if is_root() {
        run(Command::new("chown").args(["-R", &format!("{USER}:")]).arg(place))?;
    }
    Ok(())
}

/// This program is TARGET/release/deps/many-HASH.
fn build(tree: &Path) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", env::consts::ARCH);
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--locked", "--release", "--bin", "sbx", "--target", &target];
    run(Command::new(cargo).args(arguments).current_dir(tree))?;
    let own = env::current_exe()?;
    Ok(own.ancestors().nth(3).ok_or("no target directory")?.join(target).join("release/sbx"))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

/// sbx as the user whose sandboxes they are.
fn sbx(place: &Path, words: &[&str]) -> Command {
    let drop = ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"];
    let sbx = place.join("sbx");
    let mut command = match is_root() {
        true => Command::new(drop[0]),
        false => Command::new(&sbx),
    };
    if is_root() {
        command.args(&drop[1..]).arg(&sbx);
    }
    command.args(words).env_clear().env("PATH", "/usr/bin:/bin");
    command.env("HOME", place.join("run")).env("XDG_RUNTIME_DIR", place.join("run"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn measure(place: &Path, number: usize) -> Result<()> {
    let rootfs = place.join("rootfs").display().to_string();
    let mut living: Vec<Child> = Vec::new();
    for n in 0..number {
        living.push(sbx(place, &["run", "--name", &format!("many-{n}"), &rootfs, "sleep", "1000"]).spawn()?);
    }
    let up = |n: usize| place.join(format!("run/sbx/many-{n}/control")).exists();
    let begin = Instant::now();
    while !(0..number).all(up) && begin.elapsed() < Duration::from_secs(120) {
        sleep(Duration::from_millis(50));
    }
    // They give their memory back when they have waited for a moment.
    sleep(Duration::from_secs(1));
    println!("{number} sandboxes alive; medians of {ROUNDS} rounds\n\n| command | ms |\n|---|---|");
    for words in [&["ps"][..], &["ps", "--json"], &["--version"]] {
        println!("| sbx {} | {:.1} |", words.join(" "), time(place, words)?);
    }
    memory(&living);
    let stop = Instant::now();
    let names: Vec<String> = (0..number).map(|n| format!("many-{n}")).collect();
    let words: Vec<&str> = ["stop"].into_iter().chain(names.iter().map(String::as_str)).collect();
    run(&mut sbx(place, &words))?;
    println!("| sbx stop of all | {:.0} ms |", stop.elapsed().as_secs_f64() * 1e3);
    living.iter_mut().try_for_each(|child| child.wait().map(drop))?;
    Ok(())
}

fn time(place: &Path, words: &[&str]) -> Result<f64> {
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        run(&mut sbx(place, words))?;
        samples.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[ROUNDS / 2])
}

/// setpriv has become sbx, so a child is a supervisor; its only child is the init.
fn memory(living: &[Child]) {
    println!("\n| process | private memory, median, KiB |\n|---|---|");
    let supervisors: Vec<u32> = living.iter().map(Child::id).collect();
    let inits = supervisors.iter().filter_map(|pid| {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    });
    for (name, pids) in [("supervisor", supervisors.clone()), ("init", inits.collect())] {
        let mut sizes: Vec<u64> = pids.into_iter().filter_map(private).collect();
        sizes.sort_unstable();
        match sizes.get(sizes.len() / 2) {
            Some(median) => println!("| {name} | {median} (at most {}) |", sizes.last().unwrap_or(median)),
            None => println!("| {name} | only root can see it |"),
        }
    }
}

fn private(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    lines
        .filter(|line| !line.starts_with("Private_Hugetlb"))
        .map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}
