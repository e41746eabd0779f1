//! The protocol of the online service: GraphQL to register a run, file streams to append to it (wandb 0.31.0).

use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

use super::identity::Identity;
use super::settings::ApiKey;
use crate::diag::Diagnostic as _;
use crate::http::{self, Answer, Client, Request};

const UPSERT: &str = "mutation UpsertBucket($id: String, $name: String, $project: String, $entity: String, \
$groupName: String, $displayName: String, $notes: String, $config: JSONString, $host: String, $program: String, \
$jobType: String, $tags: [String!]) { upsertBucket(input: {id: $id, name: $name, modelName: $project, entityName: \
$entity, groupName: $groupName, displayName: $displayName, notes: $notes, config: $config, host: $host, jobProgram: \
$program, jobType: $jobType, tags: $tags}) { bucket { id name displayName project { name entity { name } } } } }";

const STATUS: &str = "query RunResumeStatus($project: String, $entity: String, $name: String!) { model(name: $project, \
entityName: $entity) { id name entity { name } bucket(name: $name, missingOk: true) { id name state historyLineCount \
eventsLineCount logLineCount historyTail } } }";

const CREATE_FILES: &str = "mutation CreateRunFiles($entity: String!, $project: String!, $run: String!, $files: \
[String!]!) { createRunFiles(input: {entityName: $entity, projectName: $project, runName: $run, files: $files}) { \
uploadHeaders files { name uploadUrl } } }";

const VIEWER: &str = "query Viewer { viewer { username entity } }";

/// Why the service did not do what it was asked for.
#[derive(Debug)]
pub(super) enum Fault {
    /// It may do it later.
    Busy {
        message: String,
        retry_after: Option<Duration>,
        /// It may have been done: the answer was lost.
        in_doubt: bool,
    },
    /// It will not.
    Refused { message: String, hint: Option<String> },
}

impl Fault {
    /// The request may have been carried out all the same.
    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(self, Self::Busy { in_doubt: true, .. })
    }
}

/// Where a run stands, as the service tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Standing {
    /// The service's own name of the run.
    pub id: String,
    pub n_history: u64,
    pub n_events: u64,
    pub n_output: u64,
    /// Rows of figures up to the last one's `_step`.
    pub n_rows: u64,
    /// The run was told to be over.
    pub is_over: bool,
}

/// Names under which the service took a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Names {
    pub entity: String,
    pub project: String,
    pub run: String,
    pub display_name: String,
}

/// What an answer to a post says besides that it was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Taken {
    /// Somebody asked for the run to stop.
    pub is_stop_requested: bool,
    /// The service asks for this much time between posts.
    pub spacing: Option<Duration>,
}

/// The service.
#[derive(Debug)]
pub(super) struct Service {
    client: Client,
    base_url: String,
    authorization: String,
}

#[derive(Deserialize)]
struct Reply {
    data: Option<Value>,
    #[serde(default)]
    errors: Vec<ReplyError>,
}

#[derive(Deserialize)]
struct ReplyError {
    #[serde(default)]
    message: String,
}

impl Service {
    pub(super) fn new(client: Client, base_url: &str, key: &ApiKey) -> Self {
        let authorization = format!("Basic {}", base64(format!("api:{}", key.as_str()).as_bytes()));
        Self { client, base_url: base_url.to_owned(), authorization }
    }

    /// The page that shows a run.
    pub(super) fn page(&self, names: &Names) -> String {
        // The web pages of the public service have another host than its API.
        let base = self.base_url.replace("://api.wandb.ai", "://wandb.ai");
        self.url_in(&base, &[&names.entity, &names.project, "runs", &names.run])
    }

    /// The user and the entity that the key belongs to.
    pub(super) fn viewer(&self) -> Result<(String, String), Fault> {
        let data = self.graphql("Viewer", VIEWER, &json!({}))?;
        let text = |key: &str| data["viewer"][key].as_str().unwrap_or_default().to_owned();
        match (text("username"), text("entity")) {
            (user, entity) if user.is_empty() && entity.is_empty() => {
                Err(Fault::Refused { message: "the service knows no user for this key".into(), hint: None })
            }
            names => Ok(names),
        }
    }

