#define _GNU_SOURCE /* for pthread_setaffinity_np */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

/* How long an idle thread watches for the next job before it sleeps: longer than the host's pause between two
   operations of a forward pass, short enough that an idle server uses no CPU. */
#define WATCH_NANOSECONDS 60000
#define PAUSES_PER_LOOK 32

enum { MOST_CORES = 8192 };

typedef struct {
    Pool *pool;
    int thread;
    pthread_t handle;
} Member;

struct Pool {
    int threads;
    Member *members; /* threads - 1 */
    Work work;
    void *job;
    int64_t count;
    _Alignas(64) atomic_llong next;      /* first item nobody has taken */
    _Alignas(64) atomic_uint generation; /* rises with every job */
    _Alignas(64) atomic_int active;      /* members inside a job */
    atomic_bool open;                    /* whether members may enter the job */
    atomic_int sleepers;
    atomic_bool stopping;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void take_items(Pool *pool, int thread) {
    for (;;) {
        int64_t item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (item >= pool->count) return;
        pool->work(pool->job, item, thread);
    }
}

/* Whether a new job came while watching. */
static bool watch(Pool *pool, unsigned seen) {
    int64_t end = nanoseconds() + WATCH_NANOSECONDS;
    do {
        for (int i = 0; i < PAUSES_PER_LOOK; i++) {
            if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen) return true;
            relax();
        }
    } while (nanoseconds() < end);
    return false;
}

static void sleep_until_called(Pool *pool, unsigned seen) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1); /* before looking once more: pool_run looks in the opposite order */
    while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

/* A member counts itself as active before it looks whether the job is open; the caller closes the job before it looks
   for active members. So no member reads a job that has ended, and the caller does not wait for a member that lost its
   core before it became active. */
static void help(Pool *pool, int thread) {
    atomic_fetch_add(&pool->active, 1);
    if (atomic_load(&pool->open)) take_items(pool, thread);
    atomic_fetch_sub_explicit(&pool->active, 1, memory_order_release);
}

static void *serve(void *argument) {
    Member *member = argument;
    Pool *pool = member->pool;
    for (unsigned seen = 0;;) {
        if (!watch(pool, seen)) sleep_until_called(pool, seen);
        seen = atomic_load(&pool->generation); /* before the next line: the call to stop must not be missed */
        if (atomic_load(&pool->stopping)) return NULL;
        help(pool, member->thread);
    }
}

static void call(Pool *pool) {
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

void pool_run(Pool *pool, Work work, void *job, int64_t count) {
    if (pool->threads == 1 || count == 1) {
        for (int64_t item = 0; item < count; item++) work(job, item, 0);
        return;
    }
    pool->work = work;
    pool->job = job;
    pool->count = count;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store(&pool->open, true);
    call(pool);
    take_items(pool, 0);
    atomic_store(&pool->open, false);
    for (int look = 0; atomic_load(&pool->active) > 0; look++) {
        if (look < 1000) relax();
        else sched_yield(); /* a member has lost its core: leave it ours */
    }
}

static void stop(Pool *pool, int started) {
    atomic_store(&pool->stopping, true);
    call(pool);
    for (int i = 0; i < started; i++) pthread_join(pool->members[i].handle, NULL);
}

Pool *pool_new(int threads) {
    Pool *pool = aligned_alloc(64, (sizeof(Pool) + 63) / 64 * 64);
    if (pool == NULL) return NULL;
    *pool = (Pool){.threads = threads, .members = calloc(threads, sizeof(Member))};
    if (pool->members == NULL) {
        free(pool);
        return NULL;
    }
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int i = 0; i < threads - 1; i++) {
        pool->members[i] = (Member){.pool = pool, .thread = i + 1};
        if (pthread_create(&pool->members[i].handle, NULL, serve, &pool->members[i]) != 0) {
            pool->threads = i + 1;
            pool_free(pool);
            return NULL;
        }
    }
    return pool;
}

void pool_free(Pool *pool) {
    stop(pool, pool->threads - 1);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->members);
    free(pool);
}

void pool_pin(Pool *pool, const int32_t *cores, int32_t count) {
#if defined(__linux__)
    for (int i = 0; i < pool->threads - 1; i++) {
        cpu_set_t *set = CPU_ALLOC(MOST_CORES);
        if (set == NULL) return;
        CPU_ZERO_S(CPU_ALLOC_SIZE(MOST_CORES), set);
        CPU_SET_S(cores[(i + 1) % count], CPU_ALLOC_SIZE(MOST_CORES), set);
        pthread_setaffinity_np(pool->members[i].handle, CPU_ALLOC_SIZE(MOST_CORES), set); /* a wish */
        CPU_FREE(set);
    }
#else
    (void)pool, (void)cores, (void)count;
#endif
}

int pool_threads(const Pool *pool) { return pool->threads; }
