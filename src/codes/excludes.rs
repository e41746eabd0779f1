//! Excludes1: which codes are never coded together, and the note that says so.
//!
//! A note holds for everything below the place where it is printed: a code inherits the notes of its entry, of those
//! above it, of its sections and of its chapter. In: the notes of a release. Out: [`Exclusion`]s.

use std::fmt;
use std::ops::Range;

use super::reference::{Condition, Reference, references_of};
use super::release::Release;
use super::tabular::{NodeId, Notes};
use super::{Code, Text};

/// Where a note is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// At the head of a chapter, given by its number.
    Chapter(u8),
    /// At the head of a section, given by its first and last category.
    Section(Code, Code),
    /// Under a code.
    Node(Code),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chapter(number) => write!(f, "chapter {number}"),
            Self::Section(first, last) if first == last => write!(f, "section {first}"),
            Self::Section(first, last) => write!(f, "section {first}-{last}"),
            Self::Node(code) => write!(f, "{code}"),
        }
    }
}

/// Two codes that an Excludes1 note keeps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exclusion<'a> {
    /// The code that the note is printed above.
    pub code: Code,
    /// The code that the note names.
    pub excluded: Code,
    /// Where the note is printed.
    pub holder: Holder,
    /// The note, as printed.
    pub note: &'a str,
}

/// An Excludes1 or "code first" note that cannot be acted on in full: it names no codes in a form understood here ("code to
/// condition", "see Alphabetical Index"), or one that the release does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnparsedNote {
    /// As in `excludes1`.
    pub kind: &'static str,
    /// Where the note is printed.
    pub holder: Holder,
    /// The note, as printed.
    pub note: Text,
}

/// Every Excludes1 note of a release, ready to be asked.
#[derive(Debug)]
pub(super) struct Excludes {
    /// By holder: chapters, then sections, then nodes, the latter sorted by their place.
    rules: Vec<Rule>,
    /// How many of the rules belong to chapters and sections.
    n_wide: usize,
    pub unparsed: Vec<UnparsedNote>,
}

/// One note: what it is printed above, and what it names.
#[derive(Debug)]
struct Rule {
    holder: Holder,
    note: Text,
    /// The places of the tabular list that it is printed above.
    scope: Range<u32>,
    named: Vec<Named>,
    /// Whether one of the named ranges holds the whole scope.
    covers_scope: bool,
}

#[derive(Debug)]
struct Named {
    places: Range<u32>,
    seventh: Option<char>,
    condition: Option<Condition>,
}

/// A code with its place in the tabular list.
#[derive(Clone, Copy)]
struct Placed<'a> {
    code: Code,
    leaf: Code,
    place: u32,
    seventh: Option<&'a super::Seventh>,
}

impl Excludes {
    pub(super) fn of(release: &Release) -> Self {
        let mut excludes = Self { rules: Vec::new(), n_wide: 0, unparsed: Vec::new() };
        for chapter in release.chapters() {
            let scope = release.span(chapter.first, chapter.last).unwrap_or_default();
            excludes.read(release, Holder::Chapter(chapter.number), &scope, &chapter.notes);
        }
        for section in release.sections() {
            let scope = release.span(section.first, section.last).unwrap_or_default();
            excludes.read(release, Holder::Section(section.first, section.last), &scope, &section.notes);
        }
        excludes.n_wide = excludes.rules.len();
        for (node, place) in release.nodes().iter().zip(0..) {
            excludes.read(release, Holder::Node(node.code), &(place..release.end_of(NodeId(place))), node);
        }
        excludes
    }

    fn read(&mut self, release: &Release, holder: Holder, scope: &Range<u32>, notes: &Notes) {
        self.list_unparsed_code_first(release, holder, notes);
        for note in &notes.excludes1 {
            let references = references_of(note).unwrap_or_default();
            let named: Vec<Named> = references.iter().filter_map(|reference| Named::find(release, reference)).collect();
            // A line that ends in a colon only introduces the notes after it.
            if named.len() < references.len() || (references.is_empty() && !note.ends_with(':')) {
                self.unparsed.push(UnparsedNote { kind: "excludes1", holder, note: note.clone() });
            }
            if !named.is_empty() {
                let covers = |named: &Named| {
                    named.is_whole() && named.places.start <= scope.start && scope.end <= named.places.end
                };
                let covers_scope = named.iter().any(covers);
                self.rules.push(Rule { holder, note: note.clone(), scope: scope.clone(), named, covers_scope });
            }
        }
    }

