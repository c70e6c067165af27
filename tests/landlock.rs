//! `[landlock]` of a policy: where files may be executed, and which TCP ports are there. Each rule is asked for by name,
//! so that a kernel without it refuses the run (S45).

mod common;

use common::{Sandbox, Scratch, has, sandbox};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

fn under(scratch: &Scratch, policy: &str) -> Sandbox {
    sandbox(&["--policy"]).option(scratch.file("policy.toml", policy))
}

#[test]
fn only_the_places_named_can_be_executed() {
    if !has("landlock") {
        return;
    }
    let scratch = Scratch::new();
    let script = "cp /bin/busybox /tmp/true && /tmp/true && echo ran; /bin/true && echo bin; \
                  cat /tmp/true >/tmp/copy && echo read; sh -c 'exec /tmp/true' 2>/dev/null || echo no";
    let ruled = "landlock.exec = [\"/bin\", \"/none\"]\n";
    under(&scratch, ruled).sh(script).run().exits(0).prints("bin\nread\nno");
    under(&scratch, "").sh(script).run().exits(0).prints("ran\nbin\nread");
    // The very program that is asked for is held to it too.
    under(&scratch, "landlock.exec = [\"/none\"]\n").sh("true").run().exits(126);
}

#[test]
fn only_the_ports_named_are_there() {
    if !has("landlock") {
        return;
    }
    let scratch = Scratch::new();
    let script = "echo hi | nc -l -p 8080 & for n in 1 2 3 4 5 6 7 8 9; do nc 127.0.0.1 8080 2>/dev/null && break; sleep 0.2; done; \
                  nc -l -p 8081 </dev/null 2>&1 | grep -o denied; nc 127.0.0.1 22 2>&1 | grep -o -e denied -e refused";
    let ruled = "landlock.tcp-bind = [8080]\nlandlock.tcp-connect = [8080]\n";
    under(&scratch, ruled).sh(script).run().prints("hi\ndenied\ndenied");
    // Without rules on files there is room for another sandbox, and the ports stay shut, for programs that come later too.
    let nested = format!("{ruled}hardening.nest = true\n");
    under(&scratch, &nested).sh(script).run().prints("hi\ndenied\ndenied");
    let none = "landlock.tcp-connect = []\n";
    under(&scratch, none).sh("nc 127.0.0.1 22 2>&1 | grep -o denied").run().exits(0).prints("denied");
}

#[test]
fn scopes_are_chosen_by_name() {
    if !has("landlock") {
        return;
    }
    let scratch = Scratch::new();
    let name = format!("sbx-scope-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("an abstract socket");
    let connect = |scope: &str| {
        let asked = under(&scratch, &format!("net.mode = \"host\"\n{scope}"));
        asked.probe_with("abstract", &[&name]).sees()
    };
    assert_eq!(connect(""), libc::EPERM);
    assert_eq!(connect("landlock.scope = [\"abstract-sockets\"]\n"), libc::EPERM);
    for open in ["[]", "[\"signals\"]"] {
        assert_eq!(connect(&format!("landlock.scope = {open}\n")), 0, "{open}");
    }
    under(&scratch, "landlock.scope = [\"signal\"]\n").sh("true").run().refused().says("signals, abstract-sockets");
}

#[test]
fn a_rule_that_cannot_be_had_is_refused() {
    let scratch = Scratch::new();
    for (text, word) in [
        ("[landlock]\nexec = [\"/bin\"]\nmode = \"off\"\n", "contradict each other"),
        ("[landlock]\nexec = [\"/bin\"]\n[hardening]\nnest = true\n", "--nest and [landlock] exec"),
        ("[landlock]\ntcp-bind = [70000]\n", "policy.toml:2:"),
        ("[landlock]\nexec = [\"bin\"]\n", "starts with /"),
    ] {
        under(&scratch, text).sh("true").run().refused().says(word);
    }
    if common::host_facts()["landlock"].as_i64().unwrap_or(0) < 4 {
        under(&scratch, "landlock.tcp-bind = [1]\n").sh("true").run().refused().says("has none of it before ABI 4");
    }
}
