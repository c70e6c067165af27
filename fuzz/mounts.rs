//! The words of mounts: what is taken has absolute places without `..`.

#![no_main]

use sbx::spec::mount::Mount;
use sbx::spec::{Caller, InnerPath};
use std::path::Component;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let caller = Caller { cwd: "/work".into(), home: "/home/me".into(), env: Vec::new() };
    let parsed = [
        Mount::volume(&caller, text),
        Mount::key_values(&caller, text),
        Mount::tmpfs(text),
        Mount::device(&caller, text),
    ];
    for mount in parsed {
        match mount {
            Ok(mount) => plain(&mount.dst),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});

fn plain(place: &InnerPath) {
    let path = place.as_path();
    assert!(path.is_absolute() && path.components().all(|part| part != Component::ParentDir), "{}", path.display());
}
