//! Why there is no bound.

use crate::simulate::SimulateError;

/// Why there is no bound.
#[derive(Debug, thiserror::Error)]
pub enum RooflineError {
    /// A workload of a routing trace alone.
    #[error("the sizes of the experts are not known; name the model")]
    NoSizes,
    /// Numbers that cannot be.
    #[error(
        "a step of {in_ram_step_ms} ms in memory and requests of {request_bytes} bytes: both must be more than 0"
    )]
    Conditions {
        /// The step.
        in_ram_step_ms: f64,
        /// The request.
        request_bytes: u64,
    },
    /// Too little memory.
    #[error(
        "a budget of {budget_bytes} bytes is too small: {other_bytes} of them are not for slots, and for the rest: {source}"
    )]
    Budget {
        /// The budget.
        budget_bytes: u64,
        /// What of it is not for slots.
        other_bytes: u64,
        /// What is missing.
        source: SimulateError,
    },
    /// A window without tokens, or with too many.
    #[error(transparent)]
    Window(#[from] SimulateError),
    /// A model whose layers do not have experts of one kind.
    #[error("{0}")]
    Model(String),
    /// A model and a trace that do not belong together.
    #[error("the model has {model} {what}, the routing trace {trace}")]
    Mismatch {
        /// What is compared.
        what: &'static str,
        /// The model's number.
        model: u64,
        /// The trace's number.
        trace: u64,
    },
}
