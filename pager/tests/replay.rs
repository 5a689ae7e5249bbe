//! What an earlier run needed is read before it is asked for: the logits stay those of a mapped model, whatever was known.

mod child;
mod decode;
mod files;

use std::path::{Path, PathBuf};
use std::time::Duration;

use child::in_child;
use decode::{
    Decoder, Fixture, assert_at_rest, context_params, decode_until_it_works, expected, paged,
};
use files::engines;
use llama_rs::{Context, Pick, Router};
use pager::engine::{EngineChoice, Fault, Faults};
use pager::{CountersSnapshot, PagedModel, Pager, PagerOptions, Replay, ReplayReport, Slices};

const N_CTX: u32 = 64;
const N_PROMPT: i32 = 7;
const N_STEPS: usize = 12;

fn fixture(shape: &str) -> Fixture {
    Fixture::new(shape, N_CTX, N_PROMPT, N_STEPS)
}

impl Fixture {
    fn options(&self, more_bytes: u64, engine: EngineChoice) -> PagerOptions {
        PagerOptions {
            replay: Replay::In(self.folder.path().join("patterns")),
            ..decode::options(self.budget_bytes + more_bytes, engine)
        }
    }

    fn pattern_file(&self) -> PathBuf {
        let mut files = std::fs::read_dir(self.folder.path().join("patterns")).unwrap();
        let file = files.next().unwrap().unwrap().path();
        assert!(files.next().is_none(), "one file for each model");
        file
    }

    /// Loads, decodes, compares, and lets the model go.
    fn run(&self, options: &PagerOptions) -> (ReplayReport, CountersSnapshot) {
        self.run_after(options, |_| ())
    }

    /// The same, with something to do before the first step.
    fn run_after(
        &self,
        options: &PagerOptions,
        before: impl FnOnce(&Pager),
    ) -> (ReplayReport, CountersSnapshot) {
        let model = paged(&self.path, options.clone());
        let mut context = Context::new(model.model(), &context_params(N_CTX)).unwrap();
        let pager = model.attach(&mut context).unwrap();
        before(&pager);
        self.decode(&mut context, &pager);
        (pager.replay().clone(), pager.counters())
    }

    fn decode(&self, context: &mut Context<'_>, pager: &Pager) {
        let mut decoder = Decoder::new(N_PROMPT);
        for (step, expected) in self.expected.iter().enumerate() {
            let logits = decoder.step(context).unwrap();
            assert!(
                logits == *expected,
                "step {step}: {} {}",
                pager.replay(),
                pager.plan()
            );
        }
        assert_at_rest(pager);
    }
}

fn size_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

#[test]
fn a_second_start_reads_what_the_first_one_needed() {
    for shape in [
        "tiny-gpt-oss-f16",
        "tiny-qwen3moe-q8_0",
        "tiny-deepseek2-f16",
    ] {
        let fixture = fixture(shape);
        for engine in engines() {
            let _ = std::fs::remove_dir_all(fixture.folder.path().join("patterns"));
            let ample = fixture.options(4 * size_bytes(&fixture.path), engine);
            let (report, first) = fixture.run(&ample);
            assert!(matches!(report, ReplayReport::Unknown { .. }), "{report}");
            assert_eq!(first.n_prefetches, 0);
            for more_bytes in [
                4 * size_bytes(&fixture.path),
                size_bytes(&fixture.path) / 4,
                0,
            ] {
                let (report, counters) = fixture.run(&fixture.options(more_bytes, engine));
                assert!(matches!(report, ReplayReport::Known { .. }), "{report}");
                let was_used = counters.n_prefetches_used > 0;
                assert!(was_used, "{shape}, {more_bytes} more: {counters:?}");
            }
            // There is room for all that was needed, and time to read it.
            let wait = |pager: &Pager| assert_at_rest(pager);
            let (_, counters) = fixture.run_after(&ample, wait);
            let n_read = counters.total.n_misses + counters.n_prefetches;
            assert_eq!(n_read, first.total.n_misses, "nothing is read twice");
            assert!(
                counters.n_prefetches > first.total.n_misses / 2,
                "{counters:?}"
            );
        }
    }
}

/// Picks what nobody else would.
struct Contrary;

impl Router for Contrary {
    fn route(&mut self, pick: Pick, experts: &mut [u32]) {
        for (place, expert) in (0..).zip(experts) {
            *expert = (place + pick.layer) % 4;
        }
    }
}

