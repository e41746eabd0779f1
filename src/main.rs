//! The `axismapper` program: everything is in [`axismapper::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    axismapper::cli::main()
}
