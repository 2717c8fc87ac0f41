/* Vectors of the machine's own width, written once for AVX-512, AVX2, NEON and SSE by compiler extensions.

   Every function here does the same arithmetic in every lane, so a value never depends on its place in memory. */
#ifndef ADADECODE_VECTOR_H
#define ADADECODE_VECTOR_H

#include <math.h>
#include <stdint.h>

#if defined(__AVX512F__)
#define VEC_LANES 16
#elif defined(__AVX__)
#define VEC_LANES 8
#else
#define VEC_LANES 4
#endif

#define PANEL 16                           /* outputs of a weight panel, positions of a key panel */
#define PANEL_VECS (PANEL / VEC_LANES)

#define VEC_BYTES (4 * VEC_LANES)
typedef float vec __attribute__((vector_size(VEC_BYTES)));
typedef int32_t ivec __attribute__((vector_size(VEC_BYTES)));
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

INLINE float vec_sum(vec v) {
    float sum = v[0];
    for (int lane = 1; lane < VEC_LANES; lane++) sum += v[lane];
    return sum;
}

INLINE float vec_top(vec v) {
    float top = v[0];
    for (int lane = 1; lane < VEC_LANES; lane++) top = v[lane] > top ? v[lane] : top;
    return top;
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

/* Rounds of a butterfly: lane l of row i is exchanged with lane l^s of row i^s where exactly one has bit s set. */
#if VEC_LANES == 16
#define LOW_1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HIGH_1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define LOW_2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH_2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LOW_4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HIGH_4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LOW_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#elif VEC_LANES == 8
#define LOW_1 0, 8, 2, 10, 4, 12, 6, 14
#define HIGH_1 1, 9, 3, 11, 5, 13, 7, 15
#define LOW_2 0, 1, 8, 9, 4, 5, 12, 13
#define HIGH_2 2, 3, 10, 11, 6, 7, 14, 15
#define LOW_4 0, 1, 2, 3, 8, 9, 10, 11
#define HIGH_4 4, 5, 6, 7, 12, 13, 14, 15
#else
#define LOW_1 0, 4, 2, 6
#define HIGH_1 1, 5, 3, 7
#define LOW_2 0, 1, 4, 5
#define HIGH_2 2, 3, 6, 7
#endif

#define SUM_ROUND(rows, s)                                                            \
    _Pragma("GCC unroll 8") for (int i = 0; i < VEC_LANES / (2 * (s)); i++) {         \
        vec a = rows[2 * i], b = rows[2 * i + 1];                                     \
        rows[i] = __builtin_shufflevector(a, b, LOW_##s) + __builtin_shufflevector(a, b, HIGH_##s); \
    }

/* Lane i of the result is the sum of row i's lanes, in one order. The rows are used up. */
INLINE vec vec_sums(vec rows[VEC_LANES]) {
    SUM_ROUND(rows, 1)
    SUM_ROUND(rows, 2)
#if VEC_LANES >= 8
    SUM_ROUND(rows, 4)
#endif
#if VEC_LANES >= 16
    SUM_ROUND(rows, 8)
#endif
    return rows[0];
}

#endif
