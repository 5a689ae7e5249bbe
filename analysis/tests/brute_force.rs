//! Every policy and cache equals a model that is slow and obviously right, and Belady's policy equals the optimum found by
//! trying everything.

use std::collections::BTreeMap;

use analysis::routing::{RoutingTrace, Shape};
use analysis::simulate::{
    Cache, Capacity, Counts, Mix, OnlinePolicy, PolicyName, Window, Workload, simulate,
};
use forecast::NextUse;
use proptest::prelude::*;
use tracer::{Access, Flags, LogReader, LogWriter, Node, OnFull, Op, Record, Tables, Tensor};

/// A slice by layer and by number in its layer.
type Slice = (usize, usize);

/// For each token and layer the slices in the order of use.
type Tokens = Vec<Vec<Vec<usize>>>;

struct Model {
    /// By layer and slice.
    sizes: Vec<Vec<u64>>,
    tokens: Tokens,
    is_global: bool,
    capacity: u64,
    in_bytes: bool,
    n_warmup: usize,
}

impl Model {
    fn weight(&self, (layer, slice): Slice) -> u64 {
        if self.in_bytes {
            self.sizes[layer][slice]
        } else {
            1
        }
    }

    /// How many uses until the slice is used next, after a place in the trace.
    fn next_use(&self, (layer, slice): Slice, token: usize, after_layer: usize) -> usize {
        let mut distance = 0;
        for (later, layers) in self.tokens.iter().enumerate().skip(token) {
            for (other, slices) in layers.iter().enumerate() {
                if later == token && other <= after_layer {
                    continue;
                }
                for &candidate in slices {
                    if (other, candidate) == (layer, slice) {
                        return distance;
                    }
                    distance += 1;
                }
            }
        }
        usize::MAX
    }

    /// Counts of each layer.
    fn run(&self, policy: &PolicyName) -> Vec<Counts> {
        let n_layers = self.sizes.len();
        let mut counts = vec![Counts::default(); n_layers];
        let mut resident: Vec<Slice> = Vec::new();
        let mut last_used: BTreeMap<Slice, usize> = BTreeMap::new();
        let mut uses: BTreeMap<Slice, f64> = BTreeMap::new();
        let mut clock = 0;
        // Slices of each token before, and of this one so far.
        let (mut used_by, mut now) = (Vec::new(), Vec::new());
        let mut next = NextUse::new(&self.sizes.iter().map(Vec::len).collect::<Vec<_>>());
        for (token, layers) in self.tokens.iter().enumerate() {
            if token == self.n_warmup {
                counts.fill(Counts::default());
            }
            if let PolicyName::Online(OnlinePolicy::LfuDecay(decay)) = policy {
                uses.values_mut().for_each(|count| *count *= decay);
            }
            if token > 0 {
                used_by.push(std::mem::take(&mut now));
            }
            for (layer, slices) in layers.iter().enumerate() {
                let mut missing = Vec::new();
                for &slice in slices {
                    let key = (layer, slice);
                    let size_bytes = self.sizes[layer][slice];
                    let counts = &mut counts[layer];
                    counts.n_accesses += 1;
                    counts.access_bytes += size_bytes;
                    if resident.contains(&key) {
                        counts.n_hits += 1;
                    } else {
                        counts.miss_bytes += size_bytes;
                        counts.n_cold_misses += u64::from(!last_used.contains_key(&key));
                        missing.push(key);
                    }
                    clock += 1;
                    last_used.insert(key, clock);
                    *uses.entry(key).or_default() += 1.0;
                    now.push(key);
                }
                let picks: Vec<u32> = slices.iter().map(|&slice| slice as u32).collect();
                next.observe(layer, &picks);
                for key in missing {
                    loop {
                        let mut pool: Vec<Slice> = resident.clone();
                        pool.retain(|other| self.is_global || other.0 == layer);
                        let used: u64 = pool.iter().map(|&other| self.weight(other)).sum();
                        if used + self.weight(key) <= self.capacity {
                            break;
                        }
                        pool.retain(|other| other.0 != layer || !slices.contains(&other.1));
                        pool.sort_by_key(|other| last_used[other]);
                        let online = |policy: &OnlinePolicy, other: &Slice| match policy {
                            OnlinePolicy::Lru => 0.0,
                            OnlinePolicy::LfuDecay(_) => uses[other],
                            OnlinePolicy::LfuMix(mix) => {
                                let rate = |decay: f64| {
                                    let history = used_by.iter().chain([&now]);
                                    history.fold(0.0, |rate, used: &Vec<Slice>| {
                                        let is_used = f64::from(u8::from(used.contains(other)));
                                        rate * decay + (1.0 - decay) * is_used
                                    })
                                };
                                mix.short_share * rate(mix.short_decay)
                                    + (1.0 - mix.short_share) * rate(mix.long_decay)
                            }
                            OnlinePolicy::NextUse => -next.of(other.0, other.1),
                        };
                        let value = |other: &Slice| match policy {
                            PolicyName::Online(policy) => online(policy, other),
                            PolicyName::Belady => -(self.next_use(*other, token, layer) as f64),
                        };
                        // The first of equal ones: the sort is by last use.
                        let victim = *pool
                            .iter()
                            .min_by(|left, right| value(left).total_cmp(&value(right)))
                            .unwrap();
                        resident.retain(|&other| other != victim);
                    }
                    resident.push(key);
                }
            }
        }
        counts
    }

