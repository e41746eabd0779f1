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
    let whole = source.as_str();
    let header = whole.lines().next().and_then(|line| line.strip_prefix(MAGIC)).and_then(|line| line.split_once('\t'));
    let (name, version) =
        header.ok_or_else(|| Error::bad_entry(path, 1, format!("expected `{}`", MAGIC.trim_end())))?;
    let rest = whole.split_once('\n').map_or("", |(_, rest)| rest);
    // Two threads read a half each; a category needs nothing of what stands before it.
    let (first_half, second_half) = rest.split_at(second_half(rest));
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| Half::read(source, second_half));
        (Half::read(source, first_half), second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let bad_line = |n_lines: usize, message| Error::bad_entry(path, 1 + n_lines, message);
    let mut read = first.map_err(|(n_lines, message)| bad_line(n_lines, message))?;
    if read.n_entries.is_none() {
        let second = second.map_err(|(n_lines, message)| bad_line(read.n_lines + n_lines, message))?;
        read.append(second).map_err(|message| bad_line(read.n_lines, message))?;
    }
    let Half { mut tabular, n_lines, n_entries } = read;
    let n_read = tabular.nodes.len();
    match n_entries {
        None => Err(Error::Torn { path: path.to_owned(), message: "it stops before its last line".into() }),
        Some(expected) if expected.parse() != Ok(n_read) => {
            Err(bad_line(n_lines, format!("expected {expected} entries, found {n_read}")))
        }
        Some(_) => {
            tabular.version = version.to_owned();
            Ok((name.to_owned(), tabular))
        }
    }
}

/// Where the category starts that comes first after the middle.
fn second_half(text: &str) -> usize {
    let bytes = text.as_bytes();
    let middle = bytes.len() / 2;
    let starts_category = |start: &usize| bytes[*start..].iter().position(|&byte| byte == b'\t') == Some(3);
    let starts = memchr::memchr_iter(b'\n', &bytes[middle..]).map(|newline| middle + newline + 1);
    starts.filter(|start| *start < bytes.len()).find(starts_category).unwrap_or(bytes.len())
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

/// What stands in a part of a table.
struct Half<'a> {
    tabular: Tabular,
    /// Up to the end of the table, where it lies in this part.
    n_lines: usize,
    /// As the end of the table gives it.
    n_entries: Option<&'a str>,
}

impl<'a> Half<'a> {
    /// Reads lines, of which the first is that of a chapter or a category.
    ///
    /// # Errors
    /// The number of the bad line, counted from 1, and what is wrong with it.
    fn read(source: &Source, text: &'a str) -> Result<Self, (usize, String)> {
        let mut reader = Reader { source, tabular: Tabular::default(), open: Vec::new() };
        reader.tabular.nodes.reserve(text.len() / BYTES_PER_NODE);
        let (mut n_lines, mut n_entries, mut start) = (0, None, 0);
        let ends = memchr::memchr_iter(b'\n', text.as_bytes());
        let is_open = !text.is_empty() && !text.ends_with('\n');
        for end in ends.chain(is_open.then_some(text.len())) {
            let line = &text[start..end];
            let line = line.strip_suffix('\r').unwrap_or(line);
            (n_lines, start) = (n_lines + 1, end + 1);
            n_entries = line.strip_prefix("end\t");
            if n_entries.is_some() {
                break;
            }
            reader.read(line).map_err(|message| (n_lines, message))?;
        }
        reader.close_down_to(0);
        Ok(Self { tabular: reader.tabular, n_lines, n_entries })
    }

    fn append(&mut self, next: Self) -> Result<(), String> {
        self.n_lines += next.n_lines;
        self.n_entries = next.n_entries;
        self.tabular.append(next.tabular)
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
        let tab = line.bytes().position(|byte| byte == b'\t').ok_or("expected a tag, a tab and a text")?;
        let (tag, rest) = (&line[..tab], &line[tab + 1..]);
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
                let extension =
                    Extension { character: char::from(character), text: self.source.cut(text), terms: Vec::new() };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes of growing length move the middle through all of the table, past headers, leaves, notes and its end.
    #[test]
    fn a_table_is_the_same_wherever_its_middle_is() {
        let shape = |text: &str| {
            let (name, tabular) = read(&Source::read(text.to_owned()), Path::new("x")).unwrap();
            let node = |node: &Node| (node.code, node.parent, node.depth, node.n_below, node.includes.len());
            let nodes: Vec<_> = tabular.nodes.iter().map(node).collect();
            let holders: Vec<_> = tabular.extensions.iter().map(|(holder, list)| (*holder, list.len())).collect();
            (name, tabular.version, tabular.chapters.len(), nodes, holders)
        };
        let table = |before: usize, after: usize| {
            let (before, after) = ("x".repeat(before), "x".repeat(after));
            format!(
                "{MAGIC}FY2027\t2027\nc\t1\tA00\tB99\tAll\ns\tA00\tB99\tAll\ni\t{before}\nA00\tCholera\nA00.0\tone\n\
                 i\tof A00.0\nA00.1\ttwo\nA01*\tTyphoid\nA01.0\tthree\n7\tA\tinitial\n7\tD\tlater\nA01.01\tfour\n\
                 i\t{after}\nB99\tOther\n7\tA\tinitial\nB99.1\tfive\nend\t8\n"
            )
        };
        let expected = shape(&table(1, 1));
        assert_eq!((expected.2, expected.3.len(), &expected.4), (1, 8, &vec![(NodeId(4), 2), (NodeId(6), 1)]));
        for n in 1..400 {
            for text in [table(n, 1), table(1, n), table(n, 1).replace('\n', "\r\n")] {
                assert_eq!(shape(&text), expected, "{n}");
            }
        }
        let text = table(1, 1);
        assert_eq!(shape(text.trim_end()), expected);
        let torn = read(&Source::read(text.replace("end\t8\n", "")), Path::new("x"));
        assert!(matches!(torn, Err(Error::Torn { .. })), "{torn:?}");
        for (from, to) in [("\nA00.1\t", "\nA0\t"), ("\nB99.1\t", "\nB9\t")] {
            let line = text[..text.find(from).unwrap()].lines().count() + 1;
            let bad = read(&Source::read(text.replace(from, to)), Path::new("x"));
            assert!(matches!(bad, Err(Error::BadEntry { line: found, .. }) if found == line), "{bad:?}");
        }
    }
}
