//! Whose key it is: one question to the service, before a run depends on it.

use super::service::{Fault, Service};
use super::settings::{Mode, Settings};
use crate::http::{self, Client};
use crate::stop::Stop;

/// What became of the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// The key is this user's, who reports to this entity.
    Known { user: String, entity: String },
    /// There is no key, or reports are not online: nobody was asked.
    NotOnline,
    /// The service does not take the key.
    Refused { message: String, hint: Option<String> },
    /// The service did not answer.
    Away { message: String },
}

/// Asks the service who the key belongs to, once and with little patience.
pub fn viewer(settings: &Settings, stop: &Stop) -> Viewer {
    let Mode::Online(key) = &settings.mode else { return Viewer::NotOnline };
    let client = match Client::new(http::Settings::impatient(), stop) {
        Ok(client) => client,
        Err(error) => return Viewer::Away { message: error.to_string() },
    };
    match Service::new(client, &settings.base_url, key).viewer() {
        Ok((user, entity)) => Viewer::Known { user, entity },
        Err(Fault::Refused { message, hint }) => Viewer::Refused { message, hint },
        Err(Fault::Busy { message, .. }) => Viewer::Away { message },
    }
}
