/* Products of linear layers, with norm, bias, residual or gate fused. A token's pass reads a weight once, in order.
   Threads share its panels out among themselves; no sum is ever split. */
#include <stdbool.h>
#include <string.h>

#include "linear.h"
#include "norm.h"
#include "panel.h"
#include "rounded.h"

enum {
    ITEMS_PER_THREAD = 8,       /* fine enough that no thread waits long for the last one */
    ITEM_BYTES = 384 * 1024,    /* weights of one item stay in a core's second-level cache */
    LEAST_ITEM_BYTES = 32 * 1024, /* weight bytes times tokens: handing out a smaller item costs more than it saves */
    EXPAND_TILES = 4,           /* with at least this many tiles, BFLOAT16 is expanded to floats once for all */
    PAIR_TOKENS = MAX_ROWS * 3, /* up to this many read twice the panels of floats: more are bound by arithmetic */
    STRETCH = 128,              /* of k: what several tiles read of a panel at a time, from the first-level cache */
    TILES_AT_ONCE = 96 / MAX_ROWS, /* that share a stretch */
    BYTES_AHEAD = 4096,         /* fetched ahead of use if there is only one tile: the machine's own prefetcher stops at
                                   every page (and within a page does better if it is not overtaken by far) */
    SERIAL_PACK_VALUES = 4096,  /* fewer activations than this are packed by the calling thread */
};

typedef struct {
    const Linear *weight;
    const float *x;        /* [tokens, in] */
    const float *norm;     /* [in] or NULL */
    const float *residual; /* [tokens, out] or NULL */
    char *packed;          /* a row takes row_bytes: per tile [in, rows of the tile] floats, or as rounded.h has it */
    float *out;            /* [tokens, out], or [tokens, out / 2] for gate and up */
    int64_t tokens;
    int64_t panels;     /* columns of the result, in panels */
    int64_t up_panel;   /* gate and up: panels between the two; 0 for a plain product */
    float eps;
    /* What plan() adds. */
    bool expanded;      /* weights are made floats before they are multiplied: once for all the tiles */
    int together;       /* panels read side by side at most */
    int64_t tiles;
    int64_t tile_rows;  /* of a tile at least */
    int64_t longer;     /* the first tiles, which have one row more */
    int64_t ahead;      /* of k: between the weights that are read and those that are asked for */
    int64_t step;       /* bytes of a panel that a tile asks for ahead of use, per word of a column that it reads */
    int64_t item_columns; /* columns of the result: a panel each, or one of gate and one of up */
    int64_t full_items;   /* that have so many */
    int64_t last_columns; /* of the items after them: all threads end together */
} Job;

/* Panels that are multiplied for a few columns of the result. */
typedef struct {
    int together; /* read side by side */
    int panels;   /* whose sums are kept until they are stored */
    int columns;
} Group;

/* Tokens [first, first + rows). */
typedef struct {
    int64_t first;
    int rows;
} Tile;

/* Tiles differ by one row at most: a last tile of one row would cost nearly as much as a full one. */
static Tile tile_at(const Job *job, int64_t index) {
    int64_t first = index * job->tile_rows + least(index, job->longer);
    return (Tile){.first = first, .rows = (int)(job->tile_rows + (index < job->longer))};
}

/* Whether a stretch of weights is read by one tile after the other. */
static bool is_shared(const Job *job) { return job->tiles > 1 || job->expanded; }

/* The group that begins with the first of `columns`: no larger than they need. */
static Group next_group(const Job *job, int64_t columns) {
    int per_column = job->up_panel ? 2 : 1, together = job->together;
    while (together / 2 >= columns * per_column) together /= 2;
    int panels = (int)most(together, per_column);
    return (Group){.together = together, .panels = panels, .columns = panels / per_column};
}

/* Bytes of `depth` values of a packed row. */
static int64_t row_bytes(const Job *job, int64_t depth) {
    return (job->weight->rounded ? depth / BLOCK * ROUNDED_WORDS : depth) * (int64_t)sizeof(float);
}

