//! An observer changes nothing, hears everything once, and whatever it does stays inside.

mod common;
mod support;

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use common::{TinyModel, context, prompt};
use llama_rs::{
    AccessReader, Batch, Begin, Context, Error, GraphRef, Model, ModelParams, NodeObserver,
    NodeRef, Pending, Prefetch, SliceProvider, Step, TensorKey, Token, WeightRef, Which,
};
use model_shapes::Shape;

/// Counts the accesses.
#[derive(Default)]
struct Count {
    reader: AccessReader,
    accesses: u64,
    bytes: u64,
}

impl NodeObserver for Count {
    fn before(&mut self, pending: &Pending<'_>) {
        self.reader.read(pending, |access| {
            self.accesses += 1;
            self.bytes += access.size_bytes;
        });
    }
}

#[test]
fn logits_are_the_same_with_an_observer() {
    let folder = support::folder();
    for shape in [
        "tiny-gpt-oss",
        "tiny-qwen3moe",
        "tiny-deepseek2",
        "tiny-llama",
    ] {
        let path = support::model_file(folder.path(), &Shape::by_name(shape).unwrap());
        for prefetch in [Prefetch::Eager, Prefetch::Selective] {
            let model = support::load(&path, prefetch);
            for threads in [1, 2] {
                let plain = support::logits(&mut support::context(&model, threads));
                let mut context = support::context(&model, threads);
                context.set_observer(Count::default()).unwrap();
                let observed = support::logits(&mut context);
                assert!(plain == observed, "{shape}, {prefetch}, {threads} threads");
                let count: Count = context.take_observer().unwrap();
                assert!(count.accesses > 100 && count.bytes > 0);
                context.clear_kv();
                let after = support::logits(&mut context);
                assert!(
                    plain == after,
                    "{shape}, {prefetch}, {threads} threads: without it again"
                );
            }
        }
    }
}

fn batch(tokens: &[Token]) -> Batch {
    let mut batch = Batch::new(tokens.len(), 1);
    for (i, &token) in tokens.iter().enumerate() {
        let is_last = i + 1 == tokens.len();
        batch.add(token, i as i32, &[0], is_last).unwrap();
    }
    batch
}

/// Writes down what it is told.
#[derive(Default)]
struct Ledger(Vec<String>);

fn names(nodes: &[NodeRef<'_>]) -> String {
    let names = nodes
        .iter()
        .map(|node| format!("{} {}", node.op(), node.name()));
    names.collect::<Vec<_>>().join(" + ")
}

impl NodeObserver for Ledger {
    fn step_begin(&mut self, step: &Step<'_>) {
        assert!(step.wants_logits(step.n_tokens() - 1));
        assert!(
            step.positions()
                .iter()
                .copied()
                .eq(0..step.n_tokens() as i32)
        );
        assert!((0..step.n_tokens()).all(|i| step.sequences(i).eq([0])));
        self.0
            .push(format!("step {:?} {}", step.phase(), step.tokens().len()));
    }

    fn graph_begin(&mut self, _graph: &GraphRef<'_>) {
        self.0.push("graph".to_owned());
    }

    fn before(&mut self, pending: &Pending<'_>) {
        let node = pending.nodes()[0];
        let has_indices = ["GET_ROWS", "MUL_MAT_ID", "ADD_ID"].contains(&node.op());
        let indices = [1, 2].iter().filter_map(|&index| pending.indices(index));
        assert_eq!(indices.count(), usize::from(has_indices));
        self.0.push(format!("before {}", names(pending.nodes())));
    }

    fn after(&mut self, nodes: &[NodeRef<'_>]) {
        self.0.push(format!("after {}", names(nodes)));
    }

    fn step_end(&mut self, _step: &Step<'_>, is_complete: bool) {
        self.0.push(format!("end {is_complete}"));
    }
}

/// Checks that the nodes of a ledger come in pairs; gives how many there are, fused ones apart.
fn check_pairs(log: &[String]) -> (usize, usize) {
    let nodes: Vec<&String> = log
        .iter()
        .filter(|line| line.starts_with("before ") || line.starts_with("after "))
        .collect();
    for pair in nodes.chunks(2) {
        assert_eq!(pair[0].replacen("before", "after", 1), *pair[1]);
    }
    let fused = nodes.iter().filter(|line| line.contains(" + ")).count() / 2;
    (nodes.len() / 2, fused)
}

#[test]
fn steps_graphs_and_nodes_come_in_order() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&ModelParams::default());
    let mut context = context(&model);
    context.set_observer(Ledger::default()).unwrap();
    // n_ubatch is 32.
    context.decode(&batch(&prompt(40))).unwrap();
    context.clear_kv();
    context.decode(&batch(&prompt(1))).unwrap();
    let log = context.take_observer::<Ledger>().unwrap().0;

    let outline: Vec<&str> = log
        .iter()
        .map(String::as_str)
        .filter(|line| !line.starts_with("before ") && !line.starts_with("after "))
        .collect();
    assert_eq!(
        outline,
        [
            "step Prompt 40",
            "graph",
            "graph",
            "end true",
            "step Decode 1",
            "graph",
            "end true"
        ]
    );
    let (nodes, fused) = check_pairs(&log);
    // Two norms a layer and the last one: RMS_NORM + MUL.
    assert_eq!(fused, 3 * (2 * model.n_layer() as usize + 1));
    assert!(nodes > 10 * fused / 3);
    assert!(
        log.iter()
            .any(|line| line.starts_with("before RMS_NORM") && line.contains(" + MUL "))
    );
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Never,
    StepBegin,
    GraphBegin,
    Before,
    After,
    StepEnd,
}

