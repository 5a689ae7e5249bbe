use std::collections::BTreeSet;

use super::*;

const EXAMPLE: &str = include_str!("../../models.example.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("folder/models.toml"))
}

#[track_caller]
fn refusal(text: &str) -> String {
    match parse(text) {
        Ok(config) => panic!("{text:?} gives {config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_example_is_a_configuration() {
    let config = parse(EXAMPLE).unwrap();
    let small = config.model("gpt-4o-mini").unwrap();
    assert_eq!(small.name, "small");
    assert_eq!(small.path, Path::new("folder/small.gguf"));
    assert_eq!(small.ttl, Ttl::After(Duration::from_secs(1800)));
    let large = config.model("large").unwrap();
    assert_eq!(large.prefetch, PrefetchMode::Pager);
    assert_eq!(large.budget, Some(Budget::Bytes(4 << 30)));
    assert!(large.repack);
    assert_eq!(large.ttl, Ttl::DEFAULT);
    assert!(config.model("Small").is_none());
    assert_eq!(config.limits.total_bytes, Some(5_905_580_032));
}

/// The keys that the reader knows at a place, from its own message about one that it does not know.
fn known_keys(before: &str) -> BTreeSet<String> {
    let message = refusal(&format!("{before}\nno_such_key = 1\n"));
    let (_, list) = message.split_once("expected one of").unwrap();
    list.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_example_documents_every_key() {
    let mut count = 0;
    for before in [
        "",
        "[limits]",
        "[models.a]\npath = 'x'",
        "[models.a.sampling]",
    ] {
        for key in known_keys(before) {
            let is_table = ["limits", "models", "sampling"].contains(&key.as_str());
            let shown = match is_table {
                true => EXAMPLE
                    .lines()
                    .any(|line| line.starts_with('[') && line.contains(&key)),
                false => EXAMPLE.contains(&format!("\n{key} = ")),
            };
            assert!(shown, "{key} is not in the example");
            count += 1;
        }
    }
    assert!(count >= 35, "only {count} keys");
}

#[test]
fn defaults_are_as_the_example_says() {
    let example = parse(EXAMPLE).unwrap();
    let short = parse("[models.a]\npath = '/m/a.gguf'\n").unwrap();
    assert_eq!(short.path, example.path);
    assert_eq!((short.host, short.port), (example.host, example.port));
    assert_eq!(short.budget, example.budget);
    assert_eq!(short.max_loaded, usize::MAX);
    assert_eq!(short.queue_limit, example.queue_limit);
    assert_eq!(short.body_limit_bytes, example.body_limit_bytes);
    assert_eq!(short.receive_timeout, example.receive_timeout);
    assert_eq!(short.ping_interval, example.ping_interval);
    assert_eq!(short.stream_interval, example.stream_interval);
    assert_eq!(short.shutdown_timeout, example.shutdown_timeout);
    assert_eq!(short.limits, Limits::default());
    let (model, shown) = (&short.models["a"], &example.models["small"]);
    assert_eq!(model.path, Path::new("/m/a.gguf"));
    assert_eq!(model.prefetch, shown.prefetch);
    assert!(model.repack);
    assert_eq!(model.cache_prompt, shown.cache_prompt);
    assert_eq!(model.keep_state_bytes, shown.keep_state_bytes);
    assert_eq!(model.concurrency_limit, shown.concurrency_limit);
    assert_eq!(model.queue_limit, shown.queue_limit);
    assert_eq!(model.context_tokens(131_072), 4096);
    assert_eq!(model.context_tokens(2048), 2048);
    let expected = Sampling {
        seed: Some(7),
        max_tokens: Some(1024),
        ..model.sampling
    };
    assert_eq!(shown.sampling, expected);
}

#[test]
fn unknown_keys_and_wrong_types_name_their_line() {
    for (text, parts) in [
        ("prot = 1\n", &["line 1", "prot", "port"][..]),
        (
            "\n\n[models.a]\npath = 'x'\nn_ctxx = 5\n",
            &["line 5", "n_ctxx", "n_ctx"],
        ),
        (
            "[models.a]\npath = 'x'\n[models.a.sampling]\ntemp = 1\n",
            &["line 4", "temperature"],
        ),
        (
            "[limits]\nfirst_token = '15 parsecs'\n",
            &["line 2", "15 parsecs", "15s"],
        ),
        ("port = 70000\n", &["line 1", "70000"]),
        ("host = 'localhost'\n", &["line 1", "IP address"]),
        ("ttl = true\n", &["line 1", "5m"]),
        ("budget = '5 parsecs'\n", &["line 1", "5 parsecs"]),
        ("[models.a]\nn_ctx = 5\n", &["line 1", "path"]),
        (
            "[models.a]\npath = 'x'\nprefetch = 'lazy'\n",
            &["line 3", "lazy", "selective"],
        ),
        (
            "[models.a]\npath = 'x'\nkeep_state = 'some'\n",
            &["line 3", "256MiB"],
        ),
        ("[models.a\n", &["line 1"]),
    ] {
        let message = refusal(text);
        assert!(message.starts_with("folder/models.toml"), "{message}");
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }
}

#[test]
fn contradictions_name_the_model_and_the_line() {
    let model = |keys: &str| format!("port = 0\n\n[models.a]\npath = 'x'\n{keys}\n");
    for (keys, parts) in [
        ("budget = '1GiB'", &["models.a.budget", "pager"][..]),
        ("replay = false", &["models.a.replay", "pager"]),
        (
            "prefetch = 'none'\nuse_mlock = true",
            &["models.a.use_mlock", "eager"],
        ),
        (
            "repack = true\nuse_mlock = true",
            &["models.a.use_mlock", "copies"],
        ),
        (
            "keep_state = true\ncache_prompt = false",
            &["models.a.keep_state", "cache_prompt"],
        ),
        ("concurrency_limit = 0", &["concurrency_limit", "1..=256"]),
        ("n_threads = 0", &["n_threads", "1..=512"]),
        ("n_ctx = 3\nconcurrency_limit = 4", &["n_ctx", "4 requests"]),
        ("aliases = ['a']", &["aliases", "\"a\" is a name of a"]),
        ("aliases = ['']", &["aliases"]),
        (
            "[models.a.sampling]\ntop_p = 1.5",
            &["models.a.sampling.top_p", "1.5"],
        ),
        ("[models.a.sampling]\ntemperature = nan", &["temperature"]),
        ("[models.a.sampling]\nmax_tokens = 0", &["max_tokens"]),
    ] {
        let message = refusal(&model(keys));
        assert!(message.starts_with("folder/models.toml:3: "), "{message}");
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }
    assert!(refusal("port = 1\n").contains("nothing to serve"));
    assert!(refusal("budget = '50%'\n").contains("models.toml:1: budget"));
    assert!(refusal("max_loaded = 0\n").contains("max_loaded"));
    assert!(refusal("api_keys = ['two words']\n").contains("two words"));
    let twice = "[models.a]\npath='x'\naliases=['c']\n[models.b]\npath='x'\naliases=['c']\n";
    assert!(refusal(twice).contains("\"c\" is a name of a already"));
}

#[test]
fn states_are_kept_where_that_is_asked_for() {
    for (value, bytes) in [
        ("true", 256 << 20),
        ("false", 0),
        ("'1GiB'", 1 << 30),
        ("1000", 1000),
    ] {
        let config = parse(&format!("[models.a]\npath = 'x'\nkeep_state = {value}\n"));
        assert_eq!(
            config.unwrap().models["a"].keep_state_bytes,
            bytes,
            "{value}"
        );
    }
    let off = "[models.a]\npath = 'x'\nkeep_state = false\ncache_prompt = false\n";
    assert!(parse(off).is_ok());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/no/such/models.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/no/such/models.toml") && error.contains("No such file"),
        "{error}"
    );
}
