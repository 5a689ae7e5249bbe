//! Expert choices of a routing trace instead of the model's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use llama_rs::{AccessReader, Model, NodeObserver, Pending, Pick, Router, Step, TensorKey, Which};

use pager::Foresight;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::spec::{Routing, Window};

/// The choices of the tokens of one run.
#[derive(Debug)]
pub(super) struct Choices {
    /// `[tokens][layers][n_used]`.
    experts: Vec<u8>,
    layers: Vec<u32>,
    n_used: usize,
    /// The token that is computed, counted from the start of the run.
    token: AtomicUsize,
}

impl Choices {
    pub(super) fn read(window: &Window) -> Result<Choices> {
        let experts = std::fs::read(&window.file)
            .with_context(|| format!("{}: cannot be read", window.file.display()))?;
        let token_bytes = window.layers.len() * window.n_used;
        ensure!(
            token_bytes > 0 && experts.len().is_multiple_of(token_bytes),
            "{}: {} bytes are no whole number of tokens of {token_bytes} bytes",
            window.file.display(),
            experts.len()
        );
        Ok(Choices {
            experts,
            layers: window.layers.clone(),
            n_used: window.n_used,
            token: AtomicUsize::new(0),
        })
    }

    /// The experts of a token, counted from the start of the run, in a layer of the model.
    fn of(&self, token: usize, layer: u32) -> Option<&[u8]> {
        let index = self.layers.binary_search(&layer).ok()?;
        let start = (token * self.layers.len() + index) * self.n_used;
        self.experts.get(start..start + self.n_used)
    }
}

/// Answers with the choices, token after token.
#[derive(Debug)]
pub(super) struct Replay {
    choices: Arc<Choices>,
    /// Tokens of the decodes before this one.
    done: usize,
}

impl Replay {
    pub(super) fn new(choices: Arc<Choices>) -> Replay {
        Replay { choices, done: 0 }
    }
}

impl Router for Replay {
    fn route(&mut self, pick: Pick, experts: &mut [u32]) {
        let token = self.done + pick.token;
        self.choices.token.store(token, Ordering::Relaxed);
        let chosen = self
            .choices
            .of(token, pick.layer)
            .filter(|chosen| chosen.len() == experts.len());
        // The parent cuts the window to the run's tokens and compares the shapes; a panic here ends the decode with this text.
        let chosen = chosen.unwrap_or_else(|| {
            panic!(
                "the routing window has no {} experts for token {token} in layer {}",
                experts.len(),
                pick.layer
            )
        });
        for (expert, chosen) in experts.iter_mut().zip(chosen) {
            *expert = u32::from(*chosen);
        }
    }

    fn step_end(&mut self, step: &Step<'_>, _: bool) {
        self.done += step.n_tokens();
    }
}

/// Knows the choices in advance, as well as it is told to: each expert that a layer will use is named with a certain probability, and
/// another one instead of it otherwise.
#[derive(Debug)]
pub(super) struct Foretold {
    choices: Arc<Choices>,
    probability: f64,
    n_experts: u32,
}

impl Foretold {
    pub(super) fn new(choices: Arc<Choices>, probability: f64) -> Foretold {
        Foretold {
            n_experts: choices
                .experts
                .iter()
                .max()
                .map_or(1, |&most| u32::from(most) + 1),
            choices,
            probability,
        }
    }
}

impl Foresight for Foretold {
    fn experts(&self, layer: u32, is_next_token: bool, experts: &mut Vec<u32>) {
        let token = self.choices.token.load(Ordering::Relaxed) + usize::from(is_next_token);
        let chosen = self.choices.of(token, layer).unwrap_or_default();
        let mut random = StdRng::seed_from_u64(((token as u64) << 16) | u64::from(layer));
        experts.extend(
            chosen
                .iter()
                .map(|&expert| match random.random_bool(self.probability) {
                    true => u32::from(expert),
                    false => random.random_range(0..self.n_experts),
                }),
        );
    }
}

/// The same interruptions, and the model's own choices.
#[derive(Debug)]
pub(super) struct Own;

impl Router for Own {
    fn route(&mut self, _: Pick, _: &mut [u32]) {}
}

/// The choices of a run with a trace.
pub(super) fn choices(routing: Option<&Routing>) -> Result<Option<Arc<Choices>>> {
    match routing {
        Some(Routing::Trace(window)) => Ok(Some(Arc::new(Choices::read(window)?))),
        Some(Routing::Own) | None => Ok(None),
    }
}

/// Compares the experts that are read with the choices. Every decode must have one token.
pub(super) struct Checker {
    choices: Arc<Choices>,
    reader: AccessReader,
    /// Layer of each tensor with experts.
    tensors: BTreeMap<TensorKey, (u32, String)>,
    /// What the current token has read, by tensor.
    seen: BTreeMap<TensorKey, BTreeSet<u32>>,
    token: usize,
    reads: u64,
    difference: Option<String>,
}

