//! `faultline serve`, `ps`, `stop` and `check` as users meet them. What needs trained weights uses the real models of
//! scripts/fetch-models.sh; what the API does with requests of all kinds is tested in the crate `server`, without a model.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{assert_bad_input, faultline, real_model, stderr, stdout, tiny_model};
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

/// Starts a server with a configuration, in a folder of its own.
fn serve(config: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = faultline();
    command
        .arg("serve")
        .arg("--config")
        .arg(&path)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
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
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
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

fn reals() -> Option<[PathBuf; 2]> {
    Some([
        real_model("smollm2-135m")?,
        real_model("qwen2.5-coder-0.5b")?,
    ])
}

fn small() -> Option<PathBuf> {
    real_model("smollm2-135m")
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

#[test]
fn a_configuration_that_cannot_be_used_is_bad_input() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny_model(folder.path(), "tiny-llama");
    let path = folder.path().join("models.toml");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let good = model("a", &tiny, "");
    for (text, parts) in [
        (
            "prot = 1\n".to_owned(),
            &["models.toml", "line 1", "prot"][..],
        ),
        (
            format!("port = 0\n{}", model("a", Path::new("no-such.gguf"), "")),
            &["models.a", "no-such.gguf"],
        ),
        (
            format!("port = 0\nbudget = '1MiB'\n{good}"),
            &["models.a", "budget of all models is 1.0 MiB"],
        ),
        (
            format!("port = {port}\n{good}"),
            &["cannot listen", "in use"],
        ),
        (
            model("a", &tiny, "budget = '1GiB'"),
            &["models.toml:1", "models.a.budget", "pager"],
        ),
        (
            format!("port = 0\n{}", model("a", &path, "")),
            &["models.a", "models.toml", "GGUF"],
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let output = faultline()
            .args(["serve", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        assert_bad_input(&output, parts);
    }
    let output = faultline()
        .args(["serve", "--config", "/no/such.toml"])
        .output()
        .unwrap();
    assert_bad_input(&output, &["/no/such.toml"]);
    let output = faultline()
        .args(["check", "--config", "/no/such.toml"])
        .output()
        .unwrap();
    assert_bad_input(&output, &["/no/such.toml"]);
}

#[test]
fn greedy_text_is_that_of_run() {
    let Some(paths) = reals() else { return };
    let names = ["small", "coder"];
    let models: String = names
        .iter()
        .zip(&paths)
        .map(|(name, path)| model(name, path, ""))
        .collect();
    let server = serve(&format!("port = 0\n{models}"));
    for (name, path) in names.iter().zip(&paths) {
        let expected = run(path, &["--raw", "-p", PROMPT, "-n", "24"]);
        assert!(expected.contains("Berlin"), "{expected}");
        assert_eq!(server.continued(name, PROMPT, 24), expected, "{name}");

        let body = json!({"model": name, "prompt": PROMPT, "max_tokens": 24, "temperature": 0});
        assert_eq!(
            server.call("/generate", &body),
            json!({"generated": expected})
        );
        let mut stream = body.clone();
        stream["stream"] = json!(true);
        let chunks: Vec<Value> = server.stream("/v1/completions", &stream).collect();
        let texts = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["text"].as_str());
        assert_eq!(texts.collect::<String>(), expected);
        assert!(chunks.len() > 20, "{} chunks", chunks.len());

        // A stop string ends it before its first place, and is not part of it.
        let mut stopped = body.clone();
        stopped["stop"] = json!(["never this", "Berlin"]);
        let answer = server.call("/v1/completions", &stopped);
        let text = answer["choices"][0]["text"].as_str().unwrap();
        assert_eq!(text, expected.split("Berlin").next().unwrap());
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");

        let expected = run(path, &["--chat", "-p", "Name a colour.", "-n", "16"]);
        let body = json!({"model": name, "messages": [{"role": "user", "content": "Name a colour."}],
            "max_tokens": 16, "temperature": 0});
        let answer = server.call("/v1/chat/completions", &body);
        assert_eq!(
            answer["choices"][0]["message"]["content"], expected,
            "{name}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let Some(path) = small() else { return };
    let server = serve(&format!("port = 0\n{}", model("small", &path, "")));
    let text = |seed: u32| {
        let body = json!({"model": "small", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 1.5,
            "seed": seed});
        server.call("/v1/completions", &body)["choices"][0]["text"].clone()
    };
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}

/// Room for one model, and everybody wants another one: nobody fails, and nobody gets another model's text.
#[test]
fn models_change_places_under_load() {
    let Some(paths) = reals() else { return };
    let config = format!(
        "port = 0\nmax_loaded = 1\n{}{}",
        model("small", &paths[0], "concurrency_limit = 4"),
        model("coder", &paths[1], "concurrency_limit = 4")
    );
    let server = serve(&config);
    let question = "def fibonacci(n):";
    let expected = ["small", "coder"].map(|name| server.continued(name, question, 8));
    assert_ne!(expected[0], expected[1]);
    thread::scope(|scope| {
        for client in 0..12 {
            let (server, expected) = (&server, &expected);
            scope.spawn(move || {
                for round in 0..2 {
                    let which = (client + round) % 2;
                    let name = ["small", "coder"][which];
                    let body = json!({"model": name, "prompt": question, "max_tokens": 8,
                        "temperature": 0, "stream": true});
                    let chunks = server.stream("/v1/completions", &body);
                    let texts: Vec<String> = chunks
                        .filter_map(|chunk| Some(chunk["choices"][0]["text"].as_str()?.to_owned()))
                        .collect();
                    assert_eq!(texts.concat(), expected[which], "client {client}");
                }
            });
        }
    });
    let loads: u64 = (0..2)
        .map(|i| server.model(i)["counters"]["loads"].as_u64().unwrap())
        .sum();
    assert!((3..=20).contains(&loads), "{loads} loads for 24 requests");
    let shared = server.model(1)["counters"].clone();
    let (steps, sequences) = (&shared["steps"], &shared["decoding_sequences"]);
    assert!(
        sequences.as_u64() > steps.as_u64(),
        "requests did not share batches: {shared}"
    );
}

/// What a load took goes back to the system, page cache included, as often as it is done.
#[test]
fn an_idle_model_gives_its_memory_back() {
    let Some(path) = small() else { return };
    for keys in ["ttl = 0", "ttl = 0\nprefetch = 'none'"] {
        let server = serve(&format!("port = 0\n{}", model("small", &path, keys)));
        let mut first_rest = 0;
        for round in 0..4 {
            let before = server.resident_bytes();
            let body =
                json!({"model": "small", "prompt": PROMPT, "max_tokens": 8, "keep_alive": -1});
            server.call("/v1/completions", &body);
            let loaded = server.resident_bytes();
            assert_eq!(server.model(0)["stays"], true);
            let body =
                json!({"model": "small", "prompt": PROMPT, "max_tokens": 1, "keep_alive": 0});
            server.call("/v1/completions", &body);
            server.until(0, "unloaded");
            let rest = server.resident_bytes();
            // Tables and threads that are made once stay.
            if round == 0 {
                first_rest = rest;
                continue;
            }
            let (taken, left) = (loaded - before, rest.saturating_sub(before));
            assert!(taken > 50 << 20, "{taken} bytes taken");
            assert!(
                left * 50 <= taken,
                "{left} of {taken} bytes stay, round {round}, {keys}"
            );
            assert!(
                rest < first_rest + (4 << 20),
                "it grows: {first_rest} to {rest}"
            );
        }
    }
}

#[test]
fn locked_models_stay_in_memory() {
    let Some(path) = small() else { return };
    let text = model("small", &path, "use_mlock = true").replace("repack = false\n", "");
    let server = serve(&format!("port = 0\n{text}"));
    let body = json!({"model": "small", "prompt": PROMPT, "max_tokens": 1});
    match server.client.call_blocking("/v1/completions", Some(&body)) {
        Ok(_) => {
            let status =
                std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
            let locked = status
                .lines()
                .find_map(|line| line.strip_prefix("VmLck:"))
                .unwrap();
            let kib: u64 = locked.trim().trim_end_matches(" kB").parse().unwrap();
            assert!(kib << 10 > 80_000_000, "{locked} locked");
        }
        // Where locking is not permitted, the answer says what to do.
        Err(error) => assert!(error.to_string().contains("ulimit -l"), "{error}"),
    }
}

#[test]
fn a_killed_server_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny_model(folder.path(), "tiny-llama");
    let mut server = serve(&format!("port = 0\n{}", model("tiny", &tiny, "")));
    let port = server.address.port();
    // In the middle of a stream.
    let body = json!({"model": "tiny", "prompt": "a", "stream": true, "max_tokens": 1000});
    let mut stream = server.stream("/v1/completions", &body);
    stream.next().unwrap();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert!(stream.count() < 1000);
    let again = serve(&format!("port = {port}\n{}", model("tiny", &tiny, "")));
    assert!(!again.continued("tiny", "a", 4).is_empty());
    let files = std::fs::read_dir(server.folder.path()).unwrap().count();
    assert_eq!(files, 1, "only the configuration");
}

#[test]
fn a_signal_ends_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny_model(folder.path(), "tiny-llama");
    for signal in ["-INT", "-TERM"] {
        let mut server = serve(&format!("port = 0\n{}", model("tiny", &tiny, "")));
        let body = json!({"model": "tiny", "prompt": "a", "stream": true, "max_tokens": 60});
        let mut stream = server.stream("/v1/completions", &body);
        stream.next().unwrap();
        server.signal(signal);
        // The request that runs ends as it would have.
        let last = stream.last().unwrap();
        assert!(last["choices"][0]["finish_reason"].is_string(), "{last}");
        assert_eq!(server.child.wait().unwrap().code(), Some(0), "{signal}");
    }
}

#[test]
fn a_model_file_may_be_replaced_damaged_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] =
        ["tiny-llama", "tiny-gpt-oss"].map(|shape| tiny_model(folder.path(), shape));
    let path = folder.path().join("model.gguf");
    std::fs::copy(&first, &path).unwrap();
    let server = serve(&format!("port = 0\n{}", model("m", &path, "ttl = -1")));
    server.continued("m", "a", 2);
    let before = server.model(0)["description"].clone();
    assert_eq!(server.model(0)["file"], "present");

    // Replaced as a whole, as downloads do it: the next request gets the new one.
    let staged = folder.path().join("staged");
    std::fs::copy(&second, &staged).unwrap();
    std::fs::rename(&staged, &path).unwrap();
    assert_eq!(server.model(0)["file"], "replaced");
    server.continued("m", "a", 2);
    assert_ne!(server.model(0)["description"], before);
    assert_eq!(server.model(0)["file"], "present");

    // Removed while it is loaded: it serves on, and says so.
    std::fs::remove_file(&path).unwrap();
    server.continued("m", "a", 2);
    assert_eq!(server.model(0)["file"], "missing");
    let output = faultline()
        .arg("ps")
        .arg("--server")
        .arg(server.address.to_string())
        .output()
        .unwrap();
    assert!(
        stdout(&output).contains("model.gguf (missing)"),
        "{}",
        stdout(&output)
    );

    // Removed while it is unloaded: the request says why it fails, and again when it is asked for at once.
    let stop = faultline()
        .args(["stop", "m", "--server"])
        .arg(server.address.to_string())
        .output()
        .unwrap();
    assert!(stop.status.success(), "{}", stderr(&stop));
    let body = json!({"model": "m", "prompt": "a"});
    for _ in 0..2 {
        let error = server
            .client
            .call_blocking("/v1/completions", Some(&body))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("model.gguf") && error.contains("No such file"),
            "{error}"
        );
    }
    assert_eq!(server.model(0)["status"]["state"], "failed");

    // Damaged, then whole again.
    std::fs::write(&path, "no model").unwrap();
    server.call("/models/load", &json!({"model": "m"}));
    let failed = server.until(0, "failed");
    assert!(
        failed["status"]["reason"]
            .as_str()
            .unwrap()
            .contains("model.gguf"),
        "{failed}"
    );
    std::fs::copy(&first, &path).unwrap();
    server.call("/models/load", &json!({"model": "m"}));
    server.until(0, "idle");
    server.continued("m", "a", 2);
    assert_eq!(server.model(0)["description"], before);

    // Written to while it is loaded: nothing is computed with bytes that changed, and then it is loaded anew.
    std::fs::File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(&[0; 4096])
        .unwrap();
    let _ = server.client.call_blocking("/v1/completions", Some(&body));
    server.continued("m", "a", 2);
    assert_eq!(server.model(0)["file"], "present");
}

