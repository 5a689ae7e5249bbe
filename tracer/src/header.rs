//! The first page of a log: a part that is written once, with a checksum, and a part that changes.

use std::path::Path;

use crate::codec::{Decoder, Malformed};
use crate::tables::{EXTRA_BYTES, MAX_TABLE_BYTES};
use crate::{Error, RECORD_BYTES, Result};

/// Major version of the format: a reader knows exactly one.
pub const VERSION_MAJOR: u16 = 1;
/// Minor version of the format: a reader of an older one can read the file, too.
pub const VERSION_MINOR: u16 = 1;

pub(crate) const MAGIC: [u8; 8] = *b"\x89FTRACE\n";
pub(crate) const HEADER_BYTES: usize = 4096;
/// Everything in front of the ring begins on a multiple of this.
pub(crate) const ALIGNMENT_BYTES: u64 = 4096;
/// Largest file that this program makes or reads.
pub(crate) const MAX_FILE_BYTES: u64 = i64::MAX as u64;

const BYTE_ORDER_MARK: u32 = 0x0102_0304;
const FIXED_BYTES: usize = 200;

/// Offsets in the changing part, which has a cache line for the head alone.
pub(crate) const HEAD_OFFSET: usize = 1024;
pub(crate) const REFUSED_OFFSET: usize = 1152;
pub(crate) const STATE_OFFSET: usize = 1160;
pub(crate) const N_EXTRAS_OFFSET: usize = 1168;
pub(crate) const CLOSED_NS_OFFSET: usize = 1176;
/// One word for each of the first files of the model: where it is mapped.
pub(crate) const ADDRESSES_OFFSET: usize = 2048;
pub(crate) const ADDRESSES_MAX: usize = (HEADER_BYTES - ADDRESSES_OFFSET) / 8;

/// What happens when a log is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// The oldest records give way.
    Wrap,
    /// New records are refused and counted; [`LogWriter::is_full`](crate::LogWriter::is_full) says so.
    Stop,
}

/// How a log was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is being written, or its writer died.
    Open,
    /// It was closed in order.
    Closed,
}

/// A table's place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Section {
    pub(crate) offset_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) count: u32,
    pub(crate) checksum: u32,
}

impl Section {
    fn end_bytes(self) -> Option<u64> {
        self.offset_bytes.checked_add(self.size_bytes)
    }
}

/// The part of the header that does not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fixed {
    pub(crate) minor: u16,
    pub(crate) capacity: u64,
    pub(crate) ring_offset_bytes: u64,
    pub(crate) epoch_realtime_ns: u64,
    pub(crate) epoch_monotonic_ns: u64,
    pub(crate) on_full: OnFull,
    pub(crate) pid: u32,
    pub(crate) digest: [u8; 32],
    pub(crate) files: Section,
    pub(crate) tensors: Section,
    pub(crate) properties: Section,
    pub(crate) extras_offset_bytes: u64,
    pub(crate) extra_capacity: u32,
}

impl Fixed {
    /// One more than the capacity: see `ring.rs`.
    pub(crate) fn n_slots(&self) -> u64 {
        self.capacity + 1
    }

