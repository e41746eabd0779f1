//! Chat templates: Jinja as transformers runs it (`utils/chat_template_utils.py`, 5.23): blocks trimmed, Python's
//! methods on strings and lists, `raise_exception`, `strftime_now` (in UTC here), and a `tojson` that is `json.dumps`.
//!
//! Not done: the `{% generation %}` block, which only marks text for a mask that is found here without it.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, ErrorKind, State};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::{Error, Message};

const NAME: &str = "chat_template";

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: Vec<(String, String)>,
}

impl ChatTemplate {
    /// Compiles a template. `special` are variables such as `bos_token`; `now` is what `strftime_now` formats.
    ///
    /// # Errors
    /// [`Error::BadTemplate`] with the line of a fault.
    pub fn new(source: &str, special: Vec<(String, String)>, now: SystemTime) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| Error::BadTemplate(describe(&error)))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::None => out.write_str("None").map_err(Into::into),
            ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Into::into),
            _ => minijinja::escape_formatter(out, state, value),
        });
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: String| strftime(&format, now));
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| Error::BadTemplate(describe(&error)))?;
        Ok(Self { environment, special })
    }

    /// The text of the messages, followed by the header of the assistant's turn where `add_generation_prompt`.
    ///
    /// # Errors
    /// [`Error::Refused`] when the template raises an exception or uses what is not there.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, Error> {
        let fixed = [
            ("messages", Value::from(Serde(messages))),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        let special = self.special.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        let variables = Value::from_pairs(fixed.into_iter().chain(special));
        let template = self.environment.get_template(NAME).map_err(|error| Error::BadTemplate(describe(&error)))?;
        template.render(variables).map_err(|error| Error::Refused(describe(&error)))
    }
}

fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// `json.dumps` with `ensure_ascii=False` by default; `indent`, `ensure_ascii` and `separators` as keywords.
fn to_json(_state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let fault = |error: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut value = serde_json::to_value(value).map_err(fault)?;
    if sort_keys == Some(true) {
        value.sort_all_objects();
    }
    let mut bytes = Vec::new();
    match indent {
        Some(n_spaces) => {
            let spaces = " ".repeat(n_spaces);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter)).map_err(fault)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)).map_err(fault)?,
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(Value::from(if ensure_ascii == Some(true) { escape_non_ascii(&text) } else { text.into_owned() }))
}

fn escape_non_ascii(text: &str) -> String {
    let mut units = [0; 2];
    text.chars()
        .map(|c| match c {
            c if c.is_ascii() => c.to_string(),
            c => c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        })
        .collect()
}

/// Python's default separators, `", "` and `": "`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// The directives of `strftime` that templates use, in UTC and English.
fn strftime(format: &str, now: SystemTime) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = seconds / 86_400;
    let (year, month, day) = civil_date(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => text += &year.to_string(),
            Some('y') => text += &format!("{:02}", year % 100),
            Some('m') => text += &format!("{month:02}"),
            Some('d') => text += &format!("{day:02}"),
            Some('B') => text += month_name,
            Some('b') => text += &month_name[..3],
            Some('A') => text += day_name,
            Some('a') => text += &day_name[..3],
            Some('H') => text += &format!("{:02}", seconds / 3600 % 24),
            Some('M') => text += &format!("{:02}", seconds / 60 % 60),
            Some('S') => text += &format!("{:02}", seconds % 60),
            Some('%') => text.push('%'),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now does not know `%{directive}`");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(text)
}

/// Year, month and day of a day counted from 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
pub(crate) fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(template: &str, expected: &str) {
        // 2024-02-29 13:04:05 UTC, a Thursday.
        let now = UNIX_EPOCH + Duration::from_secs(1_709_211_845);
        let special = vec![("eos_token".to_owned(), "<e>".to_owned())];
        let messages = [Message::user("a <b> & 'c' é"), Message::assistant("d")];
        let template = ChatTemplate::new(template, special, now).unwrap();
        assert_eq!(template.render(&messages, true).unwrap(), expected);
    }

    #[test]
    fn blocks_are_trimmed_and_nothing_is_escaped() {
        check(
            "  {% for m in messages %}\n{{ m.role }}={{ m['content'] }}\n  {% endfor %}\nend\n",
            "user=a <b> & 'c' é\nassistant=d\nend",
        );
    }

    #[test]
    fn python_is_spoken() {
        check("{{ messages[0].content.split(' ')[0].upper() }}{{ 'xyz'[::-1] }}{{ tools }}{{ true }}", "AzyxNoneTrue");
        check("{{ messages[1] | tojson }}{{ eos_token }}", r#"{"role": "assistant", "content": "d"}<e>"#);
        check("{{ messages[0].content | tojson(ensure_ascii=true) }}", r#""a <b> & 'c' \u00e9""#);
        check("{{ [1, [], {'a': 1}] | tojson(indent=1) }}", "[\n 1,\n [],\n {\n  \"a\": 1\n }\n]");
        check("{{ strftime_now('%d %b %Y %A %H:%M:%S %y%m %%') }}", "29 Feb 2024 Thursday 13:04:05 2402 %");
    }

    #[test]
    fn an_exception_of_the_template_is_the_message() {
        let source = "{% if messages %}\n{{ raise_exception('roles must alternate') }}{% endif %}";
        let template = ChatTemplate::new(source, vec![], UNIX_EPOCH).unwrap();
        let error = template.render(&[Message::user("x")], false).unwrap_err().to_string();
        assert_eq!(error, "the chat template refused the messages: roles must alternate (line 2)");
        assert!(matches!(ChatTemplate::new("{% if %}", vec![], UNIX_EPOCH), Err(Error::BadTemplate(_))));
    }
}
