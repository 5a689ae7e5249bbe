//! Free memory that the host of a virtual machine has taken back.
//!
//! With *free page reporting* a guest tells its host which blocks of 2 MiB are free, from some tenths of a second on, and the host uses their memory
//! elsewhere. Whoever gets such a block next waits for the host: 2 to 5 ms where a block that the host still has takes 0.1. So a run's
//! loading and its first tokens would depend on what ran how long before. Touching the memory before each run makes runs more alike.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use pager::Budget;

use crate::anonymous::Anonymous;
use crate::interrupt;
use crate::procfs;
use crate::size::MIB;

/// Touched at a time: between two pieces a signal is noticed.
const PIECE_BYTES: u64 = 256 * MIB;
/// What stays free, for everybody else.
const LEFT_BYTES: u64 = 512 * MIB;
/// `VIRTIO_BALLOON_F_REPORTING` (linux/virtio_balloon.h, 5.5.3 in the virtio 1.2 specification), as a place in the text of `features`.
const REPORTING: usize = 5;

/// Whether the machine tells a host which of its memory is free.
pub(crate) fn is_reported() -> bool {
    let Ok(devices) = fs::read_dir("/sys/bus/virtio/drivers/virtio_balloon") else {
        return false;
    };
    let features = |device: fs::DirEntry| fs::read_to_string(device.path().join("features")).ok();
    devices
        .flatten()
        .filter_map(features)
        .any(|text| reports(&text))
}

/// Of the features of a balloon device, one digit each, the first on the left.
fn reports(features: &str) -> bool {
    features.as_bytes().get(REPORTING) == Some(&b'1')
}

/// Touches this many bytes of the free memory and frees them again: less where the machine, or a memory group around this process, has not so many free.
/// Nothing is pushed out for it. Gives the time that took.
pub(crate) fn touch(wanted_bytes: u64) -> Result<Duration> {
    let begin = Instant::now();
    let mut pieces = Vec::new();
    let allowed_bytes = Budget::Auto
        .resolve(0)
        .context("free memory cannot be told")?;
    let mut left_bytes = wanted_bytes.min(allowed_bytes);
    while left_bytes > 0 {
        interrupt::check()?;
        let room_bytes = room_bytes(procfs::free_bytes().unwrap_or(0));
        let piece_bytes = left_bytes.min(PIECE_BYTES).min(room_bytes);
        if piece_bytes == 0 {
            break;
        }
        let piece = Anonymous::map(piece_bytes)?;
        piece.populate()?;
        left_bytes -= piece_bytes;
        pieces.push(piece);
    }
    Ok(begin.elapsed())
}

/// What can be touched of so much free memory.
fn room_bytes(free_bytes: u64) -> u64 {
    free_bytes.saturating_sub(LEFT_BYTES) / MIB * MIB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_says_whether_it_reports() {
        assert!(reports("0110010100000000\n"));
        assert!(!reports("0110000100000000\n"));
        assert!(!reports(""));
    }

    #[test]
    fn no_more_is_touched_than_is_free() {
        assert!(touch(3 * MIB + 5).unwrap() > Duration::ZERO);
        assert_eq!(room_bytes(LEFT_BYTES + MIB - 1), 0);
        assert_eq!(room_bytes(LEFT_BYTES + 3 * MIB + 5), 3 * MIB);
        assert_eq!(room_bytes(5), 0);
    }
}
