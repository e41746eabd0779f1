// The CUDA kernels compiled for the host, behind one function that looks and is called like a launch.
#include "host.h"

#include "common.cuh"
#include "nf4.cu"
#include "loss.cu"
#include "optimizer.cu"

#define KERNEL(name) {#name, [](void **p) { host::call(name, p); }}

static const struct { const char *name; void (*body)(void **); } KERNELS[] = {
    KERNEL(nf4_dequantize_f32), KERNEL(nf4_dequantize_bf16),
    KERNEL(nf4_multiply_f32_1), KERNEL(nf4_multiply_f32_2), KERNEL(nf4_multiply_f32_4), KERNEL(nf4_multiply_f32_8),
    KERNEL(nf4_multiply_bf16_1), KERNEL(nf4_multiply_bf16_2), KERNEL(nf4_multiply_bf16_4), KERNEL(nf4_multiply_bf16_8),
    KERNEL(cross_entropy_f32), KERNEL(cross_entropy_bf16),
    KERNEL(adamw_8bit),
    KERNEL(dropout_mask_f32), KERNEL(dropout_mask_bf16),
};

// Runs a kernel over `blocks` blocks of `n_threads` threads; 0, or 1 when there is no kernel of that name.
extern "C" int host_launch(const char *name, unsigned blocks, unsigned n_threads, void **parameters) {
    for (auto &kernel : KERNELS) {
        if (strcmp(kernel.name, name)) continue;
        host::body = kernel.body;
        host::arguments = parameters;
        host::threads.resize(n_threads);
        blockDim = {n_threads, 1, 1};
        gridDim = {blocks, 1, 1};
        for (unsigned block = 0; block < blocks; block++) {
            blockIdx = {block, 0, 0};
            host::run_block();
        }
        return 0;
    }
    return 1;
}
