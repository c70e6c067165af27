//! README's walk through a sandbox in the background, typed as it is printed there: what it shows is what README shows,
//! but for pids and times.

mod support;

use std::os::unix::fs::symlink;
use support::screen::{Reader, Screen};
use support::{Place, Run, Running, lacks, sbx, soon};

/// A command of README's, and what is printed below it.
struct Typed {
    command: String,
    shown: Vec<String>,
}

/// The commands of all console blocks that speak of the sandbox `web`, in their order.
fn walk() -> Vec<Typed> {
    let tree = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
    let readme = std::fs::read_to_string(format!("{tree}/README.md")).expect("README.md");
    let blocks = readme.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut walk: Vec<Typed> = Vec::new();
    for line in blocks.filter(|block| block.contains(" web")).flat_map(str::lines) {
        match (line.strip_prefix("$ "), walk.last_mut()) {
            (Some(command), _) => walk.push(Typed { command: command.into(), shown: Vec::new() }),
            (None, Some(last)) => last.shown.push(line.into()),
            (None, None) => panic!("{line:?} belongs to no command"),
        }
    }
    walk
}

/// The same text whatever the numbers are, and however wide they make a column.
fn alike(text: &str) -> Vec<String> {
    let mask = |word: &str| match word.starts_with(|c: char| c.is_ascii_digit()) {
        true => "N".into(),
        false => word.to_owned(),
    };
    let units = |word: &&str| !["s", "min", "h"].contains(word);
    let line = |line: &str| line.split_whitespace().filter(units).map(mask).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect()
}

fn typed(place: &Place, command: &str) -> Run {
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", place.path("bin").display());
    place.run("sh", ["-c", command]).env("PATH", path)
}

#[test]
fn the_readmes_walk_works_as_printed() {
    if lacks(&["userns"]) {
        return;
    }
    // README's own port; the sandbox has the host's network.
    if let Err(error) = std::net::TcpListener::bind("0.0.0.0:8080") {
        println!("SKIP the_readmes_walk_works_as_printed: port 8080 of this machine: {error}");
        return;
    }
    let place = Place::new();
    std::fs::create_dir_all(place.path("site")).expect("mkdir");
    std::fs::create_dir_all(place.path("bin")).expect("mkdir");
    place.write("site/index.html", "hello\n");
    symlink(sbx(), place.path("bin/sbx")).expect("sbx in PATH");
    symlink(place.rootfs(), place.path("rootfs")).expect("a rootfs");
    let walk = walk();
    let of = |word: &str| walk.iter().any(|typed| typed.command.contains(word));
    for word in ["run -d", "logs", "exec -it", "ps", "stats", "stop", "wait", "rm"] {
        assert!(of(word), "README does not show {word}");
    }
    let mut watching: Vec<(Running, Screen)> = Vec::new();
    for Typed { command, shown } in &walk {
        let follows = command.contains(" -f web") || command.contains("attach");
        if follows || command.contains(" -it ") {
            let screen = Screen::new(Reader::Fast);
            let mut running = screen.start(typed(&place, command));
            if follows {
                watching.push((running, screen));
                continue;
            }
            // A shell inside, which sees what README mounts.
            screen.type_in("cat /srv/index.html; exit 7\n");
            assert!(soon(|| running.ended().is_some()), "{command}: {:?}", screen.text());
            running.done().exits(7);
            assert!(screen.text().contains("hello"), "{command}: {:?}", screen.text());
            continue;
        }
        let done = typed(&place, command).done().exits(0);
        assert_eq!(done.err, "", "{command}");
        assert_eq!(alike(&done.text()), alike(&shown.join("\n")), "{command}");
        if command.contains("run -d") {
            let answers =
                || typed(&place, "busybox wget -qO- http://127.0.0.1:8080/index.html").done().text() == "hello\n";
            assert!(soon(answers), "the server does not answer");
        }
    }
    for (mut running, screen) in watching {
        assert!(soon(|| running.ended().is_some()), "it follows what has ended: {:?}", screen.text());
        running.done();
    }
    place.assert_clean();
}
