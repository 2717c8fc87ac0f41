/* Causal attention over a paged KV pool, in place: rotate, write keys and values, then attend row by row.

   A token's result depends on its own query and the keys and values at positions up to its own, read in ascending
   order: scores one by one, one running sum each for the softmax and the values. Other tokens of the call never
   enter the arithmetic. Threads share out (token, key/value head) pairs. */
#include <string.h>

#include "context.h"
#include "norm.h"

typedef struct {
    int64_t heads, kv_heads, head_size;
    const float *cos, *sin; /* [positions, head_size / 2] */
    const float *q_norm, *k_norm; /* [head_size] or NULL */
    int64_t window; /* 0: none */
    float scale, eps;
} Attention;

typedef struct {
    const int32_t *positions, *slots, *rows, *block_tables;
    int64_t tokens, max_blocks, block_size;
} Batch;

typedef struct {
    const Attention *shape;
    const Batch *batch;
    const float *qkv; /* [tokens, (heads + 2 kv_heads) head_size] */
    float *keys, *values; /* [slots, kv_heads, head_size] */
    float *queries; /* scratch [tokens, heads, head_size]: rotated */
    float *out; /* [tokens, heads head_size] */
    Scratch *own; /* per thread: scores of one query head group */
} Job;

/* Normalize (if asked) and rotate one head. */
static void rotate_head(const Attention *shape, const float *norm, int32_t position, const float *x, float *out) {
    int64_t half = shape->head_size / 2;
    const float *cosine = shape->cos + position * half, *sine = shape->sin + position * half;
    float inverse = norm == NULL ? 1.0f : inverse_rms(x, shape->head_size, shape->eps);
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        if (norm != NULL) {
            a = norm[i] * (a * inverse);
            b = norm[i + half] * (b * inverse);
        }
        out[i] = FMA(a, cosine[i], -(b * sine[i]));
        out[i + half] = FMA(b, cosine[i], a * sine[i]);
    }
}

/* One token: rotated queries to scratch, rotated keys and the values to their slot. */
static void place_token(void *argument, int64_t token, int thread) {
    (void)thread;
    const Job *job = argument;
    const Attention *shape = job->shape;
    int64_t size = shape->head_size;
    int32_t position = job->batch->positions[token];
    const float *x = job->qkv + token * (shape->heads + 2 * shape->kv_heads) * size;
    for (int64_t head = 0; head < shape->heads; head++)
        rotate_head(shape, shape->q_norm, position, x + head * size,
                    job->queries + (token * shape->heads + head) * size);
    const float *keys = x + shape->heads * size;
    int64_t slot = (int64_t)job->batch->slots[token] * shape->kv_heads * size;
    for (int64_t head = 0; head < shape->kv_heads; head++)
        rotate_head(shape, shape->k_norm, position, keys + head * size, job->keys + slot + head * size);
    memcpy(job->values + slot, keys + shape->kv_heads * size, shape->kv_heads * size * sizeof(float));
}

/* Sum over i of a[i] * b[i], lanes first, then the lanes in order; the size is a multiple of VEC_LANES or the tail is scalar. */
INLINE float dot(const float *a, const float *b, int64_t size) {
    vec sums = {0};
    int64_t i = 0;
    for (; i + VEC_LANES <= size; i += VEC_LANES) sums += vec_load(a + i) * vec_load(b + i);
    float sum = vec_sum(sums);
    for (; i < size; i++) sum = FMA(a[i], b[i], sum);
    return sum;
}

INLINE void add_scaled(float *out, const float *x, float weight, int64_t size) {
    int64_t i = 0;
    for (; i + VEC_LANES <= size; i += VEC_LANES)
        vec_store(out + i, vec_load(out + i) + vec_load(x + i) * vec_set(weight));
    for (; i < size; i++) out[i] = FMA(x[i], weight, out[i]);
}

