//! Where each slice is: one atomic word for each, which compute threads read without a lock.
//!
//! A word holds the state, the slot and the number of pins. Only the [`Pool`](crate::Pool) changes
//! words, and its methods that do need it mutably: the writer is whoever holds the lock around the
//! pool. A writer therefore loads, computes and stores; no compare-and-swap is needed. Readers need
//! one acquire load: who sees `Resident` sees the bytes that were in the slot when it was published.
//!
//! What a reader got stays true only while the slice is pinned: a slice that is not pinned may be
//! evicted at any time. A slice is pinned before an operation's threads start on it, and unpinned
//! after all of them have left it.

#[cfg(all(test, feature = "loom"))]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(all(test, feature = "loom")))]
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{SliceId, SlotId};

/// What a slice's bytes are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has asked for them, or they were evicted.
    Absent,
    /// They are being read into this slot.
    InFlight(SlotId),
    /// They are in this slot.
    Resident(SlotId),
    /// The last read failed. The next request tries again.
    Failed,
}

/// What happens to a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A read into this slot begins.
    Read(SlotId),
    /// The read has ended well.
    Publish,
    /// The read has failed; its slot belongs to nobody.
    Fail,
    /// The slot is taken away, or the read was cancelled. Nobody may have it pinned.
    Clear,
    /// Somebody needs it.
    Pin,
    /// That one does not need it any more.
    Unpin,
}

/// Bits 0 to 31: slot; 32 to 61: pins; 62 and 63: state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Word(u64);

const PIN: u64 = 1 << 32;
const PINS: u64 = ((1 << 30) - 1) << 32;
const STATE: u64 = 3 << 62;
const IN_FLIGHT: u64 = 1 << 62;
const RESIDENT: u64 = 2 << 62;
const FAILED: u64 = 3 << 62;

impl Word {
    fn slot(self) -> SlotId {
        SlotId(self.0 as u32)
    }

    fn n_pins(self) -> u32 {
        ((self.0 & PINS) >> 32) as u32
    }

    fn state(self) -> State {
        match self.0 & STATE {
            IN_FLIGHT => State::InFlight(self.slot()),
            RESIDENT => State::Resident(self.slot()),
            FAILED => State::Failed,
            _ => State::Absent,
        }
    }

    /// The word after the event, `None` if the event cannot happen in this state.
    fn after(self, event: Event) -> Option<Word> {
        let pins = self.0 & PINS;
        let word = match (self.state(), event) {
            (State::Absent | State::Failed, Event::Read(SlotId(slot))) => {
                IN_FLIGHT | pins | u64::from(slot)
            }
            (State::InFlight(SlotId(slot)), Event::Publish) => RESIDENT | pins | u64::from(slot),
            (State::InFlight(_), Event::Fail) => FAILED | pins,
            (State::InFlight(_) | State::Resident(_), Event::Clear) if pins == 0 => 0,
            (State::InFlight(_) | State::Resident(_), Event::Pin) if pins < PINS => self.0 + PIN,
            (State::InFlight(_) | State::Resident(_) | State::Failed, Event::Unpin) if pins > 0 => {
                self.0 - PIN
            }
            _ => return None,
        };
        Some(Word(word))
    }
}

/// The words of all slices.
#[derive(Debug)]
pub struct Residency {
    words: Box<[AtomicU64]>,
}

