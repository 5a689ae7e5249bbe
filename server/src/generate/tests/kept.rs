//! What requests leave for others, in the cache and in files.

use super::*;
use crate::states::States;

/// Runs one request that may reuse what others left; what came of it.
fn ask(batcher: &mut Batcher<'_, ByteDecoder>, jobs: &Jobs, prompt: &str) -> (String, Finished) {
    let (mut job, mut receiver) = jobs.job(prompt, 20);
    job.request.reuses = true;
    batcher.push(job);
    run(batcher);
    let (text, end) = outcome(&mut receiver);
    (text, end.unwrap().unwrap())
}

#[test]
fn the_next_turn_begins_where_the_last_one_ended() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let mut batcher = Batcher::new(decoder(64, 200), &counters, true, None);
    let (first, finished) = ask(&mut batcher, &jobs, "a question; ");
    assert_eq!(finished.n_cached, 0);
    // All but the last token, which was never computed.
    let second_prompt = format!("a question; {first}; another one; ");
    let (second, finished) = ask(&mut batcher, &jobs, &second_prompt);
    assert_eq!(
        finished.n_cached as usize,
        "a question; ".len() + first.len() - 1
    );
    assert_eq!(second, expected(&second_prompt, 20, 200).0);
    // The same prompt once more: its last token gives the next one.
    let (again, finished) = ask(&mut batcher, &jobs, &second_prompt);
    assert_eq!(
        (again, finished.n_cached as usize),
        (second, second_prompt.len() - 1)
    );
    assert_eq!(
        counters.snapshot().cached_tokens,
        31 + second_prompt.len() as u64 - 1
    );

    // Others leave it alone while there are empty sequences, and take its room when there are none.
    for prompt in ["a few words", "b", "c"] {
        assert_eq!(ask(&mut batcher, &jobs, prompt).1.n_cached, 0, "{prompt}");
    }
    assert!(ask(&mut batcher, &jobs, &second_prompt).1.n_cached > 0);
    let (text, finished) = ask(&mut batcher, &jobs, &"x".repeat(190));
    assert_eq!(
        (text, finished.n_cached),
        (expected(&"x".repeat(190), 20, 200).0, 0)
    );
    assert_eq!(ask(&mut batcher, &jobs, &second_prompt).1.n_cached, 0);

    // A request that wants its own numbers gets an empty cache.
    let (job, mut receiver) = jobs.job("c", 5);
    batcher.push(job);
    assert!(batcher.decoder().cache.is_empty());
    run(&mut batcher);
    assert_eq!(outcome(&mut receiver).0, expected("c", 5, 200).0);
    // A cache without the beginning cannot be cut back.
    batcher.decoder_mut().keeps_windows = true;
    let (text, finished) = ask(&mut batcher, &jobs, "cc");
    assert_eq!((text, finished.n_cached), (expected("cc", 20, 200).0, 0));
}

#[test]
fn conversations_share_a_cache_that_is_too_small_for_them() {
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let n_ctx = 150;
    let mut batcher = Batcher::new(decoder(32, n_ctx), &counters, true, None);
    let mut talks: Vec<String> = ["one ", "two ", "three "].map(str::to_owned).to_vec();
    for _turn in 0..5 {
        let mut receivers = Vec::new();
        for talk in &mut talks {
            let (mut job, receiver) = jobs.job(talk, 12);
            job.request.reuses = true;
            batcher.push(job);
            batcher.step().unwrap();
            receivers.push(receiver);
        }
        run(&mut batcher);
        for (talk, receiver) in talks.iter_mut().zip(&mut receivers) {
            let (text, end) = outcome(receiver);
            let (wanted, reason) = expected(talk, 12, n_ctx);
            assert_eq!(
                (text.as_str(), end.unwrap().unwrap().reason),
                (wanted.as_str(), reason)
            );
            *talk += &format!("{text}. ");
        }
    }
    assert!(counters.snapshot().cached_tokens > 0);
}

fn states(folder: &tempfile::TempDir, limit_bytes: u64) -> Option<States> {
    let folder = folder.path().join("state");
    Some(States::open(
        &folder,
        "m.gguf".as_ref(),
        [7; 32],
        limit_bytes,
    ))
}

