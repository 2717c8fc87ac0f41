/* Causal attention over the paged cache, in place.

   A context is cut at fixed positions into parts, a part into chunks. Within a part the softmax is taken online,
   chunk by chunk; parts are merged in order. All cuts and orders depend on positions alone, so a token's result is
   the same whoever shares the call, and whether parts were computed one after another or by several threads.
   Tokens of a row that stand side by side form a tile and share the reading of keys and values. */
#include "attention.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

enum {
    PART = 2 * CHUNK,      /* positions of one independent partial result */
    TILE_QUERIES = 24,     /* queries that share a chunk, unless one token has more per key head */
    PLACE_TOKENS = 8,      /* tokens of one item when queries, keys and values are placed */
    TILES_PER_THREAD = 4,  /* with fewer, tiles are cut into items */
    RUNS_PER_THREAD = 8,   /* of parts: one chunk after the other is asked for in time */
    MOST_PARTIAL_BYTES = 16 << 20,
};

/* ---- memory ---- */

static size_t bench_size(const AttentionJob *job) {
    return job->tile_queries * CHUNK * sizeof(float) + 2 * job->params->kv_heads * head_bytes(job);
}

static Bench bench_of(const AttentionJob *job, int thread) {
    Bench bench;
    bench.scores = job->context->own[thread].data;
    bench.states = (char *)(bench.scores + CHUNK * job->tile_queries);
    bench.merged = bench.states + job->params->kv_heads * head_bytes(job);
    return bench;
}

static void clear_states(const AttentionJob *job, Tile tile, Heads heads, char *states) {
    for (int64_t head = 0; head < heads.count; head++, states += head_bytes(job))
        for (int64_t i = 0; i < tile.count * job->group; i++) {
            State *state = state_at(job, states, i);
            memset(state, 0, job->state_size);
            state->top = -INFINITY;
        }
}

/* ---- parts, and their merging ---- */

static void attend_part(const AttentionJob *job, Tile tile, Heads heads, int64_t part, Bench *bench, char *states) {
    int64_t first = most(part * PART, tile_start(job, tile)) / CHUNK;
    int64_t last = least(part * PART + PART - 1, tile_last(job, tile)) / CHUNK;
    clear_states(job, tile, heads, states);
    for (int64_t chunk = first; chunk <= last; chunk++) chunk_attend(job, tile, heads, chunk, bench, states);
}

static void merge_head(const AttentionJob *job, Tile tile, char *merged, char *states) {
    for (int64_t i = 0; i < tile.count * job->group; i++) {
        State *into = state_at(job, merged, i), *from = state_at(job, states, i);
        if (from->sum == 0.0f) continue; /* this query sees nothing of the part */
        float top = into->top > from->top ? into->top : from->top;
        float keep = exponential(into->top - top), add = exponential(from->top - top);
        into->top = top;
        into->sum = FMA(into->sum, keep, from->sum * add);
        for (int64_t j = 0; j < job->params->head_size; j++)
            into->values[j] = FMA(into->values[j], keep, from->values[j] * add);
    }
}

static void merge_states(const AttentionJob *job, Tile tile, Heads heads, char *merged, char *states) {
    for (int64_t head = 0; head < heads.count; head++)
        merge_head(job, tile, merged + head * head_bytes(job), states + head * head_bytes(job));
}

static void write_head(const AttentionJob *job, Tile tile, int64_t kv_head, char *merged) {
    int64_t size = job->params->head_size, width = job->params->heads * size;
    for (int64_t query = 0; query < tile.count * job->group; query++) {
        const State *state = state_at(job, merged, query);
        int64_t token = tile.first + query / job->group, head = kv_head * job->group + query % job->group;
        float *out = job->out + token * width + head * size;
        for (int64_t d = 0; d < size; d++) out[d] = state->values[d] / state->sum;
    }
}

