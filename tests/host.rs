//! `@host`, this machine's own root: what is empty, what is dropped, what is read-only, and what it keeps of its
//! caller (CLI.md, ROOTFS). Homes in odd places are made with `unshare`, whose mounts end with it.

mod common;

use common::tree::picture;
use common::{Sandbox, Scratch, has, sandbox, volume};
use std::fs;
use std::path::PathBuf;

/// `@host` as its caller would start it from this directory.
fn here(options: &[&str], cwd: impl Into<PathBuf>) -> Sandbox {
    sandbox(options).root("@host").cwd(cwd.into())
}

/// The same on a machine where /srv and /home are file systems of their own: /srv/me is a home that /home/me links
/// to, and /srv/work/project a project. `cwd` and `home` are places there.
fn elsewhere(options: &[&str], cwd: &str, home: &str) -> Sandbox {
    let script = "mount -t tmpfs t /srv && mount -t tmpfs t /home && mkdir -p /srv/me/below /srv/work/project && \
                  echo secret >/srv/me/key && echo mine >/srv/work/project/file && ln -s /srv/me /home/me && \
                  cd \"$1\" && export HOME=\"$2\" && shift 2 && exec \"$@\"";
    here(options, "/").under(&["unshare", "-Urm", "sh", "-c", script, "sh", cwd, home])
}

#[test]
fn what_is_private_is_empty_writable_and_dropped() {
    let scratch = Scratch::new();
    let [project, home] = ["project", "home"].map(|name| scratch.dir(name));
    scratch.file("home/secret", "secret");
    let before = picture(scratch.path());
    let empty = "/root /mnt /media /tmp \"$HOME\"";
    let script = format!(
        "ls -A {empty} | grep -v -e '^$' -e ':$'; ls -A /run; for d in /home /run {empty}; do echo x >$d/x || exit 9; done"
    );
    here(&[], &project).env("HOME", &home).sh(&script).run().exits(0).prints(".containerenv");
    assert_eq!(picture(scratch.path()), before);
    // The directories above the working directory are made, and hold nothing else.
    here(&[], &project).env("HOME", &home).sh("ls -A ..").run().exits(0).prints("home\nproject");
}

#[test]
fn a_home_behind_a_link_is_hidden_in_both_places() {
    if !has("userns") {
        return;
    }
    let look = "cat /home/me/key /srv/me/key ./key 2>/dev/null; ls -A /srv/me; ls -A /home/me 2>/dev/null; true";
    for home in ["/home/me", "/srv/me", "/home/../srv/me", "/srv/work/../me/"] {
        for cwd in ["/srv/work/project", "/srv/me", "/srv"] {
            elsewhere(&[], cwd, home).sh(look).run().exits(0).prints("");
        }
    }
    elsewhere(&[], "/srv/me", "/home/me").sh("pwd; echo x >$HOME/x && cat $HOME/x").run().exits(0).prints("/srv/me\nx");
    // What lies below the home and is asked for by its name is there.
    elsewhere(&[], "/srv/me/below", "/home/me").sh("ls -A /srv/me; echo x >x").run().exits(0).prints("below");
}

#[test]
fn a_caller_without_home_has_that_of_passwd() {
    let Some(home) = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_dir()) else {
        return println!("SKIP a_caller_without_home_has_that_of_passwd: no home");
    };
    let secret = tempfile::Builder::new().prefix("sbx-test").tempdir_in(&home).expect("a directory of the home");
    let name = secret.path().file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    for unset in [&["env", "-u", "HOME"][..], &["env", "HOME=relative"], &["env", "HOME=/no/such/home"]] {
        let found = here(&[], &home).under(unset).sh("pwd; ls -A").run().exits(0);
        assert!(!found.stdout.contains(&name), "{unset:?}: {found:?}");
    }
}

/// It cannot be shown as an empty directory, and is no home: that of passwd is hidden.
#[test]
fn a_home_that_is_a_file_is_none() {
    let scratch = Scratch::new();
    let project = scratch.dir("project");
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_dir());
    for file in ["/etc/passwd", "/bin/sh", "/dev/null"] {
        let look = || here(&[], &project).env("HOME", file);
        look().sh("echo $HOME").run().exits(0).prints(file);
        if let Some(home) = &home {
            let list = format!("ls -A {} 2>/dev/null; true", home.display());
            look().sh(&list).run().exits(0).prints("");
        }
    }
}