impl Residency {
    /// All are absent.
    pub(crate) fn new(n_slices: usize) -> Residency {
        Residency {
            words: (0..n_slices).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The slot that holds the slice, `None` if its bytes are not there (yet). One acquire load and
    /// a compare.
    ///
    /// # Panics
    ///
    /// If there is no such slice.
    #[inline]
    pub fn slot(&self, slice: SliceId) -> Option<SlotId> {
        let word = Word(self.words[slice.index()].load(Ordering::Acquire));
        (word.0 & STATE == RESIDENT).then(|| word.slot())
    }

    /// What the slice's bytes are doing.
    ///
    /// # Panics
    ///
    /// If there is no such slice.
    pub fn state(&self, slice: SliceId) -> State {
        Word(self.words[slice.index()].load(Ordering::Acquire)).state()
    }

    /// How many hold the slice where it is.
    ///
    /// # Panics
    ///
    /// If there is no such slice.
    pub fn n_pins(&self, slice: SliceId) -> u32 {
        Word(self.words[slice.index()].load(Ordering::Acquire)).n_pins()
    }

    /// Takes a step and returns the number of pins after it. Only one thread at a time may call this.
    ///
    /// # Panics
    ///
    /// If the event cannot happen in the slice's state: the caller has lost track of it.
    pub(crate) fn apply(&self, slice: SliceId, event: Event) -> u32 {
        let word = &self.words[slice.index()];
        // Only the one writer stores, so what it loads is what it stored last.
        let before = Word(word.load(Ordering::Relaxed));
        let Some(after) = before.after(event) else {
            panic!(
                "slice {}: {event:?} cannot follow {:?} with {} pins",
                slice.0,
                before.state(),
                before.n_pins()
            );
        };
        // Pairs with the acquire load in `slot`: the bytes of a read that has ended, which the writer sees, are seen
        // by whoever sees `Resident`.
        word.store(after.0, Ordering::Release);
        after.n_pins()
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    const SLOT: SlotId = SlotId(7);

    #[test]
    fn every_transition() {
        use Event::{Clear, Fail, Pin, Publish, Read, Unpin};
        let events = [Read(SLOT), Publish, Fail, Clear, Pin, Unpin];
        let words = [
            (Word(0), &[Read(SLOT)][..]),
            (Word(FAILED), &[Read(SLOT)]),
            (Word(FAILED | PIN), &[Read(SLOT), Unpin]),
            (Word(IN_FLIGHT | 7), &[Publish, Fail, Clear, Pin]),
            (Word(IN_FLIGHT | PIN | 7), &[Publish, Fail, Pin, Unpin]),
            (Word(RESIDENT | 7), &[Clear, Pin]),
            (Word(RESIDENT | PIN | 7), &[Pin, Unpin]),
            (Word(RESIDENT | PINS | 7), &[Unpin]),
        ];
        for (word, allowed) in words {
            for event in events {
                let after = word.after(event);
                assert_eq!(
                    after.is_some(),
                    allowed.contains(&event),
                    "{word:?} {event:?}"
                );
                let Some(after) = after else { continue };
                let pins = i64::from(after.n_pins()) - i64::from(word.n_pins());
                let expected = match event {
                    Read(_) => (State::InFlight(SLOT), 0),
                    Publish => (State::Resident(SLOT), 0),
                    Fail => (State::Failed, 0),
                    Clear => (State::Absent, 0),
                    Pin => (word.state(), 1),
                    Unpin => (word.state(), -1),
                };
                assert_eq!((after.state(), pins), expected, "{word:?} {event:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "slice 1: Unpin cannot follow Absent with 0 pins")]
    fn a_lost_pin_is_noticed() {
        Residency::new(2).apply(SliceId(1), Event::Unpin);
    }
}

/// `cargo test -p pager --lib --features loom every_interleaving`
#[cfg(all(test, feature = "loom"))]
mod every_interleaving {
    use loom::cell::UnsafeCell;
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;

    const SLOT: SlotId = SlotId(0);

    /// One slot, its bytes, the words of two slices, and how many threads are done.
    struct Shared {
        residency: Residency,
        bytes: UnsafeCell<u32>,
        n_done: AtomicU64,
        lock: Mutex<()>,
    }

    // SAFETY: `bytes` is written only while its slice is in flight and read only while it is resident and pinned; that
    // these exclude each other is what loom checks.
    unsafe impl Sync for Shared {}
    // SAFETY: as above.
    unsafe impl Send for Shared {}

    fn shared() -> Arc<Shared> {
        Arc::new(Shared {
            residency: Residency::new(2),
            bytes: UnsafeCell::new(0),
            n_done: AtomicU64::new(0),
            lock: Mutex::new(()),
        })
    }

    fn read(shared: &Shared, value: u32) {
        // SAFETY: the slice is in flight; see `Shared`.
        shared.bytes.with_mut(|bytes| unsafe { *bytes = value });
    }

    fn bytes(shared: &Shared) -> u32 {
        // SAFETY: the slice is resident and pinned; see `Shared`.
        shared.bytes.with(|bytes| unsafe { *bytes })
    }

    /// A slice is pinned and read, a thread computes with it, and after that the slot goes to another slice.
    #[test]
    fn bytes_are_whole_while_pinned() {
        loom::model(|| {
            let shared = shared();
            let (first, second) = (SliceId(0), SliceId(1));
            shared.residency.apply(first, Event::Read(SLOT));
            shared.residency.apply(first, Event::Pin);
            let compute = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    while shared.residency.slot(first).is_none() {
                        thread::yield_now();
                    }
                    assert_eq!(bytes(&shared), 1);
                    shared.n_done.fetch_add(1, Ordering::Release);
                })
            };
            read(&shared, 1);
            shared.residency.apply(first, Event::Publish);
            // The barrier at the end of the operation.
            while shared.n_done.load(Ordering::Acquire) < 1 {
                thread::yield_now();
            }
            shared.residency.apply(first, Event::Unpin);
            shared.residency.apply(first, Event::Clear);
            shared.residency.apply(second, Event::Read(SLOT));
            read(&shared, 2);
            shared.residency.apply(second, Event::Publish);
            compute.join().unwrap();
            assert_eq!(shared.residency.slot(first), None);
            assert_eq!(shared.residency.slot(second), Some(SLOT));
        });
    }

    /// Whichever thread gets the lock publishes the read; both compute with the bytes.
    #[test]
    fn any_thread_that_has_the_lock_publishes() {
        loom::model(|| {
            let shared = shared();
            let slice = SliceId(0);
            shared.residency.apply(slice, Event::Read(SLOT));
            shared.residency.apply(slice, Event::Pin);
            read(&shared, 1);
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        if shared.residency.slot(slice).is_none() {
                            let _lock = shared.lock.lock().unwrap();
                            if shared.residency.state(slice) == State::InFlight(SLOT) {
                                shared.residency.apply(slice, Event::Publish);
                            }
                        }
                        assert_eq!(shared.residency.slot(slice), Some(SLOT));
                        assert_eq!(bytes(&shared), 1);
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(shared.residency.apply(slice, Event::Unpin), 0);
        });
    }
}
