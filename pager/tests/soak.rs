//! 2,000 tokens at random budgets, from a device that stalls and fails at random.

mod child;
mod decode;
mod files;

use child::in_child;
use decode::{Decoder, Fixture, assert_at_rest, context_params, options, paged};
use files::engines;
use llama_rs::Context;
use pager::engine::Faults;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SHAPE: &str = "tiny-qwen3moe-f16";
const N_TOKENS: usize = 2_000;
const N_PROMPT: i32 = 7;
/// Tokens until the budget and the faults change.
const PERIOD: std::ops::Range<usize> = 10..60;
/// Reads of a thousand that stall or fail, at most.
const FAULTS_MAX_PER_MILLE: u32 = 60;

#[test]
fn two_thousand_tokens_lose_no_slot_and_change_no_logit() {
    in_child(
        "two_thousand_tokens_lose_no_slot_and_change_no_logit",
        || {
            let engines = engines();
            let n_each = N_TOKENS / engines.len();
            let n_ctx = n_each as u32 + 64;
            let fixture = Fixture::new(SHAPE, n_ctx, N_PROMPT, n_each);
            let size_bytes = std::fs::metadata(&fixture.path).unwrap().len();
            let mut rng = StdRng::seed_from_u64(5);
            for engine in engines {
                let model = paged(&fixture.path, options(fixture.budget_bytes, engine));
                let mut context = Context::new(model.model(), &context_params(n_ctx)).unwrap();
                let mut decoder = Decoder::new(N_PROMPT);
                let (mut n_done, mut n_retries, mut n_evictions) = (0, 0, 0);
                while n_done < n_each {
                    let budget_bytes = fixture.budget_bytes + rng.random_range(0..size_bytes / 2);
                    let per_mille = rng.random_range(0..=FAULTS_MAX_PER_MILLE);
                    let faults = Faults::random(rng.random(), per_mille);
                    let options = options(budget_bytes, engine);
                    let pager = model
                        .attach_faulty(&mut context, options.clone(), faults)
                        .unwrap();
                    let until = n_each.min(n_done + rng.random_range(PERIOD));
                    let mut n_failed = 0;
                    while n_done < until {
                        match decoder.step(&mut context) {
                            Ok(logits) => {
                                assert!(
                                    logits == fixture.expected[n_done],
                                    "{engine:?}, token {n_done}"
                                );
                                n_done += 1;
                            }
                            // Four times in a row the same read failed.
                            Err(error) => {
                                n_failed += 1;
                                assert!(error.to_string().contains("attempts"), "{error}");
                                assert!(n_done > 0 && n_failed < 5, "token {n_done}: {error}");
                            }
                        }
                    }
                    assert_at_rest(&pager);
                    n_retries += pager.read_counters().n_retries;
                    n_evictions += pager.counters().n_evictions;
                }
                assert!(
                    n_retries > 40 && n_evictions > 1_000,
                    "{n_retries} retries, {n_evictions} evictions"
                );
            }
        },
    );
}
