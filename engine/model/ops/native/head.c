/* An exit head on runs of tokens, in one call from the host (see Ops.run_head). Its arithmetic is that of linear.c. */
#include <string.h>

#include "linear.h"

typedef struct {
    const float *norm; /* [size], as the other norms */
    const float *previous_norm;
    const float *refinement_norm;
    const float *final_norm;
    const float *unit_norm;
    const Linear *project;
    const Linear *project_previous;
    const Linear *gate_up; /* NULL: no refinement; else half its out_features is a multiple of PANEL */
    const Linear *down;
    const Linear *lm_head;
    const Linear *other;
} Head;

typedef struct {
    const int64_t *lengths; /* [count] */
    int64_t count;
    const float *previous; /* [count, size], of the tokens before the runs */
    float *states;         /* [tokens, size], run by run: what the head makes of each, then its estimate */
    /* Of those runs that have another token, the estimate before it and its own; where that belongs. */
    float *before; /* [count, size] */
    float *own;    /* [count, size] */
    float *inner;  /* [count, inner size] */
    float **places; /* [count] */
} Runs;

static int64_t size_of(const Head *head) { return head->project->in_features; }
static int64_t inner_size_of(const Head *head) { return head->gate_up == NULL ? 0 : head->down->in_features; }

static int estimate(Context *context, const Head *head, const Runs *runs, int64_t tokens, float eps) {
    float *own = runs->own;
    int status = linear_forward(context, head->project_previous, runs->before, tokens, head->previous_norm, eps, own, own);
    if (status != OK || head->gate_up == NULL) return status;
    status = linear_gate_up(context, head->gate_up, own, tokens, head->refinement_norm, eps, runs->inner);
    if (status != OK) return status;
    return linear_forward(context, head->down, runs->inner, tokens, NULL, 0, own, own);
}

/* Estimates of the runs' tokens at place `depth`. */
static int follow(Context *context, const Head *head, const Runs *runs, int64_t depth, float eps) {
    int64_t size = size_of(head), count = 0;
    float *first = runs->states;
    for (int64_t i = 0; i < runs->count; first += runs->lengths[i++] * size) {
        if (runs->lengths[i] <= depth) continue;
        float *place = runs->places[count] = first + depth * size;
        const float *before = depth == 0 ? runs->previous + i * size : place - size;
        memcpy(runs->before + count * size, before, size * sizeof(float));
        memcpy(runs->own + count++ * size, place, size * sizeof(float));
    }
    int status = estimate(context, head, runs, count, eps);
    for (int64_t i = 0; i < count; i++) memcpy(runs->places[i], runs->own + i * size, size * sizeof(float));
    return status;
}

static int64_t longest(const Runs *runs) {
    int64_t length = 0;
    for (int64_t i = 0; i < runs->count; i++)
        if (runs->lengths[i] > length) length = runs->lengths[i];
    return length;
}

static int reserve(Context *context, const Head *head, Runs *runs) {
    int64_t floats = runs->count * (2 * size_of(head) + inner_size_of(head));
    runs->places = scratch_reserve(&context->between, runs->count * sizeof(float *) + floats * sizeof(float));
    if (runs->places == NULL) return OUT_OF_MEMORY;
    runs->before = (float *)(runs->places + runs->count);
    runs->own = runs->before + runs->count * size_of(head);
    runs->inner = runs->own + runs->count * size_of(head);
    return OK;
}

static int run(Context *context, const Head *head, const float *hidden, int64_t tokens, Runs *runs, float eps,
               float *logits, float *other) {
    float *states = runs->states;
    int status = reserve(context, head, runs);
    if (status == OK) status = linear_forward(context, head->project, hidden, tokens, head->norm, eps, NULL, states);
    for (int64_t depth = 0; depth < longest(runs) && status == OK; depth++)
        status = follow(context, head, runs, depth, eps);
    if (status == OK) status = linear_forward(context, head->lm_head, states, tokens, head->final_norm, eps, NULL, logits);
    if (status == OK) status = linear_forward(context, head->other, states, tokens, head->unit_norm, eps, NULL, other);
    return status;
}

/* hidden: [tokens, size], run by run; previous: [runs, size]; states: like hidden; logits: [tokens, columns]; other:
   [tokens]. */
int head_forward(Context *context, const Head *head, const float *hidden, int64_t tokens, const float *previous,
                 const int64_t *lengths, int64_t count, float eps, float *states, float *logits, float *other) {
    Runs runs = {.lengths = lengths, .count = count, .previous = previous, .states = states};
    context_enter(context);
    int status = run(context, head, hidden, tokens, &runs, eps, logits, other);
    context_leave(context);
    return status;
}
