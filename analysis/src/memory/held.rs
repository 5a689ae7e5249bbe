//! What a process holds, by the kernel's own account.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use resident::{Status, kib_field};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Memory of a process. Shared and reserved but untouched memory counts as in the kernel: by resident pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Anonymous: heap, KV cache, copies. Gone only with swap.
    pub anonymous_bytes: u64,
    /// Pages of files, the model's and the program's. The kernel may take them back.
    pub file_bytes: u64,
    /// Of these, the model's.
    pub model_bytes: u64,
    /// Page tables, which are the kernel's.
    pub page_tables_bytes: u64,
}

impl Held {
    /// What this process holds now; `model` has the files of its model.
    ///
    /// # Errors
    ///
    /// [`Error::Process`] if `/proc` cannot be read.
    pub fn now(model: &[PathBuf]) -> Result<Held> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|source| Error::Process {
                path: path.to_owned(),
                source,
            })
        };
        // The model's files under the names that the kernel has for them.
        let names: Vec<PathBuf> = model
            .iter()
            .map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.clone()))
            .collect();
        let held = Status::own().and_then(|status| of_status(&status));
        let held = held.map_err(|source| Error::Process {
            path: "/proc/self/status".to_owned(),
            source,
        })?;
        Ok(Held {
            model_bytes: match names.is_empty() {
                true => 0,
                false => of_maps(&read("/proc/self/smaps")?, &names),
            },
            ..held
        })
    }

    /// All of it that counts as resident.
    pub fn resident_bytes(&self) -> u64 {
        self.anonymous_bytes + self.file_bytes
    }
}

fn of_status(status: &Status) -> io::Result<Held> {
    Ok(Held {
        anonymous_bytes: status.bytes("RssAnon")?,
        file_bytes: status.bytes("RssFile")? + status.bytes("RssShmem")?,
        model_bytes: 0,
        page_tables_bytes: status.bytes("VmPTE")?,
    })
}

/// Resident bytes of the mappings of some files in `/proc/<pid>/smaps`; see proc_pid_smaps(5).
fn of_maps(text: &str, names: &[PathBuf]) -> u64 {
    let mut is_model = false;
    let mut sum = 0;
    for line in text.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if first.contains('-') && !first.ends_with(':') {
            // Address, permissions, offset, device, inode, name; a name may contain blanks.
            let name = line.splitn(6, ' ').nth(5).unwrap_or_default().trim_start();
            is_model = names.iter().any(|known| known.as_path() == Path::new(name));
        } else if is_model {
            sum += kib_field(line, "Rss").unwrap_or(0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_the_model_are_told_from_others() {
        let text = "\
7f00-7f10 r--s 00000000 08:01 42                         /models/a b.gguf
Size:                 64 kB
Rss:                  40 kB
7f10-7f20 r--s 00010000 08:01 42                         /models/a b.gguf
Rss:                   8 kB
7f20-7f30 rw-p 00000000 00:00 0
Rss:                 100 kB
7f30-7f40 r-xp 00000000 08:01 43                         /usr/lib/libc.so.6
Rss:                1000 kB
";
        assert_eq!(
            of_maps(text, &[PathBuf::from("/models/a b.gguf")]),
            48 << 10
        );
        assert_eq!(of_maps(text, &[PathBuf::from("/models/a")]), 0);
    }

    #[test]
    fn status_has_the_kinds_apart() {
        let text = "Name:\tx\nVmPTE:\t      12 kB\nRssAnon:\t    512 kB\nRssFile:\t   1024 kB\nRssShmem:\t  4 kB\n";
        let held = of_status(&Status::parse(text)).unwrap();
        assert_eq!(
            (held.anonymous_bytes, held.file_bytes),
            (512 << 10, 1028 << 10)
        );
        assert_eq!(held.resident_bytes(), 1540 << 10);
        assert_eq!(held.page_tables_bytes, 12 << 10);
        assert!(of_status(&Status::parse("RssAnon: 1 kB\n")).is_err());
    }

    #[test]
    fn this_process_holds_something() {
        let held = Held::now(&[PathBuf::from("/no/such/model")]).unwrap();
        assert!(held.anonymous_bytes > 0 && held.file_bytes > 0);
        assert_eq!(held.model_bytes, 0);
    }
}
