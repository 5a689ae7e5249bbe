//! Ordinary use, and arguments that are refused.

mod common;

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{TinyModel, context, context_params, prompt};
use llama_rs::{
    Advise, Backend, Batch, ChatMessage, Context, ContextParams, Error, Generation, LoadMode,
    Model, ModelParams, Prefetch, Sampler, Stop, Token, Utf8Stream, generate,
};
use model_shapes::local::real_model;

fn go_on(_: Token) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn selective() -> ModelParams {
    ModelParams {
        prefetch: Prefetch::Selective,
        repack: false,
        ..Default::default()
    }
}

#[test]
fn a_model_describes_itself() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&ModelParams::default());
    assert!(model.desc().contains("gpt-oss"), "{}", model.desc());
    assert!(model.has_decoder() && !model.has_encoder());
    let architecture = model.metadata("general.architecture");
    assert_eq!(architecture.as_deref(), Some("gpt-oss"));
    assert_eq!(model.metadata("no.such.key"), None);
    assert_eq!(model.metadata("a\0b"), None);
    let bytes: u64 = model
        .files()
        .tensors()
        .map(|(_, tensor)| tensor.size_bytes)
        .sum();
    assert_eq!(model.size_bytes(), bytes);
    assert!(model.n_params() > 0 && model.n_embd() > 0 && model.n_layer() > 0);
    let info = Backend::build_info();
    assert!(info.llama_build.starts_with('b') || info.llama_build == "custom");
    assert_eq!(info.patch_set_digest.len(), 12);
    assert!(info.cpu_features.contains("CPU"), "{info:?}");
}

#[test]
fn text_survives_the_tokenizer() {
    let tiny = TinyModel::new("tiny-llama");
    let model = tiny.load(&ModelParams {
        vocab_only: true,
        ..Default::default()
    });
    let vocab = model.vocab();
    let texts = [
        "",
        "a",
        "Hello, w\u{f6}rld \u{1f980}\n\t",
        " <|endoftext|> ",
    ];
    for text in texts {
        let tokens = vocab.tokenize(text, false, false).unwrap();
        let bytes: Vec<u8> = tokens.iter().flat_map(|&t| vocab.piece(t, false)).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
        let mut stream = Utf8Stream::new();
        let mut out: String = tokens
            .iter()
            .map(|&token| stream.push(&vocab.piece(token, false)))
            .collect();
        out += &stream.finish();
        assert_eq!(out, text);
    }
    for run in ["x", " ", "1", "$", "\u{e9}", "\n", "x$"] {
        let text = run.repeat(100_000);
        let tokens = vocab.tokenize(&text, false, false).unwrap();
        assert_eq!(tokens.len(), text.len());
    }
    let endless = vocab.tokenize(&"x".repeat(3 << 20), false, false);
    assert!(matches!(endless, Err(Error::Tokenize { .. })));
    let special = vocab.tokenize("<|endoftext|>", false, true).unwrap();
    assert_eq!(special, [vocab.eos().unwrap()]);
    assert!(vocab.is_eog(special[0]));
    assert_eq!(vocab.piece(special[0], true), b"<|endoftext|>");
    assert!(vocab.piece(special[0], false).is_empty());
    let with_bos = vocab.tokenize("a", true, false).unwrap();
    assert_eq!(vocab.adds_bos(), with_bos.first().copied() == vocab.bos());
    for token in [-1, i32::MIN, vocab.n_tokens() as i32, i32::MAX].map(Token) {
        assert!(vocab.piece(token, true).is_empty());
        assert!(!vocab.is_eog(token) && !vocab.contains(token));
    }
    let refused = Context::new(&model, &context_params()).unwrap_err();
    assert!(refused.to_string().contains("vocab"), "{refused}");
}

