//! What a recording costs, and what the hooks cost while nobody listens: blocks of decoding that take turns.
//!
//! The processes stay alive and decode one block each, in turn, so that a slow phase of the machine meets all of them. A
//! recorded block and the plain one beside it come from the same process: same pages, same addresses, the only
//! difference is the recording. Programs that are built differently cannot share a process; they are started again each
//! round, since the addresses that a process happens to get can change its speed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::cli::TraceCostArgs;
use crate::host::{self, Host};
use crate::models;
use crate::stats::{self, Summary};
use crate::worker::blocks::{BlocksSpec, PLAIN, RECORDED};
use crate::{cache, interrupt, output};

/// Long enough for the threads of the last block to fall asleep.
const PAUSE: Duration = Duration::from_millis(5);

/// One thing that is measured: a process and what it is told.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    process: usize,
    command: &'static str,
}

/// Runs the rounds and prints times and ratios.
pub(crate) fn run(args: &TraceCostArgs) -> Result<()> {
    let files = gguf::ModelFiles::open(&args.model)?;
    let parts = models::parts(&files);
    for program in [&args.unpatched, &args.patched].into_iter().flatten() {
        if !program.is_file() {
            bail!(
                "{}: no such program; scripts/trace-cost.sh builds it",
                program.display()
            );
        }
    }
    cache::make_warm(&parts)?;
    let folder = tempfile::tempdir().context("cannot make a folder for the log")?;
    let rows = rows(args);
    let mut times: Vec<Vec<Option<f64>>> = vec![Vec::new(); rows.len()];
    let mut n_records = 0;
    for round in 0..args.rounds {
        cache::keep_warm(&parts)?;
        n_records += run_round(args, &rows, folder.path(), &mut times)?;
        eprintln!("round {}/{}", round + 1, args.rounds);
    }
    output::print(&render(args, &rows, &times, n_records)?)
}

fn rows(args: &TraceCostArgs) -> Vec<Row> {
    let mut rows = vec![
        Row {
            name: "plain",
            process: 0,
            command: PLAIN,
        },
        Row {
            name: "recorded",
            process: 0,
            command: RECORDED,
        },
    ];
    let programs = [
        ("unpatched", &args.unpatched),
        ("patched, hooks unset", &args.patched),
    ];
    for (name, program) in programs {
        if program.is_some() {
            rows.push(Row {
                name,
                process: 1 + rows.len() - 2,
                command: PLAIN,
            });
        }
    }
    rows
}

/// Starts the processes and lets them take turns. Gives the number of records that were written.
fn run_round(
    args: &TraceCostArgs,
    rows: &[Row],
    folder: &Path,
    times: &mut [Vec<Option<f64>>],
) -> Result<u64> {
    let mut processes = vec![start_own(args, folder)?];
    for program in [&args.unpatched, &args.patched].into_iter().flatten() {
        let mut command = Command::new(program);
        command.arg(&args.model);
        command.args([args.n_tokens.to_string(), args.n_threads().to_string()]);
        processes.push(Process::start(command)?);
    }
    for row in rows {
        processes[row.process].block(row.command)?;
    }
    for turn in 0..args.blocks {
        // Every row follows every other one equally often.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.rotate_left(turn as usize / 2 % rows.len());
        if turn % 2 == 1 {
            order.reverse();
        }
        for row in order {
            thread::sleep(PAUSE);
            interrupt::check()?;
            let ns = processes[rows[row].process].block(rows[row].command)?;
            times[row].push(Some(ns as f64));
        }
    }
    let mut n_records = 0;
    for (index, process) in processes.into_iter().enumerate() {
        let last = process.finish()?;
        if index == 0 {
            n_records = last.trim().parse().context("no count of records")?;
        }
    }
    Ok(n_records)
}

