/* The kernels on made-up weights and contexts, to run where no host is: prints a line per case with results, as bits.
   Ends with 1 if a token's bits depend on how many tokens share its call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "linear.h"
#include "noise.h"
#include "panel.h"

enum { IN = 160, OUT = 80, TOKENS = 20, HEADS = 6, KV_HEADS = 2, SIZE = 24, CONTEXT = 150, WIDTH = (HEADS + 2 * KV_HEADS) * SIZE };

Context *context_new(int threads);
void context_free(Context *context);
int64_t linear_bytes(int32_t format, int64_t out_features, int64_t in_features);
void linear_pack(const Linear *weight, const float *values, int64_t first, int64_t rows);
void linear_pack_codes(const Linear *weight, const uint8_t *codes, const uint16_t *scales, const uint16_t *minimums,
                       int64_t first, int64_t rows);

static uint32_t state = 1;

static uint32_t number(void) { return (state = state * 1664525u + 1013904223u) >> 8; }

static float *values(int64_t count) {
    float *made = aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);
    for (int64_t i = 0; i < count; i++) made[i] = (float)(number() & 0xffff) / 65536.0f - 0.5f;
    return made;
}

static void print(const char *name, int format, const float *out, int64_t count) {
    printf("%s %d", name, format);
    for (int64_t i = 0; i < count; i++) printf(" %.9g", (double)out[i]);
    printf("\n");
}

static int differ(const char *name, int format, int64_t tokens, const float *a, const float *b, int64_t count) {
    if (memcmp(a, b, count * sizeof(float)) == 0) return 0;
    printf("%s %d: %d tokens a call change the bits\n", name, format, (int)tokens);
    return 1;
}

/* Codes at random, or all with the greatest magnitude. */
static Linear pack(Format format, int is_extreme) {
    char *panels = aligned_alloc(64, (linear_bytes(format, OUT, IN) + 63) / 64 * 64);
    memset(panels, 0, linear_bytes(format, OUT, IN));
    Linear weight = {.panels = panels, .bias = values(OUT), .out_features = OUT, .in_features = IN,
                     .panel_bytes = panel_bytes(format, IN), .format = format};
    if (format == FLOAT32 || format == BFLOAT16) {
        linear_pack(&weight, values(OUT * IN), 0, OUT);
        return weight;
    }
    static uint8_t codes[OUT * IN];
    static uint16_t scales[OUT * IN / BLOCK], minimums[OUT * IN / BLOCK];
    for (int i = 0; i < OUT * IN; i++) codes[i] = !is_extreme ? number() & 0xff : format == INT4 ? 0xff : 0;
    for (int i = 0; i < OUT * IN / BLOCK; i++) scales[i] = 0x1c00 + (number() & 0x3ff), minimums[i] = 0xb000;
    linear_pack_codes(&weight, codes, scales, format == INT4 ? minimums : NULL, 0, OUT);
    return weight;
}

static int check_linear(Context *context, const char *name, Linear weight) {
    float *x = values(TOKENS * IN), *norm = values(IN), *residual = values(TOKENS * OUT);
    float alone[TOKENS * OUT], together[TOKENS * OUT];
    int bad = 0;
    for (int t = 0; t < TOKENS; t++)
        bad |= linear_forward(context, &weight, x + t * IN, 1, norm, 1e-5f, residual + t * OUT, alone + t * OUT);
    for (int64_t tokens = 2; tokens <= TOKENS; tokens++) {
        bad |= linear_forward(context, &weight, x, tokens, norm, 1e-5f, residual, together);
        bad |= differ(name, weight.format, tokens, alone, together, tokens * OUT);
    }
    print(name, weight.format, alone, TOKENS * OUT);
    return bad;
}

/* Sums of products as great as they can be: do they fit where a machine adds them up? */
static int check_extremes(Context *context, Linear weight) {
    float x[2 * IN], out[2 * OUT];
    for (int i = 0; i < 2 * IN; i++) x[i] = i < IN ? 1.0f : -1.0f;
    int bad = linear_forward(context, &weight, x, 2, NULL, 0, NULL, out);
    print("extremes", weight.format, out, 2 * OUT);
    return bad;
}

static int check_attention(Context *context) {
    int64_t blocks = CONTEXT / 16 + 1;
    AttentionParams params = {.cos = values(CONTEXT * SIZE), .sin = values(CONTEXT * SIZE), .max_positions = CONTEXT,
                              .heads = HEADS, .kv_heads = KV_HEADS, .head_size = SIZE, .scale = 0.2f, .eps = 1e-5f};
    LayerCache cache = {values(blocks * 16 * KV_HEADS * SIZE), values(blocks * 16 * KV_HEADS * SIZE), blocks * 16};
    float *qkv = values(CONTEXT * WIDTH), expected[CONTEXT * HEADS * SIZE], out[CONTEXT * HEADS * SIZE];
    int32_t positions[CONTEXT], slots[CONTEXT], rows[CONTEXT] = {0}, table[CONTEXT];
    for (int i = 0; i < blocks; i++) table[i] = (int32_t)(blocks - 1 - i);
    for (int i = 0; i < CONTEXT; i++) positions[i] = i, slots[i] = table[i / 16] * 16 + i % 16;
    int bad = 0;
    for (int64_t size = 1; size <= TOKENS; size++) {
        for (int64_t first = 0; first < CONTEXT; first += size) {
            TokenBatch batch = {positions + first, slots + first, rows, table, least(size, CONTEXT - first), 1, blocks, 16};
            float *to = (size == 1 ? expected : out) + first * HEADS * SIZE;
            bad |= attention_forward(context, &params, &batch, &cache, qkv + first * WIDTH, to);
        }
        if (size > 1) bad |= differ("attention", 0, size, expected, out, CONTEXT * HEADS * SIZE);
    }
    print("attention", 0, expected, CONTEXT * HEADS * SIZE);
    return bad;
}

/* Every noise there is. */
static int check_noise(void) {
    float most = 0, uniform[NOISE_BLOCK], noise[NOISE_BLOCK];
    for (int first = 0; first < 1 << 23; first += NOISE_BLOCK) {
        for (int i = 0; i < NOISE_BLOCK; i++) uniform[i] = ((float)(first + i) + 0.5f) * 0x1p-23f, noise[i] = 0;
        noise_add(uniform, 1.0f, noise);
        for (int i = 0; i < NOISE_BLOCK; i++) most = noise[i] > most ? noise[i] : most;
        if (first % (1 << 17) == 0) print("noise", first, noise, NOISE_BLOCK);
    }
    if (most < NOISE_MOST) return 0;
    printf("noise 0: as much as %.9g\n", (double)most);
    return 1;
}

int main(void) {
    Context *context = context_new(2);
    int bad = 0;
    for (Format format = FLOAT32; format < FORMATS; format++) bad |= check_linear(context, "linear", pack(format, 0));
    for (Format format = INT8; format <= INT4; format++) {
        Linear weight = pack(format, 0), extreme = pack(format, 1);
        weight.rounded = extreme.rounded = 1;
        bad |= check_linear(context, "rounded", weight);
        bad |= check_extremes(context, extreme);
    }
    bad |= check_attention(context);
    bad |= check_noise();
    context_free(context);
    return bad;
}
