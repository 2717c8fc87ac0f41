/* Linear layers: packing, embedding rows, and products with norm, bias, residual or gate fused.

   A weight [out, in] is kept as ceil(out / PANEL) panels in one of panel.h's formats, the last one padded with zeros: a
   token's pass reads it once, in order. Threads share the panels out among themselves; no sum is ever split. */
#include <string.h>
#include <sys/mman.h>

#include "linear.h"
#include "norm.h"
#include "panel.h"

enum {
    ITEMS_PER_THREAD = 8,       /* fine enough that no thread waits long for the last one */
    ITEM_BYTES = 384 * 1024,    /* weights of one item stay in a core's second-level cache */
    EXPAND_TILES = 4,           /* from so many tiles on, a panel is expanded once */
    SERIAL_PACK_VALUES = 32768, /* fewer activations than this are packed by the calling thread */
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
    const Scratch *own; /* each thread's room for two expanded panels; NULL: panels are read as they are */
    float eps;
} Job;

/* A panel as the product reads it. */
typedef struct {
    const void *data;
    Format format;
} View;

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

static void multiply_panel(const Job *job, int64_t panel, Tile tile, View view, View up_view) {
    _Alignas(64) float product[MAX_ROWS * PANEL], up[MAX_ROWS * PANEL];
    int64_t in = job->weight->in_features;
    const float *x = job->packed + tile.first * in;
    panel_product(view.format, tile.rows, in, x, view.data, product);
    add_bias(job, panel, tile.rows, product);
    if (job->up_panel == 0) {
        store(job, panel, tile, product);
        return;
    }
    panel_product(up_view.format, tile.rows, in, x, up_view.data, up);
    add_bias(job, panel + job->up_panel, tile.rows, up);
    store_gated(job, panel, tile, product, up);
}

/* The panel itself, or where many tiles read it, its expansion in one of the thread's two places. */
static View view_panel(const Job *job, int64_t panel, int place, int thread) {
    const Linear *weight = job->weight;
    const char *data = weight->panels + panel * weight->panel_bytes;
    if (job->own == NULL) return (View){.data = data, .format = weight->format};
    float *expanded = (float *)job->own[thread].data + place * weight->in_features * PANEL;
    panel_expand(weight->format, weight->in_features, data, expanded);
    return (View){.data = expanded, .format = FLOAT32};
}

static void multiply_item(void *argument, int64_t item, int thread) {
    const Job *job = argument;
    int64_t first = item * job->item_panels, end = first + job->item_panels;
    if (end > job->panels) end = job->panels;
    for (int64_t panel = first; panel < end; panel++) {
        View view = view_panel(job, panel, 0, thread), up = {0};
        if (job->up_panel) up = view_panel(job, panel + job->up_panel, 1, thread);
        for (int64_t t = 0; t < num_tiles(job); t++) multiply_panel(job, panel, tile_at(job, t), view, up);
    }
}

static int64_t panels_per_item(const Job *job, int threads) {
    int64_t even = job->panels / (threads * ITEMS_PER_THREAD);
    int64_t cached = ITEM_BYTES / job->weight->panel_bytes;
    int64_t panels = even < cached ? even : cached;
    return panels > 1 ? panels : 1;
}

/* Expanding a panel once is cheaper than decoding it for every tile. */
static int prepare_expansion(Context *context, Job *job) {
    if (job->weight->format == FLOAT32 || num_tiles(job) < EXPAND_TILES) return OK;
    job->own = context->own;
    return context_reserve_own(context, 2 * job->weight->in_features * PANEL * sizeof(float));
}

static int run(Context *context, Job *job) {
    if (job->tokens == 0) return OK;
    Pool *pool = context->pool;
    int64_t values = job->tokens * job->weight->in_features;
    job->packed = scratch_reserve(&context->shared, values * sizeof(float));
    if (job->packed == NULL || prepare_expansion(context, job) != OK) return OUT_OF_MEMORY;
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
