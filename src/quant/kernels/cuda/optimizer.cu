// An AdamW step on moments in 8 bits, with the arithmetic of the CPU's loop (src/train/optim/blockwise.rs) operation for
// operation, and dropout masks with the draws of src/tensor/rng.rs.

enum { ADAM_BLOCK = 256, N_STEPS = 65535 };

// The largest magnitude over the block's threads, in every thread. `scratch` has a place for each warp.
__device__ __forceinline__ float largest(float value, float *scratch) {
    value = fabsf(value);
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = value;
    __syncthreads();
    float all = scratch[0];
    for (int i = 1; i < ADAM_BLOCK / 32; i++) all = fmaxf(all, scratch[i]);
    return all;
}

// The code of a value over its block's scale, by the table of nearest codes.
__device__ __forceinline__ u8 code_of(float value, float reciprocal, const u8 *nearest) {
    const float quotient = value * reciprocal;
    // A block of zeros has the quotient NaN: any code times 0 is 0.
    if (quotient != quotient) return nearest[0];
    const float clamped = fminf(fmaxf(quotient, -1.0f), 1.0f);
    return nearest[(u32)((clamped + 1.0f) * 0.5f * (float)N_STEPS + 0.5f)];
}

// 256 threads take one block of values. Moments and their scales may be in pinned host memory.
extern "C" __global__ void adamw_8bit(float *values, const float *gradient, u8 *m, u8 *v, float *m_absmax,
                                      float *v_absmax, const float *m_code, const float *v_code, const u8 *m_nearest,
                                      const u8 *v_nearest, float beta1, float beta2, float rest1, float rest2,
                                      float eps, float keep, float step_size, float correction2, i64 n) {
    __shared__ float m_scratch[ADAM_BLOCK / 32], v_scratch[ADAM_BLOCK / 32];
    const i64 block = blockIdx.x, i = block * ADAM_BLOCK + threadIdx.x;
    const bool is_there = i < n;
    float first = 0.0f, second = 0.0f;
    if (is_there) {
        const float g = gradient[i];
        first = fmaf(rest1, g, m_code[m[i]] * m_absmax[block] * beta1);
        second = fmaf(rest2 * g, g, v_code[v[i]] * v_absmax[block] * beta2);
        const float denominator = sqrtf(second) / correction2 + eps;
        values[i] = values[i] * keep - step_size * first / denominator;
    }
    // Inside are barriers: scales are read before they are written.
    const float m_scale = largest(first, m_scratch), v_scale = largest(second, v_scratch);
    if (is_there) {
        m[i] = code_of(first, 1.0f / m_scale, m_nearest);
        v[i] = code_of(second, 1.0f / v_scale, v_nearest);
    }
    if (threadIdx.x == 0) m_absmax[block] = m_scale, v_absmax[block] = v_scale;
}

// One thread draws four elements: 0 where 16 random bits are below a bound, else `kept`.
template <typename T>
__device__ __forceinline__ void dropout_mask(T *mask, i64 n, u64 seed, u32 dropped_below, float kept) {
    const i64 four = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    // SplitMix64 at the place of these four.
    u64 bits = seed + ((u64)four + 1) * 0x9E3779B97F4A7C15ull;
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ull;
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBull;
    bits ^= bits >> 31;
#pragma unroll
    for (int place = 0; place < 4; place++) {
        const i64 i = four * 4 + place;
        if (i < n) narrow((u32)((bits >> (16 * place)) & 0xffffu) >= dropped_below ? kept : 0.0f, mask[i]);
    }
}

extern "C" __global__ void dropout_mask_f32(float *mask, i64 n, u64 seed, u32 dropped_below, float kept) {
    dropout_mask(mask, n, seed, dropped_below, kept);
}

extern "C" __global__ void dropout_mask_bf16(bf16 *mask, i64 n, u64 seed, u32 dropped_below, float kept) {
    dropout_mask(mask, n, seed, dropped_below, kept);
}
