//! The `faultline` command line. Each verb has a file of its own; this one only starts them.

mod cli;
mod diff;
mod dump;
mod exit;
mod export;
mod info;
mod map;
mod memory;
mod output;
mod progress;
mod record;
mod report;
mod run;
mod serve;
mod signals;
mod simulate;
mod version;
mod weights;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let started = Instant::now();
    let arguments = cli::parse();
    let result = match &arguments.command {
        cli::Command::Run(run) => run::run(run, started, None),
        cli::Command::Record(record) => record::run(record, started),
        cli::Command::Simulate(simulate) => simulate::run(simulate),
        cli::Command::Report(report) => report::run(report),
        cli::Command::Diff(diff) => diff::run(diff),
        cli::Command::Map(map) => map::run(map),
        cli::Command::Export(export) => export::run(export),
        cli::Command::Dump(dump) => dump::run(dump),
        cli::Command::Info(info) => info::run(info),
        cli::Command::Memory(memory) => memory::run(memory),
        cli::Command::Serve(serve) => serve::serve(serve),
        cli::Command::Ps(ps) => serve::ps(ps),
        cli::Command::Stop(stop) => serve::stop(stop),
        cli::Command::Check(check) => serve::check(check),
    };
    exit::code(result)
}
