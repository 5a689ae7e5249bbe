// The measured process of the rows `stock`: llama.cpp without patches, used through llama.h alone.
//
// Does what src/worker does, with the same calls in the same order, and answers in the same protocol (src/protocol.rs): a JSON object a
// line. Arguments are KEY=VALUE; src/stock.rs writes them. Built by scripts/native.sh --unpatched.
#include "llama.h"

#include "sha256.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>
#include <vector>

static uint64_t now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

static const uint64_t started_ns = now_ns();

// ---- arguments and output ----

struct arguments {
    std::map<std::string, std::string> values;

    const std::string & text(const char * key) const {
        const auto found = values.find(key);
        if (found == values.end()) {
            throw std::runtime_error(std::string("argument missing: ") + key);
        }
        return found->second;
    }
    uint64_t number(const char * key) const { return strtoull(text(key).c_str(), nullptr, 10); }
    bool has(const char * key) const { return values.count(key) != 0; }
};

static std::string quoted(const std::string & text) {
    std::string out = "\"";
    for (const unsigned char c : text) {
        char escaped[8];
        if (c == '"' || c == '\\' || c < 0x20) {
            snprintf(escaped, sizeof(escaped), "\\u%04x", c);
            out += escaped;
        } else {
            out += (char) c;
        }
    }
    return out + "\"";
}

template <typename T> static std::string list(const std::vector<T> & values) {
    std::ostringstream out;
    out << '[';
    for (size_t i = 0; i < values.size(); i++) {
        out << (i == 0 ? "" : ",") << values[i];
    }
    out << ']';
    return out.str();
}

static void send(const std::string & line) {
    if (printf("%s\n", line.c_str()) < 0 || fflush(stdout) != 0) {
        _exit(2); // the parent is gone
    }
}

// ---- counters ----

struct usage {
    uint64_t cpu_ns, faults_major, faults_minor;
};

static usage own_usage() {
    rusage raw = {};
    getrusage(RUSAGE_SELF, &raw);
    const auto ns = [](const timeval & time) { return ((uint64_t) time.tv_sec * 1000000 + time.tv_usec) * 1000; };
    return { ns(raw.ru_utime) + ns(raw.ru_stime), (uint64_t) raw.ru_majflt, (uint64_t) raw.ru_minflt };
}

// Bytes that this process caused to be fetched from storage; false where the kernel does not count them.
static bool own_read_bytes(uint64_t & bytes) {
    static const int io = open("/proc/self/io", O_RDONLY | O_CLOEXEC);
    char text[512];
    const ssize_t n = io < 0 ? -1 : pread(io, text, sizeof(text) - 1, 0);
    if (n <= 0) {
        return false;
    }
    text[n] = 0;
    const char * found = strstr(text, "\nread_bytes: ");
    bytes = found ? strtoull(found + strlen("\nread_bytes: "), nullptr, 10) : 0;
    return found != nullptr;
}

static uint64_t probe_ns = 0; // spent on looking at itself

static void mark(const char * point) {
    const uint64_t now  = now_ns();
    const usage    used = own_usage();
    uint64_t bytes = 0;
    const std::string read = own_read_bytes(bytes) ? std::to_string(bytes) : "null";
    std::ostringstream out;
    out << "{\"event\":\"mark\",\"point\":\"" << point << "\",\"at_ns\":" << (strcmp(point, "start") == 0 ? started_ns : now)
        << ",\"probe_ns\":" << probe_ns << ",\"read_bytes\":" << read << ",\"faults_major\":" << used.faults_major
        << ",\"faults_minor\":" << used.faults_minor << "}";
    send(out.str());
    probe_ns += now_ns() - now;
}

// ---- routing ----

// Overwrites the experts that each layer picked. The scheduler stops after the picks, before anything reads an expert.
struct routing {
    bool                 is_own = false;
    std::vector<uint8_t> experts; // [tokens][layers][n_used]
    std::vector<int>     index;   // by layer of the model: its place in `experts`, or -1
    int                  n_layers = 0, n_used = 0;

    size_t              done = 0, first = 0, n_ubatch = 1; // tokens before this batch; start of the ubatch in the batch
    std::vector<int8_t> outputs;                           // of the batch
    int                 last = -1;
    std::string         error;

