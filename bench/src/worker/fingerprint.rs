//! A digest of everything that was computed, so that rows can be checked against each other before their times are.

use sha2::{Digest as _, Sha256};

use crate::protocol::Fingerprint;

/// SHA-256 over the token ids and over the logits' bytes, in the order of the steps.
#[derive(Default)]
pub(super) struct Digests {
    tokens: Sha256,
    logits: Sha256,
    after: Vec<String>,
}

impl Digests {
    /// Adds the logits of one step, `[n_vocab]`, and the token chosen from them.
    pub(super) fn add(&mut self, token: i32, logits: &[f32]) {
        self.tokens.update(token.to_le_bytes());
        // SAFETY: the slice is a valid range of 4 * len bytes without padding, every bit pattern is a valid byte, and
        // the view ends before the slice does.
        let bytes = unsafe {
            std::slice::from_raw_parts(logits.as_ptr().cast::<u8>(), size_of_val(logits))
        };
        self.logits.update(bytes);
        self.after.push(hex(self.logits.clone()));
    }

    pub(super) fn finish(self) -> Fingerprint {
        Fingerprint {
            tokens: hex(self.tokens),
            logits: hex(self.logits),
            after: self.after,
        }
    }
}

/// The first 16 digits.
fn hex(digest: Sha256) -> String {
    digest.finalize()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(steps: &[(i32, &[f32])]) -> Fingerprint {
        let mut digests = Digests::default();
        for (token, logits) in steps {
            digests.add(*token, logits);
        }
        digests.finish()
    }

    #[test]
    fn every_bit_counts() {
        let base = of(&[(1, &[1.0, 2.0]), (2, &[0.0, 4.0])]);
        assert_eq!(base, of(&[(1, &[1.0, 2.0]), (2, &[0.0, 4.0])]));
        assert_eq!(base.tokens.len(), 16);
        let longer = of(&[(1, &[1.0, 2.0]), (2, &[0.0, 4.0]), (3, &[1.0])]);
        assert_eq!(longer.after[..2], base.after[..]);
        assert_eq!(base.after[1], base.logits);
        assert_eq!(base.difference(&longer), None);
        let other = of(&[(1, &[1.0, 2.0]), (3, &[0.0, 5.0])]);
        assert_eq!(base.difference(&other), Some("tokens"));
        assert_eq!(other.difference(&longer), Some("logits"));
        assert_eq!(of(&[]).difference(&longer), None);
        let other_sign_of_zero = of(&[(1, &[1.0, 2.0]), (2, &[-0.0, 4.0])]);
        assert_eq!(other_sign_of_zero.tokens, base.tokens);
        assert_ne!(other_sign_of_zero.logits, base.logits);
        assert_ne!(
            of(&[(2, &[1.0, 2.0]), (1, &[0.0, 4.0])]).tokens,
            base.tokens
        );
    }
}
