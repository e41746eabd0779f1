//! A release from where it is published: NCHS first, CMS where that fails.
//!
//! In: the name of a release. Out: its compact table in the user's cache folder, with a note of where it came from.
//! File names drift from year to year (`icd10cm-table-index-April-2025.zip`, `icd10cm-table and index-2026.zip`,
//! `icd10cm-April-1-2026-XML.zip`), so the folder of NCHS is listed and its links are matched by pattern; names that
//! were used before are tried after that.

use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Serialize;

use super::edition::Edition;
use super::release::Release;
use super::{Error, source};
use crate::fsio;
use crate::http::{self, Client, Request};

/// A tabular list with fewer billable codes than this is not a whole one. FY2016, the first, had 69,823.
const MIN_BILLABLE: usize = 69_000;

/// Where releases are published.
#[derive(Clone, Debug)]
pub struct Publishers {
    /// The folder with one folder for each fiscal year.
    pub nchs: String,
    /// The folder with the zip files of all years.
    pub cms: String,
}

impl Default for Publishers {
    fn default() -> Self {
        Self {
            nchs: "https://ftp.cdc.gov/pub/Health_Statistics/NCHS/Publications/ICD10CM/".into(),
            cms: "https://www.cms.gov/files/zip/".into(),
        }
    }
}

/// A release that is now in the cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fetched {
    /// Its name, as "FY2027".
    pub release: String,
    /// Number of billable codes.
    pub billable: usize,
    /// Number of entries of the tabular list.
    pub entries: usize,
    /// Where it was downloaded.
    pub url: String,
    /// Bytes of the download.
    pub size_bytes: usize,
    /// SHA-256 of the download.
    pub sha256: String,
    /// The table in the cache.
    pub file: PathBuf,
}

/// Downloads a release, verifies it and keeps it in `cache`. `note` is told what is tried.
///
/// A file is taken when it is whole and well-formed, is a tabular list of the right year, and has a plausible number of
/// billable codes (the exact one, where it is known); else the next place is tried.
///
/// # Errors
/// [`Error::Unfetched`] with what each place answered, and what is wrong with the cache folder.
pub fn fetch(
    edition: Edition,
    publishers: &Publishers,
    client: &Client,
    cache: &Path,
    note: &mut dyn FnMut(&str),
) -> Result<Fetched, Error> {
    let mut refusals: Vec<String> = Vec::new();
    for publisher in [nchs(edition, publishers), cms(edition, publishers)] {
        let urls = publisher.urls(client, edition, &mut refusals)?;
        for url in urls {
            note(&format!("trying {url}"));
            let answer = match client.send(&Request::get(url.as_str())) {
                Ok(answer) => answer,
                Err(error @ (http::Error::Stopped(_) | http::Error::File(_) | http::Error::BadUrl { .. })) => {
                    return Err(error.into());
                }
                Err(error) => {
                    let is_down = error.status().is_none();
                    refusals.push(told(&error));
                    // A place that cannot be reached is not asked for the next name.
                    if is_down { break } else { continue }
                }
            };
            match verified(&answer.body, &url, edition) {
                Ok(release) => {
                    return keep(&release.named(edition.title()), edition, &answer.body, url.as_str(), cache);
                }
                Err(error) => refusals.push(told(&error)),
            }
        }
    }
    Err(Error::Unfetched { edition, refusals })
}

/// One place that publishes releases.
struct Publisher {
    /// Folders whose links are looked through.
    folders: Vec<String>,
    /// Files that may be there.
    files: Vec<String>,
}

