//! The wrapper's own cost: its decode against the patched llama-bench's, in alternating pairs.
//!
//! Both compute the same tokens with the same threads, batch sizes, repacking, attention, context size and a warm page
//! cache; both are timed from the first to the last token of the loop, after one token of warm-up.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::cache;
use crate::cli::{OverheadArgs, Switch};
use crate::host::{self, Host};
use crate::models;
use crate::output;
use crate::runner::{self, End};
use crate::spec::{Mode, Reads, TokenSource, WorkerSpec};
use crate::stats::{self, Summary};

/// Runs the pairs and prints the paired ratio.
pub(crate) fn run(args: &OverheadArgs) -> Result<()> {
    let files = gguf::ModelFiles::open(&args.model)?;
    let parts = models::parts(&files);
    if !args.llama_bench.is_file() {
        bail!("{}: no such program", args.llama_bench.display());
    }
    let timeout = Duration::from_secs(args.timeout);
    cache::make_warm(&parts)?;
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for pair in 0..args.pairs {
        // Whoever runs second finds the machine as the other left it, so the order alternates.
        for place in 0..2 {
            cache::keep_warm(&parts)?;
            if (pair + place) % 2 == 0 {
                ours.push(Some(own_tokens_per_s(args, timeout)?));
            } else {
                theirs.push(Some(upstream_tokens_per_s(args, timeout)?));
            }
        }
        eprintln!(
            "pair {}/{}: bench {:.3} t/s, llama-bench {:.3} t/s",
            pair + 1,
            args.pairs,
            ours[pair as usize].unwrap_or_default(),
            theirs[pair as usize].unwrap_or_default()
        );
    }
    let ratio = stats::paired_ratio(&ours, &theirs).context("no pair was measured")?;
    let ours = Summary::of(&ours.into_iter().flatten().collect::<Vec<_>>())
        .context("no run was measured")?;
    let theirs = Summary::of(&theirs.into_iter().flatten().collect::<Vec<_>>())
        .context("no run was measured")?;
    output::print(&render(args, &ours, &theirs, &ratio))
}

fn own_tokens_per_s(args: &OverheadArgs, timeout: Duration) -> Result<f64> {
    let spec = WorkerSpec {
        model: args.model.clone(),
        mode: Mode::Eager,
        budget_bytes: None,
        repack: args.repack == Switch::On,
        advise: false,
        n_prompt: 0,
        n_prompts: 1,
        n_warm_up: 0,
        n_gen: args.n_gen,
        decode_limit_ns: None,
        n_batch: args.compute.batch_size,
        n_ubatch: args.compute.ubatch_size,
        n_threads: args.compute.n_threads(),
        flash_attn: args.compute.flash_attn,
        tokens: TokenSource::LlamaBench,
        routing: None,
        check_routing: false,
        cgroup_procs: None,
        policy: None,
        lookahead: None,
        replay: None,
        reads: Reads::default(),
    };
    match runner::run(runner::worker(&spec)?, timeout)?.end {
        End::Complete(outcome) => Ok(rate(args.n_gen, outcome.decode_loop_ns)),
        End::Rate(_) => bail!("the worker answered as another program"),
        End::Failed(reason) => bail!("the worker failed: {reason}"),
        End::Killed => bail!("the worker was killed (SIGKILL)"),
        End::TimedOut => bail!("the worker took longer than {} s", args.timeout),
    }
}

fn upstream_tokens_per_s(args: &OverheadArgs, timeout: Duration) -> Result<f64> {
    let mut command = Command::new(&args.llama_bench);
    command.args(upstream_arguments(args)).stdin(Stdio::null());
    let output = runner::capture(command, timeout)
        .with_context(|| format!("{}: cannot be run", args.llama_bench.display()))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            args.llama_bench.display(),
            output.status,
            output.stderr.trim()
        );
    }
    let ns = parse_samples_ns(&output.stdout)
        .with_context(|| format!("{}: unexpected output", args.llama_bench.display()))?;
    Ok(rate(args.n_gen, ns))
}

