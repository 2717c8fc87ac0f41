/* Linear layers: packing, embedding rows, and products with norm, bias, residual or gate fused.

   A weight [out, in] is kept as ceil(out / PANEL) panels in one of panel.h's formats, the last one padded with zeros: a
   token's pass reads it once, in order. Threads share the panels out among themselves; no sum is ever split. */
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include "linear.h"
#include "norm.h"
#include "panel.h"

enum {
    ITEMS_PER_THREAD = 8,       /* fine enough that no thread waits long for the last one */
    ITEM_BYTES = 384 * 1024,    /* weights of one item stay in a core's second-level cache */
    EXPAND_TILES = 4,           /* from so many tiles on, BFLOAT16 is made floats once */
    STRETCH = 128,              /* of k: what several tiles read of a panel at a time, from the first-level cache */
    LINE = 64,                  /* bytes that come from memory at once */
    TILES_AT_ONCE = 96 / MAX_ROWS, /* tiles that share a stretch */
    SERIAL_PACK_VALUES = 4096,  /* fewer activations than this are packed by the calling thread */
};

static int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- packing weights and reading them back ---- */

/* Ask for huge pages under a weight that has not been written yet: a pass over it then misses fewer translations
   (5 to 12 % of the time of few tokens on an EPYC). A wish: nothing depends on its being granted. */
void linear_prefer_huge_pages(void *panels, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t huge = 2 << 20;
    uintptr_t begin = ((uintptr_t)panels + huge - 1) / huge * huge, end = ((uintptr_t)panels + bytes) / huge * huge;
    if (end > begin) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)panels, (void)bytes;
#endif
}

/* Bytes of all panels. */
int64_t linear_bytes(int32_t format, int64_t out_features, int64_t in_features) {
    return ceil_divide(out_features, PANEL) * panel_bytes(format, in_features);
}

static char *panel_of(const Linear *weight, int64_t row) {
    return (char *)weight->panels + row / PANEL * weight->panel_bytes;
}

/* Rows [first, first + rows) of a weight, given as float32 [rows, in], into its zeroed panels. */
void linear_pack(const Linear *weight, const float *values, int64_t first, int64_t rows) {
    int64_t in = weight->in_features;
    for (int64_t row = first; row < first + rows; row++)
        panel_fill(weight->format, in, (SourceRow){.values = values + (row - first) * in}, row % PANEL,
                   panel_of(weight, row));
}

/* The same for codes [rows, in] (of four bits: [rows, in / 2]), scales and minimums [rows, in / BLOCK]. */
void linear_pack_codes(const Linear *weight, const uint8_t *codes, const uint16_t *scales, const uint16_t *minimums,
                       int64_t first, int64_t rows) {
    int64_t in = weight->in_features, blocks = in / BLOCK, width = weight->format == INT4 ? in / 2 : in;
    for (int64_t i = 0; i < rows; i++) {
        SourceRow row = {.codes = codes + i * width, .scales = scales + i * blocks};
        if (minimums != NULL) row.minimums = minimums + i * blocks;
        panel_fill(weight->format, in, row, (first + i) % PANEL, panel_of(weight, first + i));
    }
}

/* out[i] = row token_ids[i] of the weight. */
int linear_embed(const Linear *table, const int32_t *token_ids, int64_t count, float *out) {
    int64_t in = table->in_features;
    for (int64_t i = 0; i < count; i++) {
        int64_t id = token_ids[i];
        if (id < 0 || id >= table->out_features) return BAD_INDEX;
        panel_column(table->format, in, panel_of(table, id), id % PANEL, out + i * in);
    }
    return OK;
}

/* ---- products ---- */

typedef struct {
    const Linear *weight;
    const float *x;        /* [tokens, in] */
    const float *norm;     /* [in] or NULL */
    const float *residual; /* [tokens, out] or NULL */
    float *packed;         /* the same size as x: per tile [in, rows of the tile] */
    float *out;            /* [tokens, out], or [tokens, out / 2] for gate and up */
    int64_t tokens;
    int64_t panels;     /* columns of the result, in panels */
    int64_t item_panels;
    int64_t up_panel;   /* gate and up: panels between the two; 0 for a plain product */
    float eps;
} Job;

/* Tokens [first, first + rows). */
typedef struct {
    int64_t first;
    int rows;
} Tile;

static int64_t num_tiles(const Job *job) { return ceil_divide(job->tokens, MAX_ROWS); }

/* Tiles differ by one row at most: a last tile of one row would cost nearly as much as a full one. */
static Tile tile_at(const Job *job, int64_t index) {
    int64_t tiles = num_tiles(job), rows = job->tokens / tiles, longer = job->tokens % tiles;
    int64_t first = index * rows + (index < longer ? index : longer);
    return (Tile){.first = first, .rows = (int)(rows + (index < longer))};
}

