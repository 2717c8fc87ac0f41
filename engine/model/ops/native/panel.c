#include "panel.h"

#include <string.h>

#include "codes.h"
#include "sums.h"

typedef char bytes __attribute__((vector_size(VEC_BYTES)));

/* ---- one value ---- */

static float float_from_half(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f;
    return half & 0x8000 ? -value : value;
}

static uint32_t bfloat16_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) return bits >> 16 | 0x40; /* stays not a number */
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static float float_from_bfloat16(uint32_t half) {
    uint32_t bits = half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- packing and reading back ---- */

int64_t panel_bytes(Format format, int64_t depth) {
    switch (format) {
        case BFLOAT16: return depth / 2 * WORD_BYTES;
        case INT8: return depth / BLOCK * INT8_BYTES;
        case INT4: return depth / BLOCK * INT4_BYTES;
        default: return depth * WORD_BYTES;
    }
}

static uint16_t *halves_at(char *block, int index, int column) {
    return (uint16_t *)(block + index * HALVES_BYTES) + column;
}

static uint32_t *word_at(char *words, int64_t index, int column) {
    return (uint32_t *)(words + index * WORD_BYTES) + column;
}

static void fill_int8(int64_t depth, SourceRow row, int column, char *panel) {
    for (int64_t k = 0; k < depth; k++) {
        char *block = panel + k / BLOCK * INT8_BYTES;
        int64_t within = k % BLOCK;
        if (within == 0) *halves_at(block, 0, column) = row.scales[k / BLOCK];
        *word_at(block + HALVES_BYTES, within / 4, column) |= (uint32_t)(row.codes[k] ^ 128) << within % 4 * 8;
    }
}

static void fill_int4(int64_t depth, SourceRow row, int column, char *panel) {
    for (int64_t k = 0; k < depth; k++) {
        char *block = panel + k / BLOCK * INT4_BYTES;
        int64_t within = k % BLOCK;
        if (within == 0) {
            *halves_at(block, 0, column) = row.scales[k / BLOCK];
            *halves_at(block, 1, column) = row.minimums[k / BLOCK];
        }
        uint32_t code = row.codes[k / 2] >> k % 2 * 4 & 15;
        *word_at(block + 2 * HALVES_BYTES, within / 8, column) |= code << within % 8 * 4;
    }
}

void panel_fill(Format format, int64_t depth, SourceRow row, int column, void *panel) {
    switch (format) {
        case INT8: fill_int8(depth, row, column, panel); return;
        case INT4: fill_int4(depth, row, column, panel); return;
        case BFLOAT16:
            for (int64_t k = 0; k < depth; k++)
                *word_at(panel, k / 2, column) |= bfloat16_from_float(row.values[k]) << k % 2 * 16;
            return;
        default:
            for (int64_t k = 0; k < depth; k++) ((float *)panel)[k * PANEL + column] = row.values[k];
    }
}

static float value_at(Format format, const char *panel, int64_t k, int column) {
    int64_t within = k % BLOCK;
    char *block = (char *)panel;
    uint32_t word;
    switch (format) {
        case BFLOAT16:
            return float_from_bfloat16(*word_at(block, k / 2, column) >> k % 2 * 16 & 0xffff);
        case INT8:
            block += k / BLOCK * INT8_BYTES;
            word = *word_at(block + HALVES_BYTES, within / 4, column) >> within % 4 * 8 & 255;
            return (float)(int8_t)word * float_from_half(*halves_at(block, 0, column));
        case INT4:
            block += k / BLOCK * INT4_BYTES;
            word = *word_at(block + 2 * HALVES_BYTES, within / 8, column) >> within % 8 * 4 & 15;
            return (float)word * float_from_half(*halves_at(block, 0, column)) +
                   float_from_half(*halves_at(block, 1, column));
        default: return ((const float *)panel)[k * PANEL + column];
    }
}

void panel_column(Format format, int64_t depth, const void *panel, int column, float *values) {
    for (int64_t k = 0; k < depth; k++) values[k] = value_at(format, panel, k, column);
}

/* ---- walking through a panel ---- */

/* A code times a scale is exact in float32, so the sum with a minimum rounds once, as it does where a quantized weight
   is expanded in advance. Returns where the block's words begin. */
INLINE const char *begin_block(const Format format, const char *at, Shared *shared) {
    at = read_shared(format, at, shared);
    if (format == INT8)
        for (int v = 0; v < PANEL_VECS; v++) shared->scale[v] *= 0x1p-24f; /* weight_of leaves a code in its word's top byte */
    return at;
}

/* Byte `index` of every word as its top byte, the others zero. */
INLINE ivec to_top(uvec word, const int index) {
#if VEC_LANES == 8 && defined(__AVX2__)
    bytes place; /* of each byte; one with its top bit set gives zero */
    for (int lane = 0; lane < VEC_BYTES; lane++) place[lane] = lane % 4 == 3 ? lane % 16 - 3 + index : -1;
    return (ivec)__builtin_ia32_pshufb256((bytes)word, place);
#else
    return (ivec)(word << 8 * (3 - index) & 0xff000000u);
#endif
}

/* The half byte `index` of every word as a float. */
INLINE vec half_byte(uvec word, const int index) {
    uvec low = word >> 4 * index;
#if VEC_LANES == 16
    const vec numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (vec)_mm512_permutexvar_ps((__m512i)low, (__m512)numbers); /* takes no notice of higher bits */
#else
    return __builtin_convertvector((ivec)(low & 15), vec);
#endif
}

/* Weights of k + i, 0 <= i < span, from one word of every column. */
INLINE vec weight_of(const Format format, uvec word, const int i, vec scale, vec minimum) {
    switch (format) {
        case BFLOAT16: return (vec)(i == 0 ? word << 16 : word & 0xffff0000u);
        case INT8: return __builtin_convertvector(to_top(word, i), vec) * scale;
        case INT4: return half_byte(word, i) * scale + minimum;
        default: return (vec)word;
    }
}

/* Values of k in one word. */
INLINE int span_of(const Format format) {
    return format == INT4 ? 8 : format == INT8 ? 4 : format == BFLOAT16 ? 2 : 1;
}

/* `product` and `expand` walk through a panel in the same way and are nonetheless written out: when one walk was passed
   what to do with the weights, compilers made slower code of it. */

INLINE void product(const Format format, const int panels, const int rows, int64_t depth, const float *x,
                    const Stream *streams, int64_t step, float *out) {
    const bool rows_kept = rows <= panels * PANEL_VECS; /* in registers, not the weights */
    const int span = span_of(format);
    const int64_t length = format >= INT8 ? BLOCK : span; /* of k between two looks at what a block shares */
    Sums sum;
    Shared shared[MAX_PANELS] = {0};
    const char *at[MAX_PANELS], *ahead[MAX_PANELS];
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++) at[p] = streams[p].at, ahead[p] = streams[p].ahead;
    sums_load(panels, rows, out, sum);
    for (int64_t begin = 0; begin < depth; begin += length) {
        if (format >= INT8)
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++) at[p] = begin_block(format, at[p], &shared[p]);
        for (int64_t k = 0; k < length; k += span) {
            uvec words[MAX_PANELS][PANEL_VECS];
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++, at[p - 1] += WORD_BYTES, ahead[p - 1] += step) {
                __builtin_prefetch(ahead[p]);
#pragma GCC unroll 4
                for (int v = 0; v < PANEL_VECS; v++) words[p][v] = ((const loose_uvec *)at[p])[v];
            }
#pragma GCC unroll 8
            for (int i = 0; i < span; i++, x += rows) {
                vec weights[MAX_PANELS][PANEL_VECS];
#pragma GCC unroll 4
                for (int p = 0; p < panels; p++)
#pragma GCC unroll 4
                    for (int v = 0; v < PANEL_VECS; v++) {
                        vec weight = weight_of(format, words[p][v], i, shared[p].scale[v], shared[p].minimum[v]);
                        weights[p][v] = vec_kept(weight);
                        if (rows_kept)
#pragma GCC unroll 12
                            for (int r = 0; r < rows; r++) sum[p][r][v] += x[r] * weights[p][v];
                    }
                if (!rows_kept)
#pragma GCC unroll 12
                    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                        for (int p = 0; p < panels; p++)
#pragma GCC unroll 4
                            for (int v = 0; v < PANEL_VECS; v++) sum[p][r][v] += x[r] * weights[p][v];
            }
        }
    }
    sums_store(panels, rows, sum, out);
}

