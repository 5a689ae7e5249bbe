//! Choosing the next token from a row of logits.

use llama_sys as sys;

use crate::assertions;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::inner::InnerSampler;
use crate::shim;
use crate::vocab::Token;

/// Chooses tokens. Wraps a `llama_sampler` chain.
#[derive(Debug)]
pub struct Sampler {
    inner: InnerSampler,
}

/// Options of a [`Sampler`]; see [`Sampler::builder`].
///
/// The steps run in llama.cpp's order: top-k, top-p, min-p, temperature, draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerBuilder {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    seed: u32,
}

impl Sampler {
    /// Always takes the most probable token.
    pub fn greedy() -> Sampler {
        // SAFETY: the function takes no arguments; the chain takes the member over.
        let chain = Chain::new().with(unsafe { sys::llama_sampler_init_greedy() });
        chain.finish()
    }

    /// Draws from the distribution: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, seed 0, unless set otherwise.
    pub fn builder() -> SamplerBuilder {
        SamplerBuilder {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            seed: 0,
        }
    }

    /// Chooses a token from row `index` of the last batch (negative: counted back from its last output) and tells the
    /// chain that it was taken. Wraps `llama_sampler_sample`.
    ///
    /// # Errors
    ///
    /// [`Error::NoLogits`] when that row has no logits; [`Error::Sampling`] when a logit is NaN or infinite, or all of them
    /// are minus infinity.
    pub fn sample(&mut self, context: &Context<'_>, index: i32) -> Result<Token> {
        check_row(index, context.logits(index)?)?;
        let mut token = 0;
        // SAFETY: the sampler is alive and used by this thread only (`&mut self`), as is the context, which is not Sync;
        // the row exists and at least one of its values is finite.
        let status = assertions::as_errors(|| unsafe {
            sys::faultline_sampler_sample(self.inner.as_ptr(), context.raw(), index, &mut token)
        });
        shim::check("llama_sampler_sample", status)?;
        Ok(Token(token))
    }

    /// Tells the chain that `token` was taken, for tokens that another source chose; [`sample`](Sampler::sample) does so
    /// itself.
    pub fn accept(&mut self, token: Token) {
        // SAFETY: the sampler is alive and used by this thread only; its members ignore ids they do not know.
        let status = unsafe { sys::faultline_sampler_accept(self.inner.as_ptr(), token.0) };
        // None of the members that the builder uses remembers tokens, so none allocates.
        debug_assert!(shim::is_ok(status));
    }

    /// Back to the state after creation, the random generator's seed included.
    pub fn reset(&mut self) {
        // SAFETY: the sampler is alive and used by this thread only.
        unsafe { sys::llama_sampler_reset(self.inner.as_ptr()) }
    }
}

impl SamplerBuilder {
    /// Spread of the distribution; finite and at least 0. Below 0.0001 the most probable token is always taken, where
    /// dividing by it would overflow.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Keep the `top_k` most probable tokens; 0 keeps all.
    pub fn top_k(mut self, top_k: u32) -> Self {
        self.top_k = top_k;
        self
    }

    /// Keep the most probable tokens that together reach this probability; in `0.0..=1.0`, 1 keeps all.
    pub fn top_p(mut self, top_p: f32) -> Self {
        self.top_p = top_p;
        self
    }

    /// Keep tokens at least this probable relative to the most probable one; in `0.0..=1.0`, 0 keeps all.
    pub fn min_p(mut self, min_p: f32) -> Self {
        self.min_p = min_p;
        self
    }

    /// Seed of the draw. The same seed, options and logits give the same tokens.
    pub fn seed(mut self, seed: u32) -> Self {
        self.seed = seed;
        self
    }

    /// Builds the chain.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for a value outside its range, including NaN.
    pub fn build(self) -> Result<Sampler> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::parameter(
                "temperature",
                format!("{} is not a finite number of at least 0", self.temperature),
            ));
        }
        for (name, value) in [("top_p", self.top_p), ("min_p", self.min_p)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::parameter(
                    name,
                    format!("{value} is outside 0.0..=1.0"),
                ));
            }
        }
        let top_k = i32::try_from(self.top_k).map_err(|_| {
            Error::parameter("top_k", format!("{} is above 2147483647", self.top_k))
        })?;
        if self.temperature < 1e-4 {
            return Ok(Sampler::greedy());
        }
        let mut chain = Chain::new();
        // SAFETY: plain constructors whose arguments were checked above; the chain takes each member over.
        unsafe {
            if top_k > 0 {
                chain = chain.with(sys::llama_sampler_init_top_k(top_k));
            }
            if self.top_p < 1.0 {
                chain = chain.with(sys::llama_sampler_init_top_p(self.top_p, 1));
            }
            if self.min_p > 0.0 {
                chain = chain.with(sys::llama_sampler_init_min_p(self.min_p, 1));
            }
            chain = chain.with(sys::llama_sampler_init_temp(self.temperature));
            chain = chain.with(sys::llama_sampler_init_dist(fixed_seed(self.seed)));
        }
        Ok(chain.finish())
    }
}

/// Refuses logits that have no order: sorting them is undefined behaviour in C++, and a distribution over them has no
/// probabilities.
fn check_row(index: i32, logits: &[f32]) -> Result<()> {
    let mut refused = false;
    let mut any_finite = false;
    // Without an early exit the loop compiles to vector instructions.
    for logit in logits {
        refused |= logit.is_nan() | (*logit == f32::INFINITY);
        any_finite |= logit.is_finite();
    }
    if refused {
        return Err(Error::Sampling(format!(
            "the logits of row {index} contain NaN or infinity"
        )));
    }
    if !any_finite {
        return Err(Error::Sampling(format!(
            "all logits of row {index} are minus infinity"
        )));
    }
    Ok(())
}

/// llama.cpp reads the largest seed as "choose one at random"; a given seed is always fixed here.
fn fixed_seed(seed: u32) -> u32 {
    if seed == sys::LLAMA_DEFAULT_SEED {
        0
    } else {
        seed
    }
}

/// A chain under construction.
struct Chain(InnerSampler);

impl Chain {
    fn new() -> Chain {
        // SAFETY: parameters are the library's own defaults; the result is ours.
        let chain = unsafe {
            let params = sys::llama_sampler_chain_default_params();
            InnerSampler::from_raw(sys::llama_sampler_chain_init(params))
        };
        // llama_sampler_chain_init allocates with new: it returns an object or ends the process.
        Chain(chain.expect("llama_sampler_chain_init returned NULL"))
    }

    /// Appends `member`, which the chain owns from now on.
    fn with(self, member: *mut sys::llama_sampler) -> Chain {
        // SAFETY: `member` comes from an init function in this file and is given away here, once.
        unsafe { sys::llama_sampler_chain_add(self.0.as_ptr(), member) };
        self
    }

    fn finish(self) -> Sampler {
        Sampler { inner: self.0 }
    }
}
