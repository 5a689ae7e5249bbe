//! Experts that are read ahead: who says which, how well, and that the logits stay the same. `identity.rs` compares more of them.

mod decode;

use std::sync::{Arc, Mutex};

use decode::{at_rest, context_of_threads, logits, model_file, options, paged, smallest_budget};
use llama_rs::{Context, Pick, Router};
use pager::engine::EngineChoice;
use pager::{CountersSnapshot, Foresight, Lookahead, PagerOptions};

const STEPS: usize = 60;

/// The counters of a decode with a third of the experts, and what it gave.
fn decode(path: &std::path::Path, lookahead: Lookahead) -> (CountersSnapshot, Vec<Vec<u32>>) {
    let size_bytes = std::fs::metadata(path).unwrap().len();
    let budget_bytes = smallest_budget(path, 256) + size_bytes / 6;
    let model = paged(
        path,
        PagerOptions {
            lookahead,
            ..options(budget_bytes, EngineChoice::Auto)
        },
    );
    let mut context = Context::new(model.model(), &context_of_threads(2)).unwrap();
    let pager = model.attach(&mut context).unwrap();
    let found = logits(&mut context, STEPS);
    at_rest(&pager).unwrap();
    (pager.counters(), found)
}

#[test]
fn the_next_router_is_computed_in_advance_and_says_more_than_chance() {
    let folder = decode::folder();
    for (shape, chance) in [
        ("tiny-gpt-oss-f16", 2.0 / 8.0),
        ("tiny-qwen3moe-q8_0", 4.0 / 16.0),
    ] {
        let path = model_file(folder.path(), shape);
        let (off, expected) = decode(&path, Lookahead::Off);
        assert_eq!((off.n_foreseeable, off.n_prefetches), (0, 0));
        let (on, found) = decode(&path, Lookahead::Router(0.1));
        assert!(found == expected, "{shape}");
        let share = on.n_foreseen as f64 / on.n_foreseeable as f64;
        assert!(
            on.n_prefetches > 0 && share > 1.5 * chance,
            "{shape}: {on:?}"
        );
        let (picks, found) = decode(&path, Lookahead::Picks(0.1));
        assert!(found == expected && picks.n_foreseeable == 0, "{shape}");
    }
}

/// By token and layer.
type Picks = Vec<(u32, Vec<u32>)>;

/// Writes down what the model picks, one token at a time.
#[derive(Default)]
struct Note(Arc<Mutex<Picks>>);

impl Router for Note {
    fn route(&mut self, pick: Pick, experts: &mut [u32]) {
        self.0.lock().unwrap().push((pick.layer, experts.to_vec()));
    }
}

/// Knows all picks, asked for layer after layer.
#[derive(Debug)]
struct Known {
    picks: Picks,
    asked: Mutex<usize>,
}

impl Foresight for Known {
    fn experts(&self, layer: u32, is_next_token: bool, experts: &mut Vec<u32>) {
        assert_eq!(is_next_token, layer == 0);
        let mut asked = self.asked.lock().unwrap();
        // The first question is about the first token after the prompt, of which the last layer computes one token.
        if let Some((known, picks)) = self.picks.get(*asked) {
            assert_eq!(*known, layer);
            experts.extend(picks);
        }
        *asked += 1;
        // What there is none of is passed over.
        experts.push(u32::MAX);
    }
}

#[test]
fn who_knows_what_comes_saves_misses() {
    let folder = decode::folder();
    let path = model_file(folder.path(), "tiny-gpt-oss-f16");
    let n_layers = 3;
    let (off, expected) = decode(&path, Lookahead::Off);
    let noted = Arc::new(Mutex::new(Picks::new()));
    {
        let model = decode::mapped(&path);
        let note = Note(Arc::clone(&noted));
        let mut context = Context::with_router(&model, &context_of_threads(1), note).unwrap();
        assert!(logits(&mut context, STEPS) == expected);
    }
    let mut picks = noted.lock().unwrap().clone();
    // Those of the prompt's tokens are not asked for.
    picks.drain(..picks.len() - STEPS * n_layers);
    let known = Known {
        picks,
        asked: Mutex::new(0),
    };
    let (on, found) = decode(&path, Lookahead::Told(Arc::new(known)));
    assert!(found == expected);
    assert!(
        on.n_prefetches_used > 0 && on.total.n_misses < off.total.n_misses,
        "{on:?} {off:?}"
    );
}
