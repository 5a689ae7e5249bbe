//! Who replaces the experts that a model's routers pick.
//!
//! llama.cpp's scheduler stops after the node that holds the picks (`cb_eval`), on the thread that decodes and with all
//! other threads waiting, so they can be overwritten before anything reads an expert. This needs no patch.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_void};
use std::fmt;
use std::marker::PhantomPinned;
use std::pin::Pin;

use llama_sys as sys;

use crate::error::Error;
use crate::failure::{Failure, FailureSlot};
use crate::step::Step;

/// Name of the picks in llama.cpp's graphs (`build_moe_ffn` in `llama-graph.cpp`); the layer's number follows.
const PICKS: &[u8] = b"ffn_moe_topk-";

/// Decides which experts a token uses, instead of the model.
///
/// Everything after the picks follows the new ones: the weights of the mixture are the model's own for these experts, and only
/// these experts are read. All calls come from the thread that calls [`Context::decode`](crate::Context::decode).
///
/// A router costs the end of one graph and the start of another for each layer with experts, whatever it does: rows of a
/// comparison must all have one, or none. An observer then sees a [graph](crate::NodeObserver::graph_begin) for each part.
///
/// A panic, and picks that cannot be used, end the decode with an error. The computation itself goes on with the
/// model's own picks, and what it has put into the KV cache stays there.
pub trait Router: Send {
    /// A decode begins.
    fn step_begin(&mut self, step: &Step<'_>) {
        let _ = step;
    }

    /// The model picked `experts` for a token, the best first. What the slice holds afterwards is used: distinct
    /// numbers below [`n_expert`](Pick::n_expert).
    fn route(&mut self, pick: Pick, experts: &mut [u32]);

    /// The decode ends; `is_complete` is false when it gives an error.
    fn step_end(&mut self, step: &Step<'_>, is_complete: bool) {
        let _ = (step, is_complete);
    }
}

/// What is picked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Layer of the model, from 0. Layers without experts are not asked for.
    pub layer: u32,
    /// The token, by its index in the decode's batch. In the last layer only tokens that want logits are computed.
    pub token: usize,
    /// Experts that there are in the layer.
    pub n_expert: u32,
}

/// A router with where it is in the batch: the `user_data` of the C callback.
pub(crate) struct RouterState {
    /// Borrowed by one callback at a time: all of them run on the thread that decodes.
    inner: UnsafeCell<Inner>,
    failure: FailureSlot,
    /// C holds the address.
    _pinned: PhantomPinned,
}

struct Inner {
    router: Box<dyn Router>,
    place: Place,
    experts: Vec<u32>,
}

impl fmt::Debug for RouterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouterState")
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl RouterState {
    pub(crate) fn new(router: Box<dyn Router>) -> Pin<Box<RouterState>> {
        Box::pin(RouterState {
            inner: UnsafeCell::new(Inner {
                router,
                place: Place::default(),
                experts: Vec::new(),
            }),
            failure: FailureSlot::new(),
            _pinned: PhantomPinned,
        })
    }

    /// The C callback, which expects [`user_data`](RouterState::user_data).
    pub(crate) fn callback() -> sys::ggml_backend_sched_eval_callback {
        Some(on_node)
    }

    /// What C passes back to the callback. Valid while `self` lives.
    pub(crate) fn user_data(self: &Pin<Box<Self>>) -> *mut c_void {
        let state: &RouterState = self;
        std::ptr::from_ref(state).cast_mut().cast()
    }

    /// # Safety
    ///
    /// No other call for this state is running.
    pub(crate) unsafe fn step_begin(&self, step: &Step<'_>, n_ubatch: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            self.call("Router::step_begin", |inner| {
                inner.place = Place::new(step, n_ubatch);
                inner.router.step_begin(step);
                Ok(())
            })
        }
    }

    /// # Safety
    ///
    /// No other call for this state is running.
    pub(crate) unsafe fn step_end(&self, step: &Step<'_>, is_complete: bool) {
        // SAFETY: as the caller promises.
        unsafe {
            self.call("Router::step_end", |inner| {
                inner.router.step_end(step, is_complete);
                Ok(())
            })
        }
    }

    /// The first failure since the last call, as an error.
    pub(crate) fn take_error(&self) -> Option<Error> {
        Some(self.failure.take()?.into_error(None))
    }

    /// Runs `body` unless something failed before; keeps a panic under the name `callback`.
    ///
    /// # Safety
    ///
    /// No other call for this state is running.
    unsafe fn call(
        &self,
        callback: &'static str,
        body: impl FnOnce(&mut Inner) -> Result<(), Failure>,
    ) {
        if self.failure.is_set() {
            return;
        }
        let result = self.failure.catch(callback, || {
            // SAFETY: the caller promises that nobody else borrows it.
            body(unsafe { &mut *self.inner.get() })
        });
        if let Some(Err(failure)) = result {
            self.failure.record(failure);
        }
    }
}

