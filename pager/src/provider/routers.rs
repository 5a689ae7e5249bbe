//! Routers that are computed before their layer: which experts the next layer will probably pick, told from the hidden state that the
//! experts of this one are given.
//!
//! The state of a token changes little from one layer to the next, so a router that is given that of the layer before picks mostly the
//! same experts (Eliseev and Mazur, "Fast Inference of Mixture-of-Experts Language Models with Offloading", 2023). A thread that
//! computes with experts does this between two of them. It may take a small share of the time that threads wait for reads, so that
//! guessing costs next to nothing where there is nothing to guess.

use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Instant;

use llama_rs::LoadedWeight;

use super::lock;
use crate::slices::{Projection, SparseTensor};

/// Guessing may take one part in so many of the time that threads wait.
const STALL_SHARE: u64 = 32;
/// Time that it has in hand at most, and at first, in nanoseconds.
const CREDIT_MAX_NS: i64 = 2_000_000;
/// Sums are made in so many parts, which processors add side by side.
const LANES: usize = 16;

/// Numbers of a dense tensor that is in memory as long as its model.
#[derive(Clone, Copy, Debug)]
struct Floats {
    data: NonNull<f32>,
    len: usize,
}

// SAFETY: an address of memory that nobody writes to once it has arrived; `Floats::get` says who may read it.
unsafe impl Send for Floats {}
// SAFETY: as above.
unsafe impl Sync for Floats {}

impl Floats {
    /// A tensor of so many f32; `None` if there is none, or if its size is another one, as that of any other type.
    fn of(weights: &[LoadedWeight], name: &str, len: usize) -> Option<Floats> {
        let weight = weights.iter().find(|weight| weight.name == name)?;
        let data = NonNull::new(std::ptr::with_exposed_provenance_mut::<f32>(weight.address))?;
        let is_plain = weight.packing.is_none() && weight.size_bytes == 4 * len as u64;
        (is_plain && data.is_aligned()).then_some(Floats { data, len })
    }

    /// # Safety
    ///
    /// The model is alive, and all its dense weights have arrived; for as long as 'a.
    unsafe fn get<'a>(self) -> &'a [f32] {
        // SAFETY: `len` f32 of a tensor of that type, which is as the file has it: nobody writes there.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

/// The router of a layer.
#[derive(Debug)]
struct Router {
    /// `[n_experts][n_embd]`.
    matrix: Floats,
    /// What the layer's normalised state is multiplied with before the router sees it.
    norm: Option<Floats>,
    bias: Option<Floats>,
    /// What is added to the experts' probabilities before the best are picked, and not to what they count.
    selection_bias: Option<Floats>,
}

impl Router {
    fn of(weights: &[LoadedWeight], layer: u32, n_experts: usize, n_embd: usize) -> Option<Router> {
        let floats = |what: &str, len| Floats::of(weights, &format!("blk.{layer}.{what}"), len);
        let norm = floats("ffn_norm.weight", n_embd);
        Some(Router {
            matrix: floats("ffn_gate_inp.weight", n_embd * n_experts)?,
            norm: norm.or_else(|| floats("post_attention_norm.weight", n_embd)),
            bias: floats("ffn_gate_inp.bias", n_experts),
            selection_bias: floats("exp_probs_b.bias", n_experts),
        })
    }

    /// How the router would score the experts, given the state of the layer `before`.
    ///
    /// # Safety
    ///
    /// The model is alive, and all its dense weights have arrived.
    unsafe fn score(&self, before: &Router, state: &mut [f32], scores: &mut Vec<f32>) {
        // SAFETY: by the contract above.
        let of = |floats: Option<Floats>| floats.map(|floats| unsafe { floats.get() });
        // The state was normalised for the layer before, and is multiplied with that layer's weights.
        if let (Some(own), Some(others)) = (of(self.norm), of(before.norm)) {
            for ((value, own), others) in state.iter_mut().zip(own).zip(others) {
                *value = match *others == 0.0 {
                    true => 0.0,
                    false => *value / others * own,
                };
            }
        }
        // SAFETY: by the contract above.
        let matrix = unsafe { self.matrix.get() };
        scores.clear();
        scores.extend(matrix.chunks_exact(state.len()).map(|row| dot(row, state)));
        if let Some(bias) = of(self.bias) {
            scores
                .iter_mut()
                .zip(bias)
                .for_each(|(score, bias)| *score += bias);
        }
        if let Some(bias) = of(self.selection_bias) {
            let add =
                |(score, bias): (&mut f32, &f32)| *score = 1.0 / (1.0 + (-*score).exp()) + bias;
            scores.iter_mut().zip(bias).for_each(add);
        }
    }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(l, r)| l * r).sum();
    sums.iter().sum::<f32>() + rest
}

/// What is to be computed, and what came of it.
#[derive(Debug, Default)]
struct Work {
    /// Index of the layer whose state this is, among those with experts.
    layer: usize,
    state: Vec<f32>,
    scores: Vec<f32>,
}

/// The routers of a model.
#[derive(Debug)]
pub(super) struct Routers {
    n_embd: usize,
    /// By index of the layer among those with experts.
    routers: Vec<Option<Router>>,
    work: Mutex<Work>,
    has_state: AtomicBool,
    has_scores: AtomicBool,
    credit_ns: AtomicI64,
}

impl Routers {
    /// Those of the layers, given by their number and number of experts. A state has `n_embd` numbers.
    pub(super) fn new(weights: &[LoadedWeight], layers: &[(u32, usize)], n_embd: usize) -> Routers {
        let router =
            |&(layer, n_experts): &(u32, usize)| Router::of(weights, layer, n_experts, n_embd);
        Routers {
            n_embd,
            routers: layers.iter().map(router).collect(),
            work: Mutex::default(),
            has_state: AtomicBool::new(false),
            has_scores: AtomicBool::new(false),
            credit_ns: AtomicI64::new(CREDIT_MAX_NS),
        }
    }

