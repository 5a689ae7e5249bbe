//! Reading a log.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::codec::Malformed;
use crate::header::{self, Changing, Fixed, HEAD_OFFSET, HEADER_BYTES, Header, Section, State};
use crate::ring::oldest;
use crate::source::Source;
use crate::tables::{self, EXTRA_BYTES, Extra, Tables, Tensor};
use crate::{Error, RECORD_BYTES, Record, Result, VERSION_MAJOR};

/// Records that are read at a time: 512 KiB of the file.
const CHUNK_RECORDS: u64 = 16_384;

/// A log, finished or not. It sees the records that were there when it was opened.
///
/// No input makes it panic or allocate more than the size of the input calls for.
#[derive(Debug)]
pub struct LogReader<S = File> {
    path: PathBuf,
    source: S,
    fixed: Fixed,
    header: Header,
    tables: Tables,
    extras: Vec<Extra>,
    addresses: Vec<u64>,
    /// Slots that lie in the file as a whole.
    n_slots_present: u64,
    damage: Option<Error>,
}

impl LogReader {
    /// Opens a log.
    ///
    /// # Errors
    ///
    /// Every variant of [`Error`] that says what can be wrong with a log; [`Error::Truncated`] if
    /// records are missing at the end of the file.
    pub fn open(path: impl AsRef<Path>) -> Result<LogReader> {
        let mut reader = LogReader::open_damaged(path)?;
        reader.damage.take().map_or(Ok(reader), Err)
    }

    /// As [`LogReader::open`], but leaves out records that lie past the end of the file;
    /// [`LogReader::damage`] tells whether there are any.
    ///
    /// # Errors
    ///
    /// As [`LogReader::open`], and [`Error::Truncated`] only if even the tables are cut.
    pub fn open_damaged(path: impl AsRef<Path>) -> Result<LogReader> {
        let path = path.as_ref();
        // Asked first: opening a pipe would wait for somebody to write into it.
        let kind = path
            .metadata()
            .map_err(|source| Error::io(path, "open", source))?;
        if !kind.is_file() {
            return Err(Error::NotAFile {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(|source| Error::io(path, "open", source))?;
        LogReader::from_source(file, path)
    }
}

impl<S: Source> LogReader<S> {
    /// Reads a log from elsewhere; `name` stands for it in errors. A log that is cut short is
    /// accepted as in [`LogReader::open_damaged`].
    ///
    /// # Errors
    ///
    /// As [`LogReader::open_damaged`].
    pub fn from_source(source: S, name: impl AsRef<Path>) -> Result<LogReader<S>> {
        let path = name.as_ref();
        let size_bytes = source
            .size_bytes()
            .map_err(|error| Error::io(path, "ask for its size", error))?;
        let mut page = vec![0; size_bytes.min(HEADER_BYTES as u64) as usize];
        read(&source, path, 0, &mut page)?;
        let fixed = Fixed::decode(path, &page)?;
        let changing = Changing::decode(path, &page, &fixed)?;
        if size_bytes > fixed.file_bytes() {
            return Err(Error::Malformed {
                path: path.to_owned(),
                section: "file",
                problem: format!(
                    "{size_bytes} bytes, where the header allows {}",
                    fixed.file_bytes()
                ),
            });
        }

        let n_slots = fixed.n_slots();
        let ring_bytes = size_bytes.saturating_sub(fixed.ring_offset_bytes);
        let n_slots_present = (ring_bytes / RECORD_BYTES as u64).min(n_slots);
        let n_slots_needed = n_slots_needed(&fixed, changing.head);
        let truncated = || Error::Truncated {
            path: path.to_owned(),
            size_bytes,
            needed_bytes: fixed.ring_offset_bytes + n_slots_needed * RECORD_BYTES as u64,
            readable: n_readable(&fixed, changing.head, n_slots_present),
            expected: changing.head - oldest(changing.head, fixed.capacity),
        };
        if size_bytes < fixed.ring_offset_bytes {
            return Err(truncated());
        }
        let damage = (n_slots_present < n_slots_needed).then(truncated);

        let tables = read_tables(&source, path, &fixed)?;
        let extras = read_extras(&source, path, &fixed, changing.n_extras)?;
        let digest = tables.digest();
        if digest != fixed.digest {
            return Err(malformed(path, "table of tensors", "its digest differs"));
        }
        let header = Header {
            version: (VERSION_MAJOR, fixed.minor),
            capacity: fixed.capacity,
            n_written: changing.head,
            n_lost: oldest(changing.head, fixed.capacity).saturating_add(changing.refused),
            on_full: fixed.on_full,
            state: changing.state,
            closed_ns: changing.closed_ns,
            epoch_realtime_ns: fixed.epoch_realtime_ns,
            epoch_monotonic_ns: fixed.epoch_monotonic_ns,
            pid: fixed.pid,
            model_digest: digest,
        };
        Ok(LogReader {
            path: path.to_owned(),
            source,
            fixed,
            header,
            addresses: header::addresses(&page, tables.files.len()),
            tables,
            extras,
            n_slots_present,
            damage,
        })
    }

    /// What the log says about itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What the log says about the model.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Tensors that were met at run time and are not in the model's files.
    pub fn extras(&self) -> &[Extra] {
        &self.extras
    }

    /// The tensor of this number in the model's files.
    pub fn tensor(&self, id: u32) -> Option<&Tensor> {
        self.tables.tensors.get(id as usize)
    }

    /// The tensor of this number among those that are not in the files.
    pub fn extra(&self, id: u32) -> Option<&Extra> {
        let index = (id as usize).checked_sub(self.tables.tensors.len())?;
        self.extras.get(index)
    }

    /// Where the writer had byte 0 of a model file mapped, so that byte `n` of it was at this address plus `n`. `None` where
    /// the file was not mapped, and for all but the first 256 files.
    pub fn address(&self, file: u32) -> Option<u64> {
        let address = self.addresses.get(file as usize).copied();
        address.filter(|&address| address != 0)
    }

    /// What is missing, if the file was cut short: always [`Error::Truncated`].
    pub fn damage(&self) -> Option<&Error> {
        self.damage.as_ref()
    }

    /// How many records can be read.
    pub fn n_records(&self) -> u64 {
        n_readable(&self.fixed, self.header.n_written, self.n_slots_present)
    }

    /// The records in the order in which they were written, many at a time.
    pub fn chunks(&self) -> Chunks<'_, S> {
        let n_buffered = self.n_records().min(CHUNK_RECORDS) as usize;
        Chunks {
            reader: self,
            sequence: oldest(self.header.n_written, self.fixed.capacity),
            bytes: vec![0; n_buffered * RECORD_BYTES],
            records: Vec::with_capacity(n_buffered),
        }
    }

    /// The records in the order in which they were written.
    pub fn records(&self) -> Records<'_, S> {
        Records {
            chunks: self.chunks(),
            next: 0,
        }
    }
}

/// The records of a log, a slice at a time, from [`LogReader::chunks`].
#[derive(Debug)]
pub struct Chunks<'a, S = File> {
    reader: &'a LogReader<S>,
    /// Number of the next record.
    sequence: u64,
    bytes: Vec<u8>,
    records: Vec<Record>,
}