/// Panics at a place while `armed`.
struct Failing {
    at: At,
    armed: Arc<AtomicBool>,
    calls: Arc<AtomicU32>,
    dropped: Arc<AtomicBool>,
}

impl Failing {
    fn new(at: At) -> Failing {
        Failing {
            at,
            armed: Arc::new(AtomicBool::new(true)),
            calls: Arc::default(),
            dropped: Arc::default(),
        }
    }

    fn call(&self, at: At) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let fails = self.at == at && self.armed.load(Ordering::Relaxed);
        assert!(!fails, "at {at:?}");
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
    }
}

impl NodeObserver for Failing {
    fn step_begin(&mut self, _step: &Step<'_>) {
        self.call(At::StepBegin);
    }

    fn graph_begin(&mut self, _graph: &GraphRef<'_>) {
        self.call(At::GraphBegin);
    }

    fn before(&mut self, _pending: &Pending<'_>) {
        self.call(At::Before);
    }

    fn after(&mut self, _nodes: &[NodeRef<'_>]) {
        self.call(At::After);
    }

    fn step_end(&mut self, _step: &Step<'_>, _is_complete: bool) {
        self.call(At::StepEnd);
    }
}

/// Wants the experts alone, and knows which graphs it has seen.
#[derive(Default)]
struct Experts {
    graphs: Vec<GraphSeen>,
    n_asked: usize,
}

struct GraphSeen {
    id: Option<NonZeroU64>,
    nodes: Vec<TensorKey>,
    n_calls: usize,
}

impl NodeObserver for Experts {
    fn graph_begin(&mut self, graph: &GraphRef<'_>) {
        self.graphs.push(GraphSeen {
            id: graph.id(),
            nodes: graph.nodes().iter().map(NodeRef::key).collect(),
            n_calls: 0,
        });
    }

    fn is_wanted(&mut self, node: NodeRef<'_>) -> bool {
        self.n_asked += 1;
        node.op() == "MUL_MAT_ID"
    }

    fn before(&mut self, pending: &Pending<'_>) {
        let graph = self.graphs.last_mut().unwrap();
        let node = pending.nodes()[0];
        assert_eq!(node.op(), "MUL_MAT_ID");
        assert_eq!(graph.nodes[pending.index()], node.key());
        graph.n_calls += 1;
    }

    fn after(&mut self, nodes: &[NodeRef<'_>]) {
        assert_eq!(nodes[0].op(), "MUL_MAT_ID");
    }
}

#[test]
fn only_the_wanted_nodes_are_shown_and_known_graphs_are_not_asked_about_again() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&ModelParams::default());
    let mut context = context(&model);
    context.set_observer(Experts::default()).unwrap();
    for position in 0..4 {
        let mut batch = Batch::new(1, 1);
        batch.add(Token(5), position, &[0], true).unwrap();
        context.decode(&batch).unwrap();
    }
    let seen = context.take_observer::<Experts>().unwrap();
    assert_eq!(seen.graphs.len(), 4);
    let ids: HashSet<_> = seen.graphs.iter().filter_map(|graph| graph.id).collect();
    assert!(ids.len() < 4, "some graph was computed again");
    for graph in &seen.graphs {
        assert_eq!(graph.n_calls, 3 * model.n_layer() as usize);
        let same = seen
            .graphs
            .iter()
            .find(|other| other.id == graph.id)
            .unwrap();
        assert_eq!(graph.nodes, same.nodes);
    }
    let n_asked: usize = ids
        .iter()
        .map(|&id| {
            seen.graphs
                .iter()
                .find(|graph| graph.id == Some(id))
                .unwrap()
        })
        .map(|graph| graph.nodes.len())
        .sum();
    assert_eq!(seen.n_asked, n_asked);
}