INLINE void expand(const Format format, int64_t depth, const char *at, float *out) {
    const int span = span_of(format);
    const int64_t length = format >= INT8 ? BLOCK : span;
    Shared shared = {0};
    for (int64_t begin = 0; begin < depth; begin += length) {
        if (format >= INT8) at = begin_block(format, at, &shared);
        for (int64_t k = 0; k < length; k += span, at += WORD_BYTES) {
            uvec words[PANEL_VECS]; /* read once, whatever is written meanwhile */
#pragma GCC unroll 4
            for (int v = 0; v < PANEL_VECS; v++) words[v] = ((const loose_uvec *)at)[v];
#pragma GCC unroll 8
            for (int i = 0; i < span; i++, out += PANEL)
#pragma GCC unroll 4
                for (int v = 0; v < PANEL_VECS; v++)
                    vec_store(out + v * VEC_LANES,
                              weight_of(format, words[v], i, shared.scale[v], shared.minimum[v]));
        }
    }
}

void panel_expand(Format format, int64_t depth, const void *panel, float *expanded) {
    switch (format) {
        case BFLOAT16: expand(BFLOAT16, depth, panel, expanded); return;
        case INT8: expand(INT8, depth, panel, expanded); return;
        case INT4: expand(INT4, depth, panel, expanded); return;
        default: memcpy(expanded, panel, depth * WORD_BYTES);
    }
}

/* ---- one function per format and number of rows ---- */

#define PRODUCT(format, rows) PRODUCT_OF(float, format, rows)

EACH_ROWS(PRODUCT, FLOAT32)
EACH_ROWS(PRODUCT, BFLOAT16)
EACH_ROWS(PRODUCT, INT8)
EACH_ROWS(PRODUCT, INT4)

typedef void (*Product)(int count, int64_t depth, const float *x, const Stream *panels, int64_t step, float *sums);

static const Product PRODUCTS[FORMATS][MAX_ROWS] = {
    {EACH_ROWS(PRODUCT_NAME, FLOAT32)},
    {EACH_ROWS(PRODUCT_NAME, BFLOAT16)},
    {EACH_ROWS(PRODUCT_NAME, INT8)},
    {EACH_ROWS(PRODUCT_NAME, INT4)},
};

void panel_product(Format format, int rows, int count, int64_t depth, const float *x, const Stream *panels, int64_t step,
                   float *sums) {
    PRODUCTS[format][rows - 1](count, depth, x, panels, step, sums);
}
