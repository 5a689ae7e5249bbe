//! What can be wrong with a simulation.

/// Why a simulation cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The access log cannot be read.
    #[error(transparent)]
    Log(#[from] tracer::Error),
    /// A window that begins behind the last token, or has none.
    #[error(
        "no tokens are left to count: there are {n_tokens}, and {skip} are skipped and {warmup} used as warm-up"
    )]
    NothingLeft {
        /// Tokens of the trace.
        n_tokens: usize,
        /// Tokens left out.
        skip: usize,
        /// Tokens not counted.
        warmup: usize,
    },
    /// More than fits into memory.
    #[error("more than {max} accesses; choose fewer tokens with --skip and --tokens")]
    TooLong {
        /// What is possible.
        max: usize,
    },
    /// An access log without what a simulation is about.
    #[error("{name}: no decode step reads experts (MUL_MAT_ID); {problem}")]
    NoExperts {
        /// The log.
        name: String,
        /// What there is instead.
        problem: String,
    },
    /// A record that contradicts the log's tables.
    #[error("{name}: record {record}: {problem}")]
    Record {
        /// The log.
        name: String,
        /// Its number.
        record: u64,
        /// Which field, its value, and what it may be.
        problem: String,
    },
    /// A cache that cannot hold what is used together.
    #[error(
        "a cache of {capacity} {unit} is too small: token {token} uses {needed} {unit} of layer {layer} at once"
    )]
    TooSmall {
        /// What there is.
        capacity: u64,
        /// What it takes at least.
        needed: u64,
        /// Slots or bytes.
        unit: &'static str,
        /// The token, counted from the window's first.
        token: usize,
        /// The layer's number in the model.
        layer: u32,
    },
    /// A policy of an unknown name.
    #[error(
        "`{text}` is not an eviction policy: there are lru, lfu, lfu-decay:0.95, lfu-mix, next-use and belady"
    )]
    PolicyName {
        /// What was given.
        text: String,
    },
    /// A policy with a number that makes no sense.
    #[error(transparent)]
    Policy(forecast::PolicyError),
}