    /// Where a run stands; `None` when the service does not know it.
    pub(super) fn standing(&self, identity: &Identity) -> Result<Option<Standing>, Fault> {
        let variables = json!({"project": identity.project, "entity": identity.entity, "name": identity.run_id});
        let data = self.graphql("RunResumeStatus", STATUS, &variables)?;
        let bucket = &data["model"]["bucket"];
        let Some(id) = bucket["id"].as_str() else { return Ok(None) };
        let count = |key: &str| bucket[key].as_u64().unwrap_or(0);
        // A JSON list of the last rows, each a JSON text.
        let tail = bucket["historyTail"].as_str().and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
        let last = tail.and_then(|rows| serde_json::from_str::<Value>(rows.last()?).ok());
        let n_rows = last.and_then(|row| Some(row["_step"].as_u64()? + 1));
        Ok(Some(Standing {
            id: id.to_owned(),
            n_history: count("historyLineCount"),
            n_events: count("eventsLineCount"),
            n_output: count("logLineCount"),
            n_rows: n_rows.unwrap_or_else(|| count("historyLineCount")),
            is_over: bucket["state"].as_str().is_some_and(|state| ["finished", "failed"].contains(&state)),
        }))
    }

    /// Makes a run, or takes up the one of that ID: its name in the service is then left as it is.
    pub(super) fn register(&self, identity: &Identity, known_as: Option<&str>) -> Result<Names, Fault> {
        let is_new = known_as.is_none();
        let variables = json!({
            "id": known_as,
            "name": identity.run_id,
            "project": identity.project,
            "entity": identity.entity,
            "groupName": identity.group,
            "displayName": is_new.then_some(&identity.display_name),
            "notes": if is_new { identity.notes.as_deref() } else { None },
            "config": identity.config_text(),
            "host": identity.environment.host,
            "program": identity.environment.program,
            "jobType": identity.job_type,
            "tags": is_new.then_some(&identity.tags),
        });
        let data = self.graphql("UpsertBucket", UPSERT, &variables)?;
        let bucket = &data["upsertBucket"]["bucket"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let names = || {
            let project = &bucket["project"];
            Some(Names {
                entity: text(&project["entity"]["name"])?,
                project: text(&project["name"])?,
                run: text(&bucket["name"])?,
                display_name: text(&bucket["displayName"]).unwrap_or_default(),
            })
        };
        names().ok_or_else(|| self.unexpected("the answer to UpsertBucket names no run"))
    }

    /// Posts to the run's file streams.
    pub(super) fn post(&self, names: &Names, body: &Map<String, Value>) -> Result<Taken, Fault> {
        let url = self.url_in(&self.base_url, &["files", &names.entity, &names.project, &names.run, "file_stream"]);
        let answer = self.send(&Request::post(url).header("authorization", &self.authorization).json(body), "")?;
        let is_stop_requested = answer.json::<Value>().is_ok_and(|value| value["stopped"].as_bool().unwrap_or(false));
        let number = |name: &str| answer.header(name)?.trim().parse::<f64>().ok();
        let spacing = number("ratelimit-reset").zip(number("ratelimit-remaining"));
        let spacing = spacing.and_then(|(reset, left)| Duration::try_from_secs_f64(reset / left.max(1.0)).ok());
        Ok(Taken { is_stop_requested, spacing })
    }

    /// Uploads a small file of the run.
    pub(super) fn upload(&self, names: &Names, file: &str, content_type: &str, bytes: &[u8]) -> Result<(), Fault> {
        let variables = json!({"entity": names.entity, "project": names.project, "run": names.run, "files": [file]});
        let data = self.graphql("CreateRunFiles", CREATE_FILES, &variables)?;
        let url = data["createRunFiles"]["files"][0]["uploadUrl"].as_str();
        let url = url.ok_or_else(|| self.unexpected("the answer to CreateRunFiles has no place for the file"))?;
        // The address carries its own permission; the key stays here.
        let mut request = Request::new(Method::PUT, url).body(content_type, bytes.to_vec());
        for header in data["createRunFiles"]["uploadHeaders"].as_array().into_iter().flatten() {
            if let Some((name, value)) = header.as_str().and_then(|header| header.split_once(':')) {
                request = request.header(name.trim(), value.trim());
            }
        }
        self.send(&request, "").map(drop)
    }

    fn graphql(&self, operation: &str, query: &str, variables: &Value) -> Result<Value, Fault> {
        let body = json!({"query": query, "variables": variables, "operationName": operation});
        let request = Request::post(format!("{}/graphql", self.base_url)).header("authorization", &self.authorization);
        let answer = self.send(&request.json(&body), operation)?;
        let reply: Reply = answer.json().map_err(|error| self.unexpected(&error.to_string()))?;
        match reply {
            Reply { errors, .. } if !errors.is_empty() => {
                let messages: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
                let message = format!("`{}` refused {operation}: {}", self.base_url, messages.join("; "));
                let hint = Some("check WANDB_API_KEY, WANDB_ENTITY and WANDB_PROJECT".into());
                Err(Fault::Refused { message, hint })
            }
            Reply { data: Some(data), .. } => Ok(data),
            Reply { data: None, .. } => Err(self.unexpected("the answer has no data")),
        }
    }

    /// An answer of status 2xx, or what is to be thought of another one.
    fn send(&self, request: &Request, operation: &str) -> Result<Answer, Fault> {
        let answer = self.client.send_once(request).map_err(|error| fault_of(&error))?;
        let status = answer.status.as_u16();
        if answer.status.is_success() {
            return Ok(answer);
        }
        let words = reply_message(&answer).map_or(String::new(), |text| format!(": {text}"));
        let message = format!("`{}` answered {}{words}", answer.url, answer.status);
        let is_final = match status {
            409 => operation != "UpsertBucket",
            400 | 401 | 403 | 404 | 410 | 413 | 422 | 501 => true,
            _ => false,
        };
        if !is_final {
            return Err(Fault::Busy { message, retry_after: answer.retry_after(), in_doubt: false });
        }
        let hint = match status {
            401 | 403 => {
                Some("check WANDB_API_KEY, and WANDB_ENTITY and WANDB_PROJECT that it may write to".to_owned())
            }
            404 => Some("check WANDB_BASE_URL, WANDB_ENTITY and WANDB_PROJECT".to_owned()),
            _ => None,
        };
        Err(Fault::Refused { message, hint })
    }

    fn unexpected(&self, message: &str) -> Fault {
        let message = format!("`{}` is not the W&B service that was expected: {message}", self.base_url);
        Fault::Refused { message, hint: Some("check WANDB_BASE_URL".into()) }
    }

    fn url_in(&self, base: &str, path: &[&str]) -> String {
        let Ok(mut url) = Url::parse(base) else { return base.to_owned() };
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url.to_string()
    }
}

/// A request that got no whole answer may still have been carried out, unless the service was not reached at all.
fn fault_of(error: &http::Error) -> Fault {
    let mut message = error.to_string();
    match error {
        http::Error::Unreachable { source, .. } => {
            let in_doubt = !source.is_connect();
            Fault::Busy { message, retry_after: None, in_doubt }
        }
        http::Error::Timeout { .. } | http::Error::Cut { .. } => {
            Fault::Busy { message, retry_after: None, in_doubt: true }
        }
        _ => {
            if let Some(source) = std::error::Error::source(error) {
                message = format!("{message}: {source}");
            }
            Fault::Refused { message, hint: error.hint() }
        }
    }
}

/// The service's own words, on one line.
fn reply_message(answer: &Answer) -> Option<String> {
    let value: Value = answer.json().ok()?;
    let text = value["errors"][0]["message"].as_str().or_else(|| value["error"].as_str())?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect())
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for idx in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * idx) & 63) as usize];
            text.push(if idx <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_the_test_vectors_of_its_rfc() {
        let encoded = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }
}