impl<S: Source> Chunks<'_, S> {
    /// The next records with the number of the first of them, or `None` after the last. Numbers
    /// count from the first record ever written. After an error there is nothing more.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] from the file, and [`Error::Overtaken`] if the log is still being written and
    /// has wrapped past this reader.
    pub fn next_chunk(&mut self) -> Result<Option<(u64, &[Record])>> {
        let end = self.reader.header.n_written;
        let Some((slot, count)) = self.seek() else {
            return Ok(None);
        };
        let first = self.sequence;
        self.sequence = end;
        let reader = self.reader;
        let bytes = &mut self.bytes[..count as usize * RECORD_BYTES];
        let offset_bytes = reader.fixed.ring_offset_bytes + slot * RECORD_BYTES as u64;
        read(&reader.source, &reader.path, offset_bytes, bytes)?;
        reader.check_not_overtaken(first)?;
        self.records.clear();
        self.records.extend(
            bytes
                .as_chunks::<RECORD_BYTES>()
                .0
                .iter()
                .map(Record::from_bytes),
        );
        self.sequence = first + count;
        Ok(Some((first, &self.records)))
    }

    /// Passes over slots that lie past the end of the file, and returns the slot of the next record
    /// and how many can be read from there in one piece.
    fn seek(&mut self) -> Option<(u64, u64)> {
        let end = self.reader.header.n_written;
        let n_slots = self.reader.fixed.n_slots();
        let present = self.reader.n_slots_present;
        while self.sequence < end {
            let slot = self.sequence % n_slots;
            let to_wrap = (n_slots - slot).min(end - self.sequence);
            if slot < present {
                return Some((slot, to_wrap.min(present - slot).min(CHUNK_RECORDS)));
            }
            self.sequence += to_wrap;
        }
        None
    }
}

impl<S: Source> LogReader<S> {
    /// Whether record `first`, which was just read, was still there: see `ring.rs`.
    fn check_not_overtaken(&self, first: u64) -> Result<()> {
        if self.header.state == State::Closed {
            return Ok(());
        }
        let mut head = [0; 8];
        read(&self.source, &self.path, HEAD_OFFSET as u64, &mut head)?;
        let oldest = oldest(u64::from_le_bytes(head), self.fixed.capacity);
        if first < oldest {
            return Err(Error::Overtaken {
                path: self.path.clone(),
                sequence: first,
                oldest,
            });
        }
        Ok(())
    }
}

