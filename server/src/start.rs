//! From a configuration to a server that runs until it is told to end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::check::{self, CheckError, Report};
use crate::config::Config;
use crate::host::Host;
use crate::http;
use crate::llama::LlamaEngine;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A model that cannot be served, or a budget that does not do.
    #[error("{}: {problem}", path.display())]
    Models {
        /// The configuration.
        path: std::path::PathBuf,
        /// Which model, and why.
        problem: String,
    },
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; `port` and `host` of the configuration choose another address"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The system does not give what every server needs.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A model could not be measured.
    #[error(transparent)]
    Check(#[from] CheckError),
}

impl StartError {
    /// Whether another configuration would have helped.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, StartError::Models { .. } | StartError::Listen { .. })
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Serves until SIGINT or SIGTERM. Requests that run then may go on for the configured time; a second signal ends the process at
/// once, with 128 and its number. `on_listening` gets the address and the budget in bytes.
///
/// # Errors
///
/// [`StartError`], before anything is served.
pub fn run(config: Config, on_listening: impl FnOnce(SocketAddr, u64)) -> Result<(), StartError> {
    let runtime = runtime()?;
    let address = SocketAddr::new(config.host, config.port);
    // First: another server that runs already is noticed before memory is looked for.
    let listener = runtime.block_on(TcpListener::bind(address));
    let listener = listener.map_err(|source| StartError::Listen { address, source })?;
    let address = listener
        .local_addr()
        .map_err(system("the socket has no address"))?;
    let (host, budget_bytes) = host(&config)?;
    let shutdown = {
        let _inside = runtime.enter();
        shutdown()?
    };
    on_listening(address, budget_bytes);
    runtime.block_on(http::serve(listener, config, Arc::new(host), shutdown));
    Ok(())
}

/// Measures every model of a configuration; see [`check::run`].
///
/// # Errors
///
/// [`StartError`].
pub fn check(config: &Config, on_model: impl FnMut(&str)) -> Result<Report, StartError> {
    // Measurements begin with nothing loaded.
    let mut config = config.clone();
    config
        .models
        .values_mut()
        .for_each(|model| model.preload = false);
    let runtime = runtime()?;
    let (host, _) = host(&config)?;
    let report = runtime.block_on(check::run(&config, &host, on_model));
    host.close(config.shutdown_timeout);
    Ok(report?)
}

/// One thread for all connections: it waits nearly all of the time, and the CPUs belong to the models. What takes longer than a
/// message runs in threads that are started for it.
fn runtime() -> Result<Runtime, StartError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(system("cannot wait for connections"))
}

fn host(config: &Config) -> Result<(Host, u64), StartError> {
    let problem = |problem| StartError::Models {
        path: config.path.clone(),
        problem,
    };
    // A share of a size is refused by the configuration.
    let budget_bytes = config.budget.resolve(0).map_err(|error| {
        problem(format!(
            "budget: it cannot be told how much memory is free: {error}"
        ))
    })?;
    let host = Host::new(config, budget_bytes, LlamaEngine::new()).map_err(problem)?;
    Ok((host, budget_bytes))
}

/// Ready at the first SIGINT or SIGTERM. From then on the next one ends the process.
fn shutdown() -> Result<impl Future<Output = ()>, StartError> {
    let handler = |kind| signal(kind).map_err(system("cannot handle signals"));
    let mut interrupts = handler(SignalKind::interrupt())?;
    let mut terminations = handler(SignalKind::terminate())?;
    Ok(async move {
        let _ = next(&mut interrupts, &mut terminations).await;
        tracing::info!("shutting down");
        tokio::spawn(async move {
            let number = next(&mut interrupts, &mut terminations).await;
            std::process::exit(128 + number);
        });
    })
}

async fn next(interrupts: &mut Signal, terminations: &mut Signal) -> i32 {
    tokio::select! {
        _ = interrupts.recv() => SignalKind::interrupt().as_raw_value(),
        _ = terminations.recv() => SignalKind::terminate().as_raw_value(),
    }
}
