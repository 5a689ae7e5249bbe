/*
 * C entry points for calls of llama.cpp that may throw a C++ exception or that exist only in C++.
 *
 * An exception must not reach Rust, so each function catches everything and returns a status; the message of the last
 * failure of the calling thread is faultline_last_error(). Results go through pointers, which are written only when the
 * status is FAULTLINE_OK and must not be NULL.
 */
#ifndef FAULTLINE_SHIM_H
#define FAULTLINE_SHIM_H

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum faultline_status {
    FAULTLINE_OK            = 0,
    FAULTLINE_ERR_EXCEPTION = 1, /* a C++ exception; its text is the message */
    FAULTLINE_ERR_MEMORY    = 2, /* std::bad_alloc or std::length_error */
    FAULTLINE_ERR_NULL      = 3, /* llama.cpp returned no object; the reason is in its log */
};

/* The message of the last status of this thread that was not FAULTLINE_OK, UTF-8; valid until the next failure of this
 * thread. Never NULL. */
const char * faultline_last_error(void);

/* The version of the patched interface that the library implements. Refers to a symbol that only a patched llama.cpp has:
 * a program that uses the shim does not link with any other. */
int32_t faultline_abi_version(void);

/* Wraps llama_model_load_from_splits_mapped: paths in the order of the parts, one path for a model in one file. The mapping may be NULL. */
int32_t faultline_model_load(
        const char ** paths, size_t n_paths, struct llama_model_params params, const struct llama_model_mapping_i * mapping,
        void * user_data, struct llama_model ** model);

/* Wraps llama_init_from_model. */
int32_t faultline_context_init(struct llama_model * model, struct llama_context_params params, struct llama_context ** context);

/* Wraps llama_adapter_lora_init, and marks the adapter's buffers as holding weights. The adapter belongs to the model, which
 * frees it. No context of the model may be in use: the model changes. */
int32_t faultline_adapter_lora_load(struct llama_model * model, const char * path, struct llama_adapter_lora ** adapter);

/* Wraps llama_set_adapters_lora, and plans the graphs with these adapters at once rather than in the next decode. After a
 * failure the context must not decode until another call has succeeded that changes the adapters. */
int32_t faultline_set_adapters_lora(
        struct llama_context * context, struct llama_adapter_lora ** adapters, size_t n_adapters, float * scales);

/* Wrap llama_decode and llama_encode; result is what they return. */
int32_t faultline_decode(struct llama_context * context, struct llama_batch batch, int32_t * result);
int32_t faultline_encode(struct llama_context * context, struct llama_batch batch, int32_t * result);

/* Wraps llama_synchronize. */
int32_t faultline_synchronize(struct llama_context * context);

/* Wraps llama_memory_clear. */
int32_t faultline_memory_clear(struct llama_context * context, bool data);

/* Wraps llama_memory_seq_rm. */
int32_t faultline_memory_seq_rm(struct llama_context * context, llama_seq_id seq_id, llama_pos p0, llama_pos p1, bool * removed);

/* Wraps llama_memory_seq_cp. */
int32_t faultline_memory_seq_cp(struct llama_context * context, llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1);

/* Wrap llama_state_seq_get_size, llama_state_seq_get_data and llama_state_seq_set_data; result is what they return, 0 for a failure
 * whose reason is in the log. */
int32_t faultline_state_seq_get_size(struct llama_context * context, llama_seq_id seq_id, size_t * result);
int32_t faultline_state_seq_get_data(
        struct llama_context * context, uint8_t * data, size_t size, llama_seq_id seq_id, size_t * result);
int32_t faultline_state_seq_set_data(
        struct llama_context * context, const uint8_t * data, size_t size, llama_seq_id seq_id, size_t * result);

/* Wraps llama_tokenize: result is the number of tokens, or the negative of the number that would have been needed. */
int32_t faultline_tokenize(
        const struct llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens, int32_t n_tokens_max,
        bool add_special, bool parse_special, int32_t * result);

/* Wraps llama_token_to_piece: result is the number of bytes, or the negative of the number that would have been needed. */
int32_t faultline_token_to_piece(
        const struct llama_vocab * vocab, llama_token token, char * buf, int32_t length, int32_t lstrip, bool special,
        int32_t * result);

/* Wraps llama_chat_apply_template: result is the number of bytes, which may exceed length, or negative for an unknown
 * template. */
int32_t faultline_chat_apply_template(
        const char * tmpl, const struct llama_chat_message * chat, size_t n_msg, bool add_ass, char * buf, int32_t length,
        int32_t * result);

/* Wraps llama_sampler_sample: samples from output idx of context and accepts the token. */
int32_t faultline_sampler_sample(struct llama_sampler * sampler, struct llama_context * context, int32_t idx, llama_token * token);

/* Wraps llama_sampler_accept. */
int32_t faultline_sampler_accept(struct llama_sampler * sampler, llama_token token);

/* Bytes that llama.cpp has allocated in buffers of one type. */
struct faultline_buffer_use {
    const char * name; /* name of the buffer type, static */
    bool   is_host;    /* the CPU can address it */
    size_t model;      /* weights; for a mapped model the mapped ranges */
    size_t context;    /* KV cache and other state */
    size_t compute;    /* temporaries of the graph */
};

/* Wraps llama_get_memory_breakdown (C++ only): writes at most capacity entries; count is the number there are. */
int32_t faultline_memory_breakdown(
        const struct llama_context * context, struct faultline_buffer_use * uses, size_t capacity, size_t * count);

/* What a context allocates that llama_get_memory_breakdown does not count. */
struct faultline_context_sizes {
    size_t work;       /* work buffer of the CPU backend for the largest graph */
    size_t graph;      /* one arena for the description of a graph; two are made while decoding */
    bool   flash_attn; /* fused attention is used */
};

/* Valid after the context was created, also for a model without weights; reads no weights. n_threads as in the context. */
int32_t faultline_context_sizes_get(const struct llama_context * context, int32_t n_threads, struct faultline_context_sizes * sizes);

/* The tensors that the model computes with, in no particular order; a tensor of the file is there twice when the model keeps
 * a second copy of it. Writes at most capacity pointers, which stay valid while the model lives; returns how many there are. */
size_t faultline_model_tensors(const struct llama_model * model, const struct ggml_tensor ** tensors, size_t capacity);

/* Returns the number of layers; if layer is one of them, writes the elements of one head's key and value in it. */
uint32_t faultline_model_head_sizes(const struct llama_model * model, uint32_t layer, uint32_t * key, uint32_t * value);

/* Whether llama.cpp can run models of the architecture that a GGUF file names in general.architecture. */
bool faultline_arch_known(const char * name);

/* Those architectures: the name of the i-th, NULL past the last one. Static. */
const char * faultline_arch_name(size_t i);

/* The traits of a tensor type. */
struct faultline_type_traits {
    const char * name;       /* static */
    int64_t block_elements;  /* elements of one block; 0 for a type that was removed from ggml */
    size_t  block_bytes;     /* bytes of one block */
    bool    is_quantized;
};

/* Returns false and writes nothing when ggml has no type of that number. */
bool faultline_type_traits(uint32_t type, struct faultline_type_traits * traits);

#ifdef __cplusplus
}
#endif

#endif
