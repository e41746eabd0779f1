//! Making scenarios: what a person says or writes, with the codes that it should yield.

mod case;
mod context;
mod frames;
pub mod llm;
mod person;
pub mod provider;
mod selection;
pub mod template;

pub use frames::families;
pub use selection::Selection;