static void write_out(const AttentionJob *job, Tile tile, Heads heads, char *merged) {
    for (int64_t head = 0; head < heads.count; head++)
        write_head(job, tile, heads.first + head, merged + head * head_bytes(job));
}

/* ---- items ---- */

static int64_t first_part(const AttentionJob *job, Tile tile) { return tile_start(job, tile) / PART; }
static int64_t last_part(const AttentionJob *job, Tile tile) { return tile_last(job, tile) / PART; }

/* Item: a tile and some of its key heads, all parts. */
static void attend_whole(void *argument, int64_t item, int thread) {
    const AttentionJob *job = argument;
    int64_t shares = job->params->kv_heads / job->heads;
    Tile tile = job->tiles[item / shares];
    Heads heads = {.first = item % shares * job->heads, .count = job->heads};
    Bench bench = bench_of(job, thread);
    clear_states(job, tile, heads, bench.merged);
    for (int64_t part = first_part(job, tile); part <= last_part(job, tile); part++) {
        attend_part(job, tile, heads, part, &bench, bench.states);
        merge_states(job, tile, heads, bench.merged, bench.states);
    }
    write_out(job, tile, heads, bench.merged);
}

/* States of a part, counted from the tile's first one. */
static char *partial_at(const AttentionJob *job, int64_t tile, int64_t part) {
    return job->partial + (tile * job->max_parts + part) * job->params->kv_heads * head_bytes(job);
}

static int64_t num_runs(const AttentionJob *job) { return (job->max_parts + job->run - 1) / job->run; }

/* Item: a tile and a run of parts. */
static void attend_partially(void *argument, int64_t item, int thread) {
    const AttentionJob *job = argument;
    int64_t index = item / num_runs(job), begin = item % num_runs(job) * job->run;
    Tile tile = job->tiles[index];
    int64_t first = first_part(job, tile), end = least(begin + job->run, last_part(job, tile) - first + 1);
    Heads all = {.first = 0, .count = job->heads};
    Bench bench = bench_of(job, thread);
    for (int64_t part = begin; part < end; part++)
        attend_part(job, tile, all, first + part, &bench, partial_at(job, index, part));
}

/* Item: a tile and key head, whose parts have been computed. */
static void merge_parts(void *argument, int64_t item, int thread) {
    const AttentionJob *job = argument;
    int64_t index = item / job->params->kv_heads;
    Heads head = {.first = item % job->params->kv_heads, .count = 1};
    Tile tile = job->tiles[index];
    char *merged = bench_of(job, thread).merged;
    clear_states(job, tile, head, merged);
    for (int64_t part = 0; part <= last_part(job, tile) - first_part(job, tile); part++)
        merge_states(job, tile, head, merged, partial_at(job, index, part) + head.first * head_bytes(job));
    write_out(job, tile, head, merged);
}

static void place_tokens(void *argument, int64_t item, int thread) {
    (void)thread;
    const AttentionJob *job = argument;
    const AttentionParams *params = job->params;
    int64_t size = params->head_size, end = least((item + 1) * PLACE_TOKENS, job->batch->tokens);
    for (int64_t token = item * PLACE_TOKENS; token < end; token++)
        rotary_place_token(params, job->batch, job->cache, token,
                           job->qkv + token * (params->heads + 2 * params->kv_heads) * size,
                           job->queries + token * params->heads * size);
}

/* ---- the operation ---- */

static bool is_in_range(const AttentionJob *job) {
    const TokenBatch *batch = job->batch;
    for (int64_t t = 0; t < batch->tokens; t++) {
        int64_t position = batch->positions[t], slot = batch->slots[t], row = batch->rows[t];
        if (position < 0 || position >= job->params->max_positions) return false;
        if (position / batch->block_size >= batch->max_blocks) return false;
        if (slot < 0 || slot >= job->cache->num_slots || row < 0 || row >= batch->num_rows) return false;
    }
    return true;
}

