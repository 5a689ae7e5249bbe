//! A router's picks are what is read: layer by layer and token by token, in prompts of several ubatches and in single steps.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use common::{TinyModel, context, context_params, prompt};
use llama_rs::{
    AccessReader, Batch, Context, ContextParams, Error, LoadedWeight, Model, ModelParams,
    NodeObserver, Pending, Pick, Prefetch, Router, Step, TensorKey, Token, Which,
};

const SHAPES: [&str; 3] = ["tiny-gpt-oss", "tiny-qwen3moe", "tiny-deepseek2"];

/// Experts by (token since the start, layer).
type Picks = BTreeMap<(usize, u32), Vec<u32>>;

/// What a made-up trace says.
fn made_up(token: usize, layer: u32, n_expert: u32, n_used: usize) -> Vec<u32> {
    let start = (token * 5 + layer as usize * 3 + token * token) as u32;
    (0..n_used as u32)
        .map(|rank| (start + rank) % n_expert)
        .collect()
}

/// Replaces every pick by the made-up trace, and notes what it answered.
struct Replay {
    tokens: usize,
    in_step: usize,
    answered: Arc<Mutex<Picks>>,
}

impl Router for Replay {
    fn step_begin(&mut self, step: &Step<'_>) {
        self.in_step = step.n_tokens();
    }

    fn route(&mut self, pick: Pick, experts: &mut [u32]) {
        let token = self.tokens + pick.token;
        experts.copy_from_slice(&made_up(token, pick.layer, pick.n_expert, experts.len()));
        let before = self
            .answered
            .lock()
            .unwrap()
            .insert((token, pick.layer), experts.to_vec());
        assert_eq!(before, None, "asked once");
    }

    fn step_end(&mut self, _: &Step<'_>, is_complete: bool) {
        assert!(is_complete);
        self.tokens += self.in_step;
    }
}

/// The experts that each graph reads: a set for each tensor, in the order of the computation.
#[derive(Default)]
struct Reads {
    reader: AccessReader,
    names: BTreeMap<TensorKey, String>,
    seen: Vec<(String, BTreeSet<u32>)>,
}

impl Reads {
    fn of(model: &Model) -> Reads {
        let name = |weight: LoadedWeight| (weight.key, weight.name);
        Reads {
            names: model.weights().into_iter().map(name).collect(),
            ..Reads::default()
        }
    }
}

impl NodeObserver for Reads {
    fn before(&mut self, pending: &Pending<'_>) {
        self.reader.read(pending, |access| {
            let Which::Matrix(expert) = access.which else {
                return;
            };
            let name = &self.names[&access.weight.key()];
            match self.seen.last_mut() {
                Some((last, experts)) if last == name => drop(experts.insert(expert)),
                _ => self.seen.push((name.clone(), BTreeSet::from([expert]))),
            }
        });
    }
}

fn params() -> ModelParams {
    ModelParams {
        prefetch: Prefetch::None,
        repack: false,
        ..Default::default()
    }
}

/// Feeds `tokens` at once, then two single ones.
fn run(context: &mut Context<'_>, tokens: &[Token]) -> Result<Vec<Vec<u32>>, Error> {
    let mut batch = Batch::new(64, 1);
    let mut logits = Vec::new();
    for step in 0..3 {
        batch.clear();
        let fed = if step == 0 {
            tokens
        } else {
            &tokens[step..=step]
        };
        for (i, token) in fed.iter().enumerate() {
            let position = if step == 0 {
                i
            } else {
                tokens.len() + step - 1
            };
            batch.add(*token, position as i32, &[0], i + 1 == fed.len())?;
        }
        context.decode(&batch)?;
        logits.push(context.logits(-1)?.iter().map(|x| x.to_bits()).collect());
    }
    Ok(logits)
}

