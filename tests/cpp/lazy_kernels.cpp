// Every kernel that reads a lazy weight reads it where `get` says, and only there; see patches/0001 and ggml_backend_cpu_lazy_i.
//
// The weight lies in memory that is unreadable (PROT_NONE) while the graph computes; `get` hands out copies, each of which ends right before
// an unreadable page. A read that no hook announced, or one past the end of a slice, is a SIGSEGV. The result is compared with memcmp to
// that of the same graph without the interface, for all types and batch sizes (one row, below and above the tiled kernel's
// threshold), one and two threads, matrices in random order, ids of -1, views, whole tensors, and a `get` that fails.
//
// Needs the patched tree. Built and run by `make test`.
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#define CHECK(cond)                                                             \
    do {                                                                        \
        if (!(cond)) {                                                          \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, g_case.c_str()); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

static std::string g_case;
static const size_t PAGE = (size_t) sysconf(_SC_PAGESIZE);

static size_t round_up(size_t n) { return (n + PAGE - 1) / PAGE * PAGE; }

// memory that ends right before an unreadable page
struct guarded {
    char * base  = nullptr;
    size_t pages = 0;
    char * data  = nullptr;

    guarded(const void * src, size_t size) {
        pages = round_up(size) + PAGE;
        base  = (char *) mmap(nullptr, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(base != MAP_FAILED);
        data = base + round_up(size) - size;
        memcpy(data, src, size);
        CHECK(mprotect(base + round_up(size), PAGE, PROT_NONE) == 0);
    }
    guarded(const guarded &) = delete;
    guarded(guarded && o) : base(o.base), pages(o.pages), data(o.data) { o.base = nullptr; }
    ~guarded() {
        if (base) {
            munmap(base, pages);
        }
    }
};

// the weight, its copies, and what the callbacks saw
struct owner {
    const ggml_tensor *  w = nullptr;
    std::vector<guarded> rows, matrices, all;
    int                  fail_id = -2; // `get` of this slice fails
    std::mt19937         rng { 1 };

    std::set<int32_t>    announced;
    int                  dim = 0, n_begin = 0, n_end = 0;
    std::atomic<int>     n_get { 0 }, n_unannounced { 0 };

    static void begin(const ggml_tensor * node, const ggml_tensor * w, int32_t dim, int32_t * ids, int32_t n_ids, void * user_data) {
        owner & o = *(owner *) user_data;
        CHECK(w == o.w && node != nullptr);
        CHECK((dim == -1) == (ids == nullptr));
        o.n_begin++;
        o.dim = dim;
        o.announced.clear();
        for (int32_t i = 0; i < n_ids; i++) {
            CHECK(o.announced.insert(ids[i]).second); // no duplicates
            CHECK(ids[i] >= 0 && ids[i] < w->ne[dim]);
        }
        if (dim == 2) {
            std::shuffle(ids, ids + n_ids, o.rng);
        }
        if (dim == -1) {
            o.announced.insert(0);
        }
    }
    static const void * get(const ggml_tensor * w, int32_t dim, int32_t id, void * user_data) {
        owner & o = *(owner *) user_data;
        o.n_get++;
        if (w != o.w || dim != o.dim || o.announced.count(id) == 0) {
            o.n_unannounced++;
            return nullptr;
        }
        if (id == o.fail_id) {
            return nullptr;
        }
        return dim == 1 ? o.rows.at(id).data : dim == 2 ? o.matrices.at(id).data : o.all.at(0).data;
    }
    static void end(const ggml_tensor *, const ggml_tensor * w, void * user_data) {
        owner & o = *(owner *) user_data;
        CHECK(w == o.w);
        o.n_end++;
    }
};

struct test_case {
    ggml_type type;
    int64_t   ne0, ne1, ne2;
    // builds the graph's result from the weight; other inputs are created in ctx and named "x" (F32) or "ids" (I32)
    ggml_tensor * (*build)(ggml_context * ctx, ggml_tensor * w, int64_t n_tokens);
    const char * name;
    bool slices;
};

static std::vector<char> random_weight(const test_case & c) {
    const int64_t      n = c.ne0*c.ne1*c.ne2;
    std::vector<float> f(n);
    std::mt19937       rng(7);
    std::normal_distribution<float> normal;
    for (auto & x : f) {
        x = normal(rng);
    }
    std::vector<char> data(ggml_row_size(c.type, c.ne0)*c.ne1*c.ne2);
    if (c.type == GGML_TYPE_F32) {
        memcpy(data.data(), f.data(), data.size());
    } else {
        ggml_quantize_chunk(c.type, f.data(), data.data(), 0, c.ne1*c.ne2, c.ne0, nullptr);
    }
    return data;
}

static ggml_tensor * build_mul_mat_id(ggml_context * ctx, ggml_tensor * w, int64_t n_tokens);

// the bytes of the result, and the status
static ggml_status compute(ggml_backend_t backend, const test_case & c, char * region, size_t size, int64_t n_tokens, owner * o, std::vector<char> & result) {
    ggml_init_params params = { 64*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true };
    ggml_context * ctx_w = ggml_init(params);
    ggml_context * ctx   = ggml_init(params);

    ggml_tensor * w = ggml_new_tensor_3d(ctx_w, c.type, c.ne0, c.ne1, c.ne2);
    ggml_set_name(w, "w");
    w->flags |= GGML_TENSOR_FLAG_LAZY;
    ggml_backend_buffer_t buf_w = ggml_backend_cpu_buffer_from_ptr(region, size);
    ggml_backend_buffer_set_usage(buf_w, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    CHECK(ggml_backend_tensor_alloc(buf_w, w, region) == GGML_STATUS_SUCCESS);

    ggml_tensor * out   = c.build(ctx, w, n_tokens);
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, out);
    // views of w are in ctx and have their buffer already
    ggml_backend_buffer_t buf = ggml_backend_alloc_ctx_tensors(ctx, backend);
    CHECK(buf != nullptr);

    std::mt19937 rng(11);
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if (strcmp(t->name, "x") == 0) {
            std::normal_distribution<float> normal;
            for (int64_t i = 0; i < ggml_nelements(t); i++) {
                ((float *) t->data)[i] = normal(rng);
            }
        }
        if (strcmp(t->name, "ids") == 0) {
            // distinct ids in a row, as a router gives them; now and then -1 (matrices only), and duplicates among the rows
            for (int64_t r = 0; r < t->ne[1]; r++) {
                const bool           is_experts = c.build == build_mul_mat_id;
                std::vector<int32_t> ids(is_experts ? c.ne2 : c.ne1);
                for (size_t i = 0; i < ids.size(); i++) {
                    ids[i] = (int32_t) i;
                }
                std::shuffle(ids.begin(), ids.end(), rng);
                for (int64_t i = 0; i < t->ne[0]; i++) {
                    ((int32_t *) t->data)[r*t->ne[0] + i] = is_experts && rng() % 9 == 0 ? -1 : ids[i % ids.size()];
                }
            }
        }
    }
    if (o) {
        o->w = w;
        const ggml_backend_cpu_lazy_i iface = { owner::begin, owner::get, owner::end };
        ggml_backend_cpu_set_lazy(backend, &iface, o);
        CHECK(mprotect(region, size, PROT_NONE) == 0);
    }
    const ggml_status status = ggml_backend_graph_compute(backend, graph);
    if (o) {
        CHECK(mprotect(region, size, PROT_READ | PROT_WRITE) == 0);
        ggml_backend_cpu_set_lazy(backend, nullptr, nullptr);
    }
    result.assign((char *) out->data, (char *) out->data + ggml_nbytes(out));

    ggml_backend_buffer_free(buf);
    ggml_backend_buffer_free(buf_w);
    ggml_free(ctx);
    ggml_free(ctx_w);
    return status;
}

static ggml_tensor * input(ggml_context * ctx, const char * name, ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2 = 1) {
    ggml_tensor * t = ggml_new_tensor_3d(ctx, type, ne0, ne1, ne2);
    ggml_set_name(t, name);
    return t;
}

static ggml_tensor * build_mul_mat_id(ggml_context * ctx, ggml_tensor * w, int64_t n_tokens) {
    return ggml_mul_mat_id(ctx, w, input(ctx, "x", GGML_TYPE_F32, w->ne[0], 1, n_tokens), input(ctx, "ids", GGML_TYPE_I32, 3, n_tokens));
}
static ggml_tensor * build_get_rows(ggml_context * ctx, ggml_tensor * w, int64_t n_tokens) {
    return ggml_get_rows(ctx, w, input(ctx, "ids", GGML_TYPE_I32, n_tokens, 1));
}
static ggml_tensor * build_mul_mat(ggml_context * ctx, ggml_tensor * w, int64_t n_tokens) {
    return ggml_mul_mat(ctx, w, input(ctx, "x", GGML_TYPE_F32, w->ne[0], n_tokens));
}
static ggml_tensor * build_view(ggml_context * ctx, ggml_tensor * w, int64_t n_tokens) {
    ggml_tensor * view = ggml_view_2d(ctx, w, w->ne[0], w->ne[1], w->nb[1], 2*w->nb[2]);
    return ggml_mul_mat(ctx, view, input(ctx, "x", GGML_TYPE_F32, w->ne[0], n_tokens));
}
static ggml_tensor * build_get_rows_3d(ggml_context * ctx, ggml_tensor * w, int64_t n_tokens) {
    return ggml_get_rows(ctx, w, input(ctx, "ids", GGML_TYPE_I32, n_tokens, w->ne[2]));
}
static ggml_tensor * build_norm_mul(ggml_context * ctx, ggml_tensor * w, int64_t n_tokens) {
    ggml_tensor * norm = ggml_rms_norm(ctx, input(ctx, "x", GGML_TYPE_F32, w->ne[0], n_tokens), 1e-5f);
    return ggml_add(ctx, ggml_mul(ctx, norm, w), norm);
}

int main() {
    std::vector<test_case> cases;
    for (ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q5_0, GGML_TYPE_MXFP4, GGML_TYPE_Q2_K,
                            GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS }) {
        cases.push_back({ type, 512, 96, 8, build_mul_mat_id,   "mul_mat_id",      true  });
        cases.push_back({ type, 512, 37, 1, build_get_rows,     "get_rows",        true  });
        cases.push_back({ type, 512, 96, 1, build_mul_mat,      "mul_mat",         false });
        cases.push_back({ type, 512, 96, 8, build_view,         "mul_mat of view", false });
        cases.push_back({ type, 512, 16, 4, build_get_rows_3d,  "get_rows 3d",     false });
    }
    cases.push_back({ GGML_TYPE_F32, 512, 1, 1, build_norm_mul, "rms_norm + mul", false });

    int n_run = 0;
    for (int n_threads : { 1, 2 }) {
        ggml_backend_t backend = ggml_backend_cpu_init();
        ggml_backend_cpu_set_n_threads(backend, n_threads);
        for (const test_case & c : cases) {
            const std::vector<char> data = random_weight(c);

            const size_t size   = round_up(data.size());
            char *       region = (char *) mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(region != MAP_FAILED);
            memcpy(region, data.data(), data.size());

            for (int64_t n_tokens : { 1, 3, 8, 64 }) {
                g_case = std::string(c.name) + " " + ggml_type_name(c.type) + ", " + std::to_string(n_tokens) + " tokens, " + std::to_string(n_threads) + " threads";

                std::vector<char> expected, result;
                CHECK(compute(backend, c, region, size, n_tokens, nullptr, expected) == GGML_STATUS_SUCCESS);

                owner o;
                const size_t row = ggml_row_size(c.type, c.ne0);
                for (int64_t i = 0; i < c.ne1; i++) {
                    o.rows.emplace_back(data.data() + i*row, row);
                }
                for (int64_t i = 0; i < c.ne2; i++) {
                    o.matrices.emplace_back(data.data() + i*row*c.ne1, row*c.ne1);
                }
                o.all.emplace_back(data.data(), data.size());

                CHECK(compute(backend, c, region, size, n_tokens, &o, result) == GGML_STATUS_SUCCESS);
                CHECK(result == expected);
                CHECK(o.n_begin == 1 && o.n_end == 1 && o.n_get > 0 && o.n_unannounced == 0);
                CHECK((o.dim != -1) == c.slices);

                // a slice that cannot be read fails the graph, and nothing else
                o.fail_id = *o.announced.rbegin();
                CHECK(compute(backend, c, region, size, n_tokens, &o, result) == GGML_STATUS_FAILED);
                CHECK(o.n_begin == 2 && o.n_end == 2);
                o.fail_id = -2;
                CHECK(compute(backend, c, region, size, n_tokens, &o, result) == GGML_STATUS_SUCCESS);
                CHECK(result == expected);
                n_run++;
            }
            munmap(region, size);
        }
        ggml_backend_free(backend);
    }
    printf("lazy_kernels: %d cases passed\n", n_run);
    return 0;
}
