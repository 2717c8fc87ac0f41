/* Vectors of the machine's own width, written once for AVX-512, AVX2, NEON and SSE by compiler extensions.

   Every function here does the same arithmetic in every lane, so a value never depends on its place in memory. */
#ifndef ADADECODE_VECTOR_H
#define ADADECODE_VECTOR_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define VEC_LANES 16
#elif defined(__AVX__)
#define VEC_LANES 8
#else
#define VEC_LANES 4
#endif

#define PANEL 16                           /* outputs of a weight panel */
#define PANEL_VECS (PANEL / VEC_LANES)

#define VEC_BYTES (4 * VEC_LANES)
typedef float vec __attribute__((vector_size(VEC_BYTES)));
typedef int32_t ivec __attribute__((vector_size(VEC_BYTES)));
typedef uint32_t uvec __attribute__((vector_size(VEC_BYTES)));
typedef uint32_t loose_uvec __attribute__((vector_size(VEC_BYTES), aligned(4), may_alias));
typedef float loose_vec __attribute__((vector_size(VEC_BYTES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* One rounding where the machine has it. Written out wherever a compiler could choose which product to fuse. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

INLINE vec vec_load(const float *p) { return *(const loose_vec *)p; }
INLINE void vec_store(float *p, vec v) { *(loose_vec *)p = v; }
/* The same value, in a register: compilers would load it again for every use. */
INLINE vec vec_kept(vec v) {
#if defined(__x86_64__)
    __asm__("" : "+x"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
    return v;
}
INLINE vec vec_set(float x) { return x - (vec){0}; }
/* a where the mask is all ones, b where it is zero. */
INLINE vec vec_select(ivec mask, vec a, vec b) {
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}
/* The greater one; b where either is NaN. */
INLINE vec vec_max(vec a, vec b) { return vec_select(a > b, a, b); }

/* Whether a mask is all ones in any lane. */
INLINE bool vec_any(ivec mask) {
    uint64_t words[VEC_BYTES / 8], any = 0;
    memcpy(words, &mask, VEC_BYTES);
    for (int i = 0; i < VEC_BYTES / 8; i++) any |= words[i];
    return any != 0;
}

/* Halves are folded onto each other, so that few steps wait for one another. */
INLINE float vec_sum(vec v) {
    for (int half = VEC_LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) v[lane] += v[lane + half];
    return v[0];
}

INLINE float vec_top(vec v) {
    for (int half = VEC_LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) v[lane] = v[lane] > v[lane + half] ? v[lane] : v[lane + half];
    return v[0];
}

/* 2^n for n in [-126, 127], by its exponent bits. */
INLINE vec vec_power_of_two(ivec n) { return (vec)((n + 127) << 23); }

/* e^x, within 1 ulp; 0 at -inf, exactly 1 at 0, inf above the range, NaN at NaN.
   x = n ln 2 + r with |r| <= ln(2)/2, then the Taylor series of e^r to degree 7 (its error there is below 2^-27). */
INLINE vec vec_exp(vec x) {
    const vec magic = vec_set(12582912.0f);  /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    x = vec_select(x < -104.0f, vec_set(-104.0f), x);
    x = vec_select(x > 89.0f, vec_set(89.0f), x);
    vec shifted = x * 1.44269504088896341f + magic;
    ivec n = (ivec)shifted - (ivec)magic;
    vec whole = shifted - magic;
    vec r = x - whole * 0.693359375f;
    r = r - whole * -2.12194440e-4f;
    vec p = r * 1.98412698e-4f + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    ivec half = n >> 1;  /* in two steps, so that subnormal results and 2^128 come out right */
    vec result = p * vec_power_of_two(half) * vec_power_of_two(n - half);
    return vec_select(x == x, result, x);
}

/* ln x for normal x > 0, within 1 ulp. x = 2^e m, sqrt(1/2) <= m < sqrt(2), with t = (m-1)/(m+1):
   ln m = 2 (t + t^3/3 + t^5/5 + ...), |t| < 0.172, arranged so that m - 1 enters exactly. */
INLINE vec vec_log(vec x) {
    ivec bits = (ivec)x;
    ivec e = (bits - 0x3f3504f3) >> 23;
    vec f = (vec)(bits - (e << 23)) - 1.0f;
    vec t = f / (f + 2.0f);
    vec s = t * t;
    vec p = s * 0.18181818f + 0.22222222f;
    p = p * s + 0.28571429f;
    p = p * s + 0.4f;
    p = p * s + 0.66666667f;
    vec square = 0.5f * f * f;
    vec scale = __builtin_convertvector(e, vec);
    vec low = t * (square + s * p) + scale * -2.12194440e-4f;
    return scale * 0.693359375f + (f - (square - low));
}

/* x * sigmoid(x). */
INLINE vec vec_silu(vec x) { return x / (1.0f + vec_exp(-x)); }

typedef float quad __attribute__((vector_size(16)));
typedef float loose_quad __attribute__((vector_size(16), aligned(4), may_alias));

INLINE void quad_store(float *p, quad v) { *(loose_quad *)p = v; }

/* Two rows become one: in every four lanes, two for each row (PAIR), then one for each of four rows (FOUR). */
#if VEC_LANES == 16
#define PAIR_LOW 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define PAIR_HIGH 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define FOUR_LOW 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define FOUR_HIGH 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#elif VEC_LANES == 8
#define PAIR_LOW 0, 8, 1, 9, 4, 12, 5, 13
#define PAIR_HIGH 2, 10, 3, 11, 6, 14, 7, 15
#define FOUR_LOW 0, 1, 8, 9, 4, 5, 12, 13
#define FOUR_HIGH 2, 3, 10, 11, 6, 7, 14, 15
#else
#define PAIR_LOW 0, 4, 1, 5
#define PAIR_HIGH 2, 6, 3, 7
#define FOUR_LOW 0, 1, 4, 5
#define FOUR_HIGH 2, 3, 6, 7
#endif

INLINE vec vec_add_pair(vec a, vec b) {
    return __builtin_shufflevector(a, b, PAIR_LOW) + __builtin_shufflevector(a, b, PAIR_HIGH);
}

INLINE vec vec_add_four(vec a, vec b) {
    return __builtin_shufflevector(a, b, FOUR_LOW) + __builtin_shufflevector(a, b, FOUR_HIGH);
}

/* Element i of the result is the sum of row i's lanes, in one order. */
INLINE quad vec_sums(const vec rows[4]) {
    vec four = vec_add_four(vec_add_pair(rows[0], rows[1]), vec_add_pair(rows[2], rows[3]));
#if VEC_LANES == 16
    return __builtin_shufflevector(four, four, 0, 1, 2, 3) + __builtin_shufflevector(four, four, 4, 5, 6, 7) +
           (__builtin_shufflevector(four, four, 8, 9, 10, 11) + __builtin_shufflevector(four, four, 12, 13, 14, 15));
#elif VEC_LANES == 8
    return __builtin_shufflevector(four, four, 0, 1, 2, 3) + __builtin_shufflevector(four, four, 4, 5, 6, 7);
#else
    return four;
#endif
}

#endif
