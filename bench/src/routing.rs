//! `--routing`: a window of a routing trace, cut out for the workers.

use std::io::Write as _;
use std::path::Path;

use analysis::routing::RoutingTrace;
use anyhow::{Context as _, Result, bail};
use tempfile::NamedTempFile;

use crate::results::RoutingSetup;
use crate::spec::{Routing, Window};

/// What `--routing` names to keep the model's own choices.
pub(crate) const OWN: &str = "own";

/// How many of what a model or a trace has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    layers: usize,
    experts: usize,
    used: usize,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} layers with {} experts each, of which a token uses {}",
            self.layers, self.experts, self.used
        )
    }
}

/// The choices that all runs replay.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) routing: Routing,
    pub(crate) setup: RoutingSetup,
    /// Goes with this value.
    _window: Option<NamedTempFile>,
}

impl Replay {
    /// `tokens` tokens from `skip` on of the trace that `given` names, for the model of `files`.
    pub(crate) fn new(
        given: &Path,
        skip: usize,
        tokens: usize,
        files: &gguf::ModelFiles,
    ) -> Result<Replay> {
        let (layers, model_shape) = model_shape(files)?;
        let mut setup = RoutingSetup {
            name: OWN.into(),
            model: None,
            skip,
            tokens,
            checked: 0,
        };
        if given == Path::new(OWN) {
            return Ok(Replay {
                routing: Routing::Own,
                setup,
                _window: None,
            });
        }
        let trace = RoutingTrace::open(given)?;
        let trace_shape = Shape {
            layers: trace.n_layers(),
            experts: trace.n_experts(),
            used: trace.top_k(),
        };
        let of = trace.model().unwrap_or("an unnamed model");
        if trace_shape != model_shape {
            bail!(
                "{} is a trace of {of}: {trace_shape}; {} has {model_shape}: no trace of one shape can be replayed on another",
                given.display(),
                files.parts[0].path().display()
            );
        }
        if skip.saturating_add(tokens) > trace.n_tokens() {
            bail!(
                "{} has {} tokens: the {tokens} of prompt and decode from token {skip} on are more; use a smaller \
                 --routing-skip or --tokens",
                given.display(),
                trace.n_tokens()
            );
        }
        let mut window = NamedTempFile::new().context("a temporary file for the routing window")?;
        for token in skip..skip + tokens {
            for layer in trace.token(token).layers() {
                window.write_all(layer).context("the routing window")?;
            }
        }
        window.flush().context("the routing window")?;
        setup.name = given
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        setup.model = trace.model().map(str::to_owned);
        Ok(Replay {
            routing: Routing::Trace(Window {
                file: window.path().to_path_buf(),
                layers,
                n_used: trace.top_k(),
            }),
            setup,
            _window: Some(window),
        })
    }
}

/// The layers that have experts, and how many.
fn model_shape(files: &gguf::ModelFiles) -> Result<(Vec<u32>, Shape)> {
    let layer_of = |name: &str| name.strip_prefix("blk.")?.split('.').next()?.parse().ok();
    let mut layers: Vec<u32> = files
        .tensors()
        .filter(|(_, tensor)| gguf::is_expert_name(&tensor.name))
        .filter_map(|(_, tensor)| layer_of(&tensor.name))
        .collect();
    layers.sort_unstable();
    layers.dedup();
    let metadata = files.metadata();
    let architecture = metadata.architecture().unwrap_or_default();
    let count = |key: &str| {
        metadata
            .u32(&format!("{architecture}.{key}"))
            .map_or(0, |count| count as usize)
    };
    let shape = Shape {
        layers: layers.len(),
        experts: count("expert_count"),
        used: count("expert_used_count"),
    };
    if shape.layers == 0 || shape.used == 0 {
        bail!(
            "{} has no experts: there is nothing that --routing could choose",
            files.parts[0].path().display()
        );
    }
    Ok((layers, shape))
}
