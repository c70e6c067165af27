//! Filters in JSON: an error points into the text, and what is read compiles or is refused.

#![no_main]

use sbx::plan::call_rules::applied;
use sbx::plan::seccomp::{Policy, program};
use sbx::spec::access::Capabilities;

libfuzzer_sys::fuzz_target!(|text: &str| {
    match sbx::front::seccomp_json::parse("fuzz.json", text) {
        Ok(profile) => {
            let profile = Some(applied(&profile, Capabilities::default_set(), (6, 1)));
            let _ = program(&Policy { profile, ..Policy::default() }).map_err(|error| error.to_string());
        }
        Err(sbx::Error::Policy { at: Some((line, column)), .. }) => {
            assert!(line >= 1 && column >= 1 && line <= text.split('\n').count() + 1, "line {line}");
        }
        Err(error) => drop(error.to_string()),
    }
});
