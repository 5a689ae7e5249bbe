use super::*;
use crate::generate::Prompt;
use crate::testing::{FakeEngine, FakeState, MODEL_BYTES, config_of, host_of, model_config};

struct Bench {
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    host: Host,
    state: Arc<FakeState>,
}

/// Models a, b, c with a long time to live, and room for two.
fn bench(change: impl Fn(&mut ModelConfig)) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let models = ["a", "b", "c"].map(|name| {
        let mut model = model_config(name, folder.path());
        change(&mut model);
        model
    });
    let engine = FakeEngine {
        load_time: Duration::from_millis(10),
        ..FakeEngine::default()
    };
    let state = Arc::clone(&engine.state);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().worker_threads(2).build().unwrap();
    Bench {
        runtime,
        host: host_of(models.into(), engine),
        folder,
        state,
    }
}

fn request(text: &str) -> Request {
    let sampling = crate::config::Sampling::default();
    Request {
        prompt: Prompt::Text(text.to_owned()),
        sampling,
        stop: Vec::new(),
        reuses: false,
        text_interval: Duration::ZERO,
        probabilities: None,
    }
}

impl Bench {
    async fn ask(&self, name: &str) -> Result<String, Refusal> {
        self.ask_keeping(name, None).await
    }

    async fn ask_keeping(&self, name: &str, keep_alive: Option<Ttl>) -> Result<String, Refusal> {
        let model = self.host.find(name).unwrap();
        let lease = self.host.acquire(model, keep_alive).await?;
        let mut events = lease.submit(request("hello"));
        let mut text = String::new();
        while let Some(event) = events.recv().await {
            match event {
                Event::Text(pieces) => pieces.iter().for_each(|piece| text += &piece.text),
                Event::Done(_) => return Ok(text),
                Event::Started { .. } => {}
                Event::Failed(failure) => return Ok(failure.to_string()),
            }
        }
        Ok("gone".to_owned())
    }

    fn status(&self, name: &str) -> Status {
        self.host.list(self.host.find(name).unwrap()).status.status
    }