#[test]
fn ps_and_stop_speak_to_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny_model(folder.path(), "tiny-llama");
    let config = format!(
        "port = 0\napi_keys = ['secret']\n{}",
        model("tiny", &tiny, "aliases = ['t']\nttl = '10m'")
    );
    let server = serve(&config);
    let address = server.address.to_string();
    let verb = |arguments: &[&str]| {
        let mut command = faultline();
        command
            .args(arguments)
            .args(["--server", &address])
            .env("FAULTLINE_API_KEY", "secret");
        command.output().unwrap()
    };
    let client = Client::new(server.address, Some("secret".to_owned()));
    client
        .call_blocking(
            "/generate",
            Some(&json!({"model": "t", "prompt": "a", "max_tokens": 2})),
        )
        .unwrap();
    let ps = verb(&["ps"]);
    let table = stdout(&ps);
    assert!(ps.status.success(), "{}", stderr(&ps));
    assert!(table.starts_with("NAME  STATUS  FILE"), "{table}");
    assert!(
        table.contains("tiny  idle    tiny-llama.gguf") && table.contains("in 10 min"),
        "{table}"
    );
    let json: Value = serde_json::from_str(&stdout(&verb(&["ps", "--format", "json"]))).unwrap();
    assert_eq!(json["data"][0]["status"]["value"], "loaded");

    assert!(verb(&["stop", "t"]).status.success());
    assert!(stdout(&verb(&["ps"])).contains("tiny  unloaded"));
    assert_bad_input(&verb(&["stop", "nobody"]), &["nobody"]);
    let stranger = faultline()
        .args(["ps", "--server", &address])
        .env_remove("FAULTLINE_API_KEY")
        .output()
        .unwrap();
    assert_eq!(stranger.status.code(), Some(1));
    assert!(
        stderr(&stranger).contains("Invalid API Key"),
        "{}",
        stderr(&stranger)
    );
    drop(server);
    let nobody = verb(&["ps"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        stderr(&nobody).contains("faultline serve"),
        "{}",
        stderr(&nobody)
    );
}

