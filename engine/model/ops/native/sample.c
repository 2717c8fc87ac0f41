/* Choosing tokens: argmax of logits, plain or with counter-based Gumbel noise (see engine/model/noise.py). */
#include <math.h>
#include <stdbool.h>

#include "context.h"
#include "noise.h"

enum { SPAN = 4096 }; /* columns of one item, a multiple of NOISE_BLOCK */

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
    int64_t stride;
    int64_t columns;
    int64_t spans;
} Job;

/* Logits and token ids of a block; behind the last column -inf, which never wins. Returns whether a logit is NaN. */
static bool load_block(const Job *job, int64_t row, int64_t begin, float *scores, int32_t *token_ids) {
    const float *logits = job->logits + row * job->stride + begin;
    int count = job->columns - begin < NOISE_BLOCK ? (int)(job->columns - begin) : NOISE_BLOCK;
    bool has_nan = false;
    for (int i = 0; i < NOISE_BLOCK; i++) {
        scores[i] = i < count ? logits[i] : -INFINITY;
        token_ids[i] = (int32_t)(begin + i);
        has_nan |= scores[i] != scores[i];
    }
    if (job->token_ids != NULL)
        for (int i = 0; i < count; i++) token_ids[i] = job->token_ids[begin + i];
    return has_nan;
}

/* Best score and its lowest column over all lanes. */
static Choice best_lane(vec best, ivec columns) {
    Choice choice = {.score = best[0], .column = columns[0]};
    for (int lane = 1; lane < VEC_LANES; lane++)
        if (best[lane] > choice.score || (best[lane] == choice.score && columns[lane] < choice.column))
            choice = (Choice){.score = best[lane], .column = columns[lane]};
    return choice;
}

static Choice choose_span(const Job *job, int64_t row, int64_t begin, int64_t end) {
    _Alignas(64) float scores[NOISE_BLOCK];
    _Alignas(64) int32_t token_ids[NOISE_BLOCK];
    float scale = job->inverse_temperature[row];
    vec best = vec_set(-INFINITY);
    ivec columns = {0}, lane;
    for (int i = 0; i < VEC_LANES; i++) lane[i] = i;
    columns += (int32_t)begin; /* what a span of nothing but -inf answers */
    for (int64_t block = begin; block < end; block += NOISE_BLOCK) {
        if (load_block(job, row, block, scores, token_ids)) return (Choice){.column = -1};
        if (scale != 0.0f) {
            for (int i = 0; i < NOISE_BLOCK; i++) scores[i] *= scale;
            noise_add((uint64_t)job->keys[row], token_ids, 1.0f, scores);
        }
        for (int i = 0; i < NOISE_BLOCK; i += VEC_LANES) {
            vec score = vec_load(scores + i);
            ivec is_better = score > best;
            best = vec_select(is_better, score, best);
            columns = (is_better & (lane + (int32_t)(block + i))) | (~is_better & columns);
        }
    }
    return best_lane(best, columns);
}

static void choose_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const Job *job = argument;
    int64_t begin = item % job->spans * SPAN, end = begin + SPAN;
    if (end > job->columns) end = job->columns;
    job->choices[item] = choose_span(job, item / job->spans, begin, end);
}

static int64_t best_span(const Choice *choices, int64_t spans) {
    Choice best = choices[0];
    for (int64_t i = 0; i < spans; i++) {
        if (choices[i].column < 0) return -1;
        if (choices[i].score > best.score) best = choices[i];
    }
    return best.column;
}

/* out[i] = argmax over j of logits[i][j] * inverse_temperature[i] + gumbel(keys[i], token_ids[j]), the lowest of
   equals; without scale and noise where the inverse temperature is 0; -1 where a logit is NaN. */
int sample_forward(Context *context, const float *logits, int64_t rows, int64_t columns, int64_t stride,
                   const float *inverse_temperature, const int64_t *keys, const int32_t *token_ids, int64_t *out) {
    Job job = {.logits = logits, .inverse_temperature = inverse_temperature, .keys = keys, .token_ids = token_ids,
               .stride = stride, .columns = columns, .spans = (columns + SPAN - 1) / SPAN};
    context_enter(context);
    job.choices = scratch_reserve(&context->shared, (rows * job.spans + 1) * sizeof(Choice));
    if (job.choices != NULL) {
        pool_run(context->pool, choose_item, &job, rows * job.spans);
        for (int64_t row = 0; row < rows; row++) out[row] = best_span(job.choices + row * job.spans, job.spans);
    }
    context_leave(context);
    return job.choices == NULL ? OUT_OF_MEMORY : OK;
}
