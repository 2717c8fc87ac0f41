/* Choosing tokens: argmax of logits, plain or with counter-based Gumbel noise (see engine/model/noise.py).

   Noise costs far more than a comparison, and most columns cannot win with any. So the greatest logit is found first.
   The winner's score is at least that column's score with noise, so noise is computed only for columns that the
   greatest noise could lift that high. The others cannot win: the answer is that of scoring them all, to the bit. */
#include <math.h>
#include <stdbool.h>

#include "context.h"
#include "noise.h"

enum { SPAN = 4096 }; /* columns of one item, a multiple of VEC_LANES */

typedef struct {
    float score;
    int64_t column; /* -1 where a logit is NaN */
} Choice;

typedef struct {
    const float *logits; /* [rows, columns], rows `stride` apart */
    const float *inverse_temperature;
    const int64_t *keys;
    const int32_t *token_ids; /* [columns]; NULL: the columns are the ids */
    Choice *choices;          /* [rows, spans] */
    float *floors;            /* [rows]: a score that the best one reaches; NaN: the row is decided */
    int64_t stride;
    int64_t columns;
    int64_t spans;
} Job;

/* The best scores so far, in lanes, and their lowest columns. */
typedef struct {
    vec scores;
    ivec columns;
} Best;

static ivec columns_from(int64_t first) {
    ivec columns;
    for (int i = 0; i < VEC_LANES; i++) columns[i] = (int32_t)first + i;
    return columns;
}

/* A vector of logits from a column on; after the last column -inf, which never wins. */
INLINE vec load_logits(const Job *job, int64_t row, int64_t column) {
    const float *logits = job->logits + row * job->stride + column;
    if (column + VEC_LANES <= job->columns) return vec_load(logits);
    vec last = vec_set(-INFINITY);
    for (int i = 0; i < job->columns - column; i++) last[i] = logits[i];
    return last;
}

INLINE void compare(Best *best, vec scores, ivec columns) {
    ivec is_better = scores > best->scores;
    best->scores = vec_select(is_better, scores, best->scores);
    best->columns = (is_better & columns) | (~is_better & best->columns);
}

/* Over all lanes. */
static Choice best_lane(const Best *best) {
    Choice choice = {.score = best->scores[0], .column = best->columns[0]};
    for (int lane = 1; lane < VEC_LANES; lane++) {
        float score = best->scores[lane];
        int32_t column = best->columns[lane];
        if (score > choice.score || (score == choice.score && column < choice.column))
            choice = (Choice){.score = score, .column = column};
    }
    return choice;
}

static Choice best_span(const Job *job, int64_t row) {
    const Choice *choices = job->choices + row * job->spans;
    Choice best = choices[0];
    for (int64_t i = 0; i < job->spans; i++) {
        if (choices[i].column < 0) return choices[i];
        if (choices[i].score > best.score) best = choices[i];
    }
    return best;
}

/* ---- without noise ---- */

static Choice plain_choice(const Job *job, int64_t row, int64_t begin, int64_t end) {
    Best best = {.scores = vec_set(-INFINITY), .columns = columns_from(begin)};
    ivec columns = columns_from(begin), nan = {0};
    for (int64_t column = begin; column < end; column += VEC_LANES, columns += VEC_LANES) {
        vec logits = load_logits(job, row, column);
        nan |= logits != logits;
        compare(&best, logits, columns);
    }
    return vec_any(nan) ? (Choice){.column = -1} : best_lane(&best);
}

static void plain_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const Job *job = argument;
    int64_t begin = item % job->spans * SPAN, end = begin + SPAN;
    job->choices[item] = plain_choice(job, item / job->spans, begin, end < job->columns ? end : job->columns);
}

/* ---- with noise ---- */

/* Columns that may win, ascending, and their scores before noise. */
typedef struct {
    _Alignas(64) float scores[NOISE_BLOCK];
    _Alignas(64) int32_t columns[NOISE_BLOCK];
    int count;
} Batch;

