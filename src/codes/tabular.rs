//! The tabular list as it is published: chapters, sections and the tree of categories and codes with their notes.
//!
//! In: the text of the official XML. Out: [`Tabular`], in the order of the document. Left out: the introduction, the
//! sentence that introduces a list of seventh characters, and the table of visual impairment under H54.

use std::ops::Deref;
use std::path::Path;

use roxmltree::{Document, Node as Element};

use super::seventh::Extension;
use super::{Code, Error, Text};

/// A node's place in the tabular list, counted in the order of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) u32);

impl NodeId {
    pub(super) fn idx(self) -> usize {
        self.0 as usize
    }
}

/// The notes of a chapter, a section or a node, as printed. They hold for everything below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Examples of what belongs here.
    pub includes: Vec<Text>,
    /// What is never coded together with this.
    pub excludes1: Vec<Text>,
    /// What is not part of this, but may be coded with it.
    pub excludes2: Vec<Text>,
    /// What has to be coded before this.
    pub code_first: Vec<Text>,
    /// What has to be coded after this, where known.
    pub use_additional: Vec<Text>,
    /// What may have to be coded with this, in either order.
    pub code_also: Vec<Text>,
    /// Anything else.
    pub remarks: Vec<Text>,
}

/// The kinds of note, in the order of the fields of [`Notes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoteKind {
    Includes,
    Excludes1,
    Excludes2,
    CodeFirst,
    UseAdditional,
    CodeAlso,
    Remarks,
}

/// One of the 22 chapters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chapter {
    /// 1 to 22.
    pub number: u8,
    /// The title without its range of codes.
    pub title: String,
    /// The first category.
    pub first: Code,
    /// The last category.
    pub last: Code,
    /// Notes on the whole chapter.
    pub notes: Notes,
}

/// A range of categories with a title, as "Intestinal infectious diseases" for A00-A09. Sections can hold others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The title without its range of codes.
    pub title: String,
    /// The first category.
    pub first: Code,
    /// The last category.
    pub last: Code,
    /// Notes on the whole section.
    pub notes: Notes,
}

/// A named code of the tabular list: a header with codes below it, or a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The code.
    pub code: Code,
    /// The title.
    pub description: Text,
    /// The node above; a category has none.
    pub parent: Option<NodeId>,
    /// 0 for a category, one more for each level below.
    pub depth: u8,
    /// Conditions that the code covers.
    pub inclusion_terms: Vec<Text>,
    /// Whether the code has the placeholder `X` in its middle.
    pub has_placeholder: bool,
    /// Boxed because few nodes have any; read through [`Node::deref`].
    pub(super) notes: Option<Box<Notes>>,
    /// How many nodes come after this one and lie below it.
    pub(super) n_below: u32,
}

/// A node's notes read as its own fields: `node.excludes1`.
impl Deref for Node {
    type Target = Notes;

    fn deref(&self) -> &Notes {
        static NONE: Notes = Notes {
            includes: Vec::new(),
            excludes1: Vec::new(),
            excludes2: Vec::new(),
            code_first: Vec::new(),
            use_additional: Vec::new(),
            code_also: Vec::new(),
            remarks: Vec::new(),
        };
        self.notes.as_deref().unwrap_or(&NONE)
    }
}

/// A whole tabular list.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Tabular {
    /// The fiscal year, "2026".
    pub version: String,
    pub chapters: Vec<Chapter>,
    pub sections: Vec<Section>,
    pub nodes: Vec<Node>,
    /// The lists of seventh characters, by the node that carries them, in the order of the document.
    pub extensions: Vec<(NodeId, Vec<Extension>)>,
}

impl NoteKind {
    fn of_element(name: &str) -> Option<Self> {
        Some(match name {
            "includes" => Self::Includes,
            "excludes1" => Self::Excludes1,
            "excludes2" => Self::Excludes2,
            "codeFirst" => Self::CodeFirst,
            "useAdditionalCode" => Self::UseAdditional,
            "codeAlso" => Self::CodeAlso,
            "notes" => Self::Remarks,
            _ => return None,
        })
    }
}

impl Notes {
    pub(super) fn of(&self, kind: NoteKind) -> &[Text] {
        match kind {
            NoteKind::Includes => &self.includes,
            NoteKind::Excludes1 => &self.excludes1,
            NoteKind::Excludes2 => &self.excludes2,
            NoteKind::CodeFirst => &self.code_first,
            NoteKind::UseAdditional => &self.use_additional,
            NoteKind::CodeAlso => &self.code_also,
            NoteKind::Remarks => &self.remarks,
        }
    }

    pub(super) fn of_mut(&mut self, kind: NoteKind) -> &mut Vec<Text> {
        match kind {
            NoteKind::Includes => &mut self.includes,
            NoteKind::Excludes1 => &mut self.excludes1,
            NoteKind::Excludes2 => &mut self.excludes2,
            NoteKind::CodeFirst => &mut self.code_first,
            NoteKind::UseAdditional => &mut self.use_additional,
            NoteKind::CodeAlso => &mut self.code_also,
            NoteKind::Remarks => &mut self.remarks,
        }
    }
}