static void cut_items(Job *job, int threads) {
    int64_t bytes = job->weight->panel_bytes, even = job->panels / (threads * ITEMS_PER_THREAD);
    int64_t columns = most(least(even, ITEM_BYTES / bytes), ceil_divide(LEAST_ITEM_BYTES, bytes * job->tokens));
    int64_t group = next_group(job, job->panels).columns;
    job->item_columns = most(columns / group, 1) * group;
    job->full_items = job->panels / (job->item_columns * threads) * threads;
    job->last_columns = ceil_divide(job->panels - job->full_items * job->item_columns, threads);
}

/* How tokens and panels are shared out. One stream of memory per thread does not keep the memory busy: as long as it is
   what a product waits for, several panels are read side by side, and with more rows than leave registers for their
   sums, smaller tiles read them one after the other. */
static void plan(Job *job, int threads) {
    Format format = job->weight->format;
    bool paired = format == FLOAT32 && job->tokens <= PAIR_TOKENS;
    job->expanded = format == BFLOAT16 ? job->tokens > (EXPAND_TILES - 1) * MAX_ROWS
                                       : format != FLOAT32 && !job->weight->rounded && job->tokens > MAX_CODE_ROWS;
    Format read = job->expanded ? FLOAT32 : format;
    job->tiles = ceil_divide(job->tokens, paired ? MAX_ROWS / 2 : MAX_ROWS);
    job->tile_rows = job->tokens / job->tiles, job->longer = job->tokens % job->tiles;
    job->together = PANELS_AT_ONCE(read, tile_at(job, 0).rows);
    job->ahead = is_shared(job) ? STRETCH / job->together
                                : ceil_divide(BYTES_AHEAD / job->together, panel_bytes(format, BLOCK)) * BLOCK;
    int64_t words = panel_bytes(read, BLOCK) / WORD_BYTES * least(job->tiles, TILES_AT_ONCE);
    job->step = ceil_divide(panel_bytes(format, BLOCK), words);
    cut_items(job, threads);
}

/* normal[k] = x[k], normalized if need be. */
INLINE void normalize(const float *restrict norm, float inverse, const float *restrict x, int64_t depth, int64_t step,
                      float *restrict normal) {
    if (norm == NULL)
        for (int64_t k = 0; k < depth; k++, normal += step) *normal = x[k];
    else
        for (int64_t k = 0; k < depth; k++, normal += step) *normal = norm[k] * (x[k] * inverse);
}

