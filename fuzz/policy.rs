//! Policy files: an error points into the text, and what is read resolves or is refused.

#![no_main]

use sbx::spec::{Caller, Layer, Spec};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let caller = Caller { cwd: "/work".into(), home: "/home/me".into(), env: Vec::new() };
    match sbx::front::policy::parse("fuzz.toml", text) {
        Ok(layer) => {
            let asked = Layer { rootfs: Some("/".into()), command: vec!["true".into()], ..Layer::default() };
            let _ = Spec::resolve(&[layer, asked], &caller).map_err(|error| error.to_string());
        }
        Err(sbx::Error::Policy { at: Some((line, column)), text: shown, .. }) => {
            assert!(line >= 1 && line <= text.split('\n').count(), "line {line}");
            assert!(column >= 1 && text.contains(&shown), "column {column} of {shown:?}");
        }
        Err(error) => drop(error.to_string()),
    }
});
