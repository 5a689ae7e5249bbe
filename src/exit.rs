//! How the process ends.

use std::process::ExitCode;

use analysis::routing::RoutingError;
use analysis::simulate::SimulateError;
use pager::PagerError;

use crate::output::note;

/// How a verb ended when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All was done, or the reader of standard output went away.
    Done,
    /// Ctrl-C.
    Interrupted,
}

/// An input of the user that cannot be used, found by the command line itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadInput(pub(crate) String);

pub(crate) const FAILURE: u8 = 1;
pub(crate) const BAD_INPUT: u8 = 2;
const INTERRUPTED: u8 = 130;

/// The end of a verb that writes an answer. That its reader went away is no error.
pub(crate) fn answered(result: analysis::Result<()>) -> anyhow::Result<Outcome> {
    match result {
        Err(error) if !error.is_broken_pipe() => Err(error.into()),
        _ => Ok(Outcome::Done),
    }
}

/// Prints the error, if there is one, and maps the end of a verb to an exit code.
pub(crate) fn code(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            note(format_args!("error: {}", message(&error)));
            ExitCode::from(class(&error))
        }
    }
}

/// The error and its causes. Many errors end with their cause's words; those are said once.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

fn class(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<BadInput>().is_some() {
        return BAD_INPUT;
    }
    if error.downcast_ref::<tracer::Error>().is_some()
        || error.downcast_ref::<RoutingError>().is_some()
        || error.downcast_ref::<SimulateError>().is_some()
        || error.downcast_ref::<tracer::KernelError>().is_some()
    {
        return BAD_INPUT;
    }
    if let Some(error) = error.downcast_ref::<analysis::Error>() {
        return if error.is_bad_input() {
            BAD_INPUT
        } else {
            FAILURE
        };
    }
    let is_bad = match error.downcast_ref::<PagerError>() {
        Some(error) => is_bad_for_pager(error),
        None => error.downcast_ref().is_some_and(is_bad_input),
    };
    if is_bad { BAD_INPUT } else { FAILURE }
}

/// Whether another budget or another model would have helped.
fn is_bad_for_pager(error: &PagerError) -> bool {
    match error {
        PagerError::Llama(error) => is_bad_input(error),
        PagerError::Engine(_) | PagerError::Read(_) | PagerError::System { .. } => false,
        _ => true,
    }
}

/// Whether another input would have helped, rather than another machine or another day.
fn is_bad_input(error: &llama_rs::Error) -> bool {
    use llama_rs::Error;
    matches!(
        error,
        Error::Gguf(_)
            | Error::Io { .. }
            | Error::UnsupportedModel { .. }
            | Error::InvalidParameter { .. }
            | Error::Load { .. }
            | Error::Adapter { .. }
            | Error::ModelChanged { .. }
            | Error::NoTokenizer(_)
            | Error::Tokenize { .. }
            | Error::TokenOutOfRange { .. }
            | Error::ChatTemplate(_)
            | Error::KvCacheFull { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let cause = std::io::Error::other("no such file");
        let open = tracer::Error::Io {
            path: "a".into(),
            action: "open",
            source: cause,
        };
        let error = anyhow::Error::new(open).context("the log");
        assert_eq!(message(&error), "the log: a: cannot open: no such file");
    }

    #[test]
    fn classes() {
        let bad = anyhow::Error::new(BadInput("the prompt is empty".to_owned()));
        assert_eq!(class(&bad), BAD_INPUT);
        assert_eq!(class(&bad.context("more words")), BAD_INPUT);
        let changed = llama_rs::Error::NoTokenizer("none".to_owned());
        assert_eq!(
            class(&anyhow::Error::new(changed).context("m.gguf")),
            BAD_INPUT
        );
        assert_eq!(class(&llama_rs::Error::Aborted.into()), FAILURE);
        assert_eq!(class(&anyhow::anyhow!("other")), FAILURE);
    }
}
