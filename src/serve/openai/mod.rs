//! OpenAI's interface: what clients send and what they get, errors included. No transport, no model.

mod error;
mod request;
mod response;
mod stops;

pub use error::ApiError;
pub use request::{Ask, Prompt, parse_chat, parse_text};
pub use response::{Kind, Reply, Spelled, Usage, model_list};
pub use stops::StopScanner;
