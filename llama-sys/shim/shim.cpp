#include "shim.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "llama-adapter.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-graph.h"
#include "llama-model.h"

#include <algorithm>
#include <exception>
#include <new>
#include <stdexcept>
#include <string_view>
#include <vector>

// Fixed storage: reporting that memory ran out must not need memory.
static thread_local char last_error[1024] = "";

static int32_t fail(int32_t status, const char * message) {
    size_t i = 0;
    for (; message[i] != '\0' && i + 1 < sizeof(last_error); i++) {
        last_error[i] = message[i];
    }
    // A cut character would not be UTF-8.
    if (message[i] != '\0') {
        while (i > 0 && (static_cast<unsigned char>(message[i]) & 0xC0) == 0x80) {
            i--;
        }
    }
    last_error[i] = '\0';
    return status;
}

// Runs `call`, which returns a status, and turns every exception into one.
template <typename F> static int32_t guarded(F && call) noexcept {
    try {
        return call();
    } catch (const std::bad_alloc &) {
        return fail(FAULTLINE_ERR_MEMORY, "out of memory");
    } catch (const std::length_error & err) {
        return fail(FAULTLINE_ERR_MEMORY, err.what());
    } catch (const std::exception & err) {
        return fail(FAULTLINE_ERR_EXCEPTION, err.what());
    } catch (...) {
        return fail(FAULTLINE_ERR_EXCEPTION, "unknown C++ exception");
    }
}

const char * faultline_last_error(void) {
    return last_error;
}

int32_t faultline_abi_version(void) {
    return llama_lazy_abi_v3();
}

// Weights that were only counted lie in a buffer without functions, so that nobody has told them which kernels read them; the size
// of the work buffer depends on those. A small buffer of the same type tells them.
static void tell_kernels(const llama_model * model) {
    for (const auto & entry : llama_internal_get_tensor_map(model)) {
        ggml_tensor * tensor = entry.second;
        ggml_backend_buffer_type_t type = tensor->buffer ? ggml_backend_buffer_get_type(tensor->buffer) : nullptr;
        if (type == nullptr || type == ggml_backend_cpu_buffer_type()) {
            continue;
        }
        ggml_backend_buffer_ptr buffer { ggml_backend_buft_alloc_buffer(type, ggml_backend_buft_get_alignment(type)) };
        if (buffer) {
            ggml_backend_buffer_init_tensor(buffer.get(), tensor);
        }
    }
}

int32_t faultline_model_load(
        const char ** paths, size_t n_paths, llama_model_params params, const llama_model_mapping_i * mapping, void * user_data,
        llama_model ** model) {
    return guarded([&]() -> int32_t {
        llama_model * loaded = llama_model_load_from_splits_mapped(paths, n_paths, params, mapping, user_data);
        if (loaded == nullptr) {
            return fail(FAULTLINE_ERR_NULL, "the model could not be loaded");
        }
        if (params.no_alloc) {
            tell_kernels(loaded);
        }
        *model = loaded;
        return FAULTLINE_OK;
    });
}

int32_t faultline_context_init(llama_model * model, llama_context_params params, llama_context ** context) {
    return guarded([&]() -> int32_t {
        llama_context * created = llama_init_from_model(model, params);
        if (created == nullptr) {
            return fail(FAULTLINE_ERR_NULL, "the context could not be created");
        }
        *context = created;
        return FAULTLINE_OK;
    });
}

int32_t faultline_adapter_lora_load(llama_model * model, const char * path, llama_adapter_lora ** adapter) {
    return guarded([&]() -> int32_t {
        llama_adapter_lora * loaded = llama_adapter_lora_init(model, path);
        if (loaded == nullptr) {
            return fail(FAULTLINE_ERR_NULL, "the adapter could not be loaded");
        }
        // llama.cpp leaves this unset, so that an observer could not tell these tensors from results of operations.
        for (const auto & buffer : loaded->bufs) {
            ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        }
        *adapter = loaded;
        return FAULTLINE_OK;
    });
}

