//! The ICD-10-CM code set: which codes are billable, what they mean, and which may stand together.
//!
//! In: the official tabular list (XML). Out: a [`Release`], which answers from memory and never prints.

mod check;
mod code;
mod diff;
mod edition;
mod error;
mod excludes;
mod fetch;
mod reference;
mod release;
mod search;
mod seventh;
mod source;
mod table;
mod tabular;
mod text;

pub use check::{Check, Checked, Fault, Rule, Severity, Status, Suggestion, check, check_one, nearest};
pub use code::Code;
pub use diff::{Deleted, Diff, Entry, NoteChange, Renamed, diff};
pub use edition::Edition;
pub use error::Error;
pub use excludes::{Exclusion, Holder, UnparsedNote};
pub use fetch::{Fetched, Publishers, fetch};
pub use release::{Billable, Release};
pub use search::{Hit, SearchIndex};
pub use seventh::{Extension, Seventh};
pub use tabular::{Chapter, Node, NodeId, Notes, Section};
pub use text::Text;
