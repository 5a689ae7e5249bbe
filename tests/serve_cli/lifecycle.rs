//! Memory, signals, and files that change.

use super::*;

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
            if round == 0 {
                first_rest = rest;
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

/// Requests that are wrong, cut off or given up take no memory, no descriptor and no thread with them.
#[test]
fn hostile_requests_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny_model(folder.path(), "tiny-llama");
    let keys = "ttl = -1\nconcurrency_limit = 8";
    let server = serve(&format!(
        "port = 0\nbody_limit = '64KiB'\n{}",
        model("m", &tiny, keys)
    ));
    let post = |length: usize, body: &str| {
        format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let good = json!({"model": "m", "prompt": "a", "max_tokens": 500, "stream": true}).to_string();
    let requests = [
        post(20, "{\"model\": [[[[[[[[[["),
        post(40, "{\"model\": \"../../etc/passwd\", \"prompt\": 1}"),
        post(100_000, &"x".repeat(70_000)),
        // The rest never comes.
        post(5000, "{\"model\": \"m\""),
        "POST /v1/compl".to_owned(),
        // Given up after the first tokens, or before.
        post(good.len(), &good),
        post(good.len(), &good),
    ];
    let attack = || {
        for (index, request) in requests.iter().cycle().take(1400).enumerate() {
            let mut stream = TcpStream::connect(server.address).unwrap();
            // A server that has seen enough closes early.
            let _ = stream.write_all(request.as_bytes());
            if index % requests.len() == 5 {
                let _ = stream.read(&mut [0; 64]);
            }
        }
        // All of it is over when nothing runs or waits.
        let started = Instant::now();
        while server.model(0)["running"] != 0 || server.model(0)["waiting"] != 0 {
            assert!(started.elapsed() < PATIENCE, "{}", server.model(0));
            thread::sleep(Duration::from_millis(10));
        }
        server.continued("m", "a", 4);
    };
    let count = |what: &str| {
        let folder = format!("/proc/{}/{what}", server.child.id());
        std::fs::read_dir(folder).unwrap().count()
    };
    attack();
    let (resident, threads) = (server.resident_bytes(), count("task"));
    attack();
    let grown = server.resident_bytes().saturating_sub(resident);
    assert!(grown < 4 << 20, "{grown} bytes more");
    // Threads for what takes long stay for some seconds.
    assert!(count("task") <= threads + 2, "{threads} threads before");
    let started = Instant::now();
    while count("fd") > 40 {
        assert!(started.elapsed() < PATIENCE, "{} descriptors", count("fd"));
        thread::sleep(Duration::from_millis(10));
    }
}
