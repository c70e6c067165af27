//! sbx.
