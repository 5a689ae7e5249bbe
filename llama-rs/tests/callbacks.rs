//! What happens inside a callback stays inside: panics, missing slices and cancelled loads become errors, and the
//! context can be used afterwards.

mod common;

use std::ops::ControlFlow;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use common::{TinyModel, context, prompt};
use llama_rs::{
    Backend, Batch, Begin, Context, Dim, Error, Model, ModelParams, NodeRef, Prefetch,
    SliceProvider, Token, WeightRef, Which,
};

/// Where a [`Failing`] provider fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Never,
    Begin,
    /// Begin of the first rows: the token embedding.
    BeginRows,
    Get,
    End,
    Missing,
    MissingThenPanicInReason,
}

/// Fails while its `armed` flag is set, and counts what it is told.
struct Failing {
    at: At,
    armed: AtomicBool,
    begins: AtomicU32,
    gets: AtomicU32,
    ends: AtomicU32,
    dropped: Arc<AtomicBool>,
}

impl Failing {
    fn new(at: At) -> Arc<Failing> {
        Arc::new(Failing {
            at,
            armed: AtomicBool::new(true),
            begins: AtomicU32::new(0),
            gets: AtomicU32::new(0),
            ends: AtomicU32::new(0),
            dropped: Arc::default(),
        })
    }

    fn fails(&self, at: At) -> bool {
        self.at == at && self.armed.load(Ordering::Relaxed)
    }

    fn counts(&self) -> [u32; 3] {
        [&self.begins, &self.gets, &self.ends].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
    }
}

// SAFETY: gives the addresses in the mapped file, or none.
unsafe impl SliceProvider for Failing {
    fn begin(&self, access: &mut Begin<'_>) {
        self.begins.fetch_add(1, Ordering::Relaxed);
        let fails = match access.dim {
            Dim::Matrices => self.fails(At::Begin),
            Dim::Rows => self.fails(At::BeginRows),
            Dim::Whole => false,
        };
        assert!(!fails, "no begin for {}", access.weight.name());
    }

    fn get(&self, weight: WeightRef<'_>, which: Which) -> Option<NonNull<u8>> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        let is_expert = matches!(which, Which::Matrix(_));
        assert!(!(self.fails(At::Get) && is_expert), "no get");
        let is_missing = self.fails(At::Missing) || self.fails(At::MissingThenPanicInReason);
        if is_missing && is_expert {
            return None;
        }
        weight.mapped(which)
    }

    fn end(&self, _node: NodeRef<'_>, _weight: WeightRef<'_>) {
        self.ends.fetch_add(1, Ordering::Relaxed);
        assert!(!self.fails(At::End), "no end");
    }

    fn take_reason(&self) -> Option<String> {
        assert!(self.at != At::MissingThenPanicInReason, "no reason");
        Some("the disk is gone".to_owned())
    }
}

fn selective() -> ModelParams {
    ModelParams {
        prefetch: Prefetch::Selective,
        repack: false,
        ..Default::default()
    }
}

fn batch(tokens: &[Token]) -> Batch {
    let mut batch = Batch::new(tokens.len(), 1);
    for (i, &token) in tokens.iter().enumerate() {
        batch
            .add(token, i as i32, &[0], i + 1 == tokens.len())
            .unwrap();
    }
    batch
}

fn logits(context: &mut Context<'_>, batch: &Batch) -> Vec<u32> {
    context.clear_kv();
    context.decode(batch).unwrap();
    let row = context.logits(-1).unwrap();
    row.iter().map(|logit| logit.to_bits()).collect()
}

fn check_error(at: At, error: &Error) {
    let text = error.to_string();
    match (at, error) {
        (At::Begin | At::BeginRows, Error::CallbackPanicked { callback, message }) => {
            assert_eq!(*callback, "SliceProvider::begin");
            let tensor = if at == At::Begin {
                "_exps.weight"
            } else {
                "token_embd"
            };
            assert!(message.contains(tensor), "{text}");
        }
        (At::Get, Error::CallbackPanicked { callback, message }) => {
            assert_eq!(
                (*callback, message.as_str()),
                ("SliceProvider::get", "no get")
            );
        }
        (At::End, Error::CallbackPanicked { callback, .. }) => {
            assert_eq!(*callback, "SliceProvider::end");
        }
        (At::Missing, Error::SliceUnavailable { .. }) => {
            for part in ["matrix ", "blk.0", "the disk is gone"] {
                assert!(text.contains(part), "{text}");
            }
        }
        (At::MissingThenPanicInReason, Error::SliceUnavailable { reason: None, .. }) => {}
        _ => panic!("{at:?}: {error:?}"),
    }
}

