//! sbx.

pub mod plan;
