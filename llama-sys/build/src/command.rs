//! Programs that are run, with errors that hold the whole command line.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{self, Stdio};

use crate::error::{Error, Result};

/// A program with its arguments.
#[derive(Debug)]
pub(crate) struct Command(process::Command);

impl Command {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Command {
        let mut command = process::Command::new(program);
        command.stdin(Stdio::null());
        Command(command)
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Command {
        self.0.arg(arg);
        self
    }

    pub(crate) fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Command {
        self.0.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Command {
        self.0.env(name, value);
        self
    }

    pub(crate) fn env_remove(mut self, name: &str) -> Command {
        self.0.env_remove(name);
        self
    }

    pub(crate) fn current_dir(mut self, dir: &Path) -> Command {
        self.0.current_dir(dir);
        self
    }

    /// Runs it and returns its standard output.
    pub(crate) fn capture(mut self) -> Result<String> {
        match self.0.output() {
            Ok(output) if output.status.success() => {
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            }
            Ok(output) => {
                let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
                text.push_str(&String::from_utf8_lossy(&output.stderr));
                Err(self.failed(Some(output.status), None, text))
            }
            Err(error) => Err(self.failed(None, Some(error), String::new())),
        }
    }

    /// Runs it; with `verbose` its output goes to standard error as it comes, else it is kept for the error.
    pub(crate) fn run(mut self, verbose: bool) -> Result<()> {
        if !verbose {
            return self.capture().map(drop);
        }
        match self
            .0
            .stdout(std::io::stderr())
            .stderr(Stdio::inherit())
            .status()
        {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(self.failed(Some(status), None, String::new())),
            Err(error) => Err(self.failed(None, Some(error), String::new())),
        }
    }

    fn failed(
        &self,
        status: Option<process::ExitStatus>,
        start: Option<std::io::Error>,
        output: String,
    ) -> Error {
        Error::Command {
            command: self.line(),
            status,
            start,
            output,
        }
    }

    /// The command line as one could type it.
    fn line(&self) -> String {
        let words = std::iter::once(self.0.get_program()).chain(self.0.get_args());
        let quoted: Vec<String> = words
            .map(|word| {
                let word = word.to_string_lossy();
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:+,@%".contains(c);
                if !word.is_empty() && word.chars().all(plain) {
                    word.into_owned()
                } else {
                    format!("'{}'", word.replace('\'', r"'\''"))
                }
            })
            .collect();
        quoted.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_command_status_and_output() {
        let message = Command::new("sh")
            .args(["-c", "echo out; echo err >&2; exit 3"])
            .capture()
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("sh -c 'echo out; echo err >&2; exit 3'\n"),
            "{message}"
        );
        assert!(
            message.contains("exit status: 3") && message.contains("out\nerr"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let message = Command::new("no-such-program")
            .arg("x")
            .capture()
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("no-such-program x\ncannot be started"),
            "{message}"
        );
    }

    #[test]
    fn standard_output_is_returned() {
        assert_eq!(
            Command::new("echo").arg("hello").capture().unwrap(),
            "hello\n"
        );
    }
}
