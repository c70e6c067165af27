//! Groups of processes with limits: a scope of the user's systemd, or a group of our own where one is delegated.
//!
//! What is made here is taken away here; nothing of it decides what a limit is (`plan`).

pub mod bus;
pub mod scope;
pub mod wire;

#[cfg(test)]
mod tests;
