//! sbx.
pub mod error;
pub mod front;
pub mod host;
pub mod launch;
pub mod plan;
pub mod spec;
pub mod state;
pub mod sys;