#[test]
fn a_model_without_tokenizer_takes_token_ids_only() {
    let tiny = TinyModel::new("tiny-llama-no-vocab");
    let model = tiny.load(&ModelParams::default());
    let vocab = model.vocab();
    assert!(!vocab.has_tokenizer());
    let error = vocab.tokenize("a", true, true).unwrap_err();
    assert!(matches!(error, Error::NoTokenizer(_)), "{error}");
    assert!(vocab.piece(Token(1), true).is_empty());
    assert_eq!((vocab.bos(), vocab.eos()), (None, None));
    let mut context = context(&model);
    let done = generate(&mut context, &prompt(3), &mut Sampler::greedy(), 4, go_on).unwrap();
    assert_eq!((done.tokens.len(), done.stop), (4, Stop::Length));
}

#[test]
fn a_file_without_a_word_about_a_tokenizer_is_refused() {
    let tiny = TinyModel::new("tiny-llama-no-tokenizer");
    let error = Model::load(&Backend::init(), tiny.path(), &selective()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("tokenizer") && text.contains("gguf"),
        "{text}"
    );
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let tiny = TinyModel::new("tiny-llama");
    let model = tiny.load(&ModelParams::default());
    let n_vocab = model.vocab().n_tokens() as i32;
    let mut context = context(&model);
    let mut batch = Batch::new(65, 2);
    let decode =
        |context: &mut Context<'_>, batch: &Batch| context.decode(batch).unwrap_err().to_string();

    assert!(decode(&mut context, &batch).contains("no tokens"));
    for token in [-1, n_vocab, i32::MAX] {
        batch.clear();
        batch.add(Token(token), 0, &[0], true).unwrap();
        let text = decode(&mut context, &batch);
        assert!(text.contains(&token.to_string()), "{text}");
    }
    batch.clear();
    batch.add(Token(0), 0, &[1], true).unwrap();
    assert!(decode(&mut context, &batch).contains("sequence 1"));
    batch.clear();
    batch.add(Token(0), 0, &[0], true).unwrap();
    batch.add(Token(0), 1, &[0], true).unwrap();
    assert!(decode(&mut context, &batch).contains("n_outputs_max is 1"));
    batch.clear();
    for i in 0..65 {
        batch.add(Token(0), i, &[0], false).unwrap();
    }
    assert!(decode(&mut context, &batch).contains("n_batch is 64"));
    // Positions with a hole are llama.cpp's to refuse.
    batch.clear();
    batch.add(Token(0), 5, &[0], false).unwrap();
    batch.add(Token(0), 3, &[0], true).unwrap();
    let error = context.decode(&batch).unwrap_err();
    assert!(matches!(error, Error::Decode { .. }), "{error:?}");
    // After all that it still works.
    batch.clear();
    batch.add(Token(0), 0, &[0], false).unwrap();
    batch.add(Token(1), 1, &[0], true).unwrap();
    context.decode(&batch).unwrap();
    assert_eq!(context.logits(1).unwrap().len(), n_vocab as usize);
    assert_eq!(context.logits(-1).unwrap(), context.logits(1).unwrap());
    for row in [0, 2, -2, i32::MIN, i32::MAX] {
        let error = context.logits(row).unwrap_err();
        assert!(matches!(error, Error::NoLogits { .. }), "{error:?}");
        assert!(Sampler::greedy().sample(&context, row).is_err());
    }
}

#[test]
fn context_parameters_are_checked() {
    let tiny = TinyModel::new("tiny-llama");
    let model = tiny.load(&ModelParams::default());
    let bad = [
        ContextParams {
            n_ctx: 0,
            ..context_params()
        },
        ContextParams {
            n_threads: 0,
            ..context_params()
        },
        ContextParams {
            n_threads_batch: 100_000,
            ..context_params()
        },
        ContextParams {
            n_ubatch: 65,
            ..context_params()
        },
        ContextParams {
            n_seq_max: 1000,
            ..context_params()
        },
    ];
    for params in bad {
        let error = Context::new(&model, &params).unwrap_err();
        assert!(matches!(error, Error::InvalidParameter { .. }), "{error:?}");
    }
    let small = ContextParams {
        n_batch: 1000,
        n_ubatch: 1000,
        ..context_params()
    };
    let context = Context::new(&model, &small).unwrap();
    assert_eq!(
        (context.n_ctx(), context.n_batch(), context.n_ubatch()),
        (256, 256, 256)
    );
}

