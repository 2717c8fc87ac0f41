/* A team of threads that work through the items of one job at a time; the calling thread is one of them. */
#ifndef ADADECODE_POOL_H
#define ADADECODE_POOL_H

#include <stdint.h>

typedef struct Pool Pool;

/* Do item `item` (0 .. count-1). `thread` (0 .. threads-1) tells which scratch memory is one's own. */
typedef void (*Work)(void *job, int64_t item, int thread);

/* NULL when the threads cannot be had. */
Pool *pool_new(int threads);
void pool_free(Pool *pool);
int pool_threads(const Pool *pool);

/* Keep each thread on one core: thread i on cores[i % count]. Not the caller's own, thread 0: what it starts later
   would have to stay there too. Does nothing where the system offers no such thing. */
void pool_pin(Pool *pool, const int32_t *cores, int32_t count);

/* Run all items and return when they are done. Which thread does which item is left to chance, so items must not
   depend on each other. Not to be called by two threads at once. */
void pool_run(Pool *pool, Work work, void *job, int64_t count);

#endif
