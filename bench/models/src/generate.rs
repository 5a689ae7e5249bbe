//! Writes a planned file with all processors, in pieces.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use gguf::{GgufWriter, TensorInfo};

use crate::Error;
use crate::fill::{BIAS_CHANNELS, RowMaker, RowStyle};
use crate::plan::{Fill, Plan, is_spoken_row};
use crate::rng::Rng;
use crate::topics::{self, Topics};

/// Pieces are whole rows of about this many bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// One tensor to fill.
struct Job<'a> {
    info: &'a TensorInfo,
    work: Work<'a>,
    row_bytes: u64,
    rows: u64,
    rows_per_piece: u64,
    /// Number of the tensor's first piece among all pieces of the file.
    first_piece: u64,
}

/// What a job does for each row.
enum Work<'a> {
    Rows(RowMaker),
    Vocabulary {
        spoken: RowMaker,
        silent: RowMaker,
    },
    Router {
        noise: RowMaker,
        lifts: &'a [f32],
    },
    TopicEmbedding {
        noise: RowMaker,
        topics: Topics,
    },
    TopicOutput {
        spoken: RowMaker,
        silent: RowMaker,
        topics: Topics,
    },
    Values(&'a [f32]),
}

impl Job<'_> {
    fn pieces(&self) -> u64 {
        self.rows.div_ceil(self.rows_per_piece)
    }

    /// Makes piece number `piece` of the tensor in `out`; returns where it belongs.
    fn make(&self, piece: u64, seed: u64, out: &mut Vec<u8>) -> u64 {
        let first_row = piece * self.rows_per_piece;
        let rows = self.rows_per_piece.min(self.rows - first_row);
        out.resize((rows * self.row_bytes) as usize, 0);
        let mut rng = Rng::new(seed, &self.info.name, piece);
        for (row, bytes) in (first_row..).zip(out.chunks_exact_mut(self.row_bytes as usize)) {
            match &self.work {
                Work::Rows(maker) => maker.make(bytes, &mut rng),
                Work::Vocabulary { spoken, .. } if is_spoken_row(row) => {
                    spoken.make(bytes, &mut rng);
                }
                Work::Vocabulary { silent, .. } => silent.make(bytes, &mut rng),
                Work::TopicEmbedding { noise, topics } => {
                    noise.make(bytes, &mut rng);
                    topics.replace_half(row, bytes);
                }
                Work::TopicOutput { spoken, topics, .. } if is_spoken_row(row) => {
                    spoken.make(bytes, &mut rng);
                    topics.add_to_half(row, bytes);
                }
                Work::TopicOutput { silent, .. } => silent.make(bytes, &mut rng),
                Work::Router { noise, lifts } => {
                    noise.make(bytes, &mut rng);
                    lift(bytes, lifts[row as usize]);
                }
                Work::Values(values) => {
                    let start = (row * self.row_bytes / 4) as usize;
                    for (place, value) in bytes.chunks_exact_mut(4).zip(&values[start..]) {
                        place.copy_from_slice(&value.to_le_bytes());
                    }
                }
            }
        }
        first_row * self.row_bytes
    }
}

/// Adds a number to the bias channels of a row of F32.
fn lift(row: &mut [u8], by: f32) {
    for place in row.chunks_exact_mut(4).take(BIAS_CHANNELS) {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(place);
        place.copy_from_slice(&(f32::from_le_bytes(bytes) + by).to_le_bytes());
    }
}

/// Writes the file of a plan.
pub(crate) fn write(
    plan: &Plan,
    path: &Path,
    seed: u64,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), Error> {
    let writer = GgufWriter::create(path, plan.layout.clone())?;
    let jobs = jobs(plan, writer.tensors(), seed)?;
    let n_pieces = jobs.last().map_or(0, |job| job.first_piece + job.pieces());
    let total_bytes: u64 = writer.tensors().iter().map(|t| t.size_bytes).sum();
    progress(0, total_bytes);

    let next_piece = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let work = |done: &mpsc::Sender<u64>| -> Result<(), Error> {
        let mut piece_bytes = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let piece = next_piece.fetch_add(1, Ordering::Relaxed);
            if piece >= n_pieces {
                break;
            }
            let tensor = jobs.partition_point(|job| job.first_piece <= piece) - 1;
            let job = &jobs[tensor];
            let offset = job.make(piece - job.first_piece, seed, &mut piece_bytes);
            if let Err(e) = writer.write_at(tensor, offset, &piece_bytes) {
                failed.store(true, Ordering::Relaxed);
                return Err(e.into());
            }
            // The receiver lives until all senders are gone.
            let _ = done.send(piece_bytes.len() as u64);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                let (sender, work) = (sender.clone(), &work);
                scope.spawn(move || work(&sender))
            })
            .collect();
        drop(sender);
        let mut done_bytes = 0;
        for bytes in receiver {
            done_bytes += bytes;
            progress(done_bytes, total_bytes);
        }
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
    })?;
    Ok(writer.finish()?)
}

fn jobs<'a>(plan: &'a Plan, tensors: &'a [TensorInfo], seed: u64) -> Result<Vec<Job<'a>>, Error> {
    let mut first_piece = 0;
    let mut jobs = Vec::with_capacity(tensors.len());
    for (info, fill) in tensors.iter().zip(&plan.fills) {
        let maker = |style: RowStyle| RowMaker::new(info.ggml_type, style);
        let work = match fill {
            Fill::Rows(style) => Work::Rows(maker(*style)?),
            Fill::Vocabulary { spoken, silent } => Work::Vocabulary {
                spoken: maker(*spoken)?,
                silent: maker(*silent)?,
            },
            Fill::TopicEmbedding(style) => Work::TopicEmbedding {
                noise: maker(*style)?,
                topics: Topics::new(seed, info.dims[0], topics::VECTOR_RMS),
            },
            Fill::TopicOutput {
                spoken,
                silent,
                lean_rms,
            } => Work::TopicOutput {
                spoken: maker(*spoken)?,
                silent: maker(*silent)?,
                topics: Topics::new(seed, info.dims[0], *lean_rms),
            },
            Fill::Router { rms, lifts } => Work::Router {
                noise: maker(RowStyle::noise(*rms))?,
                lifts,
            },
            Fill::Values(values) => Work::Values(values),
        };
        let rows: u64 = info.dims[1..].iter().product();
        let row_bytes = info.size_bytes / rows;
        let rows_per_piece = (PIECE_BYTES / row_bytes).clamp(1, rows);
        jobs.push(Job {
            info,
            work,
            row_bytes,
            rows,
            rows_per_piece,
            first_piece,
        });
        first_piece += rows.div_ceil(rows_per_piece);
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::Shape;

    /// A folder in memory where there is one: finished files are synced, and a busy disk takes its
    /// time.
    fn temporary() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        let folder = temporary();
        for name in ["tiny-gpt-oss", "tiny-qwen3moe"] {
            let shape = Shape::by_name(name).unwrap();
            let written = [1, 2, 7].map(|threads| {
                let path = folder.path().join(format!("{threads}.gguf"));
                super::write(shape.plan(), &path, 3, threads, &mut |_, _| ()).unwrap();
                fs::read(path).unwrap()
            });
            assert!(
                written[0] == written[1] && written[0] == written[2],
                "{name}"
            );
        }
    }
}
