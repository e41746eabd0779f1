//! The model as a service: OpenAI's interface over HTTP, and a page for people.
//!
//! One thread owns the model and answers all clients in batches ([`engine`]); axum's tasks read requests and write
//! answers ([`app`]). Nothing of what is asked or answered is logged unless that is wanted.

mod answer;
mod app;
mod engine;
mod metrics;
mod openai;
mod page;
mod routing;

pub use app::{Access, Limits, Log, Setup, serve};
pub use routing::{Routes, Voters, voters};

use std::io;
use std::net::SocketAddr;

use crate::codes;
use crate::diag::{Diagnostic, io_hint};

/// A server that could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on `{address}`")]
    Listen { address: String, source: io::Error },
    #[error("cannot start the server")]
    Start(#[source] io::Error),
    #[error("the server on `{address}` failed")]
    Serve { address: SocketAddr, source: io::Error },
    #[error("{n_left} requests were not finished within the {seconds} s given to them at the end")]
    NotDrained { n_left: usize, seconds: u64 },
    #[error("the engine stopped unexpectedly")]
    EngineGone,
    #[error(transparent)]
    Codes(#[from] codes::Error),
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("another program listens there: choose another --port, or 0 for any free one".into())
            }
            Self::Listen { source, .. } => io_hint(source),
            Self::NotDrained { .. } => Some("give them more time with --drain-seconds".into()),
            Self::Codes(error) => error.hint(),
            _ => None,
        }
    }
}
