//! Names for sandboxes whose user gave none: `adjective-noun-hex4`.

const ADJECTIVES: [&str; 32] = [
    "amber", "brave", "brisk", "calm", "clear", "crisp", "dapper", "eager", "fair", "fleet", "fond", "fresh", "gentle",
    "glad", "grand", "happy", "keen", "kind", "light", "lively", "lucid", "merry", "mild", "neat", "noble", "quick",
    "quiet", "rapid", "sharp", "steady", "swift", "tidy",
];
const NOUNS: [&str; 32] = [
    "acorn", "badger", "beacon", "birch", "brook", "cedar", "clover", "comet", "coral", "dune", "ember", "falcon",
    "fern", "finch", "garnet", "grove", "harbor", "heron", "island", "lark", "maple", "meadow", "otter", "pebble",
    "pine", "plum", "quartz", "raven", "reef", "sparrow", "thistle", "willow",
];

/// A fresh name. Two at once are the same once in 67 million times; claiming one that is taken fails cleanly.
pub fn generate() -> String {
    let mut random = [0; 4];
    // Without random bytes all names are alike, and claiming them says so.
    let _ = crate::sys::host::getrandom(&mut random);
    let [a, n, high, low] = random;
    format!("{}-{}-{high:02x}{low:02x}", ADJECTIVES[usize::from(a) % 32], NOUNS[usize::from(n) % 32])
}

#[cfg(test)]
mod tests {
    #[test]
    fn generated_names_are_names() {
        let name = super::generate();
        assert_eq!(crate::spec::text::name("--name", &name), Ok(name.clone()));
        assert_ne!(name, super::generate());
    }
}