    /// Lists the "code first" notes that name no known code; they are read anew when a set is checked.
    fn list_unparsed_code_first(&mut self, release: &Release, holder: Holder, notes: &Notes) {
        for note in &notes.code_first {
            let references = references_of(note).unwrap_or_default();
            let is_known = |reference: &Reference| Named::find(release, reference).is_some();
            if !references.iter().all(is_known) || (references.is_empty() && !note.ends_with(':')) {
                self.unparsed.push(UnparsedNote { kind: "code_first", holder, note: note.clone() });
            }
        }
    }

    pub(super) fn between(&self, release: &Release, a: Code, b: Code) -> Option<Exclusion<'_>> {
        // In code order, so that the answer does not depend on the order of the question.
        let (a, b) = (Placed::of(release, a.min(b))?, Placed::of(release, a.max(b))?);
        self.first_above(release, a, b).or_else(|| self.first_above(release, b, a))
    }

    /// The nearest note printed above `code` that names `other`.
    fn first_above(&self, release: &Release, code: Placed, other: Placed) -> Option<Exclusion<'_>> {
        let (wide, narrow) = self.rules.split_at(self.n_wide);
        let at_node = |id: NodeId| {
            let start = narrow.partition_point(|rule| rule.scope.start < id.0);
            narrow[start..].iter().take_while(move |rule| rule.scope.start == id.0)
        };
        let nodes = std::iter::successors(Some(NodeId(code.place)), |id| release.node_at(*id).parent);
        let rule = nodes.flat_map(at_node).chain(wide.iter().rev()).find(|rule| rule.parts(code, other))?;
        Some(Exclusion { code: code.code, excluded: other.code, holder: rule.holder, note: &rule.note })
    }
}

/// Whether the codes that `note` names hold `code`.
pub(super) fn names(release: &Release, note: &str, code: Code) -> bool {
    let Some(code) = Placed::of(release, code) else { return false };
    let references = references_of(note).unwrap_or_default();
    references.iter().filter_map(|reference| Named::find(release, reference)).any(|named| named.holds(code))
}

impl Rule {
    /// Whether this note, printed above `code`, keeps it from `other`.
    ///
    /// A note may name codes below its own place ("basophilia (D72.824)" under D72): it parts those from the others
    /// there, and says nothing about two that it names. One that names a range with its own place in it ("other
    /// complications (T80-T88)" under T84) speaks of the rest of that range.
    fn parts(&self, code: Placed, other: Placed) -> bool {
        let speaks_of_both = if self.covers_scope { self.scope.contains(&other.place) } else { self.names(code) };
        self.scope.contains(&code.place) && self.names(other) && !speaks_of_both
    }

    fn names(&self, code: Placed) -> bool {
        self.named.iter().any(|named| named.holds(code))
    }
}

impl Named {
    fn holds(&self, code: Placed) -> bool {
        let own = code.seventh;
        self.places.contains(&code.place)
            && self.seventh.is_none_or(|seventh| own.is_some_and(|own| own.character == seventh))
            && self.condition.as_ref().is_none_or(|c| c.is_met(code.code, code.leaf, own.map(|own| &*own.text)))
    }

    fn is_whole(&self) -> bool {
        self.seventh.is_none() && self.condition.is_none()
    }

    /// The places that a reference means; none when the release does not know the codes.
    fn find(release: &Release, reference: &Reference) -> Option<Self> {
        let Reference { first, last, condition } = reference;
        let condition = condition.clone();
        if let Some(places) = release.span(*first, *last) {
            return Some(Self { places, seventh: None, condition });
        }
        let billable = release.get(*first).filter(|_| first == last)?;
        let leaf = billable.node?;
        Some(Self { places: leaf.0..leaf.0 + 1, seventh: first.character(7), condition })
    }
}

impl<'a> Placed<'a> {
    fn of(release: &'a Release, code: Code) -> Option<Self> {
        if let Some(id) = release.node_id(code) {
            return Some(Self { code, leaf: code, place: id.0, seventh: None });
        }
        let billable = release.get(code)?;
        let id = billable.node?;
        Some(Self { code, leaf: release.node_at(id).code, place: id.0, seventh: billable.seventh.as_ref() })
    }
}
