/* Attention: what the host hands over (a layer, where the tokens stand, the cache), and what the files share. */
#ifndef ADADECODE_ATTENTION_H
#define ADADECODE_ATTENTION_H

#include <stdint.h>

#include "context.h"
#include "vector.h"

typedef struct {
    const float *cos; /* [max_positions, head_size / 2] */
    const float *sin;
    const float *q_norm; /* [head_size] or NULL */
    const float *k_norm;
    int64_t max_positions;
    int32_t heads;
    int32_t kv_heads;
    int32_t head_size;
    int32_t window; /* positions a token sees, itself included; 0 for all */
    float scale;
    float eps;
} AttentionParams;

typedef struct {
    const int32_t *positions; /* [tokens] */
    const int32_t *slots;     /* [tokens] */
    const int32_t *rows;      /* [tokens] */
    const int32_t *block_tables; /* [num_rows, max_blocks] */
    int64_t tokens;
    int64_t num_rows;
    int64_t max_blocks;
    int64_t block_size;
} TokenBatch;

typedef struct {
    float *keys; /* [num_slots, kv_heads, head_size] */
    float *values;
    int64_t num_slots;
} LayerCache;

/* qkv: [tokens, (heads + 2 kv_heads) * head_size], queries first; out: [tokens, heads * head_size]. */
int attention_forward(Context *context, const AttentionParams *params, const TokenBatch *batch,
                      const LayerCache *cache, const float *qkv, float *out);

/* Normalize and rotate a token's queries and keys, scale the queries, and write keys and values at its slot.
   qkv: [(heads + 2 kv_heads) * head_size]; queries: [heads * head_size]. */
void rotary_place_token(const AttentionParams *params, const TokenBatch *batch, const LayerCache *cache,
                        int64_t token, const float *qkv, float *queries);

/* ---- between the files of this operation ---- */

enum {
    CHUNK = 64, /* positions of one softmax update */
};

/* Tokens [first, first + count) of the call, all of one row, in ascending positions. */
typedef struct {
    int64_t first;
    int64_t count;
} Tile;

/* Key heads [first, first + count). */
typedef struct {
    int64_t first;
    int64_t count;
} Heads;

/* Running softmax of one query: sum of e^(score - top) and of values weighted so; then padding. */
typedef struct {
    float top;
    float sum;
    float padding[14];
    float values[]; /* head_size, in whole cache lines */
} State;

typedef struct {
    const AttentionParams *params;
    const TokenBatch *batch;
    const LayerCache *cache;
    const float *qkv;
    float *queries; /* [tokens, heads * head_size] */
    float *out;     /* [tokens, heads * head_size] */
    Tile *tiles;
    char *partial;  /* states by tile, part, key head and query, when parts run in parallel; or NULL */
    Context *context;
    int64_t num_tiles;
    int64_t max_parts;
    int64_t run;          /* parts of an item, when parts run in parallel */
    int64_t heads;        /* key heads of an item */
    int64_t group;        /* query heads per key head */
    int64_t tile_queries; /* most queries of a tile and key head */
    size_t state_size;
} AttentionJob;

/* A thread's own memory. */
typedef struct {
    float *scores; /* [tile_queries, CHUNK] */
    char *states;  /* of the part at hand, by key head */
    char *merged;  /* of all parts so far, by key head */
} Bench;

static inline State *state_at(const AttentionJob *job, char *states, int64_t query) {
    return (State *)(states + query * job->state_size);
}

/* Bytes of the states of a tile's queries of one key head. */
static inline size_t head_bytes(const AttentionJob *job) { return job->tile_queries * job->state_size; }

/* The first position a token sees. */
static inline int64_t first_seen(const AttentionJob *job, int64_t token) {
    int64_t position = job->batch->positions[token], window = job->params->window;
    return window > 0 ? most(0, position + 1 - window) : 0;
}

/* The first and the last position that any token of a tile sees. */
static inline int64_t tile_start(const AttentionJob *job, Tile tile) { return first_seen(job, tile.first); }
static inline int64_t tile_last(const AttentionJob *job, Tile tile) {
    return job->batch->positions[tile.first + tile.count - 1];
}

/* e^x, the same as in every lane of vec_exp. */
static inline float exponential(float x) { return vec_exp(vec_set(x))[0]; }

/* Let a tile's queries attend to chunk number `chunk` (from position chunk * CHUNK), as far as each of them sees it,
   and bring their states, by key head, up to date. */
void chunk_attend(const AttentionJob *job, Tile tile, Heads heads, int64_t chunk, Bench *bench, char *states);

#endif
