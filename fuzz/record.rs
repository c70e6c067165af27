//! The record of a sandbox: what is read is written so that it reads the same.

#![no_main]

use sbx::state::Record;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = serde_json::from_slice::<Record>(bytes) {
        let text = serde_json::to_string(&record).expect("a record is written");
        assert_eq!(serde_json::from_str::<Record>(&text).expect("and read"), record);
    }
});
