//! Front ends: something a user wrote → Layers.

pub mod env_file;
pub mod policy;
pub mod ready;
