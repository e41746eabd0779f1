//! The index itself: one document for each leaf of the list, in memory, kept in a file between runs.
//!
//! In: a release. Out: an [`Engine`] that scores documents by BM25. What the words of a question may mean, and how
//! what is found is ranked, is decided elsewhere.

use std::io::Write;
use std::path::Path;

use tantivy::collector::TopDocs;
use tantivy::directory::{Directory, RamDirectory};
use tantivy::query::Query;
use tantivy::schema::{Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::{DocAddress, Index, IndexWriter, ReloadPolicy, Searcher, TantivyDocument, TantivyError};

use super::words::words_of;
use crate::codes::excludes::Holder;
use crate::codes::reference::references_of;
use crate::codes::release::Release;
use crate::codes::tabular::{NodeId, Notes};
use crate::codes::{Code, Error};
use crate::fsio;

/// What a document says in each of its fields, and how much a word counts there.
pub(super) const FIELDS: [(&str, f32); N_FIELDS] = [
    // Its own description.
    ("title", 1.0),
    // Its own inclusion terms and what it "includes".
    ("terms", 0.8),
    // Descriptions and terms of the entries above it.
    ("above", 0.45),
    // What notes elsewhere call it, as "essential hypertension (I10)".
    ("names", 0.4),
];
pub(super) const N_FIELDS: usize = 4;

/// How a kept index begins; changes with whatever goes into the index.
const MAGIC: &[u8] = b"axismapper-search 1\n";
/// Bytes the index writer may take; more than any release needs, so that one segment holds all.
const WRITER_BYTES: usize = 200_000_000;

/// The index of one release.
pub(super) struct Engine {
    searcher: Searcher,
    fields: [Field; N_FIELDS],
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("n_documents", &self.n_documents()).finish_non_exhaustive()
    }
}

/// The leaves of a release, each a range of its billable codes: those that differ in the seventh character only.
pub(super) fn documents_of(release: &Release) -> Vec<std::ops::Range<usize>> {
    let mut documents: Vec<std::ops::Range<usize>> = Vec::new();
    for group in release.billable().chunk_by(|a, b| a.node.is_some() && a.node == b.node) {
        let start = documents.last().map_or(0, |last| last.end);
        documents.push(start..start + group.len());
    }
    documents
}

impl Engine {
    /// Indexes the documents of a release; the files of the index are left in the directory.
    pub(super) fn build(release: &Release) -> Result<(Self, RamDirectory), Error> {
        let directory = RamDirectory::create();
        let (schema, fields) = schema();
        let index = Index::create(directory.clone(), schema, tantivy::IndexSettings::default())?;
        let mut writer: IndexWriter = index.writer_with_num_threads(1, WRITER_BYTES)?;
        let texts = Texts::of(release);
        for document in documents_of(release) {
            let Some(first) = release.billable().get(document.start) else { continue };
            let mut entry = TantivyDocument::new();
            for (field, text) in fields.into_iter().zip(texts.of_document(release, first)) {
                entry.add_text(field, text);
            }
            writer.add_document(entry)?;
        }
        writer.commit()?;
        writer.wait_merging_threads()?;
        Ok((Self::open(&index)?, directory))
    }

    /// Reads the index that [`Engine::keep`] wrote; none when the file holds something else.
    pub(super) fn load(bytes: &[u8]) -> Option<Self> {
        let directory = RamDirectory::create();
        let mut rest = bytes.strip_prefix(MAGIC)?;
        while !rest.is_empty() {
            let (name, after) = split_block(rest)?;
            let (content, after) = split_block(after)?;
            let mut file = directory.open_write(Path::new(std::str::from_utf8(name).ok()?)).ok()?;
            file.write_all(content).ok()?;
            tantivy::directory::TerminatingWrite::terminate(file).ok()?;
            rest = after;
        }
        Self::open(&Index::open(directory).ok()?).ok()
    }

    /// Writes the index to one file, which appears whole or not at all.
    pub(super) fn keep(&self, directory: &RamDirectory, path: &Path) -> Result<(), Error> {
        let mut bytes = MAGIC.to_vec();
        let mut names: Vec<_> = self.searcher.index().directory().list_managed_files().into_iter().collect();
        names.extend([".managed.json".into(), "meta.json".into()]);
        names.sort();
        names.dedup();
        for name in names {
            if !directory.exists(&name).map_err(TantivyError::from)? {
                continue;
            }
            let content = directory.open_read(&name).map_err(TantivyError::from)?;
            let content = content.read_bytes().map_err(fsio::Error::io("read the index for", path))?;
            for block in [name.to_string_lossy().as_bytes(), content.as_slice()] {
                bytes.extend((block.len() as u64).to_le_bytes());
                bytes.extend(block);
            }
        }
        Ok(fsio::write_atomic(path, |file| file.write_all(&bytes))?)
    }

    pub(super) fn n_documents(&self) -> usize {
        self.searcher.num_docs() as usize
    }

    pub(super) fn fields(&self) -> [Field; N_FIELDS] {
        self.fields
    }

