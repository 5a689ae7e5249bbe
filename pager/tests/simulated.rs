//! The pager reads what the simulator says, on a model that decodes.

mod child;
mod decode;

use analysis::routing::{RoutingTrace, Shape};
use analysis::simulate::{Cache, Capacity, Window, Workload, simulate};
use child::in_child;
use decode::{context_params, folder, model_file, options, paged};
use llama_rs::{Batch, Context, Pick, Router, Step, Token};
use pager::PagerOptions;
use pager::engine::EngineChoice;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const SHAPE: &str = "tiny-qwen3moe-f16";
const N_LAYERS: usize = 2;
const N_EXPERTS: usize = 16;
const N_USED: usize = 4;
const N_TENSORS: usize = 3;
const N_TOKENS: usize = 300;

/// `[token][layer][rank]`: a few experts are used often, and which they are changes now and then.
fn routing() -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(11);
    let mut experts = Vec::new();
    let mut favourites: Vec<Vec<u8>> = vec![(0..N_EXPERTS as u8).collect(); N_LAYERS];
    for token in 0..N_TOKENS {
        for order in &mut favourites {
            if token % 50 == 0 {
                order.shuffle(&mut rng);
            }
            let mut chosen: Vec<u8> = Vec::new();
            while chosen.len() < N_USED {
                // The smaller of two: the first of the order is drawn most often.
                let place = rng
                    .random_range(0..N_EXPERTS)
                    .min(rng.random_range(0..N_EXPERTS));
                if !chosen.contains(&order[place]) {
                    chosen.push(order[place]);
                }
            }
            experts.extend(chosen);
        }
    }
    experts
}

/// Gives each token the experts of the routing.
struct Replay {
    experts: Vec<u8>,
    token: usize,
}

impl Router for Replay {
    fn route(&mut self, pick: Pick, experts: &mut [u32]) {
        let begin = (self.token * N_LAYERS + pick.layer as usize) * N_USED;
        let chosen = &self.experts[begin..begin + N_USED];
        for (expert, chosen) in experts.iter_mut().zip(chosen) {
            *expert = u32::from(*chosen);
        }
    }

    fn step_end(&mut self, step: &Step<'_>, _: bool) {
        self.token += step.n_tokens();
    }
}

/// Bytes that the simulator misses, where an expert's tensors are slices of their own, as in the pager.
fn simulated_bytes(experts: &[u8], n_slots: u32, slice_bytes: u64, policy: &str) -> u64 {
    let tensors = |expert: u8| (0..N_TENSORS as u8).map(move |tensor| expert * 3 + tensor);
    let shape = Shape {
        n_tokens: N_TOKENS,
        n_layers: N_LAYERS,
        n_experts: N_EXPERTS * N_TENSORS,
        top_k: N_USED * N_TENSORS,
    };
    let slices: Vec<u8> = experts.iter().copied().flat_map(tensors).collect();
    let trace = RoutingTrace::from_parts("drawn", shape, vec![N_TOKENS], slices).unwrap();
    let workload = Workload::from_routing(&trace, Window::default(), Some(slice_bytes)).unwrap();
    let cache = Cache::global(Capacity::Slots(u64::from(n_slots)));
    let outcome = simulate(&workload, cache, &policy.parse().unwrap()).unwrap();
    outcome.total.miss_bytes
}

#[test]
fn missed_bytes_are_those_of_the_simulator() {
    in_child("missed_bytes_are_those_of_the_simulator", || {
        const N_CTX: u32 = N_TOKENS as u32;
        let folder = folder();
        let path = model_file(folder.path(), SHAPE);
        let experts = routing();
        let params = context_params(N_CTX);
        let smallest = decode::smallest_budget(&path, N_CTX);
        for policy in ["lfu-decay:0.95", "lfu-decay:0.99", "lru"] {
            for more_bytes in [0, 4 << 20, 6 << 20] {
                let options = PagerOptions {
                    policy: policy.parse().unwrap(),
                    ..options(smallest + more_bytes, EngineChoice::Auto)
                };
                let model = paged(&path, options);
                let replay = Replay {
                    experts: experts.clone(),
                    token: 0,
                };
                let mut context = Context::with_router(model.model(), &params, replay).unwrap();
                let pager = model.attach(&mut context).unwrap();
                let [class] = pager.plan().slots[..] else {
                    panic!("slices of one size: {}", pager.plan());
                };
                let mut batch = Batch::new(1, 1);
                for position in 0..N_TOKENS as i32 {
                    batch.clear();
                    batch
                        .add(Token(position % 64), position, &[0], true)
                        .unwrap();
                    context.decode(&batch).unwrap();
                }
                let found = pager.counters().total;
                let n_requests = (N_TOKENS * N_LAYERS * N_USED * N_TENSORS) as u64;
                assert_eq!(found.n_requests(), n_requests);
                let slice_bytes = class.slices_bytes / u64::from(class.n_slices);
                let expected = simulated_bytes(&experts, class.n_slots, slice_bytes, policy);
                let ratio = found.miss_bytes as f64 / expected as f64;
                eprintln!(
                    "{policy}, {} slots for {} slices: {} bytes missed, {ratio:.4} of what the simulator says",
                    class.n_slots, class.n_slices, found.miss_bytes
                );
                assert!((0.98..=1.02).contains(&ratio), "{ratio}");
                assert!(found.n_hits > n_requests / 20 && found.n_misses > n_requests / 50);
            }
        }
    });
}