    /// Waits until a model is in a state.
    #[track_caller]
    fn until(&self, name: &str, status: Status) {
        for _ in 0..5000 {
            if self.status(name) == status {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("{name} stays {:?}", self.status(name));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.host.close(Duration::from_millis(100));
        assert_eq!(
            self.state.loaded.load(Ordering::SeqCst),
            0,
            "something is still loaded"
        );
    }
}

#[test]
fn many_requests_load_a_model_once_and_get_its_own_text() {
    let bench = bench(|_| {});
    bench.runtime.block_on(async {
        let asked = (0..24).map(|index| async move {
            let name = ["a", "b"][index % 2];
            (name, index)
        });
        let answers = futures_util::future::join_all(asked.map(|asked| async {
            let (name, _) = asked.await;
            (name, bench.ask(name).await)
        }));
        for (name, answer) in answers.await {
            assert_eq!(answer, Ok(format!("{name} says hello")));
        }
    });
    assert_eq!(bench.state.loads.load(Ordering::SeqCst), 2);
    let listed = bench.host.list(bench.host.find("a").unwrap());
    assert!(listed.is_loaded() && listed.file == FileState::Present);
    assert_eq!(bench.host.budget(), (2 * MODEL_BYTES, 2 * MODEL_BYTES));
    assert_eq!(bench.host.counters(ModelId(0)).snapshot().requests, 12);
}

#[test]
fn models_change_places_where_there_is_no_room_for_all() {
    let bench = bench(|_| {});
    for round in 0..3 {
        for name in ["a", "b", "c"] {
            let answer = bench.runtime.block_on(bench.ask(name));
            assert_eq!(answer, Ok(format!("{name} says hello")), "round {round}");
            assert!(bench.state.loaded.load(Ordering::SeqCst) <= 2);
        }
    }
    assert_eq!(bench.state.loads.load(Ordering::SeqCst), 9);
}

#[test]
fn an_idle_model_leaves_after_its_time() {
    let bench = bench(|model| model.ttl = Ttl::After(Duration::from_millis(30)));
    bench.runtime.block_on(bench.ask("a")).unwrap();
    bench.until("a", Status::Unloaded);
    bench
        .runtime
        .block_on(bench.ask_keeping("b", Some(Ttl::Never)))
        .unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(bench.status("b"), Status::Idle);
    bench
        .runtime
        .block_on(bench.ask_keeping("b", Some(Ttl::After(Duration::ZERO))))
        .unwrap();
    bench.until("b", Status::Unloaded);
}

#[test]
fn a_request_that_is_dropped_while_it_waits_is_forgotten() {
    let bench = bench(|_| {});
    let model = bench.host.find("a").unwrap();
    bench.runtime.block_on(async {
        let waiting = bench.host.acquire(model, None);
        assert!(
            tokio::time::timeout(Duration::from_millis(1), waiting)
                .await
                .is_err()
        );
    });
    bench.until("a", Status::Idle);
    let status = bench.host.list(model).status;
    assert_eq!((status.running, status.waiting), (0, 0));
}

#[test]
fn a_client_that_leaves_ends_its_request() {
    let bench = bench(|_| {});
    bench.state.is_held.store(true, Ordering::SeqCst);
    let model = bench.host.find("a").unwrap();
    let lease = bench
        .runtime
        .block_on(bench.host.acquire(model, None))
        .unwrap();
    let events = lease.submit(request("x"));
    assert_eq!(bench.status("a"), Status::Running);
    drop(events);
    bench.until("a", Status::Idle);
    assert_eq!(bench.host.counters(model).snapshot().cancelled, 1);
}

#[test]
fn a_failed_load_says_why_and_is_tried_again() {
    let bench = bench(|_| {});
    *bench.state.fails.lock().unwrap() = Some("the disk is on fire".to_owned());
    let refusal = bench.runtime.block_on(bench.ask("a")).unwrap_err();
    assert!(
        refusal.to_string().contains("the disk is on fire"),
        "{refusal}"
    );
    assert_eq!(bench.status("a"), Status::Failed);
    assert_eq!(bench.host.counters(ModelId(0)).snapshot().load_failures, 1);
    *bench.state.fails.lock().unwrap() = None;
    // Within the pause only an explicit load is tried.
    assert!(bench.runtime.block_on(bench.ask("a")).is_err());
    bench.host.load(bench.host.find("a").unwrap());
    bench.until("a", Status::Idle);
    assert!(bench.runtime.block_on(bench.ask("a")).is_ok());
}

#[test]
fn a_thread_that_panics_is_a_failure_of_its_model_only() {
    let bench = bench(|_| {});
    bench.state.panics.store(true, Ordering::SeqCst);
    assert_eq!(
        bench.runtime.block_on(bench.ask("a")),
        Ok("gone".to_owned())
    );
    bench.until("a", Status::Failed);
    bench.state.panics.store(false, Ordering::SeqCst);
    assert_eq!(
        bench.runtime.block_on(bench.ask("b")),
        Ok("b says hello".to_owned())
    );
    bench.host.load(bench.host.find("a").unwrap());
    assert_eq!(
        bench.runtime.block_on(bench.ask("a")),
        Ok("a says hello".to_owned())
    );
}

#[test]
fn a_file_that_was_replaced_is_loaded_anew() {
    let bench = bench(|_| {});
    let path = bench.folder.path().join("a.gguf");
    bench.runtime.block_on(bench.ask("a")).unwrap();
    std::fs::remove_file(&path).unwrap();
    bench.runtime.block_on(bench.ask("a")).unwrap();
    let model = bench.host.find("a").unwrap();
    assert_eq!(bench.host.list(model).file, FileState::Missing);
    assert_eq!(
        bench.state.loads.load(Ordering::SeqCst),
        1,
        "what is loaded serves on"
    );
    std::fs::write(&path, "another").unwrap();
    assert_eq!(bench.host.list(model).file, FileState::Replaced);
    bench.runtime.block_on(bench.ask("a")).unwrap();
    assert_eq!(bench.state.loads.load(Ordering::SeqCst), 2);
    assert_eq!(bench.host.list(model).file, FileState::Present);
    // Unloaded and gone: the next load says so.
    bench.host.unload(model);
    bench.until("a", Status::Unloaded);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(bench.host.list(model).file, FileState::Missing);
    assert!(bench.runtime.block_on(bench.ask("a")).is_err());
}

#[test]
fn closing_ends_what_does_not_end_by_itself() {
    let bench = bench(|_| {});
    bench.state.is_held.store(true, Ordering::SeqCst);
    let model = bench.host.find("a").unwrap();
    let lease = bench
        .runtime
        .block_on(bench.host.acquire(model, None))
        .unwrap();
    let _events = lease.submit(request("x"));
    bench.host.close(Duration::from_millis(20));
    assert_eq!(bench.status("a"), Status::Unloaded);
    assert_eq!(
        bench.runtime.block_on(bench.ask("b")),
        Err(Refusal::ShuttingDown)
    );
}

#[test]
fn preloads_must_fit_together() {
    let folder = tempfile::tempdir().unwrap();
    let models = |preloads: usize, group: Option<&str>| {
        let models = ["a", "b", "c"].iter().enumerate().map(|(index, name)| {
            let mut model = model_config(name, folder.path());
            model.preload = index < preloads;
            model.group = group.map(str::to_owned);
            model
        });
        config_of(models.collect())
    };
    let refusal = |config: &Config, budget: u64| {
        Host::new(config, budget, FakeEngine::default()).unwrap_err()
    };
    assert!(refusal(&models(3, None), 2 * MODEL_BYTES).contains("preload: 3 models"));
    assert!(refusal(&models(2, Some("g")), 3 * MODEL_BYTES).contains("group \"g\""));
    let message = refusal(&models(0, None), MODEL_BYTES - 1);
    assert!(
        message.contains("models.a") && message.contains("10.0 MiB"),
        "{message}"
    );
    let host = Host::new(&models(2, None), 2 * MODEL_BYTES, FakeEngine::default()).unwrap();
    while !host.list(ModelId(1)).is_loaded() || !host.list(ModelId(0)).is_loaded() {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(!host.list(ModelId(2)).is_loaded());
    host.close(Duration::from_secs(1));
}