    /// Threads have waited for so long since the last call.
    pub(super) fn earn(&self, stall_ns: u64) {
        let earned = (stall_ns / STALL_SHARE) as i64;
        let credit = self.credit_ns.load(Ordering::Relaxed);
        self.credit_ns
            .store((credit + earned).min(CREDIT_MAX_NS), Ordering::Relaxed);
    }

    /// A layer's operation begins, of which these are the tensor and the state. What was left of the layer before is forgotten.
    /// False if no router can be computed from it.
    pub(super) fn begin_layer(
        &self,
        layer: usize,
        stack: &SparseTensor,
        state: Option<&[f32]>,
    ) -> bool {
        self.has_state.store(false, Ordering::Relaxed);
        self.has_scores.store(false, Ordering::Relaxed);
        let is_state = !matches!(stack.projection, Projection::Down | Projection::Value);
        let state = state.filter(|state| is_state && state.len() == self.n_embd);
        let Some(state) = state.filter(|_| self.can_guess(layer)) else {
            return false;
        };
        let mut work = lock(&self.work);
        work.layer = layer;
        work.state.clear();
        work.state.extend_from_slice(state);
        self.has_state.store(true, Ordering::Release);
        true
    }

    fn can_guess(&self, layer: usize) -> bool {
        let has_router = |layer| matches!(self.routers.get(layer), Some(Some(_)));
        has_router(layer) && has_router(layer + 1) && self.credit_ns.load(Ordering::Relaxed) > 0
    }

    /// Whether somebody should call [`compute`](Routers::compute).
    pub(super) fn is_wanted(&self) -> bool {
        self.has_state.load(Ordering::Relaxed)
    }

    /// Computes the router of the next layer, unless another thread does. True if there are scores now.
    ///
    /// # Safety
    ///
    /// The model is alive, and all its dense weights have arrived.
    pub(super) unsafe fn compute(&self) -> bool {
        if !self.has_state.swap(false, Ordering::Acquire) {
            return false;
        }
        let begin = Instant::now();
        let mut work = lock(&self.work);
        let Work {
            layer,
            state,
            scores,
        } = &mut *work;
        let (Some(Some(before)), Some(Some(router))) =
            (self.routers.get(*layer), self.routers.get(*layer + 1))
        else {
            return false;
        };
        // SAFETY: by the contract above.
        unsafe { router.score(before, state, scores) };
        drop(work);
        self.has_scores.store(true, Ordering::Release);
        self.credit_ns
            .fetch_sub(begin.elapsed().as_nanos() as i64, Ordering::Relaxed);
        true
    }

    /// Whether somebody should call [`take`](Routers::take).
    pub(super) fn has_scores(&self) -> bool {
        self.has_scores.load(Ordering::Relaxed)
    }

    /// What was computed, once.
    pub(super) fn take<T>(&self, see: impl FnOnce(&[f32]) -> T) -> Option<T> {
        let is_there = self.has_scores.swap(false, Ordering::Acquire);
        is_there.then(|| see(&lock(&self.work).scores))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Floats {
        Floats {
            data: NonNull::from(values).cast(),
            len: values.len(),
        }
    }

    #[test]
    fn scores_are_those_of_the_state_with_the_own_norm() {
        let n_embd = LANES + 3;
        let matrix: Vec<f32> = (0..2 * n_embd).map(|i| (i % 7) as f32 - 3.0).collect();
        let (own, others): (Vec<f32>, Vec<f32>) = (0..n_embd)
            .map(|i| (1.0 + i as f32, if i == 2 { 0.0 } else { 2.0 }))
            .unzip();
        let (bias, selection) = ([0.5, -0.5], [0.25, 0.75]);
        let router = |norm: &[f32]| Router {
            matrix: floats(&matrix),
            norm: Some(floats(norm)),
            bias: None,
            selection_bias: None,
        };
        let before = router(&others);
        let mut router = router(&own);
        router.bias = Some(floats(&bias));
        let state: Vec<f32> = (0..n_embd).map(|i| 0.01 * i as f32).collect();
        let expected = |expert: usize| -> f32 {
            let terms = (0..n_embd).filter(|&i| i != 2);
            let term = |i: usize| matrix[expert * n_embd + i] * state[i] / 2.0 * own[i];
            terms.map(term).sum::<f32>() + bias[expert]
        };
        let mut scores = vec![9.0];
        // SAFETY: all numbers are those of this function.
        unsafe { router.score(&before, &mut state.clone(), &mut scores) };
        for expert in 0..2 {
            assert!(
                (scores[expert] - expected(expert)).abs() < 1e-3,
                "{scores:?}"
            );
        }
        router.selection_bias = Some(floats(&selection));
        // SAFETY: as above.
        unsafe { router.score(&before, &mut state.clone(), &mut scores) };
        for expert in 0..2 {
            let probability = 1.0 / (1.0 + (-expected(expert)).exp()) + selection[expert];
            assert!((scores[expert] - probability).abs() < 1e-3, "{scores:?}");
        }
    }
}