/// The records of a log, one at a time, from [`LogReader::records`]. It ends after an error.
#[derive(Debug)]
pub struct Records<'a, S = File> {
    chunks: Chunks<'a, S>,
    next: usize,
}

impl<S: Source> Iterator for Records<'_, S> {
    type Item = Result<Record>;

    #[inline]
    fn next(&mut self) -> Option<Result<Record>> {
        if let Some(record) = self.chunks.records.get(self.next) {
            self.next += 1;
            return Some(Ok(*record));
        }
        self.next = 1;
        let first = match self.chunks.next_chunk() {
            Ok(chunk) => chunk.and_then(|(_, records)| records.first().copied()),
            Err(error) => {
                self.chunks.records.clear();
                return Some(Err(error));
            }
        };
        if first.is_none() {
            self.chunks.records.clear();
        }
        first.map(Ok)
    }
}

impl<S: Source> std::iter::FusedIterator for Records<'_, S> {}

/// How many records are in the log and in the file, when only the first slots are in the file.
fn n_readable(fixed: &Fixed, head: u64, n_slots_present: u64) -> u64 {
    let n_slots = fixed.n_slots();
    let begin = oldest(head, fixed.capacity);
    // Records before a number whose slots are present: whole rounds, and part of the last.
    let before = |sequence: u64| {
        let (rounds, slot) = (sequence / n_slots, sequence % n_slots);
        rounds * n_slots_present + slot.min(n_slots_present)
    };
    before(head) - before(begin)
}

/// How many slots, counted from the first, hold all the records of the log. In a log that has wrapped, one slot holds none: the
/// one that is written next. If that is the last slot, a file without it is whole.
fn n_slots_needed(fixed: &Fixed, head: u64) -> u64 {
    let n_slots = fixed.n_slots();
    match head % n_slots == n_slots - 1 {
        true => n_slots - 1,
        false => head.min(n_slots),
    }
}

fn read_tables(source: &impl Source, path: &Path, fixed: &Fixed) -> Result<Tables> {
    let bytes = |name, section| read_section(source, path, name, section);
    let (files, tensors, properties) = (fixed.files, fixed.tensors, fixed.properties);
    let explain =
        |section: &'static str| move |problem: Malformed| malformed(path, section, problem);
    Ok(Tables {
        files: tables::decode_files(&bytes("table of files", files)?, files.count)
            .map_err(explain("table of files"))?,
        tensors: tables::decode_tensors(&bytes("table of tensors", tensors)?, tensors.count)
            .map_err(explain("table of tensors"))?,
        properties: tables::decode_properties(
            &bytes("table of properties", properties)?,
            properties.count,
        )
        .map_err(explain("table of properties"))?,
        extra_capacity: fixed.extra_capacity,
    })
}

/// The bytes of a table. Their number is bounded: the header was checked, and the file reaches as
/// far as the ring.
fn read_section(
    source: &impl Source,
    path: &Path,
    name: &'static str,
    section: Section,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; section.size_bytes as usize];
    read(source, path, section.offset_bytes, &mut bytes)?;
    let found = crc32fast::hash(&bytes);
    if found != section.checksum {
        return Err(Error::Checksum {
            path: path.to_owned(),
            section: name,
            expected: section.checksum,
            found,
        });
    }
    Ok(bytes)
}

fn read_extras(
    source: &impl Source,
    path: &Path,
    fixed: &Fixed,
    n_extras: u64,
) -> Result<Vec<Extra>> {
    let mut entry = [0; EXTRA_BYTES];
    (0..n_extras)
        .map(|index| {
            let offset_bytes = fixed.extras_offset_bytes + index * EXTRA_BYTES as u64;
            read(source, path, offset_bytes, &mut entry)?;
            Extra::decode(&entry).map_err(|problem| {
                malformed(
                    path,
                    "table of extra tensors",
                    format!("entry {index}, {problem}"),
                )
            })
        })
        .collect()
}

fn malformed(path: &Path, section: &'static str, problem: impl ToString) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        section,
        problem: problem.to_string(),
    }
}

fn read(source: &impl Source, path: &Path, offset_bytes: u64, buffer: &mut [u8]) -> Result<()> {
    source.read_at(offset_bytes, buffer).map_err(|error| {
        let action = match error.kind() {
            io::ErrorKind::UnexpectedEof => "read as far as it reached before",
            _ => "read",
        };
        Error::io(path, action, error)
    })
}

