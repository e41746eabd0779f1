//! One release of the code set, held in memory: what is billable, what a code means, and where it stands.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use super::excludes::{Excludes, Exclusion, Holder, UnparsedNote};
use super::seventh::{Extension, Seventh, SeventhLimit, complete};
use super::tabular::{Chapter, Node, NodeId, Notes, Section, Tabular};
use super::text::{Parts, Source};
use super::{Code, Error, Text, source, table};

/// A billable code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Billable {
    /// The code.
    pub code: Code,
    /// The full description, with the text of the seventh character.
    pub description: Text,
    /// The leaf of the tabular list that it comes from; none in a release read from JSON or an order file.
    pub node: Option<NodeId>,
    /// The seventh character, where one completes the leaf.
    pub seventh: Option<Seventh>,
}

/// A release of ICD-10-CM.
#[derive(Debug)]
pub struct Release {
    name: String,
    tabular: Tabular,
    /// Every node, by code.
    by_code: Vec<(Code, NodeId)>,
    /// Sorted by code.
    billable: Vec<Billable>,
    /// The places in the tabular list that each section covers.
    section_spans: Vec<Range<u32>>,
    /// Read from the notes when first asked for.
    excludes: OnceLock<Excludes>,
    /// Hash of the text that it was read from.
    fingerprint: u128,
}

impl Billable {
    /// A code of which only the description is known.
    pub(super) fn plain(code: Code, description: Text) -> Self {
        Self { code, description, node: None, seventh: None }
    }
}

impl Release {
    /// The release built into the program: April 2026 (FY2026), 74,719 billable codes.
    ///
    /// # Errors
    /// Never on a sound build; a damaged table is an error like that of any other file.
    pub fn builtin() -> Result<Self, Error> {
        source::read(&Source::built_in(), "fy2026-april.table", Path::new("fy2026-april.table"))
    }

    /// Reads a release from a file: the tabular list in XML or as a compact table, an order file, or a `codes.json`
    /// of billable codes, each plain or gzip, or the zip that holds one as downloaded.
    ///
    /// # Errors
    /// [`Error`] with the place of the fault.
    pub fn load(path: &Path) -> Result<Self, Error> {
        source::load(path)
    }

    /// The whole release as a compact table, which loads in milliseconds; none without a tabular list.
    pub fn to_table(&self) -> Option<String> {
        self.has_tree().then(|| table::write(&self.name, &self.tabular))
    }

    /// Whether the release has headers and notes. One read from JSON or an order file has billable codes only.
    pub fn has_tree(&self) -> bool {
        !self.nodes().is_empty()
    }

    /// A short name, as "FY2026 April".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The fiscal year that the tabular list gives itself, as "2026"; empty without one.
    pub fn version(&self) -> &str {
        &self.tabular.version
    }

    /// A number that tells one text of a release from another; for the names of files kept from run to run.
    pub fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// Number of billable codes.
    pub fn len(&self) -> usize {
        self.billable.len()
    }

    /// Whether there is no billable code.
    pub fn is_empty(&self) -> bool {
        self.billable.is_empty()
    }

    /// The billable codes, sorted by code.
    pub fn billable(&self) -> &[Billable] {
        &self.billable
    }

    /// The billable code `code`.
    pub fn get(&self, code: Code) -> Option<&Billable> {
        let idx = self.billable.binary_search_by_key(&code, |billable| billable.code).ok()?;
        self.billable.get(idx)
    }

    /// Whether a claim may carry `code`.
    pub fn is_billable(&self, code: Code) -> bool {
        self.get(code).is_some()
    }

    /// What `code` means, billable or header.
    pub fn description(&self, code: Code) -> Option<&str> {
        match self.get(code) {
            Some(billable) => Some(&billable.description),
            None => self.node(code).map(|node| node.description.as_str()),
        }
    }

    /// The entry of the tabular list with exactly this code. Codes completed by a seventh character have none.
    pub fn node(&self, code: Code) -> Option<&Node> {
        self.node_id(code).map(|id| self.node_at(id))
    }

