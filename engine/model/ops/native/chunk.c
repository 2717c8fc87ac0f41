/* One chunk of a context: scores from the keys where they lie, weights, and the running softmax over the values. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "attention.h"

enum {
    QUERIES_AT_ONCE = 3, /* that share the keys and values they read: as many as leave registers for sums */
    KEYS_AT_ONCE = 4,
    VECS_AT_ONCE = 4, /* of a value */
};

/* How many of the queries that are left go side by side: even shares. */
static int64_t next_share(int64_t left) {
    int64_t shares = (left + QUERIES_AT_ONCE - 1) / QUERIES_AT_ONCE;
    return (left + shares - 1) / shares;
}

/* ---- keys and values in the cache ---- */

/* Where the keys and values of positions [begin, begin + count) of a row lie in the cache. Positions outside
   [start, last] stand for the nearest one inside: nothing else is ever read. The last token is found at its own
   slot, where it may stand aside. */
static void locate(const AttentionJob *job, Tile tile, int64_t kv_head, int64_t begin, int count, int64_t *offsets) {
    const TokenBatch *batch = job->batch;
    const int32_t *table = batch->block_tables + batch->rows[tile.first] * batch->max_blocks;
    int64_t start = tile_start(job, tile), last = tile_last(job, tile), block_size = batch->block_size;
    int64_t block = least(most(begin, start), last) / block_size, own = batch->slots[tile.first + tile.count - 1];
    for (int i = 0; i < count; i++) {
        int64_t position = least(most(begin + i, start), last);
        while (position >= (block + 1) * block_size) block++;
        int64_t slot = position == last ? own : table[block] * block_size + position - block * block_size;
        offsets[i] = (slot * job->params->kv_heads + kv_head) * job->params->head_size;
    }
}

/* Where the keys and values lie that are read after those of a chunk: the next key head's, beside them, or those of the
   next chunk. Returns false if there are none. */
static bool locate_next(const AttentionJob *job, Tile tile, Heads heads, int64_t kv_head, int64_t begin,
                        const int64_t *offsets, int64_t *next) {
    if (kv_head + 1 < heads.first + heads.count) {
        for (int i = 0; i < CHUNK; i++) next[i] = offsets[i] + job->params->head_size;
        return true;
    }
    if (begin + CHUNK > tile_last(job, tile)) return false;
    locate(job, tile, heads.first, begin + CHUNK, CHUNK, next);
    return true;
}

/* Ask for `count` floats. */
INLINE void fetch(const float *at, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(at + i);
}

static const float *query_at(const AttentionJob *job, Tile tile, int64_t kv_head, int64_t query) {
    int64_t size = job->params->head_size, head = kv_head * job->group + query % job->group;
    return job->queries + ((tile.first + query / job->group) * job->params->heads + head) * size;
}

/* ---- scores ---- */

/* scores[q][i] = queries[q] . key i, for KEYS_AT_ONCE keys. A product is summed lane by lane, then over the lanes in
   one order, then over what is left of the head: alike however many are computed side by side. */
