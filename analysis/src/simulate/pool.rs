//! The cache itself.

use super::{Access, Changed, Policy, SimulateError, Workload};

/// How large a cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// This many slices for each layer, whatever their size. A shared cache has this many times the
    /// number of layers.
    SlotsPerLayer(u64),
    /// This many slices in all, whatever their size, for a cache that layers share.
    Slots(u64),
    /// This many bytes in all, for a cache that layers share.
    Bytes(u64),
}

/// Whether layers may take space from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Each layer has a cache of its own.
    PerLayer,
    /// All layers share one.
    Global,
}

/// A cache to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    sharing: Sharing,
    capacity: Capacity,
}

impl Cache {
    /// A cache of its own for each layer, with this many slots each.
    pub fn per_layer(slots: u64) -> Cache {
        Cache {
            sharing: Sharing::PerLayer,
            capacity: Capacity::SlotsPerLayer(slots),
        }
    }

    /// One cache for all layers.
    pub fn global(capacity: Capacity) -> Cache {
        Cache {
            sharing: Sharing::Global,
            capacity,
        }
    }

    /// Whether layers share it.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Capacity of each pool, and whether that is in bytes.
    fn limit(&self, workload: &Workload) -> (u64, bool) {
        let n_layers = workload.layers().len() as u64;
        match (self.capacity, self.sharing) {
            (Capacity::SlotsPerLayer(slots), Sharing::PerLayer) => (slots, false),
            (Capacity::SlotsPerLayer(slots), Sharing::Global) => {
                (slots.saturating_mul(n_layers), false)
            }
            (Capacity::Slots(slots), _) => (slots, false),
            (Capacity::Bytes(size_bytes), _) => (size_bytes, true),
        }
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Slices used.
    pub n_accesses: u64,
    /// Those that were in the cache.
    pub n_hits: u64,
    /// Misses of slices that were never used before.
    pub n_cold_misses: u64,
    /// Bytes of the slices used.
    pub access_bytes: u64,
    /// Bytes of those that were not in the cache.
    pub miss_bytes: u64,
}

impl Counts {
    /// Slices used that were not in the cache.
    pub fn n_misses(&self) -> u64 {
        self.n_accesses - self.n_hits
    }

    /// Share of the accesses that hit, 0 to 1; 0 if there were none.
    pub fn hit_rate(&self) -> f64 {
        match self.n_accesses {
            0 => 0.0,
            count => self.n_hits as f64 / count as f64,
        }
    }

    fn add(&mut self, other: &Counts) {
        self.n_accesses += other.n_accesses;
        self.n_hits += other.n_hits;
        self.n_cold_misses += other.n_cold_misses;
        self.access_bytes += other.access_bytes;
        self.miss_bytes += other.miss_bytes;
    }
}

/// What a simulation found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// All layers.
    pub total: Counts,
    /// Each layer that has slices, in the order of [`Workload::layers`].
    pub layers: Vec<Counts>,
}

/// Simulates a policy.
pub(super) fn run(
    workload: &Workload,
    cache: Cache,
    policy: impl Policy,
) -> Result<Outcome, SimulateError> {
    let (capacity, in_bytes) = cache.limit(workload);
    check_capacity(workload, capacity, in_bytes)?;
    let mut simulation = Simulation::new(workload, cache.sharing, capacity, in_bytes, policy);
    for (token, (mut begin, groups)) in workload.tokens().enumerate() {
        if token == workload.n_warmup() {
            simulation.counts.fill(Counts::default());
        }
        let changed = simulation.policy.begin_token();
        simulation.refresh(changed, 0);
        for group in groups {
            simulation.group(begin, group.end as usize, group.layer as usize);
            begin = group.end as usize;
        }
    }
    let layers = simulation.counts;
    let mut total = Counts::default();
    for counts in &layers {
        total.add(counts);
    }
    Ok(Outcome { total, layers })
}

