//! sbx.
pub mod error;
pub mod spec;
pub mod sys;
