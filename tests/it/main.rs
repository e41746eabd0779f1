//! Integration tests, one binary: a module per subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod codes;
mod config;
mod metrics;
mod text;
mod tidy;
mod track;
