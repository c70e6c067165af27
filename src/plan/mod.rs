//! The plan: what a sandbox will do, worked out before anything is started.

pub mod bpf;
pub mod rules;
pub mod seccomp;
pub mod setid;
pub mod syscalls;
