//! 256 greedy tokens with the pager have the logits of plain llama.cpp with all weights in memory, bit for bit: at every budget, with every
//! strategy, with mixtures of experts and with dense models.
//!
//! Each token's whole row of logits is compared, that of the prompt's last token first. What is in memory is loaded by llama.cpp alone; where
//! `FAULTLINE_STOCK_WORKER` names the program of `bench/stock`, as in `make test`, its rows are those of a build without patches, token by token.
//!
//! The three tiny mixtures of experts do not run with all 1,728 combinations of the options below, but with a part of them: any two values of different
//! options come together on each of the three, any three values on one of them. The real models run with few: every budget, streamed and whole, repacked
//! and not. `scripts/check-identity.sh` does the same with the full shapes.

mod covering;
mod decode;
mod files;
mod reference;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use covering::covering;
use decode::{Decoder, at_rest, folder, model_file, model_file_of};
use files::engines;
use llama_rs::Backend;
use model_shapes::local::real_model;
use pager::engine::EngineChoice;
use pager::plan::SlotClass;
use pager::{MemoryPlan, PagedModel, Pager, PagerOptions, PolicyName, Replay, ReplayReport};
use reference::{Arithmetic, Reference};

/// After the prompt.
const N_STEPS: u32 = 256;

/// With seeds whose greedy text does not end in one token again and again, so that slices come and go.
const SHAPES: [(&str, u64); 3] = [
    ("tiny-gpt-oss", 21),
    ("tiny-qwen3moe", 14),
    ("tiny-deepseek2-deep", 9),
];

/// Threads of a graph spin for each other: two models that compute at once on two cores take many times as long.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// The smallest budget that works.
    Smallest,
    /// Some of the weights do not fit.
    Middle,
    /// More than the file.
    Ample,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// Nothing is recorded.
    Off,
    /// This run is recorded.
    First,
    /// An earlier run was recorded, and is replayed.
    Known,
}

/// One way to run a model.
#[derive(Clone, Copy, Debug)]
struct Case {
    arithmetic: Arithmetic,
    size: Size,
    engine: EngineChoice,
    past: Past,
    /// Whether dense weights are planned for, and those that do not fit are streamed.
    streams: bool,
    lookahead: &'static str,
    policy: PolicyName,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "budget {:?}, policy {}, lookahead {}, replay {:?}, dense on demand {}, {:?}, {:?}",
            self.size,
            self.policy,
            self.lookahead,
            self.past,
            self.streams,
            self.engine,
            self.arithmetic
        )
    }
}

/// The combinations for the mixtures of experts, with the index of the shape.
fn cases() -> Vec<(usize, Case)> {
    let sizes = [Size::Smallest, Size::Middle, Size::Ample];
    let policies = ["lfu", "lru", "next-use"].map(|name| name.parse().unwrap());
    let pasts = [Past::Off, Past::First, Past::Known];
    let engines = engines();
    let lookaheads = ["off", "picks:0.2", "router:0.1"];
    let n_prompts = [1, 21];
    let n_values = [3, 3, 3, engines.len(), 2, 3, 2, 2, 2, SHAPES.len()];
    let case = |values: Vec<usize>| {
        let case = Case {
            size: sizes[values[0]],
            policy: policies[values[1]],
            past: pasts[values[2]],
            engine: engines[values[3]],
            streams: values[4] == 1,
            lookahead: lookaheads[values[5]],
            arithmetic: Arithmetic {
                repack: values[6] == 1,
                threads: 1 + values[7] as u32,
                n_prompt: n_prompts[values[8]],
                n_steps: N_STEPS,
            },
        };
        (values[9], case)
    };
    covering(&n_values).into_iter().map(case).collect()
}

/// A model, what was computed in memory, and what was recorded.
struct Fixture {
    folder: tempfile::TempDir,
    path: PathBuf,
    references: Vec<(Arithmetic, Reference)>,
    smallest: HashMap<(bool, bool), MemoryPlan>,
    n_rows: usize,
}

impl Fixture {
    fn new(folder: tempfile::TempDir, path: PathBuf) -> Fixture {
        Fixture {
            folder,
            path,
            references: Vec::new(),
            smallest: HashMap::new(),
            n_rows: 0,
        }
    }