/// The options that make llama-bench do what our worker does.
fn upstream_arguments(args: &OverheadArgs) -> Vec<std::ffi::OsString> {
    let mut list: Vec<std::ffi::OsString> = vec!["-m".into(), args.model.clone().into()];
    let number = |n: u32| n.to_string();
    let options = [
        ("-p", number(0)),
        ("-n", number(args.n_gen)),
        ("-r", number(1)),
        ("-t", number(args.compute.n_threads())),
        ("-b", number(args.compute.batch_size)),
        ("-ub", number(args.compute.ubatch_size)),
        ("-fa", args.compute.flash_attn.as_str().to_string()),
        ("--repack", u8::from(args.repack == Switch::On).to_string()),
        ("-lm", "mmap".to_string()),
        ("-lzm", "off".to_string()),
        // The wrapper never offloads; on a CPU build these change nothing.
        ("-nopo", number(1)),
        ("-nkvo", number(1)),
        ("-o", "json".to_string()),
    ];
    for (name, value) in options {
        list.extend([name.into(), value.into()]);
    }
    list
}

/// The only sample of the only test.
fn parse_samples_ns(stdout: &str) -> Result<u64> {
    let rows: Vec<Value> = serde_json::from_str(stdout)?;
    match rows.as_slice() {
        [row] => row["samples_ns"][0].as_u64().context("no samples_ns"),
        _ => bail!("{} rows instead of one", rows.len()),
    }
}

fn rate(tokens: u32, ns: u64) -> f64 {
    f64::from(tokens) * 1e9 / ns.max(1) as f64
}

fn render(args: &OverheadArgs, ours: &Summary, theirs: &Summary, ratio: &Summary) -> String {
    let host = Host::of_model(&args.model);
    let threads = args.compute.n_threads();
    let name = args
        .model
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    if args.json {
        let value = json!({
            "model_filename": name, "n_gen": args.n_gen, "n_threads": threads, "pairs": args.pairs,
            "repack": args.repack == Switch::On, "cpu_info": host.cpu, "kernel": host.kernel, "test_time": host::now_utc(),
            "bench_ts": ours, "llama_bench_ts": theirs, "ratio": ratio,
        });
        return format!("{value:#}\n");
    }
    let line = |who: &str, s: &Summary| {
        format!(
            "| {who} | {:.3} [{:.3}, {:.3}] | {:.3} |\n",
            s.median, s.lo, s.hi, s.mad
        )
    };
    format!(
        "- model: {name}, tg{}, {threads} threads, repacking {}, page cache warm, {} pairs\n- machine: {}, {}\n\n\
         | program | t/s, median [95 %] | MAD |\n|---|--:|--:|\n{}{}\n\
         paired ratio bench / llama-bench: {:.4} [{:.4}, {:.4}]\n",
        args.n_gen,
        if args.repack == Switch::On {
            "on"
        } else {
            "off"
        },
        args.pairs,
        host.cpu,
        host.kernel,
        line("bench", ours),
        line("llama-bench", theirs),
        ratio.median,
        ratio.lo,
        ratio.hi
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn llama_bench_is_asked_for_the_same_conditions() {
        let cli = Cli::parse_from([
            "bench",
            "overhead",
            "--llama-bench",
            "lb",
            "-m",
            "m.gguf",
            "-n",
            "8",
            "-t",
            "3",
        ]);
        let Some(Command::Overhead(args)) = cli.command else {
            panic!("overhead expected")
        };
        let list: Vec<String> = upstream_arguments(&args)
            .into_iter()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            list.join(" "),
            "-m m.gguf -p 0 -n 8 -r 1 -t 3 -b 2048 -ub 512 -fa auto --repack 0 -lm mmap -lzm off -nopo 1 -nkvo 1 -o json"
        );
    }

    #[test]
    fn the_sample_is_found() {
        assert_eq!(
            parse_samples_ns(r#"[{"n_gen": 8, "samples_ns": [ 8000 ]}]"#).unwrap(),
            8000
        );
        assert_eq!(rate(8, 8000), 1e6);
        for bad in ["", "[]", r#"[{"samples_ns": []}]"#, "[{},{}]"] {
            assert!(parse_samples_ns(bad).is_err(), "{bad}");
        }
    }
}
