//! A whole model decodes while its device fails: the logits are those of a mapped model, or the decode ends with an error that
//! says where, and the model can be used again.

mod child;
mod decode;
mod files;

use std::path::Path;
use std::time::Duration;

use child::in_child;
use decode::{
    Decoder, Fixture, assert_at_rest, context_params, decode_until_it_works, expected, options,
    paged,
};
use files::engines;
use pager::engine::{EngineChoice, Fault, Faults};
use pager::{PagedModel, Slices};

const SHAPE: &str = "tiny-gpt-oss-f16";
const N_CTX: u32 = 128;
const N_PROMPT: i32 = 7;
const N_STEPS: usize = 24;

fn fixture(shape: &str) -> Fixture {
    Fixture::new(shape, N_CTX, N_PROMPT, N_STEPS)
}

impl Fixture {
    fn load(&self, engine: EngineChoice) -> PagedModel {
        paged(&self.path, options(self.budget_bytes, engine))
    }
}

/// Every 30th request meets the fault: fewer than those of one layer, so no read meets it four times.
fn now_and_then(fault: Fault) -> Faults {
    let script = (0..9_000).map(|index| (index % 30 == 1).then_some(fault));
    Faults::script(script)
}

#[test]
fn faults_that_pass_change_no_logit() {
    in_child("faults_that_pass_change_no_logit", || {
        let fixture = fixture(SHAPE);
        let faults = [
            (
                "delay",
                now_and_then(Fault::Delay(Duration::from_millis(2))),
            ),
            ("short", now_and_then(Fault::Short)),
            ("EIO", now_and_then(Fault::Eio)),
            ("EAGAIN", now_and_then(Fault::Eagain)),
            ("EINTR", now_and_then(Fault::Eintr)),
            ("cancelled", now_and_then(Fault::Cancelled)),
            ("full", now_and_then(Fault::Full)),
            ("any, in any order", Faults::random(7, 150)),
        ];
        for engine in engines() {
            let model = fixture.load(engine);
            let options = options(fixture.budget_bytes, engine);
            for (name, faults) in &faults {
                let mut context =
                    llama_rs::Context::new(model.model(), &context_params(N_CTX)).unwrap();
                let pager = model
                    .attach_faulty(&mut context, options.clone(), faults.clone())
                    .unwrap();
                let mut decoder = Decoder::new(N_PROMPT);
                for (step, expected) in fixture.expected.iter().enumerate() {
                    let logits = decoder.step(&mut context);
                    let logits = logits
                        .unwrap_or_else(|error| panic!("{engine:?}, {name}, {step}: {error}"));
                    assert!(logits == *expected, "{engine:?}, {name}, step {step}");
                }
                let reads = pager.read_counters();
                assert!(pager.counters().n_evictions > 0 && reads.n_failed == 0);
                let is_retried = !["delay", "full"].contains(name);
                assert_eq!(reads.n_retries > 4, is_retried, "{name}: {reads:?}");
                assert_at_rest(&pager);
            }
        }
    });
}

/// The first byte of every expert of a layer's tensor.
fn experts_of(path: &Path, name: &str) -> Vec<(u32, u64)> {
    let tables = gguf::ModelFiles::open(path).unwrap();
    let slices = Slices::new(&tables).unwrap();
    let mut stacks = slices.sparse_tensors().iter();
    let stack = stacks.find(|stack| stack.name == name).unwrap();
    stack
        .slices()
        .map(|id| (stack.part as u32, slices.slice(id).offset))
        .collect()
}