    /// Size of the file before it is trimmed.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.ring_offset_bytes + self.n_slots() * RECORD_BYTES as u64
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION_MAJOR.to_le_bytes());
        bytes.extend_from_slice(&self.minor.to_le_bytes());
        bytes.extend_from_slice(&BYTE_ORDER_MARK.to_le_bytes());
        bytes.extend_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        bytes.extend_from_slice(&(RECORD_BYTES as u32).to_le_bytes());
        for number in [
            self.capacity,
            self.n_slots(),
            self.ring_offset_bytes,
            self.file_bytes(),
            self.epoch_realtime_ns,
            self.epoch_monotonic_ns,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let on_full = match self.on_full {
            OnFull::Wrap => 0u32,
            OnFull::Stop => 1,
        };
        bytes.extend_from_slice(&on_full.to_le_bytes());
        bytes.extend_from_slice(&self.pid.to_le_bytes());
        bytes.extend_from_slice(&self.digest);
        for section in [self.files, self.tensors, self.properties] {
            bytes.extend_from_slice(&section.offset_bytes.to_le_bytes());
            bytes.extend_from_slice(&section.size_bytes.to_le_bytes());
            bytes.extend_from_slice(&section.count.to_le_bytes());
            bytes.extend_from_slice(&section.checksum.to_le_bytes());
        }
        bytes.extend_from_slice(&self.extras_offset_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.extra_capacity.to_le_bytes());
        bytes.extend_from_slice(&(EXTRA_BYTES as u32).to_le_bytes());
        assert_eq!(bytes.len(), FIXED_BYTES);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        let mut page = [0; HEADER_BYTES];
        page[..bytes.len()].copy_from_slice(&bytes);
        page
    }

    /// Decodes the first bytes of a file, which may be fewer than a header has.
    pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<Fixed> {
        check_kind(path, bytes)?;
        if bytes.len() < HEADER_BYTES {
            return Err(malformed(
                path,
                format!("{} of {HEADER_BYTES} bytes are there", bytes.len()),
            ));
        }
        let fixed = &bytes[..FIXED_BYTES];
        let found = crc32fast::hash(fixed);
        let expected = read_u32(bytes, FIXED_BYTES);
        if found != expected {
            return Err(Error::Checksum {
                path: path.to_owned(),
                section: "header",
                expected,
                found,
            });
        }
        Fixed::parse(fixed).map_err(|problem| malformed(path, problem.to_string()))
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Fixed, Malformed> {
        let mut decoder = Decoder::new(bytes);
        decoder.bytes(MAGIC.len() + 2)?;
        let minor = decoder.u16()?;
        decoder.bytes(4)?;
        let (header_bytes, record_bytes) = (decoder.u32()?, decoder.u32()?);
        let (capacity, n_slots) = (decoder.u64()?, decoder.u64()?);
        let (ring_offset_bytes, file_bytes) = (decoder.u64()?, decoder.u64()?);
        let (epoch_realtime_ns, epoch_monotonic_ns) = (decoder.u64()?, decoder.u64()?);
        let (on_full, pid) = (decoder.u32()?, decoder.u32()?);
        let digest = decoder.digest()?;
        let mut section = || {
            Ok(Section {
                offset_bytes: decoder.u64()?,
                size_bytes: decoder.u64()?,
                count: decoder.u32()?,
                checksum: decoder.u32()?,
            })
        };
        let (files, tensors, properties) = (section()?, section()?, section()?);
        let (extras_offset_bytes, extra_capacity) = (decoder.u64()?, decoder.u32()?);
        let extra_bytes = decoder.u32()?;

        let refuse = |problem: String| Err(decoder.malformed(problem));
        if header_bytes as usize != HEADER_BYTES {
            return refuse(format!(
                "a header of {header_bytes} bytes instead of {HEADER_BYTES}"
            ));
        }
        if record_bytes as usize != RECORD_BYTES {
            return refuse(format!(
                "records of {record_bytes} bytes instead of {RECORD_BYTES}"
            ));
        }
        if extra_bytes as usize != EXTRA_BYTES {
            return refuse(format!(
                "extra tensors of {extra_bytes} bytes instead of {EXTRA_BYTES}"
            ));
        }
        let on_full = match on_full {
            0 => OnFull::Wrap,
            1 => OnFull::Stop,
            other => return refuse(format!("unknown rule {other} for a full log")),
        };
        let ring_bytes = n_slots.checked_mul(RECORD_BYTES as u64);
        let end_bytes = ring_bytes.and_then(|ring| ring.checked_add(ring_offset_bytes));
        let sizes_agree = capacity > 0
            && capacity.checked_add(1) == Some(n_slots)
            && end_bytes == Some(file_bytes)
            && file_bytes <= MAX_FILE_BYTES
            && ring_offset_bytes.is_multiple_of(ALIGNMENT_BYTES);
        if !sizes_agree {
            return refuse(format!(
                "{n_slots} slots for {capacity} records at byte {ring_offset_bytes} of {file_bytes}"
            ));
        }
        let extras = Section {
            offset_bytes: extras_offset_bytes,
            size_bytes: u64::from(extra_capacity) * EXTRA_BYTES as u64,
            ..Section::default()
        };
        for (name, section) in [
            ("files", files),
            ("tensors", tensors),
            ("properties", properties),
            ("extra tensors", extras),
        ] {
            let inside = section.offset_bytes >= HEADER_BYTES as u64
                && section
                    .end_bytes()
                    .is_some_and(|end| end <= ring_offset_bytes);
            if !inside || (name != "extra tensors" && section.size_bytes > MAX_TABLE_BYTES) {
                return refuse(format!(
                    "the table of {name} has {} bytes at {}, before the ring at {ring_offset_bytes}",
                    section.size_bytes, section.offset_bytes
                ));
            }
        }
        Ok(Fixed {
            minor,
            capacity,
            ring_offset_bytes,
            epoch_realtime_ns,
            epoch_monotonic_ns,
            on_full,
            pid,
            digest,
            files,
            tensors,
            properties,
            extras_offset_bytes,
            extra_capacity,
        })
    }
}