#[test]
fn changes_of_the_working_directory_are_dropped() {
    let scratch = Scratch::new();
    scratch.file("project/dir/file", "old");
    let project = scratch.join("project");
    let before = picture(&project);
    let script = "cat dir/file; echo new >dir/file; echo more >more; rm -r dir; cat more; pwd";
    here(&[], &project).sh(script).run().exits(0).prints(&format!("oldmore\n{}", project.display()));
    assert_eq!(picture(&project), before);
    // Named by a volume, it is written.
    let own = volume(&project, project.to_str().expect("UTF-8"));
    here(&["-v"], &project).option(own).sh("echo new >dir/file").run().exits(0);
    assert_eq!(fs::read_to_string(project.join("dir/file")).expect("file"), "new\n");
}

#[test]
fn the_machines_own_files_are_read_and_never_written() {
    let scratch = Scratch::new();
    let etc = fs::read("/etc/passwd").expect("/etc/passwd");
    let script =
        "cmp /etc/passwd /etc/passwd && [ -x /bin/sh ] && ls /usr/bin | grep -c .; touch /usr/new 2>/dev/null; true";
    let outcome = here(&[], scratch.path()).sh(script).run().exits(0);
    assert!(outcome.stdout.trim().parse::<u32>().is_ok_and(|count| count > 10), "{outcome:?}");
    assert!(fs::read("/etc/passwd").is_ok_and(|now| now == etc) && !PathBuf::from("/usr/new").exists());
    if has("userns") {
        let script = "echo x 2>/dev/null >/srv/new || echo closed; cat /srv/work/project/file";
        elsewhere(&["--landlock", "off"], "/", "/home/me").sh(script).run().exits(0).prints("closed\nmine");
    }
}

#[test]
fn home_path_and_working_directory_are_the_callers() {
    let scratch = Scratch::new();
    let home = scratch.dir("home");
    let path = "/usr/bin:/bin:/opt/odd";
    let asked = here(&[], scratch.path()).env("HOME", &home).env("PATH", path).env("SECRET", "canary");
    let facts = asked.probe("self").sees();
    let env: Vec<&str> = facts["env"].as_array().expect("env").iter().filter_map(|v| v.as_str()).collect();
    let wanted = [format!("HOME={}", home.display()), format!("PATH={path}")];
    assert!(
        wanted.iter().all(|one| env.contains(&one.as_str())) && !env.iter().any(|v| v.contains("canary")),
        "{env:?}"
    );
    assert_eq!(facts["cwd"], scratch.path().to_str().expect("UTF-8"));
    let uid = common::host_facts()["uid"].as_i64().expect("uid");
    assert_eq!(facts["uid_map"], format!("{uid} {uid} 1"));
}

#[test]
fn read_only_leaves_writable_what_is_the_sandboxs_own() {
    let scratch = Scratch::new();
    let project = scratch.dir("project");
    let open = "for d in /tmp /run /dev/shm /home /root /mnt /var/tmp . \"$HOME\"; do echo x >$d/x || exit 9; done";
    let closed = "for d in / /usr /etc /var; do echo x 2>/dev/null >$d/x && echo \"wrote $d\"; done; true";
    for landlock in ["auto", "off"] {
        let run = || here(&["--read-only", "--landlock", landlock], &project);
        run().sh(&format!("{open}; {closed}")).run().exits(0).prints("");
        if has("userns") {
            let run = elsewhere(&["--read-only", "--landlock", landlock], "/srv/work/project", "/home/me");
            run.sh("echo x >x && mkdir d && echo x >/srv/me/x && cat x file").run().exits(0).prints("x\nmine");
        }
    }
    assert_eq!(fs::read_dir(project).expect("list").count(), 0);
}

#[test]
fn a_volume_on_a_directory_of_the_machines_stays_as_it_was_asked_for() {
    let scratch = Scratch::new();
    let [project, shared] = ["project", "shared"].map(|name| scratch.dir(name));
    for landlock in ["auto", "off"] {
        let run = || here(&["--read-only", "--landlock", landlock], &project);
        run().option("-v").option(volume(&shared, "/opt")).sh("echo new >/opt/file").run().exits(0);
        assert_eq!(fs::read_to_string(shared.join("file")).expect("made inside"), "new\n");
        fs::remove_file(shared.join("file")).expect("remove");
        let closed = "echo 2>/dev/null >/opt/x || echo closed";
        run().option("-v").option(volume(&shared, "/opt:ro")).sh(closed).run().prints("closed");
    }
}