/// On bytes in memory, so that Miri can run them; `tests/damage.rs` has what needs files.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::{OnFull, STATE_OFFSET, VERSION_MINOR};

    const RING: usize = 8192;

    fn record(sequence: u64) -> Record {
        Record {
            time_ns: sequence,
            step: sequence as u32,
            ..Record::default()
        }
    }

    /// A closed log with empty tables, as the writer would leave it.
    fn log(capacity: u64, n_written: u64) -> Vec<u8> {
        let empty = Section {
            offset_bytes: HEADER_BYTES as u64,
            ..Section::default()
        };
        let fixed = Fixed {
            minor: VERSION_MINOR,
            capacity,
            ring_offset_bytes: RING as u64,
            epoch_realtime_ns: 0,
            epoch_monotonic_ns: 0,
            on_full: OnFull::Wrap,
            pid: 1,
            digest: Tables::default().digest(),
            files: empty,
            tensors: empty,
            properties: empty,
            extras_offset_bytes: HEADER_BYTES as u64,
            extra_capacity: 0,
        };
        let mut bytes = fixed.encode().to_vec();
        bytes[HEAD_OFFSET..HEAD_OFFSET + 8].copy_from_slice(&n_written.to_le_bytes());
        bytes[STATE_OFFSET] = 1;
        let n_slots = n_written.min(fixed.n_slots()) as usize;
        bytes.resize(RING + n_slots * RECORD_BYTES, 0);
        for sequence in 0..n_written {
            let at = RING + (sequence % fixed.n_slots()) as usize * RECORD_BYTES;
            bytes[at..at + RECORD_BYTES].copy_from_slice(&record(sequence).to_bytes());
        }
        bytes
    }

    fn sequences(bytes: &[u8]) -> Vec<u64> {
        let reader = LogReader::from_source(bytes, "memory").unwrap();
        let read: Vec<u64> = reader
            .records()
            .map(|record| record.unwrap().time_ns)
            .collect();
        assert_eq!(read.len() as u64, reader.n_records());
        read
    }

    #[test]
    fn records_come_in_the_order_of_writing() {
        for (capacity, n_written) in [(5, 0), (5, 3), (5, 5), (5, 6), (5, 8), (1, 9), (5, 23)] {
            let expected: Vec<u64> = (oldest(n_written, capacity)..n_written).collect();
            assert_eq!(sequences(&log(capacity, n_written)), expected);
        }
    }

    #[test]
    fn a_hole_in_a_wrapped_log_is_passed_over() {
        // Six slots; records 3 to 7 are in slots 3, 4, 5, 0, 1.
        let bytes = log(5, 8);
        for (n_slots_present, expected) in [
            (5, vec![3, 4, 6, 7]),
            (4, vec![3, 6, 7]),
            (2, vec![6, 7]),
            (1, vec![6]),
            (0, vec![]),
        ] {
            let cut = &bytes[..RING + n_slots_present * RECORD_BYTES];
            assert_eq!(sequences(cut), expected);
            let reader = LogReader::from_source(cut, "memory").unwrap();
            assert!(matches!(
                reader.damage(),
                Some(Error::Truncated { expected: 5, .. })
            ));
        }
    }

    #[test]
    fn a_cut_log_says_so_where_a_record_is_missing() {
        let capacity = 5;
        for n_written in 0..25 {
            let bytes = log(capacity, n_written);
            let n_slots = (bytes.len() - RING) / RECORD_BYTES;
            let expected = n_written - oldest(n_written, capacity);
            for n_slots_present in 0..=n_slots {
                let cut = &bytes[..RING + n_slots_present * RECORD_BYTES];
                let reader = LogReader::from_source(cut, "memory").unwrap();
                let n_records = sequences(cut).len() as u64;
                let what = format!("{n_written} written, {n_slots_present} slots: {n_records}");
                match reader.damage() {
                    Some(Error::Truncated {
                        readable,
                        needed_bytes,
                        ..
                    }) => {
                        assert!(*readable == n_records && n_records < expected, "{what}");
                        let whole = &bytes[..*needed_bytes as usize];
                        assert_eq!(sequences(whole).len() as u64, expected, "{what}");
                    }
                    Some(other) => panic!("{what}: {other}"),
                    None => assert_eq!(n_records, expected, "{what}"),
                }
            }
        }
    }

    #[test]
    fn numbers_that_call_for_huge_memory_are_only_numbers() {
        let mut bytes = log(u64::from(u32::MAX), 3);
        bytes[HEAD_OFFSET..HEAD_OFFSET + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(sequences(&bytes).len() <= 3);
        bytes[HEAD_OFFSET..HEAD_OFFSET + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(LogReader::from_source(bytes.as_slice(), "memory").is_err());
    }
}
