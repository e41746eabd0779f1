// Types, roundings and 16-byte memory accesses of all kernels. No header of the toolkit is included, so that NVRTC needs
// none. The same text is compiled for the host by the tests (tests/cuda/host.h), which define what CUDA C has built in.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// A bf16 value as its bits.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(bf16 value) { return __uint_as_float((u32)value.bits << 16); }

// To the nearest bf16, ties to even.
__device__ __forceinline__ bf16 to_bf16(float value) {
    bf16 out;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
#else
    u32 bits = __float_as_uint(value);
    out.bits = value != value ? (u16)0x7fff : (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
    return out;
}

__device__ __forceinline__ void narrow(float value, float &out) { out = value; }
__device__ __forceinline__ void narrow(float value, bf16 &out) { out = to_bf16(value); }

// To the nearest f16 and back.
__device__ __forceinline__ float round_f16(float value) {
#if defined(__CUDA_ARCH__)
    u16 half;
    float out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(half));
    return out;
#else
    return (float)(_Float16)value;
#endif
}

// Numbers of `Rounding` in kernels/mod.rs.
enum { ROUND_NONE = 0, ROUND_BF16 = 1, ROUND_F16 = 2, ROUND_F16_BF16 = 3 };

__device__ __forceinline__ float rounded(float value, u32 rounding) {
    if (rounding & 2u) value = round_f16(value);
    if (rounding & 1u) value = widen(to_bf16(value));
    return value;
}

__device__ __forceinline__ bool is_aligned(const void *pointer, u64 size) { return ((u64)pointer & (size - 1)) == 0; }

// Eight neighbouring values from or to 16-byte aligned memory.
__device__ __forceinline__ void load8(const float *from, float *out) {
    float4 a = *(const float4 *)from, b = *((const float4 *)from + 1);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

__device__ __forceinline__ void load8(const bf16 *from, float *out) {
    uint4 words = *(const uint4 *)from;
    u32 pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(pairs[i] << 16);
        out[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ void store8(const float *values, float *to) {
    *(float4 *)to = make_float4(values[0], values[1], values[2], values[3]);
    *((float4 *)to + 1) = make_float4(values[4], values[5], values[6], values[7]);
}

__device__ __forceinline__ void store8(const float *values, bf16 *to) {
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        pairs[i] = (u32)to_bf16(values[2 * i]).bits | ((u32)to_bf16(values[2 * i + 1]).bits << 16);
    }
    *(uint4 *)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