int32_t faultline_set_adapters_lora(llama_context * context, llama_adapter_lora ** adapters, size_t n_adapters, float * scales) {
    return guarded([&]() -> int32_t {
        llama_set_adapters_lora(context, adapters, n_adapters, scales);
        context->sched_reserve();
        return FAULTLINE_OK;
    });
}

int32_t faultline_decode(llama_context * context, llama_batch batch, int32_t * result) {
    return guarded([&]() -> int32_t {
        *result = llama_decode(context, batch);
        return FAULTLINE_OK;
    });
}

int32_t faultline_encode(llama_context * context, llama_batch batch, int32_t * result) {
    return guarded([&]() -> int32_t {
        *result = llama_encode(context, batch);
        return FAULTLINE_OK;
    });
}

int32_t faultline_synchronize(llama_context * context) {
    return guarded([&]() -> int32_t {
        llama_synchronize(context);
        return FAULTLINE_OK;
    });
}

int32_t faultline_memory_clear(llama_context * context, bool data) {
    return guarded([&]() -> int32_t {
        llama_memory_clear(llama_get_memory(context), data);
        return FAULTLINE_OK;
    });
}

int32_t faultline_memory_seq_rm(llama_context * context, llama_seq_id seq_id, llama_pos p0, llama_pos p1, bool * removed) {
    return guarded([&]() -> int32_t {
        *removed = llama_memory_seq_rm(llama_get_memory(context), seq_id, p0, p1);
        return FAULTLINE_OK;
    });
}

int32_t faultline_memory_seq_cp(llama_context * context, llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) {
    return guarded([&]() -> int32_t {
        llama_memory_seq_cp(llama_get_memory(context), from, to, p0, p1);
        return FAULTLINE_OK;
    });
}

int32_t faultline_state_seq_get_size(llama_context * context, llama_seq_id seq_id, size_t * result) {
    return guarded([&]() -> int32_t {
        *result = llama_state_seq_get_size(context, seq_id);
        return FAULTLINE_OK;
    });
}

int32_t faultline_state_seq_get_data(llama_context * context, uint8_t * data, size_t size, llama_seq_id seq_id, size_t * result) {
    return guarded([&]() -> int32_t {
        *result = llama_state_seq_get_data(context, data, size, seq_id);
        return FAULTLINE_OK;
    });
}

int32_t faultline_state_seq_set_data(
        llama_context * context, const uint8_t * data, size_t size, llama_seq_id seq_id, size_t * result) {
    return guarded([&]() -> int32_t {
        *result = llama_state_seq_set_data(context, data, size, seq_id);
        return FAULTLINE_OK;
    });
}

int32_t faultline_tokenize(
        const llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens, int32_t n_tokens_max,
        bool add_special, bool parse_special, int32_t * result) {
    return guarded([&]() -> int32_t {
        *result = llama_tokenize(vocab, text, text_len, tokens, n_tokens_max, add_special, parse_special);
        return FAULTLINE_OK;
    });
}

int32_t faultline_token_to_piece(
        const llama_vocab * vocab, llama_token token, char * buf, int32_t length, int32_t lstrip, bool special, int32_t * result) {
    return guarded([&]() -> int32_t {
        *result = llama_token_to_piece(vocab, token, buf, length, lstrip, special);
        return FAULTLINE_OK;
    });
}

int32_t faultline_chat_apply_template(
        const char * tmpl, const llama_chat_message * chat, size_t n_msg, bool add_ass, char * buf, int32_t length, int32_t * result) {
    return guarded([&]() -> int32_t {
        *result = llama_chat_apply_template(tmpl, chat, n_msg, add_ass, buf, length);
        return FAULTLINE_OK;
    });
}

