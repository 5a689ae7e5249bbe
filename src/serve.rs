//! `faultline serve`, `ps`, `stop` and `check`: models that load on demand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use server::client::{Client, ClientError};
use server::config::{Config, shown_bytes};
use server::start::{self, StartError};

use crate::cli::{CheckArgs, PsArgs, ServeArgs, ServerArgs, StopArgs, TableFormat};
use crate::exit::{BadInput, Outcome};
use crate::output::{self, Output, note};
use crate::signals;

/// What [`signals`] names when native code fails: it cannot know which model it was.
const ANY_MODEL: &str = "a model of this server";

pub(crate) fn serve(args: &ServeArgs) -> anyhow::Result<Outcome> {
    signals::on_native_failure(Path::new(ANY_MODEL)).context("cannot handle signals")?;
    let config = load(&args.config)?;
    if !args.quiet {
        output::show_server_logs(args.verbose);
    }
    let is_open = !config.host.is_loopback() && config.api_keys.is_empty();
    let models = config.models.len();
    let listening = |address: SocketAddr, budget_bytes: u64| {
        if args.quiet {
            return;
        }
        let budget = shown_bytes(budget_bytes);
        note(format_args!(
            "listening on http://{address} with {models} models and a budget of {budget}"
        ));
        if is_open {
            note(format_args!(
                "warning: other machines may connect and no key is asked for (api_keys)"
            ));
        }
    };
    start::run(config, listening).map_err(classified)?;
    Ok(Outcome::Done)
}

pub(crate) fn ps(args: &PsArgs) -> anyhow::Result<Outcome> {
    let list = client(&args.server)?.call_blocking("/models", None)?;
    let text = match args.format {
        TableFormat::Table => server::listing::table(&list),
        TableFormat::Json => format!("{list:#}\n"),
    };
    print(&text)
}

pub(crate) fn stop(args: &StopArgs) -> anyhow::Result<Outcome> {
    let client = client(&args.server)?;
    let answer = client.call_blocking("/models/unload", Some(&json!({"model": args.name})));
    match answer {
        Err(ClientError::Refused {
            status: 404,
            message,
        }) => return Err(BadInput(message).into()),
        answer => answer?,
    };
    while is_loaded(&client.call_blocking("/models", None)?, &args.name) {
        thread::sleep(Duration::from_millis(100));
    }
    Ok(Outcome::Done)
}

fn is_loaded(list: &Value, name: &str) -> bool {
    let models = list["data"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    models.iter().any(|model| {
        let aliases = model["aliases"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let is_called = model["id"] == name || aliases.iter().any(|alias| alias == name);
        is_called && model["status"]["value"] != "unloaded"
    })
}

pub(crate) fn check(args: &CheckArgs) -> anyhow::Result<Outcome> {
    signals::on_native_failure(Path::new(ANY_MODEL)).context("cannot handle signals")?;
    let config = load(&args.config)?;
    let report = start::check(&config, |name| note(format_args!("measuring {name}")));
    let report = report.map_err(classified)?;
    let text = match args.format {
        TableFormat::Table => report.to_string(),
        TableFormat::Json => format!("{}\n", serde_json::to_string_pretty(&report)?),
    };
    print(&text)?;
    match report.passed() {
        true => Ok(Outcome::Done),
        false => anyhow::bail!("not every threshold of {} is kept", args.config.display()),
    }
}

fn load(path: &Path) -> anyhow::Result<Config> {
    Config::load(path).map_err(|error| BadInput(error.to_string()).into())
}

fn classified(error: StartError) -> anyhow::Error {
    match error.is_bad_input() {
        true => BadInput(error.to_string()).into(),
        false => error.into(),
    }
}

fn client(args: &ServerArgs) -> anyhow::Result<Client> {
    let Some(path) = &args.config else {
        return Ok(Client::new(args.server, args.api_key.clone()));
    };
    let config = load(path)?;
    // A server that listens on all addresses is here, too.
    let host = match config.host {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        host => host,
    };
    let key = config.api_keys.first().cloned();
    Ok(Client::new(SocketAddr::new(host, config.port), key))
}

fn print(text: &str) -> anyhow::Result<Outcome> {
    match Output::new().write(text.as_bytes())? {
        ControlFlow::Continue(()) | ControlFlow::Break(()) => Ok(Outcome::Done),
    }
}
