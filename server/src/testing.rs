//! An engine without llama.cpp, for tests of everything around it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::{Config, ModelConfig};
use crate::engine::{Ended, Engine, Holding, Session};
use crate::generate::{
    Candidate, ChosenToken, Event, Failure, FinishReason, Finished, Job, Prompt, TextPiece,
};
use crate::host::Host;
use crate::memory::MappedFile;

/// What all clones of an engine share.
#[derive(Debug, Default)]
pub(crate) struct FakeState {
    /// Models that are in memory now.
    pub(crate) loaded: AtomicUsize,
    /// Loads so far.
    pub(crate) loads: AtomicUsize,
    /// The next loads fail.
    pub(crate) fails: Mutex<Option<String>>,
    /// The next jobs panic the thread.
    pub(crate) panics: AtomicBool,
    /// Jobs wait until this is false.
    pub(crate) is_held: AtomicBool,
}

/// Answers each prompt with the model's name and the prompt, word by word.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeEngine {
    pub(crate) state: Arc<FakeState>,
    pub(crate) load_time: Duration,
}

pub(crate) const MODEL_BYTES: u64 = 10 << 20;

impl Engine for FakeEngine {
    fn need_bytes(&self, _model: &ModelConfig) -> Result<u64, String> {
        Ok(MODEL_BYTES)
    }

    fn run(&self, model: &ModelConfig, session: &Session) -> Result<(), Ended> {
        self.state.loads.fetch_add(1, Ordering::SeqCst);
        for step in 0..10u8 {
            if session.progress(f32::from(step) / 10.0).is_break() {
                return Err(Ended::Failed("loading was cancelled".to_owned()));
            }
            std::thread::sleep(self.load_time / 10);
        }
        if let Some(reason) = self.state.fails.lock().unwrap().clone() {
            return Err(Ended::Failed(reason));
        }
        let file = MappedFile::of(&model.path).map_err(|error| Ended::Failed(error.to_string()))?;
        self.state.loaded.fetch_add(1, Ordering::SeqCst);
        session.ready(Holding {
            description: "fake".to_owned(),
            files: vec![file],
            weights_bytes: MODEL_BYTES / 2,
            kv_bytes: MODEL_BYTES / 4,
            compute_bytes: MODEL_BYTES / 4,
            state_bytes: 0,
            mapped_bytes: 0,
            budget_bytes: None,
            n_ctx: 100,
            n_ctx_train: 1000,
            chat_template: None,
        });
        while let Some(job) = session.wait() {
            self.answer(model, session, job);
        }
        self.state.loaded.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

impl FakeEngine {
    fn answer(&self, model: &ModelConfig, session: &Session, job: Job) {
        if self.state.panics.load(Ordering::SeqCst) {
            self.state.loaded.fetch_sub(1, Ordering::SeqCst);
            panic!("as asked for");
        }
        let prompt = match &job.request.prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Tokens(tokens) => format!("{tokens:?}"),
            Prompt::Chat(messages) => {
                let lines = messages
                    .iter()
                    .map(|m| format!("{}: {}", m.role, m.content));
                lines.collect::<Vec<_>>().join("; ")
            }
        };
        let send = |event| job.events.send(event).is_ok();
        if prompt.contains("too long") {
            send(Event::Failed(Failure::ContextLength {
                n_prompt: 200,
                n_ctx: 100,
            }));
            return;
        }
        send(Event::Started { n_prompt: 7 });
        while self.state.is_held.load(Ordering::SeqCst) {
            if job.events.is_closed() || session.abort().load(Ordering::SeqCst) {
                session.counters().cancelled();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let words = format!("{} says {prompt}", model.name);
        let mut n_generated = 0;
        for word in words.split_inclusive(' ') {
            n_generated += 1;
            let tokens = job.request.probabilities.map(|count| chosen(word, count));
            let piece = TextPiece {
                text: word.to_owned(),
                tokens: tokens.into_iter().collect(),
            };
            if !send(Event::Text(vec![piece])) {
                session.counters().cancelled();
                return;
            }
        }
        if prompt.contains("break") {
            send(Event::Failed(Failure::Internal("it broke".to_owned())));
            return;
        }
        let finished = Finished {
            reason: FinishReason::Stop,
            n_prompt: 7,
            n_cached: 0,
            n_generated,
            prompt_time: Duration::from_millis(2),
            generate_time: Duration::from_millis(3),
        };
        session.counters().finished(&finished);
        send(Event::Done(finished));
    }
}

/// A word as a token, with some less probable ones.
fn chosen(word: &str, count: u32) -> ChosenToken {
    let candidate = |rank: u32| Candidate {
        bytes: match rank {
            0 => word.into(),
            rank => format!("other {rank}").into(),
        },
        log_probability: -0.5 - rank as f32,
    };
    ChosenToken {
        chosen: candidate(0),
        top: (0..count).map(candidate).collect(),
    }
}

/// A model whose file is there.
pub(crate) fn model_config(name: &str, folder: &Path) -> ModelConfig {
    std::fs::write(folder.join(format!("{name}.gguf")), name).unwrap();
    let text = format!("[models.{name}]\npath = '{name}.gguf'\n");
    let config = Config::parse(&text, &folder.join("models.toml")).unwrap();
    config.models[name].clone()
}

/// A server's configuration with these models.
pub(crate) fn config_of(models: Vec<ModelConfig>) -> Config {
    let text = "port = 0\n[models.x]\npath = 'x'\n";
    let mut config = Config::parse(text, Path::new("models.toml")).unwrap();
    config.models = models
        .into_iter()
        .map(|model| (model.name.clone(), model))
        .collect();
    config
}

/// A host with room for two models.
pub(crate) fn host_of(models: Vec<ModelConfig>, engine: FakeEngine) -> Host {
    Host::new(&config_of(models), 2 * MODEL_BYTES, engine).unwrap()
}
