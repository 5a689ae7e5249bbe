mod kept;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use std::time::Duration;

use llama_rs::Token;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::counters::ModelCounters;
use crate::testing::{FakeEngine, host_of, model_config};

/// Tokens are bytes; a token's successor is a hash of everything before it, so that a wrong cache shows in the text.
struct ByteDecoder {
    n_batch: usize,
    n_ctx: usize,
    cache: BTreeMap<u32, Vec<Token>>,
    rows: Vec<Row>,
    next_errors: Vec<DecodeError>,
    /// As a cache that has only the last tokens of each sequence.
    keeps_windows: bool,
    /// As such a cache that nothing was overwritten in yet.
    has_room_for_windows: bool,
    /// Sizes of the steps, and how many sequences each had.
    steps: Vec<(usize, usize)>,
}

const END: Token = Token(0);

fn successor(tokens: &[Token]) -> Token {
    let mut hasher = DefaultHasher::new();
    tokens.hash(&mut hasher);
    let letter = hasher.finish() % 27;
    Token(if tokens.len() > 60 && letter == 26 {
        END.0
    } else {
        b'a' as i32 + (letter % 26) as i32
    })
}

impl Decoder for ByteDecoder {
    type Sampler = u32;

    fn n_batch(&self) -> usize {
        self.n_batch
    }

    fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    fn n_slots(&self) -> u32 {
        4
    }

    fn tokenize(&self, prompt: &Prompt) -> Result<Vec<Token>, Failure> {
        match prompt {
            Prompt::Text(text) => Ok(text.bytes().map(|byte| Token(byte.into())).collect()),
            _ => Err(Failure::BadRequest {
                param: "prompt",
                message: "text only".to_owned(),
            }),
        }
    }

    fn sampler(&self, sampling: &Sampling) -> Result<u32, Failure> {
        Ok(sampling.top_k)
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), DecodeError> {
        if let Some(error) = self.next_errors.pop() {
            return Err(error);
        }
        assert!(!rows.is_empty() && rows.len() <= self.n_batch);
        for row in rows {
            let cached = self.cache.entry(row.slot).or_default();
            assert_eq!(cached.len(), row.position, "a gap in the cache");
            cached.push(row.token);
        }
        let used: usize = self.cache.values().map(Vec::len).sum();
        assert!(used <= self.n_ctx, "{used} cells");
        let mut slots: Vec<u32> = rows.iter().map(|row| row.slot).collect();
        slots.dedup();
        self.steps.push((rows.len(), slots.len()));
        self.rows = rows.to_vec();
        Ok(())
    }

    fn sample(&mut self, _sampler: &mut u32, row: usize) -> Result<Token, String> {
        let row = self.rows[row];
        assert!(row.wants_logits);
        Ok(successor(&self.cache[&row.slot][..=row.position]))
    }

    /// The token that was chosen is certain, and its neighbours are not far.
    fn chosen(&self, _row: usize, token: Token, count: usize) -> ChosenToken {
        let candidate = |distance: usize| Candidate {
            bytes: vec![token.0 as u8 + distance as u8],
            log_probability: -(distance as f32),
        };
        ChosenToken {
            chosen: candidate(0),
            top: (0..count).map(candidate).collect(),
        }
    }

    fn state_bytes(&mut self, slot: u32) -> u64 {
        4 * self.cache[&slot].len() as u64
    }

    fn state(&mut self, slot: u32) -> Option<Vec<u8>> {
        let tokens = self.cache[&slot].iter();
        Some(tokens.flat_map(|token| token.0.to_le_bytes()).collect())
    }

    fn restore(&mut self, slot: u32, state: &[u8], count: usize) -> bool {
        let numbers = state.as_chunks::<4>().0.iter();
        let tokens: Vec<Token> = numbers
            .map(|bytes| Token(i32::from_le_bytes(*bytes)))
            .collect();
        let used: usize = self.cache.values().map(Vec::len).sum();
        assert!(used + tokens.len() <= self.n_ctx, "{used} cells are taken");
        let is_good = tokens.len() == count;
        let before = self.cache.insert(slot, tokens);
        assert_eq!(before, None, "the sequence is taken");
        is_good
    }

    fn cuts_restored(&self) -> bool {
        !self.keeps_windows
    }

    fn forget(&mut self, slot: u32) {
        self.cache.remove(&slot);
    }

    fn cut(&mut self, slot: u32, count: usize) -> bool {
        let cached = self.cache.get_mut(&slot).unwrap();
        assert!(0 < count && count <= cached.len());
        let is_whole = count == cached.len();
        cached.truncate(count);
        is_whole || !self.keeps_windows || self.has_room_for_windows
    }