INLINE void score(const int count, const float *const *queries, const float *keys, const int64_t *offsets,
                  int64_t size, float *scores) {
    vec sums[QUERIES_AT_ONCE][KEYS_AT_ONCE] = {0};
    int64_t d = 0;
    for (; d + VEC_LANES <= size; d += VEC_LANES) {
        vec query[QUERIES_AT_ONCE];
#pragma GCC unroll 4
        for (int q = 0; q < count; q++) query[q] = vec_kept(vec_load(queries[q] + d));
#pragma GCC unroll 4
        for (int i = 0; i < KEYS_AT_ONCE; i++) {
            vec key = vec_kept(vec_load(keys + offsets[i] + d));
#pragma GCC unroll 4
            for (int q = 0; q < count; q++) sums[q][i] += query[q] * key;
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < count; q++) {
        quad products = vec_sums(sums[q]);
        for (int64_t rest = d; rest < size; rest++)
            for (int i = 0; i < KEYS_AT_ONCE; i++)
                products[i] = FMA(queries[q][rest], keys[offsets[i] + rest], products[i]);
        quad_store(scores + q * CHUNK, products);
    }
}

/* The keys of a chunk. */
typedef struct {
    const float *keys; /* the cache's */
    const int64_t *offsets;
    const int64_t *next; /* to be asked for meanwhile, a few at a time; or NULL */
    int64_t size;
    int count;
} Keys;

INLINE void score_keys(const int queries, const float *const *query, const Keys *job, float *scores) {
    for (int i = 0; i < job->count; i += KEYS_AT_ONCE) {
        for (int k = i; k < i + KEYS_AT_ONCE && job->next != NULL; k++) fetch(job->keys + job->next[k], job->size);
        score(queries, query, job->keys, job->offsets + i, job->size, scores + i);
    }
}

static void score_keys_of(int queries, const float *const *query, const Keys *job, float *scores) {
    switch (queries) {
        case 1: score_keys(1, query, job, scores); return;
        case 2: score_keys(2, query, job, scores); return;
        default: score_keys(3, query, job, scores);
    }
}

/* ---- softmax ---- */

static ivec lanes_between(int64_t begin, int64_t low, int64_t high) {
    ivec lane;
    for (int i = 0; i < VEC_LANES; i++) lane[i] = i;
    return (lane >= (int32_t)(low - begin)) & (lane <= (int32_t)(high - begin));
}

static void hide(float *scores, int count, int64_t low, int64_t high) {
    for (int at = 0; at < count; at += VEC_LANES)
        vec_store(scores + at, vec_select(lanes_between(at, low, high), vec_load(scores + at), vec_set(-INFINITY)));
}

/* Turn one query's scores of a chunk into weights e^(score - top), zero outside offsets [low, high], and bring the
   state's top and sum up to date. Returns the factor for what the state has summed before. */
static float update_softmax(State *state, float *scores, int count, int64_t low, int64_t high) {
    if (low > 0 || high < count - 1) hide(scores, count, low, high);
    vec tops = vec_set(-INFINITY), sums = {0};
    for (int at = 0; at < count; at += VEC_LANES) tops = vec_max(vec_load(scores + at), tops);
    float top = vec_top(tops);
    if (state->top > top) top = state->top;
    for (int at = 0; at < count; at += VEC_LANES) {
        vec weight = vec_exp(vec_load(scores + at) - top);
        vec_store(scores + at, weight);
        sums += weight;
    }
    float factor = state->top == top ? 1.0f : exponential(state->top - top);
    state->top = top;
    state->sum = FMA(state->sum, factor, vec_sum(sums));
    return factor;
}

/* ---- values ---- */

/* What add_values knows: the weights of a few queries of one token over offsets [low, high] of a chunk. */
typedef struct {
    const float *values; /* the cache's */
    const int64_t *offsets;
    const int64_t *next;  /* as in Keys */
    const float *weights; /* [queries, CHUNK] */
    const float *factors; /* for what the states have summed before */
    int64_t low;
    int64_t high;
} Weighing;

/* sums[q] = sums[q] * factor + weighted values, for elements [d, d + width vectors) of the head. */
INLINE void add_span(const int queries, const int width, const Weighing *job, int64_t d, float *const *sums) {
    vec added[QUERIES_AT_ONCE][VECS_AT_ONCE] = {0};
    for (int64_t i = job->low; i <= job->high; i++) {
        const float *value = job->values + job->offsets[i] + d;
        if (job->next != NULL) fetch(job->values + job->next[i] + d, width * VEC_LANES);
        vec weights[QUERIES_AT_ONCE];
#pragma GCC unroll 4
        for (int q = 0; q < queries; q++) weights[q] = vec_kept(vec_set(job->weights[q * CHUNK + i]));
#pragma GCC unroll 4
        for (int v = 0; v < width; v++) {
            vec part = vec_kept(vec_load(value + v * VEC_LANES));
#pragma GCC unroll 4
            for (int q = 0; q < queries; q++) added[q][v] += weights[q] * part;
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < queries; q++)
#pragma GCC unroll 4
        for (int v = 0; v < width; v++) {
            float *at = sums[q] + d + v * VEC_LANES;
            vec_store(at, vec_load(at) * job->factors[q] + added[q][v]);
        }
}

static void add_element(int queries, const Weighing *job, int64_t d, float *const *sums) {
    for (int q = 0; q < queries; q++) {
        float added = 0;
        for (int64_t i = job->low; i <= job->high; i++)
            added = FMA(job->weights[q * CHUNK + i], job->values[job->offsets[i] + d], added);
        sums[q][d] = FMA(sums[q][d], job->factors[q], added);
    }
}

INLINE void add_values(const int queries, const Weighing *job, int64_t size, float *const *sums) {
    const int span = VECS_AT_ONCE * VEC_LANES;
    int64_t d = 0;
    for (; d + span <= size; d += span) add_span(queries, VECS_AT_ONCE, job, d, sums);
    for (; d + VEC_LANES <= size; d += VEC_LANES) add_span(queries, 1, job, d, sums);
    for (; d < size; d++) add_element(queries, job, d, sums);
}

static void add_values_of(int queries, const Weighing *job, int64_t size, float *const *sums) {
    switch (queries) {
        case 1: add_values(1, job, size, sums); return;
        case 2: add_values(2, job, size, sums); return;
        default: add_values(3, job, size, sums);
    }
}

/* ---- one chunk ---- */

static void score_all(const AttentionJob *job, Tile tile, int64_t kv_head, Keys keys, float *scores) {
    int64_t queries = tile.count * job->group;
    for (int64_t first = 0, share; first < queries; first += share, keys.next = NULL) {
        const float *query[QUERIES_AT_ONCE];
        share = next_share(queries - first);
        for (int q = 0; q < share; q++) query[q] = query_at(job, tile, kv_head, first + q);
        score_keys_of((int)share, query, &keys, scores + first * CHUNK);
    }
}

/* `next`: what is read afterwards; or NULL. */
static void attend_head(const AttentionJob *job, Tile tile, int64_t kv_head, int64_t begin, const int64_t *offsets,
                        const int64_t *next, Bench *bench, char *states) {
    int64_t size = job->params->head_size;
    int count = (int)(least(CHUNK, tile_last(job, tile) + 1 - begin) + VEC_LANES - 1) / VEC_LANES * VEC_LANES;
    score_all(job, tile, kv_head, (Keys){job->cache->keys, offsets, next, size, count}, bench->scores);
    for (int64_t query = 0, queries; query < tile.count * job->group; query += queries) {
        int64_t token = tile.first + query / job->group;
        queries = next_share(job->group - query % job->group);
        float factors[QUERIES_AT_ONCE], *sums[QUERIES_AT_ONCE], *scores = bench->scores + query * CHUNK;
        Weighing weighing = {.values = job->cache->values, .offsets = offsets, .next = query == 0 ? next : NULL,
                             .weights = scores, .factors = factors,
                             .low = most(first_seen(job, token) - begin, 0),
                             .high = least(job->batch->positions[token] - begin, CHUNK - 1)};
        if (weighing.low > weighing.high) continue;
        for (int q = 0; q < queries; q++) {
            State *state = state_at(job, states, query + q);
            factors[q] = update_softmax(state, scores + q * CHUNK, count, weighing.low, weighing.high);
            sums[q] = state->values;
        }
        add_values_of((int)queries, &weighing, size, sums);
    }
}

void chunk_attend(const AttentionJob *job, Tile tile, Heads heads, int64_t chunk, Bench *bench, char *states) {
    int64_t begin = chunk * CHUNK, offsets[CHUNK], next[CHUNK];
    locate(job, tile, heads.first, begin, CHUNK, offsets);
    for (int64_t head = heads.first; head < heads.first + heads.count; head++, states += head_bytes(job)) {
        bool more = locate_next(job, tile, heads, head, begin, offsets, next);
        attend_head(job, tile, head, begin, offsets, more ? next : NULL, bench, states);
        if (more) memcpy(offsets, next, sizeof offsets); /* the next head's, while there is one */
    }
}