/* Whether a token stands in a slot that its row's table does not name. */
static bool is_aside(const TokenBatch *batch, int64_t token) {
    int64_t position = batch->positions[token], block = position / batch->block_size;
    const int32_t *table = batch->block_tables + batch->rows[token] * batch->max_blocks;
    return batch->slots[token] != table[block] * batch->block_size + position % batch->block_size;
}

/* Whether the token after a tile's last one may join it: one that stands aside is a tile of its own. */
static bool joins(const TokenBatch *batch, int64_t token) {
    bool is_same_row = batch->rows[token] == batch->rows[token - 1];
    return is_same_row && !is_aside(batch, token) && !is_aside(batch, token - 1);
}

static void cut_tiles(AttentionJob *job) {
    int64_t limit = job->tile_queries / job->group;
    for (int64_t first = 0; first < job->batch->tokens;) {
        int64_t count = 1;
        while (count < limit && first + count < job->batch->tokens && joins(job->batch, first + count)) count++;
        Tile tile = {.first = first, .count = count};
        job->tiles[job->num_tiles++] = tile;
        job->max_parts = most(job->max_parts, last_part(job, tile) - first_part(job, tile) + 1);
        first += count;
    }
}

static size_t partial_bytes(const AttentionJob *job) {
    return job->num_tiles * job->max_parts * job->params->kv_heads * head_bytes(job);
}

/* All key heads of a tile are best computed together: they lie side by side, and the machine fetches neighbours
   unasked. So with too few tiles for the threads, contexts are cut before heads are. */
static void share_out(AttentionJob *job, int threads) {
    bool suffices = threads == 1 || job->num_tiles >= TILES_PER_THREAD * threads;
    bool is_split = !suffices && job->max_parts > 1 && partial_bytes(job) <= MOST_PARTIAL_BYTES;
    job->heads = suffices || is_split ? job->params->kv_heads : 1;
    job->run = is_split ? most(job->num_tiles * job->max_parts / (RUNS_PER_THREAD * threads), 1) : 0;
}

static int run(AttentionJob *job) {
    Context *context = job->context;
    Pool *pool = context->pool;
    int64_t tokens = job->batch->tokens, width = (int64_t)job->params->heads * job->params->head_size;
    size_t queries = tokens * width * sizeof(float);
    char *shared = scratch_reserve(&context->shared, queries + tokens * sizeof(Tile));
    if (shared == NULL || context_reserve_own(context, bench_size(job)) != OK) return OUT_OF_MEMORY;
    job->queries = (float *)shared;
    job->tiles = (Tile *)(shared + queries);
    cut_tiles(job);
    pool_run(pool, place_tokens, job, (tokens + PLACE_TOKENS - 1) / PLACE_TOKENS);
    share_out(job, pool_threads(pool));
    if (job->run == 0) {
        pool_run(pool, attend_whole, job, job->num_tiles * (job->params->kv_heads / job->heads));
        return OK;
    }
    job->partial = scratch_reserve(&context->partial, partial_bytes(job));
    if (job->partial == NULL) return OUT_OF_MEMORY;
    pool_run(pool, attend_partially, job, job->num_tiles * num_runs(job));
    pool_run(pool, merge_parts, job, job->num_tiles * job->params->kv_heads);
    return OK;
}

int attention_forward(Context *context, const AttentionParams *params, const TokenBatch *batch,
                      const LayerCache *cache, const float *qkv, float *out) {
    int64_t group = params->heads / params->kv_heads;
    int64_t values = (params->head_size + 15) / 16 * 16;
    AttentionJob job = {.params = params, .batch = batch, .cache = cache, .qkv = qkv, .out = out, .context = context,
               .group = group, .tile_queries = most(TILE_QUERIES / group, 1) * group,
               .state_size = sizeof(State) + values * sizeof(float)};
    if (!is_in_range(&job)) return BAD_INDEX;
    context_enter(context);
    int status = run(&job);
    context_leave(context);
    return status;
}