    explicit routing(const arguments & args) : is_own(args.text("routing") == "own") {
        if (is_own) {
            return;
        }
        FILE * file = fopen(args.text("routing_file").c_str(), "rb");
        if (file == nullptr) {
            throw std::runtime_error("the routing window cannot be opened");
        }
        uint8_t buffer[4096];
        for (size_t n; (n = fread(buffer, 1, sizeof(buffer), file)) > 0;) {
            experts.insert(experts.end(), buffer, buffer + n);
        }
        fclose(file);
        n_used = (int) args.number("routing_used");
        std::istringstream layers(args.text("routing_layers"));
        for (std::string layer; std::getline(layers, layer, ',');) {
            const size_t number = strtoull(layer.c_str(), nullptr, 10);
            index.resize(std::max(index.size(), number + 1), -1);
            index[number] = n_layers++;
        }
    }

    void begin(const llama_batch & batch, size_t ubatch) {
        outputs.assign(batch.logits, batch.logits + batch.n_tokens);
        n_ubatch = ubatch;
        first    = 0;
        last     = -1;
    }

    void end() {
        done += outputs.size();
        if (!error.empty()) {
            throw std::runtime_error(error);
        }
    }

    void route(ggml_tensor * picks, int layer) {
        if (layer <= last) {
            first += n_ubatch;
        }
        last = layer;
        // The last layer computes only the tokens that want logits.
        const size_t        end = std::min(first + n_ubatch, outputs.size());
        std::vector<size_t> rows;
        for (size_t token = first; token < end; token++) {
            rows.push_back(token);
        }
        if (rows.size() != (size_t) picks->ne[1]) {
            rows.erase(std::remove_if(rows.begin(), rows.end(), [&](size_t token) { return outputs[token] == 0; }), rows.end());
        }
        const int place = layer < (int) index.size() ? index[layer] : -1;
        if (rows.size() != (size_t) picks->ne[1] || picks->ne[0] != n_used || picks->type != GGML_TYPE_I32 || place < 0) {
            error = "the picks of layer " + std::to_string(layer) + " have another shape than the routing window";
            return;
        }
        for (size_t row = 0; row < rows.size(); row++) {
            const size_t start = ((done + rows[row]) * n_layers + place) * n_used;
            if (start + n_used > experts.size()) {
                error = "the routing window has fewer tokens than the run";
                return;
            }
            int32_t * to = (int32_t *) ((char *) picks->data + row * picks->nb[1]);
            std::copy_n(&experts[start], n_used, to);
        }
    }
};

static bool on_node(ggml_tensor * node, bool is_question, void * user_data) {
    static const char prefix[] = "ffn_moe_topk-";
    const bool is_picks = node->op == GGML_OP_VIEW && strncmp(node->name, prefix, sizeof(prefix) - 1) == 0;
    if (is_question) {
        return is_picks;
    }
    routing & router = *(routing *) user_data;
    if (is_picks && !router.is_own && router.error.empty()) {
        router.route(node, atoi(node->name + sizeof(prefix) - 1));
    }
    return true;
}

// ---- the run ----

static std::string log_errors; // of llama.cpp

struct run {
    const arguments &        args;
    llama_context *          ctx;
    const llama_vocab *      vocab;
    routing *                router;
    int32_t                  n_vocab;
    std::vector<std::string> after;
    sha256                   tokens_digest, logits_digest;
    size_t                   chosen = 0;

    void decode(llama_batch & batch) {
        if (router) {
            router->begin(batch, llama_n_ubatch(ctx));
        }
        const int status = llama_decode(ctx, batch);
        if (status != 0) {
            throw std::runtime_error("llama_decode: status " + std::to_string(status) + ": " + log_errors);
        }
        llama_synchronize(ctx);
        if (router) {
            router->end();
        }
    }

    llama_token choose() {
        const float * logits = llama_get_logits_ith(ctx, -1);
        llama_token   best   = 0;
        for (int32_t i = 0; i < n_vocab; i++) {
            if (std::isnan(logits[i])) {
                throw std::runtime_error("the logit of token " + std::to_string(i) + " is not a number");
            }
            best = logits[i] > logits[best] ? i : best;
        }
        const uint64_t begin = now_ns();
        tokens_digest.add(&best, sizeof(best));
        logits_digest.add(logits, sizeof(float) * n_vocab);
        after.push_back(quoted(sha256(logits_digest).hex16()));
        probe_ns += now_ns() - begin;
        if (++chosen == 1) {
            mark("first_token");
        } else if (chosen == 16) {
            mark("token16");
        }
        return best;
    }

