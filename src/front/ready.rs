//! The policies that are in the program: those of `policies/`, by name.
//!
//! Each is parsed when it is named and not before.

/// A policy of sbx's own.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Its name.
    pub name: &'static str,
    /// Its text, as `policies/NAME.toml` has it.
    pub text: &'static str,
}

macro_rules! ready {
    ($($name:literal),*) => {
        [$(Ready { name: $name, text: include_str!(concat!("../../policies/", $name, ".toml")) }),*]
    };
}

/// All of them, in the order in which people meet them.
pub static READY: [Ready; 10] =
    ready!("default", "strict", "nest", "build", "cargo", "npm", "python", "go", "make", "agent");

/// The one of this name.
pub fn find(name: &str) -> Option<&'static Ready> {
    READY.iter().find(|ready| ready.name == name)
}

/// Their names.
pub fn names() -> impl Iterator<Item = &'static str> {
    READY.iter().map(|ready| ready.name)
}
