/* Products of panels of codes with activations that are rounded to 8 bits as well, by integer arithmetic.

   Every BLOCK of a token's activations gets a scale of its own, the largest magnitude of it / 127. So

     sum over a block of x * weight  ~  x scale * (scale * sum of x code * code + minimum * sum of x codes)

   in which the sums are whole numbers and exact, however they are taken; block follows block in order, in float32. So
   a row's bits do not depend on its company, and every machine's instructions give the same whole numbers.

   One product of bytes takes the place of two to four of floats, and no code is made a float. What it costs is the
   rounding: results are no longer those of the weights' float32 values.

   Layout of a tile, per BLOCK of k: BLOCK / 4 words of 4 codes each, the rows interleaved, in the order in which a word
   of the panel has its codes (INT4: the even ones of 8, then the odd ones); then the rows' scales (float); then, for each
   row, what makes up for INT4's minimums (float: scale * sum of codes) or for INT8's signs (int32: -128 * sum of codes;
   0 unless its codes are multiplied as unsigned ones). */
#ifndef ADADECODE_ROUNDED_H
#define ADADECODE_ROUNDED_H

#include <stdint.h>

#include "panel.h"

#define ROUNDED_WORDS (BLOCK / 4 + 2) /* of 32 bits, for a block of one row */

/* Round the BLOCK `values` of row `row` of `rows`, into the block of a tile that begins at `block`. A value that is not
   finite makes the products of its block not finite. */
void rounded_fill(Format format, const float *values, int rows, int row, int32_t *block);

/* As panel_product, for INT8 and INT4, and x as above, [depth / BLOCK, ROUNDED_WORDS * rows]. */
void rounded_product(Format format, int rows, int count, int64_t depth, const int32_t *x, const Stream *panels,
                     int64_t step, float *sums);

#endif
