//! What is where in the ring through which dense matrices are streamed, and what is read next: bookkeeping, without memory and reads.
//!
//! A model uses its matrices in the same order for every token. The ring learns which matrix follows which, beginning with a guess, and reads
//! ahead along that chain as far as there is room: over the end of a token into the next one, too. What is used out of order is found
//! wherever it is, and what is not there is read at once, so a wrong guess costs time and nothing else.

/// Later uses of other matrices after which a matrix that was read ahead and passed over makes room for others: the guess may have the order
/// of a few neighbours wrong, and an output that is not asked for is passed over for good.
const PASSED_OVER_MAX: u32 = 4;

/// A read to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Which matrix.
    pub(crate) matrix: usize,
    /// Where its first page goes, in bytes from the begin of the ring.
    pub(crate) offset: usize,
    /// Name of the read; no other has had it.
    pub(crate) serial: u64,
}

/// How a use found its matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Ready,
    OnItsWay,
    Nowhere,
}

/// What the end of a read means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The matrix is at this offset.
    Ready { matrix: usize, offset: usize },
    /// It could not be read.
    Failed { matrix: usize },
    /// Nobody wants it any more.
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    /// As `Reading`, and the bytes are not wanted.
    Dropped,
    Ready,
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    serial: u64,
    matrix: usize,
    offset: usize,
    state: State,
    n_users: u32,
    n_passed_over: u32,
}

/// A matrix that is used and not there.
#[derive(Clone, Copy, Debug)]
struct Demand {
    matrix: usize,
    n_users: u32,
}

/// The ring cannot hold what one operation uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{needed_bytes} bytes of dense weights do not fit into the ring of {ring_bytes} bytes beside those in use"
)]
pub(crate) struct RingFull {
    needed_bytes: usize,
    ring_bytes: usize,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Ring {
    size_bytes: usize,
    /// Bytes of the pages of each matrix.
    spans: Vec<usize>,
    /// The matrix that is used after each.
    follows: Vec<usize>,
    /// By offset.
    entries: Vec<Entry>,
    demands: Vec<Demand>,
    /// Reads whose bytes are not wanted any more.
    cancelled: Vec<u64>,
    /// Matrices whose place was taken away.
    evicted: Vec<usize>,
    /// The matrix that was used last.
    last: Option<usize>,
    /// The one that was read ahead last.
    tail: usize,
    /// End of the place that was given last.
    cursor: usize,
    n_loads: u64,
}

impl Ring {
    /// An empty ring for matrices of these sizes, which are used in about this order.
    pub(crate) fn new(size_bytes: usize, spans: Vec<usize>) -> Ring {
        let count = spans.len();
        Ring {
            size_bytes,
            follows: (0..count).map(|matrix| (matrix + 1) % count).collect(),
            spans,
            entries: Vec::new(),
            demands: Vec::new(),
            cancelled: Vec::new(),
            evicted: Vec::new(),
            last: None,
            tail: count.saturating_sub(1),
            cursor: 0,
            n_loads: 0,
        }
    }

    /// An operation is about to use a matrix.
    pub(crate) fn begin(&mut self, matrix: usize) -> Found {
        if let Some(last) = self.last.replace(matrix).filter(|&last| last != matrix) {
            self.follows[last] = matrix;
        }
        if let Some(demand) = self
            .demands
            .iter_mut()
            .find(|demand| demand.matrix == matrix)
        {
            demand.n_users += 1;
            return Found::Nowhere;
        }
        if let Some(index) = self.find(matrix) {
            let entry = &mut self.entries[index];
            if entry.state != State::Failed {
                entry.n_users += 1;
                let (serial, state) = (entry.serial, entry.state);
                self.pass_over(serial);
                return match state {
                    State::Ready => Found::Ready,
                    _ => Found::OnItsWay,
                };
            }
            self.entries.remove(index);
        }
        self.demands.push(Demand { matrix, n_users: 1 });
        if self.find(self.follows[matrix]).is_none() {
            // What was read ahead is not what comes: a decode was broken off, or the order is another one.
            self.tail = matrix;
            self.drop_if(|_| true);
        }
        Found::Nowhere
    }

    /// The operation has ended. Tells whether nobody uses the matrix now: then its place is free.
    pub(crate) fn end(&mut self, matrix: usize) -> bool {
        if let Some(index) = self
            .demands
            .iter()
            .position(|demand| demand.matrix == matrix)
        {
            self.demands[index].n_users -= 1;
            if self.demands[index].n_users == 0 {
                self.demands.remove(index);
            }
            return false;
        }
        let Some(index) = self.find(matrix) else {
            return false;
        };
        let entry = &mut self.entries[index];
        entry.n_users = entry.n_users.saturating_sub(1);
        if entry.n_users > 0 {
            return false;
        }
        match entry.state {
            // The operation failed before the bytes were there.
            State::Reading => {
                entry.state = State::Dropped;
                self.cancelled.push(entry.serial);
                false
            }
            _ => {
                self.entries.remove(index);
                true
            }
        }
    }