    fn size_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).unwrap().len()
    }

    /// Without replay.
    fn options(&self, case: &Case, budget_bytes: u64) -> PagerOptions {
        PagerOptions {
            policy: case.policy,
            lookahead: case.lookahead.parse().unwrap(),
            dense_on_demand: case.streams,
            ..decode::options(budget_bytes, case.engine)
        }
    }

    fn load(&self, case: &Case, options: PagerOptions) -> PagedModel {
        let params = case.arithmetic.model();
        PagedModel::load(&Backend::init(), &self.path, &params, options).unwrap()
    }

    fn budget_bytes(&mut self, case: &Case) -> u64 {
        if case.size == Size::Ample {
            return 1 << 40;
        }
        let key = (case.streams, case.arithmetic.repack);
        if !self.smallest.contains_key(&key) {
            let longest = Case {
                arithmetic: Arithmetic {
                    n_prompt: 21,
                    ..case.arithmetic
                },
                ..*case
            };
            let plan = |budget_bytes| {
                let model = self.load(&longest, self.options(&longest, budget_bytes));
                let (_, pager) = model.context(&longest.arithmetic.context()).unwrap();
                pager.plan().clone()
            };
            let plan = plan(plan(1 << 40).budget_min_bytes);
            self.smallest.insert(key, plan);
        }
        let plan = &self.smallest[&key];
        let streamed_bytes = plan.dense_stream.as_ref().map(|dense| dense.streamed_bytes);
        match case.size {
            Size::Middle => plan.budget_min_bytes + streamed_bytes.unwrap_or(self.size_bytes()) / 8,
            _ => plan.budget_min_bytes,
        }
    }

    fn replay(&self, case: &Case, budget_bytes: u64) -> Replay {
        let known = self.folder.path().join("known");
        match case.past {
            Past::Off => Replay::Off,
            Past::First => {
                let first = self.folder.path().join("first");
                let _ = std::fs::remove_dir_all(&first);
                Replay::In(first)
            }
            Past::Known => {
                let replay = Replay::In(known);
                let options = PagerOptions {
                    replay: replay.clone(),
                    ..self.options(case, budget_bytes)
                };
                let model = self.load(case, options);
                let (mut context, _pager) = model.context(&case.arithmetic.context()).unwrap();
                let mut decoder = Decoder::of(&case.arithmetic.prompt(model.model()));
                (0..3).for_each(|_| drop(decoder.step(&mut context).unwrap()));
                replay
            }
        }
    }

    fn reference(&mut self, arithmetic: Arithmetic) -> &Reference {
        let known = self.references.iter().position(|(of, _)| *of == arithmetic);
        let index = known.unwrap_or_else(|| {
            let reference = Reference::new(&self.path, arithmetic);
            self.references.push((arithmetic, reference));
            self.references.len() - 1
        });
        &self.references[index].1
    }

    /// Runs a case and compares every token.
    fn check(&mut self, case: &Case) {
        let budget_bytes = self.budget_bytes(case);
        let replay = self.replay(case, budget_bytes);
        let model = self.load(
            case,
            PagerOptions {
                replay,
                ..self.options(case, budget_bytes)
            },
        );
        let name = self.path.file_stem().unwrap().display().to_string();
        let reference = self.reference(case.arithmetic);
        let (mut context, pager) = model.context(&case.arithmetic.context()).unwrap();
        let mut decoder = Decoder::of(&case.arithmetic.prompt(model.model()));
        if let Err(difference) = reference.compare(&mut decoder, &mut context) {
            panic!(
                "{name}, {case}, {budget_bytes} bytes: {difference}\n{}",
                pager.plan()
            );
        }
        self.n_rows += self.references[0].1.rows.len();
        assert_is_what_was_asked_for(case, &pager, &format!("{name}, {case}"));
    }
}

