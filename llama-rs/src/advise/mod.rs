//! The first slice provider: advice to the kernel, in one batch a layer.
//!
//! Left alone, a layer's experts come in one page fault after another, in each of the three projections. [`Advise`]
//! asks for everything that is missing of gate, up and down as soon as the router has chosen, and lets the computation
//! start with the slices that are there.

mod kernel;
mod layout;
mod room;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::slices::{Begin, Dim, Ids, SliceProvider, WeightRef, Which};

use kernel::{Pages, Probe, Reader, major_faults, mapped_pages, page_bytes};
use layout::{Group, Member, Place};
use room::Room;
use stream::Stream;

/// Bytes that are asked for ahead of the computation. The experts of one token fit for the models that this was made
/// for (gpt-oss-20b: 53 MB a layer); a prompt that uses all experts of a layer is followed slice by slice.
const WINDOW_BYTES: u64 = 64 << 20;

/// Asks the kernel for the pages of a layer's experts that are missing, all projections in one batch, and computes the
/// experts that are there first. The bytes stay where the file is mapped.
///
/// # What it costs
///
/// When everything is resident, a layer costs one `getrusage` (0.5 us) and a comparison. A slice that was seen in the page
/// cache is trusted until memory gets short, which shows in two ways: the process has a major fault, or some slice is
/// found missing. From then on every slice is looked at again when it is next used, which takes about 1 us for 4 MB with
/// `cachestat(2)`, and 1.5 us (mapped pages) to 80 us (unmapped ones) with `mincore(2)` before Linux 6.5. So a change of
/// memory by another process is noticed after the first layer that it hits.
///
/// Asking for a missing slice takes the calling thread about 1 ms for 4 MB (allocating pages and queueing requests);
/// more than 64 MiB are asked for piece by piece while the computation proceeds.
///
/// An operation that uses at least half of a layer's experts belongs to a prompt, and the next layers will be used alike. If
/// the machine and the process's control groups have room for the whole model, all of the layer and of the four after it is
/// then read in huge pages by threads of its own, ahead of the computation.
///
/// Pages that the kernel reads on advice are 4 KiB each, however large its readahead is. Once everything is in memory, a token
/// took 18.5 to 19.8 ms with such pages and 16.0 ms with the larger ones that reading ahead by 8 MiB leaves (1.5 GB model, 2
/// cores, gpt-oss's architecture): the price of reading nothing else.
///
/// For a file of another user that this one may not write to, the kernel does not tell what is resident. Slices are then
/// asked for whenever they are not trusted.
///
/// Use one `Advise` for each context; it may be shared, but then the contexts wait for each other.
#[derive(Debug)]
pub struct Advise {
    places: HashMap<String, (Place, Member)>,
    state: Mutex<State>,
    /// Slices in `State::queue`; read without the lock.
    queued: AtomicUsize,
    /// Reads whole layers ahead, if the kernel can.
    stream: Option<Stream>,
    counters: Counters,
}

/// What [`Advise`] has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdviseCounters {
    /// Slices that were about to be read: experts of each projection, and rows.
    pub slices: u64,
    /// Those of them that were in the page cache, or trusted to be.
    pub slices_resident: u64,
    /// Times that the kernel was asked whether a slice is in the page cache.
    pub checks: u64,
    /// Bytes of pages that were missing and asked for.
    pub advised_bytes: u64,
    /// System calls that asked for pages.
    pub advise_calls: u64,
    /// Bytes that were read ahead by whole layers.
    pub streamed_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    slices: AtomicU64,
    slices_resident: AtomicU64,
    checks: AtomicU64,
    advised_bytes: AtomicU64,
    advise_calls: AtomicU64,
}

#[derive(Debug)]
struct State {
    groups: Vec<GroupState>,
    parts: Vec<Part>,
    reader: Reader,
    room: Room,
    /// Bytes of the model's files.
    model_bytes: u64,
    /// Slices seen in the page cache in this generation are trusted to be there.
    generation: u64,
    major_faults: i64,
    /// Slices of the current layer beyond the window.
    queue: VecDeque<Range<usize>>,
    /// Scratch memory.
    ranges: Vec<Range<usize>>,
    vector: Vec<u8>,
}

/// A file of the model.
#[derive(Debug)]
struct Part {
    /// Where it is mapped; 0 until a weight of it was seen.
    base: usize,
    probe: Probe,
}

#[derive(Debug)]
struct GroupState {
    members: Vec<MemberState>,
    /// Indices of the last request, sorted.
    ids: Vec<i32>,
    /// Scratch memory.
    sorted: Vec<i32>,
}

#[derive(Debug)]
struct MemberState {
    member: Member,
    /// For each slice the generation in which it was last seen in the page cache.
    seen: Vec<u64>,
    /// The pages for `GroupState::ids` have been asked for, and the operation has not come yet.
    is_announced: bool,
    /// Indices that were missing in the last request.
    missing: Vec<i32>,
}

