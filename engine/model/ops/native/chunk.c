/* One chunk of a context: keys and values laid out as panels, scores, weights, and the running softmax. */
#include <math.h>
#include <string.h>

#include "attention.h"

enum { AHEAD = 64 }; /* positions that are asked for before their turn */

/* ---- laying out a chunk ---- */

/* Turn PANEL keys into columns: panel[d][j] = keys[offsets[j] + d]. */
static void lay_out_keys(const float *keys, const int64_t *offsets, int64_t size, float *panel) {
    int64_t whole = size / VEC_LANES * VEC_LANES;
    for (int j = 0; j < PANEL; j += VEC_LANES)
        for (int64_t d = 0; d < whole; d += VEC_LANES) {
            vec square[VEC_LANES];
            for (int i = 0; i < VEC_LANES; i++) square[i] = vec_load(keys + offsets[j + i] + d);
            vec_transpose(square);
            for (int i = 0; i < VEC_LANES; i++) vec_store(panel + (d + i) * PANEL + j, square[i]);
        }
    for (int64_t d = whole; d < size; d++)
        for (int j = 0; j < PANEL; j++) panel[d * PANEL + j] = keys[offsets[j] + d];
}

/* Copy one position's value into its line of every value panel, padded with zeros. */
static void lay_out_value(const AttentionJob *job, const float *value, float *line) {
    int64_t size = job->params->head_size;
    for (int64_t d = 0; d < size; d += PANEL, line += CHUNK * PANEL) {
        if (size - d >= PANEL) {
            memcpy(line, value + d, PANEL * sizeof(float));
        } else {
            memset(line, 0, PANEL * sizeof(float));
            memcpy(line, value + d, (size - d) * sizeof(float));
        }
    }
}

/* Where the keys and values of positions [begin, begin + count) of a row lie in the cache. Positions outside
   [start, last] stand for the nearest one inside: nothing else is ever read. */
static void locate(const AttentionJob *job, Tile tile, int64_t kv_head, int64_t begin, int count, int64_t *offsets) {
    const TokenBatch *batch = job->batch;
    const int32_t *table = batch->block_tables + batch->rows[tile.first] * batch->max_blocks;
    int64_t start = tile_start(job, tile), last = tile_last(job, tile), block_size = batch->block_size;
    int64_t block = least(most(begin, start), last) / block_size;
    for (int i = 0; i < count; i++) {
        int64_t position = least(most(begin + i, start), last);
        while (position >= (block + 1) * block_size) block++;
        int64_t slot = table[block] * block_size + position - block * block_size;
        offsets[i] = (slot * job->params->kv_heads + kv_head) * job->params->head_size;
    }
}

/* Ask for the keys and values of the next chunk: blocks lie anywhere, so the machine cannot guess where. */
static void fetch(const AttentionJob *job, const int64_t *offsets, int count) {
    for (int i = 0; i < count; i++)
        for (int64_t d = 0; d < job->params->head_size; d += 16) {
            __builtin_prefetch(job->cache->keys + offsets[i] + d);
            __builtin_prefetch(job->cache->values + offsets[i] + d);
        }
}

/* Lay out the chunk's keys and values as far as the tile sees them. Returns the number of key panels in use. */
static int lay_out_chunk(const AttentionJob *job, Tile tile, int64_t kv_head, int64_t chunk, Bench *bench) {
    int64_t size = job->params->head_size, last = tile_last(job, tile), begin = chunk * CHUNK;
    int64_t offsets[CHUNK + PANEL];
    int panels = (int)((least(CHUNK, last + 1 - begin) + PANEL - 1) / PANEL);
    locate(job, tile, kv_head, begin, panels * PANEL, offsets);
    for (int panel = 0; panel < panels; panel++) {
        int64_t next[PANEL];
        locate(job, tile, kv_head, begin + panel * PANEL + AHEAD, PANEL, next);
        fetch(job, next, PANEL);
        lay_out_keys(job->cache->keys, offsets + panel * PANEL, size, bench->keys + panel * PANEL * size);
        for (int j = panel * PANEL; j < (panel + 1) * PANEL; j++)
            lay_out_value(job, job->cache->values + offsets[j], bench->values + j * PANEL);
    }
    return panels;
}