/// What a token uses of a layer must fit, or nothing could be evicted for it.
fn check_capacity(workload: &Workload, capacity: u64, in_bytes: bool) -> Result<(), SimulateError> {
    let mut worst = None;
    let mut most = capacity;
    for (token, (mut begin, groups)) in workload.tokens().enumerate() {
        for group in groups {
            let slices = &workload.accesses()[begin..group.end as usize];
            begin = group.end as usize;
            let needed = if in_bytes {
                let size = |&slice: &u32| workload.slices()[slice as usize].size_bytes;
                slices.iter().map(size).sum()
            } else {
                slices.len() as u64
            };
            if needed > most {
                most = needed;
                worst = Some((token, group.layer));
            }
        }
    }
    match worst {
        None => Ok(()),
        Some((token, layer)) => Err(SimulateError::TooSmall {
            capacity,
            needed: most,
            unit: if in_bytes { "bytes" } else { "slots" },
            token,
            layer: workload.layers()[layer as usize],
        }),
    }
}

struct Simulation<'a, P> {
    workload: &'a Workload,
    policy: P,
    in_bytes: bool,
    capacity: u64,
    pools: Vec<Pool>,
    /// First slice of each layer, and the end of the last.
    layer_begins: Vec<usize>,
    /// Last use of each slice, as the number of its access plus one; 0: never.
    last_used: Vec<u64>,
    counts: Vec<Counts>,
    /// Slices of the group at hand that were not in the cache.
    missing: Vec<usize>,
    /// Slices of the group at hand that are kept out of the eviction.
    pinned: Vec<(usize, u128)>,
}

struct Pool {
    /// Index of its first slice.
    first: usize,
    used: u64,
    tree: Tree,
}

impl<'a, P: Policy> Simulation<'a, P> {
    fn new(
        workload: &'a Workload,
        sharing: Sharing,
        capacity: u64,
        in_bytes: bool,
        policy: P,
    ) -> Simulation<'a, P> {
        let slices = workload.slices();
        let layer_begins: Vec<usize> = (0..=workload.layers().len() as u32)
            .map(|layer| slices.partition_point(|slice| slice.layer < layer))
            .collect();
        let pool = |first: usize, end: usize| Pool {
            first,
            used: 0,
            tree: Tree::new(end - first),
        };
        let pools = match sharing {
            Sharing::Global => vec![pool(0, slices.len())],
            Sharing::PerLayer => layer_begins
                .windows(2)
                .map(|ends| pool(ends[0], ends[1]))
                .collect(),
        };
        Simulation {
            workload,
            policy,
            in_bytes,
            capacity,
            pools,
            layer_begins,
            last_used: vec![0; slices.len()],
            counts: vec![Counts::default(); workload.layers().len()],
            missing: Vec::new(),
            pinned: Vec::new(),
        }
    }

    fn pool_index(&self, layer: usize) -> usize {
        if self.pools.len() == 1 { 0 } else { layer }
    }

    /// What decides between slices: the least goes.
    fn key(&self, slice: usize) -> u128 {
        let value = ordered_bits(self.policy.value(slice));
        u128::from(value) << 64 | u128::from(self.last_used[slice])
    }

    fn weight(&self, slice: usize) -> u64 {
        if self.in_bytes {
            self.workload.slices()[slice].size_bytes
        } else {
            1
        }
    }

    /// Takes over values that the policy changed without an access.
    fn refresh(&mut self, changed: Changed, layer: usize) {
        let slices = match changed {
            Changed::Accessed => return,
            Changed::Layer => self.layer_begins[layer]..self.layer_begins[layer + 1],
            Changed::All => 0..self.last_used.len(),
        };
        for slice in slices {
            let pool = self.pool_index(self.workload.slices()[slice].layer as usize);
            let leaf = slice - self.pools[pool].first;
            if self.pools[pool].tree.has(leaf) {
                let key = self.key(slice);
                self.pools[pool].tree.set(leaf, key);
            }
        }
    }

    fn group(&mut self, begin: usize, end: usize, layer: usize) {
        let workload = self.workload;
        let pool = self.pool_index(layer);
        let first = self.pools[pool].first;
        self.missing.clear();
        for (rank, &slice) in workload.accesses()[begin..end].iter().enumerate() {
            let slice = slice as usize;
            let size_bytes = workload.slices()[slice].size_bytes;
            let is_new = self.last_used[slice] == 0;
            self.policy.access(&Access {
                index: begin + rank,
                slice,
                layer,
                rank,
            });
            self.last_used[slice] = (begin + rank + 1) as u64;
            let counts = &mut self.counts[layer];
            counts.n_accesses += 1;
            counts.access_bytes += size_bytes;
            if self.pools[pool].tree.has(slice - first) {
                counts.n_hits += 1;
                let key = self.key(slice);
                self.pools[pool].tree.set(slice - first, key);
            } else {
                counts.n_cold_misses += u64::from(is_new);
                counts.miss_bytes += size_bytes;
                self.missing.push(slice);
            }
        }
        let changed = self.policy.end_group(layer);
        self.refresh(changed, layer);
        if !self.missing.is_empty() {
            self.insert_missing(pool, begin as u64);
        }
    }

    /// Makes room for the missing slices and puts them in. Slices last used after access `begin` belong to the group.
    fn insert_missing(&mut self, pool: usize, begin: u64) {
        let missing = std::mem::take(&mut self.missing);
        for &slice in &missing {
            let weight = self.weight(slice);
            while self.pools[pool].used + weight > self.capacity {
                let Pool { first, tree, .. } = &mut self.pools[pool];
                let (victim, key) = tree.least();
                let victim_slice = *first + victim;
                tree.remove(victim);
                if self.last_used[victim_slice] > begin {
                    self.pinned.push((victim, key));
                } else {
                    self.pools[pool].used -= self.weight(victim_slice);
                }
            }
            let key = self.key(slice);
            let Pool { first, used, tree } = &mut self.pools[pool];
            tree.set(slice - *first, key);
            *used += weight;
        }
        for (leaf, key) in self.pinned.drain(..) {
            self.pools[pool].tree.set(leaf, key);
        }
        self.missing = missing;
    }
}

