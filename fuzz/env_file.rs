//! Files of variables: no name is empty or holds blanks, and an error points into the text.

#![no_main]

use sbx::spec::{Caller, Layer, layer::Env};
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(place()).expect("a file");
    std::fs::remove_file(place()).expect("its name");
    file.write_all(bytes).and_then(|()| file.rewind()).expect("its content");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut layer = Layer { env: Env { env_file: vec![path], ..Env::default() }, ..Layer::default() };
    match sbx::front::env_file::read(&mut layer, &Caller { cwd: "/".into(), ..Caller::default() }) {
        Ok(files) => {
            let named = |name: &String| !name.is_empty() && !name.contains(char::is_whitespace);
            for Env { set, pass, .. } in files.iter().map(|file| &file.env) {
                assert!(set.keys().chain(pass).all(named), "{set:?} {pass:?}");
            }
        }
        Err(sbx::Error::Policy { at: Some((line, 1)), .. }) => {
            assert!(line <= String::from_utf8_lossy(bytes).lines().count(), "line {line}");
        }
        Err(error) => panic!("{error}"),
    }
});

fn place() -> String {
    format!("/dev/shm/sbx-fuzz-{}", std::process::id())
}
