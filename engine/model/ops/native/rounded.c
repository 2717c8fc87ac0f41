#include "rounded.h"

#include "codes.h"
#include "sums.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

/* Whether INT8's codes are multiplied as unsigned bytes, 128 added to each. */
#if (VEC_LANES == 16 && defined(__AVX512VNNI__)) || (VEC_LANES == 8 && defined(__AVXVNNI__))
#define UNSIGNED_CODES 1
#else
#define UNSIGNED_CODES 0
#endif

typedef int16_t shorts __attribute__((vector_size(VEC_BYTES)));
typedef int8_t quarter_ivec __attribute__((vector_size(VEC_LANES))); /* a byte per lane */

/* ---- rounding ---- */

/* The largest magnitude; NaN if there is one. Bits of magnitudes are ordered as magnitudes are, NaN above all. */
static float largest(const float *values) {
    ivec most = {0};
    for (int k = 0; k < BLOCK; k += VEC_LANES) {
        ivec bits = (ivec)vec_load(values + k) & 0x7fffffff;
        most = (ivec)vec_select(bits > most, (vec)bits, (vec)most);
    }
    int32_t top = 0;
    for (int lane = 0; lane < VEC_LANES; lane++) top = most[lane] > top ? most[lane] : top;
    float value;
    memcpy(&value, &top, sizeof value);
    return value;
}

/* codes[k] = values[k] * inverse, to the nearest whole number. Returns their sum. */
static int32_t round_values(const float *values, float inverse, int8_t *codes) {
    const vec magic = vec_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    ivec sums = {0};
    for (int k = 0; k < BLOCK; k += VEC_LANES) {
        ivec rounded = (ivec)(vec_load(values + k) * inverse + magic) - (ivec)magic;
        quarter_ivec narrow = __builtin_convertvector(rounded, quarter_ivec);
        memcpy(codes + k, &narrow, VEC_LANES);
        sums += rounded;
    }
    int32_t sum = 0;
    for (int lane = 0; lane < VEC_LANES; lane++) sum += sums[lane];
    return sum;
}

/* Bytes 0, 2, 4 and 6 of 8, side by side. */
INLINE uint64_t evens(uint64_t bytes) {
    bytes &= 0x00ff00ff00ff00ffu;
    bytes = (bytes | bytes >> 8) & 0x0000ffff0000ffffu;
    return (bytes | bytes >> 16) & 0xffffffffu;
}

/* Of every 8 codes the even ones, then the odd ones, as INT4 has them (the first code in a word's lowest byte). */
static void place_evens_first(uint64_t *eights) {
    for (int i = 0; i < BLOCK / 8; i++) eights[i] = evens(eights[i]) | evens(eights[i] >> 8) << 32;
}

void rounded_fill(Format format, const float *values, int rows, int row, int32_t *block) {
    float top = largest(values), scale = top / 127.0f;
    float inverse = top > 0x1p-100f && top < INFINITY ? 127.0f / top : 0.0f; /* of less, 127 / top may be infinite */
    uint64_t eights[BLOCK / 8];
    int32_t sum = round_values(values, inverse, (int8_t *)eights), words[BLOCK / 4];
    if (format == INT4) place_evens_first(eights);
    memcpy(words, eights, sizeof words);
    for (int i = 0; i < BLOCK / 4; i++) block[i * rows + row] = words[i];
    float *scales = (float *)(block + BLOCK / 4 * rows);
    scales[row] = scale;
    if (format == INT4) scales[rows + row] = scale * (float)sum;
    else block[(BLOCK / 4 + 1) * rows + row] = UNSIGNED_CODES ? -128 * sum : 0;
}

/* ---- products ---- */

/* Where there is no instruction for all of it: products of unsigned bytes with signed ones, added in pairs to 16 bits
   (PAIRS), and those in pairs to 32 (FOURS); x with the signs of codes (SIGNED) and the codes without (MAGNITUDES). */
#if VEC_LANES == 16 && defined(__AVX512BW__)
#define PAIRS(codes, x) _mm512_maddubs_epi16(codes, x)
#define FOURS(pairs) ((ivec)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
#define SIGNED(x, codes) _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(codes), _mm512_setzero_si512(), x)
#define MAGNITUDES(codes) _mm512_abs_epi8(codes)
typedef __m512i integers;
#elif VEC_LANES == 8 && defined(__AVX2__)
#define PAIRS(codes, x) _mm256_maddubs_epi16(codes, x)
#define FOURS(pairs) ((ivec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
#define SIGNED(x, codes) _mm256_sign_epi8(x, codes)
#define MAGNITUDES(codes) _mm256_abs_epi8(codes)
typedef __m256i integers;
#elif VEC_LANES == 4 && defined(__SSSE3__)
#define PAIRS(codes, x) _mm_maddubs_epi16(codes, x)
#define FOURS(pairs) ((ivec)_mm_madd_epi16(pairs, _mm_set1_epi16(1)))
#define SIGNED(x, codes) _mm_sign_epi8(x, codes)
#define MAGNITUDES(codes) _mm_abs_epi8(codes)
typedef __m128i integers;
#endif

