//! The file of a state.
//!
//! ```text
//! offset  bytes
//!      0      8  "faultkv" and a newline
//!      8      4  version of this format
//!     12      4  number of tokens, n
//!     16      8  bytes of the state, s
//!     24     32  identity: model, settings and program that it is of
//!     56     4n  tokens
//!  56+4n      4  CRC-32 of all before
//!  60+4n      s  state, in llama.cpp's format
//!              4  CRC-32 of the state
//! ```
//!
//! Numbers are little-endian.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use llama_rs::Token;
use rustix::fs::Advice;

const MAGIC: &[u8; 8] = b"faultkv\n";
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 56;

/// Between two pieces of this size writing can be given up, and reading computes the checksum.
const PIECE_BYTES: usize = 1 << 20;

/// What tells a model, in one state and with its settings, from others.
pub(crate) type Identity = [u8; 32];

/// What a file has before the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) identity: Identity,
    pub(super) tokens: Vec<Token>,
    pub(super) state_bytes: u64,
}

impl Head {
    pub(super) fn file_bytes(&self) -> u64 {
        self.encoded_bytes() + self.state_bytes + 4
    }

    fn encoded_bytes(&self) -> u64 {
        FIXED_BYTES as u64 + 4 * self.tokens.len() as u64 + 4
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        // Tokens of a context, at most 2^27.
        bytes.extend((self.tokens.len() as u32).to_le_bytes());
        bytes.extend(self.state_bytes.to_le_bytes());
        bytes.extend(self.identity);
        for token in &self.tokens {
            bytes.extend(token.0.to_le_bytes());
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads the head of a file of `file_bytes`.
    fn read(reader: &mut impl Read, file_bytes: u64) -> Result<Head, String> {
        let mut fixed = [0; FIXED_BYTES];
        read_all(reader, &mut fixed)?;
        let (magic, rest) = fixed.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err("it is no kept state".to_owned());
        }
        let number =
            |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        if number(0) != VERSION {
            return Err(format!("it has version {}, not {VERSION}", number(0)));
        }
        let mut identity = [0; 32];
        identity.copy_from_slice(&rest[16..48]);
        let mut head = Head {
            identity,
            tokens: Vec::new(),
            state_bytes: u64::from(number(8)) | u64::from(number(12)) << 32,
        };
        let n_tokens = number(4) as usize;
        // Before memory is asked for.
        let expected_bytes =
            (FIXED_BYTES as u64 + 4 * n_tokens as u64 + 8).checked_add(head.state_bytes);
        if expected_bytes != Some(file_bytes) {
            return Err(format!(
                "it has {file_bytes} bytes, which does not fit its head"
            ));
        }
        let mut tokens = vec![0; 4 * n_tokens];
        read_all(reader, &mut tokens)?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&fixed);
        sum.update(&tokens);
        check_sum(reader, sum)?;
        let token =
            |bytes: &[u8]| Token(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        head.tokens = tokens.chunks_exact(4).map(token).collect();
        Ok(head)
    }
}

/// Reads the head of a file.
pub(super) fn read_head(path: &Path) -> Result<Head, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    // Larger buffers would read of the state, too.
    Head::read(&mut BufReader::with_capacity(4096, file), length)
}

/// Reads the state of a file whose head is this one. Its pages do not stay in the page cache.
pub(super) fn read_state(path: &Path, head: &Head) -> Result<Vec<u8>, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
    if Head::read(&mut file, length)? != *head {
        return Err("it was replaced".to_owned());
    }
    let mut state = Vec::new();
    let state_bytes = usize::try_from(head.state_bytes).unwrap_or(usize::MAX);
    state
        .try_reserve_exact(state_bytes)
        .map_err(|error| error.to_string())?;
    state.resize(state_bytes, 0);
    let mut sum = crc32fast::Hasher::new();
    for piece in state.chunks_mut(PIECE_BYTES) {
        read_all(&mut file, piece)?;
        sum.update(piece);
    }
    check_sum(&mut file, sum)?;
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    Ok(state)
}

/// Writes a file that only its owner may read, under another name first: whoever reads sees all of it or nothing. `Ok(false)` if
/// `may_go_on` said no in between.
pub(super) fn write(
    path: &Path,
    temporary: &Path,
    head: &Head,
    state: &[u8],
    may_go_on: &dyn Fn() -> bool,
) -> io::Result<bool> {
    let result = write_pieces(temporary, head, state, may_go_on).and_then(|is_complete| {
        if is_complete {
            fs::rename(temporary, path)?;
        }
        Ok(is_complete)
    });
    if !matches!(result, Ok(true)) {
        let _ = fs::remove_file(temporary);
    }
    result
}

fn write_pieces(
    path: &Path,
    head: &Head,
    state: &[u8],
    may_go_on: &dyn Fn() -> bool,
) -> io::Result<bool> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&head.encode())?;
    let mut sum = crc32fast::Hasher::new();
    for piece in state.chunks(PIECE_BYTES) {
        if !may_go_on() {
            return Ok(false);
        }
        sum.update(piece);
        file.write_all(piece)?;
    }
    file.write_all(&sum.finalize().to_le_bytes())?;
    Ok(true)
}

fn read_all(reader: &mut impl Read, bytes: &mut [u8]) -> Result<(), String> {
    reader
        .read_exact(bytes)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "it ends early".to_owned(),
            _ => error.to_string(),
        })
}

fn check_sum(reader: &mut impl Read, sum: crc32fast::Hasher) -> Result<(), String> {
    let mut written = [0; 4];
    read_all(reader, &mut written)?;
    match sum.finalize() == u32::from_le_bytes(written) {
        true => Ok(()),
        false => Err("its checksum is wrong".to_owned()),
    }
}
