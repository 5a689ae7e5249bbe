//! A model's file is damaged while a token is computed from it.

mod child;
mod decode;
mod files;

use std::fs::{self, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use child::in_child;
use decode::{Decoder, Fixture, context_params, options, paged};
use files::engines;
use llama_rs::{NodeObserver, Pending, Step};
use pager::engine::EngineChoice;

const SHAPE: &str = "tiny-gpt-oss-f16";
const N_CTX: u32 = 128;
const N_PROMPT: i32 = 7;
const N_STEPS: usize = 16;
/// The step in which the damage is done.
const STEP: usize = 5;

/// Does the damage in the middle of a step: when some operations have been computed and others have not.
struct Damage<F> {
    steps: usize,
    operations: usize,
    damage: Option<F>,
    done: Arc<AtomicUsize>,
}

impl<F: FnOnce() + Send> NodeObserver for Damage<F> {
    fn before(&mut self, pending: &Pending<'_>) {
        self.operations += pending.nodes().len();
        // A third of the layers is behind it.
        if self.steps == STEP
            && self.operations > 30
            && let Some(damage) = self.damage.take()
        {
            damage();
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn step_end(&mut self, _: &Step<'_>, _: bool) {
        self.steps += 1;
        self.operations = 0;
    }
}

/// A name, and what is done to a file.
type Case = (&'static str, fn(&Path));

fn fixture() -> Fixture {
    Fixture::new(SHAPE, N_CTX, N_PROMPT, N_STEPS)
}

impl Fixture {
    fn copy(&self) -> PathBuf {
        let path = self.folder.path().join("used.gguf");
        // A file of its own, not the one of the last case.
        let _ = fs::remove_file(&path);
        fs::copy(&self.path, &path).unwrap();
        path
    }

    /// Decodes from a copy while the damage is done to it, and gives how each step ended. Whatever comes is that of a healthy model.
    fn decode_through(&self, engine: EngineChoice, damage: fn(&Path)) -> Vec<Result<(), String>> {
        let path = self.copy();
        let used = path.clone();
        let model = paged(&path, options(self.budget_bytes, engine));
        let (mut context, pager) = model.context(&context_params(N_CTX)).unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        context
            .set_observer(Damage {
                steps: 0,
                operations: 0,
                damage: Some(move || damage(&used)),
                done: Arc::clone(&done),
            })
            .unwrap();
        let mut decoder = Decoder::new(N_PROMPT);
        let mut ends = Vec::new();
        for expected in &self.expected {
            let end = decoder.step(&mut context);
            ends.push(match end {
                Ok(logits) => {
                    assert!(logits == *expected, "{engine:?}: wrong logits");
                    Ok(())
                }
                Err(error) => Err(error.to_string()),
            });
        }
        assert_eq!(done.load(Ordering::Relaxed), 1, "nothing was damaged");
        assert_eq!(pager.census().n_lost, 0);
        ends
    }
}

#[test]
fn a_file_whose_name_is_gone_is_read_on() {
    in_child("a_file_whose_name_is_gone_is_read_on", || {
        let fixture = fixture();
        let damages: [Case; 3] = [
            ("deleted", |path| fs::remove_file(path).unwrap()),
            ("replaced", |path| {
                let other = path.with_extension("new");
                fs::write(&other, vec![0x55; 4 << 20]).unwrap();
                fs::rename(other, path).unwrap();
            }),
            ("unreadable", |path| {
                fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
            }),
        ];
        for engine in engines() {
            for (name, damage) in damages {
                let ends = fixture.decode_through(engine, damage);
                assert!(
                    ends.iter().all(Result::is_ok),
                    "{engine:?}, {name}: {ends:?}"
                );
            }
        }
    });
}

#[test]
fn a_file_that_is_cut_or_written_to_ends_the_decode_by_its_name() {
    in_child(
        "a_file_that_is_cut_or_written_to_ends_the_decode_by_its_name",
        || {
            let fixture = fixture();
            let damages: [Case; 3] = [
                ("cut to a page", |path| {
                    let file = OpenOptions::new().write(true).open(path).unwrap();
                    file.set_len(4096).unwrap();
                }),
                ("cut in the middle", |path| {
                    let file = OpenOptions::new().write(true).open(path).unwrap();
                    let size_bytes = file.metadata().unwrap().len();
                    file.set_len(size_bytes / 2).unwrap();
                }),
                ("written to", |path| {
                    let mut file = OpenOptions::new().write(true).open(path).unwrap();
                    let size_bytes = file.metadata().unwrap().len();
                    // From behind the metadata to the end.
                    file.seek(SeekFrom::Start(size_bytes / 8)).unwrap();
                    let others = vec![0x2a; (size_bytes - size_bytes / 8) as usize];
                    file.write_all(&others).unwrap();
                    file.sync_all().unwrap();
                }),
            ];
            for engine in engines() {
                for (name, damage) in damages {
                    let ends = fixture.decode_through(engine, damage);
                    let (before, after) = ends.split_at(STEP);
                    assert!(before.iter().all(Result::is_ok), "{name}: {before:?}");
                    for end in after {
                        let error = end.as_ref().expect_err("a step with bytes of another file");
                        assert!(error.contains("used.gguf"), "{engine:?}, {name}: {error}");
                    }
                }
            }
        },
    );
}