int32_t faultline_sampler_sample(llama_sampler * sampler, llama_context * context, int32_t idx, llama_token * token) {
    return guarded([&]() -> int32_t {
        *token = llama_sampler_sample(sampler, context, idx);
        return FAULTLINE_OK;
    });
}

int32_t faultline_sampler_accept(llama_sampler * sampler, llama_token token) {
    return guarded([&]() -> int32_t {
        llama_sampler_accept(sampler, token);
        return FAULTLINE_OK;
    });
}

int32_t faultline_memory_breakdown(const llama_context * context, faultline_buffer_use * uses, size_t capacity, size_t * count) {
    return guarded([&]() -> int32_t {
        const llama_memory_breakdown breakdown = llama_get_memory_breakdown(context);
        size_t i = 0;
        for (const auto & [type, bytes] : breakdown) {
            if (i < capacity) {
                uses[i] = {
                    ggml_backend_buft_name(type), ggml_backend_buft_is_host(type), bytes.model, bytes.context, bytes.compute,
                };
            }
            i++;
        }
        *count = i;
        return FAULTLINE_OK;
    });
}

int32_t faultline_context_sizes_get(const llama_context * context, int32_t n_threads, faultline_context_sizes * sizes) {
    return guarded([&]() -> int32_t {
        const llama_cparams & cparams = context->get_cparams();
        // What sched_reserve() built last: the graph of a full ubatch.
        const llm_graph_result * reserved = context->get_gf_res_reserve();
        const uint32_t max_nodes = context->graph_max_nodes(std::min(cparams.n_ctx, cparams.n_ubatch));
        *sizes = {
            reserved == nullptr ? 0 : ggml_graph_plan(reserved->get_gf(), n_threads, nullptr).work_size,
            ggml_tensor_overhead() * max_nodes + ggml_graph_overhead_custom(max_nodes, false),
            cparams.flash_attn,
        };
        return FAULTLINE_OK;
    });
}

size_t faultline_model_tensors(const llama_model * model, const ggml_tensor ** tensors, size_t capacity) {
    size_t i = 0;
    for (const auto & entry : llama_internal_get_tensor_map(model)) {
        if (i < capacity) {
            tensors[i] = entry.second;
        }
        i++;
    }
    return i;
}

uint32_t faultline_model_head_sizes(const llama_model * model, uint32_t layer, uint32_t * key, uint32_t * value) {
    const uint32_t n_layer = model->hparams.n_layer();
    if (layer < n_layer) {
        *key   = model->hparams.n_embd_head_k(layer);
        *value = model->hparams.n_embd_head_v(layer);
    }
    return n_layer;
}

// The first call makes the list; a failure to do so leaves it empty. Upstream's list has two entries that no model can be:
// the placeholder for a name that it does not know, and image encoders, which its loader refuses as a main model.
static const std::vector<llm_arch> & architectures() noexcept {
    static const std::vector<llm_arch> list = []() noexcept {
        std::vector<llm_arch> known;
        try {
            for (llm_arch arch : llama_arch_all()) {
                if (arch != LLM_ARCH_UNKNOWN && arch != LLM_ARCH_CLIP) {
                    known.push_back(arch);
                }
            }
        } catch (...) {
            known.clear();
        }
        return known;
    }();
    return list;
}

bool faultline_arch_known(const char * name) {
    for (size_t i = 0; const char * known = faultline_arch_name(i); i++) {
        if (std::string_view(known) == name) {
            return true;
        }
    }
    return false;
}

const char * faultline_arch_name(size_t i) {
    const auto & list = architectures();
    return i < list.size() ? llama_arch_name(list[i]) : nullptr;
}

bool faultline_type_traits(uint32_t type, struct faultline_type_traits * traits) {
    if (type >= GGML_TYPE_COUNT) {
        return false;
    }
    const auto id = static_cast<ggml_type>(type);
    *traits = { ggml_type_name(id), ggml_blck_size(id), ggml_type_size(id), ggml_is_quantized(id) };
    return true;
}
