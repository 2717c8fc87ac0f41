/* Decoder layers, one after another: the operations of linear.c and attention.c in one call from the host, on one
   piece of memory. A layer's arithmetic is that of its operations. */
#include <string.h>

#include "attention.h"
#include "linear.h"

typedef struct {
    const float *input_norm; /* [hidden] */
    const float *mlp_norm;
    const Linear *qkv;
    const Linear *output;
    const Linear *gate_up; /* half its out_features is a multiple of PANEL */
    const Linear *down;
    const AttentionParams *attention;
    const LayerCache *cache;
} Layer;

static int64_t qkv_width(const Layer *layer) { return layer->qkv->out_features; }
static int64_t attended_width(const Layer *layer) { return layer->output->in_features; }
static int64_t activated_width(const Layer *layer) { return layer->down->in_features; }

static int run(Context *context, const Layer *layer, const TokenBatch *batch, float eps, float *hidden) {
    int64_t tokens = batch->tokens;
    float *qkv = context->between.data, *attended = qkv + tokens * qkv_width(layer), *activated = qkv;
    int status = linear_forward(context, layer->qkv, hidden, tokens, layer->input_norm, eps, NULL, qkv);
    if (status == OK) status = attention_forward(context, layer->attention, batch, layer->cache, qkv, attended);
    if (status == OK) status = linear_forward(context, layer->output, attended, tokens, NULL, 0, hidden, hidden);
    if (status == OK) status = linear_gate_up(context, layer->gate_up, hidden, tokens, layer->mlp_norm, eps, activated);
    if (status == OK) status = linear_forward(context, layer->down, activated, tokens, NULL, 0, hidden, hidden);
    return status;
}

static int64_t most_values(const Layer *layers, int64_t count) {
    int64_t values = 0;
    for (int64_t i = 0; i < count; i++) {
        values = most(values, qkv_width(&layers[i]) + attended_width(&layers[i]));
        values = most(values, activated_width(&layers[i]));
    }
    return values;
}

/* out = hidden [tokens, hidden size] after `count` layers. */
int layers_forward(Context *context, const Layer *layers, int64_t count, const TokenBatch *batch, float eps,
                   const float *hidden, float *out) {
    if (batch->tokens == 0) return OK;
    memcpy(out, hidden, batch->tokens * layers[0].qkv->in_features * sizeof(float));
    context_enter(context);
    size_t size = batch->tokens * most_values(layers, count) * sizeof(float);
    int status = scratch_reserve(&context->between, size) == NULL ? OUT_OF_MEMORY : OK;
    for (int64_t i = 0; i < count && status == OK; i++) status = run(context, &layers[i], batch, eps, out);
    context_leave(context);
    return status;
}