/* Interleave the tile's queries of one key head by bundles, as panel_product wants them. */
void chunk_lay_out_queries(const AttentionJob *job, Tile tile, int64_t kv_head, Bench *bench) {
    int64_t size = job->params->head_size, width = job->params->heads * size, count = tile.count * job->group;
    for (int64_t query = 0; query < count; query++) {
        int64_t bundle = query / MAX_ROWS * MAX_ROWS, rows = least(MAX_ROWS, count - bundle);
        int64_t token = tile.first + query / job->group, head = kv_head * job->group + query % job->group;
        const float *from = job->queries + token * width + head * size;
        float *to = bench->queries + bundle * size + query - bundle;
        for (int64_t d = 0; d < size; d++) to[d * rows] = from[d];
    }
}

/* ---- one chunk ---- */

static ivec lanes_between(int64_t begin, int64_t low, int64_t high) {
    ivec lane;
    for (int i = 0; i < VEC_LANES; i++) lane[i] = i;
    return (lane >= (int32_t)(low - begin)) & (lane <= (int32_t)(high - begin));
}

/* Turn one query's scores of a chunk into weights e^(score - top), zero outside offsets [low, high], and bring the
   state's top and sum up to date. Returns the factor for what the state has summed before. */
static float update_softmax(State *state, float *scores, int64_t stride, int panels, int64_t low, int64_t high) {
    vec tops = vec_set(-INFINITY), sums = {0};
    for (int offset = 0; offset < panels * PANEL; offset += VEC_LANES) {
        float *at = scores + offset / PANEL * stride + offset % PANEL;
        vec score = vec_select(lanes_between(offset, low, high), vec_load(at), vec_set(-INFINITY));
        vec_store(at, score);
        tops = vec_max(score, tops);
    }
    float top = vec_top(tops);
    if (state->top > top) top = state->top;
    for (int offset = 0; offset < panels * PANEL; offset += VEC_LANES) {
        float *at = scores + offset / PANEL * stride + offset % PANEL;
        vec weight = vec_exp(vec_load(at) - top);
        vec_store(at, weight);
        sums += weight;
    }
    float factor = exponential(state->top - top);
    state->top = top;
    state->sum = FMA(state->sum, factor, vec_sum(sums));
    return factor;
}

/* Add the weighted values of offsets [low, high] to the states of up to MAX_ROWS queries of one token. */
static void add_values(const AttentionJob *job, const Bench *bench, int64_t query, int rows, const float *factors,
                       int64_t low, int64_t high, char *states) {
    _Alignas(64) float weights[CHUNK * MAX_ROWS], product[MAX_ROWS * PANEL];
    int64_t stride = job->tile_queries * PANEL;
    for (int r = 0; r < rows; r++) {
        const float *scores = bench->scores + (query + r) * PANEL;
        for (int64_t offset = low; offset <= high; offset++)
            weights[offset * rows + r] = scores[offset / PANEL * stride + offset % PANEL];
    }
    for (int64_t panel = 0; panel < job->value_panels; panel++) {
        const float *values = bench->values + (panel * CHUNK + low) * PANEL;
        panel_product(FLOAT32, rows, high - low + 1, weights + low * rows, values, product);
        for (int r = 0; r < rows; r++) {
            float *sums = state_at(job, states, query + r)->values + panel * PANEL;
            for (int j = 0; j < PANEL; j += VEC_LANES)
                vec_store(sums + j, vec_load(sums + j) * factors[r] + vec_load(product + r * PANEL + j));
        }
    }
}

void chunk_attend(const AttentionJob *job, Tile tile, int64_t kv_head, int64_t chunk, Bench *bench, char *states) {
    int64_t size = job->params->head_size, count = tile.count * job->group, begin = chunk * CHUNK;
    int64_t stride = job->tile_queries * PANEL;
    int panels = lay_out_chunk(job, tile, kv_head, chunk, bench);
    for (int panel = 0; panel < panels; panel++)
        for (int64_t query = 0; query < count; query += MAX_ROWS)
            panel_product(FLOAT32, (int)least(MAX_ROWS, count - query), size, bench->queries + query * size,
                          bench->keys + panel * PANEL * size, bench->scores + panel * stride + query * PANEL);
    for (int64_t query = 0; query < count;) {
        int64_t token = tile.first + query / job->group;
        int64_t low = most(first_seen(job, token) - begin, 0);
        int64_t high = least(job->batch->positions[token] - begin, CHUNK - 1);
        int rows = (int)least(MAX_ROWS, job->group - query % job->group);
        float factors[MAX_ROWS];
        if (low <= high) {
            for (int r = 0; r < rows; r++)
                factors[r] = update_softmax(state_at(job, states, query + r), bench->scores + (query + r) * PANEL,
                                            stride, panels, low, high);
            add_values(job, bench, query, rows, factors, low, high, states);
        }
        query += rows;
    }
}

