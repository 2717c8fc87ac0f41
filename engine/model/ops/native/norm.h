/* Root mean square of a vector, summed in one fixed order. */
#ifndef ADADECODE_NORM_H
#define ADADECODE_NORM_H

#include <stdint.h>

#include "vector.h"

/* 1 / sqrt(mean(x^2) + eps). */
static inline float inverse_rms(const float *x, int64_t size, float eps) {
    vec sums = {0};
    int64_t i = 0;
    for (; i + VEC_LANES <= size; i += VEC_LANES) {
        vec v = vec_load(x + i);
        sums += v * v;
    }
    float sum = vec_sum(sums);
    for (; i < size; i++) sum = FMA(x[i], x[i], sum);
    return 1.0f / sqrtf(sum / (float)size + eps);
}

#endif