/* Normalize the tile's rows and interleave them. */
static void pack_tile(void *argument, int64_t index, int thread) {
    (void)thread;
    const Job *job = argument;
    Tile tile = tile_at(job, index);
    int64_t in = job->weight->in_features;
    float *packed = job->packed + tile.first * in;
    for (int r = 0; r < tile.rows; r++) {
        const float *x = job->x + (tile.first + r) * in;
        if (job->norm == NULL) {
            for (int64_t k = 0; k < in; k++) packed[k * tile.rows + r] = x[k];
        } else {
            float inverse = inverse_rms(x, in, job->eps);
            for (int64_t k = 0; k < in; k++) packed[k * tile.rows + r] = job->norm[k] * (x[k] * inverse);
        }
    }
}

static void add_bias(const Job *job, int64_t panel, int rows, float *product) {
    if (job->weight->bias == NULL) return;
    const float *bias = job->weight->bias + panel * PANEL;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < PANEL; j++) product[r * PANEL + j] += bias[j];
}

static void store(const Job *job, int64_t panel, Tile tile, const float *product) {
    int64_t out = job->weight->out_features, column = panel * PANEL;
    int64_t width = out - column < PANEL ? out - column : PANEL;
    for (int r = 0; r < tile.rows; r++) {
        int64_t at = (tile.first + r) * out + column;
        if (job->residual == NULL) {
            memcpy(job->out + at, product + r * PANEL, width * sizeof(float));
        } else {
            for (int j = 0; j < width; j++) job->out[at + j] = job->residual[at + j] + product[r * PANEL + j];
        }
    }
}

/* silu(gate) * up; the width is a whole number of panels. */
static void store_gated(const Job *job, int64_t panel, Tile tile, const float *gate, const float *up) {
    int64_t out = job->weight->out_features / 2;
    for (int r = 0; r < tile.rows; r++)
        for (int j = 0; j < PANEL; j += VEC_LANES) {
            vec value = vec_silu(vec_load(gate + r * PANEL + j)) * vec_load(up + r * PANEL + j);
            vec_store(job->out + (tile.first + r) * out + panel * PANEL + j, value);
        }
}

/* Whether weights are turned into floats before they are multiplied: once for all the tiles. */
static bool is_expanded(const Job *job) {
    Format format = job->weight->format;
    if (format == BFLOAT16) return num_tiles(job) >= EXPAND_TILES; /* quickly made a float, again and again */
    return format != FLOAT32 && job->tokens > MAX_CODE_ROWS;
}

/* sums[r][j] = one panel's product with every row of tiles [first, end), a stretch of k after the other. While the
   tiles share a stretch, they ask for the next one, each for its part: memory never waits for arithmetic. */
static void multiply_tiles(const Job *job, const char *panel, int64_t first, int64_t end, float *sums) {
    _Alignas(64) float expanded[STRETCH * PANEL];
    int64_t in = job->weight->in_features, base = tile_at(job, first).first;
    Format format = job->weight->format, read = is_expanded(job) ? FLOAT32 : format;
    for (int64_t k = 0, depth; k < in; k += depth) {
        depth = in - k < STRETCH ? in - k : STRETCH;
        const char *weights = panel + panel_bytes(format, k);
        int64_t bytes = panel_bytes(format, depth), lines = panel_bytes(read, depth) / LINE * (end - first);
        Ahead ahead = {.at = weights + bytes, .step = ceil_divide(bytes, lines)};
        if (is_expanded(job)) {
            panel_expand(format, depth, weights, expanded);
            weights = (const char *)expanded;
        }
        for (int64_t t = first; t < end; t++) {
            Tile tile = tile_at(job, t);
            const float *x = job->packed + tile.first * in + k * tile.rows;
            panel_product(read, tile.rows, 1, depth, x, &weights, sums + (tile.first - base) * PANEL, ahead);
            ahead.at += ahead.step * (lines / (end - first));
        }
    }
}

/* sums[p][r][j] for `count` panels and the only tile, as many panels at once as it is good for. */
static void multiply_panels(const Job *job, const char *const *panels, int count, float *sums) {
    int rows = (int)job->tokens;
    int64_t in = job->weight->in_features;
    Format format = job->weight->format;
    int together = PANELS_AT_ONCE(format, rows);
    for (int p = 0; p < count; p += together) {
        Ahead ahead = {.at = panels[p] + BYTES_AHEAD, .step = LINE};
        panel_product(format, rows, together, in, job->packed, panels + p, sums + p * rows * PANEL, ahead);
    }
}