    fn is_end(&self, token: Token) -> bool {
        token == END
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        vec![token.0 as u8]
    }
}

fn decoder(n_batch: usize, n_ctx: usize) -> ByteDecoder {
    ByteDecoder {
        n_batch,
        n_ctx,
        cache: BTreeMap::new(),
        rows: Vec::new(),
        next_errors: Vec::new(),
        keeps_windows: false,
        has_room_for_windows: false,
        steps: Vec::new(),
    }
}

/// What the decoder gives for a prompt that is alone, and why it ends.
fn expected(prompt: &str, max_tokens: usize, n_ctx: usize) -> (String, FinishReason) {
    let mut tokens: Vec<Token> = prompt.bytes().map(|byte| Token(byte.into())).collect();
    let mut text = String::new();
    loop {
        let next = successor(&tokens);
        if next == END {
            return (text, FinishReason::Stop);
        }
        tokens.push(next);
        text.push(next.0 as u8 as char);
        if text.len() == max_tokens || tokens.len() > n_ctx {
            return (text, FinishReason::Length);
        }
    }
}

/// Jobs of a host whose engine does nothing: what is tested is the batch.
struct Jobs {
    runtime: tokio::runtime::Runtime,
    host: crate::host::Host,
    _folder: tempfile::TempDir,
}

impl Jobs {
    fn new() -> Jobs {
        let folder = tempfile::tempdir().unwrap();
        let mut model = model_config("m", folder.path());
        model.concurrency_limit = 100;
        let host = host_of(vec![model], FakeEngine::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        Jobs {
            runtime,
            host,
            _folder: folder,
        }
    }

    fn job(&self, prompt: &str, max_tokens: usize) -> (Job, UnboundedReceiver<Event>) {
        let model = self.host.find("m").unwrap();
        let lease = self
            .runtime
            .block_on(self.host.acquire(model, None))
            .unwrap();
        let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
        let sampling = Sampling {
            max_tokens: Some(max_tokens as u32),
            ..Sampling::default()
        };
        let request = Request {
            prompt: Prompt::Text(prompt.to_owned()),
            sampling,
            stop: Vec::new(),
            reuses: false,
            text_interval: Duration::ZERO,
            probabilities: None,
        };
        (
            Job {
                request,
                events,
                lease,
            },
            receiver,
        )
    }
}

/// All that came: the text, and the end.
fn outcome(receiver: &mut UnboundedReceiver<Event>) -> (String, Option<Result<Finished, Failure>>) {
    let (mut text, mut end) = (String::new(), None);
    while let Ok(event) = receiver.try_recv() {
        assert!(end.is_none(), "something came after the end");
        match event {
            Event::Started { .. } => assert!(text.is_empty()),
            Event::Text(pieces) => pieces.iter().for_each(|piece| text += &piece.text),
            Event::Done(finished) => end = Some(Ok(finished)),
            Event::Failed(failure) => end = Some(Err(failure)),
        }
    }
    (text, end)
}

fn run(batcher: &mut Batcher<'_, ByteDecoder>) {
    for _ in 0..10_000 {
        if batcher.is_idle() {
            return;
        }
        batcher.step().unwrap();
    }
    panic!("it does not end");
}

#[test]
fn requests_that_share_a_batch_give_what_each_gives_alone() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let mut batcher = Batcher::new(decoder(64, 4096), &counters, false, None);
    let prompts = [
        "x".repeat(150),
        "hello".to_owned(),
        "y".repeat(33),
        "z".to_owned(),
    ];
    let mut receivers = Vec::new();
    for prompt in &prompts {
        let (job, receiver) = jobs.job(prompt, 90);
        batcher.push(job);
        batcher.step().unwrap();
        receivers.push(receiver);
    }
    run(&mut batcher);
    for (prompt, receiver) in prompts.iter().zip(&mut receivers) {
        let (text, end) = outcome(receiver);
        let (expected, reason) = expected(prompt, 90, 4096);
        let finished = end.unwrap().unwrap();
        assert_eq!(
            (text.as_str(), finished.reason),
            (expected.as_str(), reason)
        );
        assert_eq!(finished.n_prompt as usize, prompt.len());
        let ended_itself = usize::from(reason == FinishReason::Stop);
        assert_eq!(finished.n_generated as usize, expected.len() + ended_itself);
    }
    let steps = &batcher.decoder().steps;
    assert!(
        steps.iter().any(|(_, sequences)| *sequences == 4),
        "they never shared a step"
    );
    assert!(batcher.decoder().cache.is_empty());
    assert_eq!(counters.snapshot().requests, 4);
}