fn nchs(edition: Edition, publishers: &Publishers) -> Publisher {
    let (year, base) = (edition.year, slashed(&publishers.nchs));
    let (folders, files) = if edition.is_april {
        let folders = vec![format!("{base}{year}-Update/"), format!("{base}{year}-update/")];
        let names = [format!("icd10cm-table-index-April-{year}.zip"), format!("icd10cm-April-1-{year}-XML.zip")];
        let files = folders.iter().flat_map(|folder| names.iter().map(move |name| format!("{folder}{name}"))).collect();
        (folders, files)
    } else {
        let folder = format!("{base}{year}/");
        let names = ["icd10cm-table-index-", "icd10cm-table%20and%20index-", "icd10cm-tabular-"];
        let files = names.iter().map(|name| format!("{folder}{name}{year}.zip")).collect();
        (vec![folder], files)
    };
    Publisher { folders, files }
}

fn cms(edition: Edition, publishers: &Publishers) -> Publisher {
    let (year, base) = (edition.year, slashed(&publishers.cms));
    let names = if edition.is_april {
        vec![
            format!("{year}-code-tables-tabular-and-index-april.zip"),
            format!("april-1-{year}-code-tables-tabular-and-index.zip"),
            format!("{year}-code-tables-tabular-and-index-april-1.zip"),
        ]
    } else {
        vec![format!("{year}-code-tables-tabular-and-index.zip")]
    };
    Publisher { folders: Vec::new(), files: names.into_iter().map(|name| format!("{base}{name}")).collect() }
}

fn slashed(base: &str) -> String {
    if base.ends_with('/') { base.to_owned() } else { format!("{base}/") }
}

impl Publisher {
    /// The files to try, those that a folder lists first. A folder that cannot be listed is a refusal of its own only
    /// when it answers otherwise than "not found".
    fn urls(&self, client: &Client, edition: Edition, refusals: &mut Vec<String>) -> Result<Vec<Url>, Error> {
        let mut urls = Vec::new();
        let mut push = |url: Url| {
            if !urls.contains(&url) {
                urls.push(url);
            }
        };
        for folder in &self.folders {
            match client.send(&Request::get(folder.as_str())) {
                Ok(answer) => links_of(&answer.text(), folder, edition).into_iter().for_each(&mut push),
                Err(error @ (http::Error::Stopped(_) | http::Error::BadUrl { .. })) => return Err(error.into()),
                Err(error) if error.status() == Some(404) => {}
                Err(error) => {
                    let is_down = error.status().is_none();
                    refusals.push(told(&error));
                    if is_down {
                        return Ok(Vec::new());
                    }
                }
            }
        }
        self.files.iter().filter_map(|file| Url::parse(file).ok()).for_each(push);
        Ok(urls)
    }
}

/// The links of a folder's page that can be the tabular list, the likeliest first.
fn links_of(page: &str, folder: &str, edition: Edition) -> Vec<Url> {
    let Ok(base) = Url::parse(folder) else { return Vec::new() };
    let lower = page.to_ascii_lowercase();
    let starts = lower.match_indices("href=\"").map(|(at, mark)| at + mark.len());
    let links = starts.filter_map(|start| page.get(start..)?.split('"').next());
    let mut found: Vec<(u8, Url)> = links
        .filter_map(|link| {
            let url = base.join(link).ok().filter(|url| url.host() == base.host())?;
            Some((rank(url.path_segments()?.next_back()?, edition)?, url))
        })
        .collect();
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, url)| url).collect()
}

/// How well a file's name fits, 0 best.
fn rank(name: &str, edition: Edition) -> Option<u8> {
    let name = name.to_ascii_lowercase().replace("%20", " ");
    let has = |part: &str| name.contains(part);
    if has("addend") || has("guideline") || has("order") || has("pcs") || has("conversion") {
        return None;
    }
    let of_other_half = u8::from(has("apr") != edition.is_april) * 8;
    let rank = match () {
        () if name.ends_with(".xml") && has("tabular") => 0,
        () if !name.ends_with(".zip") || has("pdf") => return None,
        () if has("tabular") || (has("table") && has("index")) => 1,
        () if has("xml") => 2,
        () => return None,
    };
    Some(rank + of_other_half)
}