    /// The entry at a place of the tabular list, as [`Billable::node`] gives it.
    pub fn node_at(&self, id: NodeId) -> &Node {
        &self.tabular.nodes[id.idx()]
    }

    /// The entries of the tabular list, in the order of the document.
    pub fn nodes(&self) -> &[Node] {
        &self.tabular.nodes
    }

    /// The entries right below the one at a place of the tabular list, in the order of the document.
    pub fn children_of(&self, id: NodeId) -> impl Iterator<Item = &Node> {
        let end = self.end_of(id);
        let first = NodeId(id.0 + 1);
        let next = move |id: &NodeId| Some(NodeId(self.end_of(*id)));
        std::iter::successors(Some(first), next).take_while(move |id| id.0 < end).map(|id| self.node_at(id))
    }

    /// The entry right above `code`: the leaf for a code completed by a seventh character.
    pub fn parent_of(&self, code: Code) -> Option<&Node> {
        self.ancestors(code).next()
    }

    /// The entries above `code`, the nearest first, its category last. Sections and chapters are not among them.
    pub fn ancestors(&self, code: Code) -> impl Iterator<Item = &Node> {
        let first = match self.node(code) {
            Some(node) => node.parent,
            None => self.get(code).and_then(|billable| billable.node),
        };
        std::iter::successors(first.map(|id| self.node_at(id)), |node| node.parent.map(|id| self.node_at(id)))
    }

    /// The billable codes below `code`, or itself when it is billable; empty for an unknown code.
    pub fn billable_under(&self, code: Code) -> &[Billable] {
        let start = self.billable.partition_point(|billable| billable.code < code);
        let n_under = self.billable[start..].partition_point(|billable| billable.code.is_under(code));
        &self.billable[start..start + n_under]
    }

    /// The billable codes right below the same entry as `code`, itself left out. For `S82.201A` these differ in the
    /// seventh character; for `A00.0` they are the other billable codes right below `A00`.
    pub fn siblings(&self, code: Code) -> Vec<&Billable> {
        let above = self.parent_of(code).map(|parent| parent.code);
        let header = above.unwrap_or_else(|| code.truncated(code.len().max(4) - 1));
        let is_sibling = |other: &&Billable| {
            let beside = match above {
                Some(above) => self.parent_of(other.code).map(|parent| parent.code) == Some(above),
                None => other.code.len() == code.len(),
            };
            beside && other.code != code
        };
        self.billable_under(header).iter().filter(is_sibling).collect()
    }

    /// The list of seventh characters that completes the leaf `code`, wherever above it stands.
    pub fn extensions_of(&self, code: Code) -> Option<&[Extension]> {
        let own = self.node_id(code).into_iter();
        let above = self.ancestors(code).filter_map(|node| self.node_id(node.code));
        own.chain(above).find_map(|id| {
            let idx = self.tabular.extensions.binary_search_by_key(&id, |(holder, _)| *holder).ok()?;
            Some(self.tabular.extensions[idx].1.as_slice())
        })
    }

    /// The chapters, in order.
    pub fn chapters(&self) -> &[Chapter] {
        &self.tabular.chapters
    }

    /// The chapter whose range of categories holds `code`, known or not.
    pub fn chapter_of(&self, code: Code) -> Option<&Chapter> {
        let category = code.category();
        self.chapters().iter().find(|chapter| chapter.first <= category && category <= chapter.last)
    }

    /// The sections that hold `code`, in the order of the document: a wide one comes before those inside it.
    pub fn sections_of(&self, code: Code) -> impl Iterator<Item = &Section> {
        let place = self.node_id(code.category()).map(|id| id.0);
        let spans = self.sections().iter().zip(&self.section_spans);
        spans.filter(move |(_, span)| place.is_some_and(|place| span.contains(&place))).map(|(section, _)| section)
    }

    /// The sections of every chapter, in the order of the document.
    pub fn sections(&self) -> &[Section] {
        &self.tabular.sections
    }

