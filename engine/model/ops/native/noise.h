/* Counter-based Gumbel noise of a key and token ids (see engine/model/noise.py). */
#ifndef ADADECODE_NOISE_H
#define ADADECODE_NOISE_H

#include "vector.h"

enum { NOISE_BLOCK = 64 }; /* token ids at a time */

#define NOISE_SALT 0x9E3779B97F4A7C15u /* times a token id: what is mixed of it */

#define NOISE_MOST 16.64f /* more than any noise: the greatest is 16.6355 */

/* Uniform numbers of a block, by the finalizer of splitmix64. 23 random bits, centred: exact in float, never 0 or 1. */
INLINE void noise_draw(uint64_t key, const uint64_t *salts, float *uniform) {
    for (int i = 0; i < NOISE_BLOCK; i++) {
        uint64_t z = key ^ salts[i];
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        /* The last step, z ^ (z >> 31), changes no bit of these. */
        uniform[i] = ((float)(int32_t)(z >> 41) + 0.5f) * (1.0f / (1 << 23));
    }
}

/* scores += weight * noise of a block. */
INLINE void noise_add(const float *uniform, float weight, float *scores) {
    for (int i = 0; i < NOISE_BLOCK; i += VEC_LANES) {
        vec noise = -vec_log(-vec_log(vec_load(uniform + i)));
        vec_store(scores + i, vec_load(scores + i) + weight * noise);
    }
}

#endif
