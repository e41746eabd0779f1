//! Releases fetched from a server with the faults of real ones.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use axismapper::codes::{Edition, Error, Fetched, Publishers, fetch};
use axismapper::diag::Diagnostic as _;
use axismapper::fsio;
use axismapper::http::{Client, Retry, Settings};
use axismapper::stop::Stop;

use crate::codes::{BUILTIN, XML_GZ};
use crate::http_server::{Reply, Server};

/// The built-in list as if it were that of `year`, in a zip as published.
fn zip_of_year(year: u16) -> Vec<u8> {
    let xml = fsio::read_text(&Path::new(env!("CARGO_MANIFEST_DIR")).join(XML_GZ)).unwrap();
    zip_of(&xml.replacen("<version>2026</version>", &format!("<version>{year}</version>"), 1))
}

fn zip_of(xml: &str) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_level(Some(1));
    writer.start_file("Table and Index/icd10cm_tabular.xml", options).unwrap();
    writer.write_all(xml.as_bytes()).unwrap();
    writer.finish().unwrap().into_inner()
}

fn try_fetch(edition: &str, server: &Server, cache: &Path) -> (Result<Fetched, Error>, Vec<String>) {
    let fast = Duration::from_millis(1);
    let retry = Retry { n_attempts: 3, first_delay: fast, max_delay: fast, max_retry_after: fast };
    let client = Client::new(Settings { retry, ..Settings::default() }, &Stop::default()).unwrap();
    let publishers = Publishers { nchs: format!("{}/nchs", server.url), cms: format!("{}/cms/", server.url) };
    let mut notes = Vec::new();
    let edition: Edition = edition.parse().unwrap();
    (fetch(edition, &publishers, &client, cache, &mut |note| notes.push(note.to_owned())), notes)
}

#[test]
fn a_listed_file_is_fetched_verified_and_kept() {
    let zip = zip_of_year(2028);
    let size_bytes = zip.len();
    let sha256 = fsio::sha256_bytes(&zip);
    let server = Server::start(move |idx, request| match request.target.as_str() {
        // The publishers' servers are busy now and then.
        _ if idx == 0 => Reply::new(503, "busy"),
        "/nchs/2028/" => Reply::new(
            200,
            "<pre><A HREF=\"/nchs/2028/icd10cm-order-2028.zip\">order</A>\
             <A HREF=\"/nchs/2028/icd10cm-table%20and%20index%20of%202028.zip\">table and index</A></pre>",
        ),
        "/nchs/2028/icd10cm-table%20and%20index%20of%202028.zip" => Reply::new(200, zip.clone()),
        _ => Reply::new(404, "not found"),
    });
    let cache = tempfile::tempdir().unwrap();
    let (fetched, notes) = try_fetch("2028", &server, cache.path());
    let fetched = fetched.unwrap();
    assert_eq!((fetched.release.as_str(), fetched.billable, fetched.entries), ("FY2028", 74_719, 46_881));
    assert_eq!((fetched.size_bytes, &fetched.sha256), (size_bytes, &sha256));
    assert_eq!(notes.len(), 1, "{notes:?}");
    let edition: Edition = "2028".parse().unwrap();
    let kept = edition.load(Some(cache.path())).unwrap();
    assert_eq!((kept.name(), kept.billable()), ("FY2028", BUILTIN.billable()));
    let source: serde_json::Value = fsio::read_json(&edition.file_in(cache.path()).with_extension("json")).unwrap();
    assert_eq!(source["sha256"], sha256);

    // As the user meets it: the same file through the program, then its use.
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
        let output = command.args(args).env("AXISMAPPER_CACHE", home.path()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let nchs = format!("{}/nchs", server.url);
    let args = ["codes", "fetch", "--release", "2028", "--nchs-url", &nchs];
    let (status, out, err) = run(&args);
    assert_eq!(status, Some(0), "{err}");
    assert!(out.starts_with("FY2028: 74,719 billable codes from 46,881 entries\n"), "{out}");
    assert!(run(&args).1.starts_with("FY2028 is there already: "));
    assert_eq!(run(&["codes", "check", "--release", "FY2028", "I10"]).0, Some(0));
    let (status, _, err) = run(&["codes", "show", "--release", "2029", "I10"]);
    assert_eq!(status, Some(1));
    assert!(err.contains("`2029` is not on this machine") && err.contains("codes fetch --release 2029"), "{err}");
    assert_eq!(run(&["codes", "show", "--release", "next", "I10"]).0, Some(2));
    let (status, out, _) = run(&["codes", "diff", "builtin", "2028"]);
    assert_eq!(status, Some(0));
    assert!(out.starts_with("FY2026 April to FY2028: 0 added, 0 deleted, 0 renamed"), "{out}");
}

#[test]
fn what_is_no_whole_list_is_passed_over() {
    let zip = zip_of_year(2028);
    let torn = zip[..zip.len() / 2].to_vec();
    let server = Server::start(move |_, request| match request.target.as_str() {
        "/nchs/2028-Update/icd10cm-table-index-April-2028.zip" => Reply::new(200, "<!DOCTYPE html><p>Moved</p>"),
        "/nchs/2028-Update/icd10cm-April-1-2028-XML.zip" => Reply::new(200, torn.clone()),
        "/cms/2028-code-tables-tabular-and-index-april.zip" => Reply::new(200, zip.clone()),
        _ => Reply::new(404, "not found"),
    });
    let cache = tempfile::tempdir().unwrap();
    let (fetched, notes) = try_fetch("2028-april", &server, cache.path());
    let fetched = fetched.unwrap();
    assert!(fetched.url.ends_with("/cms/2028-code-tables-tabular-and-index-april.zip"), "{notes:?}");
    // The update is named by what was asked for: the file's own name does not tell.
    assert_eq!(fetched.release, "FY2028 April");
}

#[test]
fn a_release_that_cannot_be_had_is_told_place_by_place() {
    let small = "<ICD10CM.tabular><version>2028</version><chapter><name>1</name><desc>All (A00-B99)</desc>\
        <section id=\"A00-B99\"><desc>All (A00-B99)</desc><diag><name>A00</name><desc>Cholera</desc></diag></section>\
        </chapter></ICD10CM.tabular>";
    let (few, other) = (zip_of(small), zip_of(&small.replace("2028", "2021")));
    let server = Server::start(move |_, request| match request.target.as_str() {
        "/nchs/2028/" => Reply::new(403, "no listing"),
        "/nchs/2028/icd10cm-table-index-2028.zip" => Reply::new(200, few.clone()),
        "/nchs/2028/icd10cm-tabular-2028.zip" => Reply::new(200, other.clone()),
        "/cms/2028-code-tables-tabular-and-index.zip" => Reply::new(503, "maintenance"),
        _ => Reply::new(404, "not found"),
    });
    let cache = tempfile::tempdir().unwrap();
    let error = try_fetch("2028", &server, cache.path()).0.unwrap_err();
    let message = error.to_string();
    for part in [
        "the release `2028` could not be fetched",
        "answered 403",
        "expected at least 69000 billable codes, found 1",
        "expected the list of 2028, found that of 2021",
        "answered 503",
        "(3 attempts)",
    ] {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(error.hint().unwrap().contains("--codes"));
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0, "nothing is kept of a failure");

    // Nothing listens: one line for each publisher, and what to do.
    drop(server);
    let gone = Server::start(|_, _| Reply::hang_up());
    let error = try_fetch("2028", &gone, cache.path()).0.unwrap_err();
    assert_eq!(error.to_string().matches("cannot reach").count(), 2, "{error}");
}
