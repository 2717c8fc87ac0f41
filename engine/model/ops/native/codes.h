/* How a block of codes lies in a panel (see panel.h), for those that read panels. */
#ifndef ADADECODE_CODES_H
#define ADADECODE_CODES_H

#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "panel.h"

#define HALVES_BYTES (PANEL * 2) /* one half-precision number of every column */
#define INT8_BYTES (HALVES_BYTES + BLOCK / 4 * WORD_BYTES)
#define INT4_BYTES (2 * HALVES_BYTES + BLOCK / 8 * WORD_BYTES)

typedef int16_t signed_half_vec __attribute__((vector_size(VEC_BYTES / 2), aligned(2), may_alias));
typedef uint16_t half_vec __attribute__((vector_size(VEC_BYTES / 2), aligned(2), may_alias));

/* Exact, zero and subnormal numbers included: the bits of a half shifted into a float are 2^-112 of its value. */
INLINE vec vec_from_halves(const void *p) {
#if VEC_LANES == 16
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif VEC_LANES == 8 && defined(__F16C__)
    return __builtin_ia32_vcvtph2ps256(*(const signed_half_vec *)p);
#endif
    uvec half = __builtin_convertvector(*(const half_vec *)p, uvec);
    uvec magnitude = (half & 0x7fff) << 13, sign = (half & 0x8000) << 16;
    vec value = (vec)magnitude * 0x1p112f;
    return (vec)((uvec)value | sign);
}

/* What the weights of a block share. */
typedef struct {
    vec scale[PANEL_VECS];
    vec minimum[PANEL_VECS]; /* INT4 only */
} Shared;

/* Returns where the block's words begin. */
INLINE const char *read_shared(const Format format, const char *at, Shared *shared) {
    for (int v = 0; v < PANEL_VECS; v++) {
        shared->scale[v] = vec_from_halves(at + v * VEC_BYTES / 2);
        if (format == INT4) shared->minimum[v] = vec_from_halves(at + HALVES_BYTES + v * VEC_BYTES / 2);
    }
    return at + (format == INT4 ? 2 : 1) * HALVES_BYTES;
}

#endif
