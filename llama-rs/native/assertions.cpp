// ggml ends the process when one of its assertions fails. While a model is loaded or a graph is only built, everything
// happens on the calling thread and inside try blocks of llama.cpp and of the shim, so there the assertion can be an
// exception, and the call fails with its text. In a running graph it cannot: the other threads would wait forever in a
// barrier for the one that left.

#include <cstdio>
#include <stdexcept>

extern "C" {

typedef void (*ggml_abort_callback_t)(const char * message);
ggml_abort_callback_t ggml_set_abort_callback(ggml_abort_callback_t callback);

// Whether assertions of this thread throw.
static thread_local bool throws = false;

// ggml aborts when this returns.
static void on_abort(const char * message) {
    if (throws) {
        throw std::runtime_error(message);
    }
    fprintf(stderr, "%s\n", message);
}

void llama_rs_assertions_install(void) {
    ggml_set_abort_callback(on_abort);
}

// Sets whether assertions of this thread throw; returns whether they did.
bool llama_rs_assertions_throw(bool value) {
    const bool before = throws;
    throws = value;
    return before;
}

}
