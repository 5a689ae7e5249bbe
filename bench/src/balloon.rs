//! A memory limit without memory groups: everything but the budget is locked away, so that the whole machine has only the
//! budget left. Coarser than a group: what other processes need comes out of the budget as well, and nobody counts a peak.

use std::fs;
use std::io;

use anyhow::{Result, bail};

use crate::anonymous::Anonymous;
use crate::interrupt;
use crate::procfs;
use crate::residency::page_bytes;
use crate::size::{MIB, format_bytes};

/// Locked at a time: between two pieces the memory that is left is looked at, and a signal is noticed.
const PIECE_BYTES: u64 = 64 * MIB;

/// Locked memory. Dropping it gives it back, and so does the end of the process, however it ends.
#[derive(Debug, Default)]
pub(crate) struct Balloon {
    pieces: Vec<Anonymous>,
    oom_kills_before: u64,
}

impl Balloon {
    /// Locks memory until programs can have `budget_bytes` without swapping.
    pub(crate) fn leave(budget_bytes: u64) -> Result<Balloon> {
        let mut balloon = Balloon {
            pieces: Vec::new(),
            oom_kills_before: oom_kills(),
        };
        loop {
            interrupt::check()?;
            let Some(available) = procfs::available_bytes() else {
                bail!("/proc/meminfo does not say how much memory is available");
            };
            let excess = available.saturating_sub(budget_bytes) / page_bytes() * page_bytes();
            if excess < MIB {
                break;
            }
            let piece = locked(excess.min(PIECE_BYTES)).map_err(|error| {
                anyhow::anyhow!(
                    "{} of memory cannot be locked to leave {}: {error}; run as root, or raise the limit with `ulimit -l`",
                    format_bytes(balloon.locked_bytes() + excess),
                    format_bytes(budget_bytes)
                )
            })?;
            balloon.pieces.push(piece);
        }
        if balloon.pieces.is_empty() {
            bail!(
                "a budget of {} limits nothing: less than that is available on this machine",
                format_bytes(budget_bytes)
            );
        }
        Ok(balloon)
    }

    fn locked_bytes(&self) -> u64 {
        self.pieces.iter().map(Anonymous::size_bytes).sum()
    }

    /// Processes that the kernel killed since the memory was locked because the machine had none left.
    pub(crate) fn oom_kills(&self) -> u64 {
        oom_kills().saturating_sub(self.oom_kills_before)
    }
}

fn locked(size_bytes: u64) -> io::Result<Anonymous> {
    let piece = Anonymous::map(size_bytes)?;
    piece.lock()?;
    Ok(piece)
}

/// Counted since the machine was started; 0 where it is not.
fn oom_kills() -> u64 {
    let count = |text: String| {
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    };
    fs::read_to_string("/proc/vmstat")
        .ok()
        .and_then(count)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_locked_bytes() -> u64 {
        let status = resident::Status::own().unwrap();
        status.bytes("VmLck").unwrap()
    }

    #[test]
    fn memory_is_locked_and_given_back() {
        let before = own_locked_bytes();
        let piece = match locked(8 * MIB) {
            Ok(piece) => piece,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        assert_eq!(own_locked_bytes() - before, 8 * MIB);
        drop(piece);
        assert_eq!(own_locked_bytes(), before);
    }

    #[test]
    fn more_than_there_is_is_no_limit() {
        let message = Balloon::leave(u64::MAX / 2).unwrap_err().to_string();
        assert!(message.contains("limits nothing"), "{message}");
        assert_eq!(Balloon::default().locked_bytes(), 0);
    }
}