#[test]
fn sampling_parameters_are_checked() {
    let builder = Sampler::builder;
    for bad in [
        builder().temperature(f32::NAN),
        builder().temperature(-0.1),
        builder().temperature(f32::INFINITY),
        builder().top_p(1.1),
        builder().top_p(f32::NAN),
        builder().min_p(-0.1),
        builder().min_p(f32::NAN),
        builder().top_k(u32::MAX),
    ] {
        let error = bad.clone().build().unwrap_err();
        assert!(matches!(error, Error::InvalidParameter { .. }), "{bad:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    let tiny = TinyModel::new("tiny-llama-untied");
    let model = tiny.load(&ModelParams::default());
    let run = |sampler: &mut Sampler| {
        let mut generation = Generation::new(40);
        generation.ignore_end = true;
        let mut context = context(&model);
        generation
            .run(&mut context, &prompt(5), sampler, go_on)
            .unwrap()
            .tokens
    };
    let with_seed = |seed| {
        Sampler::builder()
            .temperature(1.0)
            .top_k(0)
            .seed(seed)
            .build()
            .unwrap()
    };
    let first = run(&mut with_seed(7));
    assert_eq!(first, run(&mut with_seed(7)));
    assert_ne!(first, run(&mut with_seed(8)));
    assert_eq!(run(&mut with_seed(u32::MAX)), run(&mut with_seed(u32::MAX)));
    let mut again = with_seed(7);
    assert_eq!(first, run(&mut again));
    again.reset();
    assert_eq!(first, run(&mut again));
    let greedy = run(&mut Sampler::greedy());
    for sampler in [
        Sampler::builder().temperature(0.0),
        Sampler::builder().temperature(1e-30),
        Sampler::builder().top_k(1),
    ] {
        assert_eq!(greedy, run(&mut sampler.build().unwrap()));
    }
}

#[test]
fn generation_ends_for_each_reason() {
    let tiny = TinyModel::new("tiny-llama-untied");
    let model = tiny.load(&ModelParams::default());
    let mut context = context(&model);
    let mut sampler = Sampler::greedy();
    let mut generation = Generation::new(3);
    generation.ignore_end = true;

    // A prompt of three batches, continued, equals one that is decoded at once with the answer.
    let prompt = prompt(150);
    let first = generation
        .run(&mut context, &prompt, &mut sampler, go_on)
        .unwrap();
    assert_eq!((first.tokens.len(), first.stop), (3, Stop::Length));
    // The last token was chosen, but not decoded.
    assert_eq!(context.memory_seq_pos_max(0).unwrap(), Some(151));
    let next = generation
        .run(&mut context, &first.tokens[2..], &mut sampler, go_on)
        .unwrap();
    context.clear_kv();
    assert_eq!(context.memory_seq_pos_max(0).unwrap(), None);
    let whole = [&prompt[..], &first.tokens].concat();
    let again = generation
        .run(&mut context, &whole, &mut sampler, go_on)
        .unwrap();
    assert_eq!(again.tokens[0], next.tokens[0]);

    let mut seen = Vec::new();
    context.clear_kv();
    let stopped = generation
        .run(&mut context, &prompt, &mut sampler, |token| {
            seen.push(token);
            ControlFlow::Break(())
        })
        .unwrap();
    assert_eq!((stopped.stop, stopped.tokens), (Stop::Callback, seen));

    context.clear_kv();
    generation.max_new = 1000;
    let full = generation
        .run(&mut context, &prompt, &mut sampler, go_on)
        .unwrap();
    assert_eq!(
        (full.tokens.len(), full.stop),
        (256 - 150 + 1, Stop::ContextFull)
    );
    let error = generation
        .run(&mut context, &prompt, &mut sampler, go_on)
        .unwrap_err();
    assert!(matches!(error, Error::KvCacheFull { .. }), "{error:?}");
    assert!(
        generation
            .run(&mut context, &[], &mut sampler, go_on)
            .is_err()
    );
    generation.sequence = 1;
    assert!(
        generation
            .run(&mut context, &prompt, &mut sampler, go_on)
            .is_err()
    );
    context.clear_kv();
    generation.sequence = 0;
    generation.max_new = 0;
    let none = generation
        .run(&mut context, &prompt, &mut sampler, go_on)
        .unwrap();
    assert_eq!((none.tokens.len(), none.stop), (0, Stop::Length));
}

#[test]
fn the_kv_cache_can_be_cut() {
    let tiny = TinyModel::new("tiny-llama-untied");
    let model = tiny.load(&ModelParams::default());
    let mut context = context(&model);
    let mut sampler = Sampler::greedy();
    let first = generate(&mut context, &prompt(10), &mut sampler, 1, go_on).unwrap();
    assert!(context.memory_seq_rm(0, 9, None).unwrap());
    assert_eq!(context.memory_seq_pos_max(0).unwrap(), Some(8));
    let again = generate(&mut context, &prompt(10)[9..], &mut sampler, 1, go_on).unwrap();
    assert_eq!(first, again);
    assert!(context.memory_seq_rm(1, 0, None).is_err());
    assert!(context.memory_seq_rm(0, u32::MAX, None).is_err());
    assert!(context.memory_seq_pos_max(1).is_err());
}

/// The logits after `tokens`, which follow what sequence `sequence` has.
fn logits_after(context: &mut Context<'_>, sequence: u32, tokens: &[Token]) -> Vec<u32> {
    let next = context.memory_seq_pos_max(sequence).unwrap();
    let first = next.map_or(0, |last| last + 1) as i32;
    for (chunk, tokens) in tokens.chunks(16).enumerate() {
        let mut batch = Batch::new(16, 2);
        for (index, token) in tokens.iter().enumerate() {
            let position = first + (16 * chunk + index) as i32;
            batch
                .add(*token, position, &[sequence], index + 1 == tokens.len())
                .unwrap();
        }
        context.decode(&batch).unwrap();
    }
    let logits = context.logits(-1).unwrap();
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Bit for bit as in the context where it began, also where layers see a window only.
#[test]
fn a_sequence_goes_on_in_another_context() {
    let mut states = Vec::new();
    for shape in ["tiny-llama-untied", "tiny-gpt-oss"] {
        let tiny = TinyModel::new(shape);
        let model = tiny.load(&ModelParams::default());
        let params = ContextParams {
            n_seq_max: 2,
            n_outputs_max: 2,
            kv_unified: true,
            ..context_params()
        };
        let mut first = Context::new(&model, &params).unwrap();
        logits_after(&mut first, 0, &prompt(150));
        let state = first.sequence_state(0).unwrap();
        let expected = logits_after(&mut first, 0, &prompt(7));

        let mut second = Context::new(&model, &params).unwrap();
        second.set_sequence_state(1, &state).unwrap();
        assert_eq!(second.memory_seq_pos_max(1).unwrap(), Some(149), "{shape}");
        assert_eq!(
            logits_after(&mut second, 1, &prompt(7)),
            expected,
            "{shape}"
        );

        // A state in place of another one, and one for which there is no room.
        second.set_sequence_state(1, &state).unwrap();
        assert_eq!(
            logits_after(&mut second, 1, &prompt(7)),
            expected,
            "{shape}"
        );
        let error = second.set_sequence_state(0, &state).unwrap_err();
        assert!(matches!(error, Error::Native { .. }), "{error:?}");
        assert_eq!(second.memory_seq_pos_max(0).unwrap(), None);
        assert!(second.set_sequence_state(2, &state).is_err());
        assert!(second.sequence_state(2).is_err());

        // What is no state of this model empties the sequence.
        second.clear_kv();
        states.push(state);
        let own = states.last().unwrap();
        let cut = [0, 1, 8, 12, 100, own.len() / 2, own.len() - 1].map(|length| &own[..length]);
        let others = states[..states.len() - 1].iter().map(Vec::as_slice);
        let longer = [&own[..], &[0]].concat();
        for bad in cut.into_iter().chain(others).chain([&longer[..]]) {
            logits_after(&mut second, 0, &prompt(3));
            assert!(second.set_sequence_state(0, bad).is_err(), "{}", bad.len());
            assert_eq!(second.memory_seq_pos_max(0).unwrap(), None);
        }
        second.set_sequence_state(0, own).unwrap();
        assert_eq!(
            logits_after(&mut second, 0, &prompt(7)),
            expected,
            "{shape}"
        );
    }
}

#[test]
fn time_and_memory_are_counted() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let model = tiny.load(&selective());
    let mut context = context(&model);
    context.reset_perf();
    generate(&mut context, &prompt(20), &mut Sampler::greedy(), 5, go_on).unwrap();
    let perf = context.perf();
    assert_eq!((perf.n_prompt, perf.n_decode), (20, 4));
    assert!(perf.prompt_ms > 0.0 && perf.decode_ms > 0.0);
    let uses = context.memory_breakdown().unwrap();
    let mapped: u64 = uses
        .iter()
        .filter(|u| u.name == "CPU_Mapped")
        .map(|u| u.model_bytes)
        .sum();
    assert!(mapped >= model.size_bytes(), "{uses:?}");
    assert!(uses.iter().any(|u| u.context_bytes > 0) && uses.iter().any(|u| u.compute_bytes > 0));
}

#[test]
fn on_demand_modes_need_a_mapping() {
    let tiny = TinyModel::new("tiny-llama");
    for load_mode in [LoadMode::None, LoadMode::DirectIo] {
        let params = ModelParams {
            load_mode,
            ..selective()
        };
        let error = Model::load(&Backend::init(), tiny.path(), &params).unwrap_err();
        assert!(error.to_string().contains("mmap"), "{error}");
        let params = ModelParams {
            load_mode,
            ..Default::default()
        };
        let model = tiny.load(&params);
        generate(
            &mut context(&model),
            &prompt(3),
            &mut Sampler::greedy(),
            2,
            go_on,
        )
        .unwrap();
    }
}

#[test]
fn a_changed_file_is_noticed() {
    for prefetch in Prefetch::ALL {
        let tiny = TinyModel::new("tiny-gpt-oss");
        let model = tiny.load(&ModelParams {
            prefetch,
            ..selective()
        });
        let mut context = context(&model);
        model.check_unchanged().unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(tiny.path())
            .unwrap();
        let size = file.metadata().unwrap().len();
        let mut sampler = Sampler::greedy();
        generate(&mut context, &prompt(3), &mut sampler, 2, go_on).unwrap();

        file.set_len(4096).unwrap();
        let error = generate(&mut context, &prompt(3), &mut sampler, 2, go_on).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&size.to_string()) && text.contains("4096"),
            "{text}"
        );
        assert!(matches!(
            model.check_unchanged(),
            Err(Error::ModelChanged { .. })
        ));
    }
    // A copy in memory cannot change.
    let tiny = TinyModel::new("tiny-llama");
    let model = tiny.load(&ModelParams {
        load_mode: LoadMode::None,
        ..Default::default()
    });
    let file = std::fs::File::options()
        .write(true)
        .open(tiny.path())
        .unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(9))
        .unwrap();
    generate(
        &mut context(&model),
        &prompt(3),
        &mut Sampler::greedy(),
        2,
        go_on,
    )
    .unwrap();
    assert!(matches!(
        model.check_unchanged(),
        Err(Error::ModelChanged { .. })
    ));
}

