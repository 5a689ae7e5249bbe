//! Conversations that go on after their model has left.

use super::*;

/// A server with a cache folder that others do not have.
fn serve_with_cache(config: &str, cache: &Path) -> Server {
    let mut command = faultline();
    command.env("FAULTLINE_CACHE", cache);
    serve_with(config, command)
}

/// An answer, with everything that shows its numbers, and how many tokens of its prompt were there.
fn answered(server: &Server, prompt: &str) -> (Value, u64) {
    let body = json!({"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 12, "cache_prompt": true, "logprobs": 3});
    let answer = server.call("/v1/completions", &body);
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    (answer["choices"].clone(), cached.as_u64().unwrap())
}

fn unload(server: &Server) {
    server.call("/models/unload", &json!({"model": "m"}));
    server.until(0, "unloaded");
}

fn files(cache: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache.join("state")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// What the second turn of a conversation gives with everything still in memory, it gives after an unloading, in another process and after a
/// kill, too: the same tokens with the same probabilities.
#[track_caller]
fn goes_on(path: &Path, keys: &str, first: &str, next: impl Fn(&str) -> String) {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let config = |more: &str| format!("port = 0\n{}", model("m", path, &format!("{keys}\n{more}")));

    let server = serve_with_cache(&config(""), &cache);
    let (reply, cached) = answered(&server, first);
    assert_eq!(cached, 0);
    let second = next(reply[0]["text"].as_str().unwrap());
    let (expected, cached) = answered(&server, &second);
    assert!(cached > 0, "{cached}");
    unload(&server);
    assert_eq!(
        answered(&server, &second).1,
        0,
        "nothing is kept unless asked for"
    );
    drop(server);
    assert!(files(&cache).is_empty());

    let keeping = config("keep_state = true");
    let mut server = serve_with_cache(&keeping, &cache);
    assert_eq!(answered(&server, first).0, reply);
    unload(&server);
    assert_eq!(
        answered(&server, &second),
        (expected.clone(), cached),
        "after unloading"
    );
    // In order, and with what was not kept yet.
    server.signal("-TERM");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(!files(&cache).is_empty());

    // Another process: the same question once more, and one that goes on; then it is killed.
    let server = serve_with_cache(&keeping, &cache);
    assert!(answered(&server, &second).1 >= cached, "in another process");
    drop(server);
    let server = serve_with_cache(&keeping, &cache);
    assert!(answered(&server, &second).1 >= cached, "after a kill");
    drop(server);

    // Files that are broken are as good as none.
    for file in files(&cache) {
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(&file, bytes).unwrap();
    }
    let server = serve_with_cache(&keeping, &cache);
    assert_eq!(answered(&server, first), (reply, 0));
    assert_eq!(answered(&server, &second), (expected, cached));
}

#[test]
fn a_conversation_goes_on_after_the_model_was_unloaded() {
    let Some(path) = small() else { return };
    let first = "The rivers of Germany are the Rhine, the Elbe and the";
    goes_on(&path, "", first, |reply| format!("{first}{reply} And then"));
}

/// Layers that see a window only, and experts that are read on demand. What this model says is no text that has the same tokens again, so
/// it is asked for another answer.
#[test]
fn a_conversation_goes_on_in_a_window_and_with_the_pager() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "tiny-gpt-oss");
    let first = "a b c d e f g h ".repeat(12);
    goes_on(
        &path,
        "prefetch = 'pager'\nbudget = '256MiB'",
        &first,
        |_| first.clone(),
    );
}

#[test]
fn keeping_conversations_keeps_no_memory() {
    let Some(path) = small() else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = format!("port = 0\n{}", model("m", &path, "keep_state = true"));
    let server = serve_with_cache(&config, folder.path());
    for round in 0..3 {
        let before = server.resident_bytes();
        answered(&server, &format!("{round}{}", " word".repeat(700)));
        let taken = server.resident_bytes() - before;
        unload(&server);
        let left = server.resident_bytes().saturating_sub(before);
        assert!(
            left * 50 <= taken,
            "{left} of {taken} bytes stay, round {round}"
        );
    }
    assert_eq!(files(folder.path()).len(), 3);
    assert_eq!(server.model(0)["counters"]["saved_states"], 3);
}
