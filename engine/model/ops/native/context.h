/* What one backend object owns: its threads and its scratch memory, handed to one operation at a time. */
#ifndef ADADECODE_CONTEXT_H
#define ADADECODE_CONTEXT_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "pool.h"

typedef struct {
    void *data; /* aligned to a cache line; kept for the next call */
    size_t size;
} Scratch;

typedef struct {
    Pool *pool;
    pthread_mutex_t mutex; /* held by the operation that runs, and by those it is made of */
    Scratch shared;        /* an operation's own memory, read by all threads */
    Scratch partial;       /* a second one */
    Scratch between;       /* what flows between the operations of a layer */
    Scratch *own;          /* one per thread */
} Context;

/* Why an operation did nothing. */
enum { OK = 0, OUT_OF_MEMORY = 1, BAD_INDEX = 2 };

/* At least `size` bytes, contents undefined; NULL when there is no memory. */
void *scratch_reserve(Scratch *scratch, size_t size);

/* Reserve memory for every thread. Returns OK or OUT_OF_MEMORY. */
int context_reserve_own(Context *context, size_t size);

void context_enter(Context *context);
void context_leave(Context *context);

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
