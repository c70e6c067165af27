//! `[hide]` of a policy: what shows nothing, whatever lies there, and leaves nothing behind.

mod common;

use common::tree::picture;
use common::{Sandbox, Scratch, sandbox};
use std::fs;
use std::path::Path;

/// A run under a policy of this text.
fn under(scratch: &Scratch, policy: &str) -> Sandbox {
    let file = scratch.file("policy.toml", policy);
    let home = scratch.join("home");
    sandbox(&["--policy"]).option(file).cwd(scratch.path()).env("HOME", home)
}

/// A home with secrets in it, reached through links too.
fn home(scratch: &Scratch) -> String {
    for file in ["home/.ssh/id", "home/.netrc", "home/dots/token", "home/.cache/tool/data", "home/project/src"] {
        scratch.file(file, &format!("secret of {file}"));
    }
    std::os::unix::fs::symlink("dots/token", scratch.join("home/.token")).expect("a link");
    scratch.join("home").display().to_string()
}

#[test]
fn a_hidden_directory_is_empty_and_writable_and_dropped() {
    let scratch = Scratch::new();
    let home = home(&scratch);
    let before = picture(&scratch.join("home"));
    let policy = "hide.paths = [\"~\"]\n[[mount]]\nsrc = \"~\"\naccess = \"rw\"\n\
                  [[mount]]\nsrc = \"~/.cache/tool\"\naccess = \"overlay\"\n[[mount]]\nsrc = \"~/project\"\naccess = \"rw\"";
    let script = format!(
        "cd {home}; find . -type f | sort; echo new >.cache/tool/data; echo new >made; cat .ssh/id .netrc 2>&1 | wc -l"
    );
    // The longer path wins, in both directions.
    under(&scratch, policy).sh(&script).run().exits(0).prints("./.cache/tool/data\n./project/src\n2");
    assert_eq!(picture(&scratch.join("home")), before);
}

#[test]
fn hidden_files_links_and_names_of_a_pattern_show_nothing() {
    let scratch = Scratch::new();
    let home = home(&scratch);
    for name in [".env", ".env.local", "readme"] {
        scratch.file(Path::new("home/project").join(name), "secret");
    }
    let before = picture(&scratch.join("home"));
    let policy = "hide.paths = [\"~/.ssh\", \"~/.netrc\", \"~/.token\", \"~/project/.env*\", \"~/none\", \"~/a/*/b\"]\n\
                  [[mount]]\nsrc = \"~\"\naccess = \"rw\"";
    let script = format!(
        "cd {home}; cat .ssh/id .netrc .token dots/token project/.env project/.env.local 2>/dev/null; \
         rm -f .netrc project/.env 2>/dev/null; mv .ssh ssh 2>/dev/null; cat ssh/id 2>/dev/null; cat project/readme; ls none"
    );
    under(&scratch, policy).sh(&script).run().exits(1).prints("secret");
    assert_eq!(picture(&scratch.join("home")), before);
}

/// Names are bytes.
#[test]
fn names_that_are_no_text_are_hidden_or_refused() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = Scratch::new();
    home(&scratch);
    let name = std::ffi::OsStr::from_bytes(b"home/project/.env\xff");
    fs::write(scratch.join(name), "secret").expect("a file");
    let policy = "hide.paths = [\"~/project/.env*\"]\n[[mount]]\nsrc = \"~\"\naccess = \"rw\"";
    let script = format!("cat {}/project/.env*", scratch.join("home").display());
    under(&scratch, policy).sh(&script).run().exits(0).prints("");
    let place = scratch.join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&place).expect("a directory");
    fs::write(place.join(".env"), "secret").expect("a file");
    for policy in
        ["hide.paths = [\"./.env\"]\n", "[[mount]]\nsrc = \".\"\naccess = \"rw\"\n", "protect.paths = [\"./.env\"]\n"]
    {
        under(&scratch, policy).root("@host").cwd(&place).command(&["cat", ".env"]).run().refused().says("not UTF-8");
    }
}

#[test]
fn it_holds_in_the_root_and_under_a_read_only_one() {
    let scratch = Scratch::new();
    let policy = "hide.paths = [\"/home\", \"/etc/pass*\"]\n[root]\nread-only = true";
    let script = "ls /home; wc -c </etc/passwd; echo kept >/home/x && cat /home/x";
    under(&scratch, policy).sh(script).run().exits(0).prints("0\nkept");
}

#[test]
fn the_command_line_lifts_what_it_mounts() {
    let scratch = Scratch::new();
    let home = home(&scratch);
    let policy = "hide.paths = [\"~/.ssh\"]\n[[mount]]\nsrc = \"~\"";
    let asked = under(&scratch, policy).option("-v").option(format!("{home}/.ssh:{home}/.ssh:ro"));
    asked
        .sh(&format!("cat {home}/.ssh/id"))
        .run()
        .exits(0)
        .prints("secret of home/.ssh/id")
        .says("lifts a policy's [hide]");
}

#[test]
fn patterns_that_cannot_be_looked_up_are_refused() {
    let scratch = Scratch::new();
    under(&scratch, "hide.paths = [\"~/**/x\"]").sh("true").run().refused().says("within one name");
    let many = scratch.dir("home/many");
    for n in 0..1100 {
        fs::write(many.join(format!("{n}")), "").expect("a file");
    }
    let policy = "hide.paths = [\"~/many/*\"]\n[[mount]]\nsrc = \"~\"";
    under(&scratch, policy).sh("true").run().refused().says("more than 1000 paths");
}
