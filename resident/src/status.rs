//! What a process holds.
//!
//! Sources: proc_pid_status(5), proc_pid_smaps(5); `Documentation/filesystems/proc.rst`.

use std::fs;
use std::io;

/// `/proc/<pid>/status`: the kernel's account of a process.
#[derive(Clone, Debug)]
pub struct Status {
    text: String,
}

impl Status {
    /// Of this process, now.
    ///
    /// # Errors
    ///
    /// What reading the file gives.
    pub fn own() -> io::Result<Status> {
        Ok(Status::parse(fs::read_to_string("/proc/self/status")?))
    }

    /// Of process `pid`, now.
    ///
    /// # Errors
    ///
    /// What reading the file gives, [`NotFound`](io::ErrorKind::NotFound) if there is no such process.
    pub fn of(pid: u32) -> io::Result<Status> {
        let path = format!("/proc/{pid}/status");
        Ok(Status::parse(fs::read_to_string(path)?))
    }

    /// Of a text that was read before.
    pub fn parse(text: impl Into<String>) -> Status {
        Status { text: text.into() }
    }

    /// A field that counts memory, such as `RssAnon`, in bytes.
    ///
    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) if there is none of this name; zombies and kernel threads have none at all.
    pub fn bytes(&self, field: &str) -> io::Result<u64> {
        let mut lines = self.text.lines();
        lines
            .find_map(|line| kib_field(line, field))
            .ok_or_else(|| {
                let message = format!("/proc/<pid>/status has no {field} in kB");
                io::Error::new(io::ErrorKind::InvalidData, message)
            })
    }
}

/// The bytes that a line such as `Rss:    40 kB` of a file in `/proc` gives for a field; `None` if it is another field's.
pub fn kib_field(line: &str, field: &str) -> Option<u64> {
    let value = line.strip_prefix(field)?.strip_prefix(':')?;
    let number: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = Status::parse(
            "Name:\tRssAnon\nVmHWM:\t    2048 kB\nRssAnon:\t     512 kB\nThreads:\t3\n",
        );
        assert_eq!(status.bytes("RssAnon").unwrap(), 512 << 10);
        assert_eq!(status.bytes("VmHWM").unwrap(), 2 << 20);
        for absent in ["Rss", "VmRSS", "Name", "Threads", ""] {
            let error = status.bytes(absent).unwrap_err();
            assert!(error.to_string().contains(absent), "{error}");
        }
        assert_eq!(kib_field("Rss:  99999999999999999 kB", "Rss"), None);
    }

    #[test]
    fn every_process_holds_something() {
        let own = Status::own().unwrap().bytes("RssAnon").unwrap();
        assert!(own > 0);
        let of = Status::of(std::process::id()).unwrap();
        assert!(of.bytes("VmHWM").unwrap() >= own / 2);
        assert!(Status::of(u32::MAX).is_err());
    }
}
