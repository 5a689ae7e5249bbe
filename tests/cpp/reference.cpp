// The logits of a model, computed with nothing but llama.h's own functions.
//
// Built against the unpatched tree (and, to check the program itself, against the patched one) by
// `cargo run -p llama-build -- reference`, and compared with llama-rs by tests/unpatched.rs.
//
// usage: reference MODEL LOGITS_OUT N_PREDICT N_THREADS USE_EXTRA_BUFTS TOKEN [TOKEN ...]
//    or: reference MODEL LOGITS_OUT N_PREDICT N_THREADS USE_EXTRA_BUFTS --text TEXT
//
// LOGITS_OUT: f32 [n_prompt + n_predict][n_vocab], host byte order: a row for each token of the prompt, then one for each generated token but
// the last. The generated ids (greedy, the lowest id wins a tie) are printed on one line.
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static void fail(const char * what) {
    fprintf(stderr, "reference: %s\n", what);
    exit(1);
}

static void decode(llama_context * ctx, const std::vector<llama_token> & tokens, int32_t pos, int32_t n_batch, int32_t n_vocab, FILE * out, llama_token & next) {
    llama_batch batch = llama_batch_init(n_batch, 0, 1);
    for (size_t first = 0; first < tokens.size(); first += n_batch) {
        const int32_t n = (int32_t) (tokens.size() - first < (size_t) n_batch ? tokens.size() - first : (size_t) n_batch);
        batch.n_tokens = n;
        for (int32_t i = 0; i < n; i++) {
            batch.token   [i]    = tokens[first + i];
            batch.pos     [i]    = pos++;
            batch.n_seq_id[i]    = 1;
            batch.seq_id  [i][0] = 0;
            batch.logits  [i]    = 1;
        }
        if (llama_decode(ctx, batch) != 0) {
            fail("llama_decode");
        }
        for (int32_t i = 0; i < n; i++) {
            const float * logits = llama_get_logits_ith(ctx, i);
            if (fwrite(logits, sizeof(float), n_vocab, out) != (size_t) n_vocab) {
                fail("write");
            }
            next = 0;
            for (int32_t t = 1; t < n_vocab; t++) {
                if (logits[t] > logits[next]) {
                    next = t;
                }
            }
        }
    }
    llama_batch_free(batch);
}

int main(int argc, char ** argv) {
    if (argc < 7) {
        fail("usage: MODEL LOGITS_OUT N_PREDICT N_THREADS USE_EXTRA_BUFTS TOKEN... | --text TEXT");
    }
    const int     n_predict = atoi(argv[3]);
    const int     n_threads = atoi(argv[4]);
    const int32_t n_batch   = 64;

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();

    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers    = 0;
    mparams.load_mode       = LLAMA_LOAD_MODE_MMAP;
    mparams.lazy_mode       = LLAMA_LAZY_MODE_OFF;
    mparams.use_extra_bufts = atoi(argv[5]) != 0;
    llama_model * model = llama_model_load_from_file(argv[1], mparams);
    if (model == nullptr) {
        fail("load");
    }

    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx           = 512;
    cparams.n_batch         = n_batch;
    cparams.n_ubatch        = n_batch;
    cparams.n_outputs_max   = n_batch;
    cparams.n_threads       = n_threads;
    cparams.n_threads_batch = n_threads;
    cparams.swa_full        = false;
    llama_context * ctx = llama_init_from_model(model, cparams);
    if (ctx == nullptr) {
        fail("context");
    }

    const llama_vocab * vocab   = llama_model_get_vocab(model);
    const int32_t       n_vocab = llama_vocab_n_tokens(vocab);

    std::vector<llama_token> tokens;
    if (strcmp(argv[6], "--text") == 0) {
        tokens.resize(n_batch);
        const int32_t n = llama_tokenize(vocab, argv[7], (int32_t) strlen(argv[7]), tokens.data(), n_batch, true, false);
        if (n < 0) {
            fail("tokenize");
        }
        tokens.resize(n);
    } else {
        for (int i = 6; i < argc; i++) {
            tokens.push_back(atoi(argv[i]));
        }
    }

    FILE * out = fopen(argv[2], "wb");
    if (out == nullptr) {
        fail("open output");
    }
    llama_token next = 0;
    decode(ctx, tokens, 0, n_batch, n_vocab, out, next);
    for (int i = 0; i < n_predict; i++) {
        printf(i == 0 ? "%d" : " %d", next);
        if (i + 1 < n_predict) {
            decode(ctx, { next }, (int32_t) tokens.size() + i, n_batch, n_vocab, out, next);
        }
    }
    printf("\n");
    if (fclose(out) != 0) {
        fail("close output");
    }
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
