#include "context.h"

#include <stdlib.h>

enum { CACHE_LINE = 64 };

void *scratch_reserve(Scratch *scratch, size_t size) {
    if (size <= scratch->size) return scratch->data;
    free(scratch->data);
    scratch->size = (size + size / 4 + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    scratch->data = aligned_alloc(CACHE_LINE, scratch->size);
    if (scratch->data == NULL) scratch->size = 0;
    return scratch->data;
}

int context_reserve_own(Context *context, size_t size) {
    for (int i = 0; i < pool_threads(context->pool); i++)
        if (scratch_reserve(&context->own[i], size) == NULL) return OUT_OF_MEMORY;
    return OK;
}

void context_enter(Context *context) { pthread_mutex_lock(&context->mutex); }
void context_leave(Context *context) { pthread_mutex_unlock(&context->mutex); }

/* NULL when memory or threads cannot be had. */
Context *context_new(int threads) {
    Context *context = calloc(1, sizeof(Context));
    if (context == NULL) return NULL;
    context->own = calloc(threads, sizeof(Scratch));
    context->pool = context->own == NULL ? NULL : pool_new(threads);
    if (context->pool == NULL) {
        free(context->own);
        free(context);
        return NULL;
    }
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&context->mutex, &recursive);
    pthread_mutexattr_destroy(&recursive);
    return context;
}

void context_pin(Context *context, const int32_t *cores, int32_t count) { pool_pin(context->pool, cores, count); }

void context_free(Context *context) {
    for (int i = 0; i < pool_threads(context->pool); i++) free(context->own[i].data);
    pool_free(context->pool);
    free(context->own);
    free(context->shared.data);
    free(context->partial.data);
    free(context->between.data);
    pthread_mutex_destroy(&context->mutex);
    free(context);
}
