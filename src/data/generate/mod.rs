//! Making scenarios: what a person says or writes, with the codes that it should yield.

mod case;
mod context;
mod frames;
mod person;
mod selection;
pub mod template;

pub use frames::families;
pub use selection::Selection;