#[test]
fn a_conversation_goes_on_after_the_model_has_left() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let load = || Batcher::new(decoder(64, 200), &counters, true, states(&folder, 1 << 20));
    let mut batcher = load();
    let (first, _) = ask(&mut batcher, &jobs, "a question; ");
    ask(&mut batcher, &jobs, "of somebody else ");
    // Who wants his own numbers leaves nothing.
    let (own, mut events) = jobs.job("of no use ", 5);
    let (other, mut other_events) = jobs.job("by the side ", 5);
    for job in [own, other] {
        batcher.push(job);
    }
    run(&mut batcher);
    for events in [&mut events, &mut other_events] {
        assert!(outcome(events).1.unwrap().is_ok());
    }
    batcher.leave(&|| true);
    assert_eq!(
        counters.snapshot().saved_states,
        0,
        "those were alone in an empty cache"
    );

    let mut batcher = load();
    let (again, _) = ask(&mut batcher, &jobs, "a question; ");
    assert_eq!(again, first);
    ask(&mut batcher, &jobs, "of somebody else ");
    batcher.leave(&|| true);
    assert_eq!(counters.snapshot().saved_states, 2);

    let second_prompt = format!("a question; {first}; another one; ");
    let mut batcher = load();
    let (second, finished) = ask(&mut batcher, &jobs, &second_prompt);
    assert_eq!(second, expected(&second_prompt, 20, 200).0);
    let n_first = "a question; ".len() + first.len() - 1;
    assert_eq!(finished.n_cached as usize, n_first);
    assert_eq!(batcher.decoder().steps[0].0, second_prompt.len() - n_first);
    // From memory, where it is.
    let (_, finished) = ask(&mut batcher, &jobs, &second_prompt);
    assert_eq!(finished.n_cached as usize, second_prompt.len() - 1);
    assert_eq!(counters.snapshot().restored_states, 1);
    // The other one comes back when it is asked for; a beginning that many share is enough.
    let (text, finished) = ask(&mut batcher, &jobs, "of somebody who asks");
    assert_eq!(text, expected("of somebody who asks", 20, 200).0);
    assert_eq!(finished.n_cached as usize, "of somebody ".len());
    batcher.leave(&|| true);

    // What nobody touched stays, what has become longer is there once.
    let mut batcher = load();
    let prompts = [
        ("of somebody else ", 16),
        (second_prompt.as_str(), second_prompt.len() - 1),
    ];
    for (prompt, n_cached) in prompts {
        assert_eq!(
            ask(&mut batcher, &jobs, prompt).1.n_cached as usize,
            n_cached
        );
    }
    // One that has to leave without time keeps what was there before.
    batcher.leave(&|| false);
    let (_, finished) = ask(&mut load(), &jobs, &second_prompt);
    assert_eq!(finished.n_cached as usize, second_prompt.len() - 1);
}

#[test]
fn a_state_that_is_wrong_or_has_no_room_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let load = |n_ctx| {
        Batcher::new(
            decoder(64, n_ctx),
            &counters,
            true,
            states(&folder, 1 << 20),
        )
    };
    let prompt = "some words that are kept ";
    let mut batcher = load(200);
    ask(&mut batcher, &jobs, prompt);
    batcher.leave(&|| true);
    let file = std::fs::read_dir(folder.path().join("state"))
        .unwrap()
        .next();
    let path = file.unwrap().unwrap().path();
    let good = std::fs::read(&path).unwrap();

    // Others have the room.
    let mut batcher = load(60);
    let (job, mut receiver) = jobs.job(&"y".repeat(30), 10);
    batcher.push(job);
    batcher.step().unwrap();
    let (text, finished) = ask(&mut batcher, &jobs, prompt);
    assert_eq!((text, finished.n_cached), (expected(prompt, 20, 60).0, 0));
    assert_eq!(
        outcome(&mut receiver).0,
        expected(&"y".repeat(30), 10, 60).0
    );
    // What is only kept gives it up.
    let mut batcher = load(60);
    ask(&mut batcher, &jobs, &"y".repeat(30));
    let (text, finished) = ask(&mut batcher, &jobs, prompt);
    let all_but_one = prompt.len() as u32 - 1;
    assert_eq!(
        (text, finished.n_cached),
        (expected(prompt, 20, 60).0, all_but_one)
    );

    // Broken, and whole with a state that the cache does not take.
    let mut bad = good.clone();
    let last = bad.len() - 10;
    bad[last] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let (text, finished) = ask(&mut load(200), &jobs, prompt);
    assert_eq!((text, finished.n_cached), (expected(prompt, 20, 200).0, 0));
    assert!(!path.exists());
    let tokens: Vec<Token> = prompt.bytes().map(|byte| Token(byte.into())).collect();
    let mut wrong = states(&folder, 1 << 20).unwrap();
    wrong.write(&tokens, &[1, 0, 0, 0], &|| true).unwrap();
    let (text, finished) = ask(&mut load(200), &jobs, prompt);
    assert_eq!((text, finished.n_cached), (expected(prompt, 20, 200).0, 0));
    assert!(
        states(&folder, 1)
            .unwrap()
            .best(&tokens, 0, 200, true)
            .is_none()
    );
}

/// Of a window a state has the last part only, so it is of use where it ends: there are two, for the next turn and for another answer.
#[test]
fn windows_are_kept_where_requests_begin() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = Jobs::new();
    let counters = ModelCounters::default();
    let load = || {
        let mut decoder = decoder(64, 200);
        decoder.keeps_windows = true;
        decoder.has_room_for_windows = true;
        Batcher::new(decoder, &counters, true, states(&folder, 1 << 20))
    };
    let mut batcher = load();
    let (answer, _) = ask(&mut batcher, &jobs, "a question; ");
    batcher.leave(&|| true);
    assert_eq!(counters.snapshot().saved_states, 2);
    for (prompt, n_cached) in [
        (
            format!("a question; {answer}; another; "),
            11 + answer.len(),
        ),
        ("a question; ".to_owned(), 11),
        // The text of the answer came back as other tokens.
        (format!("a question; {}#", &answer[..5]), 11),
        ("a quest".to_owned(), 0),
    ] {
        let (text, finished) = ask(&mut load(), &jobs, &prompt);
        assert_eq!(text, expected(&prompt, 20, 200).0);
        assert_eq!(finished.n_cached as usize, n_cached, "{prompt}");
    }
    // Where it cannot be cut there is one; the bytes are bounded.
    let mut batcher = load();
    batcher.decoder_mut().has_room_for_windows = false;
    ask(&mut batcher, &jobs, "something else entirely ");
    batcher.leave(&|| true);
    assert_eq!(counters.snapshot().saved_states, 3);
    let mut small = Batcher::new(decoder(64, 200), &counters, true, states(&folder, 100));
    ask(&mut small, &jobs, "more than a hundred bytes of tokens ");
    small.leave(&|| true);
    assert_eq!(counters.snapshot().saved_states, 3);
}
