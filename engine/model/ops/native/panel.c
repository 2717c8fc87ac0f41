#include "panel.h"

/* Lines of weights asked for ahead of use; the machine's own prefetcher stops at every page. */
#define LINES_AHEAD 24

INLINE void product(const int rows, int64_t depth, const float *x, const float *panel, float *out) {
    vec sum[MAX_ROWS][PANEL_VECS] = {0};
    for (int64_t k = 0; k < depth; k++, x += rows, panel += PANEL) {
        const vec *weights = (const vec *)panel;
        __builtin_prefetch(panel + LINES_AHEAD * PANEL);
#pragma GCC unroll 24
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < PANEL_VECS; v++) sum[r][v] += x[r] * weights[v];
    }
#pragma GCC unroll 24
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++) ((vec *)(out + r * PANEL))[v] = sum[r][v];
}

#define PRODUCT(rows)                                                                           \
    static void product_##rows(int64_t depth, const float *x, const float *panel, float *out) { \
        product(rows, depth, x, panel, out);                                                    \
    }
PRODUCT(1) PRODUCT(2) PRODUCT(3) PRODUCT(4) PRODUCT(5) PRODUCT(6)
#if MAX_ROWS == 24
PRODUCT(7) PRODUCT(8) PRODUCT(9) PRODUCT(10) PRODUCT(11) PRODUCT(12)
PRODUCT(13) PRODUCT(14) PRODUCT(15) PRODUCT(16) PRODUCT(17) PRODUCT(18)
PRODUCT(19) PRODUCT(20) PRODUCT(21) PRODUCT(22) PRODUCT(23) PRODUCT(24)
#endif

typedef void (*Product)(int64_t depth, const float *x, const float *panel, float *out);

static const Product PRODUCTS[MAX_ROWS] = {
    product_1, product_2, product_3, product_4, product_5, product_6,
#if MAX_ROWS == 24
    product_7, product_8, product_9, product_10, product_11, product_12,
    product_13, product_14, product_15, product_16, product_17, product_18,
    product_19, product_20, product_21, product_22, product_23, product_24,
#endif
};

void panel_product(int rows, int64_t depth, const float *x, const float *panel, float *out) {
    PRODUCTS[rows - 1](depth, x, panel, out);
}
