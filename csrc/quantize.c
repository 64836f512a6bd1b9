/* quantize.c: f32 weights into blocks: what quantize_search.c finds, laid out as quant.h tells. */
#include "quantize.h"

#include "error.h"
#include "quantize_search.h"

#include <float.h>
#include <math.h>

enum { SMALL = L2C_SMALL_BLOCK, LARGE = L2C_SUPER_BLOCK };

static void put_u16(uint8_t *p, unsigned value) {
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

static void put_f16(uint8_t *p, float x) {
    put_u16(p, l2c_f32_to_f16(x));
}

/* ---- Blocks of 32 with scales of their own ---- */

static void put_nibbles(uint8_t *p, const uint8_t *q) {
    for (int i = 0; i < 16; i++) {
        p[i] = (uint8_t)((q[i] & 15) | (q[16 + i] & 15) << 4);
    }
}

static void put_fifth_bits(uint8_t *p, const uint8_t *q) {
    for (int i = 0; i < SMALL; i++) {
        p[i / 8] = (uint8_t)((i % 8 ? p[i / 8] : 0) | (q[i] >> 4 & 1) << i % 8);
    }
}

static void to_q4_0(uint8_t *p, const float *x, size_t n) {
    const l2c_range r = {-8, 7};
    for (; n > 0; n--, p += 18, x += SMALL) {
        uint8_t q[SMALL];
        const float d = l2c_find_scale(x, r);
        l2c_round_values(q, x, SMALL, d, 0, r);
        put_f16(p, d);
        put_nibbles(p + 2, q);
    }
}

static void to_q4_1(uint8_t *p, const float *x, size_t n) {
    const l2c_range r = {0, 15};
    for (; n > 0; n--, p += 20, x += SMALL) {
        uint8_t q[SMALL];
        float min;
        const float d = l2c_find_line(&min, x, r);
        l2c_round_values(q, x, SMALL, d, min, r);
        put_f16(p, d);
        put_f16(p + 2, -min);
        put_nibbles(p + 4, q);
    }
}

static void to_q5_0(uint8_t *p, const float *x, size_t n) {
    const l2c_range r = {-16, 15};
    for (; n > 0; n--, p += 22, x += SMALL) {
        uint8_t q[SMALL];
        const float d = l2c_find_scale(x, r);
        l2c_round_values(q, x, SMALL, d, 0, r);
        put_f16(p, d);
        put_fifth_bits(p + 2, q);
        put_nibbles(p + 6, q);
    }
}

static void to_q5_1(uint8_t *p, const float *x, size_t n) {
    const l2c_range r = {0, 31};
    for (; n > 0; n--, p += 24, x += SMALL) {
        uint8_t q[SMALL];
        float min;
        const float d = l2c_find_line(&min, x, r);
        l2c_round_values(q, x, SMALL, d, min, r);
        put_f16(p, d);
        put_f16(p + 2, -min);
        put_fifth_bits(p + 4, q);
        put_nibbles(p + 8, q);
    }
}

/* -128 is left out: its negative is no int8, which kernels need. */
static void to_q8_0(uint8_t *p, const float *x, size_t n) {
    const l2c_range r = {-127, 127};
    for (; n > 0; n--, p += 34, x += SMALL) {
        uint8_t q[SMALL];
        const float d = l2c_find_scale(x, r);
        l2c_round_values(q, x, SMALL, d, 0, r);
        put_f16(p, d);
        for (int i = 0; i < SMALL; i++) {
            p[2 + i] = (uint8_t)(q[i] - 127);
        }
    }
}

/* ---- Blocks of 256 in groups ---- */

/* Value i of 256 in two bits: 128 values share 32 bytes. p is zeroed. */
static void add_two_bits(uint8_t *p, int i, unsigned bits) {
    uint8_t *at = &p[i / 128 * 32 + i % 32];
    *at = (uint8_t)(*at | bits << 2 * (i / 32 % 4));
}

static void to_q2_k(uint8_t *p, const float *x, size_t n) {
    static const l2c_super s = {16, 16, {0, 3}, {0, 15}, {0, 15}};
    for (; n > 0; n--, p += 84, x += LARGE) {
        uint8_t q[LARGE];
        l2c_coding c;
        l2c_find_coding(&c, &s, x);
        l2c_round_groups(q, &s, &c, x);
        memset(p, 0, 84);
        for (int i = 0; i < LARGE; i++) {
            add_two_bits(p + 16, i, q[i]);
        }
        for (int g = 0; g < 16; g++) {
            p[g] = (uint8_t)((unsigned)c.scales[g] | (unsigned)c.mins[g] << 4);
        }
        put_f16(p + 80, c.d);
        put_f16(p + 82, c.dmin);
    }
}

static void to_q3_k(uint8_t *p, const float *x, size_t n) {
    static const l2c_super s = {16, 16, {-4, 3}, {-32, 31}, {0, 0}};
    for (; n > 0; n--, p += 110, x += LARGE) {
        uint8_t q[LARGE];
        l2c_coding c;
        l2c_find_coding(&c, &s, x);
        l2c_round_groups(q, &s, &c, x);
        memset(p, 0, 110);
        for (int i = 0; i < LARGE; i++) {
            add_two_bits(p + 32, i, q[i] & 3);
            p[i % 32] = (uint8_t)(p[i % 32] | (q[i] >> 2) << i / 32);
        }
        for (int g = 0; g < 16; g++) {
            const unsigned scale = (unsigned)(c.scales[g] + 32);
            p[96 + g % 8] = (uint8_t)(p[96 + g % 8] | (scale & 15) << 4 * (g / 8));
            p[104 + g % 4] = (uint8_t)(p[104 + g % 4] | (scale >> 4) << 2 * (g / 4));
        }
        put_f16(p + 108, c.d);
    }
}

/* The reverse of l2c_k4_scales. p is zeroed. */
static void put_k4_scales(uint8_t *p, const l2c_coding *c) {
    for (int g = 0; g < 4; g++) {
        const unsigned scale = (unsigned)c->scales[g], min = (unsigned)c->mins[g];
        const unsigned upper_scale = (unsigned)c->scales[4 + g], upper_min = (unsigned)c->mins[4 + g];
        p[g] = (uint8_t)(scale | upper_scale >> 4 << 6);
        p[4 + g] = (uint8_t)(min | upper_min >> 4 << 6);
        p[8 + g] = (uint8_t)((upper_scale & 15) | (upper_min & 15) << 4);
    }
}

static void put_groups_of_nibbles(uint8_t *p, const uint8_t *q) {
    for (int i = 0; i < LARGE / 2; i++) {
        const uint8_t *low = q + i / 32 * 64 + i % 32;
        p[i] = (uint8_t)((low[0] & 15) | (low[32] & 15) << 4);
    }
}

static void to_q4_k(uint8_t *p, const float *x, size_t n) {
    static const l2c_super s = {8, 32, {0, 15}, {0, 63}, {0, 63}};
    for (; n > 0; n--, p += 144, x += LARGE) {
        uint8_t q[LARGE];
        l2c_coding c;
        l2c_find_coding(&c, &s, x);
        l2c_round_groups(q, &s, &c, x);
        put_f16(p, c.d);
        put_f16(p + 2, c.dmin);
        put_k4_scales(p + 4, &c);
        put_groups_of_nibbles(p + 16, q);
    }
}

static void to_q5_k(uint8_t *p, const float *x, size_t n) {
    static const l2c_super s = {8, 32, {0, 31}, {0, 63}, {0, 63}};
    for (; n > 0; n--, p += 176, x += LARGE) {
        uint8_t q[LARGE];
        l2c_coding c;
        l2c_find_coding(&c, &s, x);
        l2c_round_groups(q, &s, &c, x);
        put_f16(p, c.d);
        put_f16(p + 2, c.dmin);
        put_k4_scales(p + 4, &c);
        memset(p + 16, 0, 32);
        for (int i = 0; i < LARGE; i++) {
            p[16 + i % 32] = (uint8_t)(p[16 + i % 32] | (q[i] >> 4) << i / 32);
        }
        put_groups_of_nibbles(p + 48, q);
    }
}

static void to_q6_k(uint8_t *p, const float *x, size_t n) {
    static const l2c_super s = {16, 16, {-32, 31}, {-128, 127}, {0, 0}};
    for (; n > 0; n--, p += 210, x += LARGE) {
        uint8_t q[LARGE];
        l2c_coding c;
        l2c_find_coding(&c, &s, x);
        l2c_round_groups(q, &s, &c, x);
        memset(p, 0, 210);
        for (int i = 0; i < LARGE; i++) {
            uint8_t *low = &p[i / 128 * 64 + i % 64];
            *low = (uint8_t)(*low | (q[i] & 15) << 4 * (i / 64 % 2));
            add_two_bits(p + 128, i, q[i] >> 4);
        }
        for (int g = 0; g < 16; g++) {
            p[192 + g] = (uint8_t)(int8_t)c.scales[g];
        }
        put_f16(p + 208, c.d);
    }
}

/* ---- Floats ---- */

static void to_f32(uint8_t *p, const float *x, size_t n) {
    memcpy(p, x, n * sizeof *x);
}

static void to_f16(uint8_t *p, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        put_f16(p + 2 * i, x[i]);
    }
}