impl Checker {
    pub(super) fn new(model: &Model, choices: Arc<Choices>) -> Checker {
        let with_layer = |weight: llama_rs::LoadedWeight| {
            let is_matrices =
                gguf::is_expert_name(&weight.name) && weight.name.ends_with(".weight");
            let layer = layer_of(&weight.name).filter(|_| is_matrices)?;
            Some((weight.key, (layer, weight.name)))
        };
        Checker {
            choices,
            reader: AccessReader::new(),
            tensors: model.weights().into_iter().filter_map(with_layer).collect(),
            seen: BTreeMap::new(),
            token: 0,
            reads: 0,
            difference: None,
        }
    }

    /// Expert reads that were compared; the first difference otherwise.
    pub(super) fn finish(self) -> Result<u64> {
        match self.difference {
            Some(difference) => bail!("the routing trace is not what is read: {difference}"),
            None if self.reads == 0 => {
                bail!("the routing trace cannot be checked: no expert was read")
            }
            None => Ok(self.reads),
        }
    }

    fn compare(&self) -> Option<String> {
        for (key, (layer, name)) in &self.tensors {
            let expected: BTreeSet<u32> = self
                .choices
                .of(self.token, *layer)?
                .iter()
                .map(|&e| e.into())
                .collect();
            let read = self.seen.get(key).cloned().unwrap_or_default();
            if read != expected {
                return Some(format!(
                    "token {} reads experts {read:?} of {name}, the trace says {expected:?}",
                    self.token
                ));
            }
        }
        None
    }
}

impl NodeObserver for Checker {
    fn before(&mut self, pending: &Pending<'_>) {
        self.reader.read(pending, |access| {
            let key = access.weight.key();
            match access.which {
                Which::Matrix(expert) if self.tensors.contains_key(&key) => {
                    self.seen.entry(key).or_default().insert(expert);
                    self.reads += 1;
                }
                _ => {}
            }
        });
    }

    fn step_end(&mut self, _: &Step<'_>, _: bool) {
        if self.difference.is_none() {
            self.difference = self.compare();
        }
        self.seen.clear();
        self.token += 1;
    }
}

/// N of `blk.N.`.
fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_by_token_and_layer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("window");
        std::fs::write(&file, [0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
        let mut window = Window {
            file,
            layers: vec![1, 2],
            n_used: 2,
        };
        let choices = Choices::read(&window).unwrap();
        assert_eq!(choices.of(0, 1), Some(&[0, 1][..]));
        assert_eq!(choices.of(1, 2), Some(&[6, 7][..]));
        assert_eq!((choices.of(2, 1), choices.of(0, 0)), (None, None));
        let window_choices = Arc::new(choices);
        let mut told = Vec::new();
        Foretold::new(Arc::clone(&window_choices), 1.0).experts(2, false, &mut told);
        Foretold::new(Arc::clone(&window_choices), 1.0).experts(1, true, &mut told);
        assert_eq!(told, [2, 3, 4, 5]);
        window.n_used = 3;
        assert!(Choices::read(&window).is_err());
        assert_eq!(
            (
                layer_of("blk.12.ffn_up_exps.weight"),
                layer_of("output.weight")
            ),
            (Some(12), None)
        );
    }

    #[test]
    fn other_experts_than_the_traces_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        let shape = model_shapes::Shape::by_name("tiny-gpt-oss").unwrap();
        model_shapes::generate(&shape, &path, 1, &mut |_, _| {}).unwrap();
        let params = llama_rs::ModelParams {
            repack: false,
            ..Default::default()
        };
        let model = Model::load(&llama_rs::Backend::init(), &path, &params).unwrap();
        let metadata = model.files().metadata();
        let n_used = metadata.u32("gpt-oss.expert_used_count").unwrap() as usize;
        let layers: Vec<u32> = (0..model.n_layer()).collect();
        let all_the_first = (0..3 * layers.len()).flat_map(|_| 0..n_used as u8);
        let choices = Arc::new(Choices {
            experts: all_the_first.collect(),
            layers,
            n_used,
            token: AtomicUsize::new(0),
        });
        let check = |replayed: bool| {
            let params = llama_rs::ContextParams::default();
            let mut context = if replayed {
                llama_rs::Context::with_router(&model, &params, Replay::new(Arc::clone(&choices)))
            } else {
                llama_rs::Context::with_router(&model, &params, Own)
            }
            .unwrap();
            context
                .set_observer(Checker::new(&model, Arc::clone(&choices)))
                .unwrap();
            for position in 0..3 {
                let mut batch = llama_rs::Batch::new(1, 1);
                batch
                    .add(llama_rs::Token(position), position, &[0], true)
                    .unwrap();
                context.decode(&batch).unwrap();
            }
            context.take_observer::<Checker>().unwrap().finish()
        };
        let reads = 3 * 3 * model.n_layer() as usize * n_used;
        assert_eq!(check(true).unwrap(), reads as u64);
        let message = check(false).unwrap_err().to_string();
        assert!(
            message.contains("token 0 reads experts") && message.contains("blk."),
            "{message}"
        );
    }
}
