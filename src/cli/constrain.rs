//! `--constrain`, `--no-constrain`, `--max-codes`, `--excludes1`: what an answer may be.

use clap::Args as ClapArgs;

use crate::decode::Rules;

/// What an answer may be.
#[derive(Debug, ClapArgs)]
pub struct ConstrainArgs {
    /// Answer with distinct billable codes only, whatever the model would say (default)
    #[arg(long)]
    constrain: bool,
    /// Let the model say what it likes
    #[arg(long, conflicts_with_all = ["constrain", "max_codes", "excludes1"])]
    no_constrain: bool,
    /// The most codes in an answer
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=100))]
    max_codes: u16,
    /// Never answer with two codes that an Excludes1 note keeps apart
    #[arg(long)]
    excludes1: bool,
}

impl ConstrainArgs {
    /// Whether answers are held to codes.
    pub fn constrains(&self) -> bool {
        !self.no_constrain
    }

    /// Whether `--constrain` was written out.
    pub fn is_asked_for(&self) -> bool {
        self.constrain
    }

    /// The rules.
    pub fn rules(&self) -> Rules {
        Rules { max_codes: usize::from(self.max_codes), excludes1: self.excludes1 }
    }
}
