/* Linear layers, as the host hands them over and as other operations call them. */
#ifndef ADADECODE_LINEAR_H
#define ADADECODE_LINEAR_H

#include <stdint.h>

#include "context.h"

typedef struct {
    const char *panels;
    const float *bias; /* padded like the panels; NULL for none */
    int64_t out_features;
    int64_t in_features;
    int64_t panel_bytes;
    int32_t format;
    int32_t rounded; /* codes only: whether activations are rounded to 8 bits too (see rounded.h) */
} Linear;

/* out = residual + weight @ rms_norm(x) + bias. Norm and residual may be NULL; out may be the residual. */
int linear_forward(Context *context, const Linear *weight, const float *x, int64_t tokens, const float *norm,
                   float eps, const float *residual, float *out);

/* out = silu(gate) * up with [gate; up] = weight @ rms_norm(x) + bias; out_features / 2 is a multiple of PANEL. */
int linear_gate_up(Context *context, const Linear *weight, const float *x, int64_t tokens, const float *norm,
                   float eps, float *out);

#endif