/// Bits that have the order of the numbers. Zeros of both signs are equal.
fn ordered_bits(value: f64) -> u64 {
    let bits = (value + 0.0).to_bits();
    if bits >> 63 == 0 {
        bits | 1 << 63
    } else {
        !bits
    }
}

/// A tournament: the least key of a fixed number of leaves, some of which have none.
struct Tree {
    /// Padded to a power of two; `NONE` for leaves without a key.
    keys: Vec<u128>,
    /// The leaf with the least key below each node. Node 1 is the root, `n` has the children `2n` and `2n + 1`.
    winners: Vec<u32>,
}

const NONE: u128 = u128::MAX;

impl Tree {
    fn new(n_leaves: usize) -> Tree {
        let n_leaves = n_leaves.next_power_of_two().max(2);
        let mut winners = vec![0; n_leaves];
        for node in (1..n_leaves).rev() {
            winners[node] = match 2 * node {
                child if child < n_leaves => winners[child],
                leaf => (leaf - n_leaves) as u32,
            };
        }
        Tree {
            keys: vec![NONE; n_leaves],
            winners,
        }
    }

    fn has(&self, leaf: usize) -> bool {
        self.keys[leaf] != NONE
    }

    /// The leaf with the least key, and that key.
    fn least(&self) -> (usize, u128) {
        let leaf = self.winners[1] as usize;
        (leaf, self.keys[leaf])
    }

    fn remove(&mut self, leaf: usize) {
        self.set(leaf, NONE);
    }

    fn set(&mut self, leaf: usize, key: u128) {
        self.keys[leaf] = key;
        let n_leaves = self.keys.len();
        let mut node = (n_leaves + leaf) / 2;
        let mut winner = if self.keys[leaf] <= self.keys[leaf ^ 1] {
            leaf
        } else {
            leaf ^ 1
        };
        loop {
            let before = std::mem::replace(&mut self.winners[node], winner as u32) as usize;
            // Another leaf won before and now: nothing changes above.
            if node == 1 || (before == winner && winner != leaf) {
                return;
            }
            let rival = self.winners[node ^ 1] as usize;
            if self.keys[rival] < self.keys[winner] {
                winner = rival;
            }
            node /= 2;
        }
    }
}
