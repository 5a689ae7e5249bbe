// Decodes the same block of tokens again and again, when told to: a program whose speed two builds of llama.cpp can be compared by.
//
// Nothing but llama.h's own functions is used, so that it builds against the unpatched tree and against the patched one. `bench trace-cost`
// starts both and lets them take turns; scripts/count-instructions.sh counts their instructions.
//
// usage: blocks MODEL N_TOKENS N_THREADS
//
// Each line of standard input is answered with a line: the nanoseconds that N_TOKENS tokens took, each a decode call, from an empty KV cache.
#include "llama.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>

static void fail(const char * what) {
    fprintf(stderr, "blocks: %s\n", what);
    exit(1);
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fail("usage: blocks MODEL N_TOKENS N_THREADS");
    }
    const int n_tokens  = atoi(argv[2]);
    const int n_threads = atoi(argv[3]);
    if (n_tokens < 1 || n_threads < 1) {
        fail("N_TOKENS and N_THREADS must be at least 1");
    }

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();

    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers    = 0;
    mparams.load_mode       = LLAMA_LOAD_MODE_MMAP;
    mparams.lazy_mode       = LLAMA_LAZY_MODE_OFF;
    mparams.use_extra_bufts = false;
    llama_model * model = llama_model_load_from_file(argv[1], mparams);
    if (model == nullptr) {
        fail("cannot load the model");
    }

    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx           = n_tokens;
    cparams.n_batch         = 1;
    cparams.n_ubatch        = 1;
    cparams.n_threads       = n_threads;
    cparams.n_threads_batch = n_threads;
    cparams.swa_full        = false;
    llama_context * ctx = llama_init_from_model(model, cparams);
    if (ctx == nullptr) {
        fail("cannot make a context");
    }
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

    llama_batch batch = llama_batch_init(1, 0, 1);
    batch.n_tokens     = 1;
    batch.n_seq_id[0]  = 1;
    batch.seq_id[0][0] = 0;
    batch.logits[0]    = 1;

    char line[64];
    while (fgets(line, sizeof(line), stdin) != nullptr) {
        llama_memory_clear(llama_get_memory(ctx), false);
        const auto begin = std::chrono::steady_clock::now();
        for (int pos = 0; pos < n_tokens; pos++) {
            // The tokens that the Rust program decodes, too.
            batch.token[0] = (llama_token) ((pos * 7919u + 1u) % (uint32_t) n_vocab);
            batch.pos[0]   = pos;
            if (llama_decode(ctx, batch) != 0) {
                fail("llama_decode");
            }
            llama_synchronize(ctx);
        }
        const auto end = std::chrono::steady_clock::now();
        printf("%lld\n", (long long) std::chrono::duration_cast<std::chrono::nanoseconds>(end - begin).count());
        fflush(stdout);
    }

    llama_batch_free(batch);
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