    // The first tokens of the text, repeated; ids spread over the vocabulary for a model without a tokenizer.
    std::vector<llama_token> prompt() const {
        const size_t             n = args.number("n_prompt");
        std::vector<llama_token> tokens;
        if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
            for (uint32_t i = 0; i < n; i++) {
                tokens.push_back((llama_token) (i * 7919u % (uint32_t) std::max(n_vocab, 1)));
            }
        }
        const std::string & text = args.text("prompt");
        while (tokens.size() < n) {
            std::vector<llama_token> more(text.size() + 8);
            const int32_t found = llama_tokenize(vocab, text.data(), (int32_t) text.size(), more.data(), (int32_t) more.size(), tokens.empty(), false);
            if (found <= 0) {
                throw std::runtime_error("the prompt cannot be tokenized");
            }
            tokens.insert(tokens.end(), more.begin(), more.begin() + found);
        }
        tokens.resize(n);
        return tokens;
    }

    // The fields of the outcome that are about computing.
    std::string compute() {
        const std::vector<llama_token> tokens  = prompt();
        const int32_t                  n_batch = (int32_t) llama_n_batch(ctx);
        llama_batch batch = llama_batch_init(n_batch, 0, 1);
        const auto  add   = [&](llama_token token, int32_t pos, bool output) {
            const int32_t i = batch.n_tokens++;
            batch.token[i] = token, batch.pos[i] = pos, batch.n_seq_id[i] = 1, batch.seq_id[i][0] = 0, batch.logits[i] = output;
        };
        llama_token token = std::max(llama_vocab_bos(vocab), 0);
        std::ostringstream out;
        int32_t position = 0;
        out << "\"prompt_ns\":";
        if (tokens.empty()) {
            out << "null";
        } else {
            uint64_t prompt_ns = 0;
            for (uint64_t pass = 0; pass < args.number("n_prompts"); pass++) {
                llama_memory_clear(llama_get_memory(ctx), false);
                position = 0;
                const uint64_t begin = now_ns();
                while (position < (int32_t) tokens.size()) {
                    batch.n_tokens = 0;
                    while (batch.n_tokens < n_batch && position < (int32_t) tokens.size()) {
                        add(tokens[position], position, position + 1 == (int32_t) tokens.size());
                        position++;
                    }
                    decode(batch);
                }
                prompt_ns = now_ns() - begin;
            }
            out << prompt_ns;
            token = choose();
        }

        const uint64_t limit = args.number("decode_limit_ns");
        std::vector<uint64_t> wall, cpu, read, major, minor;
        const auto steps = [&](uint64_t n_tokens) {
            uint64_t spent = 0;
            while (wall.size() < n_tokens && (limit == 0 || spent < limit)) {
                uint64_t read_before = 0, read_after = 0;
                const bool  counted = own_read_bytes(read_before);
                const usage before  = own_usage();
                const uint64_t begin = now_ns();
                batch.n_tokens = 0;
                add(token, position++, true);
                decode(batch);
                wall.push_back(now_ns() - begin);
                spent += wall.back();
                const usage used = own_usage();
                cpu.push_back(used.cpu_ns - before.cpu_ns);
                major.push_back(used.faults_major - before.faults_major);
                minor.push_back(used.faults_minor - before.faults_minor);
                if (counted && own_read_bytes(read_after)) {
                    read.push_back(read_after - read_before);
                }
                token = choose();
            }
        };
        steps(args.number("n_warm_up"));
        out << ",\"warm_up_ns\":" << list(wall);
        for (auto * counters : { &wall, &cpu, &read, &major, &minor }) {
            counters->clear();
        }
        mark("counted");
        const uint64_t loop = now_ns();
        steps(args.number("n_gen"));
        out << ",\"decode_loop_ns\":" << now_ns() - loop << ",\"step_ns\":" << list(wall) << ",\"steps\":{\"cpu_ns\":" << list(cpu)
            << ",\"read_bytes\":" << list(read) << ",\"faults_major\":" << list(major) << ",\"faults_minor\":" << list(minor)
            << "},\"fingerprint\":{\"tokens\":" << quoted(tokens_digest.hex16()) << ",\"logits\":" << quoted(logits_digest.hex16())
            << ",\"after\":" << list(after) << "}";
        llama_batch_free(batch);
        return out.str();
    }
};