/* sum + the four products of each lane's bytes, of codes and of x. With PAIRS, INT4's sums are two of 16 bits a lane
   until a block ends (see whole_sums): 8 words of 2 products of at most 15 * 127 each do fit. */
INLINE ivec add_products(const Format format, ivec sum, uvec codes, ivec x) {
    (void)format;
#if VEC_LANES == 16 && defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
#elif VEC_LANES == 8 && defined(__AVXVNNI__)
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)x);
#elif defined(__ARM_FEATURE_DOTPROD)
    return (ivec)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)x);
#elif defined(PAIRS)
    if (format == INT4) return (ivec)((shorts)sum + (shorts)PAIRS((integers)codes, (integers)x));
    return sum + FOURS(PAIRS(MAGNITUDES((integers)codes), SIGNED((integers)x, (integers)codes)));
#else
    for (int i = 3; i >= 0; i--) sum += ((ivec)(codes << 8 * i) >> 24) * (x << 8 * i >> 24);
    return sum;
#endif
}

/* The sums of a block's products. */
INLINE ivec whole_sums(const Format format, ivec sum) {
    (void)format;
#if defined(PAIRS) && !UNSIGNED_CODES
    if (format == INT4) return FOURS((integers)sum);
#endif
    return sum;
}

/* Codes, a byte each: part 0 or 1 of a word; INT8 has one part. */
INLINE uvec codes_of(const Format format, uvec word, const int part) {
    if (format == INT8) return UNSIGNED_CODES ? word ^ 0x80808080u : word;
    return (part ? word >> 4 : word) & 0x0f0f0f0fu;
}

INLINE void product(const Format format, const int panels, const int rows, int64_t depth, const int32_t *x,
                    const Stream *streams, int64_t step, float *out) {
    const int parts = format == INT4 ? 2 : 1;
    Sums sum;
    const char *at[MAX_PANELS], *ahead[MAX_PANELS];
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++) at[p] = streams[p].at, ahead[p] = streams[p].ahead;
    sums_load(panels, rows, out, sum);
    for (int64_t k = 0; k < depth; k += BLOCK) {
        Shared shared[MAX_PANELS];
        ivec dot[MAX_PANELS][MAX_ROWS][PANEL_VECS] = {0};
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) at[p] = read_shared(format, at[p], &shared[p]);
#pragma GCC unroll 8
        for (int word = 0; word < BLOCK / 4 / parts; word++) {
            uvec words[MAX_PANELS][PANEL_VECS];
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++, at[p - 1] += WORD_BYTES, ahead[p - 1] += step) {
                __builtin_prefetch(ahead[p]);
#pragma GCC unroll 4
                for (int v = 0; v < PANEL_VECS; v++) words[p][v] = ((const loose_uvec *)at[p])[v];
            }
#pragma GCC unroll 2
            for (int part = 0; part < parts; part++)
#pragma GCC unroll 12
                for (int r = 0; r < rows; r++, x++) {
                    ivec four = *x - (ivec){0};
#pragma GCC unroll 4
                    for (int p = 0; p < panels; p++)
#pragma GCC unroll 4
                        for (int v = 0; v < PANEL_VECS; v++)
                            dot[p][r][v] = add_products(format, dot[p][r][v], codes_of(format, words[p][v], part), four);
                }
        }
        const float *scales = (const float *)x;
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++)
#pragma GCC unroll 4
                for (int v = 0; v < PANEL_VECS; v++) {
                    ivec whole = whole_sums(format, dot[p][r][v]);
                    if (format == INT8 && UNSIGNED_CODES) whole += x[rows + r];
                    sum[p][r][v] += __builtin_convertvector(whole, vec) * (shared[p].scale[v] * scales[r]);
                    if (format == INT4) sum[p][r][v] += shared[p].minimum[v] * scales[rows + r];
                }
        x += 2 * rows;
    }
    sums_store(panels, rows, sum, out);
}

/* ---- one function per format and number of rows ---- */

#define PRODUCT(format, rows) PRODUCT_OF(int32_t, format, rows)

EACH_ROWS(PRODUCT, INT8)
EACH_ROWS(PRODUCT, INT4)

typedef void (*Product)(int count, int64_t depth, const int32_t *x, const Stream *panels, int64_t step, float *sums);

static const Product PRODUCTS[FORMATS][MAX_ROWS] = {
    [INT8] = {EACH_ROWS(PRODUCT_NAME, INT8)},
    [INT4] = {EACH_ROWS(PRODUCT_NAME, INT4)},
};

void rounded_product(Format format, int rows, int count, int64_t depth, const int32_t *x, const Stream *panels,
                     int64_t step, float *sums) {
    PRODUCTS[format][rows - 1](count, depth, x, panels, step, sums);
}