fn logits(context: &mut Context<'_>, batch: &Batch) -> Vec<u32> {
    context.clear_kv();
    context.decode(batch).unwrap();
    let row = context.logits(-1).unwrap();
    row.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn a_panic_ends_the_decode_with_an_error_and_no_more() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&ModelParams::default());
    let batch = batch(&prompt(8));
    let expected = logits(&mut context(&model), &batch);
    for (at, name, calls) in [
        (At::StepBegin, "NodeObserver::step_begin", 1),
        (At::GraphBegin, "NodeObserver::graph_begin", 2),
        (At::Before, "NodeObserver::before", 3),
        (At::After, "NodeObserver::after", 4),
        (At::StepEnd, "NodeObserver::step_end", 0),
    ] {
        let mut context = context(&model);
        let observer = Failing::new(at);
        let (armed, counter) = (observer.armed.clone(), observer.calls.clone());
        context.set_observer(observer).unwrap();
        for _ in 0..2 {
            counter.store(0, Ordering::Relaxed);
            match context.decode(&batch) {
                Err(Error::CallbackPanicked { callback, message }) => {
                    assert_eq!((callback, message), (name, format!("at {at:?}")));
                }
                other => panic!("{at:?}: {other:?}"),
            }
            let n = counter.load(Ordering::Relaxed);
            assert!(calls == 0 || n == calls, "{at:?}: {n} calls");
            assert!(
                matches!(context.logits(-1), Err(Error::NoLogits { .. })),
                "{at:?}"
            );
            context.clear_kv();
        }
        armed.store(false, Ordering::Relaxed);
        assert_eq!(logits(&mut context, &batch), expected, "{at:?}: afterwards");
    }
}

#[test]
fn the_observer_goes_after_the_context_and_when_it_is_replaced() {
    let tiny = TinyModel::new("tiny-qwen3moe");
    let model = tiny.load(&ModelParams::default());
    let mut context = context(&model);
    let observers = [(); 4].map(|()| Failing::new(At::Never));
    let dropped = observers
        .each_ref()
        .map(|observer| observer.dropped.clone());
    let state = || dropped.each_ref().map(|flag| flag.load(Ordering::Relaxed));
    let [first, second, third, fourth] = observers;
    context.set_observer(first).unwrap();
    context.set_observer(second).unwrap();
    assert_eq!(state(), [true, false, false, false]);
    assert!(
        context.take_observer::<Ledger>().is_none(),
        "it has another type"
    );
    context.decode(&batch(&prompt(2))).unwrap();
    context.clear_observer();
    assert_eq!(state(), [true, true, false, false]);
    assert!(context.take_observer::<Failing>().is_none());

    context.set_observer(third).unwrap();
    context.clear_kv();
    context.decode(&batch(&prompt(2))).unwrap();
    let third: Failing = context.take_observer().unwrap();
    let calls = third.calls.load(Ordering::Relaxed);
    context.clear_kv();
    context.decode(&batch(&prompt(2))).unwrap();
    assert!(calls > 0 && calls == third.calls.load(Ordering::Relaxed));
    assert_eq!(state(), [true, true, false, false]);

    context.set_observer(fourth).unwrap();
    drop(context);
    assert_eq!(state(), [true, true, false, true]);
}

#[test]
fn contexts_in_two_threads_have_their_own_observers() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&ModelParams::default());
    let run = |model: &Model, n: usize| {
        let mut context = context(model);
        context.set_observer(Count::default()).unwrap();
        let all: Vec<u32> = (0..4)
            .flat_map(|_| logits(&mut context, &batch(&prompt(n))))
            .collect();
        let count: Count = context.take_observer().unwrap();
        (all, count.accesses, count.bytes)
    };
    let alone = [6, 9].map(|n| run(&model, n));
    let together = std::thread::scope(|scope| {
        let threads = [6, 9].map(|n| {
            let (run, model) = (&run, &model);
            scope.spawn(move || run(model, n))
        });
        threads.map(|thread| thread.join().unwrap())
    });
    assert!(alone == together);
}

/// Has no experts.
struct Missing;

// SAFETY: gives the addresses in the mapped file, or none.
unsafe impl SliceProvider for Missing {
    fn begin(&self, _access: &mut Begin<'_>) {}

    fn get(&self, weight: WeightRef<'_>, which: Which) -> Option<std::ptr::NonNull<u8>> {
        match which {
            Which::Matrix(_) => None,
            _ => weight.mapped(which),
        }
    }
}

#[test]
fn a_decode_that_fails_is_observed_to_its_end() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let params = ModelParams {
        prefetch: Prefetch::Selective,
        repack: false,
        ..Default::default()
    };
    let model = tiny.load(&params);
    let mut context = context(&model);
    context.set_slice_provider(Missing).unwrap();
    context.set_observer(Ledger::default()).unwrap();
    let error = context.decode(&batch(&prompt(3))).unwrap_err();
    assert!(matches!(error, Error::SliceUnavailable { .. }), "{error}");
    context.clear_slice_provider();
    context.clear_kv();

    let flag = Arc::new(AtomicBool::new(true));
    context.set_abort(flag);
    let error = context.decode(&batch(&prompt(3))).unwrap_err();
    assert!(matches!(error, Error::Aborted), "{error}");
    // A batch that is refused is no step.
    context.decode(&batch(&[Token(-1)])).unwrap_err();

    let log = context.take_observer::<Ledger>().unwrap().0;
    check_pairs(&log);
    assert_eq!(log.iter().filter(|line| *line == "end false").count(), 2);
    assert_eq!(
        log.iter().filter(|line| line.starts_with("step ")).count(),
        2
    );
    assert!(log[log.len() - 2].starts_with("after "));
}
