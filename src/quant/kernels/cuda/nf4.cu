// NF4 weights: expansion, and the product with the few rows of a decoding step. Values are those of the CPU's loops:
// `code * scale` in f32, then rounded.

// Where the scale of each block of 64 values comes from: `single[block]`, or, when that is null,
// `code[codes[block]] * nested[block / 256] + offset`.
struct Scales {
    const float *single;
    const u8 *codes;
    const float *code;
    const float *nested;
    float offset;
};

__device__ __forceinline__ float scale_of(const Scales &scales, i64 block) {
    if (scales.single) return scales.single[block];
    return scales.code[scales.codes[block]] * scales.nested[block >> 8] + scales.offset;
}

// The 16 values of NF4, in shared memory: each is in a bank of its own, so that lanes never wait for one another.
__device__ __forceinline__ void fill_code(float *code) {
    const float values[16] = {-1.0f,          -0.6961928f,   -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                              -0.091050036f,  0.0f,          0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                              0.44070983f,    0.562617f,     0.72295684f,  1.0f};
    if (threadIdx.x == 0) {
#pragma unroll
        for (int i = 0; i < 16; i++) code[i] = values[i];
    }
}

// The code of value `i` of 8 in a word: two a byte, the first in the high nibble.
__device__ __forceinline__ u32 nibble(u32 word, int i) { return (word >> (8 * (i >> 1) + (i & 1 ? 0 : 4))) & 15u; }

// One thread expands 8 values. `out` has `n` elements.
template <typename Out>
__device__ __forceinline__ void dequantize(const u8 *packed, const Scales &scales, i64 n, u32 rounding, Out *out) {
    __shared__ float code[16];
    fill_code(code);
    __syncthreads();
    const i64 first = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (first >= n) return;
    const float scale = scale_of(scales, first >> 6);
    if (first + 8 <= n && is_aligned(packed, 4) && is_aligned(out, 16)) {
        const u32 word = *(const u32 *)(packed + first / 2);
        float values[8];
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = rounded(code[nibble(word, i)] * scale, rounding);
        store8(values, out + first);
        return;
    }
    const i64 end = first + 8 < n ? first + 8 : n;
    for (i64 i = first; i < end; i++) {
        const u32 pair = packed[i >> 1];
        narrow(rounded(code[i & 1 ? pair & 15u : pair >> 4] * scale, rounding), out[i]);
    }
}

extern "C" __global__ void nf4_dequantize_f32(const u8 *packed, const float *single, const u8 *codes, const float *code,
                                              const float *nested, float offset, i64 n, u32 rounding, float *out) {
    dequantize(packed, Scales{single, codes, code, nested, offset}, n, rounding, out);
}

extern "C" __global__ void nf4_dequantize_bf16(const u8 *packed, const float *single, const u8 *codes,
                                               const float *code, const float *nested, float offset, i64 n,
                                               u32 rounding, bf16 *out) {
    dequantize(packed, Scales{single, codes, code, nested, offset}, n, rounding, out);
}

// Rows of the weight that a warp takes at a time: they share what is read of `x`.
enum { WARP_ROWS = 2 };

// A warp's sums over its rows of the weight. A lane takes 32 neighbouring values, the warp 1024 at a time.
template <int M, u32 ROUNDING, typename X>
__device__ __forceinline__ void sum_rows(const u8 *packed, const Scales &scales, u32 rounding, const float *code,
                                         const X *x, i64 n, i64 first_row, i64 rows, i64 columns,
                                         float (&sums)[WARP_ROWS][M]) {
    const int lane = threadIdx.x & 31;
    i64 starts[WARP_ROWS];
#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
        starts[r] = (first_row + r < rows ? first_row + r : rows - 1) * columns;
    }
    for (i64 k = lane * 32; k < columns; k += 1024) {
        u32 words[WARP_ROWS][4];
        float scale[WARP_ROWS];
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            const uint4 all = *(const uint4 *)(packed + (starts[r] + k) / 2);
            words[r][0] = all.x, words[r][1] = all.y, words[r][2] = all.z, words[r][3] = all.w;
            scale[r] = scale_of(scales, (starts[r] + k) >> 6);
        }
#pragma unroll
        for (int part = 0; part < 4; part++) {
            float values[M][8];
#pragma unroll
            for (int m = 0; m < M; m++) load8(x + (m < n ? m : 0) * columns + k + 8 * part, values[m]);
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float raw = code[nibble(words[r][part], i)] * scale[r];
                    const float weight = rounded(raw, ROUNDING <= ROUND_F16_BF16 ? ROUNDING : rounding);
#pragma unroll
                    for (int m = 0; m < M; m++) sums[r][m] = fmaf(weight, values[m][i], sums[r][m]);
                }
            }
        }
    }
}

// `out[m][row] = sum(weight[row] * x[m])` for the first `n` of at most `M` rows of `x`, `[n, columns]`; `out` is
// `[n, rows]`. Columns are a multiple of 64; `packed` and `x` are 16-byte aligned. The rounding that `X` mostly comes with
// has a loop of its own.
template <int M, u32 USUAL, typename X>
__device__ __forceinline__ void multiply(const u8 *packed, const Scales &scales, u32 rounding, const X *x, i64 n,
                                         i64 rows, i64 columns, X *out) {
    __shared__ float code[16];
    fill_code(code);
    __syncthreads();
    const i64 first_row = ((i64)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5)) * WARP_ROWS;
    // A warp leaves as a whole.
    if (first_row >= rows) return;
    float sums[WARP_ROWS][M] = {};
    if (rounding == USUAL) {
        sum_rows<M, USUAL>(packed, scales, rounding, code, x, n, first_row, rows, columns, sums);
    } else {
        sum_rows<M, ~0u>(packed, scales, rounding, code, x, n, first_row, rows, columns, sums);
    }
#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
#pragma unroll
        for (int m = 0; m < M; m++) {
            float sum = sums[r][m];
#pragma unroll
            for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
            if ((threadIdx.x & 31) == 0 && m < n && first_row + r < rows) narrow(sum, out[m * rows + first_row + r]);
        }
    }
}

#define NF4_MULTIPLY(name, M, X, USUAL)                                                                               \
    extern "C" __global__ void name(const u8 *packed, const float *single, const u8 *codes, const float *code,         \
                                    const float *nested, float offset, u32 rounding, const X *x, i64 n, i64 rows,      \
                                    i64 columns, X *out) {                                                             \
        multiply<M, USUAL>(packed, Scales{single, codes, code, nested, offset}, rounding, x, n, rows, columns, out);   \
    }

NF4_MULTIPLY(nf4_multiply_f32_1, 1, float, ROUND_NONE)
NF4_MULTIPLY(nf4_multiply_f32_2, 2, float, ROUND_NONE)
NF4_MULTIPLY(nf4_multiply_f32_4, 4, float, ROUND_NONE)
NF4_MULTIPLY(nf4_multiply_f32_8, 8, float, ROUND_NONE)
NF4_MULTIPLY(nf4_multiply_bf16_1, 1, bf16, ROUND_BF16)
NF4_MULTIPLY(nf4_multiply_bf16_2, 2, bf16, ROUND_BF16)
NF4_MULTIPLY(nf4_multiply_bf16_4, 4, bf16, ROUND_BF16)
NF4_MULTIPLY(nf4_multiply_bf16_8, 8, bf16, ROUND_BF16)