impl Node {
    pub(super) fn new(code: Code, description: Text) -> Self {
        Self {
            code,
            description,
            parent: None,
            depth: 0,
            inclusion_terms: Vec::new(),
            has_placeholder: false,
            notes: None,
            n_below: 0,
        }
    }

    /// Whether no other entry lies below: the code, or what a seventh character makes of it, is billable.
    pub fn is_leaf(&self) -> bool {
        self.n_below == 0
    }
}

impl Tabular {
    /// Reads the official XML; `path` is named in errors.
    ///
    /// # Errors
    /// [`Error::Torn`] when the XML is not well-formed, [`Error::Foreign`] when it is something else than a tabular
    /// list, [`Error::BadEntry`] when an entry lacks its name or is out of place.
    pub(super) fn parse(xml: &str, path: &Path) -> Result<Self, Error> {
        let document = Document::parse(xml).map_err(|error| {
            Error::torn(path, format!("line {} column {}: {error}", error.pos().row, error.pos().col))
        })?;
        let root = document.root_element();
        let foreign =
            |message| Error::Foreign { path: path.to_owned(), expected: "an ICD-10-CM tabular list", message };
        if root.tag_name().name() != "ICD10CM.tabular" {
            return Err(foreign(format!("its root is `<{}>`, not `<ICD10CM.tabular>`", root.tag_name().name())));
        }
        let mut tabular = Self { version: text_of_child(root, "version").unwrap_or_default(), ..Self::default() };
        let reader = Reader { document: &document, path };
        for chapter in children(root, "chapter") {
            reader.read_chapter(chapter, &mut tabular)?;
        }
        if tabular.nodes.is_empty() { Err(foreign("it has no codes".into())) } else { Ok(tabular) }
    }

    /// Adds a node at the end, below `parent`, and returns its place.
    ///
    /// # Errors
    /// What is wrong with the place: a code below another starts with it and is one character longer, a category
    /// has three characters and every code comes once.
    pub(super) fn push(&mut self, mut node: Node, parent: Option<NodeId>) -> Result<NodeId, String> {
        let id = NodeId(u32::try_from(self.nodes.len()).map_err(|_| "too many codes")?);
        match parent {
            Some(above) => {
                let above = &self.nodes[above.idx()];
                if !node.code.is_under(above.code) || node.code.len() != above.code.len() + 1 {
                    return Err(format!("`{}` cannot stand right below `{}`", node.code, above.code));
                }
                node.depth = above.depth + 1;
            }
            None if node.code.len() != 3 => return Err(format!("`{}` stands outside any category", node.code)),
            None => {}
        }
        node.parent = parent;
        self.nodes.push(node);
        Ok(id)
    }

    /// Marks the nodes added since `id` as lying below it.
    pub(super) fn close(&mut self, id: NodeId) {
        self.nodes[id.idx()].n_below = self.nodes.len() as u32 - id.0 - 1;
    }

    /// Adds the entries of a list that goes on where this one ends.
    pub(super) fn append(&mut self, next: Self) -> Result<(), String> {
        let offset = u32::try_from(self.nodes.len()).map_err(|_| "too many codes")?;
        u32::try_from(self.nodes.len() + next.nodes.len()).map_err(|_| "too many codes")?;
        let moved = |NodeId(place)| NodeId(place + offset);
        let nodes = next.nodes.into_iter();
        self.nodes.extend(nodes.map(|node| Node { parent: node.parent.map(moved), ..node }));
        self.extensions.extend(next.extensions.into_iter().map(|(holder, list)| (moved(holder), list)));
        self.chapters.extend(next.chapters);
        self.sections.extend(next.sections);
        Ok(())
    }

    /// One past the last node below this one.
    pub(super) fn end_of(&self, id: NodeId) -> u32 {
        id.0 + 1 + self.nodes[id.idx()].n_below
    }
}

struct Reader<'a, 'input> {
    document: &'a Document<'input>,
    path: &'a Path,
}

impl Reader<'_, '_> {
    fn bad_entry(&self, at: Element, message: impl Into<String>) -> Error {
        let line = self.document.text_pos_at(at.range().start).row;
        Error::bad_entry(self.path, line as usize, message)
    }

    fn required(&self, parent: Element, name: &str) -> Result<String, Error> {
        let text = text_of_child(parent, name).filter(|text| !text.is_empty());
        text.ok_or_else(|| self.bad_entry(parent, format!("`<{}>` has no `<{name}>`", parent.tag_name().name())))
    }