static void add_noise(const Job *job, int64_t row, Batch *batch) {
    _Alignas(64) uint64_t salts[NOISE_BLOCK];
    _Alignas(64) float uniform[NOISE_BLOCK];
    for (int i = batch->count; i < NOISE_BLOCK; i++) batch->scores[i] = -INFINITY, batch->columns[i] = 0;
    for (int i = 0; i < NOISE_BLOCK; i++) {
        int64_t id = batch->columns[i];
        if (job->token_ids != NULL) id = job->token_ids[id];
        salts[i] = (uint64_t)id * NOISE_SALT;
    }
    noise_draw((uint64_t)job->keys[row], salts, uniform);
    noise_add(uniform, 1.0f, batch->scores);
}

/* Give a batch its noise and empty it. Returns what the best score reaches now. */
static float score_batch(const Job *job, int64_t row, float floor, Batch *batch, Best *best) {
    add_noise(job, row, batch);
    for (int i = 0; i < NOISE_BLOCK; i += VEC_LANES)
        compare(best, vec_load(batch->scores + i), *(const ivec *)(batch->columns + i));
    batch->count = 0;
    float top = vec_top(best->scores);
    return top > floor ? top : floor;
}

static Choice noisy_choice(const Job *job, int64_t row, int64_t begin, int64_t end) {
    float scale = job->inverse_temperature[row], floor = job->floors[row];
    Best best = {.scores = vec_set(-INFINITY), .columns = columns_from(begin)};
    Batch batch = {.count = 0};
    for (int64_t column = begin; column < end; column += VEC_LANES) {
        vec scores = vec_kept(load_logits(job, row, column) * scale); /* rounded before noise comes */
        ivec may_win = scores + NOISE_MOST >= floor;
        if (!vec_any(may_win)) continue;
        if (batch.count > NOISE_BLOCK - VEC_LANES) floor = score_batch(job, row, floor, &batch, &best);
        for (int i = 0; i < VEC_LANES; i++) {
            batch.scores[batch.count] = scores[i];
            batch.columns[batch.count] = (int32_t)column + i;
            batch.count -= may_win[i];
        }
    }
    score_batch(job, row, floor, &batch, &best);
    return best_lane(&best);
}

static void noisy_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const Job *job = argument;
    int64_t row = item / job->spans, begin = item % job->spans * SPAN, end = begin + SPAN;
    if (job->floors[row] != job->floors[row]) return;
    job->choices[item] = noisy_choice(job, row, begin, end < job->columns ? end : job->columns);
}

/* The score of the greatest logit; NaN where there is nothing to choose. */
static float floor_of(const Job *job, int64_t row) {
    float scale = job->inverse_temperature[row];
    Choice plain = best_span(job, row);
    if (scale == 0.0f || plain.column < 0) return NAN;
    Batch batch = {.scores = {vec_kept(vec_set(plain.score * scale))[0]}, .columns = {(int32_t)plain.column}, .count = 1};
    add_noise(job, row, &batch);
    return batch.scores[0];
}

/* out[i] = argmax over j of logits[i][j] * inverse_temperature[i] + gumbel(keys[i], token_ids[j]), the lowest of
   equals; without scale and noise where the inverse temperature is 0; -1 where a logit is NaN. */
int sample_forward(Context *context, const float *logits, int64_t rows, int64_t columns, int64_t stride,
                   const float *inverse_temperature, const int64_t *keys, const int32_t *token_ids, int64_t *out) {
    Job job = {.logits = logits, .inverse_temperature = inverse_temperature, .keys = keys, .token_ids = token_ids,
               .stride = stride, .columns = columns, .spans = (columns + SPAN - 1) / SPAN};
    context_enter(context);
    job.choices = scratch_reserve(&context->shared, rows * (job.spans * sizeof(Choice) + sizeof(float)) + sizeof(Choice));
    if (job.choices != NULL) {
        job.floors = (float *)(job.choices + rows * job.spans);
        pool_run(context->pool, plain_item, &job, rows * job.spans);
        for (int64_t row = 0; row < rows; row++) job.floors[row] = floor_of(&job, row);
        pool_run(context->pool, noisy_item, &job, rows * job.spans);
        for (int64_t row = 0; row < rows; row++) out[row] = best_span(&job, row).column;
    }
    context_leave(context);
    return job.choices == NULL ? OUT_OF_MEMORY : OK;
}
