//! What keeps the kernel from being watched, and the command that helps.

use std::fmt;
use std::io;

/// The kernel cannot be watched as asked. The message names what is missing and the command that grants it.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be watched: {reason}")]
pub struct KernelError {
    what: String,
    reason: String,
}

impl KernelError {
    pub(super) fn new(what: impl Into<String>, reason: impl Into<String>) -> KernelError {
        KernelError {
            what: what.into(),
            reason: reason.into(),
        }
    }

    /// A step that failed, as a verb phrase, and the system's answer.
    pub(super) fn system(what: &str, action: &str, error: &io::Error) -> KernelError {
        KernelError::new(what, format!("cannot {action}: {error}"))
    }

    /// perf_event_open(2), or mapping its ring, failed.
    pub(super) fn perf(what: &str, error: &io::Error) -> KernelError {
        let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
            .ok()
            .and_then(|text| text.trim().parse().ok());
        KernelError::new(what, perf_reason(what, error, paranoid))
    }
}

/// What is watched of the whole machine, and not of this process alone.
pub(super) const BLOCK: &str = "block reads";

fn perf_reason(what: &str, error: &io::Error, paranoid: Option<i32>) -> String {
    // A process may watch its own user space at 2, tracepoints of the whole machine at -1.
    let (needed, needed_text) = if what == BLOCK { (-1, "-1") } else { (2, "2") };
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => match paranoid {
            None => "this kernel has no perf events (/proc/sys/kernel/perf_event_paranoid does not exist); \
                     it needs CONFIG_PERF_EVENTS"
                .to_owned(),
            Some(level) if level > needed => format!(
                "not permitted: kernel.perf_event_paranoid is {level}; run as root, or `sudo sysctl \
                 kernel.perf_event_paranoid={needed_text}`, or `sudo setcap cap_perfmon+ep {}`",
                Program
            ),
            Some(level) => format!(
                "perf_event_open is refused ({error}) although kernel.perf_event_paranoid is {level}: a seccomp filter or a \
                 security module forbids it; in a container, `docker run --cap-add PERFMON --security-opt seccomp=unconfined`"
            ),
        },
        Some(libc::ENOSYS) => {
            "perf_event_open does not exist here: a seccomp filter hides it, or the kernel has no CONFIG_PERF_EVENTS; in a \
             container, `docker run --cap-add PERFMON --security-opt seccomp=unconfined`"
                .to_owned()
        }
        Some(libc::ENOENT | libc::EOPNOTSUPP) => {
            format!("the kernel does not know this event ({error}); it needs CONFIG_PERF_EVENTS and CONFIG_TRACEPOINTS")
        }
        Some(libc::ENOMEM) => format!(
            "no memory may be locked for the events' rings; `sudo sysctl kernel.perf_event_mlock_kb=1032`, or a higher `ulimit \
             -l`, or `sudo setcap cap_ipc_lock+ep {}`",
            Program
        ),
        Some(libc::EMFILE) => format!("{error}: each CPU takes two of them; raise the limit with `ulimit -n 4096`"),
        _ => format!("perf_event_open: {error}"),
    }
}

/// tracefs cannot be read at the place where it was expected.
pub(super) fn tracefs(path: &std::path::Path, error: &io::Error) -> KernelError {
    let path = path.display();
    let reason = match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{path} may not be read; run as root, or `sudo setcap cap_perfmon,cap_dac_read_search+ep {}`",
            Program
        ),
        io::ErrorKind::NotFound => format!(
            "{path} does not exist; `sudo mount -t tracefs tracefs /sys/kernel/tracing`, and the kernel needs \
             CONFIG_BLK_DEV_IO_TRACE or another tracer"
        ),
        _ => format!("cannot read {path}: {error}"),
    };
    KernelError::new(BLOCK, reason)
}

/// The running program's path, for a command that a person can copy.
struct Program;

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::env::current_exe() {
            Ok(path) => write!(f, "{}", path.display()),
            Err(_) => f.write_str("faultline"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_refusal_names_what_helps() {
        let os = io::Error::from_raw_os_error;
        let faults = "page faults";
        for (what, errno, paranoid, expected) in [
            (faults, libc::EACCES, Some(3), "perf_event_paranoid=2"),
            (faults, libc::EACCES, Some(3), "cap_perfmon+ep"),
            (BLOCK, libc::EACCES, Some(2), "perf_event_paranoid=-1"),
            (BLOCK, libc::EPERM, Some(-1), "seccomp"),
            (faults, libc::EPERM, Some(2), "seccomp"),
            (faults, libc::EACCES, None, "CONFIG_PERF_EVENTS"),
            (faults, libc::ENOSYS, Some(2), "seccomp"),
            (faults, libc::ENOENT, Some(2), "CONFIG_PERF_EVENTS"),
            (faults, libc::ENOMEM, Some(2), "perf_event_mlock_kb"),
            (faults, libc::EMFILE, Some(2), "ulimit -n"),
        ] {
            let reason = perf_reason(what, &os(errno), paranoid);
            assert!(reason.contains(expected), "{what} {errno}: {reason}");
        }
        let path = Path::new("/sys/kernel/tracing/events/block");
        let unmounted = tracefs(path, &os(libc::ENOENT)).to_string();
        assert!(unmounted.contains("mount -t tracefs"), "{unmounted}");
        let hidden = tracefs(path, &os(libc::EACCES)).to_string();
        assert!(hidden.contains("cap_dac_read_search"), "{hidden}");
        assert!(
            hidden.starts_with("block reads cannot be watched: "),
            "{hidden}"
        );
    }
}
