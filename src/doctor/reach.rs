//! The services that a run may need: who the tokens belong to.

use super::Check;
use crate::hub::{self, Access, whoami};
use crate::stop::Stop;
use crate::track::wandb::{self, Viewer, viewer};

/// Whose token of the Hub it is. Without one all that is public can be fetched; `is_needed` says that more is wanted.
pub fn check_hub(access: &Access, is_needed: bool, stop: &Stop) -> Check {
    let name = "hugging face";
    if access.token.is_none() {
        let message = "no token: public models can be fetched, nothing can be pushed";
        let hint = "make one at https://huggingface.co/settings/tokens and put it into HF_TOKEN";
        return if is_needed { Check::fatal(name, message, hint) } else { Check::ok(name, message) };
    }
    if access.is_offline {
        return Check::skipped(name, "the token was not tried (offline)");
    }
    match whoami(access, stop) {
        Ok(who) if is_needed && !who.may_write => Check::fatal(
            name,
            format!("the token of `{}` may only read", who.user),
            "make one with the right to write at https://huggingface.co/settings/tokens",
        ),
        Ok(who) => {
            let right = if who.may_write { "may write" } else { "may only read" };
            Check::ok(name, format!("the token is `{}`'s and {right}", who.user))
        }
        Err(hub::Error::Http(error)) => Check::skipped(name, format!("the token was not tried: {error}")),
        Err(error) => {
            let check = Check::of_error(name, &error);
            let hint = check.hint.clone().unwrap_or_default();
            // What is public can still not be fetched: the Hub refuses whoever brings a bad token.
            Check { hint: Some(format!("{hint}; or unset HF_TOKEN")), ..check }
        }
    }
}

/// Whose key of Weights & Biases it is. `is_needed`: a stage reports there.
pub fn check_wandb(
    settings: Result<wandb::Settings, wandb::Error>,
    is_needed: bool,
    is_offline: bool,
    stop: &Stop,
) -> Check {
    let name = "weights & biases";
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            let check = Check::of_error(name, &error);
            return if is_needed { check } else { Check { status: super::Status::Warning, ..check } };
        }
    };
    if is_offline && matches!(settings.mode, wandb::Mode::Online(_)) {
        return Check::skipped(name, "the key was not tried (offline)");
    }
    match viewer(&settings, stop) {
        Viewer::Known { user, entity } => {
            let entity = settings.entity.as_ref().unwrap_or(&entity);
            Check::ok(name, format!("the key is `{user}`'s; runs go to `{entity}/{}`", settings.project))
        }
        Viewer::NotOnline if is_needed && settings.mode == wandb::Mode::Offline => Check::warning(
            name,
            "no key: the run is recorded in the folder `wandb`",
            "set WANDB_API_KEY to see it while it runs, or send it later with `wandb sync`",
        ),
        Viewer::NotOnline => Check::ok(name, "no key, and none is needed"),
        Viewer::Refused { message, hint } => {
            let hint = hint.unwrap_or_else(|| "check WANDB_API_KEY".into());
            // A report that cannot be made does not stop a run.
            Check::warning(name, message, hint)
        }
        Viewer::Away { message } => Check::skipped(name, format!("the key was not tried: {message}")),
    }
}