#[test]
fn what_another_routing_needed_changes_no_logit() {
    let fixture = fixture("tiny-gpt-oss-f16");
    for more_bytes in [0, size_bytes(&fixture.path) / 4] {
        let options = fixture.options(more_bytes, EngineChoice::Auto);
        {
            let model = paged(&fixture.path, options.clone());
            let params = context_params(N_CTX);
            let mut context = Context::with_router(model.model(), &params, Contrary).unwrap();
            let _pager = model.attach(&mut context).unwrap();
            let mut decoder = Decoder::new(1);
            for _ in 0..3 {
                decoder.step(&mut context).unwrap();
            }
        }
        let (report, _) = fixture.run(&options);
        assert!(matches!(report, ReplayReport::Known { .. }), "{report}");
    }
}

#[test]
fn a_file_that_is_broken_is_ignored_and_replaced() {
    let fixture = fixture("tiny-gpt-oss-f16");
    let options = fixture.options(0, EngineChoice::Auto);
    fixture.run(&options);
    let file = fixture.pattern_file();
    let whole = std::fs::read(&file).unwrap();
    assert!(whole.len() < 64 << 10, "{} bytes", whole.len());
    for (bytes, reason) in [
        (&whole[..whole.len() / 2], "checksum"),
        (&whole[..20], "cut short"),
        (
            &b"something else that is long enough"[..],
            "no file of this kind",
        ),
        (&[], "no file of this kind"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let (report, _) = fixture.run(&options);
        let report = report.to_string();
        assert!(
            report.contains(reason) && report.contains(".replay"),
            "{report}"
        );
        let (report, _) = fixture.run(&options);
        assert!(matches!(report, ReplayReport::Known { .. }), "{report}");
    }
}

/// A model that has run, and reads ahead on a device with faults.
fn known(fixture: &Fixture, engine: EngineChoice) -> (PagedModel, PagerOptions) {
    let options = fixture.options(size_bytes(&fixture.path) / 4, engine);
    fixture.run(&options);
    (paged(&fixture.path, options.clone()), options)
}

#[test]
fn faults_of_the_device_while_it_replays() {
    in_child("faults_of_the_device_while_it_replays", || {
        let fixture = fixture("tiny-gpt-oss-f16");
        let tables = gguf::ModelFiles::open(&fixture.path).unwrap();
        let slices = Slices::new(&tables).unwrap();
        let first_bytes: Vec<(u32, u64)> = slices
            .iter()
            .map(|slice| (slice.part as u32, slice.offset))
            .collect();
        for engine in engines() {
            let (model, options) = known(&fixture, engine);
            let attach = |context: &mut Context<'_>, faults| {
                model
                    .attach_faulty(context, options.clone(), faults)
                    .unwrap()
            };
            let delays = (0..2000)
                .map(|index| (index % 3 == 0).then_some(Fault::Delay(Duration::from_millis(1))));
            for faults in [Faults::random(11, 150), Faults::script(delays)] {
                let mut context = Context::new(model.model(), &context_params(N_CTX)).unwrap();
                let pager = attach(&mut context, faults);
                fixture.decode(&mut context, &pager);
                assert!(pager.counters().n_prefetches > 0);
            }

            // Nothing of what is read ahead can be read: no harm before somebody needs it.
            let broken = first_bytes.iter().fold(Faults::default(), |faults, at| {
                faults.with_broken_byte(at.0, at.1)
            });
            let mut context = Context::new(model.model(), &context_params(N_CTX)).unwrap();
            let pager = attach(&mut context, broken);
            assert_at_rest(&pager);
            let mut decoder = Decoder::new(N_PROMPT);
            let error = decoder.step(&mut context).unwrap_err().to_string();
            assert!(error.contains("Input/output error"), "{error}");
            assert_eq!(pager.census().n_lost, 0);

            // A device that comes back.
            let expected = expected(&fixture.path, N_CTX, 1, N_STEPS);
            let faults = Faults::script((0..200).map(|_| Some(Fault::Eio)));
            let mut context = Context::new(model.model(), &context_params(N_CTX)).unwrap();
            let pager = attach(&mut context, faults);
            decode_until_it_works(&mut context, &expected, 200, || {
                pager.census();
            });
            assert_at_rest(&pager);
        }
    });
}

#[test]
fn a_model_can_be_left_while_it_replays() {
    let fixture = fixture("tiny-gpt-oss-f16");
    for engine in engines() {
        let (model, options) = known(&fixture, engine);
        let slow = (0..2000).map(|_| Some(Fault::Delay(Duration::from_millis(5))));
        let mut context = Context::new(model.model(), &context_params(N_CTX)).unwrap();
        let pager = model
            .attach_faulty(&mut context, options, Faults::script(slow))
            .unwrap();
        drop(pager);
        // A run without a token leaves what was known.
        drop(context);
        drop(model);
        let again = fixture.options(0, engine);
        assert!(matches!(fixture.run(&again).0, ReplayReport::Known { .. }));
        // Before a context was made.
        drop(paged(&fixture.path, again));
    }
}
