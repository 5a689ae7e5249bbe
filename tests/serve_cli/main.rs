//! `faultline serve`, `ps`, `stop` and `check` as users meet them. What needs trained weights uses the real models of
//! scripts/fetch-models.sh; what the API does with requests of all kinds is tested in the crate `server`, without a model.

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod lifecycle;
mod openai;
mod states;
mod verbs;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{assert_bad_input, faultline, stderr, stdout, tiny_model};
use model_shapes::local::real_model;
use serde_json::{Value, json};
use server::client::Client;

const PROMPT: &str = "The capital of Germany is";
const PATIENCE: Duration = Duration::from_secs(120);

/// A running `faultline serve`.
struct Server {
    child: Child,
    address: SocketAddr,
    client: Client,
    folder: tempfile::TempDir,
}

/// Starts `faultline serve` with a configuration, in a folder of its own. Gives the process, its standard error, and the folder.
fn start(mut command: Command, config: &str) -> (Child, ChildStderr, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models.toml");
    std::fs::write(&path, config).unwrap();
    command
        .args(["serve", "--config"])
        .arg(&path)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let errors = child.stderr.take().unwrap();
    (child, errors, folder)
}

/// A server with a configuration, once it listens.
fn serve(config: &str) -> Server {
    serve_with(config, faultline())
}

/// The same with a command that has an environment of its own.
fn serve_with(config: &str, command: Command) -> Server {
    let (child, errors, folder) = start(command, config);
    let mut lines = BufReader::new(errors).lines();
    let mut seen = Vec::new();
    let address = loop {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("it ended: {seen:?}"))
            .unwrap();
        if let Some(rest) = line.strip_prefix("listening on http://") {
            break rest.split(' ').next().unwrap().parse().unwrap();
        }
        seen.push(line);
    };
    // Shown when a test fails.
    thread::spawn(move || {
        lines
            .map_while(Result::ok)
            .for_each(|line| eprintln!("{line}"))
    });
    Server {
        child,
        address,
        client: Client::new(address, None),
        folder,
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    #[track_caller]
    fn call(&self, path: &str, body: &Value) -> Value {
        let body = (!body.is_null()).then_some(body);
        self.client
            .call_blocking(path, body)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The text of a greedy continuation.
    #[track_caller]
    fn continued(&self, model: &str, prompt: &str, count: u32) -> String {
        let body = json!({"model": model, "prompt": prompt, "max_tokens": count, "temperature": 0});
        let answer = self.call("/v1/completions", &body);
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    fn model(&self, index: usize) -> Value {
        self.call("/models", &Value::Null)["data"][index].clone()
    }

    #[track_caller]
    fn until(&self, index: usize, state: &str) -> Value {
        let started = Instant::now();
        loop {
            let model = self.model(index);
            if model["status"]["state"] == state {
                return model;
            }
            assert!(started.elapsed() < PATIENCE, "{model}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: &str) {
        let status = std::process::Command::new("kill")
            .arg(signal)
            .arg(self.child.id().to_string())
            .status();
        assert!(status.unwrap().success());
    }

    /// Resident bytes, as the kernel says.
    fn resident_bytes(&self) -> u64 {
        let status = resident::Status::of(self.child.id()).unwrap();
        status.bytes("VmRSS").unwrap()
    }

    /// The events of a stream, as they come.
    fn stream(&self, path: &str, body: &Value) -> impl Iterator<Item = Value> + use<> {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
    }
}

/// One thread each: servers of several tests run side by side, and threads of one graph wait for each other by spinning.
fn model(name: &str, path: &Path, keys: &str) -> String {
    format!(
        "[models.\"{name}\"]\npath = '{}'\nn_threads = 1\nn_ctx = 1024\nrepack = false\n{keys}\n",
        path.display()
    )
}

fn small() -> Option<PathBuf> {
    real_model("smollm2-135m")
}

/// A server with both real models, and their names and files. `settings` are the server's, `keys` those of each model.
fn serve_reals(settings: &str, keys: &str) -> Option<(Server, [(&'static str, PathBuf); 2])> {
    let models = [
        ("small", small()?),
        ("coder", real_model("qwen2.5-coder-0.5b")?),
    ];
    let tables = models.iter().map(|(name, path)| model(name, path, keys));
    let tables: String = tables.collect();
    let server = serve(&format!("port = 0\n{settings}\n{tables}"));
    Some((server, models))
}

/// What `faultline run` makes of a prompt.
fn run(model: &Path, arguments: &[&str]) -> String {
    let mut command = faultline();
    command
        .args([
            "run", "-q", "-t", "1", "--repack", "off", "--temp", "0", "-m",
        ])
        .arg(model);
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).trim_end_matches('\n').to_owned()
}

/// What a server says that does not start.
fn serve_error(config: &str) -> String {
    let (mut child, mut errors, _folder) = start(faultline(), config);
    let mut text = String::new();
    errors.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2), "{text}");
    text
}
