//! The machine, as result files state it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::device::{self, BlockDevice};
use crate::procfs;
use crate::readahead;

/// The machine and the file system of the model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) cpu: String,
    /// Cores that can be used, without their second hardware threads.
    pub(crate) cores: u32,
    /// Processes that wanted a CPU in the minute before the bench began.
    pub(crate) load_average: Option<f64>,
    pub(crate) memory_bytes: u64,
    /// Such as `Linux 6.18.44 x86_64`.
    pub(crate) kernel: String,
    pub(crate) transparent_hugepages: String,
    pub(crate) file_system: String,
    /// The block device's name, or why there is none.
    pub(crate) device: Result<String, String>,
    /// The device's readahead when the bench began.
    pub(crate) readahead_bytes: Option<u64>,
}

impl Host {
    /// Looks at the machine that holds `model`.
    pub(crate) fn of_model(model: &Path) -> Host {
        let uname = rustix::system::uname();
        let device = BlockDevice::of_file(model);
        Host {
            cpu: cpu_name(),
            cores: default_threads(),
            load_average: procfs::load_average(),
            memory_bytes: procfs::total_bytes().unwrap_or(0),
            kernel: format!(
                "{} {} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy(),
                uname.machine().to_string_lossy()
            ),
            transparent_hugepages: fs::read_to_string(
                "/sys/kernel/mm/transparent_hugepage/enabled",
            )
            .ok()
            .and_then(|text| bracketed(&text))
            .unwrap_or_else(|| "unknown".to_string()),
            file_system: device::mount_of(model)
                .map_or_else(|_| "unknown".to_string(), |mount| mount.kind),
            readahead_bytes: device
                .as_ref()
                .ok()
                .and_then(|device| readahead::current_bytes(device).ok()),
            device: device
                .map(|device| device.name)
                .map_err(|error| format!("{error:#}")),
        }
    }
}

fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("model name")?
                .split_once(':')
                .map(|(_, name)| name.trim().to_string())
        })
        .unwrap_or_else(|| "unknown".to_string())
}

/// The chosen word of a sysfs file like `always [madvise] never`.
fn bracketed(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_string())
}

/// One thread for each physical core that this process may use, as llama.cpp chooses.
pub(crate) fn default_threads() -> u32 {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let mut cores = BTreeSet::new();
    for cpu in 0.. {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        match fs::read_to_string(path) {
            Ok(siblings) => cores.insert(siblings),
            Err(_) => break,
        };
    }
    if cores.is_empty() {
        allowed
    } else {
        (cores.len() as u32).min(allowed)
    }
}

/// The time now in UTC as `2026-11-21T09:35:00Z`.
pub(crate) fn now_utc() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    format_utc(seconds)
}

fn format_utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Hinnant's civil_from_days with years that begin in March, valid for all dates after 1970.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(format_utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(format_utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(format_utc(1_795_253_700), "2026-11-21T09:35:00Z");
        assert_eq!(format_utc(4_107_542_399), "2100-02-28T23:59:59Z");
    }

    #[test]
    fn chosen_word() {
        assert_eq!(
            bracketed("always [madvise] never\n").as_deref(),
            Some("madvise")
        );
        assert_eq!(bracketed("none"), None);
    }

    #[test]
    fn this_machine() {
        let host = Host::of_model(&std::env::current_exe().unwrap());
        assert!(host.cores >= 1 && host.memory_bytes > 0);
        assert!(host.kernel.starts_with("Linux "));
    }
}
