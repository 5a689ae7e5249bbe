/* What is bound: the public headers of llama.cpp and the shim. */
#include "llama.h"
#include "ggml.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "gguf.h"

#include "shim.h"
