//! `bench`: measures what the prefetch modes do to load time, memory, device bytes and speed.

mod anonymous;
mod backing;
mod balloon;
mod bounds;
mod cache;
mod cgroup;
mod cli;
mod device;
mod device_curve;
mod host;
mod interrupt;
mod limit;
mod measure;
mod models;
mod output;
mod overhead;
mod peer;
mod plot;
mod predict;
mod procfs;
mod protocol;
mod readahead;
mod record;
mod recording;
mod report;
mod residency;
mod results;
mod roofline;
mod routing;
mod runner;
mod sample;
mod size;
mod spec;
mod stats;
mod steps;
mod stock;
mod trace_cost;
mod worker;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

use cli::{Cli, Command};
use interrupt::Interrupted;

/// As shells report a process that SIGINT ended.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Worker { spec }) = &cli.command {
        return worker::main(spec);
    }
    if let Some(Command::Blocks { spec }) = &cli.command {
        return worker::blocks::main(spec);
    }
    match run(cli) {
        Ok(code) => code,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("{error:#}");
            ExitCode::from(EXIT_INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    interrupt::install()?;
    match cli.command {
        Some(Command::MakeModel(args)) => models::make(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Overhead(args)) => overhead::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::TraceCost(args)) => trace_cost::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Device(args)) => device_curve::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Roofline(args)) => roofline::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Worker { .. } | Command::Blocks { .. }) => {
            unreachable!("handled before a signal handler is installed")
        }
        Some(Command::Report(args)) => report::run(&args).map(|()| ExitCode::SUCCESS),
        None => measure::run(&cli.run),
    }
}