static void to_bf16(uint8_t *p, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        put_u16(p + 2 * i, (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

/* ---- All of them ---- */

typedef struct quantizer {
    l2c_type type;
    float largest; /* magnitude that the scales or the type itself can hold */
    void (*quantize)(uint8_t *blocks, const float *x, size_t n_blocks);
} quantizer;

static const quantizer quantizers[] = {
    {L2C_TYPE_F32, FLT_MAX, to_f32},
    {L2C_TYPE_F16, 0x1.ffdffep15f, to_f16}, /* what is larger rounds to infinity, as in BF16 */
    {L2C_TYPE_BF16, 0x1.fefffep127f, to_bf16},
    {L2C_TYPE_Q8_0, 127 * L2C_LARGEST_F16, to_q8_0},
    {L2C_TYPE_Q4_0, 8 * L2C_LARGEST_F16, to_q4_0},
    {L2C_TYPE_Q4_1, L2C_LARGEST_F16, to_q4_1},
    {L2C_TYPE_Q5_0, 16 * L2C_LARGEST_F16, to_q5_0},
    {L2C_TYPE_Q5_1, L2C_LARGEST_F16, to_q5_1},
    {L2C_TYPE_Q2_K, 15 * L2C_LARGEST_F16, to_q2_k},
    {L2C_TYPE_Q3_K, 4 * 32 * L2C_LARGEST_F16, to_q3_k},
    {L2C_TYPE_Q4_K, 63 * L2C_LARGEST_F16, to_q4_k},
    {L2C_TYPE_Q5_K, 63 * L2C_LARGEST_F16, to_q5_k},
    {L2C_TYPE_Q6_K, 32 * 128 * L2C_LARGEST_F16, to_q6_k},
};

static const quantizer *quantizer_of(l2c_type type) {
    for (size_t i = 0; i < sizeof quantizers / sizeof *quantizers; i++) {
        if (quantizers[i].type == type) {
            return &quantizers[i];
        }
    }
    return NULL;
}

bool l2c_can_quantize(l2c_type type) {
    return quantizer_of(type);
}

int l2c_quantize(uint8_t *blocks, l2c_type type, const float *x, size_t n_values, l2c_error *error) {
    char unknown[24];
    const quantizer *to = quantizer_of(type);
    if (!to) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "type %s is not one to quantise to", l2c_type_name(type, unknown));
    }
    const l2c_type_info *info = l2c_type_of(type);
    if (n_values % info->values != 0) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "%zu values are no whole blocks of %s, %zu each", n_values,
                        info->name, info->values);
    }
    for (size_t i = 0; i < n_values; i++) {
        if (!(fabsf(x[i]) <= to->largest)) {
            return l2c_fail(error, L2C_ERROR_ARGUMENT, "value %zu is %g, expected a number up to %g for %s", i,
                            (double)x[i], (double)to->largest, info->name);
        }
    }
    to->quantize(blocks, x, n_values / info->values);
    return L2C_OK;
}

double l2c_quantize_error(double *norm, const uint8_t *blocks, l2c_type type, const float *x, size_t n_values) {
    const l2c_type_info *info = l2c_type_of(type);
    float w[LARGE];
    double error = 0;
    *norm = 0;
    for (size_t from = 0; from < n_values; from += LARGE) {
        const size_t n = n_values - from < LARGE ? n_values - from : LARGE;
        info->dequantize(w, blocks + from / info->values * info->bytes, n / info->values);
        for (size_t i = 0; i < n; i++) {
            const double exact = (double)x[from + i], difference = (double)w[i] - exact;
            error += difference * difference;
            *norm += exact * exact;
        }
    }
    return error;
}