fn start_own(args: &TraceCostArgs, folder: &Path) -> Result<Process> {
    let spec = BlocksSpec {
        model: args.model.clone(),
        log: folder.join("run.ftrace"),
        log_bytes: tracer::CAPACITY_BYTES_DEFAULT,
        n_tokens: args.n_tokens,
        n_threads: args.n_threads(),
    };
    let mut command =
        Command::new(std::env::current_exe().context("cannot find the own program file")?);
    command.arg("blocks").arg(serde_json::to_string(&spec)?);
    Process::start(command)
}

/// A process that decodes blocks. It does not outlive this value.
struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(mut command: Command) -> Result<Process> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Process { child, stdout })
    }

    /// The nanoseconds that a block took.
    fn block(&mut self, command: &str) -> Result<u64> {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{command}").context("a process has ended; its reason is above")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        line.trim()
            .parse()
            .context("a process has ended; its reason is above")
    }

    /// What it says last.
    fn finish(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("a process ended with {status}");
        }
        Ok(line)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail harmlessly when the child has been collected already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn render(
    args: &TraceCostArgs,
    rows: &[Row],
    times: &[Vec<Option<f64>>],
    n_records: u64,
) -> Result<String> {
    let host = Host::of_model(&args.model);
    let tokens = f64::from(args.n_tokens);
    let summaries: Vec<Summary> = times
        .iter()
        .map(|times| {
            let rates: Vec<f64> = times.iter().flatten().map(|ns| tokens * 1e9 / ns).collect();
            Summary::of(&rates).context("no block was measured")
        })
        .collect::<Result<_>>()?;
    // The speed of the first over that of the second.
    let speed = |row: &str, reference: &str| -> Option<Summary> {
        let find = |name: &str| rows.iter().position(|row| row.name == name);
        stats::paired_ratio(&times[find(reference)?], &times[find(row)?])
    };
    let ratios = [
        ("recorded", "plain"),
        ("patched, hooks unset", "unpatched"),
        ("plain", "patched, hooks unset"),
    ];
    let ratios: Vec<_> = ratios
        .iter()
        .filter_map(|&(row, reference)| Some((row, reference, speed(row, reference)?)))
        .collect();
    let n_blocks = u64::from(args.rounds) * u64::from(args.blocks);
    // The first block of each round is not timed, but recorded.
    let n_recorded = (n_blocks + u64::from(args.rounds)) * u64::from(args.n_tokens);
    let records_per_token = n_records as f64 / n_recorded as f64;
    let name = args
        .model
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .zip(&summaries)
            .map(|(row, summary)| json!({"name": row.name, "tokens_per_s": summary}))
            .collect();
        let ratios: Vec<_> = ratios
            .iter()
            .map(|(row, reference, ratio)| json!({"of": row, "to": reference, "speed": ratio}))
            .collect();
        let value = json!({
            "model_filename": name, "n_tokens": args.n_tokens, "n_threads": args.n_threads(), "rounds": args.rounds,
            "blocks": args.blocks, "records_per_token": records_per_token, "cpu_info": host.cpu, "kernel": host.kernel,
            "test_time": host::now_utc(), "rows": rows, "ratios": ratios,
        });
        return Ok(format!("{value:#}\n"));
    }
    let mut text = format!(
        "- model: {name}, blocks of {} tokens, {} threads, repacking off, page cache warm, {} rounds of {} blocks\n\
         - recorded: {records_per_token:.1} records a token\n- machine: {}, {}\n\n\
         | row | t/s, median [95 %] | MAD |\n|---|--:|--:|\n",
        args.n_tokens,
        args.n_threads(),
        args.rounds,
        args.blocks,
        host.cpu,
        host.kernel,
    );
    for (row, s) in rows.iter().zip(&summaries) {
        text += &format!(
            "| {} | {:.3} [{:.3}, {:.3}] | {:.3} |\n",
            row.name, s.median, s.lo, s.hi, s.mad
        );
    }
    text += "\n| speed of | to | ratio, median of pairs [95 %] |\n|---|---|--:|\n";
    for (row, reference, s) in &ratios {
        text += &format!(
            "| {row} | {reference} | {:.4} [{:.4}, {:.4}] |\n",
            s.median, s.lo, s.hi
        );
    }
    Ok(text)
}
