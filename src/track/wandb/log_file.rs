//! The container of a `.wandb` file: records cut into chunks with checksums, in blocks of 32 KiB.
//!
//! The layout is LevelDB's log with a header of its own and unmasked CRC-32 (IEEE). A block starts every 32 KiB of the
//! file; the file's header lies in the first. What was written is in the file when a call returns, so that a killed
//! process loses at most the record that it was writing, and a reader stops in front of a torn one.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

const HEADER: [u8; 7] = [0x3a, 0x57, 0x26, 0x42, 0xe1, 0xbe, 0x00];
const BLOCK_BYTES: usize = 32 << 10;
const CHUNK_HEADER_BYTES: usize = 7;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// A `.wandb` file that is being written.
#[derive(Debug)]
pub(super) struct LogWriter {
    file: File,
    /// Position in the current block.
    at: usize,
}

impl LogWriter {
    /// Makes a new file with its header.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut file = File::create_new(path)?;
        file.write_all(&HEADER)?;
        Ok(Self { file, at: HEADER.len() })
    }

    /// Appends one record.
    pub(super) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(record.len() + 2 * CHUNK_HEADER_BYTES);
        let mut at = self.at;
        let mut rest = record;
        let mut is_first = true;
        loop {
            if BLOCK_BYTES - at < CHUNK_HEADER_BYTES {
                bytes.resize(bytes.len() + BLOCK_BYTES - at, 0);
                at = 0;
            }
            let len = rest.len().min(BLOCK_BYTES - at - CHUNK_HEADER_BYTES);
            let (data, after) = rest.split_at(len);
            let kind = match (is_first, after.is_empty()) {
                (true, true) => FULL,
                (true, false) => FIRST,
                (false, false) => MIDDLE,
                (false, true) => LAST,
            };
            bytes.extend(checksum(kind, data).to_le_bytes());
            // A chunk is shorter than a block, so its length fits.
            bytes.extend((len as u16).to_le_bytes());
            bytes.push(kind);
            bytes.extend(data);
            at = (at + CHUNK_HEADER_BYTES + len) % BLOCK_BYTES;
            (rest, is_first) = (after, false);
            if rest.is_empty() {
                break;
            }
        }
        self.file.write_all(&bytes)?;
        self.at = at;
        Ok(())
    }

    /// Brings the file to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn checksum(kind: u8, data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(data);
    hasher.finalize()
}

/// The records of a file's bytes, up to the first that is torn or damaged.
pub(super) fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut record: Option<Vec<u8>> = None;
    let mut at = HEADER.len();
    if !bytes.starts_with(&HEADER) {
        return found;
    }
    loop {
        let left = BLOCK_BYTES - at % BLOCK_BYTES;
        if left < CHUNK_HEADER_BYTES {
            at += left;
        }
        let Some((head, after)) = bytes.get(at..).and_then(|rest| rest.split_at_checked(CHUNK_HEADER_BYTES)) else {
            return found;
        };
        let stored = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let (len, kind) = (usize::from(u16::from_le_bytes([head[4], head[5]])), head[6]);
        let Some(data) = after.get(..len).filter(|data| checksum(kind, data) == stored) else { return found };
        at += CHUNK_HEADER_BYTES + len;
        match (kind, record.take()) {
            (FULL, None) => found.push(data.to_vec()),
            (FIRST, None) => record = Some(data.to_vec()),
            (MIDDLE, Some(start)) => record = Some([&start, data].concat()),
            (LAST, Some(start)) => found.push([&start, data].concat()),
            _ => return found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(records: &[Vec<u8>]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.wandb");
        let mut log = LogWriter::create(&path).unwrap();
        records.iter().for_each(|record| log.append(record).unwrap());
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let bytes = written(&[b"abc".to_vec()]);
        let crc = crc32fast::hash(b"\x01abc").to_le_bytes();
        let expected = [&HEADER[..], &crc, &[3, 0, 1], b"abc"].concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn records_of_any_length_come_back_whatever_the_place_in_a_block() {
        for first in (BLOCK_BYTES - 40)..(BLOCK_BYTES + 3) {
            let sent = [vec![1; first], vec![2; 5], Vec::new(), vec![3; 2 * BLOCK_BYTES + 11], vec![4; 1]];
            let bytes = written(&sent);
            assert_eq!(records(&bytes), sent, "first record of {first} bytes");
            // Each block starts with a chunk.
            for block in bytes.chunks(BLOCK_BYTES).skip(1) {
                assert!((FULL..=LAST).contains(&block[6]), "first record of {first} bytes");
            }
        }
    }

    #[test]
    fn a_torn_or_damaged_record_ends_the_reading() {
        let sent = [vec![1; 100], vec![2; 40_000], vec![3; 100]];
        let bytes = written(&sent);
        assert_eq!(records(&bytes[..bytes.len() - 1]), sent[..2]);
        assert_eq!(records(&bytes[..35_000]), sent[..1]);
        let mut damaged = bytes.clone();
        damaged[200] ^= 1;
        assert_eq!(records(&damaged), sent[..1]);
        assert_eq!(records(b"something else"), Vec::<Vec<u8>>::new());
    }
}