    /// The fewest misses of all that can be done, for slices of one size and one cache.
    fn optimum(&self) -> u64 {
        let n_slices = self.sizes[0].len();
        let bit = |layer: usize, slice: usize| 1u32 << (layer * n_slices + slice);
        let mut states = BTreeMap::from([(0u32, 0u64)]);
        for layers in &self.tokens {
            for (layer, slices) in layers.iter().enumerate() {
                let needed = slices.iter().fold(0, |set, &slice| set | bit(layer, slice));
                let mut next: BTreeMap<u32, u64> = BTreeMap::new();
                for (&set, &misses) in &states {
                    let misses = misses + u64::from((needed & !set).count_ones());
                    let all = set | needed;
                    // All subsets that have what is needed and fit.
                    let rest = all & !needed;
                    let mut kept = rest;
                    loop {
                        let after = kept | needed;
                        if u64::from(after.count_ones()) <= self.capacity {
                            let best = next.entry(after).or_insert(u64::MAX);
                            *best = misses.min(*best);
                        }
                        if kept == 0 {
                            break;
                        }
                        kept = (kept - 1) & rest;
                    }
                }
                states = next;
            }
        }
        states.into_values().min().unwrap()
    }
}

/// A decay that is a power of two: counts stay exact however they are computed.
const POLICIES: [PolicyName; 7] = [
    PolicyName::LRU,
    PolicyName::LFU,
    PolicyName::lfu_decay(0.5),
    PolicyName::lfu_decay(0.99),
    PolicyName::Online(OnlinePolicy::LfuMix(Mix {
        short_decay: 0.5,
        long_decay: 0.75,
        short_share: 0.25,
    })),
    PolicyName::NEXT_USE,
    PolicyName::Belady,
];

/// Random tokens: layers, slices per layer, slices used together.
fn tokens(
    n_layers: usize,
    n_slices: usize,
    top_k: usize,
    n_tokens: std::ops::Range<usize>,
) -> impl Strategy<Value = Tokens> {
    // Low numbers more often: without skew, policies hardly differ.
    let layer = prop::collection::vec(0.0f64..1.0, n_slices).prop_map(move |draws| {
        let mut slices: Vec<usize> = (0..n_slices).collect();
        slices.sort_by(|&left, &right| {
            let weight = |slice: usize| draws[slice] * (slice + 1) as f64;
            weight(left).total_cmp(&weight(right))
        });
        slices.truncate(top_k);
        slices
    });
    prop::collection::vec(prop::collection::vec(layer, n_layers), n_tokens)
}

fn workload(tokens: &Tokens, n_slices: usize, window: Window) -> Workload {
    let top_k = tokens[0][0].len();
    let shape = Shape {
        n_tokens: tokens.len(),
        n_layers: tokens[0].len(),
        n_experts: n_slices,
        top_k,
    };
    let experts = tokens
        .iter()
        .flatten()
        .flatten()
        .map(|&slice| slice as u8)
        .collect();
    let trace = RoutingTrace::from_parts("random", shape, vec![tokens.len()], experts).unwrap();
    Workload::from_routing(&trace, window, Some(3)).unwrap()
}

