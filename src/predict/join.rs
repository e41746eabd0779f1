//! A user's own columns by code: weights of diagnosis groups, prices, whatever a table has.

use std::collections::HashMap;
use std::path::Path;

use crate::codes::Code;
use crate::fsio;

/// A table whose rows are found by code.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The names of the columns beside the code, in the order of the file.
    pub columns: Vec<String>,
    rows: HashMap<Code, Vec<String>>,
}

impl Table {
    /// Reads a CSV file with a header. The codes are in the column named `code` (in any case), else in the first; they
    /// may be written without the dot and in lower case.
    ///
    /// # Errors
    /// When the file cannot be read, a line has more or fewer fields than the header or no code, or a code comes twice.
    pub fn read(path: &Path) -> Result<Self, fsio::Error> {
        let bad_line = |line: u64, message: String| fsio::Error::BadLine {
            path: path.to_owned(),
            line: line as usize,
            message,
            others: 0,
        };
        let bad = |error: csv::Error| bad_line(error.position().map_or(1, |at| at.line()), error.to_string());
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(fsio::open(path)?);
        let header: Vec<String> = reader.headers().map_err(bad)?.iter().map(str::to_owned).collect();
        // A file may open with a byte order mark.
        let name = |name: &String| name.trim_start_matches('\u{feff}').to_ascii_lowercase();
        let at = header.iter().position(|column| name(column) == "code").unwrap_or(0);
        let without_code = |fields: Vec<String>| -> Vec<String> {
            fields.into_iter().enumerate().filter(|(idx, _)| *idx != at).map(|(_, field)| field).collect()
        };
        let mut rows = HashMap::new();
        for record in reader.records() {
            let record = record.map_err(bad)?;
            let line = record.position().map_or(1, csv::Position::line);
            let text = record.get(at).unwrap_or_default();
            let code = Code::parse_lenient(text).map_err(|error| bad_line(line, error.to_string()))?;
            let fields = without_code(record.iter().map(str::to_owned).collect());
            if rows.insert(code, fields).is_some() {
                return Err(bad_line(line, format!("{code} is in the table twice")));
            }
        }
        if rows.is_empty() {
            return Err(fsio::Error::Empty { path: path.to_owned() });
        }
        Ok(Self { columns: without_code(header), rows })
    }

    /// The fields for a code, in the order of the columns; none when the table does not have it.
    pub fn get(&self, code: Code) -> Option<&[String]> {
        self.rows.get(&code).map(Vec::as_slice)
    }

    /// The number of codes in the table.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Table, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Table::read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn columns_are_found_by_code_however_it_is_written() {
        let table = read("drg,CODE,weight\n\"562, with MCC\",s82201a,1.4\n305,I10 ,0.7\n").unwrap();
        assert_eq!(table.columns, ["drg", "weight"]);
        assert_eq!(table.get(Code::parse("S82.201A").unwrap()).unwrap(), ["562, with MCC", "1.4"]);
        assert_eq!(table.get(Code::parse("I10").unwrap()).unwrap(), ["305", "0.7"]);
        assert_eq!(table.get(Code::parse("R54").unwrap()), None);
        assert_eq!(read("\u{feff}icd,price\nI10,3\n").unwrap().columns, ["price"]);
    }

    #[test]
    fn a_bad_row_is_named() {
        let fault = |text: &str| read(text).unwrap_err();
        assert!(fault("code,x\nI10,1\nwhat,2\n").contains("line 3"), "{}", fault("code,x\nI10,1\nwhat,2\n"));
        assert!(fault("code,x\nI10,1\nI10,2\n").contains("line 3: I10 is in the table twice"));
        assert!(fault("code,x\nI10\n").contains("line 2"));
        assert!(fault("code,x\n").contains("no records"));
    }
}
