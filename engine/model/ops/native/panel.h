/* The product every matrix in this backend is made of: a few rows times one panel of PANEL columns.

   Each of the results is one sum, taken strictly in order of k by fused multiply-adds into one register. The number
   of rows only changes how many such sums run side by side: the bits of a row do not depend on its company. */
#ifndef ADADECODE_PANEL_H
#define ADADECODE_PANEL_H

#include <stdint.h>

#include "vector.h"

/* As many rows as accumulators fit beside the panel's registers. */
#if VEC_LANES == 16
#define MAX_ROWS 24
#else
#define MAX_ROWS 6
#endif

/* out[r][j] = sum over k < depth of x[k][r] * panel[k][j].

   x: [depth, rows], rows interleaved, 1 <= rows <= MAX_ROWS; panel: [depth, PANEL] and out: [rows, PANEL], aligned. */
void panel_product(int rows, int64_t depth, const float *x, const float *panel, float *out);

#endif
