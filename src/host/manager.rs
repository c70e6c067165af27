//! Where the user's own systemd can be spoken to.

use crate::spec::Caller;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A way to the user's systemd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Door {
    /// The session bus, by its socket.
    Bus(PathBuf),
    /// The manager's own socket.
    Private(PathBuf),
}

/// The way, where a manager listens.
pub fn door(_caller: &Caller, _uid: u32) -> Option<Door> {
    None
}
