/* The sums of a product, which stay in registers while it runs. */
#ifndef ADADECODE_SUMS_H
#define ADADECODE_SUMS_H

#include "panel.h"

typedef vec Sums[MAX_PANELS][MAX_ROWS][PANEL_VECS];

/* from: [panels, rows, PANEL], aligned. */
INLINE void sums_load(const int panels, const int rows, const float *from, Sums sums) {
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < PANEL_VECS; v++) sums[p][r][v] = ((const vec *)(from + (p * rows + r) * PANEL))[v];
}

/* to: as above. */
INLINE void sums_store(const int panels, const int rows, Sums sums, float *to) {
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < PANEL_VECS; v++) ((vec *)(to + (p * rows + r) * PANEL))[v] = sums[p][r][v];
}

#endif
