//! The compact table: a tabular list as plain lines, which load in milliseconds and read well in a diff.
//!
//! ```text
//! icd10cm-table 1<TAB>FY2026 April<TAB>2026       format, name of the release, version of the list
//! c<TAB>1<TAB>A00<TAB>B99<TAB>Certain ...         chapter: number, first, last, title
//! s<TAB>A00<TAB>A09<TAB>Intestinal ...            section: first, last, title
//! A00<TAB>Cholera                                 entry: code (`*` after it: has a placeholder), description
//! i<TAB>...                                       a note on what stands above: see `KINDS`; `t` an inclusion term
//! 7<TAB>A<TAB>initial encounter                   seventh character; `+` other words for it
//! end<TAB>46881                                   number of entries
//! ```
//!
//! The table says what the official XML says; what is billable is worked out after reading either.

use std::fmt::Write as _;
use std::path::Path;

use super::seventh::Extension;
use super::tabular::{Chapter, Node, NodeId, NoteKind, Notes, Section, Tabular};
use super::text::Source;
use super::{Code, Error};

/// How every table begins.
pub(super) const MAGIC: &str = "icd10cm-table 1\t";
/// About as many bytes of a table go to each entry.
const BYTES_PER_NODE: usize = 80;

/// The letter of each kind of note.
const KINDS: [(char, NoteKind); 7] = [
    ('i', NoteKind::Includes),
    ('1', NoteKind::Excludes1),
    ('2', NoteKind::Excludes2),
    ('f', NoteKind::CodeFirst),
    ('u', NoteKind::UseAdditional),
    ('a', NoteKind::CodeAlso),
    ('r', NoteKind::Remarks),
];

/// Writes the table of a list.
pub(super) fn write(name: &str, tabular: &Tabular) -> String {
    let mut out = format!("{MAGIC}{name}\t{}\n", tabular.version);
    for Chapter { number, title, first, last, notes } in &tabular.chapters {
        line(&mut out, format_args!("c\t{number}\t{first}\t{last}\t{title}"));
        write_notes(&mut out, notes);
    }
    for Section { title, first, last, notes } in &tabular.sections {
        line(&mut out, format_args!("s\t{first}\t{last}\t{title}"));
        write_notes(&mut out, notes);
    }
    let mut lists = tabular.extensions.iter().peekable();
    for (node, idx) in tabular.nodes.iter().zip(0..) {
        let mark = if node.has_placeholder { "*" } else { "" };
        line(&mut out, format_args!("{}{mark}\t{}", node.code, node.description));
        for term in &node.inclusion_terms {
            line(&mut out, format_args!("t\t{term}"));
        }
        write_notes(&mut out, node);
        for extension in lists.next_if(|(holder, _)| *holder == NodeId(idx)).iter().flat_map(|(_, list)| list) {
            line(&mut out, format_args!("7\t{}\t{}", extension.character, extension.text));
            for term in &extension.terms {
                line(&mut out, format_args!("+\t{term}"));
            }
        }
    }
    line(&mut out, format_args!("end\t{}", tabular.nodes.len()));
    out
}

/// Reads a table: the name of the release and its list. `path` is named in errors.
///
/// # Errors
/// [`Error::BadEntry`] with the line that breaks the format, [`Error::Torn`] when the end is missing.
pub(super) fn read(source: &Source, path: &Path) -> Result<(String, Tabular), Error> {
    let mut reader = Reader { source, tabular: Tabular::default(), open: Vec::new() };
    reader.tabular.nodes.reserve(source.as_str().len() / BYTES_PER_NODE);
    let mut lines = source.as_str().lines();
    let header = lines.next().and_then(|first| first.strip_prefix(MAGIC)).and_then(|rest| rest.split_once('\t'));
    let (name, version) =
        header.ok_or_else(|| Error::bad_entry(path, 1, format!("expected `{}`", MAGIC.trim_end())))?;
    reader.tabular.version = version.to_owned();
    for (text, number) in lines.zip(2..) {
        if let Some(n_entries) = text.strip_prefix("end\t") {
            let n_read = reader.tabular.nodes.len();
            if n_entries.parse() != Ok(n_read) {
                return Err(Error::bad_entry(path, number, format!("expected {n_entries} entries, found {n_read}")));
            }
            reader.close_down_to(0);
            return Ok((name.to_owned(), reader.tabular));
        }
        reader.read(text).map_err(|message| Error::bad_entry(path, number, message))?;
    }
    Err(Error::Torn { path: path.to_owned(), message: "it stops before its last line".into() })
}