/* scores -> softmax weights, in place; `count` is padded to whole vectors with -inf. */
static void softmax(float *scores, int64_t count) {
    int64_t padded = (count + VEC_LANES - 1) / VEC_LANES * VEC_LANES;
    for (int64_t i = count; i < padded; i++) scores[i] = -INFINITY;
    vec tops = vec_set(-INFINITY);
    for (int64_t i = 0; i < padded; i += VEC_LANES) tops = vec_max(vec_load(scores + i), tops);
    float top = vec_top(tops);
    vec sums = {0};
    for (int64_t i = 0; i < padded; i += VEC_LANES) {
        vec e = vec_exp(vec_load(scores + i) - top);
        vec_store(scores + i, e);
        sums += e;
    }
    float inverse = 1.0f / vec_sum(sums);
    for (int64_t i = 0; i < padded; i += VEC_LANES) vec_store(scores + i, vec_load(scores + i) * inverse);
}

/* All query heads of one key/value head of one token. */
static void attend(void *argument, int64_t item, int thread) {
    const Job *job = argument;
    const Attention *shape = job->shape;
    const Batch *batch = job->batch;
    int64_t size = shape->head_size, stride = shape->kv_heads * size, group = shape->heads / shape->kv_heads;
    /* Long contexts come last in a prefill: hand out the heavy items first. */
    int64_t token = batch->tokens - 1 - item / shape->kv_heads, kv_head = item % shape->kv_heads;
    int64_t end = (int64_t)batch->positions[token] + 1;
    int64_t start = shape->window > 0 && end > shape->window ? end - shape->window : 0;
    int64_t count = end - start, pitch = (count + VEC_LANES - 1) / VEC_LANES * VEC_LANES;
    const int32_t *table = batch->block_tables + batch->rows[token] * batch->max_blocks;
    const float *query = job->queries + (token * shape->heads + kv_head * group) * size;
    float *scores = job->own[thread].data;
    for (int64_t p = start; p < end; p++) {
        int64_t slot = (int64_t)table[p / batch->block_size] * batch->block_size + p % batch->block_size;
        const float *key = job->keys + slot * stride + kv_head * size;
        for (int64_t g = 0; g < group; g++)
            scores[g * pitch + p - start] = dot(query + g * size, key, size) * shape->scale;
    }
    float *out = job->out + (token * shape->heads + kv_head * group) * size;
    memset(out, 0, group * size * sizeof(float));
    for (int64_t g = 0; g < group; g++) softmax(scores + g * pitch, count);
    for (int64_t p = start; p < end; p++) {
        int64_t slot = (int64_t)table[p / batch->block_size] * batch->block_size + p % batch->block_size;
        const float *value = job->values + slot * stride + kv_head * size;
        for (int64_t g = 0; g < group; g++) add_scaled(out + g * size, value, scores[g * pitch + p - start], size);
    }
}

static int run(Context *context, Job *job, int64_t longest) {
    const Attention *shape = job->shape;
    int64_t tokens = job->batch->tokens, values = tokens * shape->heads * shape->head_size;
    job->queries = scratch_reserve(&context->shared, values * sizeof(float));
    if (job->queries == NULL) return OUT_OF_MEMORY;
    int64_t group = shape->heads / shape->kv_heads;
    if (context_reserve_own(context, (longest + PANEL) * group * sizeof(float)) != OK) return OUT_OF_MEMORY;
    job->own = context->own;
    if (tokens <= 4)
        for (int64_t t = 0; t < tokens; t++) place_token(job, t, 0);
    else
        pool_run(context->pool, place_token, job, tokens);
    pool_run(context->pool, attend, job, tokens * shape->kv_heads);
    return OK;
}

/* out [tokens, heads head_size]; see the header of this file. */
int attention_forward(Context *context, const Attention *shape, const Batch *batch, const float *qkv, float *keys,
                      float *values, float *out) {
    if (batch->tokens == 0) return OK;
    int64_t longest = 0;
    for (int64_t t = 0; t < batch->tokens; t++) {
        if (batch->positions[t] < 0 || batch->slots[t] < 0) return BAD_INDEX;
        if (batch->positions[t] >= batch->max_blocks * batch->block_size) return BAD_INDEX;
        if (batch->positions[t] + 1 > longest) longest = batch->positions[t] + 1;
    }
    Job job = {.shape = shape, .batch = batch, .qkv = qkv, .keys = keys, .values = values, .out = out};
    context_enter(context);
    int status = run(context, &job, longest);
    context_leave(context);
    return status;
}
