//! Options of the verbs around the server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

const SERVE_EXAMPLES: &str = "\
EXAMPLES:
  Serve the models of a configuration, then ask one of them:
    faultline serve --config models.toml
    curl http://127.0.0.1:9931/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{\"model\": \"small\", \"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}]}'

server/models.example.toml documents every key of the configuration, docs/serve.md the API.
SIGINT and SIGTERM end it once the running requests have ended (shutdown_timeout); a second one at once.

EXIT CODES:
  0    ended by a signal
  1    failure of the system
  2    bad input: a configuration that cannot be used, a model that does not exist or does not fit, a port in use";

/// Loads models when they are asked for, keeps them within a budget of memory, and unloads them when they are idle.
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
pub(crate) struct ServeArgs {
    /// Which models, and within what limits: a TOML file.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,

    /// Show llama.cpp's log; twice: its debug messages too.
    #[arg(short, long, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Print errors only.
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
}

/// Which server is asked.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Where it listens.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9931))]
    pub(crate) server: SocketAddr,

    /// Its configuration, for the address and a key.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["server", "api_key"])]
    pub(crate) config: Option<PathBuf>,

    /// A key, if it asks for one.
    #[arg(
        long,
        value_name = "KEY",
        env = "FAULTLINE_API_KEY",
        hide_env_values = true
    )]
    pub(crate) api_key: Option<String>,
}

/// Lists the models of a running server: what each one is doing, and what it holds.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    /// As a table, or as the server's own JSON.
    #[arg(long, value_name = "table|json", default_value = "table")]
    pub(crate) format: TableFormat,
}

/// Unloads a model of a running server, once its requests have ended, and waits for that.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// The model, by its name or an alias.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

const CHECK_EXAMPLES: &str = "\
EXAMPLES:
  Are the thresholds of [limits] kept on this machine?
    faultline check --config models.toml

EXIT CODES:
  0    every threshold is kept
  1    one is not, or a model could not be loaded
  2    bad input: a configuration that cannot be used";

/// Loads each model of a configuration as `serve` would, measures memory and time, and compares with its thresholds.
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub(crate) struct CheckArgs {
    /// The configuration; its table `limits` has the thresholds.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,

    /// As a table, or as JSON, in bytes and seconds.
    #[arg(long, value_name = "table|json", default_value = "table")]
    pub(crate) format: TableFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    Table,
    Json,
}
