//! `serve` with a bad configuration, `ps`, `stop`, `check`, and what the documents show.

use super::*;

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
