/* The product every matrix in this backend is made of: a few rows times a few panels of PANEL columns.

   Each of the results is one sum, taken strictly in order of k by fused multiply-adds into one register. The numbers
   of rows and of panels only change how many such sums run side by side: the bits of a row do not depend on its
   company.

   A panel is kept in one of several formats. Whatever the format, the product multiplies with the very float32 value
   that `panel_expand` gives: reading weights in a smaller form changes no bit of a result.

   Layouts, k by k, each for the PANEL columns side by side:
     FLOAT32   a float
     BFLOAT16  words of 32 bits: k in the low half, k + 1 in the high half
     INT8      per block of 32 k: PANEL scales (half), then words of 4 codes; weight = code * scale, with the sign in
             the code's top bit
     INT4      per block of 32 k: PANEL scales, PANEL minimums (half), then words of 8 codes; weight = code * scale + minimum */
#ifndef ADADECODE_PANEL_H
#define ADADECODE_PANEL_H

#include <stdint.h>

#include "vector.h"

/* Accumulators (vectors) that fit into registers beside what a product reads. */
#if VEC_LANES == 16
#define ACCUMULATORS 24
#elif VEC_LANES == 8
#define ACCUMULATORS 12
#else
#define ACCUMULATORS 24
#endif
/* A full tile has two vectors of columns at least, so that what is read of x is used more than once. */
#define TILE_VECS (PANEL_VECS == 1 ? 2 : PANEL_VECS)
#define MAX_ROWS (ACCUMULATORS / TILE_VECS)
#define MAX_CODE_ROWS (PANEL_VECS == 1 ? MAX_ROWS : MAX_ROWS * 2 / 3) /* scales and minimums need registers too */

/* Panels multiplied at once, as many as fit: with few rows, each addition to one panel's sums would wait for the one
   before, and one stream of memory does not keep the memory busy. A panel of codes has two registers more. */
#define MAX_PANELS 4
#define FIT(panels, format, rows) ((panels) * ((rows) + ((format) >= INT8 ? 2 : 0)) * PANEL_VECS <= ACCUMULATORS)
#define PANELS_AT_ONCE(format, rows) (FIT(4, format, rows) ? 4 : FIT(2, format, rows) ? 2 : 1)

/* each(format, rows) for 1 to MAX_ROWS rows. */
#define UP_TO_6_ROWS(each, format) \
    each(format, 1) each(format, 2) each(format, 3) each(format, 4) each(format, 5) each(format, 6)
#if MAX_ROWS == 12
#define EACH_ROWS(each, format)                                                                                 \
    UP_TO_6_ROWS(each, format) each(format, 7) each(format, 8) each(format, 9) each(format, 10) each(format, 11) \
    each(format, 12)
#else
#define EACH_ROWS UP_TO_6_ROWS
#endif

/* A function that calls `product`, which is inlined, for a format, a number of rows, and the number of panels that it is
   given; x is of type X. */
#define PRODUCT_OF(X, format, rows)                                                                             \
    static void product_##format##_##rows(int count, int64_t depth, const X *x, const Stream *panels,           \
                                          int64_t step, float *sums) {                                          \
        if (count == 1) product(format, 1, rows, depth, x, panels, step, sums);                                 \
        else if (count == 2 && FIT(4, format, rows)) product(format, 2, rows, depth, x, panels, step, sums);    \
        else product(format, PANELS_AT_ONCE(format, rows), rows, depth, x, panels, step, sums);                 \
    }
#define PRODUCT_NAME(format, rows) product_##format##_##rows,

#define BLOCK 32               /* values that share a scale */
#define WORD_BYTES (PANEL * 4) /* one word of every column */

typedef enum { FLOAT32, BFLOAT16, INT8, INT4, FORMATS } Format;

/* One row of a weight before it is packed. */
typedef struct {
    const float *values;      /* [depth]; NULL for codes */
    const uint8_t *codes;     /* INT8: [depth]; INT4: [depth / 2], the even one in the low half */
    const uint16_t *scales;   /* [depth / BLOCK], half precision */
    const uint16_t *minimums; /* [depth / BLOCK], INT4 only */
} SourceRow;

/* Bytes of a panel. The depth is even for BFLOAT16 and a multiple of BLOCK for codes. */
int64_t panel_bytes(Format format, int64_t depth);

/* Write column `column` of a panel that was zeroed before. Values become BFLOAT16 by rounding to even. */
void panel_fill(Format format, int64_t depth, SourceRow row, int column, void *panel);

/* values[k] = the weight at (k, column). */
void panel_column(Format format, int64_t depth, const void *panel, int column, float *values);

/* `depth` values of every column from `panel` on, as floats [depth, PANEL]. */
void panel_expand(Format format, int64_t depth, const void *panel, float *expanded);

/* A panel from some k on, and where to ask for weights ahead of use meanwhile. */
typedef struct {
    const char *at;
    const char *ahead;
} Stream;

/* sums[p][r][j] += sum over k < depth of x[k][r] * panels[p][k][j], for `count` panels: one, two, or
   PANELS_AT_ONCE(format, rows), which is no less. For every word of a column that it reads, it asks for `step` bytes
   ahead.

   x: [depth, rows], rows interleaved, 1 <= rows <= MAX_ROWS (quick up to MAX_CODE_ROWS for codes); sums: [panels, rows,
   PANEL], aligned. */
void panel_product(Format format, int rows, int count, int64_t depth, const float *x, const Stream *panels, int64_t step,
                   float *sums);

#endif
