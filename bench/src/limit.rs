//! How a budget is enforced: by a memory group, or where none is permitted by locking all other memory.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::balloon::Balloon;
use crate::cgroup::{Controller, Group};

/// Set in a process that was started again in a scope of its own.
const IN_SCOPE: &str = "FAULTLINE_BENCH_SCOPE";

/// What `--limit-by` may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LimitBy {
    /// A memory group where one can be made, otherwise locked memory.
    Auto,
    /// A memory group.
    Cgroup,
    /// Locked memory.
    Balloon,
}

/// A way to limit memory that works here.
#[derive(Debug)]
pub(crate) enum Limiter {
    Groups(Controller),
    Balloon,
}

impl Limiter {
    /// Finds a way. Starts this program again, in a scope of the user's service manager, where that is what permits a memory
    /// group; call it before anything is written.
    pub(crate) fn detect(by: LimitBy) -> Result<Limiter> {
        if by == LimitBy::Balloon {
            return Ok(Limiter::Balloon);
        }
        let error = match Controller::detect() {
            Ok(controller) => return Ok(Limiter::Groups(controller)),
            Err(error) => error,
        };
        if std::env::var_os(IN_SCOPE).is_none()
            && scope(&["true".into()]).status().is_ok_and(|s| s.success())
        {
            let mut again: Vec<OsString> = vec![std::env::current_exe()?.into()];
            again.extend(std::env::args_os().skip(1));
            // Does not return unless it fails.
            let failure = scope(&again)
                .stdin(Stdio::inherit())
                .stdout(Stdio::inherit())
                .stderr(Stdio::inherit())
                .env(IN_SCOPE, "1")
                .exec();
            return Err(error.context(format!("systemd-run: {failure}")));
        }
        if by == LimitBy::Cgroup {
            return Err(error);
        }
        eprintln!(
            "warning: {error:#}; all memory beyond the budget is locked instead, for the whole machine"
        );
        Ok(Limiter::Balloon)
    }

    /// What is used, for the header.
    pub(crate) fn describe(&self) -> String {
        match self {
            Limiter::Groups(controller) => {
                format!("{}, page cache included, no swap", controller.describe())
            }
            Limiter::Balloon => {
                "locked memory: what the whole machine has left, page cache included, swap as it is"
                    .into()
            }
        }
    }

    /// Sets the limit for the next run.
    pub(crate) fn set(&self, budget_bytes: u64) -> Result<Limit> {
        Ok(match self {
            Limiter::Groups(controller) => Limit::Group(controller.create(budget_bytes)?),
            Limiter::Balloon => Limit::Balloon(Balloon::leave(budget_bytes)?),
        })
    }
}

/// `command` in a scope of its own whose memory groups it may manage.
fn scope(command: &[OsString]) -> Command {
    let mut systemd_run = Command::new("systemd-run");
    systemd_run
        .args([
            "--user",
            "--scope",
            "--quiet",
            "--property=Delegate=yes",
            "--",
        ])
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    systemd_run
}

/// A limit in force. Dropping it ends it.
#[derive(Debug)]
pub(crate) enum Limit {
    Group(Group),
    Balloon(Balloon),
}

impl Limit {
    /// The file into which a process writes `0` to come under the limit; `None` where every process is.
    pub(crate) fn procs_file(&self) -> Option<PathBuf> {
        match self {
            Limit::Group(group) => Some(group.procs_file()),
            Limit::Balloon(_) => None,
        }
    }

    /// The highest charge so far, where it is counted.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        match self {
            Limit::Group(group) => group.peak_bytes(),
            Limit::Balloon(_) => None,
        }
    }

    /// Processes that the kernel killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        match self {
            Limit::Group(group) => group.oom_kills(),
            Limit::Balloon(balloon) => balloon.oom_kills(),
        }
    }
}