impl Inner {
    /// Lets the router see the picks of one layer, and change them.
    fn route(&mut self, layer: u32, picks: &mut Picks<'_>) -> Result<(), Failure> {
        let misrouted = |token, reason| Failure::Misrouted {
            layer,
            token,
            reason,
        };
        let rows = self
            .place
            .rows(layer, picks.n_rows)
            .map_err(|reason| misrouted(self.place.first, reason))?;
        for (row, token) in rows.into_iter().enumerate() {
            picks.read(row, &mut self.experts);
            let pick = Pick {
                layer,
                token,
                n_expert: picks.n_expert,
            };
            self.router.route(pick, &mut self.experts);
            check(&self.experts, picks.n_expert).map_err(|reason| misrouted(token, reason))?;
            picks.write(row, &self.experts);
        }
        Ok(())
    }
}

/// Each expert exists, and is used once.
fn check(experts: &[u32], n_expert: u32) -> Result<(), String> {
    for (rank, expert) in experts.iter().enumerate() {
        if *expert >= n_expert {
            return Err(format!("expert {expert} of {n_expert}"));
        }
        if experts[..rank].contains(expert) {
            return Err(format!("expert {expert} twice"));
        }
    }
    Ok(())
}

/// Which tokens of a batch the rows of a node belong to.
///
/// A batch of one sequence is cut into ubatches in order. A layer's number that does not rise begins the next one.
#[derive(Default)]
struct Place {
    /// By token of the batch: whether its logits are wanted.
    outputs: Vec<bool>,
    n_ubatch: usize,
    /// First token of the ubatch.
    first: usize,
    layer: Option<u32>,
}

impl Place {
    fn new(step: &Step<'_>, n_ubatch: usize) -> Place {
        Place {
            outputs: (0..step.n_tokens()).map(|i| step.wants_logits(i)).collect(),
            n_ubatch: n_ubatch.max(1),
            first: 0,
            layer: None,
        }
    }

    /// The tokens of the `n_rows` rows that `layer` computes: all of the ubatch, or those that want logits.
    fn rows(&mut self, layer: u32, n_rows: usize) -> Result<Vec<usize>, String> {
        if self.layer.is_some_and(|last| layer <= last) {
            self.first += self.n_ubatch;
        }
        self.layer = Some(layer);
        let end = (self.first + self.n_ubatch).min(self.outputs.len());
        let all = self.first.min(end)..end;
        if all.len() == n_rows {
            return Ok(all.collect());
        }
        let n_tokens = all.len();
        let wanted: Vec<usize> = all.filter(|&token| self.outputs[token]).collect();
        if wanted.len() == n_rows {
            return Ok(wanted);
        }
        Err(format!(
            "{n_rows} rows of picks, but the ubatch has {n_tokens} tokens, {} of them with logits",
            wanted.len()
        ))
    }
}

/// The picks of one layer: `[n_used, n_rows]` i32, with strides.
struct Picks<'a> {
    tensor: &'a sys::ggml_tensor,
    n_used: usize,
    n_rows: usize,
    n_expert: u32,
}

impl<'a> Picks<'a> {
    /// # Safety
    ///
    /// For 'a `tensor` is a valid tensor whose data is complete, and nobody else reads or writes that.
    unsafe fn new(tensor: &'a sys::ggml_tensor) -> Result<Picks<'a>, String> {
        let unexpected = |what: &str| format!("{what} in {:?}", tensor.ne);
        // The picks are the first columns of a sorting of all experts.
        // SAFETY: NULL, or the node that this one is a view of.
        let sorted = unsafe { tensor.view_src.as_ref() }.ok_or_else(|| unexpected("no view"))?;
        // SAFETY: a tensor that was computed has a buffer.
        let is_host =
            !tensor.buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(tensor.buffer) };
        if !is_host || tensor.data.is_null() {
            return Err(unexpected("no data in memory"));
        }
        let is_plain = tensor.type_ == sys::GGML_TYPE_I32
            && tensor.nb[0] == size_of::<i32>()
            && tensor.ne[2] * tensor.ne[3] == 1;
        if !is_plain {
            return Err(unexpected("no plain matrix of indices"));
        }
        let size = |n: i64| usize::try_from(n).map_err(|_| unexpected("a negative size"));
        Ok(Picks {
            tensor,
            n_used: size(tensor.ne[0])?,
            n_rows: size(tensor.ne[1])?,
            n_expert: u32::try_from(sorted.ne[0]).map_err(|_| unexpected("a negative size"))?,
        })
    }

