//! Enough stack for tokenizers that use `std::regex`.
//!
//! llama.cpp has hand-written splitters for the most frequent pre-tokenizers; the others, gpt-oss's among them, run on
//! libstdc++'s `std::regex`, which recurses once for each character of a match. 20,000 letters in a row overflow the 8 MiB
//! of a main thread, and an overflow ends the process. So a text with a long run of characters between which no
//! pattern splits gets a thread with as much stack as the run needs.

use std::thread;

/// Longest run that any thread's own stack takes: 250 KiB of it.
const RUN_MAX_HERE: usize = 512;
/// Stack of a character in a match. Measured with gcc 14: 512 bytes; a match may span two neighbouring runs.
const BYTES_PER_CHARACTER: usize = 2 << 10;
/// Stack beside that.
const BYTES_BASE: usize = 1 << 20;
/// Longest run that is tried at all: 2 GiB of stack, of which the system provides the pages that are touched.
const RUN_MAX: usize = 1 << 20;

/// Runs `work`, which tokenizes `text`, with enough stack.
///
/// # Errors
///
/// Why there is not enough, in words.
pub(crate) fn with_enough<T: Send>(
    text: &str,
    work: impl FnOnce() -> T + Send,
) -> Result<T, String> {
    let run = longest_run(text);
    if run <= RUN_MAX_HERE {
        return Ok(work());
    }
    if run > RUN_MAX {
        return Err(format!(
            "it has {run} characters in a row without a break, and {RUN_MAX} are the most"
        ));
    }
    let stack_bytes = BYTES_BASE + run * BYTES_PER_CHARACTER;
    let builder = thread::Builder::new()
        .name("tokenizer".to_owned())
        .stack_size(stack_bytes);
    thread::scope(|scope| match builder.spawn_scoped(scope, work) {
        Ok(thread) => thread
            .join()
            .map_err(|_| "the tokenizer's thread panicked".to_owned()),
        Err(error) => Err(format!(
            "no thread with {stack_bytes} bytes of stack can be started: {error}"
        )),
    })
}

/// Most characters in a row that are all white space or all not.
fn longest_run(text: &str) -> usize {
    let mut longest = 0;
    let mut run = 0;
    let mut was_white = false;
    for character in text.chars() {
        let is_white = character.is_whitespace();
        run = if is_white == was_white { run + 1 } else { 1 };
        was_white = is_white;
        longest = longest.max(run);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_at_white_space() {
        assert_eq!(longest_run(""), 0);
        assert_eq!(longest_run("ab c  \t\n def"), 5);
        assert_eq!(longest_run("\u{e9}\u{e9}\u{e9} x"), 3);
    }

    #[test]
    fn only_long_runs_get_a_thread() {
        let here = thread::current().id();
        let thread_of = |text: &str| with_enough(text, || thread::current().id());
        assert_eq!(thread_of(&"word ".repeat(10_000)), Ok(here));
        assert_ne!(thread_of(&"x".repeat(RUN_MAX_HERE + 1)), Ok(here));
        let error = thread_of(&"x".repeat(RUN_MAX + 1)).unwrap_err();
        assert!(error.contains("1048577"), "{error}");
    }
}