    /// The next read to start, of what is used now first. `None`: there is no room, or nothing to read.
    ///
    /// # Errors
    ///
    /// [`RingFull`] if there will be no room for what is used now.
    pub(crate) fn next_load(&mut self) -> Result<Option<Load>, RingFull> {
        if let Some(&demand) = self.demands.first() {
            let span = self.spans[demand.matrix];
            let mut place = self.place(span);
            while place.is_none() && self.drop_farthest() {
                place = self.place(span);
            }
            let will_end = |entry: &Entry| matches!(entry.state, State::Reading | State::Dropped);
            return match place {
                Some(offset) => {
                    self.demands.remove(0);
                    Ok(Some(self.load(demand.matrix, offset, demand.n_users)))
                }
                None if self.entries.iter().any(will_end) => Ok(None),
                None => Err(RingFull {
                    needed_bytes: span,
                    ring_bytes: self.size_bytes,
                }),
            };
        }
        if self.spans.is_empty() {
            return Ok(None);
        }
        let matrix = self.follows[self.tail];
        if self.find(matrix).is_some() {
            return Ok(None);
        }
        let mut place = self.place(self.spans[matrix]);
        if place.is_none() && self.drop_if(|entry| entry.n_passed_over >= PASSED_OVER_MAX) {
            place = self.place(self.spans[matrix]);
        }
        Ok(place.map(|offset| {
            self.tail = matrix;
            self.load(matrix, offset, 0)
        }))
    }

    /// A read has ended.
    pub(crate) fn arrived(&mut self, serial: u64, is_whole: bool) -> Arrival {
        let Some(index) = self.entries.iter().position(|entry| entry.serial == serial) else {
            return Arrival::Dropped;
        };
        let entry = &mut self.entries[index];
        if entry.state == State::Dropped {
            self.entries.remove(index);
            return Arrival::Dropped;
        }
        if !is_whole {
            entry.state = State::Failed;
            return Arrival::Failed {
                matrix: entry.matrix,
            };
        }
        entry.state = State::Ready;
        Arrival::Ready {
            matrix: entry.matrix,
            offset: entry.offset,
        }
    }

    /// Reads that are to be cancelled.
    pub(crate) fn take_cancelled(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.cancelled)
    }