/// A case that runs as another one would prove nothing.
fn assert_is_what_was_asked_for(case: &Case, pager: &Pager, what: &str) {
    let (plan, counters) = (pager.plan(), pager.counters());
    let sum = |count: fn(&SlotClass) -> u32| plan.slots.iter().map(count).sum::<u32>();
    let n_slots = sum(|class| class.n_slots);
    let n_slices = sum(|class| class.n_slices);
    match case.size {
        Size::Ample => {
            assert_eq!(counters.n_evictions, 0, "{what}");
            assert_eq!(plan.dense_stream, None, "{what}");
        }
        Size::Smallest if n_slots > 0 => {
            assert!(counters.n_evictions > 0, "{what}: {counters:?}");
        }
        Size::Middle if n_slots > 0 => assert!(n_slots < n_slices, "{what}: {plan}"),
        Size::Smallest | Size::Middle => assert!(plan.dense_stream.is_some(), "{what}: {plan}"),
    }
    let streams = case.streams && case.size == Size::Smallest;
    assert!(!streams || plan.dense_stream.is_some(), "{what}: {plan}");
    let report = pager.replay();
    let is_so = match case.past {
        Past::Off => *report == ReplayReport::Off,
        // Without experts there is nothing to note.
        _ if n_slots == 0 => *report != ReplayReport::Off,
        Past::First => matches!(report, ReplayReport::Unknown { .. }),
        Past::Known => matches!(report, ReplayReport::Known { .. }),
    };
    assert!(is_so, "{what}: {report}");
    at_rest(pager).unwrap_or_else(|slots| panic!("{what}: {slots}"));
}

#[test]
fn mixtures_of_experts_at_every_budget_and_strategy() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cases = cases();
    for (index, (shape, seed)) in SHAPES.into_iter().enumerate() {
        let folder = folder();
        let path = model_file_of(folder.path(), shape, seed);
        let mut fixture = Fixture::new(folder, path);
        let of_shape = cases.iter().filter(|(of, _)| *of == index);
        let n_cases = of_shape.clone().count();
        of_shape.for_each(|(_, case)| fixture.check(case));
        println!(
            "{shape}: {n_cases} cases, {} rows of logits compared",
            fixture.n_rows
        );
    }
}

/// Cases of a dense model: its budget decides how many matrices are streamed. It has no experts to choose, to evict or to replay,
/// but may be asked to.
fn dense_cases() -> [Case; 4] {
    let whole = Case {
        arithmetic: Arithmetic {
            repack: false,
            threads: 2,
            n_prompt: 21,
            n_steps: N_STEPS,
        },
        size: Size::Ample,
        engine: EngineChoice::Auto,
        past: Past::Off,
        streams: true,
        lookahead: "off",
        policy: PolicyName::default(),
    };
    let repacked = Arithmetic {
        repack: true,
        ..whole.arithmetic
    };
    [
        Case {
            arithmetic: repacked,
            size: Size::Smallest,
            ..whole
        },
        Case {
            arithmetic: repacked,
            size: Size::Middle,
            engine: EngineChoice::Threads,
            past: Past::Known,
            ..whole
        },
        Case {
            size: Size::Smallest,
            ..whole
        },
        whole,
    ]
}

fn check_real(name: &str, n_cases: usize) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(path) = real_model(name) else {
        return;
    };
    let mut fixture = Fixture::new(folder(), path);
    let cases = dense_cases();
    cases[..n_cases].iter().for_each(|case| fixture.check(case));
    println!(
        "{name}: {n_cases} cases, {} rows of logits compared",
        fixture.n_rows
    );
}

#[test]
fn smollm2_at_every_budget() {
    check_real("smollm2-135m", 4);
}

#[test]
fn qwen2_5_coder_streamed_and_repacked() {
    check_real("qwen2.5-coder-0.5b", 1);
}

/// The comparison itself: a model that differs in one bit of one expert.
#[test]
fn one_other_bit_is_noticed() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = folder();
    let path = model_file(folder.path(), "tiny-gpt-oss");
    let (_, case) = cases()[0];
    let reference = Reference::new(&path, case.arithmetic);
    flip_a_bit(&path, "blk.1.ffn_down_exps.weight");
    let fixture = Fixture::new(folder, path);
    let model = fixture.load(&case, fixture.options(&case, 1 << 40));
    let (mut context, _pager) = model.context(&case.arithmetic.context()).unwrap();
    let mut decoder = Decoder::of(&case.arithmetic.prompt(model.model()));
    let difference = reference.compare(&mut decoder, &mut context).unwrap_err();
    assert!(difference.contains("logits differ"), "{difference}");
}

fn flip_a_bit(path: &Path, tensor: &str) {
    use std::os::unix::fs::FileExt as _;
    let offset = {
        let model = gguf::Gguf::open(path).unwrap();
        // Behind the scale of the first block.
        model.tensor(tensor).unwrap().offset + 5
    };
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}