fn line(out: &mut String, text: std::fmt::Arguments) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn write_notes(out: &mut String, notes: &Notes) {
    for (letter, kind) in KINDS {
        for note in notes.of(kind) {
            line(out, format_args!("{letter}\t{note}"));
        }
    }
}

/// A list in the making, and where its next line belongs.
struct Reader<'a> {
    source: &'a Source,
    tabular: Tabular,
    /// From the category down to the entry read last.
    open: Vec<NodeId>,
}

impl Reader<'_> {
    fn read(&mut self, line: &str) -> Result<(), String> {
        let (tag, rest) = line.split_once('\t').ok_or("expected a tag, a tab and a text")?;
        if tag.len() >= 3 {
            return self.read_entry(tag, rest);
        }
        match tag {
            "c" => {
                let (number, rest) = rest.split_once('\t').ok_or("a chapter without a range")?;
                let number = number.parse().map_err(|_| format!("chapter `{number}` is not a small number"))?;
                let (first, last, title) = range(rest)?;
                self.tabular.chapters.push(Chapter { number, title, first, last, notes: Notes::default() });
            }
            "s" => {
                let (first, last, title) = range(rest)?;
                self.tabular.sections.push(Section { title, first, last, notes: Notes::default() });
            }
            "t" => {
                let term = self.source.cut(rest);
                self.node()?.inclusion_terms.push(term);
            }
            "7" => {
                let (character, text) = rest.split_once('\t').ok_or("a seventh character without a text")?;
                let &[character] = character.as_bytes() else {
                    return Err(format!("expected one character, found `{character}`"));
                };
                let extension = Extension { character: char::from(character), text: text.into(), terms: Vec::new() };
                let holder = *self.open.last().ok_or("a seventh character before any code")?;
                let lists = &mut self.tabular.extensions;
                match lists.last_mut().filter(|(last, _)| *last == holder) {
                    Some((_, list)) => list.push(extension),
                    None => lists.push((holder, vec![extension])),
                }
            }
            "+" => {
                let last = self.tabular.extensions.last_mut().and_then(|(_, list)| list.last_mut());
                last.ok_or("other words before any seventh character")?.terms.push(rest.to_owned());
            }
            _ => {
                let kind = KINDS.iter().find(|(letter, _)| tag.starts_with(*letter) && tag.len() == 1);
                let (_, kind) = kind.ok_or_else(|| format!("unknown tag `{tag}`"))?;
                let note = self.source.cut(rest);
                self.notes()?.of_mut(*kind).push(note);
            }
        }
        Ok(())
    }

    fn read_entry(&mut self, tag: &str, description: &str) -> Result<(), String> {
        let name = tag.trim_end_matches('*');
        let code = Code::parse(name).map_err(|error| error.to_string())?;
        let n_above = self.open.iter().take_while(|id| code.is_under(self.tabular.nodes[id.idx()].code)).count();
        self.close_down_to(n_above);
        let mut node = Node::new(code, self.source.cut(description));
        node.has_placeholder = name.len() < tag.len();
        self.open.push(self.tabular.push(node, self.open.last().copied())?);
        Ok(())
    }

    fn close_down_to(&mut self, n_open: usize) {
        for id in self.open.drain(n_open..).rev() {
            self.tabular.close(id);
        }
    }

    fn node(&mut self) -> Result<&mut Node, String> {
        self.tabular.nodes.last_mut().ok_or_else(|| "an inclusion term before any code".into())
    }

    /// The notes of what was read last: an entry, else a section, else a chapter.
    fn notes(&mut self) -> Result<&mut Notes, String> {
        let Tabular { chapters, sections, nodes, .. } = &mut self.tabular;
        match (nodes.last_mut(), sections.last_mut(), chapters.last_mut()) {
            (Some(node), ..) => Ok(node.notes.get_or_insert_default()),
            (None, Some(section), _) => Ok(&mut section.notes),
            (None, None, Some(chapter)) => Ok(&mut chapter.notes),
            (None, None, None) => Err("a note before any chapter".into()),
        }
    }
}

/// "A00<TAB>A09<TAB>Intestinal infectious diseases".
fn range(text: &str) -> Result<(Code, Code, String), String> {
    let mut parts = text.splitn(3, '\t');
    let mut code = || {
        let text = parts.next().unwrap_or_default();
        Code::parse(text).map_err(|error| error.to_string())
    };
    let (first, last) = (code()?, code()?);
    Ok((first, last, parts.next().ok_or("a range without a title")?.to_owned()))
}