#[test]
fn a_prompt_does_not_hold_up_those_who_generate() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let mut batcher = Batcher::new(decoder(512, 4096), &counters, false, None);
    let (first, mut first_events) = jobs.job("a", 1000);
    batcher.push(first);
    batcher.step().unwrap();
    let (long, _long_events) = jobs.job(&"p".repeat(1000), 5);
    batcher.push(long);
    let before = outcome(&mut first_events).0.len();
    for step in 1..=7 {
        batcher.step().unwrap();
        assert_eq!(outcome(&mut first_events).0.len(), 1, "step {step}");
    }
    assert_eq!(before, 1);
    // Alone, a prompt fills the batch.
    assert_eq!(batcher.decoder().steps[1], (129, 2));
    let mut alone = Batcher::new(decoder(512, 4096), &counters, false, None);
    let (long, _events) = jobs.job(&"p".repeat(1000), 1);
    alone.push(long);
    run(&mut alone);
    assert_eq!(alone.decoder().steps, [(512, 1), (488, 1)]);
}

#[test]
fn where_the_cache_is_too_small_requests_take_turns() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let n_ctx = 120;
    let mut batcher = Batcher::new(decoder(32, n_ctx), &counters, false, None);
    let prompts = ["first", "second one", "third", "fourth"];
    let mut receivers = Vec::new();
    for prompt in prompts {
        let (job, receiver) = jobs.job(prompt, 60);
        batcher.push(job);
        receivers.push(receiver);
    }
    run(&mut batcher);
    assert!(counters.snapshot().suspended > 0);
    for (prompt, receiver) in prompts.iter().zip(&mut receivers) {
        let (text, end) = outcome(receiver);
        assert_eq!(
            (text, end.unwrap().unwrap().reason),
            expected(prompt, 60, n_ctx),
            "{prompt}"
        );
    }
}

#[test]
fn one_request_may_use_the_whole_context() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let mut batcher = Batcher::new(decoder(32, 40), &counters, false, None);
    let (job, mut receiver) = jobs.job("abcdefghij", 1000);
    batcher.push(job);
    run(&mut batcher);
    let (text, end) = outcome(&mut receiver);
    assert_eq!(
        (text.clone(), end.unwrap().unwrap().reason),
        expected("abcdefghij", 1000, 40)
    );
    // As `faultline run`: the last token that is chosen need not fit any more.
    assert_eq!(text.len(), 31);
    let (job, mut receiver) = jobs.job(&"a".repeat(41), 5);
    batcher.push(job);
    let expected = Failure::ContextLength {
        n_prompt: 41,
        n_ctx: 40,
    };
    assert_eq!(outcome(&mut receiver).1, Some(Err(expected)));
    assert!(batcher.is_idle());
}

#[test]
fn stop_strings_end_a_request() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let whole = expected("hello", 50, 4096).0;
    let stop = whole[10..13].to_owned();
    let end = whole.find(&stop).unwrap();
    let mut batcher = Batcher::new(decoder(64, 4096), &counters, false, None);
    let (mut job, mut receiver) = jobs.job("hello", 50);
    job.request.stop = vec!["never this".to_owned(), stop];
    batcher.push(job);
    run(&mut batcher);
    let (text, finished) = outcome(&mut receiver);
    assert_eq!(text, whole[..end]);
    assert_eq!(finished.unwrap().unwrap().reason, FinishReason::Stop);
}

#[test]
fn a_listener_that_leaves_frees_its_place() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let mut batcher = Batcher::new(decoder(64, 4096), &counters, false, None);
    let mut kept = Vec::new();
    for _ in 0..4 {
        let (job, receiver) = jobs.job("a", 1000);
        batcher.push(job);
        kept.push(receiver);
    }
    batcher.step().unwrap();
    let (fifth, mut receiver) = jobs.job("b", 5);
    batcher.push(fifth);
    assert!(matches!(
        outcome(&mut receiver).1,
        Some(Err(Failure::Internal(_)))
    ));
    kept.remove(1);
    batcher.step().unwrap();
    assert_eq!(
        (batcher.decoder().cache.len(), counters.snapshot().cancelled),
        (3, 1)
    );
    let (sixth, mut receiver) = jobs.job("b", 5);
    batcher.push(sixth);
    kept.clear();
    run(&mut batcher);
    assert_eq!(outcome(&mut receiver).0, expected("b", 5, 4096).0);
}

