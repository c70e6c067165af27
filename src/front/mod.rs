//! Front ends: something a user wrote → Layers.

pub mod audit;
pub mod env_file;
pub mod explain;
pub mod learn;
pub mod policy;
pub mod project;
pub mod ready;
pub mod score;
pub mod seccomp_json;
pub mod shown;