    /// The places whose notes hold for `code`, the nearest first: its entry, those above, its sections, its chapter.
    pub fn notes_above(&self, code: Code) -> impl Iterator<Item = (Holder, &Notes)> {
        let nodes = self.node(code).into_iter().chain(self.ancestors(code));
        let mut sections: Vec<&Section> = self.sections_of(code).collect();
        sections.reverse();
        let nodes = nodes.map(|node| (Holder::Node(node.code), &**node));
        let sections =
            sections.into_iter().map(|section| (Holder::Section(section.first, section.last), &section.notes));
        let chapter = self.chapter_of(code).map(|chapter| (Holder::Chapter(chapter.number), &chapter.notes));
        nodes.chain(sections).chain(chapter)
    }

    /// The Excludes1 note that keeps `a` and `b` apart, whichever of the two it is printed above; the nearest note
    /// where there are several. Notes are inherited from entries, sections and the chapter above.
    ///
    /// The guidelines (I.A.12.a) allow an exception where the two conditions are unrelated to each other; only the
    /// record can tell. A release read from JSON or an order file has no notes.
    pub fn excludes1(&self, a: Code, b: Code) -> Option<Exclusion<'_>> {
        self.excludes().between(self, a, b)
    }

    /// The Excludes1 and "code first" notes that no code can be told from, so that no check acts on them.
    pub fn unparsed_notes(&self) -> &[UnparsedNote] {
        &self.excludes().unparsed
    }

    fn excludes(&self) -> &Excludes {
        self.excludes.get_or_init(|| Excludes::of(self))
    }

    /// The places in the tabular list from `first` to `last` and of everything below them.
    ///
    /// "From ... to" follows the order of the document: `C43-C44` holds `C4A`, which stands between them, and
    /// `C76-C80` does not hold `C7A`, which comes before. Only a range that ends in a letter means the alphabet:
    /// `J40-J4A` holds `J45`, which the document puts after `J4A`. An end that is not in the list stands for its
    /// neighbour inside the range, where both ends are of one length; else the range is unknown.
    pub(super) fn span(&self, first: Code, last: Code) -> Option<Range<u32>> {
        let known = |code: Code| self.node_id(code);
        let len = first.len();
        if first == last || len != last.len() {
            let (start, last) = (known(first)?, known(last)?);
            return Some(start.0..self.end_of(last)).filter(|span| !span.is_empty());
        }
        let between = || {
            let from = self.by_code.partition_point(|(code, _)| *code < first);
            let in_range = self.by_code[from..].iter().take_while(|(code, _)| code.truncated(len) <= last);
            in_range.filter(|(code, _)| code.len() == len).map(|&(_, id)| id)
        };
        let start = known(first).or_else(|| between().min())?;
        let ends_in_letter = last.character(len).is_some_and(|c| c.is_ascii_alphabetic());
        let last = match known(last) {
            Some(last) if !ends_in_letter => last,
            _ => between().max()?,
        };
        Some(start.0..self.end_of(last)).filter(|span| !span.is_empty())
    }

    /// One past the last entry below that at a place of the tabular list.
    pub(super) fn end_of(&self, id: NodeId) -> u32 {
        self.tabular.end_of(id)
    }

    pub(super) fn node_id(&self, code: Code) -> Option<NodeId> {
        let idx = self.by_code.binary_search_by_key(&code, |(code, _)| *code).ok()?;
        Some(self.by_code[idx].1)
    }

    pub(super) fn from_tabular(name: String, tabular: Tabular, fingerprint: u128) -> Self {
        let by_code = in_code_order(&tabular);
        let billable = expand(&tabular, &by_code);
        let mut release = Self {
            name,
            tabular,
            by_code,
            billable,
            section_spans: Vec::new(),
            excludes: OnceLock::new(),
            fingerprint,
        };
        let span_of = |section: &Section| release.span(section.first, section.last).unwrap_or_default();
        release.section_spans = release.sections().iter().map(span_of).collect();
        release
    }

    /// The same release under another name.
    pub(super) fn named(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// A release of billable codes only, in any order.
    pub(super) fn from_billable(name: String, mut billable: Vec<Billable>, fingerprint: u128) -> Self {
        billable.sort_unstable_by_key(|billable| billable.code);
        let tabular = Tabular::default();
        Self {
            name,
            tabular,
            by_code: Vec::new(),
            billable,
            section_spans: Vec::new(),
            excludes: OnceLock::new(),
            fingerprint,
        }
    }
}