    /// Calls `each` with every word of every field and the number of documents that have it there.
    pub(super) fn each_word(&self, mut each: impl FnMut(&str, usize, u32)) -> Result<(), Error> {
        for reader in self.searcher.segment_readers() {
            for (field_idx, field) in self.fields.into_iter().enumerate() {
                let inverted = reader.inverted_index(field)?;
                let mut words = inverted.terms().stream().map_err(TantivyError::from)?;
                while let Some((word, info)) = words.next() {
                    each(&String::from_utf8_lossy(word), field_idx, info.doc_freq);
                }
            }
        }
        Ok(())
    }

    /// The best documents, with their scores.
    pub(super) fn search(&self, query: &dyn Query, limit: usize) -> Result<Vec<(usize, f32)>, Error> {
        let found = self.searcher.search(query, &TopDocs::with_limit(limit.max(1)).order_by_score())?;
        Ok(found.into_iter().map(|(score, DocAddress { doc_id, .. })| (doc_id as usize, score)).collect())
    }

    fn open(index: &Index) -> Result<Self, Error> {
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let searcher: Searcher = reader.searcher();
        let schema = index.schema();
        let mut fields = [Field::from_field_id(0); N_FIELDS];
        for (field, (name, _)) in fields.iter_mut().zip(FIELDS) {
            *field = schema.get_field(name)?;
        }
        // A document is known by its place, which holds within one segment only.
        match searcher.segment_readers() {
            [_] => Ok(Self { searcher, fields }),
            segments => Err(TantivyError::InternalError(format!("{} segments, expected 1", segments.len())).into()),
        }
    }
}

/// The first block of a kept index and what follows it: a length in eight bytes, then the block.
fn split_block(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

fn schema() -> (Schema, [Field; N_FIELDS]) {
    let indexing =
        TextFieldIndexing::default().set_tokenizer("whitespace").set_index_option(IndexRecordOption::WithFreqs);
    let options = TextOptions::default().set_indexing_options(indexing);
    let mut builder = Schema::builder();
    let fields = FIELDS.map(|(name, _)| builder.add_text_field(name, options.clone()));
    (builder.build(), fields)
}

/// The words of every entry of the list, joined by spaces.
struct Texts {
    titles: Vec<String>,
    terms: Vec<String>,
    names: Vec<String>,
}

impl Texts {
    fn of(release: &Release) -> Self {
        let joined = |text: &str| words_of(text).collect::<Vec<_>>().join(" ");
        let nodes = release.nodes();
        let titles = nodes.iter().map(|node| joined(&node.description)).collect();
        let terms = nodes
            .iter()
            .map(|node| {
                let terms = node.inclusion_terms.iter().chain(&node.includes).map(|term| joined(term));
                terms.collect::<Vec<_>>().join(" ")
            })
            .collect();
        let mut texts = Self { titles, terms, names: vec![String::new(); nodes.len()] };
        for chapter in release.chapters() {
            texts.read_names(release, Holder::Chapter(chapter.number), &chapter.notes);
        }
        for section in release.sections() {
            texts.read_names(release, Holder::Section(section.first, section.last), &section.notes);
        }
        for node in nodes {
            texts.read_names(release, Holder::Node(node.code), node);
        }
        texts
    }

    /// A note that names one code calls it by other words: "essential hypertension (I10)".
    fn read_names(&mut self, release: &Release, holder: Holder, notes: &Notes) {
        let lists = [&notes.excludes1, &notes.excludes2, &notes.code_first, &notes.use_additional, &notes.code_also];
        for note in lists.into_iter().flatten() {
            let Some((name, _)) = note.split_once('(') else { continue };
            let references = references_of(note).unwrap_or_default();
            let [reference] = references.as_slice() else { continue };
            if reference.first != reference.last || reference.condition.is_some() {
                continue;
            }
            let place = place_of(release, reference.first).filter(|_| holder != Holder::Node(reference.first));
            let Some(names) = place.and_then(|id| self.names.get_mut(id.idx())) else { continue };
            for word in words_of(name) {
                if !names.split(' ').any(|known| known == word) {
                    names.push_str(&word);
                    names.push(' ');
                }
            }
        }
    }

    /// The text of each field.
    fn of_document(&self, release: &Release, first: &crate::codes::Billable) -> [String; N_FIELDS] {
        let Some(leaf) = first.node else {
            let title = words_of(&first.description).collect::<Vec<_>>().join(" ");
            return [title, String::new(), String::new(), String::new()];
        };
        let (mut above, mut names) = (String::new(), self.names[leaf.idx()].clone());
        let mut next = release.node_at(leaf).parent;
        while let Some(id) = next {
            for text in [&self.titles[id.idx()], &self.terms[id.idx()]] {
                above.push_str(text);
                above.push(' ');
            }
            names.push_str(&self.names[id.idx()]);
            next = release.node_at(id).parent;
        }
        [self.titles[leaf.idx()].clone(), self.terms[leaf.idx()].clone(), above, names]
    }
}

fn place_of(release: &Release, code: Code) -> Option<NodeId> {
    release.node_id(code).or_else(|| release.get(code)?.node)
}
