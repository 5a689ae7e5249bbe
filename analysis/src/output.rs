//! Where answers are written.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::{NamedTempFile, TempPath};

use crate::{Error, Result};

const BUFFER_BYTES: usize = 256 << 10;

/// Where the user wants an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file. A regular file gets its name only when it is complete; a pipe or device is written
    /// as it is.
    File(PathBuf),
}

impl Target {
    /// `-` stands for standard output.
    pub fn from_path(path: &Path) -> Target {
        if path == Path::new("-") {
            Target::Stdout
        } else {
            Target::File(path.to_owned())
        }
    }
}

/// An output that is being written. Dropped before [`Sink::finish`], a regular file leaves nothing.
pub(crate) struct Sink {
    stream: BufWriter<Box<dyn Write + Send>>,
    /// The name in use until the output is complete, and the final one.
    pending: Option<(TempPath, PathBuf)>,
    name: String,
}

impl Sink {
    /// # Errors
    ///
    /// [`Error::OutputIsInput`] if the output is one of `inputs`, [`Error::Output`] if it cannot be
    /// made.
    pub(crate) fn create(target: &Target, inputs: &[&Path]) -> Result<Sink> {
        let Target::File(path) = target else {
            return Ok(Sink::to(
                Box::new(io::stdout()),
                None,
                "standard output".to_owned(),
            ));
        };
        let name = path.display().to_string();
        let failed = |action| {
            move |source| Error::Output {
                path: path.clone(),
                action,
                source,
            }
        };
        let existing = path.metadata().ok();
        if let Some(existing) = &existing {
            for input in inputs.iter().filter_map(|input| input.metadata().ok()) {
                if (input.dev(), input.ino()) == (existing.dev(), existing.ino()) {
                    return Err(Error::OutputIsInput { path: path.clone() });
                }
            }
            if !existing.is_file() {
                let device = File::options().write(true).open(path);
                return Ok(Sink::to(
                    Box::new(device.map_err(failed("write"))?),
                    None,
                    name,
                ));
            }
        }
        // Behind a symbolic link it is the file that is replaced, not the link.
        let path = match existing {
            Some(_) => fs::canonicalize(path).map_err(failed("create"))?,
            None => path.clone(),
        };
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Its error is the system's; that of the file below names the temporary one.
        fs::metadata(folder).map_err(failed("create"))?;
        let pending: NamedTempFile = tempfile::Builder::new()
            .prefix(".faultline-")
            .suffix(".partial")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(failed("create"))?;
        let (file, pending) = pending.into_parts();
        Ok(Sink::to(Box::new(file), Some((pending, path)), name))
    }

    fn to(
        stream: Box<dyn Write + Send>,
        pending: Option<(TempPath, PathBuf)>,
        name: String,
    ) -> Sink {
        Sink {
            stream: BufWriter::with_capacity(BUFFER_BYTES, stream),
            pending,
            name,
        }
    }

    /// The error of a failed write.
    pub(crate) fn explain(&self) -> impl Fn(io::Error) -> Error + use<> {
        let output = self.name.clone();
        move |source| Error::Write {
            output: output.clone(),
            source,
        }
    }

    /// Writes a text, unless it could not be made, and finishes.
    pub(crate) fn write_text(mut self, text: io::Result<String>) -> Result<()> {
        let explain = self.explain();
        let text = text.map_err(&explain)?;
        self.write_all(text.as_bytes()).map_err(&explain)?;
        self.finish()
    }

    /// Writes what is buffered and gives a file its name.
    pub(crate) fn finish(mut self) -> Result<()> {
        let explain = self.explain();
        self.stream.flush().map_err(&explain)?;
        if let Some((pending, path)) = self.pending.take() {
            pending.persist(&path).map_err(|error| Error::Output {
                path,
                action: "rename the finished file to this name",
                source: error.error,
            })?;
        }
        Ok(())
    }
}

/// A value as JSON for people, with the end of its last line.
pub(crate) fn json(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The system's answer inside: the csv crate's own conversion hides its kind.
pub(crate) fn csv_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_only_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.csv");
        let names = || fs::read_dir(folder.path()).unwrap().count();
        let mut sink = Sink::create(&Target::File(path.clone()), &[]).unwrap();
        sink.write_all(b"half").unwrap();
        sink.flush().unwrap();
        assert!(!path.exists());
        drop(sink);
        assert_eq!(names(), 0);

        let mut sink = Sink::create(&Target::File(path.clone()), &[]).unwrap();
        sink.write_all(b"all").unwrap();
        sink.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"all");
        assert_eq!(names(), 1);
    }

    #[test]
    fn a_device_is_written_and_not_replaced() {
        let mut sink = Sink::create(&Target::File("/dev/null".into()), &[]).unwrap();
        sink.write_all(b"gone").unwrap();
        sink.finish().unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }

    #[test]
    fn the_input_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (log, link) = (folder.path().join("log"), folder.path().join("link"));
        fs::write(&log, "log").unwrap();
        std::os::unix::fs::symlink(&log, &link).unwrap();
        for path in [&log, &link] {
            let refused = Sink::create(&Target::File(path.clone()), &[&log]);
            assert!(matches!(refused, Err(Error::OutputIsInput { .. })));
        }
    }
}