    /// Matrices that were there and are not any more, because their place was needed.
    pub(crate) fn take_evicted(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.evicted)
    }

    /// The entry of a matrix, unless it is dropped.
    fn find(&self, matrix: usize) -> Option<usize> {
        let wanted = |entry: &Entry| entry.matrix == matrix && entry.state != State::Dropped;
        self.entries.iter().position(wanted)
    }

    /// What was read ahead before this one comes later or never.
    fn pass_over(&mut self, serial: u64) {
        for entry in &mut self.entries {
            if entry.n_users == 0 && entry.serial < serial {
                entry.n_passed_over += 1;
            }
        }
    }

    /// Gives up those of the unused entries. Tells whether one was: its place is free at once, or when its read has ended.
    fn drop_if(&mut self, is_unwanted: impl Fn(&Entry) -> bool) -> bool {
        let (cancelled, evicted) = (&mut self.cancelled, &mut self.evicted);
        let mut is_any = false;
        self.entries.retain_mut(|entry| {
            if entry.n_users > 0 || entry.state == State::Dropped || !is_unwanted(entry) {
                return true;
            }
            is_any = true;
            if entry.state == State::Reading {
                entry.state = State::Dropped;
                cancelled.push(entry.serial);
                return true;
            }
            evicted.push(entry.matrix);
            false
        });
        is_any
    }

    /// Gives up the unused entry that was read ahead last.
    fn drop_farthest(&mut self) -> bool {
        let unused = self
            .entries
            .iter()
            .filter(|entry| entry.n_users == 0 && entry.state != State::Dropped);
        let Some((serial, matrix)) = unused.map(|entry| (entry.serial, entry.matrix)).max() else {
            return false;
        };
        // It is read again after what comes before it.
        if let Some(before) = self.follows.iter().position(|&next| next == matrix) {
            self.tail = before;
        }
        self.drop_if(|entry| entry.serial == serial)
    }

    /// Room for so many bytes: behind what was placed last, else anywhere.
    fn place(&self, span: usize) -> Option<usize> {
        let mut elsewhere = None;
        let mut begin = 0;
        let ends = self
            .entries
            .iter()
            .map(|entry| (entry.offset, entry.offset + self.spans[entry.matrix]));
        for (end, next) in ends.chain([(self.size_bytes, self.size_bytes)]) {
            let behind = begin.max(self.cursor);
            if behind + span <= end {
                return Some(behind);
            }
            if begin + span <= end {
                elsewhere = elsewhere.or(Some(begin));
            }
            begin = next;
        }
        elsewhere
    }

    fn load(&mut self, matrix: usize, offset: usize, n_users: u32) -> Load {
        self.n_loads += 1;
        self.cursor = offset + self.spans[matrix];
        let entry = Entry {
            serial: self.n_loads,
            matrix,
            offset,
            state: State::Reading,
            n_users,
            n_passed_over: 0,
        };
        let index = self.entries.partition_point(|other| other.offset < offset);
        self.entries.insert(index, entry);
        Load {
            matrix,
            offset,
            serial: entry.serial,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring with the reads that are under way.
    struct Machine {
        ring: Ring,
        reading: Vec<Load>,
        n_loads: usize,
        /// Where each matrix is that has arrived.
        places: Vec<Option<usize>>,
    }

    impl Machine {
        fn new(size_bytes: usize, spans: &[usize]) -> Machine {
            let mut machine = Machine {
                ring: Ring::new(size_bytes, spans.to_vec()),
                reading: Vec::new(),
                n_loads: 0,
                places: vec![None; spans.len()],
            };
            machine.pump();
            machine
        }

        fn pump(&mut self) {
            while let Some(load) = self.ring.next_load().unwrap() {
                self.reading.push(load);
                self.n_loads += 1;
            }
            for matrix in self.ring.take_evicted() {
                self.places[matrix] = None;
            }
            let mut all: Vec<(usize, usize)> = self
                .ring
                .entries
                .iter()
                .map(|entry| (entry.offset, entry.offset + self.ring.spans[entry.matrix]))
                .collect();
            all.sort_unstable();
            assert!(all.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{all:?}");
            assert!(all.iter().all(|place| place.1 <= self.ring.size_bytes));
        }

        fn arrive(&mut self, index: usize) {
            let load = self.reading.remove(index);
            if let Arrival::Ready { matrix, offset } = self.ring.arrived(load.serial, true) {
                assert_eq!((matrix, offset), (load.matrix, load.offset));
                self.places[matrix] = Some(offset);
            }
            self.pump();
        }

        /// Uses a matrix, waiting for it if need be.
        fn use_one(&mut self, matrix: usize, pick: &mut impl FnMut(usize) -> usize) -> Found {
            let found = self.ring.begin(matrix);
            self.pump();
            while self.places[matrix].is_none() {
                assert!(
                    !self.reading.is_empty(),
                    "nothing is on its way for {matrix}"
                );
                let index = pick(self.reading.len());
                self.arrive(index);
            }
            if self.ring.end(matrix) {
                self.places[matrix] = None;
            }
            self.pump();
            found
        }
    }

    #[test]
    fn a_token_reads_each_matrix_once_and_nothing_is_late_if_reads_are_fast() {
        let mut machine = Machine::new(30, &[10; 7]);
        for step in 0..5 {
            for matrix in 0..7 {
                while !machine.reading.is_empty() {
                    machine.arrive(0);
                }
                assert_eq!(machine.use_one(matrix, &mut |_| 0), Found::Ready, "{step}");
            }
        }
        // What is read ahead belongs to the next token.
        assert_eq!(machine.n_loads, 5 * 7 + 3);
    }

    #[test]
    fn another_order_than_the_guess_is_learned() {
        let mut machine = Machine::new(40, &[10; 12]);
        let order = [0, 2, 1, 5, 4, 3, 9, 6, 7, 8, 11, 10];
        let token = |machine: &mut Machine| {
            let before = machine.n_loads;
            for matrix in order {
                machine.use_one(matrix, &mut |_| 0);
            }
            machine.n_loads - before
        };
        token(&mut machine);
        token(&mut machine);
        assert_eq!(token(&mut machine), 12);
    }

    #[test]
    fn a_decode_that_is_broken_off_and_an_output_that_is_left_out() {
        let mut machine = Machine::new(30, &[10; 8]);
        for step in 0..6 {
            // From the begin again, and without the last.
            let n_used = if step % 2 == 0 { 3 } else { 7 };
            for matrix in 0..n_used {
                machine.use_one(matrix, &mut |_| 0);
            }
        }
        assert!(machine.ring.entries.len() <= 3);
    }

    #[test]
    fn random_orders_sizes_and_arrivals_end_and_never_overlap() {
        let mut seed = 7u64;
        let mut random = move |end: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % end
        };
        for _ in 0..200 {
            let spans: Vec<usize> = (0..2 + random(12)).map(|_| 1 + random(20)).collect();
            let size_bytes = 2 * spans.iter().max().unwrap() + random(40);
            let mut machine = Machine::new(size_bytes, &spans);
            for _ in 0..100 {
                let matrix = random(spans.len());
                machine.use_one(matrix, &mut random);
            }
        }
    }

    #[test]
    fn a_read_that_failed_is_tried_again_when_it_is_used_again() {
        let mut machine = Machine::new(20, &[10; 3]);
        let load = machine.reading.remove(0);
        machine.ring.begin(load.matrix);
        let matrix = load.matrix;
        assert_eq!(
            machine.ring.arrived(load.serial, false),
            Arrival::Failed { matrix }
        );
        machine.ring.end(load.matrix);
        assert_eq!(machine.use_one(load.matrix, &mut |_| 0), Found::Nowhere);
    }
}
