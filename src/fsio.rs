//! Files: atomic writes, hashes, and JSON Lines (plain, gzip or stdin) whose faults name file and line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::diag::{Diagnostic, io_hint};

/// Bad lines collected before reading gives up.
const MAX_BAD_LINES: usize = 20;
/// How files begin that are not yet whole.
const PARTIAL: &str = ".partial-";

/// A file that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` line {line}: {message}{}", path.display(), more(*others))]
    BadLine { path: PathBuf, line: usize, message: String, others: usize },
    #[error("`{}`: {message}", path.display())]
    BadFile { path: PathBuf, message: String },
    #[error("`{}` has no records", path.display())]
    Empty { path: PathBuf },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } => io_hint(source),
            Self::BadLine { path, message, .. } => Some(line_hint(path, message).into()),
            Self::BadFile { .. } => None,
            Self::Empty { .. } => Some("check the path, and the command that made the file".into()),
        }
    }
}

impl Error {
    /// An I/O failure with what was being done to which path.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// What to do about a bad line: by the kind of the file, and by whether it is one object at all.
fn line_hint(path: &Path, message: &str) -> &'static str {
    let name = path.to_string_lossy().to_lowercase();
    let is_table = [".csv", ".tsv"].iter().any(|ending| name.trim_end_matches(".gz").ends_with(ending));
    let is_other_kind = ["missing field", "expected `"].iter().any(|start| message.starts_with(start));
    match (is_table, is_other_kind) {
        (true, _) => "the first line of a table names its columns; mend or remove the line and run again",
        (false, true) => {
            "the file is of another kind than this command reads, or the line is; --help says which it reads"
        }
        (false, false) => "every line is one JSON object; mend or remove the line and run again",
    }
}

fn more(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => " (and 1 more bad line)".into(),
        n => format!(" (and {n} more bad lines)"),
    }
}

/// Opens `path` for reading; `-` is stdin, gzip is recognised by its first two bytes.
///
/// # Errors
/// [`Error::Io`] when the file cannot be opened or read.
pub fn open(path: &Path) -> Result<Box<dyn BufRead>, Error> {
    let fail = Error::io("open", path);
    let raw: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path).map_err(fail)?) };
    let mut reader = BufReader::with_capacity(1 << 16, raw);
    let is_gzip = reader.fill_buf().map_err(Error::io("read", path))?.starts_with(&[0x1f, 0x8b]);
    Ok(if is_gzip { Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(reader))) } else { Box::new(reader) })
}

/// The whole text of a file, decompressed when it is gzip.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text).map_err(Error::io("read", path))?;
    Ok(text)
}

/// Calls `each` with the 1-based number and the text of every line that is not blank.
///
/// A fault that `each` reports as text is collected; after the last line (or 20 faults) the first is returned with
/// the count of the others. Nothing is skipped silently.
///
/// # Errors
/// [`Error::Io`] or [`Error::BadLine`].
pub fn for_each_line(path: &Path, mut each: impl FnMut(usize, &str) -> Result<(), String>) -> Result<(), Error> {
    let mut reader = open(path)?;
    let mut line = Vec::new();
    let mut first: Option<(usize, String)> = None;
    let mut n_bad = 0;
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))? == 0 {
            break;
        }
        let outcome = match std::str::from_utf8(&line) {
            Ok(text) if text.trim().is_empty() => Ok(()),
            Ok(text) => each(number, text.trim_end_matches(['\n', '\r'])),
            Err(_) => Err("not UTF-8".into()),
        };
        if let Err(message) = outcome {
            n_bad += 1;
            first.get_or_insert((number, message));
            if n_bad == MAX_BAD_LINES {
                break;
            }
        }
    }
    match first {
        Some((line, message)) => Err(Error::BadLine { path: path.to_owned(), line, message, others: n_bad - 1 }),
        None => Ok(()),
    }
}

/// Reads every record of a JSON Lines file.
///
/// # Errors
/// [`Error::Io`], or [`Error::BadLine`] with the line of the first record that does not parse.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
    let mut records = Vec::new();
    for_each_line(path, |_, text| {
        records.push(serde_json::from_str(text).map_err(|error| json_fault(&error))?);
        Ok(())
    })?;
    Ok(records)
}

/// A JSON fault without serde's line number, which is always 1 in JSON Lines.
pub fn json_fault(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let (message, column) = text.split_once(" at line ").map_or((text.as_str(), ""), |(m, place)| (m, place));
    match column.split_once("column ") {
        Some((_, column)) if column != "0" => format!("{message} (column {column})"),
        _ => message.to_owned(),
    }
}