#[test]
fn check_compares_with_thresholds() {
    let Some(path) = small() else { return };
    let folder = tempfile::tempdir().unwrap();
    let check = |limits: &str, keys: &str| {
        let config = folder.path().join("models.toml");
        std::fs::write(
            &config,
            format!("[limits]\n{limits}\n{}", model("small", &path, keys)),
        )
        .unwrap();
        let output = faultline()
            .args(["check", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        (output.status.code(), stdout(&output), stderr(&output))
    };
    let wide = "rss_before_first_token = '4GiB'\nfirst_token = '10m'\nnext_token = '1m'\nworking_set = '4GiB'\ntotal = '4GiB'";
    for prefetch in ["eager", "none"] {
        let (code, table, notes) = check(wide, &format!("prefetch = '{prefetch}'"));
        assert_eq!(code, Some(0), "{table}{notes}");
        for what in [
            "RSS before first token",
            "first token",
            "next token",
            "working set",
            "total",
            "mapping",
        ] {
            let line = table
                .lines()
                .find(|line| line.contains(&format!("| {what} ")))
                .unwrap();
            assert!(line.ends_with("| pass |"), "{line}");
        }
        assert!(table.contains(&format!("{prefetch}, ")), "{table}");
    }
    let (code, table, notes) = check("total = '1MiB'", "");
    assert_eq!(code, Some(1), "{table}{notes}");
    assert!(
        table.contains("| FAIL |") && notes.contains("not every threshold"),
        "{table}{notes}"
    );
    // Repacked weights are copies beside the mapping.
    let tiny = tiny_model(folder.path(), "tiny-gpt-oss");
    let config = folder.path().join("copies.toml");
    let text = model("tiny", &tiny, "").replace("repack = false", "repack = true");
    std::fs::write(&config, text).unwrap();
    let mut command = faultline();
    command
        .args(["check", "--format", "json", "--config"])
        .arg(&config);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let mapping = rows.iter().find(|row| row["what"] == "mapping").unwrap();
    let found = mapping["value"].as_str().unwrap();
    assert!(found.contains("repack = false"), "{mapping}");
    assert_eq!(
        (output.status.code(), &mapping["verdict"]),
        (Some(1), &json!("fail"))
    );
}

/// The pager's model keeps its budget, and gives what a mapped one gives.
#[test]
fn a_model_in_the_pager_keeps_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny_model(folder.path(), "tiny-gpt-oss");
    let paged = model("paged", &tiny, "prefetch = 'pager'\nbudget = '256MiB'");
    let config = format!(
        "port = 0\nbudget = '1GiB'\n{}{paged}",
        model("mapped", &tiny, "")
    );
    let server = serve(&config);
    for prompt in ["a", "some words more"] {
        assert_eq!(
            server.continued("paged", prompt, 12),
            server.continued("mapped", prompt, 12)
        );
    }
    let listed = server.model(1);
    assert_eq!(listed["budget_bytes"], 256 << 20);
    assert!(
        listed["held_bytes"].as_u64().unwrap() <= 256 << 20,
        "{listed}"
    );
    assert!(
        listed["hit_rate"].is_number() || listed["running"] == 1,
        "{listed}"
    );
    let small = serve_error(&format!("budget = '200MiB'\nport = 0\n{paged}"));
    assert!(
        small.contains("models.paged") && small.contains("256.0 MiB"),
        "{small}"
    );
}

/// What a server says that does not start.
fn serve_error(config: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = faultline();
    command
        .args(["serve", "--config"])
        .arg(&path)
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2), "{text}");
    text
}

