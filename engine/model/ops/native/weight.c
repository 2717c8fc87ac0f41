/* Weights of linear layers: packing them, and reading rows back.

   A weight [out, in] is kept as ceil(out / PANEL) panels in one of panel.h's formats, the last one padded with zeros. */
#include <sys/mman.h>

#include "linear.h"
#include "panel.h"

/* Ask for huge pages under a weight that has not been written yet: a pass over it then misses fewer translations
   (5 to 12 % of the time of few tokens on an EPYC). A wish: nothing depends on its being granted. */
void linear_prefer_huge_pages(void *panels, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t huge = 2 << 20;
    uintptr_t begin = ((uintptr_t)panels + huge - 1) / huge * huge, end = ((uintptr_t)panels + bytes) / huge * huge;
    if (end > begin) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)panels, (void)bytes;
#endif
}

/* Bytes of all panels. */
int64_t linear_bytes(int32_t format, int64_t out_features, int64_t in_features) {
    return ceil_divide(out_features, PANEL) * panel_bytes(format, in_features);
}

static char *panel_of(const Linear *weight, int64_t row) {
    return (char *)weight->panels + row / PANEL * weight->panel_bytes;
}

/* Rows [first, first + rows) of a weight, given as float32 [rows, in], into its zeroed panels. */
void linear_pack(const Linear *weight, const float *values, int64_t first, int64_t rows) {
    int64_t in = weight->in_features;
    for (int64_t row = first; row < first + rows; row++)
        panel_fill(weight->format, in, (SourceRow){.values = values + (row - first) * in}, row % PANEL,
                   panel_of(weight, row));
}

/* The same for codes [rows, in] (of four bits: [rows, in / 2]), scales and minimums [rows, in / BLOCK]. */
void linear_pack_codes(const Linear *weight, const uint8_t *codes, const uint16_t *scales, const uint16_t *minimums,
                       int64_t first, int64_t rows) {
    int64_t in = weight->in_features, blocks = in / BLOCK, width = weight->format == INT4 ? in / 2 : in;
    for (int64_t i = 0; i < rows; i++) {
        SourceRow row = {.codes = codes + i * width, .scales = scales + i * blocks};
        if (minimums != NULL) row.minimums = minimums + i * blocks;
        panel_fill(weight->format, in, row, (first + i) % PANEL, panel_of(weight, first + i));
    }
}

/* out[i] = row token_ids[i] of the weight. */
int linear_embed(const Linear *table, const int32_t *token_ids, int64_t count, float *out) {
    int64_t in = table->in_features;
    for (int64_t i = 0; i < count; i++) {
        int64_t id = token_ids[i];
        if (id < 0 || id >= table->out_features) return BAD_INDEX;
        panel_column(table->format, in, panel_of(table, id), id % PANEL, out + i * in);
    }
    return OK;
}
