//! What rows with `--replay` start from: a run of the same row that is not measured.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::cli::{Plan, RunArgs};
use crate::routing::Replay;
use crate::spec::{Routing, Row};

/// Folders with what was recorded, by row.
#[derive(Debug)]
pub(crate) struct Recordings {
    folder: TempDir,
    /// The part of the trace that recorded runs use, if another one.
    replay: Option<Replay>,
}

impl Recordings {
    /// For the rows of a measurement; `None` if none of them replays.
    pub(crate) fn new(
        args: &RunArgs,
        plan: &Plan,
        rows: &[Row],
        files: &gguf::ModelFiles,
    ) -> Result<Option<Recordings>> {
        if !rows.iter().any(|row| row.replay) {
            return Ok(None);
        }
        let replay = match (&args.routing, args.pager.replay_skip) {
            (Some(given), Some(skip)) => {
                Some(Replay::new(given, skip as usize, plan.n_tokens(), files)?)
            }
            _ => None,
        };
        let folder = tempfile::tempdir().context("a folder for what is replayed")?;
        Ok(Some(Recordings { folder, replay }))
    }

    /// The routing of recorded runs, if another one than that of the others.
    pub(crate) fn routing(&self) -> Option<Routing> {
        self.replay.as_ref().map(|replay| replay.routing.clone())
    }

    /// Where the recorded run of a row keeps what it read.
    pub(crate) fn folder_of(&self, row: &Row) -> PathBuf {
        self.folder.path().join(row.label().replace('/', "-"))
    }

    /// A folder with the same, for a run: it keeps what it read itself there.
    pub(crate) fn copy_of(&self, row: &Row) -> Result<TempDir> {
        let copy = TempDir::new_in(self.folder.path()).context("a folder for what is replayed")?;
        copy_files(&self.folder_of(row), copy.path())
            .with_context(|| format!("{}: what was recorded", row.label()))?;
        Ok(copy)
    }
}

fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
