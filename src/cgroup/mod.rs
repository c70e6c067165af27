//! Groups of processes with limits: a scope of the user's systemd, or a group of our own where one is delegated.
//!
//! What is made here is taken away here; nothing of it decides what a limit is (`plan`).

pub mod bus;
mod files;
mod group;
pub mod scope;
mod usage;
pub mod wire;

pub use group::{Group, live, name_of, remove_left};
pub use usage::{Live, Usage};

#[cfg(test)]
mod tests;