#[test]
fn the_experts_that_are_read_are_the_routers() {
    for shape in SHAPES {
        let tiny = TinyModel::new(shape);
        let model = tiny.load(&params());
        let answered = Arc::<Mutex<Picks>>::default();
        let router = Replay {
            tokens: 0,
            in_step: 0,
            answered: Arc::clone(&answered),
        };
        // 40 tokens in ubatches of 16, 16 and 8.
        let params = ContextParams {
            n_ubatch: 16,
            ..context_params()
        };
        let mut context = Context::with_router(&model, &params, router).unwrap();
        context.set_observer(Reads::of(&model)).unwrap();
        run(&mut context, &prompt(40)).unwrap();
        let reads: Reads = context.take_observer().unwrap();
        let answered = answered.lock().unwrap();

        let layer_of = |name: &str| name.split('.').nth(1).unwrap().parse::<u32>().unwrap();
        let layers: BTreeSet<u32> = reads.seen.iter().map(|(name, _)| layer_of(name)).collect();
        let last = *layers.last().unwrap();
        // The last layer computes what wants logits: token 39, and the single ones.
        let expected_keys: BTreeSet<_> = (0..42)
            .flat_map(|token| layers.iter().map(move |&layer| (token, layer)))
            .filter(|&(token, layer)| layer != last || token >= 39)
            .collect();
        assert_eq!(
            answered.keys().copied().collect::<BTreeSet<_>>(),
            expected_keys,
            "{shape}"
        );

        let mut graphs = [0..16, 16..32, 32..40, 40..41, 41..42].into_iter();
        let mut graph = 0..0;
        for (name, experts) in &reads.seen {
            let layer = layer_of(name);
            if *name == reads.seen[0].0 {
                graph = graphs.next().unwrap();
            }
            let union: BTreeSet<u32> = graph
                .clone()
                .filter_map(|token| answered.get(&(token, layer)))
                .flatten()
                .copied()
                .collect();
            assert_eq!(*experts, union, "{shape}: {name}, tokens {graph:?}");
        }
        assert_eq!(graphs.next(), None);
    }
}

/// Leaves the picks alone.
struct Own;

impl Router for Own {
    fn route(&mut self, _: Pick, _: &mut [u32]) {}
}

#[test]
fn a_router_that_changes_nothing_changes_no_logit() {
    for shape in SHAPES {
        let tiny = TinyModel::new(shape);
        let model = tiny.load(&params());
        let expected = run(&mut context(&model), &prompt(40)).unwrap();
        let mut routed = Context::with_router(&model, &context_params(), Own).unwrap();
        assert_eq!(run(&mut routed, &prompt(40)).unwrap(), expected, "{shape}");
        assert!(routed.decode(&Batch::new(1, 1)).is_err());
    }
}

type Nonsense = fn(Pick, &mut [u32]);

/// Answers with nonsense for one token, once.
struct Wrong {
    nonsense: Option<Nonsense>,
}

impl Router for Wrong {
    fn route(&mut self, pick: Pick, experts: &mut [u32]) {
        if (pick.layer, pick.token) == (1, 5)
            && let Some(nonsense) = self.nonsense.take()
        {
            nonsense(pick, experts);
        }
    }
}

#[test]
fn picks_that_cannot_be_used_are_errors() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&params());
    let expected = run(&mut context(&model), &prompt(40)).unwrap();
    let nonsense: [(Nonsense, &str); 3] = [
        (
            |pick, experts| experts[0] = pick.n_expert,
            "token 5 of the batch in layer 1",
        ),
        (|_, experts| experts[0] = experts[1], "twice"),
        (|_, _| panic!("no idea"), "Router::route panicked: no idea"),
    ];
    for (nonsense, message) in nonsense {
        let router = Wrong {
            nonsense: Some(nonsense),
        };
        let mut context = Context::with_router(&model, &context_params(), router).unwrap();
        let error = run(&mut context, &prompt(40)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(context.logits(-1).is_err());
        context.clear_kv();
        assert_eq!(run(&mut context, &prompt(40)).unwrap(), expected);
    }
    let two = ContextParams {
        n_seq_max: 2,
        ..context_params()
    };
    assert!(Context::with_router(&model, &two, Own).is_err());
}