    fn read_chapter(&self, chapter: Element, tabular: &mut Tabular) -> Result<(), Error> {
        let name = self.required(chapter, "name")?;
        let number =
            name.parse().map_err(|_| self.bad_entry(chapter, format!("chapter `{name}` is not a small number")))?;
        let (title, first, last) = self.read_title(chapter)?;
        tabular.chapters.push(Chapter { number, title, first, last, notes: read_notes(chapter) });
        for section in children(chapter, "section") {
            let (title, first, last) = self.read_title(section)?;
            tabular.sections.push(Section { title, first, last, notes: read_notes(section) });
            for diag in children(section, "diag") {
                self.read_diag(diag, None, tabular)?;
            }
        }
        Ok(())
    }

    /// Splits "Intestinal infectious diseases (A00-A09)"; a section of one category has only "(B20)".
    fn read_title(&self, element: Element) -> Result<(String, Code, Code), Error> {
        let text = self.required(element, "desc")?;
        let parts = text.strip_suffix(')').and_then(|text| text.rsplit_once('(')).and_then(|(title, range)| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((title.trim_end().to_owned(), Code::parse(first).ok()?, Code::parse(last).ok()?))
        });
        parts.ok_or_else(|| self.bad_entry(element, format!("title `{text}` does not end with its range of codes")))
    }

    fn read_diag(&self, diag: Element, parent: Option<NodeId>, tabular: &mut Tabular) -> Result<(), Error> {
        let name = self.required(diag, "name")?;
        let code = Code::parse(&name).map_err(|error| self.bad_entry(diag, error.to_string()))?;
        let mut node = Node::new(code, self.required(diag, "desc")?.into());
        node.has_placeholder = diag.attribute("placeholder") == Some("true");
        node.inclusion_terms = children(diag, "inclusionTerm").flat_map(note_texts).collect();
        node.notes = Some(read_notes(diag)).filter(|notes| *notes != Notes::default()).map(Box::new);
        let id = tabular.push(node, parent).map_err(|message| self.bad_entry(diag, message))?;
        if let Some(list) = children(diag, "sevenChrDef").next() {
            tabular.extensions.push((id, self.read_extensions(list)?));
        }
        for child in children(diag, "diag") {
            self.read_diag(child, Some(id), tabular)?;
        }
        tabular.close(id);
        Ok(())
    }

    /// A note between two extensions gives other words for the one before it.
    fn read_extensions(&self, list: Element) -> Result<Vec<Extension>, Error> {
        let mut extensions: Vec<Extension> = Vec::new();
        for element in list.children().filter(Element::is_element) {
            let text = text_of(element);
            match (element.tag_name().name(), element.attribute("char").map(str::as_bytes)) {
                ("extension", Some(&[character])) => extensions.push(Extension {
                    character: char::from(character),
                    text: text.into(),
                    terms: Vec::new(),
                }),
                ("note", _) => extensions.last_mut().into_iter().for_each(|last| last.terms.push(text.clone())),
                (name, _) => {
                    return Err(self.bad_entry(element, format!("`<{name}>` is not an extension of one character")));
                }
            }
        }
        Ok(extensions)
    }
}

fn children<'a, 'input>(parent: Element<'a, 'input>, name: &'a str) -> impl Iterator<Item = Element<'a, 'input>> {
    parent.children().filter(move |child| child.has_tag_name(name))
}

fn note_texts<'a>(list: Element<'a, '_>) -> impl Iterator<Item = Text> + use<'a> {
    let notes = list.children().filter(|child| child.has_tag_name("note")).map(text_of);
    notes.filter(|text| !text.is_empty()).map(Text::from)
}

/// The notes of a chapter, section or code. The few inclusion terms of sections count as "includes".
fn read_notes(element: Element) -> Notes {
    let mut notes = Notes::default();
    for child in element.children().filter(Element::is_element) {
        let name = child.tag_name().name();
        let is_section_term = name == "inclusionTerm" && element.has_tag_name("section");
        let kind = if is_section_term { Some(NoteKind::Includes) } else { NoteKind::of_element(name) };
        if let Some(kind) = kind {
            notes.of_mut(kind).extend(note_texts(child));
        }
    }
    notes
}

fn text_of_child(parent: Element, name: &str) -> Option<String> {
    parent.children().find(|child| child.has_tag_name(name)).map(text_of)
}

/// The text of an element, runs of white space made one space.
fn text_of(element: Element) -> String {
    let text = element.text().unwrap_or_default();
    if is_one_line(text) { text.to_owned() } else { text.split_whitespace().collect::<Vec<_>>().join(" ") }
}

/// Whether a text is ASCII whose only white space is single spaces between words. Most are.
fn is_one_line(text: &str) -> bool {
    let mut is_after_space = true;
    for byte in text.bytes() {
        let is_space = byte == b' ';
        if (is_space && is_after_space) || !(b' '..0x7f).contains(&byte) {
            return false;
        }
        is_after_space = is_space;
    }
    !is_after_space || text.is_empty()
}