    fn row(&self, row: usize) -> *mut i32 {
        assert!(row < self.n_rows, "row {row} of {}", self.n_rows);
        self.tensor
            .data
            .cast::<u8>()
            .wrapping_add(row * self.tensor.nb[1])
            .cast()
    }

    fn read(&self, row: usize, experts: &mut Vec<u32>) {
        // SAFETY: row `row` holds `n_used` i32, contiguous and aligned as ggml's tensors are; `new` was promised that nobody else uses them.
        let row = unsafe { std::slice::from_raw_parts(self.row(row), self.n_used) };
        experts.clear();
        // llama.cpp sorts indices from 0; another value is refused by `check`.
        experts.extend(row.iter().map(|&expert| expert as u32));
    }

    fn write(&mut self, row: usize, experts: &[u32]) {
        // SAFETY: as in `read`; the data of a result is memory that its backend writes to.
        let row = unsafe { std::slice::from_raw_parts_mut(self.row(row), self.n_used) };
        for (old, new) in row.iter_mut().zip(experts) {
            *old = *new as i32;
        }
    }
}

/// The layer whose picks this node holds.
fn layer_of(tensor: &sys::ggml_tensor) -> Option<u32> {
    if tensor.op != sys::GGML_OP_VIEW {
        return None;
    }
    // SAFETY: ggml keeps names NUL-terminated inside the fixed array.
    let name = unsafe { CStr::from_ptr(tensor.name.as_ptr()) }.to_bytes();
    std::str::from_utf8(name.strip_prefix(PICKS)?)
        .ok()?
        .parse()
        .ok()
}

/// Asked before a node is computed whether to stop after it, and called after those.
unsafe extern "C" fn on_node(
    tensor: *mut sys::ggml_tensor,
    is_question: bool,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: registered together with its state, which the `Context` frees only after the C context; the scheduler passes a node
    // of the graph that it computes, whose description nobody changes meanwhile.
    let (state, tensor) = unsafe {
        match (
            user_data.cast::<RouterState>().as_ref(),
            tensor.cast_const().as_ref(),
        ) {
            (Some(state), Some(tensor)) => (state, tensor),
            _ => return !is_question,
        }
    };
    let layer = layer_of(tensor);
    if is_question {
        return layer.is_some() && !state.failure.is_set();
    }
    if let Some(layer) = layer {
        // SAFETY: the scheduler has computed the node and waits for this call, on the thread that decodes: no thread reads or
        // writes the data, and no other call for this state is running.
        unsafe {
            state.call("Router::route", |inner| {
                let mut picks = Picks::new(tensor).map_err(|reason| Failure::Misrouted {
                    layer,
                    token: inner.place.first,
                    reason,
                })?;
                inner.route(layer, &mut picks)
            });
        }
    }
    // False would leave out the rest of the graph.
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::vocab::Token;

    #[test]
    fn rows_are_tokens_of_the_batch() {
        let mut batch = Batch::new(5, 1);
        for i in 0..5 {
            batch.add(Token(0), i, &[0], i == 1 || i == 4).unwrap();
        }
        let mut place = Place::new(&Step::new(&batch), 2);
        assert_eq!(place.rows(1, 2), Ok(vec![0, 1]));
        assert_eq!(place.rows(2, 1), Ok(vec![1]));
        assert_eq!(place.rows(1, 2), Ok(vec![2, 3]));
        assert_eq!(place.rows(2, 0), Ok(vec![]));
        assert_eq!(place.rows(1, 1), Ok(vec![4]));
        assert_eq!(place.rows(2, 1), Ok(vec![4]));
        assert!(place.rows(3, 3).is_err());
        // A model whose only layer with experts is its last.
        let mut place = Place::new(&Step::new(&batch), 4);
        assert_eq!(place.rows(7, 1), Ok(vec![1]));
        assert_eq!(place.rows(7, 1), Ok(vec![4]));
        // More ubatches than the batch has.
        assert!(place.rows(7, 1).is_err());
    }

    #[test]
    fn picks_are_distinct_and_exist() {
        assert_eq!(check(&[3, 0, 1], 4), Ok(()));
        assert_eq!(check(&[3, 4], 4), Err("expert 4 of 4".into()));
        assert_eq!(check(&[3, 1, 3], 4), Err("expert 3 twice".into()));
    }
}
