//! Colour on stdout, where it is welcome.

use std::io::{self, IsTerminal as _};

use crate::doctor::Status;
use crate::pipeline::Marks;

/// Whether results may have colour: stdout is a terminal that can show it, and `NO_COLOR` is not set.
pub fn has_colour() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stdout().is_terminal() && !is_dumb && !is_set("NO_COLOR")
}

/// How an example's targets are marked.
pub fn marks() -> Marks {
    if has_colour() { Marks::Colour } else { Marks::Brackets }
}

/// A status padded to one width, in its colour when `colour` is set.
pub fn status_text(status: Status, colour: bool) -> String {
    let word = format!("{:7}", status.as_str());
    let code = match status {
        Status::Ok => 32,
        Status::Skipped => 36,
        Status::Warning => 33,
        Status::Fatal => 31,
    };
    if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word }
}
