//! How the process ends.

use std::process::ExitCode;

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

/// Prints the error, if there is one, and maps the end of a verb to an exit code.
pub(crate) fn code(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            note(format_args!("error: {error:#}"));
            ExitCode::from(class(&error))
        }
    }
}

fn class(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<BadInput>().is_some() {
        return BAD_INPUT;
    }
    if error.downcast_ref::<tracer::Error>().is_some() {
        return BAD_INPUT;
    }
    match error.downcast_ref::<llama_rs::Error>() {
        Some(error) if is_bad_input(error) => BAD_INPUT,
        _ => FAILURE,
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