fn assert_equal(model: &Model, workload: &Workload, cache: Cache) {
    for policy in POLICIES {
        let outcome = simulate(workload, cache, &policy).unwrap();
        assert_eq!(outcome.layers, model.run(&policy), "{policy}, {cache:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn caches_of_slots(
        tokens in tokens(3, 9, 3, 2..40),
        slots in 3u64..9,
        skip in 0usize..3,
        warmup in 0usize..3,
    ) {
        prop_assume!(skip + warmup < tokens.len());
        let window = Window { skip, warmup, n_tokens: Some(30) };
        let workload = workload(&tokens, 9, window);
        let mut model = Model {
            sizes: vec![vec![3; 9]; 3],
            tokens: tokens.into_iter().skip(skip).take(warmup + 30).collect(),
            is_global: false,
            capacity: slots,
            in_bytes: false,
            n_warmup: warmup,
        };
        assert_equal(&model, &workload, Cache::per_layer(slots));

        model.is_global = true;
        model.capacity = 3 * slots;
        assert_equal(&model, &workload, Cache::global(Capacity::SlotsPerLayer(slots)));
        assert_equal(&model, &workload, Cache::global(Capacity::Slots(3 * slots)));
        model.in_bytes = true;
        model.capacity = 9 * slots + 1;
        assert_equal(&model, &workload, Cache::global(Capacity::Bytes(9 * slots + 1)));
    }

    /// Two tensors of different size per layer, from an access log with a prompt and a step that was cut off.
    #[test]
    fn caches_of_bytes_from_an_access_log(
        experts in tokens(2, 5, 2, 1..30),
        sizes in prop::array::uniform4(1u64..9),
        spare in 0u64..60,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let log = write_log(&folder.path().join("run.ftrace"), &experts, sizes);
        let workload = Workload::from_log(&log, "run.ftrace", Window::default()).unwrap();
        prop_assert_eq!(workload.layers(), [3, 7]);
        let both = |slices: Vec<usize>| slices.iter().copied().chain(slices.iter().map(|slice| slice + 5)).collect();
        let model = Model {
            sizes: sizes.chunks(2).map(|pair| [[pair[0]; 5], [pair[1]; 5]].concat()).collect(),
            tokens: experts.into_iter().map(|layers| layers.into_iter().map(both).collect()).collect(),
            is_global: true,
            capacity: 36 + spare,
            in_bytes: true,
            n_warmup: 0,
        };
        assert_equal(&model, &workload, Cache::global(Capacity::Bytes(36 + spare)));
    }

    #[test]
    fn belady_is_the_optimum(tokens in tokens(2, 4, 2, 1..9), slots in 2u64..8) {
        let workload = workload(&tokens, 4, Window::default());
        let mut model = Model {
            sizes: vec![vec![3; 4]; 2],
            tokens,
            is_global: true,
            capacity: slots,
            in_bytes: false,
            n_warmup: 0,
        };
        let misses = |cache| simulate(&workload, cache, &PolicyName::Belady).unwrap().layers;
        let global = misses(Cache::global(Capacity::Slots(slots)));
        prop_assert_eq!(global.iter().map(Counts::n_misses).sum::<u64>(), model.optimum());

        let per_layer = misses(Cache::per_layer(slots));
        let all = model.tokens.clone();
        for layer in 0..2 {
            model.tokens = all.iter().map(|layers| vec![layers[layer].clone()]).collect();
            prop_assert_eq!(per_layer[layer].n_misses(), model.optimum());
        }
    }
}

/// Layers 3 and 7 have two tensors of 5 experts each, whose sizes are given by layer and tensor.
fn write_log(path: &std::path::Path, tokens: &Tokens, sizes: [u64; 4]) -> LogReader {
    let tensor = |layer: usize, component: usize| Tensor {
        name: format!("blk.{layer}.{component}_exps.weight"),
        size_bytes: 5 * sizes[2 * layer + component],
        slice_stride_bytes: sizes[2 * layer + component],
        n_slices: 5,
        layer: [3, 7][layer],
        ..Tensor::default()
    };
    let tables = Tables {
        // Not in the order of use.
        tensors: vec![tensor(1, 1), tensor(1, 0), tensor(0, 0), tensor(0, 1)],
        ..Tables::default()
    };
    let mut log = LogWriter::create(path, &tables, 1 << 20, OnFull::Wrap).unwrap();
    let mut step = 0;
    let mut push = |layers: &[Vec<usize>], flags: Flags, is_whole: bool| {
        log.push(Record::step_begin(0, step, 1, 1, flags));
        for (layer, experts) in layers.iter().enumerate() {
            for component in 0..2 {
                let id = [[2, 3], [1, 0]][layer][component];
                let node = |op| Node {
                    op,
                    step,
                    flags,
                    ..Node::default()
                };
                let access = |tensor, slice| Access {
                    tensor,
                    slice,
                    n_used: 1,
                };
                log.push_node(&node(Op::GET_ROWS), std::iter::once(access(id, 4)));
                let slices = experts.iter().map(|&slice| access(id, slice as u32));
                log.push_node(&node(Op::MUL_MAT_ID), slices);
            }
        }
        if is_whole {
            log.push(Record::step_end(0, 1, step, flags));
        }
        step += 1;
    };
    push(
        &[vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4]],
        Flags::PROMPT,
        true,
    );
    push(&[vec![4, 3], vec![4, 3]], Flags::default(), false);
    for layers in tokens {
        push(layers, Flags::default(), true);
    }
    push(&[vec![4, 3]], Flags::default(), false);
    log.finish().unwrap();
    LogReader::open(path).unwrap()
}
