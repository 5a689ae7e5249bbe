//! What plain llama.cpp computes with all weights in memory, and a build of it without patches.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use llama_rs::{Backend, Context, ContextParams, Model, ModelParams, Token};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::decode::Decoder;

/// The program of `bench/stock`, built against the unpatched source.
const STOCK: &str = "FAULTLINE_STOCK_WORKER";

/// Plain English, so that a real model knows what comes next.
const TEXT: &str = "The harbour was quiet when the first boat came in. Two men carried crates of mackerel over the wet stones, and a \
                    dog that nobody owned followed them up to the market. ";

/// What decides which numbers are computed. Everything else decides only where the weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arithmetic {
    pub(crate) repack: bool,
    pub(crate) threads: u32,
    pub(crate) n_prompt: u32,
    /// After the prompt.
    pub(crate) n_steps: u32,
}

impl Arithmetic {
    pub(crate) fn model(&self) -> ModelParams {
        ModelParams {
            repack: self.repack,
            ..ModelParams::default()
        }
    }

    /// A prompt is one decode; of more than eight tokens it takes several ubatches.
    pub(crate) fn context(&self) -> ContextParams {
        ContextParams {
            n_ctx: self.n_prompt + self.n_steps,
            n_batch: 32,
            n_ubatch: 8,
            n_threads: self.threads,
            n_threads_batch: self.threads,
            ..ContextParams::default()
        }
    }

    /// The first tokens of [`TEXT`], repeated as often as needed.
    pub(crate) fn prompt(&self, model: &Model) -> Vec<Token> {
        let n_prompt = self.n_prompt as usize;
        let mut tokens = Vec::new();
        while tokens.len() < n_prompt {
            let begins = tokens.is_empty();
            tokens.extend(model.vocab().tokenize(TEXT, begins, false).unwrap());
        }
        tokens.truncate(n_prompt);
        tokens
    }
}

/// The logits of the prompt's last token and of each step, as bits.
pub(crate) struct Reference {
    pub(crate) rows: Vec<Vec<u32>>,
}

impl Reference {
    /// Computes it, and compares each token's logits with those of a build without patches if there is one.
    pub(crate) fn new(path: &Path, arithmetic: Arithmetic) -> Reference {
        let model = Model::load(&Backend::init(), path, &arithmetic.model()).unwrap();
        let mut context = Context::new(&model, &arithmetic.context()).unwrap();
        let mut decoder = Decoder::of(&arithmetic.prompt(&model));
        let rows = (0..=arithmetic.n_steps)
            .map(|_| decoder.step(&mut context).unwrap())
            .collect();
        drop(context);
        drop(model);
        let reference = Reference { rows };
        if let Some(after) = stock(path, arithmetic) {
            reference.compare_with_stock(&after, path, arithmetic);
        }
        reference
    }

    fn compare_with_stock(&self, after: &[String], path: &Path, arithmetic: Arithmetic) {
        assert_eq!(after.len(), self.rows.len(), "tokens of the stock program");
        let mut digest = Sha256::new();
        for (token, (row, expected)) in self.rows.iter().zip(after).enumerate() {
            let mut bytes = Vec::with_capacity(4 * row.len());
            for value in row {
                bytes.extend_from_slice(&value.to_ne_bytes());
            }
            digest.update(&bytes);
            assert_eq!(
                hex16(digest.clone()),
                *expected,
                "{}, {arithmetic:?}: token {token} differs from that of llama.cpp without patches, or one before it",
                path.display()
            );
        }
    }

    /// Decodes with a context that should compute the same.
    ///
    /// # Errors
    ///
    /// The first token that has other logits, how many of them, and the first one.
    pub(crate) fn compare(
        &self,
        decoder: &mut Decoder,
        context: &mut Context<'_>,
    ) -> Result<(), String> {
        for (token, expected) in self.rows.iter().enumerate() {
            let found = decoder
                .step(context)
                .map_err(|error| format!("token {token}: {error}"))?;
            if found == *expected {
                continue;
            }
            let differing: Vec<usize> = (0..expected.len())
                .filter(|&index| found[index] != expected[index])
                .collect();
            let first = differing[0];
            return Err(format!(
                "token {token} of {}: {} of {} logits differ, the first is that of {first}: {} instead of {}",
                self.rows.len(),
                differing.len(),
                expected.len(),
                f32::from_bits(found[first]),
                f32::from_bits(expected[first]),
            ));
        }
        Ok(())
    }
}

/// The digest of all logits so far after each token, from the stock program; `None` if none was built.
fn stock(path: &Path, arithmetic: Arithmetic) -> Option<Vec<String>> {
    let program = std::env::var_os(STOCK).filter(|program| !program.is_empty())?;
    let context = arithmetic.context();
    let output = Command::new(program)
        .arg(format!("model={}", path.display()))
        .args(["load_mode=none", "flash_attn=auto", "build="])
        .args(["n_prompts=1", "n_warm_up=0"])
        .arg("decode_limit_ns=0")
        .arg(format!("prompt={TEXT}"))
        .arg(format!("repack={}", u8::from(arithmetic.repack)))
        .arg(format!("n_prompt={}", arithmetic.n_prompt))
        .arg(format!("n_gen={}", arithmetic.n_steps))
        .arg(format!("n_batch={}", context.n_batch))
        .arg(format!("n_ubatch={}", context.n_ubatch))
        .arg(format!("n_threads={}", arithmetic.threads))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let events = String::from_utf8_lossy(&output.stdout);
    let last: Value = serde_json::from_str(events.lines().last().unwrap_or("null")).unwrap();
    let after = last["fingerprint"]["after"].as_array();
    let after = after.unwrap_or_else(|| panic!("{}: {last}", path.display()));
    let text = |digest: &Value| digest.as_str().unwrap().to_owned();
    Some(after.iter().map(text).collect())
}

/// The first 16 digits.
fn hex16(digest: Sha256) -> String {
    digest.finalize()[..8]
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
