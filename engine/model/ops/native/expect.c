/* What an exit head expects under a row's own noise: the best column and its share (see Ops.expect). */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "context.h"
#include "noise.h"

enum {
    SPAN = 2048, /* columns of one item, a multiple of NOISE_BLOCK */
    FACTS = 5,   /* numbers per row */
};

/* The softmax of some columns: shares are exp(score - top) / sum. */
typedef struct {
    float top;      /* the greatest score; NaN where a score is NaN */
    float second;   /* the greatest of the others */
    float sum;      /* of exp(score - top) */
    int64_t column; /* the lowest with the greatest score */
    int64_t second_column;
} Part;

/* Let a column join, whose score is no NaN; the sum is left alone. */
static void rank(Part *part, float score, int64_t column) {
    if (score > part->top || (score == part->top && column < part->column)) {
        part->second = part->top;
        part->second_column = part->column;
        part->top = score;
        part->column = column;
    } else if (score > part->second) {
        part->second = score;
        part->second_column = column;
    }
}

typedef struct {
    const float *logits;       /* [rows, columns] */
    const float *other;        /* [rows], the logit of the column after the last */
    const float *temperatures; /* [rows]; 0: no noise, and logits as they are */
    const int64_t *keys;       /* [rows]; not read where the temperature is 0 */
    const int64_t *salts;      /* [columns], of the token ids */
    const int64_t *followers;  /* [rows], columns; `columns` is the other one */
    float *follower_scores;    /* [rows] */
    Part *parts;               /* [rows, spans] */
    int64_t columns;
    int64_t spans;
    float weight;              /* of the noise */
    float other_noise;         /* that of the other column, times the weight */
} Job;

/* Scores of a span, in whole blocks: -inf after the last column. */
static void score_span(const Job *job, int64_t row, int64_t begin, int64_t count, float *scores) {
    const float *logits = job->logits + row * job->columns + begin;
    float temperature = job->temperatures[row], scale = temperature > 0.0f ? 1.0f / temperature : 1.0f;
    int64_t padded = (count + NOISE_BLOCK - 1) / NOISE_BLOCK * NOISE_BLOCK;
    for (int64_t i = 0; i < count; i++) scores[i] = logits[i] * scale;
    for (int64_t i = count; i < padded; i++) scores[i] = -INFINITY;
    if (temperature <= 0.0f) return;
    uint64_t salts[NOISE_BLOCK] = {0};
    for (int64_t i = 0; i < padded; i += NOISE_BLOCK) {
        float uniform[NOISE_BLOCK];
        int64_t left = count - i < NOISE_BLOCK ? count - i : NOISE_BLOCK;
        memcpy(salts, job->salts + begin + i, left * sizeof(uint64_t));
        noise_draw((uint64_t)job->keys[row], salts, uniform);
        noise_add(uniform, job->weight, scores + i);
    }
}

/* In lanes, then over lanes: the same for the same scores wherever they come from. */
static Part part_of(const float *scores, int64_t begin, int64_t count) {
    vec best = vec_set(-INFINITY), second = best, sum = {0};
    ivec columns, seconds, lane, nan = {0};
    for (int i = 0; i < VEC_LANES; i++) lane[i] = i;
    columns = seconds = lane + (int32_t)begin;
    for (int64_t i = 0; i < count; i += VEC_LANES) {
        vec score = vec_load(scores + i);
        ivec here = lane + (int32_t)(begin + i);
        ivec is_better = score > best;
        vec lower = vec_select(is_better, best, score);
        ivec is_second = lower > second;
        ivec of_lower = (is_better & columns) | (~is_better & here);
        nan |= score != score;
        second = vec_select(is_second, lower, second);
        seconds = (is_second & of_lower) | (~is_second & seconds);
        best = vec_select(is_better, score, best);
        columns = (is_better & here) | (~is_better & columns);
    }
    Part part = {.top = best[0], .column = columns[0], .second = second[0], .second_column = seconds[0]};
    for (int i = 0; i < VEC_LANES; i++) {
        if (nan[i]) return (Part){.top = NAN};
        if (i > 0) rank(&part, best[i], columns[i]);
        if (i > 0) rank(&part, second[i], seconds[i]);
    }
    if (isinf(part.top)) return part; /* nothing but -inf, or +inf, beside which nothing has a share */
    for (int64_t i = 0; i < count; i += VEC_LANES) sum += vec_exp(vec_load(scores + i) - part.top);
    part.sum = vec_sum(sum);
    return part;
}

static void expect_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const Job *job = argument;
    _Alignas(64) float scores[SPAN];
    int64_t row = item / job->spans, begin = item % job->spans * SPAN;
    int64_t count = job->columns - begin < SPAN ? job->columns - begin : SPAN;
    score_span(job, row, begin, count, scores);
    int64_t follower = job->followers[row] - begin;
    if (follower >= 0 && follower < count) job->follower_scores[row] = scores[follower];
    job->parts[item] = part_of(scores, begin, (count + VEC_LANES - 1) / VEC_LANES * VEC_LANES);
}

/* Of a row: its best column, then the logarithms of that one's share and of the follower's, then the second-best
   column and the logarithm of its share. */
static void join(const Job *job, int64_t row, double out[FACTS]) {
    const Part *parts = job->parts + row * job->spans;
    float temperature = job->temperatures[row], other = job->other[row];
    if (temperature > 0.0f) other = other * (1.0f / temperature) + job->other_noise;
    double follower = job->followers[row] == job->columns ? other : job->follower_scores[row];
    Part best = parts[0];
    float checked = other; /* NaN once there is one */
    for (int64_t i = 0; i < job->spans; i++) {
        checked += parts[i].top;
        if (i > 0) rank(&best, parts[i].top, parts[i].column);
        if (i > 0) rank(&best, parts[i].second, parts[i].second_column);
    }
    rank(&best, other, job->columns);
    double total = exp((double)other - best.top);
    for (int64_t i = 0; i < job->spans; i++) total += parts[i].sum * exp((double)parts[i].top - best.top);
    bool is_sound = checked == checked && !isinf(best.top);
    out[0] = (double)best.column;
    out[1] = is_sound ? -log(total) : NAN;
    out[2] = is_sound ? follower - best.top - log(total) : NAN;
    out[3] = (double)best.second_column;
    out[4] = is_sound ? best.second - (double)best.top - log(total) : NAN;
}

/* Per row FACTS numbers, see `join`; NaN shares where a score is NaN or none is finite. */
int expect_forward(Context *context, const float *logits, const float *other, int64_t rows, int64_t columns,
                   const float *temperatures, const int64_t *keys, const int64_t *salts,
                   const int64_t *followers, float weight, float other_noise, double *out) {
    Job job = {.logits = logits, .other = other, .temperatures = temperatures, .keys = keys, .salts = salts,
               .followers = followers, .columns = columns, .spans = (columns + SPAN - 1) / SPAN, .weight = weight,
               .other_noise = other_noise};
    context_enter(context);
    job.parts = scratch_reserve(&context->shared, rows * (job.spans * sizeof(Part) + sizeof(float)));
    if (job.parts != NULL) {
        job.follower_scores = (float *)(job.parts + rows * job.spans);
        pool_run(context->pool, expect_item, &job, rows * job.spans);
        for (int64_t row = 0; row < rows; row++) join(&job, row, out + FACTS * row);
    }
    context_leave(context);
    return job.parts == NULL ? OUT_OF_MEMORY : OK;
}