impl Advise {
    /// For contexts of `model`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when a model file cannot be opened to ask about its pages; [`Error::InvalidParameter`] for a model
    /// whose weights are not mapped.
    pub fn new(model: &Model) -> Result<Advise> {
        if !model.is_mapped() {
            return Err(Error::parameter(
                "model",
                "its weights are not in a mapping of its files, so there is nothing to advise the kernel about".to_owned(),
            ));
        }
        let files = model.files();
        let (groups, places) = layout::groups(files);
        let stream = Stream::new(files, &groups);
        let parts = files
            .parts
            .iter()
            .map(|part| match Probe::open(part.path()) {
                Ok(probe) => Ok(Part { base: 0, probe }),
                Err(source) => Err(Error::Io {
                    path: part.path().to_owned(),
                    source,
                }),
            })
            .collect::<Result<_>>()?;
        let state = State {
            groups: groups.into_iter().map(GroupState::new).collect(),
            parts,
            reader: Reader::new(),
            room: Room::new(),
            model_bytes: model.size_bytes(),
            generation: 1,
            major_faults: major_faults(),
            queue: VecDeque::new(),
            ranges: Vec::new(),
            vector: Vec::new(),
        };
        Ok(Advise {
            places,
            state: Mutex::new(state),
            queued: AtomicUsize::new(0),
            stream,
            counters: Counters::default(),
        })
    }

