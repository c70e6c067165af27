//! Lines of /proc/self/mountinfo: at most one mount point for each.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    assert!(sbx::host::mount_points_of(text).len() <= text.lines().count());
});