#[test]
fn advice_changes_nothing_but_what_is_resident() {
    for shape in ["tiny-gpt-oss", "tiny-qwen3moe", "tiny-deepseek2"] {
        let tiny = TinyModel::new(shape);
        let model = tiny.load(&ModelParams {
            prefetch: Prefetch::None,
            ..selective()
        });
        let mut generation = Generation::new(12);
        generation.ignore_end = true;
        let plain = generation.run(
            &mut context(&model),
            &prompt(40),
            &mut Sampler::greedy(),
            go_on,
        );
        let advise = Arc::new(Advise::new(&model).unwrap());
        let mut context = context(&model);
        context.set_slice_provider(advise.clone()).unwrap();
        let advised = generation.run(&mut context, &prompt(40), &mut Sampler::greedy(), go_on);
        assert_eq!(plain.unwrap(), advised.unwrap(), "{shape}");
        let counters = advise.counters();
        assert!(
            counters.slices > 0 && counters.slices_resident <= counters.slices,
            "{counters:?}"
        );
    }
}

#[test]
fn advice_asks_for_what_is_missing() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let file = std::fs::File::open(tiny.path()).unwrap();
    file.sync_all().unwrap();
    let model = tiny.load(&ModelParams {
        prefetch: Prefetch::None,
        ..selective()
    });
    let expected = generate(
        &mut context(&model),
        &prompt(9),
        &mut Sampler::greedy(),
        4,
        go_on,
    );
    // Pages that a process has mapped stay; a fresh mapping has none.
    drop(model);
    let model = tiny.load(&ModelParams {
        prefetch: Prefetch::None,
        ..selective()
    });
    let advise = Arc::new(Advise::new(&model).unwrap());
    let mut context = context(&model);
    context.set_slice_provider(advise.clone()).unwrap();
    // SAFETY: advice about an open file.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let advised = generate(&mut context, &prompt(9), &mut Sampler::greedy(), 4, go_on);
    assert_eq!(expected.unwrap(), advised.unwrap());
    let counters = advise.counters();
    if counters.advised_bytes == 0 {
        println!("skipped: this file system keeps the pages ({counters:?})");
        return;
    }
    assert!(counters.advise_calls > 0, "{counters:?}");
    assert!(counters.slices_resident < counters.slices, "{counters:?}");
    assert!(
        counters.advised_bytes <= 4 * model.size_bytes(),
        "{counters:?}"
    );
}