    /// What was done so far. May be read at any time, from any thread.
    pub fn counters(&self) -> AdviseCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        AdviseCounters {
            slices: get(&self.counters.slices),
            slices_resident: get(&self.counters.slices_resident),
            checks: get(&self.counters.checks),
            advised_bytes: get(&self.counters.advised_bytes),
            advise_calls: get(&self.counters.advise_calls),
            streamed_bytes: self.stream.as_ref().map_or(0, Stream::streamed_bytes),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is only knowledge about pages; after a panic it is at worst wrong, which costs time.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

// SAFETY: `get` gives the address in the mapped file, which the model keeps mapped and never writes.
unsafe impl SliceProvider for Advise {
    fn begin(&self, access: &mut Begin<'_>) {
        match access.dim {
            Dim::Matrices => {
                if let Some((place, _)) = self.places.get(access.weight.name()) {
                    self.begin_matrices(*place, access.weight, &mut access.ids);
                }
            }
            Dim::Rows => self.begin_rows(access.weight, &access.ids),
            Dim::Whole => self.begin_whole(access.weight),
        }
    }

    fn get(&self, weight: WeightRef<'_>, which: Which) -> Option<NonNull<u8>> {
        if self.queued.load(Ordering::Relaxed) > 0 {
            self.follow();
        }
        if let (Some(stream), Which::Matrix(id)) = (&self.stream, which)
            && stream.is_active()
            && let Some((place, member)) = self.places.get(weight.name())
        {
            stream.wait(*place, member, id);
        }
        weight.mapped(which)
    }
}

impl Advise {
    /// An operation on matrices: asks for what its whole group is going to read, unless an earlier one has.
    fn begin_matrices(&self, place: Place, weight: WeightRef<'_>, ids: &mut Ids<'_>) {
        let mut state = self.lock();
        let state = &mut *state;
        state.learn_base(place, weight);
        let group = &mut state.groups[place.group];
        if !group.continues(place.member, ids) {
            state.forget_after_major_faults();
            self.request(state, place.group);
        }
        let group = &mut state.groups[place.group];
        let member = &mut group.members[place.member];
        member.is_announced = false;
        if !member.missing.is_empty() {
            let missing = &member.missing;
            ids.sort_by_key(|id| missing.contains(&id));
        }
    }

    /// Looks for the slices of a group and asks for those that are missing, in the order of the computation.
    fn request(&self, state: &mut State, group: usize) {
        let index = group;
        let group = &mut state.groups[index];
        let (mut slices, mut resident, mut checks, mut advised_bytes) = (0, 0, 0, 0);
        state.queue.clear();
        state.ranges.clear();
        let mut window_bytes = 0;
        for member in &mut group.members {
            let part = &state.parts[member.member.part];
            member.missing.clear();
            // A part of which no weight has been seen: its own operation will come.
            member.is_announced = part.base != 0;
            if part.base == 0 {
                continue;
            }
            for &id in &group.ids {
                slices += 1;
                if member.is_trusted(id, state.generation) {
                    resident += 1;
                    continue;
                }
                checks += 1;
                let pages = member.pages(id);
                let address = part.base + pages.start as usize;
                let length = (pages.end - pages.start) as usize;
                let missing_bytes =
                    match part
                        .probe
                        .pages(pages.start, length, address, &mut state.vector)
                    {
                        Pages::Resident => 0,
                        Pages::Missing { bytes } => bytes,
                        Pages::Unknown => length as u64,
                    };
                member.trust(id, state.generation);
                if missing_bytes == 0 {
                    resident += 1;
                    continue;
                }
                advised_bytes += missing_bytes;
                member.missing.push(id);
                let range = address..address + length;
                if window_bytes < WINDOW_BYTES {
                    window_bytes += missing_bytes;
                    state.ranges.push(range);
                } else {
                    state.queue.push_back(range);
                }
            }
        }
        let knows = state
            .parts
            .iter()
            .all(|part| !matches!(part.probe, Probe::None));
        if advised_bytes > 0 && knows {
            // Something was missing: what else was trusted may have gone with it.
            state.generation += 1;
        }
        if let Some(stream) = &self.stream {
            if advised_bytes == 0 {
                stream.settled(index);
            } else if state.groups[index].is_mostly_used() && state.room.holds(state.model_bytes) {
                stream.request(index);
                state.ranges.clear();
                state.queue.clear();
            }
        }
        self.queued.store(state.queue.len(), Ordering::Relaxed);
        let calls = if state.ranges.is_empty() {
            0
        } else {
            state.reader.will_need(&state.ranges)
        };
        self.counters.slices.fetch_add(slices, Ordering::Relaxed);
        self.counters
            .slices_resident
            .fetch_add(resident, Ordering::Relaxed);
        self.counters.checks.fetch_add(checks, Ordering::Relaxed);
        self.counters
            .advised_bytes
            .fetch_add(advised_bytes, Ordering::Relaxed);
        self.counters
            .advise_calls
            .fetch_add(calls, Ordering::Relaxed);
    }

    /// A slice of a large request is about to be computed: asks for the next one. Every thread comes here for every slice,
    /// so a thread that finds another one at it has nothing to do.
    fn follow(&self) {
        let Ok(mut state) = self.state.try_lock() else {
            return;
        };
        let Some(range) = state.queue.pop_front() else {
            return;
        };
        self.queued.store(state.queue.len(), Ordering::Relaxed);
        let calls = state.reader.will_need(std::slice::from_ref(&range));
        self.counters
            .advise_calls
            .fetch_add(calls, Ordering::Relaxed);
    }

    /// Rows of an embedding. A page fault reads one page of such a tensor, so all rows of a prompt are asked for at once.
    fn begin_rows(&self, weight: WeightRef<'_>, ids: &[i32]) {
        let row_bytes = weight.slice_bytes(Dim::Rows);
        let page = page_bytes();
        let mut state = self.lock();
        let state = &mut *state;
        state.ranges.clear();
        for &id in ids {
            let Some(start) = weight.mapped(Which::Row(id as u32)) else {
                continue;
            };
            let start = start.as_ptr() as usize;
            let pages = start & !(page - 1)..(start + row_bytes).next_multiple_of(page);
            match state.ranges.last_mut() {
                // Rows come sorted: neighbours often share a page.
                Some(last) if pages.start <= last.end && pages.end >= last.end => {
                    last.end = pages.end
                }
                _ => state.ranges.push(pages),
            }
        }
        let vector = &mut state.vector;
        let (mut checks, mut advised_bytes) = (0, 0);
        state.ranges.retain(|pages| {
            checks += 1;
            match mapped_pages(pages, vector) {
                Pages::Resident => false,
                Pages::Missing { bytes } => {
                    advised_bytes += bytes;
                    true
                }
                Pages::Unknown => true,
            }
        });
        let missing = state.ranges.len() as u64;
        let calls = if state.ranges.is_empty() {
            0
        } else {
            state.reader.will_need(&state.ranges)
        };
        let slices = ids.len() as u64;
        self.counters.slices.fetch_add(slices, Ordering::Relaxed);
        self.counters
            .slices_resident
            .fetch_add(slices.saturating_sub(missing), Ordering::Relaxed);
        self.counters.checks.fetch_add(checks, Ordering::Relaxed);
        self.counters
            .advised_bytes
            .fetch_add(advised_bytes, Ordering::Relaxed);
        self.counters
            .advise_calls
            .fetch_add(calls, Ordering::Relaxed);
    }

    /// An operation that reads a whole tensor: the first window of it; the kernel's readahead does the rest, since such
    /// an operation reads in the order of the file.
    fn begin_whole(&self, weight: WeightRef<'_>) {
        let page = page_bytes();
        let Some(start) = weight.mapped(Which::Whole) else {
            return;
        };
        let start = start.as_ptr() as usize;
        let length = weight.slice_bytes(Dim::Whole).min(WINDOW_BYTES as usize);
        let pages = start & !(page - 1)..(start + length).next_multiple_of(page);
        let mut state = self.lock();
        let state = &mut *state;
        let found = mapped_pages(&pages, &mut state.vector);
        self.counters.slices.fetch_add(1, Ordering::Relaxed);
        self.counters.checks.fetch_add(1, Ordering::Relaxed);
        match found {
            Pages::Resident => {
                self.counters
                    .slices_resident
                    .fetch_add(1, Ordering::Relaxed);
                return;
            }
            Pages::Missing { bytes } => self
                .counters
                .advised_bytes
                .fetch_add(bytes, Ordering::Relaxed),
            Pages::Unknown => 0,
        };
        let calls = state.reader.will_need(std::slice::from_ref(&pages));
        self.counters
            .advise_calls
            .fetch_add(calls, Ordering::Relaxed);
    }
}

impl State {
    /// The address of any weight tells where its file is mapped, and so where the others are.
    fn learn_base(&mut self, place: Place, weight: WeightRef<'_>) {
        let member = &self.groups[place.group].members[place.member].member;
        let base = (weight.data() as usize).wrapping_sub(member.offset as usize);
        let part = &mut self.parts[member.part];
        if part.base != base {
            part.base = base;
            self.generation += 1;
        }
    }

    /// A major fault means that a page was read that nobody had asked for: nothing is trusted any more.
    fn forget_after_major_faults(&mut self) {
        let faults = major_faults();
        if faults != self.major_faults {
            self.major_faults = faults;
            self.generation += 1;
        }
    }
}

impl GroupState {
    fn new(group: Group) -> GroupState {
        let members = group.into_iter().map(MemberState::new).collect();
        GroupState {
            members,
            ids: Vec::new(),
            sorted: Vec::new(),
        }
    }

    /// Whether the last request was for at least half of the slices.
    fn is_mostly_used(&self) -> bool {
        let slices = self.members.iter().map(|member| member.member.slices).max();
        slices.is_some_and(|slices| 2 * self.ids.len() >= slices as usize)
    }

    /// Whether this operation belongs to the last request. If not, its indices become the next request.
    fn continues(&mut self, member: usize, ids: &[i32]) -> bool {
        self.sorted.clear();
        self.sorted.extend_from_slice(ids);
        self.sorted.sort_unstable();
        if self.members[member].is_announced && self.sorted == self.ids {
            return true;
        }
        std::mem::swap(&mut self.ids, &mut self.sorted);
        let slices = self
            .members
            .iter()
            .map(|member| member.member.slices)
            .min()
            .unwrap_or(0);
        self.ids
            .retain(|&id| u32::try_from(id).is_ok_and(|id| id < slices));
        false
    }
}

impl MemberState {
    fn new(member: Member) -> MemberState {
        let seen = vec![0; member.slices as usize];
        MemberState {
            member,
            seen,
            is_announced: false,
            missing: Vec::new(),
        }
    }

    fn is_trusted(&self, id: i32, generation: u64) -> bool {
        self.seen[id as usize] == generation
    }

    fn trust(&mut self, id: i32, generation: u64) {
        self.seen[id as usize] = generation;
    }

    /// The pages of a slice, as offsets in the file.
    fn pages(&self, id: i32) -> Range<u64> {
        let page = page_bytes() as u64;
        let start = self.member.offset + id as u64 * self.member.slice_bytes;
        start & !(page - 1)..(start + self.member.slice_bytes).next_multiple_of(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(slices: &[u32]) -> GroupState {
        let member = |slices| Member {
            part: 0,
            offset: 100,
            slice_bytes: 5000,
            slices,
        };
        GroupState::new(slices.iter().map(|&slices| member(slices)).collect())
    }

    #[test]
    fn a_round_ends_when_the_same_member_comes_again() {
        let mut group = group(&[8, 8]);
        assert!(!group.continues(0, &[3, 1]));
        assert_eq!(group.ids, [1, 3]);
        group.members[1].is_announced = true;
        assert!(group.continues(1, &[1, 3]));
        assert!(!group.continues(0, &[1, 3]));
        assert!(!group.continues(1, &[1, 4]));
        assert_eq!(group.ids, [1, 4]);
    }

    #[test]
    fn indices_outside_a_member_are_left_out() {
        let mut group = group(&[8, 4]);
        assert!(!group.continues(0, &[-1, 2, 5]));
        assert_eq!(group.ids, [2]);
    }

    #[test]
    fn pages_cover_the_slice() {
        let group = group(&[8]);
        let page = page_bytes() as u64;
        for id in 0..8 {
            let pages = group.members[0].pages(id);
            let start = 100 + id as u64 * 5000;
            assert!(pages.start <= start && start < pages.start + page);
            assert!(pages.end >= start + 5000 && pages.end < start + 5000 + page);
        }
    }
}
