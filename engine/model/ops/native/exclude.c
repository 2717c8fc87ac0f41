/* Excluding tokens: the logits of those that a row does not allow become -inf. What is allowed comes as bits. */
#include <math.h>
#include <stdbool.h>

#include "context.h"

enum { SPAN = 4096 }; /* columns of one item, a multiple of 32 */

typedef struct {
    float *logits;          /* [rows, columns] */
    const int32_t *allowed; /* [count, 1 + words]: a row of the logits, then its bits, the lowest first */
    const int32_t *token_ids; /* [columns]; NULL: the columns are the ids */
    int64_t rows;
    int64_t columns;
    int64_t words;
    int64_t spans;
} Job;

static void exclude_columns(const uint32_t *words, float *logits, int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; column += 32) {
        uint32_t bits = words[column / 32];
        int count = end - column < 32 ? (int)(end - column) : 32;
        if (bits == UINT32_MAX) continue;
        for (int i = 0; i < count; i++) logits[column + i] = bits >> i & 1 ? logits[column + i] : -INFINITY;
    }
}

static void exclude_ids(const uint32_t *words, const int32_t *token_ids, float *logits, int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; column++) {
        int32_t id = token_ids[column];
        if (!(words[id >> 5] >> (id & 31) & 1)) logits[column] = -INFINITY;
    }
}

static void exclude_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const Job *job = argument;
    const int32_t *allowed = job->allowed + item / job->spans * (1 + job->words);
    float *logits = job->logits + allowed[0] * job->columns;
    const uint32_t *words = (const uint32_t *)(allowed + 1);
    int64_t begin = item % job->spans * SPAN, end = begin + SPAN;
    if (end > job->columns) end = job->columns;
    if (job->token_ids == NULL) exclude_columns(words, logits, begin, end);
    else exclude_ids(words, job->token_ids, logits, begin, end);
}

/* Whether all rows and ids lie where they have to. */
static bool is_sound(const Job *job, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        int32_t row = job->allowed[i * (1 + job->words)];
        if (row < 0 || row >= job->rows) return false;
    }
    if (job->token_ids == NULL) return job->columns <= 32 * job->words;
    bool is_in = true;
    for (int64_t i = 0; i < job->columns; i++) is_in &= (uint32_t)job->token_ids[i] < 32 * (uint64_t)job->words;
    return is_in;
}

/* logits[allowed[i][0]][j] = -inf where bit token_ids[j] of the words allowed[i][1..] is 0. */
int exclude_forward(Context *context, float *logits, int64_t rows, int64_t columns, const int32_t *allowed,
                    int64_t count, int64_t words, const int32_t *token_ids) {
    Job job = {.logits = logits, .allowed = allowed, .token_ids = token_ids, .rows = rows, .columns = columns,
               .words = words, .spans = (columns + SPAN - 1) / SPAN};
    if (!is_sound(&job, count)) return BAD_INDEX;
    context_enter(context);
    pool_run(context->pool, exclude_item, &job, count * job.spans);
    context_leave(context);
    return OK;
}
