//! Data sets: scenarios, their validation and de-duplication, splits, preference pairs, texts about codes.
//!
//! In: a release of codes, or scenario records in JSON Lines. Out: chat, preference and text records in JSON Lines, and
//! for each step a report that counts what was kept and what was dropped by reason.

pub mod build;
pub mod corpus;
pub mod dedup;
mod draw;
mod error;
pub mod generate;
pub mod growing;
pub mod inspect;
mod lines;
pub mod manifest;
pub mod preference;
pub mod record;
pub mod replay;
pub mod source;
pub mod split;
pub mod steps;
pub mod update;
pub mod validate;
pub mod wording;

pub use error::Error;
pub use record::{SYSTEM_PROMPT, chat_record};
