/* Before a token attends: per-head norm, rotation by its position, keys and values into the cache. */
#include <string.h>

#include "attention.h"
#include "norm.h"

/* out = scale * rotate(norm * x / rms(x)) for one head, pairing element i with i + half. */
static void place_head(const AttentionParams *params, int64_t position, const float *x, const float *norm,
                       float scale, float *out) {
    int half = params->head_size / 2;
    const float *cos = params->cos + position * half, *sin = params->sin + position * half;
    float inverse = norm == NULL ? 1.0f : inverse_rms(x, params->head_size, params->eps);
    for (int i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        if (norm != NULL) {
            first = norm[i] * (first * inverse);
            second = norm[i + half] * (second * inverse);
        }
        out[i] = FMA(first, cos[i], -(second * sin[i])) * scale;
        out[i + half] = FMA(second, cos[i], first * sin[i]) * scale;
    }
}

void rotary_place_token(const AttentionParams *params, const TokenBatch *batch, const LayerCache *cache,
                        int64_t token, const float *qkv, float *queries) {
    int64_t size = params->head_size, position = batch->positions[token];
    int64_t at = (int64_t)batch->slots[token] * params->kv_heads * size;
    for (int head = 0; head < params->heads; head++)
        place_head(params, position, qkv + head * size, params->q_norm, params->scale, queries + head * size);
    const float *keys = qkv + params->heads * size;
    for (int head = 0; head < params->kv_heads; head++)
        place_head(params, position, keys + head * size, params->k_norm, 1.0f, cache->keys + at + head * size);
    const float *values = keys + params->kv_heads * size;
    memcpy(cache->values + at, values, params->kv_heads * size * sizeof(float));
}