/// The part of the header that changes while the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changing {
    pub(crate) head: u64,
    pub(crate) refused: u64,
    pub(crate) state: State,
    pub(crate) n_extras: u64,
    pub(crate) closed_ns: u64,
}

impl Changing {
    pub(crate) fn decode(path: &Path, bytes: &[u8], fixed: &Fixed) -> Result<Changing> {
        let changing = Changing {
            head: read_u64(bytes, HEAD_OFFSET),
            refused: read_u64(bytes, REFUSED_OFFSET),
            state: match read_u64(bytes, STATE_OFFSET) {
                0 => State::Open,
                1 => State::Closed,
                other => return Err(malformed(path, format!("unknown state {other}"))),
            },
            n_extras: read_u64(bytes, N_EXTRAS_OFFSET),
            closed_ns: read_u64(bytes, CLOSED_NS_OFFSET),
        };
        if changing.n_extras > u64::from(fixed.extra_capacity) {
            return Err(malformed(
                path,
                format!(
                    "{} extra tensors where {} have room",
                    changing.n_extras, fixed.extra_capacity
                ),
            ));
        }
        if fixed.on_full == OnFull::Stop && changing.head > fixed.capacity {
            return Err(malformed(
                path,
                format!(
                    "{} records in a log that stops at {}",
                    changing.head, fixed.capacity
                ),
            ));
        }
        // No run lasts long enough for this many, and sums with it would overflow.
        if changing.head > 1 << 62 {
            return Err(malformed(path, format!("{} records", changing.head)));
        }
        Ok(changing)
    }
}

/// Addresses of the first `n_files` files.
pub(crate) fn addresses(page: &[u8], n_files: usize) -> Vec<u64> {
    (0..n_files.min(ADDRESSES_MAX))
        .map(|file| read_u64(page, ADDRESSES_OFFSET + file * 8))
        .collect()
}

/// What a log says about itself, apart from its tables.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// Version of the format, major and minor.
    pub version: (u16, u16),
    /// How many records the log can hold.
    pub capacity: u64,
    /// How many records were written, those included that gave way to newer ones.
    pub n_written: u64,
    /// How many records are not in the log: overwritten, or refused because it was full.
    pub n_lost: u64,
    /// What was to happen when it was full.
    pub on_full: OnFull,
    /// Whether it was closed in order.
    pub state: State,
    /// When it was closed, in nanoseconds since the epoch; 0 unless it was closed.
    pub closed_ns: u64,
    /// The epoch on the wall clock: nanoseconds since 1970, UTC.
    pub epoch_realtime_ns: u64,
    /// The epoch on `CLOCK_MONOTONIC`, in nanoseconds.
    pub epoch_monotonic_ns: u64,
    /// The process that wrote it.
    pub pid: u32,
    /// [`Tables::digest`](crate::Tables::digest) of the model.
    pub model_digest: [u8; 32],
}

