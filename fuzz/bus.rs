//! What a manager or a bus answers: a message or a reason, whatever comes, and no more than its length says is read.

#![no_main]

use sbx::cgroup::wire::{Message, length};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::parse(bytes) {
        let length = length(bytes).expect("a length").expect("a whole message");
        assert!(length <= bytes.len() && message.body().rest().len() < length);
        let mut body = message.body();
        while body.text().is_ok() || body.u32().is_ok() || body.signature().is_ok() || body.byte().is_ok() {}
    }
});
