//! The few files of `/proc` that are read.

use std::fs;
use std::io;

use crate::residency::page_bytes;

/// CLOCK_MONOTONIC in nanoseconds; the same clock in every process of the machine.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Resident memory of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rss {
    /// Pages of files and shared memory.
    pub(crate) file_bytes: u64,
    pub(crate) anon_bytes: u64,
}

/// Resident memory of process `pid`, by `/proc/<pid>/statm`.
pub(crate) fn rss(pid: u32) -> io::Result<Rss> {
    parse_statm(
        &fs::read_to_string(format!("/proc/{pid}/statm"))?,
        page_bytes(),
    )
    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected format of statm"))
}

fn parse_statm(text: &str, page_bytes: u64) -> Option<Rss> {
    let mut fields = text
        .split_ascii_whitespace()
        .map(|field| field.parse::<u64>().ok());
    let (_size, resident, shared) = (fields.next()??, fields.next()??, fields.next()??);
    Some(Rss {
        file_bytes: shared * page_bytes,
        anon_bytes: resident.saturating_sub(shared) * page_bytes,
    })
}

/// The kernel's account of a process's resident memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Status {
    /// Highest resident size so far, file and anonymous together.
    pub(crate) peak_bytes: u64,
    pub(crate) anon_bytes: u64,
    pub(crate) file_bytes: u64,
}

/// VmHWM, RssAnon and RssFile of process `pid`.
pub(crate) fn status(pid: u32) -> io::Result<Status> {
    let status = resident::Status::of(pid)?;
    let bytes = |field| status.bytes(field).unwrap_or(0);
    Ok(Status {
        peak_bytes: bytes("VmHWM"),
        anon_bytes: bytes("RssAnon"),
        file_bytes: bytes("RssFile"),
    })
}

/// Bytes that this process caused to be fetched from storage; `None` where the kernel does not count them.
pub(crate) fn own_read_bytes() -> Option<u64> {
    read_bytes_of(&fs::read_to_string("/proc/self/io").ok()?)
}

/// The same from a text of `/proc/<pid>/io`.
pub(crate) fn read_bytes_of(io: &str) -> Option<u64> {
    value_of(io, "read_bytes:")
}

/// What this process has used, all threads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu_ns: u64,
    pub(crate) faults_major: u64,
    pub(crate) faults_minor: u64,
}

/// By `getrusage`, which is quicker than `/proc`.
pub(crate) fn own_usage() -> Usage {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a `rusage` that the call fills in; all zeros, if it fails, is a valid one as well.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let ns = |time: libc::timeval| (time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64) * 1000;
    Usage {
        cpu_ns: ns(usage.ru_utime) + ns(usage.ru_stime),
        faults_major: usage.ru_majflt as u64,
        faults_minor: usage.ru_minflt as u64,
    }
}

/// Minor and major faults of this process, all threads.
pub(crate) fn own_faults() -> (u64, u64) {
    fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|text| parse_faults(&text))
        .unwrap_or((0, 0))
}

fn parse_faults(stat: &str) -> Option<(u64, u64)> {
    // The command's name is in parentheses and may contain anything; the state follows it as field 3.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let minor = fields.nth(7)?.parse().ok()?;
    let major = fields.nth(1)?.parse().ok()?;
    Some((minor, major))
}

/// Memory of the machine that programs can have without swapping.
pub(crate) fn available_bytes() -> Option<u64> {
    meminfo("MemAvailable:")
}

/// Memory of the machine that nothing uses, not even the page cache.
pub(crate) fn free_bytes() -> Option<u64> {
    meminfo("MemFree:")
}

/// All memory of the machine.
pub(crate) fn total_bytes() -> Option<u64> {
    meminfo("MemTotal:")
}

fn meminfo(key: &str) -> Option<u64> {
    value_of(&fs::read_to_string("/proc/meminfo").ok()?, key).map(|kib| kib * 1024)
}

/// Processes that wanted a CPU, averaged over the last minute.
pub(crate) fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg")
        .ok()?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Time that the host took from this virtual machine's CPUs since boot, in clock ticks (1/100 s).
pub(crate) fn steal_ticks() -> Option<u64> {
    fs::read_to_string("/proc/stat")
        .ok()?
        .lines()
        .next()?
        .split_ascii_whitespace()
        .nth(8)?
        .parse()
        .ok()
}

fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .split_ascii_whitespace()
            .next()?
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statm_splits_file_and_anonymous_memory() {
        let rss = parse_statm("5000 300 120 10 0 900 0\n", 4096).unwrap();
        assert_eq!(
            rss,
            Rss {
                file_bytes: 120 * 4096,
                anon_bytes: 180 * 4096
            }
        );
        assert!(parse_statm("5000 x", 4096).is_none());
    }

    #[test]
    fn faults_survive_a_name_with_parentheses() {
        let text = "42 (a) b (c) R 1 42 42 0 -1 4194304 111 0 222 0 5 6 0 0 20 0 1 0 100 1 1";
        assert_eq!(parse_faults(text), Some((111, 222)));
    }

    #[test]
    fn own_figures_are_there() {
        assert!(rss(std::process::id()).unwrap().file_bytes > 0);
        assert!(status(std::process::id()).unwrap().peak_bytes > 0);
        assert!(own_faults().0 > 0);
        assert!(total_bytes().unwrap() > 0 && available_bytes().unwrap() > 0);
        assert!(load_average().unwrap() >= 0.0);
        let first = monotonic_ns();
        assert!(monotonic_ns() >= first);
    }
}
