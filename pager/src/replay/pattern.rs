//! What is kept of a run, as bytes.

use super::file::Identity;

/// Begins every file.
const MAGIC: [u8; 16] = *b"faultline replay";
/// Changes with the meaning of what follows.
const VERSION: u32 = 1;
/// Magic, version, checksum.
const HEAD_BYTES: usize = 24;

/// A step of a run that read slices for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Its number since the context was made.
    pub(crate) number: u32,
    /// Tokens of the ubatch.
    pub(crate) n_tokens: u32,
    /// Slices that no step before it has read.
    pub(crate) n_slices: u32,
}

/// What a run read, in the order of first use, and what it had in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// Dense tensors: their index among these.
    pub(crate) dense: Vec<u32>,
    /// The steps in which slices were used first.
    pub(crate) steps: Vec<Step>,
    /// The slices of these steps, one step after the other.
    pub(crate) slices: Vec<u32>,
    /// Slices that were in a slot at the end, those of the highest value first.
    pub(crate) hot: Vec<u32>,
}

/// Why a file is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it is no file of this kind")]
    Foreign,
    #[error("its version is {0}, and {VERSION} is known")]
    Version(u32),
    #[error("it is broken: {0}")]
    Broken(&'static str),
    #[error("the model is another one, or was written to since")]
    OtherModel,
}

impl Pattern {
    /// Slices that the first token needed: those of the ubatches of a prompt, or of the first token if that was all of it.
    pub(crate) fn n_first(&self) -> usize {
        let is_prompt = |step: &&Step| step.n_tokens > 1;
        let n_prompt = self.steps.iter().take_while(is_prompt).count().max(1);
        let steps = self.steps.iter().take(n_prompt);
        steps.map(|step| step.n_slices as usize).sum()
    }

    /// The order in which slices are read at a start: what the first token needed, then what was there in the end, then the
    /// others in their order. Each once.
    pub(crate) fn program(&self) -> Vec<u32> {
        let (first, later) = self.slices.split_at(self.n_first());
        let mut seen = std::collections::HashSet::new();
        let all = first.iter().chain(&self.hot).chain(later);
        all.copied().filter(|slice| seen.insert(*slice)).collect()
    }

    /// The bytes of a file.
    pub(crate) fn encode(&self, identity: &Identity) -> Vec<u8> {
        let mut body = Vec::new();
        let mut list = |numbers: &mut dyn ExactSizeIterator<Item = u32>| {
            body.extend((numbers.len() as u32).to_le_bytes());
            numbers.for_each(|number| body.extend(number.to_le_bytes()));
        };
        list(&mut identity.words().into_iter());
        list(&mut self.dense.iter().copied());
        let steps = self.steps.iter();
        let words: Vec<u32> = steps
            .flat_map(|step| [step.number, step.n_tokens, step.n_slices])
            .collect();
        list(&mut words.into_iter());
        list(&mut self.slices.iter().copied());
        list(&mut self.hot.iter().copied());
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(crc32fast::hash(&body).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    /// What [`encode`](Self::encode) wrote for this model, which has so many dense tensors and slices.
    pub(crate) fn decode(bytes: &[u8], identity: &Identity) -> Result<Pattern, Unusable> {
        let Some((head, mut body)) = bytes.split_at_checked(HEAD_BYTES) else {
            return Err(match bytes.starts_with(&MAGIC) {
                true => Unusable::Broken("it is cut short"),
                false => Unusable::Foreign,
            });
        };
        let (magic, numbers) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(Unusable::Foreign);
        }
        let mut numbers = words(numbers);
        match numbers.next() {
            Some(VERSION) => {}
            version => return Err(Unusable::Version(version.unwrap_or_default())),
        }
        if numbers.next() != Some(crc32fast::hash(body)) {
            return Err(Unusable::Broken("its checksum is not that of its content"));
        }
        let mut list = || -> Result<Vec<u32>, Unusable> {
            let cut_short = Unusable::Broken("a list is cut short");
            let Some((count, rest)) = body.split_at_checked(4) else {
                return Err(cut_short);
            };
            let count = words(count).next().unwrap_or(0) as usize;
            let list = count.checked_mul(4).and_then(|n| rest.split_at_checked(n));
            let (list, rest) = list.ok_or(cut_short)?;
            body = rest;
            Ok(words(list).collect())
        };
        if list()? != identity.words() {
            return Err(Unusable::OtherModel);
        }
        let dense = list()?;
        let steps = list()?;
        let (slices, hot) = (list()?, list()?);
        let steps = steps.chunks_exact(3).map(|step| Step {
            number: step[0],
            n_tokens: step[1],
            n_slices: step[2],
        });
        let steps: Vec<Step> = steps.collect();
        let n_in_steps: u64 = steps.iter().map(|step| u64::from(step.n_slices)).sum();
        if !body.is_empty() || n_in_steps != slices.len() as u64 {
            return Err(Unusable::Broken("its lists do not fit together"));
        }
        let is_known = |list: &[u32], count: u32| list.iter().all(|&number| number < count);
        let are_known = is_known(&dense, identity.n_dense)
            && is_known(&slices, identity.n_slices)
            && is_known(&hot, identity.n_slices);
        if !are_known {
            return Err(Unusable::Broken("it names what the model does not have"));
        }
        Ok(Pattern {
            dense,
            steps,
            slices,
            hot,
        })
    }
}

/// Whole words of four bytes, little-endian.
fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> Identity {
        Identity {
            parts: vec![(1 << 40, -5, 7), (3, 9, 0)],
            n_dense: 9,
            n_slices: 100,
        }
    }