static llama_load_mode load_mode(const std::string & name) {
    return name == "mmap" ? LLAMA_LOAD_MODE_MMAP : name == "none" ? LLAMA_LOAD_MODE_NONE : LLAMA_LOAD_MODE_DIRECT_IO;
}

static void work(const arguments & args) {
    if (args.has("cgroup_procs")) {
        const int procs = open(args.text("cgroup_procs").c_str(), O_WRONLY | O_CLOEXEC);
        if (procs < 0 || write(procs, "0", 1) != 1) {
            throw std::runtime_error("cannot enter the memory group " + args.text("cgroup_procs"));
        }
        close(procs);
    }
    mark("start");
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            log_errors += text;
        }
    }, nullptr);
    llama_backend_init();
    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers    = 0;
    mparams.load_mode       = load_mode(args.text("load_mode"));
    mparams.lazy_mode       = LLAMA_LAZY_MODE_OFF;
    mparams.use_extra_bufts = args.number("repack") != 0;
    const uint64_t begin = now_ns();
    llama_model *  model = llama_model_load_from_file(args.text("model").c_str(), mparams);
    const uint64_t load  = now_ns() - begin;
    if (model == nullptr) {
        throw std::runtime_error("cannot load the model: " + log_errors);
    }
    mark("loaded");

    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx           = std::max<uint32_t>(args.number("n_prompt") + args.number("n_warm_up") + args.number("n_gen"), 1);
    cparams.n_batch         = std::min<uint32_t>(std::max<uint32_t>(args.number("n_batch"), 1), cparams.n_ctx);
    cparams.n_ubatch        = std::min<uint32_t>(std::max<uint32_t>(args.number("n_ubatch"), 1), cparams.n_batch);
    cparams.n_seq_max       = 1;
    cparams.n_outputs_max   = 1;
    cparams.n_threads       = (int32_t) args.number("n_threads");
    cparams.n_threads_batch = cparams.n_threads;
    cparams.swa_full        = false;
    cparams.no_perf         = false;
    cparams.offload_kqv     = false;
    cparams.op_offload      = false;
    const std::string & fa  = args.text("flash_attn");
    cparams.flash_attn_type = fa == "on" ? LLAMA_FLASH_ATTN_TYPE_ENABLED : fa == "off" ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_AUTO;
    routing * router = args.has("routing") ? new routing(args) : nullptr;
    if (router) {
        cparams.cb_eval           = on_node;
        cparams.cb_eval_user_data = router;
    }
    llama_context * ctx = llama_init_from_model(model, cparams);
    if (ctx == nullptr) {
        throw std::runtime_error("cannot create a context: " + log_errors);
    }

    const llama_vocab * vocab = llama_model_get_vocab(model);
    run this_run = { args, ctx, vocab, router, llama_vocab_n_tokens(vocab), {}, {}, {} };
    const std::string computed = this_run.compute();
    mark("end");
    char description[256];
    llama_model_desc(model, description, sizeof(description));
    std::ostringstream out;
    out << "{\"event\":\"done\",\"model\":{\"description\":" << quoted(description) << ",\"size_bytes\":" << llama_model_size(model)
        << ",\"n_params\":" << llama_model_n_params(model) << ",\"n_vocab\":" << this_run.n_vocab << ",\"n_layer\":" << llama_model_n_layer(model)
        << "},\"build\":{\"llama_build\":" << quoted(args.text("build")) << ",\"ggml_version\":" << quoted(ggml_version())
        << ",\"patch_set_digest\":\"\",\"cpu_features\":" << quoted(llama_print_system_info()) << "},\"load_ns\":" << load << "," << computed
        << ",\"resident_after_load\":null,\"resident_end\":null,\"routing_checked\":null,\"n_ctx\":" << llama_n_ctx(ctx)
        << ",\"advise\":null,\"buffers\":[]}";
    send(out.str());
    // The parent reads this process's memory figures before it lets it go.
    getchar();
    _exit(0);
}

int main(int argc, char ** argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); // a parent that is killed cannot end its worker any more
    arguments args;
    for (int i = 1; i < argc; i++) {
        const std::string argument = argv[i];
        const size_t      equals   = argument.find('=');
        if (equals != std::string::npos) {
            args.values[argument.substr(0, equals)] = argument.substr(equals + 1);
        }
    }
    try {
        work(args);
    } catch (const std::exception & failure) {
        send("{\"event\":\"error\",\"message\":" + quoted(failure.what()) + "}");
        _exit(2);
    }
    return 0;
}
