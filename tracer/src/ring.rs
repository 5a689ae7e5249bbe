//! How a record is published, and how a reader knows that what it read was not overwritten.
//!
//! There is one writer. Record `n` goes to slot `n % n_slots`, where `n_slots` is one more than the
//! capacity: the slot that is being written never holds one of the `capacity` newest records, so a
//! process that is killed in the middle of a store has spoilt none of them.
//!
//! The order is that of a seqlock whose sequence is the head. The writer stores `head = n`, then the
//! four words of record `n`, then `head = n + 1`. A reader loads the head, the words, and the head
//! again; if the second head is less than `n + n_slots`, the words are those of record `n`.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Room for one record. The words are little-endian, as in the file.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Slot([AtomicU64; 4]);

/// Writes record number `sequence` into its slot and makes it visible. Only the one writer calls
/// this, with `head` equal to `sequence`.
#[inline]
pub(crate) fn publish(slot: &Slot, head: &AtomicU64, sequence: u64, words: [u64; 4]) {
    // Pairs with the acquire fence in `overtaken`: a reader that sees a word of this record sees at
    // least `head == sequence`. On x86-64 the fence is no instruction.
    fence(Ordering::Release);
    for (target, word) in slot.0.iter().zip(words) {
        target.store(word.to_le(), Ordering::Relaxed);
    }
    // Pairs with the reader's first load of the head: who sees this number sees the words.
    head.store((sequence + 1).to_le(), Ordering::Release);
}

/// Number of the oldest record that a log with this head still holds.
pub(crate) fn oldest(head: u64, capacity: u64) -> u64 {
    head.saturating_sub(capacity)
}

#[cfg(any(test, loom))]
mod model {
    use super::*;

    impl Slot {
        pub(crate) fn new() -> Slot {
            Slot(std::array::from_fn(|_| AtomicU64::new(0)))
        }

        /// The words, or `None` if record `sequence` is not there yet or not there any more. The
        /// reader of files does the same with `pread`.
        pub(crate) fn read(
            &self,
            head: &AtomicU64,
            sequence: u64,
            capacity: u64,
        ) -> Option<[u64; 4]> {
            if u64::from_le(head.load(Ordering::Acquire)) <= sequence {
                return None;
            }
            let words =
                std::array::from_fn(|index| u64::from_le(self.0[index].load(Ordering::Relaxed)));
            fence(Ordering::Acquire);
            let head = u64::from_le(head.load(Ordering::Relaxed));
            (sequence >= oldest(head, capacity)).then_some(words)
        }
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test -p tracer --lib --release ring`
#[cfg(all(test, loom))]
mod every_interleaving {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Capacity 1, so two slots: the third record overwrites the first while it may be read.
    #[test]
    fn a_reader_sees_whole_records_or_none() {
        const CAPACITY: u64 = 1;
        const N_RECORDS: u64 = 3;
        loom::model(|| {
            let ring = Arc::new((AtomicU64::new(0), [Slot::new(), Slot::new()]));
            let writer = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || {
                    let (head, slots) = &*ring;
                    for sequence in 0..N_RECORDS {
                        let slot = &slots[(sequence % (CAPACITY + 1)) as usize];
                        publish(slot, head, sequence, [sequence + 10; 4]);
                    }
                })
            };
            let (head, slots) = &*ring;
            for sequence in 0..2 {
                let slot = &slots[(sequence % (CAPACITY + 1)) as usize];
                if let Some(words) = slot.read(head, sequence, CAPACITY) {
                    assert_eq!(words, [sequence + 10; 4]);
                }
            }
            writer.join().unwrap();
        });
    }

    /// What a kill leaves is what another thread may see: every record before the head is whole.
    #[test]
    fn records_before_the_head_are_whole() {
        loom::model(|| {
            let ring = Arc::new((AtomicU64::new(0), [Slot::new(), Slot::new()]));
            let writer = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || {
                    let (head, slots) = &*ring;
                    publish(&slots[0], head, 0, [10; 4]);
                    publish(&slots[1], head, 1, [11; 4]);
                })
            };
            let (head, slots) = &*ring;
            let seen = head.load(Ordering::Acquire);
            for sequence in 0..seen {
                let words = slots[sequence as usize].read(head, sequence, 2);
                assert_eq!(words, Some([sequence + 10; 4]));
            }
            writer.join().unwrap();
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Two real threads; Miri runs it too.
    #[test]
    fn a_reader_in_another_thread_never_sees_half_a_record() {
        const CAPACITY: u64 = 2;
        let n_records: u64 = if cfg!(miri) { 100 } else { 200_000 };
        let slots: Vec<Slot> = (0..=CAPACITY).map(|_| Slot::new()).collect();
        let head = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for sequence in 0..n_records {
                    let slot = &slots[(sequence % (CAPACITY + 1)) as usize];
                    publish(slot, &head, sequence, [sequence; 4]);
                }
            });
            loop {
                let seen = u64::from_le(head.load(Ordering::Acquire));
                if seen > 0 {
                    let slot = &slots[((seen - 1) % (CAPACITY + 1)) as usize];
                    if let Some(words) = slot.read(&head, seen - 1, CAPACITY) {
                        assert_eq!(words, [seen - 1; 4]);
                    }
                }
                if seen == n_records {
                    break;
                }
            }
        });
    }

    #[test]
    fn the_oldest_record_follows_from_the_head() {
        assert_eq!(oldest(0, 3), 0);
        assert_eq!(oldest(3, 3), 0);
        assert_eq!(oldest(4, 3), 1);
    }
}
