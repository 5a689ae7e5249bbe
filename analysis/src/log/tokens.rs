//! Which token an access belongs to, from the marks of a log.

use tracer::{Op, Record};

/// Most tokens of one step that are kept; more than any batch has.
const STEP_TOKENS_MAX: usize = 1 << 20;

/// The first token of the ubatch that an access belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Token {
    /// Number of the token in the recording: all tokens given to decode calls, those of the prompt
    /// included, counted from 0 in their order. Where the beginning of the log is lost, counting
    /// starts at the position of the first token that is left.
    pub index: u64,
    /// Tokens in the ubatch; 1 while generating.
    pub n_tokens: u32,
    /// Its id in the vocabulary, if the log has it.
    pub id: Option<i32>,
    /// Its position in its sequence, if the log has it.
    pub position: Option<i32>,
}

/// Follows the marks.
#[derive(Debug)]
pub(crate) struct Tracker {
    step: Option<Step>,
    /// Number of the first token of the next step.
    next_index: Option<u64>,
}

#[derive(Debug)]
struct Step {
    number: u32,
    first_index: Option<u64>,
    n_tokens: u32,
    /// Id and position.
    tokens: Vec<(i32, i32)>,
    ubatch: Option<Ubatch>,
}

#[derive(Debug, Clone, Copy)]
struct Ubatch {
    number: u16,
    first_token: u32,
    n_tokens: u32,
}

impl Tracker {
    /// `is_beginning`: the next record is the first of the recording.
    pub(crate) fn new(is_beginning: bool) -> Tracker {
        Tracker {
            step: None,
            next_index: is_beginning.then_some(0),
        }
    }

    /// Takes note of a mark.
    pub(crate) fn mark(&mut self, record: &Record) {
        if record.op == Op::STEP_BEGIN {
            let (first_index, n_tokens) = (self.next_index, record.tensor);
            self.next_index = first_index.map(|index| index.saturating_add(u64::from(n_tokens)));
            let mut tokens = self.step.take().map_or(Vec::new(), |step| step.tokens);
            tokens.clear();
            self.step = Some(Step {
                number: record.step,
                first_index,
                n_tokens,
                tokens,
                ubatch: None,
            });
            return;
        }
        let Some(step) = self.step.as_mut().filter(|step| step.number == record.step) else {
            return;
        };
        if record.op == Op::STEP_TOKEN {
            let position = record.slice.cast_signed();
            if record.duration_ns as usize == step.tokens.len()
                && step.tokens.len() < STEP_TOKENS_MAX
            {
                step.tokens.push((record.tensor.cast_signed(), position));
            }
            if record.duration_ns == 0 && step.first_index.is_none() {
                let index = u64::try_from(position).unwrap_or(0);
                step.first_index = Some(index);
                self.next_index = Some(index + u64::from(step.n_tokens));
            }
        } else if record.op == Op::UBATCH_BEGIN {
            step.ubatch = Some(Ubatch {
                number: record.ubatch,
                first_token: record.tensor,
                n_tokens: record.slice,
            });
        }
    }

    /// The first token of a step that has begun.
    pub(crate) fn step(&self, number: u32) -> Option<Token> {
        let step = self.step.as_ref().filter(|step| step.number == number)?;
        step.token(0, step.n_tokens)
    }

    /// The token of an access: none if the marks before it are lost.
    pub(crate) fn access(&self, record: &Record) -> Option<Token> {
        let step = self
            .step
            .as_ref()
            .filter(|step| step.number == record.step)?;
        let ubatch = step
            .ubatch
            .filter(|ubatch| ubatch.number == record.ubatch)?;
        step.token(ubatch.first_token, ubatch.n_tokens)
    }
}

impl Step {
    fn token(&self, first: u32, n_tokens: u32) -> Option<Token> {
        let known = self.tokens.get(first as usize);
        Some(Token {
            index: self.first_index?.saturating_add(u64::from(first)),
            n_tokens,
            id: known.map(|known| known.0),
            position: known.map(|known| known.1),
        })
    }
}

#[cfg(test)]
mod tests {
    use tracer::Flags;

    use super::*;

    /// The marks of a step whose first token has this position.
    fn step(number: u32, position: i32, ubatches: &[u32]) -> Vec<Record> {
        let flags = Flags::default();
        let n_tokens: u32 = ubatches.iter().sum();
        let mut records = vec![Record::step_begin(0, number, n_tokens, 1, flags)];
        records.extend((0..n_tokens).map(|index| {
            let (id, position) = (1000 + index as i32, position + index as i32);
            Record::step_token(0, number, index, id, position, 0, flags)
        }));
        let mut first = 0;
        for (ubatch, &n) in (0..).zip(ubatches) {
            records.push(Record::ubatch_begin(0, number, ubatch, first, n, flags));
            first += n;
        }
        records
    }

    fn access(step: u32, ubatch: u16) -> Record {
        Record {
            step,
            ubatch,
            op: Op::MUL_MAT,
            ..Record::default()
        }
    }

    fn follow(tracker: &mut Tracker, records: &[Record]) {
        records.iter().for_each(|record| tracker.mark(record));
    }

    #[test]
    fn tokens_are_counted_over_steps_and_ubatches() {
        let mut tracker = Tracker::new(true);
        follow(&mut tracker, &step(0, 0, &[4, 3]));
        let token = tracker.access(&access(0, 1)).unwrap();
        assert_eq!((token.index, token.n_tokens), (4, 3));
        assert_eq!((token.id, token.position), (Some(1004), Some(4)));
        // A second conversation begins at position 0; the count goes on.
        follow(&mut tracker, &step(1, 0, &[1]));
        let token = tracker.access(&access(1, 0)).unwrap();
        assert_eq!((token.index, token.position), (7, Some(0)));
        assert_eq!(tracker.access(&access(0, 1)), None, "of the step before");
        assert_eq!(tracker.access(&access(1, 1)), None, "of another ubatch");
    }

    #[test]
    fn without_its_beginning_a_log_counts_from_a_position() {
        let mut tracker = Tracker::new(false);
        let all = step(5, 20, &[1]);
        // The mark of the step is lost, then what follows says nothing.
        follow(&mut tracker, &all[1..]);
        assert_eq!(tracker.access(&access(5, 0)), None);
        follow(&mut tracker, &step(6, 21, &[1]));
        assert_eq!(tracker.access(&access(6, 0)).unwrap().index, 21);
        follow(&mut tracker, &step(7, 22, &[1]));
        assert_eq!(tracker.access(&access(7, 0)).unwrap().index, 22);
    }

    #[test]
    fn numbers_of_a_damaged_log_do_no_harm() {
        let flags = Flags::default();
        let mut tracker = Tracker::new(true);
        follow(
            &mut tracker,
            &[
                Record::step_begin(0, 0, u32::MAX, 0, flags),
                Record::step_token(0, 0, u32::MAX, 0, -1, 0, flags),
                Record::ubatch_begin(0, 0, 0, u32::MAX, u32::MAX, flags),
            ],
        );
        let token = tracker.access(&access(0, 0)).unwrap();
        assert_eq!((token.index, token.id), (u64::from(u32::MAX), None));
    }
}