/// The commands of docs/serve.md, as they stand there.
#[test]
fn documented_requests_work() {
    let Some(path) = small() else { return };
    if std::process::Command::new("curl")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: there is no curl");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let server = serve(&format!("port = 0\n{}", model("small", &path, "")));
    let mut checked = 0;
    for document in ["README.md", "docs/serve.md"] {
        let text = std::fs::read_to_string(root.join(document))
            .unwrap()
            .replace("\\\n", " ");
        for command in text
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("curl "))
        {
            let command = command.replace("127.0.0.1:9931", &server.address.to_string());
            let command = command.replacen("curl ", "curl -sS --fail-with-body ", 1);
            let output = std::process::Command::new("bash")
                .args(["-c", &command])
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{command}: {}{}",
                stdout(&output),
                stderr(&output)
            );
            assert!(!output.stdout.is_empty(), "{command}");
            checked += 1;
        }
    }
    assert!(checked >= 6, "only {checked} commands");
}

/// The page's script runs to the end in a browser, without a message on the console, and shows the models.
#[test]
fn the_page_shows_the_models() {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let runs = |name: &&&str| {
        std::process::Command::new(name)
            .arg("--version")
            .output()
            .is_ok()
    };
    let Some(browser) = names.iter().find(runs) else {
        eprintln!("skipped: there is no Chromium");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny_model(folder.path(), "tiny-llama");
    let server = serve(&format!("port = 0\n{}", model("tiny <b>", &tiny, "")));
    server.continued("tiny <b>", "a", 2);
    let mut command = std::process::Command::new(browser);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-sync",
    ]);
    command.args([
        "--disable-background-networking",
        "--disable-component-update",
    ]);
    command.args([
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
        "--dump-dom",
    ]);
    command.arg(format!(
        "--user-data-dir={}",
        folder.path().join("profile").display()
    ));
    let output = command
        .arg(format!("http://{}/", server.address))
        .output()
        .unwrap();
    let (page, log) = (stdout(&output), stderr(&output));
    assert!(!log.contains("CONSOLE"), "{log}");
    assert!(page.contains("data-ready=\"true\""), "{page}");
    assert!(
        page.contains("<td class=\"\">tiny &lt;b&gt;") || page.contains("<td>tiny &lt;b&gt;"),
        "{page}"
    );
    assert!(page.contains("idle") && page.contains("Unload"), "{page}");
}