#[test]
fn chat_templates_that_are_not_known_say_so() {
    let tiny = TinyModel::new("tiny-llama");
    let model = tiny.load(&ModelParams {
        vocab_only: true,
        ..Default::default()
    });
    assert_eq!(model.chat_template(), None);
    let message = [ChatMessage::new("user", "hi")];
    let error = model.apply_chat_template(&message, true).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn real_models_know_a_capital() {
    for name in ["smollm2-135m", "qwen2.5-coder-0.5b"] {
        let Some(path) = real_model(name) else {
            continue;
        };
        for prefetch in Prefetch::ALL {
            let params = ModelParams {
                prefetch,
                ..Default::default()
            };
            let model = Model::load(&Backend::init(), &path, &params).unwrap();
            let vocab = model.vocab();
            let prompt = vocab
                .tokenize("The capital of Germany is", true, false)
                .unwrap();
            let mut text = String::new();
            generate(
                &mut context(&model),
                &prompt,
                &mut Sampler::greedy(),
                3,
                |token| {
                    text += &String::from_utf8_lossy(&vocab.piece(token, false));
                    ControlFlow::Continue(())
                },
            )
            .unwrap();
            assert!(text.contains("Berlin"), "{name} {prefetch}: {text}");

            let messages = [
                ChatMessage::new("system", "Be short."),
                ChatMessage::new("user", "h\u{f6}"),
            ];
            let chat = model.apply_chat_template(&messages, true).unwrap();
            assert!(
                chat.contains("Be short.") && chat.contains("h\u{f6}"),
                "{chat}"
            );
            assert!(chat.ends_with("<|im_start|>assistant\n"), "{chat}");
            let nul = [ChatMessage::new("user", "a\0b")];
            assert!(model.apply_chat_template(&nul, true).is_err());
        }
    }
}
