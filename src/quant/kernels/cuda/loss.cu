// Cross-entropy over a chunk of logits: the log-probability of each row's target, and the gradient of
// `-weight * logp` in place of the logits. Statistics are in f32.

// A running `log(sum(exp(x)))`: the sum is relative to the largest value so far.
struct LogSum {
    float max, sum;
};

__device__ __forceinline__ void add(LogSum &total, float value) {
    if (value > total.max) {
        total.sum = total.sum * expf(total.max - value) + 1.0f;
        total.max = value;
    } else {
        // NaN comes here and stays.
        total.sum += expf(value - total.max);
    }
}

__device__ __forceinline__ LogSum joined(LogSum a, LogSum b) {
    LogSum out;
    out.max = fmaxf(a.max, b.max);
    out.sum = a.sum * expf(a.max - out.max) + b.sum * expf(b.max - out.max);
    return out;
}

// The sum over all threads of the block, in every thread.
__device__ __forceinline__ LogSum over_block(LogSum own) {
    __shared__ float maxima[32], sums[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
        LogSum other;
        other.max = __shfl_xor_sync(~0u, own.max, step);
        other.sum = __shfl_xor_sync(~0u, own.sum, step);
        own = joined(own, other);
    }
    if (lane == 0) maxima[warp] = own.max, sums[warp] = own.sum;
    __syncthreads();
    LogSum all = {maxima[0], sums[0]};
    for (int i = 1; i < warps; i++) all = joined(all, LogSum{maxima[i], sums[i]});
    return all;
}

// One block of whole warps takes one row of `[n, vocab]`. Without weights (null) every row counts 1. A target outside the
// vocabulary has the log-probability NaN.
template <typename T>
__device__ __forceinline__ void cross_entropy(T *logits, const i64 *targets, const float *weights, float *logps,
                                              i64 vocab) {
    const i64 row = blockIdx.x, target = targets[row];
    const float weight = weights ? weights[row] : 1.0f;
    T *values = logits + row * vocab;
    const i64 wide = is_aligned(values, 16) ? vocab / 8 * 8 : 0;
    LogSum own = {-3.4e38f, 0.0f};
    for (i64 i = threadIdx.x * 8; i < wide; i += blockDim.x * 8) {
        float part[8];
        load8(values + i, part);
#pragma unroll
        for (int j = 0; j < 8; j++) add(own, part[j]);
    }
    for (i64 i = wide + threadIdx.x; i < vocab; i += blockDim.x) add(own, widen(values[i]));
    const bool is_known = target >= 0 && target < vocab;
    const float picked = is_known ? widen(values[target]) : __uint_as_float(0x7fffffffu);
    // Inside is a barrier: the target's logit is read before it is written.
    const LogSum all = over_block(own);
    const float normalizer = all.max + logf(all.sum);
    if (threadIdx.x == 0) logps[row] = picked - normalizer;
    for (i64 i = threadIdx.x * 8; i < wide; i += blockDim.x * 8) {
        float part[8];
        load8(values + i, part);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            part[j] = expf(part[j] - normalizer) * weight - (i + j == target ? weight : 0.0f);
        }
        store8(part, values + i);
    }
    for (i64 i = wide + threadIdx.x; i < vocab; i += blockDim.x) {
        narrow(expf(widen(values[i]) - normalizer) * weight - (i == target ? weight : 0.0f), values[i]);
    }
}

extern "C" __global__ void cross_entropy_f32(float *logits, const i64 *targets, const float *weights, float *logps,
                                             i64 vocab) {
    cross_entropy(logits, targets, weights, logps, vocab);
}

extern "C" __global__ void cross_entropy_bf16(bf16 *logits, const i64 *targets, const float *weights, float *logps,
                                              i64 vocab) {
    cross_entropy(logits, targets, weights, logps, vocab);
}