/// Writes records as JSON Lines, atomically (see [`write_atomic`]).
///
/// # Errors
/// [`Error::Io`] when the file cannot be written.
pub fn write_jsonl<T: Serialize>(path: &Path, records: impl IntoIterator<Item = T>) -> Result<(), Error> {
    write_atomic(path, |out| {
        for record in records {
            serde_json::to_writer(&mut *out, &record)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Writes a value as indented JSON with a final newline, atomically.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    write_atomic(path, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    })
}

/// Reads one JSON document.
///
/// # Errors
/// [`Error::Io`], or [`Error::BadFile`] with the place of the fault.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|error| Error::BadFile { path: path.to_owned(), message: error.to_string() })
}

/// Writes a file so that it appears whole or not at all: a temporary sibling, synced, renamed. Parents are made.
///
/// # Errors
/// [`Error::Io`] when any of these steps fails; the old file, if there was one, is then untouched.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Error> {
    make_dir(parent_of(path))?;
    let write = || -> io::Result<()> {
        let mut file = partial_beside(path)?;
        let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
        fill(&mut out)?;
        out.flush()?;
        drop(out);
        file.as_file().sync_all()?;
        let file = file.persist(path).map_err(|error| error.error)?;
        set_default_mode(&file)
    };
    write().map_err(Error::io("write", path))
}

/// A temporary file beside `path`, to be renamed to it. It is locked while its handle is open. What a program that was
/// killed left behind for the same path goes.
///
/// # Errors
/// When the file cannot be made.
pub fn partial_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    clear_partials(path);
    let prefix = partial_prefix(path);
    loop {
        let file = tempfile::Builder::new().prefix(&prefix).tempfile_in(parent_of(path))?;
        // Not every file system has locks; without them the file cannot be told from one in use, and stays.
        let _ = file.as_file().lock_shared();
        // Another program may have taken it for abandoned before it was locked.
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes what programs that were killed left behind when they wrote `path`: temporary files that nobody has locked.
pub fn clear_partials(path: &Path) {
    let prefix = partial_prefix(path);
    let Ok(entries) = std::fs::read_dir(parent_of(path)) else { return };
    for entry in entries.flatten() {
        let is_partial = entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix));
        if is_partial && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            // One that cannot be removed is in nobody's way.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// How the names of the temporary files of `path` begin.
pub fn partial_prefix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{PARTIAL}{}-", name.strip_prefix(PARTIAL).unwrap_or(&name))
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Gives a finished temporary file its name: synced, readable by all, renamed.
///
/// # Errors
/// [`Error::Io`] when any of these steps fails.
pub fn publish(partial: tempfile::TempPath, path: &Path) -> Result<(), Error> {
    let publish = || -> io::Result<()> {
        let file = File::open(&partial)?;
        file.sync_all()?;
        set_default_mode(&file)?;
        partial.persist(path).map_err(|error| error.error)
    };
    publish().map_err(Error::io("write", path))
}

/// A temporary file is private to its owner; a result is as readable as any other file the user makes.
#[cfg(unix)]
fn set_default_mode(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_default_mode(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Makes a folder and its parents.
///
/// # Errors
/// [`Error::Io`] when that fails.
pub fn make_dir(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(Error::io("create the folder", path))
}

/// SHA-256 of a file's bytes, in lower-case hex.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n_read = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if n_read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n_read]);
    }
}

/// SHA-256 of bytes in memory, in lower-case hex.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_line_is_named_and_the_others_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        std::fs::write(&path, "{\"a\":1}\n\n{\"a\":\n[]\n").unwrap();
        let error = read_jsonl::<std::collections::HashMap<String, i32>>(&path).unwrap_err().to_string();
        assert!(error.contains("line 3: EOF while parsing a value"), "{error}");
        assert!(error.ends_with("(and 1 more bad line)"), "{error}");
    }

    #[test]
    fn gzip_is_read_like_plain_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl.gz");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"1\n2\n").unwrap();
        std::fs::write(&path, gz.finish().unwrap()).unwrap();
        assert_eq!(read_jsonl::<i32>(&path).unwrap(), [1, 2]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomic(&path, |out| out.write_all(b"old")).unwrap();
        let full = write_atomic(&path, |out| {
            out.write_all(b"new")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(full.unwrap_err().hint().unwrap().contains("disk is full"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// As after SIGKILL: the file is there, and nobody holds it.
    #[test]
    fn what_a_killed_program_left_goes_and_what_is_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.safetensors");
        for name in [".partial-adapter.safetensors-a1B2c3", ".partial-adapter_config.json-a1B2c3", ".partial-x"] {
            std::fs::write(dir.path().join(name), "half").unwrap();
        }
        let in_use = partial_beside(&path).unwrap();
        write_atomic(&path, |out| out.write_all(b"whole")).unwrap();
        let mut names: Vec<String> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let held = in_use.path().file_name().unwrap().to_str().unwrap();
        assert!(held.starts_with(".partial-adapter.safetensors-"), "{held}");
        assert_eq!(names, [held, ".partial-adapter_config.json-a1B2c3", ".partial-x", "adapter.safetensors"]);
        in_use.persist(&path).unwrap();
        write_atomic(&path, |out| out.write_all(b"whole")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