#[test]
fn a_step_that_fails_is_told_to_those_who_ran() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let mut faulty = decoder(64, 4096);
    faulty.next_errors = vec![DecodeError::Failed("a bad page".to_owned())];
    let mut batcher = Batcher::new(faulty, &counters, false, None);
    let (job, mut receiver) = jobs.job("a", 5);
    batcher.push(job);
    batcher.step().unwrap();
    assert_eq!(
        outcome(&mut receiver).1,
        Some(Err(Failure::Internal("a bad page".to_owned())))
    );
    let (job, mut receiver) = jobs.job("a", 5);
    batcher.push(job);
    run(&mut batcher);
    assert!(
        outcome(&mut receiver).1.unwrap().is_ok(),
        "the next request works"
    );
}

#[test]
fn a_cache_that_has_no_room_although_there_is_some() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let mut faulty = decoder(64, 4096);
    faulty.next_errors = vec![DecodeError::NoRoom];
    let mut batcher = Batcher::new(faulty, &counters, false, None);
    let (a, mut a_events) = jobs.job("aa", 5);
    let (b, mut b_events) = jobs.job("bb", 5);
    batcher.push(a);
    batcher.push(b);
    run(&mut batcher);
    assert_eq!(outcome(&mut a_events).0, expected("aa", 5, 4096).0);
    assert_eq!(outcome(&mut b_events).0, expected("bb", 5, 4096).0);
    assert_eq!(counters.snapshot().suspended, 1);
}

#[test]
fn a_model_that_is_gone_ends_the_thread() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let mut faulty = decoder(64, 4096);
    faulty.next_errors = vec![DecodeError::ModelGone("the file changed".to_owned())];
    let mut batcher = Batcher::new(faulty, &counters, false, None);
    let (job, mut receiver) = jobs.job("a", 5);
    batcher.push(job);
    assert_eq!(batcher.step(), Err("the file changed".to_owned()));
    let failure = Failure::Unavailable("the file changed".to_owned());
    assert_eq!(outcome(&mut receiver).1, Some(Err(failure)));
}

#[test]
fn room_without_anybody_to_share_it_is_an_error() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let mut faulty = decoder(64, 4096);
    faulty.next_errors = vec![DecodeError::NoRoom];
    let mut batcher = Batcher::new(faulty, &counters, false, None);
    let (job, mut receiver) = jobs.job("a", 5);
    batcher.push(job);
    run(&mut batcher);
    assert!(matches!(
        outcome(&mut receiver).1,
        Some(Err(Failure::Internal(_)))
    ));
}

#[test]
fn tokens_come_with_their_probabilities() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let whole = expected("hello", 50, 4096).0;
    let mut batcher = Batcher::new(decoder(64, 4096), &counters, false, None);
    let (mut job, mut receiver) = jobs.job("hello", 50);
    job.request.probabilities = Some(2);
    // The second letter makes it clear that the first one does not begin it.
    job.request.stop = vec![whole[10..13].to_owned(), format!("{}_", &whole[..1])];
    batcher.push(job);
    run(&mut batcher);
    let mut pieces = Vec::new();
    while let Ok(event) = receiver.try_recv() {
        if let Event::Text(more) = event {
            pieces.extend(more);
        }
    }
    assert_eq!(
        (pieces[0].text.as_str(), pieces[0].tokens.len()),
        (&whole[..2], 2)
    );
    let tokens = || pieces.iter().flat_map(|piece| &piece.tokens);
    let bytes = tokens().flat_map(|token| token.chosen.bytes.clone());
    // Those of the stop string are no part of the text.
    assert_eq!(
        String::from_utf8(bytes.collect()).unwrap(),
        whole[..whole.find(&whole[10..13]).unwrap()]
    );
    assert!(tokens().all(|token| token.top.len() == 2 && token.top[0] == token.chosen));
}

/// With an interval, what is generated comes together; before a prompt of somebody else it does not wait.
#[test]
fn text_comes_in_intervals() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let mut batcher = Batcher::new(decoder(64, 4096), &counters, false, None);
    let (mut job, mut receiver) = jobs.job("hello", 50);
    job.request.text_interval = Duration::from_secs(3600);
    batcher.push(job);
    let mut came = Vec::new();
    let mut look = |batcher: &mut Batcher<'_, ByteDecoder>| {
        batcher.step().unwrap();
        came.push(outcome(&mut receiver).0.len());
    };
    (0..10).for_each(|_| look(&mut batcher));
    let (other, _events) = jobs.job("another", 1);
    batcher.push(other);
    look(&mut batcher);
    look(&mut batcher);
    assert_eq!(came, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0]);
    run(&mut batcher);
    let (rest, end) = outcome(&mut receiver);
    assert_eq!(rest.len(), end.unwrap().unwrap().n_generated as usize - 10);
}