#[test]
fn a_failing_provider_ends_the_decode_with_an_error_and_no_more() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&selective());
    let batch = batch(&prompt(8));
    let expected = logits(&mut context(&model), &batch);

    for at in [
        At::Begin,
        At::BeginRows,
        At::Get,
        At::End,
        At::Missing,
        At::MissingThenPanicInReason,
    ] {
        let mut context = context(&model);
        let provider = Failing::new(at);
        context.set_slice_provider(provider.clone()).unwrap();
        for _ in 0..2 {
            check_error(at, &context.decode(&batch).unwrap_err());
            let after = context.logits(-1);
            assert!(matches!(after, Err(Error::NoLogits { .. })), "{at:?}");
            context.clear_kv();
        }
        if at == At::Missing {
            let [begins, _, ends] = provider.counts();
            assert_eq!(begins, ends, "end follows a slice that was missing, too");
        }
        provider.armed.store(false, Ordering::Relaxed);
        let again = logits(&mut context, &batch);
        assert_eq!(again, expected, "{at:?}: after the failure");
    }
}

#[test]
fn after_a_panic_no_callback_runs_until_the_error_was_reported() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&selective());
    let mut context = context(&model);
    let provider = Failing::new(At::BeginRows);
    context.set_slice_provider(provider.clone()).unwrap();
    context.decode(&batch(&prompt(1))).unwrap_err();
    assert_eq!(provider.counts(), [1, 0, 0]);
}

/// Writes down what it is told.
struct Ledger(Mutex<Vec<String>>);

// SAFETY: gives the addresses in the mapped file.
unsafe impl SliceProvider for Ledger {
    fn begin(&self, access: &mut Begin<'_>) {
        let mut distinct = access.ids.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), access.ids.len());
        // The last layer computes only the rows whose logits are wanted.
        assert!([1, 5].contains(&access.node.n_tokens()));
        let op = access.node.op();
        assert_eq!(op == "MUL_MAT_ID", access.dim == Dim::Matrices);
        let slice_bytes = access.weight.slice_bytes(access.dim);
        let ne = access.weight.ne();
        let elements = if access.dim == Dim::Rows {
            ne[0]
        } else {
            ne[0] * ne[1]
        };
        let ggml_type = access.weight.ggml_type();
        assert_eq!(
            Some(slice_bytes as u64),
            ggml_type.row_bytes(elements as u64)
        );
        let line = format!("begin {} {op}", access.weight.name());
        self.0.lock().unwrap().push(line);
    }

    fn get(&self, weight: WeightRef<'_>, which: Which) -> Option<NonNull<u8>> {
        let log = self.0.lock().unwrap();
        let last = log.last().unwrap();
        assert!(
            last.starts_with("begin ") && last.contains(weight.name()),
            "{last}"
        );
        weight.mapped(which)
    }

    fn end(&self, node: NodeRef<'_>, weight: WeightRef<'_>) {
        let line = format!("end {} {}", weight.name(), node.op());
        self.0.lock().unwrap().push(line);
    }
}

#[test]
fn begin_get_and_end_belong_together() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&selective());
    let mut context = context(&model);
    let ledger = Arc::new(Ledger(Mutex::default()));
    context.set_slice_provider(ledger.clone()).unwrap();
    context.decode(&batch(&prompt(5))).unwrap();
    let log = ledger.0.lock().unwrap();
    assert_eq!(log[0], "begin token_embd.weight GET_ROWS");
    for pair in log.chunks(2) {
        assert_eq!(pair[0].replace("begin", "end"), pair[1]);
    }
    let experts = log.iter().filter(|line| line.starts_with("begin blk."));
    assert_eq!(experts.count(), 3 * model.n_layer() as usize);
}

