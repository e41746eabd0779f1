//! Integration tests, one binary: a module per subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod codes;
mod config;
mod constrained;
mod data;
mod data_pairs;
mod demo;
mod eval;
mod golden;
mod golden_adapter;
mod golden_generate;
mod golden_gguf;
mod golden_model;
mod golden_nf4;
mod golden_optim;
mod golden_orpo;
mod golden_train;
mod http;
mod http_server;
mod hub;
mod hub_server;
mod merge;
mod metrics;
mod model_cli;
mod model_files;
mod predict;
mod resume;
mod serve;
mod small_model;
mod text;
mod tidy;
mod track;
mod train_cli;
mod wandb;
mod wandb_server;
