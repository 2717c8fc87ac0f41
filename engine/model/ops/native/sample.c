/* Argmax over the vocabulary, with or without counter-based Gumbel noise: the function of engine/model/noise.py.

   Integers are mixed exactly as there; the logarithm is this backend's own, the same for every column. Columns are cut
   into fixed pieces for the threads, and the pieces' winners compared in order: the lowest index wins a tie. */
#include <stdbool.h>

#include "context.h"
#include "vector.h"

enum { PIECE = 4096 };

typedef struct {
    float score;
    int64_t index; /* -1: NaN seen */
} Best;

typedef struct {
    const float *logits; /* [rows, columns] */
    const float *inverse_temperature;
    const int64_t *keys;
    const int32_t *token_ids; /* [columns] or NULL: column = id */
    int64_t columns, pieces;
    Best *best; /* [rows, pieces] */
} Job;

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/* Noise for the ids of PANEL columns. */
static void gumbel(uint64_t key, const int32_t *ids, float *noise) {
    for (int j = 0; j < PANEL; j++) {
        uint64_t z = mix(key ^ ((uint64_t)(int64_t)ids[j] * 0x9E3779B97F4A7C15ull));
        noise[j] = ((float)(int32_t)(z >> 41) + 0.5f) * (1.0f / 8388608.0f);
    }
    for (int j = 0; j < PANEL; j += VEC_LANES)
        vec_store(noise + j, -vec_log(-vec_log(vec_load(noise + j))));
}

static void scan_greedy(const float *logits, int64_t start, int64_t end, Best *best) {
    for (int64_t j = start; j < end; j++) {
        if (logits[j] != logits[j]) {
            best->index = -1;
            return;
        }
        if (logits[j] > best->score) *best = (Best){.score = logits[j], .index = j};
    }
}

static void scan_noisy(const Job *job, const float *logits, float scale, uint64_t key, int64_t start, int64_t end,
                       Best *best) {
    for (int64_t first = start; first < end; first += PANEL) {
        int32_t ids[PANEL];
        _Alignas(64) float noise[PANEL];
        int64_t count = end - first < PANEL ? end - first : PANEL;
        for (int64_t j = 0; j < PANEL; j++) {
            int64_t column = first + (j < count ? j : 0);
            ids[j] = job->token_ids == NULL ? (int32_t)column : job->token_ids[column];
        }
        gumbel(key, ids, noise);
        for (int64_t j = 0; j < count; j++) {
            float score = FMA(logits[first + j], scale, noise[j]);
            if (score != score) {
                best->index = -1;
                return;
            }
            if (score > best->score) *best = (Best){.score = score, .index = first + j};
        }
    }
}

static void scan_piece(void *argument, int64_t item, int thread) {
    (void)thread;
    const Job *job = argument;
    int64_t row = item / job->pieces, start = item % job->pieces * PIECE;
    int64_t end = start + PIECE < job->columns ? start + PIECE : job->columns;
    const float *logits = job->logits + row * job->columns;
    Best *best = job->best + item;
    *best = (Best){.score = -INFINITY, .index = start};
    if (job->inverse_temperature[row] == 0.0f)
        scan_greedy(logits, start, end, best);
    else
        scan_noisy(job, logits, job->inverse_temperature[row], (uint64_t)job->keys[row], start, end, best);
}

/* chosen[row] = the winning column, or -1 if the row has a NaN. */
int sample_rows(Context *context, const float *logits, int64_t rows, int64_t columns, const float *inverse_temperature,
                const int64_t *keys, const int32_t *token_ids, int64_t *chosen) {
    Job job = {.logits = logits, .inverse_temperature = inverse_temperature, .keys = keys, .token_ids = token_ids,
               .columns = columns, .pieces = (columns + PIECE - 1) / PIECE};
    context_enter(context);
    job.best = scratch_reserve(&context->shared, rows * job.pieces * sizeof(Best));
    if (job.best == NULL) {
        context_leave(context);
        return OUT_OF_MEMORY;
    }
    pool_run(context->pool, scan_piece, &job, rows * job.pieces);
    for (int64_t row = 0; row < rows; row++) {
        Best best = job.best[row * job.pieces];
        for (int64_t piece = 1; piece < job.pieces && best.index >= 0; piece++) {
            Best other = job.best[row * job.pieces + piece];
            if (other.index < 0 || other.score > best.score) best = other;
        }
        chosen[row] = best.index;
    }
    context_leave(context);
    return OK;
}
