// Prints what an unpatched llama.cpp generates, greedily, in the form of `faultline run --raw --temp 0 --ids`.
// scripts/compare-unpatched.sh builds it against the pinned tree as upstream ships it and compares the two.
//
// usage: greedy_ids MODEL PROMPT N_PREDICT N_CTX N_THREADS REPACK(0|1)

#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static void fail(const char * what) {
    fprintf(stderr, "greedy_ids: %s\n", what);
    exit(1);
}

static void print_ids(const char * label, const std::vector<llama_token> & ids) {
    printf("%s", label);
    for (llama_token id : ids) {
        printf(" %d", id);
    }
    printf("\n");
}

static std::vector<llama_token> tokenize(const llama_vocab * vocab, const std::string & text) {
    std::vector<llama_token> ids(text.size() + 2);
    const int32_t n_ids = llama_tokenize(vocab, text.c_str(), (int32_t) text.size(), ids.data(), (int32_t) ids.size(),
                                         /* add_special = */ true, /* parse_special = */ true);
    if (n_ids <= 0) {
        fail("cannot tokenize the prompt");
    }
    ids.resize(n_ids);
    return ids;
}

int main(int argc, char ** argv) {
    if (argc != 7) {
        fail("usage: greedy_ids MODEL PROMPT N_PREDICT N_CTX N_THREADS REPACK");
    }
    const int32_t n_predict = atoi(argv[3]);

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();

    llama_model_params mparams = llama_model_default_params();
    mparams.use_extra_bufts = strcmp(argv[6], "1") == 0;
    llama_model * model = llama_model_load_from_file(argv[1], mparams);
    if (!model) {
        fail("cannot load the model");
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);

    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx           = atoi(argv[4]);
    cparams.n_threads       = atoi(argv[5]);
    cparams.n_threads_batch = atoi(argv[5]);
    cparams.n_batch         = 512;
    cparams.n_ubatch        = 512;
    cparams.swa_full        = false;
    llama_context * ctx = llama_init_from_model(model, cparams);
    if (!ctx) {
        fail("cannot create a context");
    }

    std::vector<llama_token> prompt = tokenize(vocab, argv[2]);
    print_ids("prompt", prompt);

    std::vector<llama_token> generated;
    llama_batch batch = llama_batch_get_one(prompt.data(), (int32_t) prompt.size());
    llama_token token = 0;
    while ((int32_t) generated.size() < n_predict) {
        if (llama_decode(ctx, batch) != 0) {
            fail("cannot decode");
        }
        const float * logits = llama_get_logits_ith(ctx, -1);
        token = (llama_token) (std::max_element(logits, logits + llama_vocab_n_tokens(vocab)) - logits);
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        generated.push_back(token);
        batch = llama_batch_get_one(&token, 1);
    }
    print_ids("generated", generated);

    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