/// Reads a download and holds it against what is asked for.
fn verified(bytes: &[u8], url: &Url, edition: Edition) -> Result<Release, Error> {
    let name = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default().replace("%20", " ");
    let shown = PathBuf::from(url.as_str());
    let foreign = |message: String| Error::Foreign { path: shown.clone(), expected: "the release asked for", message };
    if bytes
        .trim_ascii_start()
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"<!doc") || start.eq_ignore_ascii_case(b"<html"))
    {
        return Err(foreign("it is a web page".into()));
    }
    let release = source::load_bytes(bytes.to_vec(), &name, &shown)?;
    if !release.has_tree() {
        return Err(foreign("it has codes only, without the tabular list".into()));
    }
    if release.version() != edition.year.to_string() {
        return Err(foreign(format!("expected the list of {}, found that of {}", edition.year, release.version())));
    }
    match edition.n_billable() {
        Some(expected) if release.len() != expected => {
            Err(foreign(format!("expected {expected} billable codes, found {}", release.len())))
        }
        _ if release.len() < MIN_BILLABLE => {
            Err(foreign(format!("expected at least {MIN_BILLABLE} billable codes, found {}", release.len())))
        }
        _ => Ok(release),
    }
}

fn keep(release: &Release, edition: Edition, bytes: &[u8], url: &str, cache: &Path) -> Result<Fetched, Error> {
    let file = edition.file_in(cache);
    let table = release.to_table().unwrap_or_default();
    fsio::write_atomic(&file, |out| out.write_all(table.as_bytes()))?;
    let fetched = Fetched {
        release: release.name().to_owned(),
        billable: release.len(),
        entries: release.nodes().len(),
        url: url.to_owned(),
        size_bytes: bytes.len(),
        sha256: fsio::sha256_bytes(bytes),
        file: file.clone(),
    };
    fsio::write_json(&file.with_extension("json"), &fetched)?;
    Ok(fetched)
}

/// An error with its causes, on one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best_of(names: &[&str], edition: &str) -> Vec<String> {
        let page: String = names.iter().map(|name| format!("<A HREF=\"{name}\">{name}</A><br>")).collect();
        let edition: Edition = edition.parse().unwrap();
        let links = links_of(&page, "http://localhost/pub/2026/", edition);
        links.iter().map(|url| url.path().trim_start_matches("/pub/2026/").to_owned()).collect()
    }

    /// File names as published for FY2020 to FY2026.
    #[test]
    fn the_tabular_list_is_found_among_the_files_of_a_year() {
        let october = [
            "icd10cm-Codes-2026.zip",
            "icd10cm-order-2026.zip",
            "icd10cm-tabular-addenda-2026.zip",
            "icd10cm-table%20and%20index-2026.zip",
            "ICD-10-CM%20Guidelines.pdf",
            "icd10cm-table%20and%20index-pdf-2026.zip",
            "../",
        ];
        assert_eq!(best_of(&october, "2026"), ["icd10cm-table%20and%20index-2026.zip"]);
        let april =
            ["Code-desciptions-April-2025.zip", "icd10cm-table-index-April-2025.zip", "icd10cm-table-index-2025.zip"];
        assert_eq!(
            best_of(&april, "2025-april"),
            ["icd10cm-table-index-April-2025.zip", "icd10cm-table-index-2025.zip"]
        );
        assert_eq!(best_of(&["icd10cm-April-1-2026-XML.zip"], "2026-april"), ["icd10cm-April-1-2026-XML.zip"]);
        let plain = ["icd10cm_tabular_2020.xml", "icd10cm_index_2020.xml", "icd10cm_tabular_2020.pdf"];
        assert_eq!(best_of(&plain, "2020"), ["icd10cm_tabular_2020.xml"]);
        assert_eq!(best_of(&["/pub/2026/icd10cm-tabular-2026.zip"], "2026"), ["icd10cm-tabular-2026.zip"]);
        assert!(best_of(&["http://elsewhere.example/icd10cm-tabular-2026.zip"], "2026").is_empty());
    }
}