/* Columns of the result, in panels, that are computed together. */
static int columns_at_once(const Job *job) {
    if (num_tiles(job) > 1 || is_expanded(job)) return 1;
    return job->up_panel ? MAX_PANELS / 2 : MAX_PANELS;
}

static void finish(const Job *job, int64_t column, Tile tile, float *sums) {
    add_bias(job, column, tile.rows, sums);
    if (job->up_panel == 0) {
        store(job, column, tile, sums);
        return;
    }
    float *up = sums + tile.rows * PANEL;
    add_bias(job, column + job->up_panel, tile.rows, up);
    store_gated(job, column, tile, sums, up);
}

/* A few columns of the result, for all tokens. A column is a panel, or one of gate and one of up. */
static void multiply_columns(const Job *job, int64_t column, int count) {
    _Alignas(64) float sums[2 * TILES_AT_ONCE * MAX_ROWS * PANEL]; /* or MAX_PANELS of one tile, which are fewer */
    const char *panels[MAX_PANELS];
    int per_column = job->up_panel ? 2 : 1;
    for (int p = 0; p < MAX_PANELS; p++) { /* some may be multiplied for nothing, behind the last column */
        int64_t at = column + (p / per_column < count ? p / per_column : count - 1);
        panels[p] = job->weight->panels + (at + p % per_column * job->up_panel) * job->weight->panel_bytes;
    }
    for (int64_t first = 0, end; first < num_tiles(job); first = end) {
        end = first + TILES_AT_ONCE < num_tiles(job) ? first + TILES_AT_ONCE : num_tiles(job);
        Tile last = tile_at(job, end - 1), all = {.first = tile_at(job, first).first};
        all.rows = (int)(last.first + last.rows - all.first);
        memset(sums, 0, (columns_at_once(job) > 1 ? MAX_PANELS : per_column) * all.rows * PANEL * sizeof(float));
        if (columns_at_once(job) > 1) {
            multiply_panels(job, panels, count * per_column, sums);
        } else {
            for (int p = 0; p < per_column; p++)
                multiply_tiles(job, panels[p], first, end, sums + p * all.rows * PANEL);
        }
        for (int i = 0; i < count; i++) finish(job, column + i, all, sums + i * per_column * all.rows * PANEL);
    }
}

static void multiply_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const Job *job = argument;
    int64_t first = item * job->item_panels, end = first + job->item_panels;
    if (end > job->panels) end = job->panels;
    int step = columns_at_once(job);
    for (int64_t column = first; column < end; column += step)
        multiply_columns(job, column, end - column < step ? (int)(end - column) : step);
}

static int64_t panels_per_item(const Job *job, int threads) {
    int64_t even = job->panels / (threads * ITEMS_PER_THREAD), step = columns_at_once(job);
    int64_t cached = ITEM_BYTES / job->weight->panel_bytes;
    int64_t panels = (even < cached ? even : cached) / step * step;
    return panels > step ? panels : step;
}

static int run(Context *context, Job *job) {
    if (job->tokens == 0) return OK;
    Pool *pool = context->pool;
    int64_t values = job->tokens * job->weight->in_features;
    job->packed = scratch_reserve(&context->shared, values * sizeof(float));
    if (job->packed == NULL) return OUT_OF_MEMORY;
    if (values < SERIAL_PACK_VALUES)
        for (int64_t t = 0; t < num_tiles(job); t++) pack_tile(job, t, 0);
    else
        pool_run(pool, pack_tile, job, num_tiles(job));
    job->item_panels = panels_per_item(job, pool_threads(pool));
    pool_run(pool, multiply_item, job, ceil_divide(job->panels, job->item_panels));
    return OK;
}

int linear_forward(Context *context, const Linear *weight, const float *x, int64_t tokens, const float *norm,
                   float eps, const float *residual, float *out) {
    Job job = {.weight = weight, .x = x, .norm = norm, .eps = eps, .residual = residual, .out = out,
               .tokens = tokens, .panels = ceil_divide(weight->out_features, PANEL)};
    context_enter(context);
    int status = run(context, &job);
    context_leave(context);
    return status;
}

int linear_gate_up(Context *context, const Linear *weight, const float *x, int64_t tokens, const float *norm,
                   float eps, float *out) {
    int64_t panels = weight->out_features / 2 / PANEL;
    Job job = {.weight = weight, .x = x, .norm = norm, .eps = eps, .out = out,
               .tokens = tokens, .panels = panels, .up_panel = panels};
    context_enter(context);
    int status = run(context, &job);
    context_leave(context);
    return status;
}