#[test]
fn the_provider_goes_after_the_context_and_when_it_is_replaced() {
    let tiny = TinyModel::new("tiny-qwen3moe");
    let model = tiny.load(&selective());
    let mut context = context(&model);
    let [first, second, third] = [(); 3].map(|()| Failing::new(At::Never));
    let dropped = [&first, &second, &third].map(|provider| provider.dropped.clone());
    let state = || dropped.each_ref().map(|flag| flag.load(Ordering::Relaxed));
    context.set_slice_provider(first).unwrap();
    assert_eq!(state(), [false; 3]);
    context.set_slice_provider(second).unwrap();
    assert_eq!(state(), [true, false, false]);
    context.clear_slice_provider();
    assert_eq!(state(), [true, true, false]);
    context.decode(&batch(&prompt(2))).unwrap();
    context.set_slice_provider(third).unwrap();
    drop(context);
    assert_eq!(state(), [true; 3]);
}

#[test]
fn contexts_in_two_threads_have_their_own_providers() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&selective());
    let batch = batch(&prompt(6));
    let expected = logits(&mut context(&model), &batch);
    let run = |at: At| {
        let mut context = context(&model);
        context.set_slice_provider(Failing::new(at)).unwrap();
        let failures = (0..4).filter(|_| {
            context.clear_kv();
            context.decode(&batch).is_err()
        });
        let failures = failures.count();
        (
            failures,
            (at == At::Never).then(|| logits(&mut context, &batch)),
        )
    };
    std::thread::scope(|scope| {
        let good = scope.spawn(|| run(At::Never));
        let bad = scope.spawn(|| run(At::Get));
        assert_eq!(bad.join().unwrap(), (4, None));
        assert_eq!(good.join().unwrap(), (0, Some(expected)));
    });
}

#[test]
fn a_context_moves_to_another_thread() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&selective());
    let batch = batch(&prompt(6));
    let mut here = context(&model);
    here.set_slice_provider(Failing::new(At::Never)).unwrap();
    let expected = logits(&mut here, &batch);
    let batch = &batch;
    let there = std::thread::scope(|scope| {
        let moved = scope.spawn(move || logits(&mut here, batch));
        moved.join().unwrap()
    });
    assert_eq!(there, expected);
}

#[test]
fn progress_can_cancel_and_may_panic() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let backend = Backend::init();
    for prefetch in Prefetch::ALL {
        let params = ModelParams {
            prefetch,
            ..selective()
        };
        let mut fractions = Vec::new();
        Model::load_with(&backend, tiny.path(), &params, |fraction| {
            fractions.push(fraction);
            ControlFlow::Continue(())
        })
        .unwrap();
        let in_range = fractions.iter().all(|f| (0.0..=1.0).contains(f));
        assert!(fractions.is_sorted() && in_range, "{fractions:?}");
        assert_eq!(fractions.last(), Some(&1.0));

        let mut calls = 0;
        let result = Model::load_with(&backend, tiny.path(), &params, |_| {
            calls += 1;
            ControlFlow::Break(())
        });
        assert!(
            matches!(result, Err(Error::Cancelled)),
            "{prefetch}: {result:?}"
        );
        assert_eq!(calls, 1, "{prefetch}: called again after Break");

        let result = Model::load_with(&backend, tiny.path(), &params, |fraction| {
            if fraction < 1.0 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        assert!(
            matches!(result, Err(Error::Cancelled)),
            "{prefetch}: {result:?}"
        );

        let mut calls = 0;
        let result = Model::load_with(&backend, tiny.path(), &params, |_| {
            calls += 1;
            panic!("stop it")
        });
        match result {
            Err(Error::CallbackPanicked { callback, message }) => {
                assert_eq!(
                    (callback, message.as_str()),
                    ("progress callback", "stop it")
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(calls, 1);
    }
}

#[test]
fn a_progress_callback_may_use_another_model() {
    let tiny = TinyModel::new("tiny-qwen3moe");
    let first = tiny.load(&selective());
    let mut context = context(&first);
    let batch = batch(&prompt(3));
    let mut decodes = 0;
    Model::load_with(&Backend::init(), tiny.path(), &selective(), |_| {
        context.clear_kv();
        context.decode(&batch).unwrap();
        decodes += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(decodes > 0);
}

#[test]
fn the_abort_flag_ends_a_decode() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&selective());
    let mut context = context(&model);
    let flag = Arc::new(AtomicBool::new(true));
    context.set_abort(flag.clone());
    let batch = batch(&prompt(4));
    assert!(matches!(context.decode(&batch), Err(Error::Aborted)));
    flag.store(false, Ordering::Relaxed);
    context.clear_kv();
    context.decode(&batch).unwrap();
}
