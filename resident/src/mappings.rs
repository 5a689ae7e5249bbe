//! What of a process's memory is where.
//!
//! Source: proc_pid_smaps(5).

use std::fs;
use std::io;
use std::ops::Range;

use crate::kib_field;

/// Resident anonymous memory of this process in all mappings but those that begin in one of these ranges of addresses, in bytes.
///
/// # Errors
///
/// What reading `/proc/self/smaps` gives.
pub fn anonymous_outside(ranges: &[Range<usize>]) -> io::Result<u64> {
    Ok(sum_outside(
        &fs::read_to_string("/proc/self/smaps")?,
        ranges,
    ))
}

fn sum_outside(smaps: &str, ranges: &[Range<usize>]) -> u64 {
    let mut is_outside = true;
    let mut sum_bytes = 0;
    for line in smaps.lines() {
        if let Some(start) = start_of(line) {
            is_outside = !ranges.iter().any(|range| range.contains(&start));
        } else if is_outside && let Some(bytes) = kib_field(line, "Anonymous") {
            sum_bytes += bytes;
        }
    }
    sum_bytes
}

/// The address that the first line of a mapping begins with: `7f2c00000000-7f2c00021000 rw-p 00000000 00:00 0`.
fn start_of(line: &str) -> Option<usize> {
    let (start, _) = line.split_once(' ')?.0.split_once('-')?;
    usize::from_str_radix(start, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice;

    #[test]
    fn mappings_in_the_ranges_do_not_count() {
        let smaps = "1000-3000 rw-p 00000000 00:00 0    [heap]\nRss:   8 kB\nAnonymous:   8 kB\nAnonHugePages:   0 kB\n\
            7f0000000000-7f0000400000 rw-p 00000000 00:00 0\nRss:  4096 kB\nAnonymous:  4096 kB\n\
            7f0000800000-7f0000900000 r-xp 00000000 fe:00 7  /lib/a-b c\nAnonymous:   4 kB\n";
        assert_eq!(sum_outside(smaps, &[]), (8 + 4096 + 4) << 10);
        let region = 0x7f00_0000_0000..0x7f00_0080_0000;
        assert_eq!(sum_outside(smaps, &[region]), (8 + 4) << 10);
        let everything = 0..usize::MAX;
        assert_eq!(sum_outside(smaps, slice::from_ref(&everything)), 0);
    }

    #[test]
    fn this_process_has_some() {
        let bytes = vec![1u8; 16 << 20];
        // An allocation as large as this has a mapping of its own, or one with its neighbours.
        let below = 0..bytes.as_ptr().addr() + 1;
        let held_bytes = anonymous_outside(&[]).unwrap();
        assert!(held_bytes >= 16 << 20, "{held_bytes}");
        let rest_bytes = anonymous_outside(slice::from_ref(&below)).unwrap();
        assert!(rest_bytes < held_bytes, "{rest_bytes}");
    }
}
