//! Text that is given out as soon as it can no longer be part of a stop string.

use llama_rs::Utf8Stream;

/// Turns the bytes of tokens into text, and ends at the first stop string.
#[derive(Debug)]
pub(crate) struct TextStream {
    characters: Utf8Stream,
    stops: Vec<String>,
    /// The beginning of a stop string, perhaps.
    held: String,
    is_stopped: bool,
    /// Bytes after the beginning of the stop string.
    cut_bytes: usize,
}

impl TextStream {
    /// Empty stop strings never come.
    pub(crate) fn new(stops: Vec<String>) -> TextStream {
        TextStream {
            characters: Utf8Stream::new(),
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            held: String::new(),
            is_stopped: false,
            cut_bytes: 0,
        }
    }

    /// Appends the bytes of a token; gives what is certain now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let text = self.characters.push(bytes);
        self.append(&text)
    }

    /// Ends the text: gives what was held back.
    pub(crate) fn finish(&mut self) -> String {
        let text = self.characters.finish();
        let mut text = self.append(&text);
        if !self.is_stopped {
            text.push_str(&std::mem::take(&mut self.held));
        }
        text
    }

    /// Bytes at the end of what was appended that were not given out: held back, or cut off by a stop string. Bytes that are no
    /// text count as the characters that stand for them.
    pub(crate) fn held_bytes(&self) -> usize {
        self.characters.held_bytes() + self.held.len() + self.cut_bytes
    }

    /// Whether a stop string came. Nothing comes after it.
    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    fn append(&mut self, text: &str) -> String {
        if self.is_stopped {
            return String::new();
        }
        if self.stops.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        if let Some(at) = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop))
            .min()
        {
            self.is_stopped = true;
            self.cut_bytes = self.held.len() - at;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let beginning = self
            .stops
            .iter()
            .map(|stop| beginning_at_end(&self.held, stop))
            .max();
        let certain = self.held.len() - beginning.unwrap_or(0);
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Bytes at the end of `text` that a stop string could begin with.
fn beginning_at_end(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .skip(1)
        .filter(|at| text.ends_with(&stop[..*at]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut stream = TextStream::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut out: Vec<String> = pieces
            .iter()
            .map(|piece| stream.push(piece.as_bytes()))
            .collect();
        out.push(stream.finish());
        (out, stream.is_stopped())
    }

    #[test]
    fn text_is_held_back_only_while_it_may_be_a_stop_string() {
        let (out, stopped) = stream(&["END"], &["a E", "N", "x E", "ND b"]);
        assert_eq!(out, ["a ", "", "ENx ", "", ""]);
        assert!(stopped);
        let (out, stopped) = stream(&["END"], &["a E"]);
        assert_eq!(out, ["a ", "E"]);
        assert!(!stopped);
    }

    #[test]
    fn the_first_stop_string_in_the_text_counts() {
        let (out, _) = stream(&["later", "now"], &["it is now or later"]);
        assert_eq!(out.concat(), "it is ");
        let (out, stopped) = stream(&["", "\n\n"], &["a\n", "\nb"]);
        assert_eq!((out.concat(), stopped), ("a".to_owned(), true));
    }

    #[test]
    fn characters_are_whole() {
        let mut stream = TextStream::new(vec!["\u{e9}!".to_owned()]);
        assert_eq!(stream.push(b"x\xc3"), "x");
        assert_eq!(stream.push(b"\xa9"), "");
        assert_eq!(stream.push(b"?"), "\u{e9}?");
        assert_eq!(stream.push(b"\xc3"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    proptest! {
        /// However the text is cut, what comes is the text up to the first stop string.
        #[test]
        fn any_cut_gives_the_same_text(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{0,4}", 0..3),
            cuts in prop::collection::vec(0usize..40, 0..6),
        ) {
            let end = stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop)).min();
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut stream = TextStream::new(stops.clone());
            let mut out = String::new();
            for cut in cuts.windows(2) {
                out += &stream.push(&bytes[cut[0]..cut[1]]);
            }
            out += &stream.finish();
            // A stop string may only be recognised late, never missed or cut into.
            let expected = &text[..end.unwrap_or(text.len())];
            let first_seen = stops.iter().any(|stop| !stop.is_empty() && out.contains(stop.as_str()));
            prop_assert!(!first_seen);
            prop_assert_eq!(stream.is_stopped(), end.is_some());
            prop_assert!(out.starts_with(expected), "{:?} {:?}", out, expected);
        }
    }
}