#[test]
fn a_fault_that_stays_ends_the_decode_by_name_and_the_model_can_be_used_again() {
    in_child(
        "a_fault_that_stays_ends_the_decode_by_name_and_the_model_can_be_used_again",
        || {
            let fixture = fixture(SHAPE);
            let name = "blk.1.ffn_down_exps.weight";
            let experts = experts_of(&fixture.path, name);
            for engine in engines() {
                let model = fixture.load(engine);
                let options = options(fixture.budget_bytes, engine);
                let mut context =
                    llama_rs::Context::new(model.model(), &context_params(N_CTX)).unwrap();
                let healthy = model.attach(&mut context).unwrap();
                let mut decoder = Decoder::new(N_PROMPT);
                assert!(decoder.step(&mut context).unwrap() == fixture.expected[0]);

                let broken = experts.iter().fold(Faults::default(), |faults, expert| {
                    faults.with_broken_byte(expert.0, expert.1)
                });
                let pager = model
                    .attach_faulty(&mut context, options.clone(), broken)
                    .unwrap();
                for _ in 0..3 {
                    let error = decoder.step(&mut context).unwrap_err().to_string();
                    let page = |offset: u64| format!("at byte {} ", offset / 4096 * 4096);
                    let says_where = experts.iter().any(|expert| error.contains(&page(expert.1)));
                    assert!(says_where, "{error}");
                    for part in [SHAPE, name, "Input/output error", "4 attempts"] {
                        assert!(error.contains(part), "{part} is not in: {error}");
                    }
                }
                assert_eq!(pager.census().n_lost, 0);
                // The pager of before has all that it had.
                drop(pager);
                assert_eq!(healthy.census().n_lost, 0);
                let _again = model.attach(&mut context).unwrap();
                for expected in &fixture.expected[1..] {
                    assert!(decoder.step(&mut context).unwrap() == *expected);
                }
            }
        },
    );
}

/// A device that is gone for a while. What is left over of a step that failed fails no later step.
#[test]
fn the_same_pager_goes_on_when_the_device_is_back() {
    in_child("the_same_pager_goes_on_when_the_device_is_back", || {
        let fixture = fixture(SHAPE);
        let expected = expected(&fixture.path, N_CTX, 1, 12);
        for engine in engines() {
            for n_broken in [30, 400] {
                let model = fixture.load(engine);
                let options = options(fixture.budget_bytes, engine);
                let mut context =
                    llama_rs::Context::new(model.model(), &context_params(N_CTX)).unwrap();
                let faults = Faults::script((0..n_broken).map(|_| Some(Fault::Eio)));
                let pager = model
                    .attach_faulty(&mut context, options.clone(), faults)
                    .unwrap();
                // The reads that are left end, with errors while there are some.
                decode_until_it_works(&mut context, &expected, n_broken, || {
                    pager.census();
                });
                assert_at_rest(&pager);
            }
        }
    });
}

/// Rows of a large embedding are read one by one.
#[test]
fn rows_of_the_embedding_fail_as_experts_do() {
    in_child("rows_of_the_embedding_fail_as_experts_do", || {
        let fixture = fixture("tiny-gpt-oss-wide");
        let tables = gguf::ModelFiles::open(&fixture.path).unwrap();
        let slices = Slices::new(&tables).unwrap();
        let embedding = slices
            .embedding()
            .expect("an embedding that is read by rows");
        for engine in engines() {
            let model = fixture.load(engine);
            let options = options(fixture.budget_bytes, engine);
            let mut context =
                llama_rs::Context::new(model.model(), &context_params(N_CTX)).unwrap();
            let mut decoder = Decoder::new(1);
            // That of the only token of the prompt.
            let row = embedding.offset + 3 * embedding.row_bytes;
            let broken = Faults::default().with_broken_byte(embedding.part as u32, row);
            let pager = model
                .attach_faulty(&mut context, options.clone(), broken)
                .unwrap();
            for _ in 0..2 {
                let error = decoder.step(&mut context).unwrap_err().to_string();
                for part in ["token_embd.weight", "Input/output error", "4 attempts"] {
                    assert!(error.contains(part), "{part} is not in: {error}");
                }
            }
            assert_at_rest(&pager);

            let faults = Faults::random(3, 150);
            let _pager = model
                .attach_faulty(&mut context, options.clone(), faults)
                .unwrap();
            let mut decoder = Decoder::new(N_PROMPT);
            for expected in &fixture.expected {
                assert!(
                    decoder.step(&mut context).unwrap() == *expected,
                    "{engine:?}"
                );
            }
        }
    });
}