/// Whether the bytes are a log of this version at all.
fn check_kind(path: &Path, bytes: &[u8]) -> Result<()> {
    let front = &bytes[..bytes.len().min(16)];
    if !front.starts_with(&MAGIC) {
        return Err(Error::NotALog {
            path: path.to_owned(),
            found: match front {
                [] => "nothing: it is empty".to_owned(),
                _ => front[..front.len().min(8)]
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect::<Vec<_>>()
                    .join(" "),
            },
        });
    }
    let &[.., v0, v1, m0, m1, b0, b1, b2, b3] = front else {
        return Err(malformed(path, format!("{} bytes", front.len())));
    };
    if front.len() < 16 {
        return Err(malformed(path, format!("{} bytes", front.len())));
    }
    let mark = u32::from_le_bytes([b0, b1, b2, b3]);
    if mark != BYTE_ORDER_MARK {
        return Err(Error::ByteOrder {
            path: path.to_owned(),
            mark,
        });
    }
    let (major, minor) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([m0, m1]));
    if major != VERSION_MAJOR {
        return Err(Error::Version {
            path: path.to_owned(),
            found: format!("{major}.{minor}"),
            supported: format!("{VERSION_MAJOR}.x"),
        });
    }
    Ok(())
}

fn malformed(path: &Path, problem: String) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        section: "header",
        problem,
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed() -> Fixed {
        let section = Section {
            offset_bytes: 4096,
            ..Section::default()
        };
        Fixed {
            minor: VERSION_MINOR,
            capacity: 9,
            ring_offset_bytes: 8192,
            epoch_realtime_ns: 1,
            epoch_monotonic_ns: 2,
            on_full: OnFull::Stop,
            pid: 3,
            digest: [4; 32],
            files: section,
            tensors: section,
            properties: section,
            extras_offset_bytes: 4096,
            extra_capacity: 32,
        }
    }

    fn decode(bytes: &[u8]) -> Result<Fixed> {
        Fixed::decode(Path::new("a.ftrace"), bytes)
    }

    #[test]
    fn the_header_comes_back() {
        assert_eq!(decode(&fixed().encode()).unwrap(), fixed());
    }

    #[test]
    fn every_flipped_bit_of_the_fixed_part_is_noticed() {
        let page = fixed().encode();
        for bit in 0..(FIXED_BYTES + 4) * 8 {
            let mut changed = page;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn numbers_that_contradict_each_other_are_refused_whatever_the_checksum() {
        let changes: [fn(&mut Fixed); 5] = [
            |fixed| fixed.capacity = 0,
            |fixed| fixed.ring_offset_bytes = 8193,
            |fixed| fixed.tensors.size_bytes = u64::MAX,
            |fixed| fixed.files.offset_bytes = 0,
            |fixed| fixed.extra_capacity = 33,
        ];
        for change in changes {
            let mut fixed = fixed();
            change(&mut fixed);
            assert!(matches!(
                decode(&fixed.encode()),
                Err(Error::Malformed { .. })
            ));
        }
    }

    #[test]
    fn what_the_file_is_instead_is_said() {
        assert!(matches!(decode(b""), Err(Error::NotALog { .. })));
        let error = decode(b"GGUF\x03\0\0\0").unwrap_err();
        assert_eq!(
            error.to_string(),
            "a.ftrace: not an access log (it begins with 47 47 55 46 03 00 00 00)"
        );
        let mut page = fixed().encode();
        page[8] = 9;
        let foreign = format!("9.{VERSION_MINOR}");
        assert!(matches!(decode(&page), Err(Error::Version { found, .. }) if found == foreign));
        page[12..16].reverse();
        assert!(matches!(
            decode(&page),
            Err(Error::ByteOrder {
                mark: 0x0403_0201,
                ..
            })
        ));
        assert!(matches!(
            decode(&fixed().encode()[..100]),
            Err(Error::Malformed { .. })
        ));
    }
}
