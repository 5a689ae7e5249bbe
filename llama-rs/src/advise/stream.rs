//! Whole layers ahead of the computation, for prompts.
//!
//! A prompt uses most experts of every layer. Where all of the model would fit into memory there is nothing to be won by
//! picking them one by one: threads read the layer's tensors from front to back in huge pages, and then those of the next
//! layers, while this one is computed.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::layout::{Group, Member, Place};
use crate::huge::{self, Mapping};

/// Threads that read: the depth of the device's queue.
const THREADS: usize = 8;
/// Layers that are read ahead of the one that is computed.
const LAYERS_AHEAD: usize = 4;

/// Reads layers ahead.
#[derive(Debug)]
pub(super) struct Stream {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    /// Groups whose `is_active` is set: asked for, and not settled since.
    active: AtomicUsize,
}

#[derive(Debug)]
struct Shared {
    mappings: Vec<Mapping>,
    huge_bytes: u64,
    layers: Vec<Layer>,
    queue: Mutex<Queue>,
    wake: Condvar,
    streamed_bytes: AtomicU64,
}

#[derive(Debug)]
struct Queue {
    blocks: VecDeque<(usize, usize)>,
    stop: bool,
}

/// The huge pages that have a part of a group's tensors, ascending.
#[derive(Debug)]
struct Layer {
    blocks: Vec<Block>,
    is_active: AtomicBool,
}

/// A huge page of a file.
#[derive(Debug)]
struct Block {
    part: usize,
    offset: u64,
    is_read: AtomicBool,
}

impl Stream {
    /// For the groups of a model. `None` where the kernel cannot do it.
    pub(super) fn new(files: &gguf::ModelFiles, groups: &[Group]) -> Option<Stream> {
        let huge_bytes = huge::page_bytes()?;
        let mappings = files
            .parts
            .iter()
            .map(|part| Mapping::new(part.path(), huge_bytes))
            .collect::<Option<Vec<_>>>()?;
        let layers: Vec<Layer> = groups
            .iter()
            .map(|group| Layer::new(group, mappings.len(), huge_bytes))
            .collect();
        if layers.iter().all(|layer| layer.blocks.is_empty()) {
            return None;
        }
        for block in layers.iter().flat_map(|layer| &layer.blocks) {
            mappings[block.part].prepare(&(block.offset..block.offset + huge_bytes));
        }
        Some(Stream {
            shared: Arc::new(Shared {
                mappings,
                huge_bytes,
                layers,
                queue: Mutex::new(Queue {
                    blocks: VecDeque::new(),
                    stop: false,
                }),
                wake: Condvar::new(),
                streamed_bytes: AtomicU64::new(0),
            }),
            workers: Mutex::new(Vec::new()),
            active: AtomicUsize::new(0),
        })
    }

    /// Bytes read so far.
    pub(super) fn streamed_bytes(&self) -> u64 {
        self.shared.streamed_bytes.load(Ordering::Relaxed)
    }

    /// Starts to read the group, of which something is missing, and those after it. A group that is being read, or was read
    /// ahead and has not been used since, is not asked for again.
    pub(super) fn request(&self, group: usize) {
        let is_read = |block: &Block| block.is_read.load(Ordering::Relaxed);
        if self.shared.layers[group].blocks.iter().all(is_read) {
            // It was read, and is gone again.
            self.settled(group);
        }
        let end = self.shared.layers.len().min(group + 1 + LAYERS_AHEAD);
        for index in group..end {
            let layer = &self.shared.layers[index];
            if layer.is_active.swap(true, Ordering::Relaxed) {
                continue;
            }
            self.active.fetch_add(1, Ordering::Relaxed);
            for block in &layer.blocks {
                block.is_read.store(false, Ordering::Relaxed);
            }
            let mut queue = self.shared.lock();
            queue
                .blocks
                .extend((0..layer.blocks.len()).map(|block| (index, block)));
        }
        self.shared.wake.notify_all();
        self.start_workers();
    }

    /// Reading the group is over.
    pub(super) fn settled(&self, group: usize) {
        if self.shared.layers[group]
            .is_active
            .swap(false, Ordering::Relaxed)
        {
            self.active.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether any group is being read: only then is [`wait`](Stream::wait) of use.
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0
    }

    /// Returns when the huge pages of slice `id` are in memory; reads those that nobody has read yet.
    pub(super) fn wait(&self, place: Place, member: &Member, id: u32) {
        let layer = &self.shared.layers[place.group];
        if !layer.is_active.load(Ordering::Relaxed) {
            return;
        }
        let part = member.part;
        let start = member.offset + u64::from(id) * member.slice_bytes;
        let slice = start..start + member.slice_bytes;
        let first = layer.blocks.partition_point(|block| {
            (block.part, block.offset + self.shared.huge_bytes) <= (part, slice.start)
        });
        for block in &layer.blocks[first..] {
            if block.part != part || block.offset >= slice.end {
                break;
            }
            self.shared.read(block);
        }
    }

    fn start_workers(&self) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        while workers.len() < THREADS {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("read-ahead".to_owned());
            match builder.spawn(move || shared.work()) {
                Ok(worker) => workers.push(worker),
                // The computation reads what it needs by itself.
                Err(_) => break,
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        let workers = self
            .workers
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for worker in workers.drain(..) {
            // A worker has nothing to report, not even a panic: what it did not read is read by page faults.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue is at worst incomplete, which costs time.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a worker does until the end.
    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if queue.stop {
                return;
            }
            let Some((layer, block)) = queue.blocks.pop_front() else {
                queue = self
                    .wake
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            self.read(&self.layers[layer].blocks[block]);
            queue = self.lock();
        }
    }

    fn read(&self, block: &Block) {
        if block.is_read.load(Ordering::Acquire) {
            return;
        }
        let mapping = &self.mappings[block.part];
        mapping.read_block(block.offset);
        mapping.release_block(block.offset);
        if !block.is_read.swap(true, Ordering::Release) {
            self.streamed_bytes
                .fetch_add(self.huge_bytes, Ordering::Relaxed);
        }
    }
}

impl Layer {
    fn new(group: &[Member], parts: usize, huge_bytes: u64) -> Layer {
        let mut blocks = Vec::new();
        for part in 0..parts {
            let offsets: BTreeSet<u64> = group
                .iter()
                .filter(|member| member.part == part)
                .flat_map(|member| {
                    let start = member.offset & !(huge_bytes - 1);
                    (start..member.offset + member.bytes()).step_by(huge_bytes as usize)
                })
                .collect();
            blocks.extend(offsets.into_iter().map(|offset| Block {
                part,
                offset,
                is_read: AtomicBool::new(false),
            }));
        }
        Layer {
            blocks,
            is_active: AtomicBool::new(false),
        }
    }
}
