//! The JSON file that says what shape a routing trace has.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::{RoutingError, SIZE_MAX_BYTES, Shape, open_file};

/// The largest description that is read: a million sequences and more.
const DESCRIPTION_MAX_BYTES: u64 = 16 << 20;

#[derive(Debug, Deserialize)]
struct Fields {
    n_layer: usize,
    n_expert: usize,
    n_expert_used: usize,
    tokens: usize,
    sequence_lengths: Vec<usize>,
    model: Option<String>,
    layout: Option<String>,
}

/// A description whose numbers agree with each other.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) shape: Shape,
    pub(super) sequence_lengths: Vec<usize>,
    pub(super) model: Option<String>,
    /// What the trace must have.
    pub(super) size_bytes: u64,
}

impl Description {
    pub(super) fn read(path: &Path) -> Result<Description, RoutingError> {
        let (file, size_bytes) = open_file(path)?;
        let problem = |text| RoutingError::description(path, text);
        if size_bytes > DESCRIPTION_MAX_BYTES {
            return Err(problem(format!(
                "{size_bytes} bytes; the description of a routing trace has at most {DESCRIPTION_MAX_BYTES}"
            )));
        }
        let mut text = Vec::new();
        file.take(DESCRIPTION_MAX_BYTES)
            .read_to_end(&mut text)
            .map_err(|source| RoutingError::io(path, "read", source))?;
        let fields: Fields =
            serde_json::from_slice(&text).map_err(|source| RoutingError::Json {
                path: path.to_owned(),
                source,
            })?;
        if let Some(layout) = &fields.layout
            && !layout.starts_with("u8 [token")
        {
            return Err(problem(format!(
                "layout {layout:?}; only \"u8 [tokens][layer][rank], C order\" can be read"
            )));
        }
        let shape = Shape {
            n_tokens: fields.tokens,
            n_layers: fields.n_layer,
            n_experts: fields.n_expert,
            top_k: fields.n_expert_used,
        };
        let size_bytes = check(path, &shape, &fields.sequence_lengths)?;
        Ok(Description {
            shape,
            sequence_lengths: fields.sequence_lengths,
            model: fields.model,
            size_bytes,
        })
    }
}

/// Checks the numbers against each other and returns how many bytes the trace has.
pub(super) fn check(
    path: &Path,
    shape: &Shape,
    sequence_lengths: &[usize],
) -> Result<u64, RoutingError> {
    let problem = |text| Err(RoutingError::description(path, text));
    let Shape {
        n_tokens,
        n_layers,
        n_experts,
        top_k,
    } = *shape;
    if n_tokens == 0 {
        return problem("tokens is 0; there is nothing in the trace".to_owned());
    }
    if !(1..=65_536).contains(&n_layers) {
        return problem(format!("n_layer is {n_layers}; it must be 1 to 65536"));
    }
    if !(1..=256).contains(&n_experts) {
        return problem(format!(
            "n_expert is {n_experts}; it must be 1 to 256, since an expert is one byte"
        ));
    }
    if !(1..=n_experts).contains(&top_k) {
        return problem(format!(
            "n_expert_used is {top_k}; it must be 1 to n_expert, {n_experts}"
        ));
    }
    let n_in_sequences = sequence_lengths
        .iter()
        .try_fold(0usize, |sum, &length| sum.checked_add(length));
    if n_in_sequences != Some(n_tokens) {
        let sum = n_in_sequences.map_or("too many".to_owned(), |sum| sum.to_string());
        return problem(format!(
            "sequence_lengths has {sum} tokens in all, tokens is {n_tokens}"
        ));
    }
    if let Some(index) = sequence_lengths.iter().position(|&length| length == 0) {
        return problem(format!("sequence_lengths[{index}] is 0"));
    }
    let size_bytes = (n_tokens as u64)
        .checked_mul((n_layers * top_k) as u64)
        .filter(|&size_bytes| size_bytes <= SIZE_MAX_BYTES);
    match size_bytes {
        Some(size_bytes) => Ok(size_bytes),
        None => problem(format!(
            "{n_tokens} tokens x {n_layers} layers x {top_k} experts; a trace has at most {SIZE_MAX_BYTES} bytes"
        )),
    }
}