/// Every entry of a tabular list, sorted by code.
fn in_code_order(tabular: &Tabular) -> Vec<(Code, NodeId)> {
    let mut categories: Vec<(Code, NodeId)> = Vec::new();
    let mut next = NodeId(0);
    while let Some(node) = tabular.nodes.get(next.idx()) {
        categories.push((node.code, next));
        next = NodeId(tabular.end_of(next));
    }
    categories.sort_unstable();
    let mut by_code = Vec::with_capacity(tabular.nodes.len());
    for (_, id) in categories {
        let start = by_code.len();
        by_code.extend((id.0..tabular.end_of(id)).map(NodeId).map(|id| (tabular.nodes[id.idx()].code, id)));
        // The document puts letters before digits in places: `H93.A9` comes before `H93.2`.
        let category = &mut by_code[start..];
        if !category.is_sorted() {
            category.sort_unstable();
        }
    }
    by_code
}

/// The billable codes of a tabular list, sorted: each leaf, or the codes that its seventh characters make of it.
fn expand(tabular: &Tabular, by_code: &[(Code, NodeId)]) -> Vec<Billable> {
    let limits: Vec<SeventhLimit> =
        tabular.nodes.iter().flat_map(|node| &node.remarks).filter_map(|note| SeventhLimit::parse(note)).collect();
    let texts_of = |list: &Vec<Extension>| list.iter().map(|extension| extension.text.clone()).collect();
    let lists = lists_in_force(tabular);
    let mut billable = Vec::with_capacity(2 * tabular.nodes.len());
    // All full descriptions stand in one text, made when the first is read: few programs read any.
    let descriptions = Source::composed();
    let mut parts = Parts::new(tabular.extensions.iter().map(|(_, list)| texts_of(list)).collect());
    // Leaves in the order of their codes give billable codes in order, because no leaf is the beginning of another.
    for &(leaf, id) in by_code {
        let node = &tabular.nodes[id.idx()];
        if !node.is_leaf() {
            continue;
        }
        let Some(list) = lists[id.idx()].filter(|_| leaf.len() < Code::MAX_LEN) else {
            let description = node.description.clone();
            billable.push(Billable { code: leaf, description, node: Some(id), seventh: None });
            continue;
        };
        let (_, extensions) = &tabular.extensions[list as usize];
        let mut completed = complete(leaf, extensions, &limits);
        parts.add(&node.description, list, |place| {
            let Some((Some(code), Extension { character, text, .. })) = completed.next() else { return };
            let description = descriptions.slice(place).unwrap_or_else(|| Parts::joined(&node.description, text));
            let seventh = Some(Seventh { character: *character, text: text.clone() });
            billable.push(Billable { code, description, node: Some(id), seventh });
        });
    }
    descriptions.compose_from(parts);
    // A list of seventh characters need not be in order.
    if !billable.is_sorted_by_key(|billable| billable.code) {
        billable.sort_by_key(|billable| billable.code);
    }
    billable
}

/// The list of seventh characters that holds at each entry, by its place: its own, else that of the entry above.
fn lists_in_force(tabular: &Tabular) -> Vec<Option<u32>> {
    let mut own = tabular.extensions.iter().zip(0..).peekable();
    let mut lists: Vec<Option<u32>> = Vec::with_capacity(tabular.nodes.len());
    for (node, idx) in tabular.nodes.iter().zip(0..) {
        let own = own.next_if(|((holder, _), _)| *holder == NodeId(idx)).map(|(_, list)| list);
        lists.push(own.or_else(|| node.parent.and_then(|above| lists[above.idx()])));
    }
    lists
}
