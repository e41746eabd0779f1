//! The files a release is read from: tabular XML, compact table, order file or `codes.json`, plain, gzip or in a zip.
//!
//! What a file holds is seen from its first bytes, never from its name. A zip is used as CMS and NCHS publish it; its
//! members are found by pattern, because their names drift from year to year (`icd10cm_tabular_2024.xml`,
//! `icd10c-tabular-April-1-2026.xml`, `icd10cm-tabular_-2027.xml`).

use std::collections::BTreeMap;
use std::io::{Cursor, ErrorKind, Read as _};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::release::{Billable, Release};
use super::tabular::Tabular;
use super::text::Source;
use super::{Code, Error, table};
use crate::fsio;

/// Reads a release from a file of any supported kind.
///
/// # Errors
/// [`Error`] with the place of the fault.
pub(super) fn load(path: &Path) -> Result<Release, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut bytes = Vec::new();
    fsio::open(path)?.read_to_end(&mut bytes).map_err(|error| unreadable(path, error))?;
    load_bytes(bytes, &name, path)
}

/// Reads a release from the bytes of a file called `name`; `path` is named in errors.
pub(super) fn load_bytes(bytes: Vec<u8>, name: &str, path: &Path) -> Result<Release, Error> {
    if bytes.starts_with(b"PK\x03\x04") {
        let (member, bytes) = unzip(bytes, path)?;
        return read(&text_of(bytes, path)?, &member, &path.join(&member));
    }
    read(&text_of(bytes, path)?, name, path)
}

/// Reads a release from the text of a file called `name`; `path` is named in errors.
pub(super) fn read(whole: &Source, name: &str, path: &Path) -> Result<Release, Error> {
    let text = whole.as_str().trim_start_matches('\u{feff}');
    let start = text.trim_start();
    let fingerprint = xxh3_128(text.as_bytes());
    if start.starts_with(table::MAGIC) {
        let (name, tabular) = table::read(whole, path)?;
        return Ok(Release::from_tabular(name, tabular, fingerprint));
    }
    if start.starts_with('{') {
        return Ok(Release::from_billable(stem(name), from_json(text, path)?, fingerprint));
    }
    if start.starts_with('<') {
        let tabular = Tabular::parse(text, path)?;
        return Ok(Release::from_tabular(release_name(&tabular.version, name), tabular, fingerprint));
    }
    let year: String = stem(name).chars().filter(char::is_ascii_digit).collect();
    Ok(Release::from_billable(release_name(&year, name), from_order(whole, text, path)?, fingerprint))
}

/// "FY2026 April" for a list whose file is the April update, "FY2026" for one of October.
fn release_name(year: &str, file_name: &str) -> String {
    // A file name can hold the day as well: "April-1-2026".
    let year = year.get(year.len().saturating_sub(4)..).unwrap_or(year);
    let update = if file_name.to_ascii_lowercase().contains("apr") { " April" } else { "" };
    format!("FY{year}{update}")
}

fn stem(name: &str) -> String {
    name.split('.').next().unwrap_or_default().to_owned()
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    use ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match error.kind() {
        InvalidData | InvalidInput | UnexpectedEof => Error::torn(path, error.to_string()),
        _ => fsio::Error::io("read", path)(error).into(),
    }
}

fn text_of(bytes: Vec<u8>, path: &Path) -> Result<Source, Error> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::torn(path, format!("byte {at} is not UTF-8 text"))
    })?;
    Ok(Source::read(text))
}

/// The name and the bytes of the member that holds the codes: the tabular list, else the order file.
fn unzip(bytes: Vec<u8>, path: &Path) -> Result<(String, Vec<u8>), Error> {
    let torn = |error: zip::result::ZipError| Error::torn(path, error.to_string());
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(torn)?;
    let names =
        archive.file_names().map(|name| name.map(Into::into)).collect::<Result<Vec<String>, _>>().map_err(torn)?;
    let best = names.iter().filter_map(|name| Some((rank(name)?, name))).min();
    let Some((_, name)) = best else {
        let message = format!("its members are {}", names.join(", "));
        return Err(Error::Foreign {
            path: path.to_owned(),
            expected: "a zip with a tabular list or an order file",
            message,
        });
    };
    let mut member = Vec::new();
    archive.by_name(name).map_err(torn)?.read_to_end(&mut member).map_err(|error| unreadable(path, error))?;
    Ok((name.clone(), member))
}

/// How well a member of a zip fits, 0 best. Addenda and the copies that macOS adds do not fit.
fn rank(member: &str) -> Option<u8> {
    let name = member.to_ascii_lowercase();
    if name.contains("addend") || name.contains("__macosx") {
        return None;
    }
    let name = name.rsplit('/').next().unwrap_or_default();
    match () {
        () if name.contains("tabular") && name.ends_with(".xml") => Some(0),
        () if name.contains("order") && name.ends_with(".txt") => Some(1),
        () if name.contains("codes") && (name.ends_with(".txt") || name.ends_with(".json")) => Some(2),
        () => None,
    }
}

/// Reads `{"A00.0": "Cholera due to ...", ...}`.
fn from_json(text: &str, path: &Path) -> Result<Vec<Billable>, Error> {
    let descriptions: BTreeMap<Code, String> = serde_json::from_str(text).map_err(|error| {
        if error.is_eof() {
            Error::torn(path, error.to_string())
        } else {
            Error::bad_entry(path, error.line(), fsio::json_fault(&error))
        }
    })?;
    Ok(descriptions.into_iter().map(|(code, description)| Billable::plain(code, description.into())).collect())
}

/// Reads the fixed-width order file, which marks billable codes with a 1 after the code, or the plainer file that
/// lists only these ("A000    Cholera due to ...").
fn from_order(whole: &Source, text: &str, path: &Path) -> Result<Vec<Billable>, Error> {
    let mut billable = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        if line.trim().is_empty() {
            continue;
        }
        let entry = order_entry(line).or_else(|| list_entry(line));
        let Some((code, description)) = entry else {
            let start: String = line.chars().take(40).collect();
            if billable.is_empty() {
                let message = format!("it begins with `{start}`");
                return Err(Error::Foreign { path: path.to_owned(), expected: "a set of ICD-10-CM codes", message });
            }
            return Err(Error::bad_entry(
                path,
                number,
                format!("expected a code and its description, found `{start}`"),
            ));
        };
        billable.extend(description.map(|description| Billable::plain(code, whole.cut(description))));
    }
    if billable.is_empty() { Err(Error::torn(path, "it is empty")) } else { Ok(billable) }
}

/// Columns 7-13 the code, 15 whether it is billable, 78 on the full description. A header has no description here.
fn order_entry(line: &str) -> Option<(Code, Option<&str>)> {
    line.get(..5)?.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    let code = Code::parse_lenient(line.get(6..13)?).ok()?;
    let description = line.get(77..)?.trim();
    match line.get(14..15)? {
        "0" => Some((code, None)),
        "1" if !description.is_empty() => Some((code, Some(description))),
        _ => None,
    }
}

fn list_entry(line: &str) -> Option<(Code, Option<&str>)> {
    let (code, description) = line.split_once(' ')?;
    Some((Code::parse_lenient(code).ok()?, Some(description.trim()).filter(|text| !text.is_empty())))
}