    fn pattern() -> Pattern {
        let step = |number, n_tokens, n_slices| Step {
            number,
            n_tokens,
            n_slices,
        };
        Pattern {
            dense: vec![3, 1, 8],
            steps: vec![step(0, 16, 3), step(1, 5, 1), step(7, 1, 1)],
            slices: vec![10, 11, 12, 99, 5],
            hot: vec![12, 5, 40],
        }
    }

    #[test]
    fn the_prompt_comes_first_and_then_what_was_hot() {
        assert_eq!(pattern().n_first(), 4);
        assert_eq!(pattern().program(), [10, 11, 12, 99, 5, 40]);
        let mut of_one_token = pattern();
        of_one_token.steps[0].n_tokens = 1;
        assert_eq!(of_one_token.n_first(), 3);
        assert_eq!(of_one_token.program(), [10, 11, 12, 5, 40, 99]);
        assert_eq!(Pattern::default().program(), [0; 0]);
    }

    #[test]
    fn others_are_told_apart() {
        let bytes = pattern().encode(&identity());
        assert_eq!(Pattern::decode(&bytes, &identity()), Ok(pattern()));
        let mut written_to = identity();
        written_to.parts[1].1 += 1;
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = bytes.clone();
            change(&mut bytes);
            Pattern::decode(&bytes, &identity())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            Pattern::decode(&bytes, &written_to),
            Err(Unusable::OtherModel)
        );
        assert_eq!(with(&|b| b[0] = b'F'), Unusable::Foreign.to_string());
        assert!(with(&|b| b[16] = 2).contains("version is 2"));
        assert!(with(&|b| *b = b"GGUF".to_vec()).contains("no file of this kind"));
        assert!(with(&|b| b.truncate(20)).contains("cut short"));
        assert!(with(&|b| b[60] ^= 1).contains("checksum"));
        let mut unknown = pattern();
        unknown.hot.push(100);
        let bytes = unknown.encode(&identity());
        let error = Pattern::decode(&bytes, &identity()).unwrap_err();
        assert!(error.to_string().contains("does not have"), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            dense in prop::collection::vec(0..9u32, 0..9),
            counts in prop::collection::vec((1..600u32, 0..5u32), 0..9),
            hot in prop::collection::vec(0..100u32, 0..50),
        ) {
            let steps: Vec<Step> = (0..).zip(counts).map(|(number, (n_tokens, n_slices))| Step { number, n_tokens, n_slices }).collect();
            let n_slices: u32 = steps.iter().map(|step| step.n_slices).sum();
            let pattern = Pattern { dense, steps, slices: (0..n_slices).collect(), hot };
            let bytes = pattern.encode(&identity());
            prop_assert_eq!(Pattern::decode(&bytes, &identity()), Ok(pattern));
        }

        /// Of a file that was cut or changed anywhere nothing is used.
        #[test]
        fn what_was_changed_is_refused(at in 0..180usize, bit in 0..8u32, is_cut in any::<bool>()) {
            let mut bytes = pattern().encode(&identity());
            let at = at % bytes.len();
            if is_cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            prop_assert!(Pattern::decode(&bytes, &identity()).is_err());
        }

        /// With a right checksum over anything: no panic.
        #[test]
        fn any_content_is_read_or_refused(body in prop::collection::vec(0..12u8, 0..120)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(VERSION.to_le_bytes());
            bytes.extend(crc32fast::hash(&body).to_le_bytes());
            bytes.extend(body);
            if let Ok(pattern) = Pattern::decode(&bytes, &identity()) { pattern.program(); }
        }
    }
}
