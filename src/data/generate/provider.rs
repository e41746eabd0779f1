//! Where scenarios come from: templates, or a language model behind a server.

use serde::{Deserialize, Serialize};

use super::llm::{Endpoint, LlmSettings, Protocol};
use crate::data::Error;
use crate::http::Retry;

/// Kinds of providers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Wording made here; no server.
    #[default]
    Template,
    /// An Ollama server.
    Ollama,
    /// A server that speaks OpenAI's protocol.
    Openai,
}

/// A provider with its settings, of which templates need none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderSettings {
    pub kind: Kind,
    /// The model; `llama3.2` for Ollama unless named.
    pub model: Option<String>,
    /// The server; else what the environment says.
    pub base_url: Option<String>,
    /// Requests at a time.
    pub concurrency: usize,
    /// Answers asked for at most until one can be used.
    pub attempts: u32,
    pub temperature: f64,
    /// Limit on the wait for one answer.
    pub timeout_seconds: u64,
}

impl Default for ProviderSettings {
    fn default() -> Self {
        Self {
            kind: Kind::default(),
            model: None,
            base_url: None,
            concurrency: 4,
            attempts: 3,
            temperature: 0.8,
            timeout_seconds: 180,
        }
    }
}

/// What the process's environment says about servers.
#[derive(Clone, Default)]
pub struct Environment {
    /// `OLLAMA_HOST`
    pub ollama_host: Option<String>,
    /// `OPENAI_BASE_URL`
    pub openai_base_url: Option<String>,
    /// `OPENAI_API_KEY`
    pub openai_api_key: Option<String>,
}

impl ProviderSettings {
    /// The server and how its model is asked; `None` for templates.
    ///
    /// # Errors
    /// [`Error::ModelNotNamed`].
    pub fn llm(&self, environment: &Environment) -> Result<Option<(Endpoint, LlmSettings)>, Error> {
        let given = |value: &Option<String>| value.clone().filter(|text| !text.trim().is_empty());
        let base_url = given(&self.base_url);
        let (protocol, base_url, api_key) = match self.kind {
            Kind::Template => return Ok(None),
            Kind::Ollama => {
                let host = base_url.or_else(|| given(&environment.ollama_host));
                (Protocol::Ollama, ollama_url(host.as_deref().unwrap_or_default()), None)
            }
            Kind::Openai => {
                let url = base_url.or_else(|| given(&environment.openai_base_url));
                let url = url.unwrap_or_else(|| "https://api.openai.com/v1".into());
                (Protocol::Openai, url, given(&environment.openai_api_key))
            }
        };
        let model = match (given(&self.model), protocol) {
            (Some(model), _) => model,
            (None, Protocol::Ollama) => "llama3.2".into(),
            (None, Protocol::Openai) => return Err(Error::ModelNotNamed { provider: protocol.name() }),
        };
        let base_url = base_url.trim().trim_end_matches('/').to_owned();
        let settings = LlmSettings {
            model,
            concurrency: self.concurrency,
            attempts: self.attempts,
            temperature: self.temperature,
            timeout_seconds: self.timeout_seconds,
        };
        Ok(Some((Endpoint { protocol, base_url, api_key, retry: Retry::default() }, settings)))
    }
}

/// The URL that a value of `OLLAMA_HOST` means, as Ollama's own client reads it: scheme and port may be left out.
fn ollama_url(host: &str) -> String {
    let host = host.trim().trim_end_matches('/');
    let (scheme, rest, default_port) = match host.split_once("://") {
        Some(("https", rest)) => ("https", rest, 443),
        Some((_, rest)) => ("http", rest, 80),
        None => ("http", host, 11434),
    };
    let (authority, path) =
        rest.split_once('/').map_or((rest, String::new()), |(authority, path)| (authority, format!("/{path}")));
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if has_port => (name, port.to_owned()),
        _ => (authority, default_port.to_string()),
    };
    // A server told to listen everywhere is reached here.
    let name = if matches!(name, "" | "0.0.0.0") { "127.0.0.1" } else { name };
    format!("{scheme}://{name}:{port}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_as_ollama_reads_it() {
        for (host, url) in [
            ("", "http://127.0.0.1:11434"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            (":8000", "http://127.0.0.1:8000"),
            ("gpu-box", "http://gpu-box:11434"),
            ("10.0.0.7:1234/", "http://10.0.0.7:1234"),
            ("http://gpu-box", "http://gpu-box:80"),
            ("https://x.example/ollama", "https://x.example:443/ollama"),
            ("[::1]", "http://[::1]:11434"),
        ] {
            assert_eq!(ollama_url(host), url, "{host}");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_environment() {
        let environment = Environment {
            openai_base_url: Some("http://env/v1/".into()),
            openai_api_key: Some("k".into()),
            ..Environment::default()
        };
        let provider = |kind, base_url: Option<&str>| ProviderSettings {
            kind,
            model: Some("m".into()),
            base_url: base_url.map(str::to_owned),
            ..ProviderSettings::default()
        };
        let url =
            |settings: ProviderSettings| settings.llm(&environment).unwrap().map(|(endpoint, _)| endpoint.base_url);
        assert_eq!(url(provider(Kind::Template, None)), None);
        assert_eq!(url(provider(Kind::Openai, None)).as_deref(), Some("http://env/v1"));
        assert_eq!(url(provider(Kind::Openai, Some("http://flag"))).as_deref(), Some("http://flag"));
        let nameless = ProviderSettings { model: None, ..provider(Kind::Openai, None) };
        assert!(nameless.llm(&environment).is_err());
    }
}