/* Normalize the tile's rows, round them if need be, and interleave them. */
static void pack_tile(void *argument, int64_t index, int thread) {
    (void)thread;
    const Job *job = argument;
    Tile tile = tile_at(job, index);
    int64_t in = job->weight->in_features, rows = tile.rows;
    char *packed = job->packed + tile.first * row_bytes(job, in);
    for (int64_t r = 0; r < rows; r++) {
        const float *x = job->x + (tile.first + r) * in, *norm = job->norm;
        float inverse = norm == NULL ? 1.0f : inverse_rms(x, in, job->eps);
        if (!job->weight->rounded) {
            normalize(norm, inverse, x, in, rows, (float *)packed + r);
            continue;
        }
        for (int64_t k = 0; k < in; k += BLOCK) {
            float normal[BLOCK];
            normalize(norm == NULL ? NULL : norm + k, inverse, x + k, BLOCK, 1, normal);
            rounded_fill(job->weight->format, normal, (int)rows, (int)r, (int32_t *)(packed + rows * row_bytes(job, k)));
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

/* A stretch of k of the panels read side by side, with every row of tiles [first, end). */
static void multiply_stretch(const Job *job, Group group, int panel, Stream *streams, int64_t k, int64_t depth,
                             int64_t first, int64_t end, float *sums) {
    Format read = job->expanded ? FLOAT32 : job->weight->format;
    int64_t in = job->weight->in_features, share = job->step * (panel_bytes(read, depth) / WORD_BYTES);
    const char *x = job->packed + tile_at(job, first).first * row_bytes(job, in);
    for (int64_t t = first; t < end; t++) {
        int rows = tile_at(job, t).rows;
        const void *from = x + rows * row_bytes(job, k);
        float *to = sums + panel * rows * PANEL;
        if (job->weight->rounded) rounded_product(read, rows, group.together, depth, from, streams, job->step, to);
        else panel_product(read, rows, group.together, depth, from, streams, job->step, to);
        for (int p = 0; p < group.together; p++) streams[p].ahead += share;
        x += rows * row_bytes(job, in);
        sums += group.panels * rows * PANEL;
    }
}

/* sums[t][p][r][j] = products of the panels from number `panel` of a group on that are read side by side, with every
   row of tiles [first, end), a stretch of k after the other. While the tiles share a stretch, they ask for the next
   one, each for its part: memory never waits for arithmetic. An only tile has two stretches: in the second, what lies
   ahead is the beginning of the panels that are read next. */
static void multiply_panels(const Job *job, Group group, const char *const *panels, int panel, int64_t first,
                            int64_t end, float *sums) {
    _Alignas(64) float expanded[STRETCH * PANEL];
    Stream streams[MAX_PANELS];
    const Linear *weight = job->weight;
    int64_t in = weight->in_features, next_panels = group.columns * weight->panel_bytes;
    for (int64_t k = 0, depth; k < in; k += depth) {
        int64_t left = in - k;
        depth = is_shared(job) ? least(left, job->ahead) : left > job->ahead ? left - job->ahead : left;
        for (int p = 0; p < group.together; p++) {
            const char *begin = panels[panel + p], *at = begin + panel_bytes(weight->format, k);
            const char *ahead = begin + panel_bytes(weight->format, k + job->ahead);
            streams[p] = (Stream){at, depth == left ? begin + next_panels : ahead};
        }
        for (int p = 0; p < group.together && job->expanded; p++) {
            float *floats = expanded + p * depth * PANEL;
            panel_expand(weight->format, depth, streams[p].at, floats);
            streams[p].at = (const char *)floats;
        }
        multiply_stretch(job, group, panel, streams, k, depth, first, end, sums);
    }
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

/* A group's columns of the result, or the `count` of them that there are, for all tokens. */
static void multiply_group(const Job *job, Group group, int64_t column, int64_t count) {
    _Alignas(64) float sums[2 * TILES_AT_ONCE * MAX_ROWS * PANEL]; /* of two panels; of more with smaller tiles */
    const char *panels[MAX_PANELS];
    int per_column = group.panels / group.columns;
    for (int p = 0; p < group.panels; p++) { /* columns that there are not repeat the last one, for nothing */
        int64_t at = column + least(p / per_column, count - 1) + p % per_column * job->up_panel;
        panels[p] = job->weight->panels + at * job->weight->panel_bytes;
    }
    for (int64_t first = 0, end; first < job->tiles; first = end) {
        end = least(first + TILES_AT_ONCE, job->tiles);
        memset(sums, 0, group.panels * (tile_at(job, end).first - tile_at(job, first).first) * PANEL * sizeof(float));
        for (int p = 0; p < group.panels; p += group.together) multiply_panels(job, group, panels, p, first, end, sums);
        float *at = sums;
        for (int64_t t = first; t < end; t++) {
            Tile tile = tile_at(job, t);
            for (int i = 0; i < count; i++) finish(job, column + i, tile, at + i * per_column * tile.rows * PANEL);
            at += group.panels * tile.rows * PANEL;
        }
    }
}

static void multiply_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const Job *job = argument;
    int64_t full = least(item, job->full_items), column = full * job->item_columns + (item - full) * job->last_columns;
    int64_t end = least(column + (item < job->full_items ? job->item_columns : job->last_columns), job->panels);
    while (column < end) {
        Group group = next_group(job, end - column);
        int64_t count = least(end - column, group.columns);
        multiply_group(job, group, column, count);
        column += count;
    }
}

static int64_t num_items(const Job *job) {
    int64_t left = job->panels - job->full_items * job->item_columns;
    return job->full_items + (left ? ceil_divide(left, job->last_columns) : 0);
}

static int run(Context *context, Job *job) {
    if (job->tokens == 0) return OK;
    Pool *pool = context->pool;
    int64_t values = job->tokens * job->weight->in_features;
    job->packed = scratch_reserve(&context->shared, values * sizeof(float));
    if (job->packed == NULL) return OUT_OF_MEMORY;
    plan(job, pool_threads(pool));
    if (values < SERIAL_PACK_VALUES)
        for (int64_t t = 0; t < job->tiles; t++) pack_tile(job, t, 0);
    else
        pool_run(pool, pack_tile, job, job->tiles);
    pool_run(pool, multiply_item, job, num_items(job));
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
