//! The `sbx` program: see `cli`.

mod cli;
mod hint;

use std::process::ExitCode;

/// Cheap to start with, and it aborts in the child: see `sys::alloc`.
#[global_allocator]
static ARENA: sbx::sys::alloc::Arena = sbx::sys::alloc::Arena::new();

fn main() -> ExitCode {
    ExitCode::from(cli::main())
}
