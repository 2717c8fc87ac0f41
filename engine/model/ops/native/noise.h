/* Counter-based Gumbel noise of a key and token ids (see engine/model/noise.py). */
#ifndef ADADECODE_NOISE_H
#define ADADECODE_NOISE_H

#include "vector.h"

enum { NOISE_BLOCK = 64 }; /* token ids at a time */

/* The finalizer of splitmix64. */
INLINE uint64_t noise_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* scores += weight * noise of a block. 23 random bits, centred: exact in float, never 0 or 1. */
INLINE void noise_add(uint64_t key, const int32_t *token_ids, float weight, float *scores) {
    float uniform[NOISE_BLOCK];
    for (int i = 0; i < NOISE_BLOCK; i++) {
        uint64_t z = noise_mix(key ^ (uint64_t)(int64_t)token_ids[i] * 0x9E3779B97F4A7C15u);
        uniform[i] = ((float)(int32_t)(z >> 41) + 0.5f) * (1.0f / (1 << 23));
    }
    for (int i = 0; i < NOISE_BLOCK; i += VEC_LANES) {
        vec noise = -vec_log(-vec_log(vec_load(uniform + i)));
        vec_store(scores + i, vec_load(scores + i) + weight * noise);
    }
}

#endif
