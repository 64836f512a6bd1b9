/* quant.h: the types that weights are stored in, and what a block of each holds.
 *
 * A row of a matrix is a run of blocks; a block holds `values` weights in `bytes` bytes. The layouts are GGUF's. f16 is
 * IEEE binary16, little-endian; q are unsigned unless said; "low | high" are the nibbles of a byte.
 *
 *   Q4_0     32   f16 d, u8 q[16]: values 0-15 low | 16-31 high                              w = d (q - 8)
 *   Q4_1     32   f16 d, f16 m, u8 q[16]                                                     w = d q + m
 *   Q5_0     32   f16 d, u32 h: fifth bits, u8 q[16]                                         w = d (q - 16)
 *   Q5_1     32   f16 d, f16 m, u32 h, u8 q[16]                                              w = d q + m
 *   Q8_0     32   f16 d, s8 q[32]                                                            w = d q
 *   IQ4_NL   32   f16 d, u8 q[16]                                                            w = d iq4[q]
 *   Q2_K    256   u8 s[16]: scale | min of 16 values, u8 q[64], f16 d, f16 dmin              w = d s q - dmin m
 *   Q3_K    256   u8 h[32]: third bits, u8 q[64], u8 s[12]: 6-bit scales + 32, f16 d         w = d s (q - 4)
 *   Q4_K    256   f16 d, f16 dmin, u8 s[12]: 6-bit scales and mins of 32 values, u8 q[128]   w = d s q - dmin m
 *   Q5_K    256   f16 d, f16 dmin, u8 s[12], u8 h[32], u8 q[128]                             w = d s q - dmin m
 *   Q6_K    256   u8 q[128], u8 h[64]: upper two bits, s8 s[16] of 16 values, f16 d          w = d s (q - 32)
 *   IQ4_XS  256   f16 d, u16 sh, u8 sl[4]: 6-bit scales + 32 of 32 values, u8 q[128]         w = d s iq4[q]
 *   IQ3_S   256   f16 d, u8 q[64], u8 h[8], u8 sign[32], u8 s[4]                             w = d (2 s + 1) +-grid[q]
 *   TQ1_0   256   u8 q[48]: five trits, u8 h[4]: four, f16 d                                 w = d (q - 1)
 *   TQ2_0   256   u8 q[64], f16 d                                                            w = d (q - 1) */
#ifndef L2C_QUANT_H
#define L2C_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Numbers of GGUF, but for llama2.c's own. */
typedef enum l2c_type {
    L2C_TYPE_F32 = 0,
    L2C_TYPE_F16 = 1,
    L2C_TYPE_Q4_0 = 2,
    L2C_TYPE_Q4_1 = 3,
    L2C_TYPE_Q5_0 = 6,
    L2C_TYPE_Q5_1 = 7,
    L2C_TYPE_Q8_0 = 8,
    L2C_TYPE_Q2_K = 10,
    L2C_TYPE_Q3_K = 11,
    L2C_TYPE_Q4_K = 12,
    L2C_TYPE_Q5_K = 13,
    L2C_TYPE_Q6_K = 14,
    L2C_TYPE_IQ4_NL = 20,
    L2C_TYPE_IQ3_S = 21,
    L2C_TYPE_IQ4_XS = 23,
    L2C_TYPE_BF16 = 30,
    L2C_TYPE_TQ1_0 = 34,
    L2C_TYPE_TQ2_0 = 35,
    L2C_TYPE_Q8_GROUP = 1000, /* llama2.c version 2: int8 values, then one f32 scale for each group */
} l2c_type;

typedef struct l2c_type_info {
    l2c_type type;
    const char *name;
    size_t values, bytes; /* of a block; Q8_GROUP: of a value, without its scale */
    bool integer;         /* computed as int8 products with quantised activations; else as f32 */
    void (*dequantize)(float *out, const uint8_t *blocks, size_t n_blocks); /* NULL for Q8_GROUP */
} l2c_type_info;

/* NULL for a number that is no type this build computes. */
const l2c_type_info *l2c_type_of(uint32_t number);
/* The same by name. */
const l2c_type_info *l2c_type_named(const char *name);
/* GGUF's name of any of its types, "type <number>" into `unknown` for one that it does not have. */
const char *l2c_type_name(uint32_t number, char unknown[24]);
/* Names of all types that a GGUF file may hold here, with commas between. */
const char *l2c_type_names(void);

#define L2C_LARGEST_F16 65504.0f

/* Nearest f16, ties to even; beyond its range the largest. */
uint16_t l2c_f32_to_f16(float x);

/* The values that IQ4_NL and IQ4_XS choose from. */
#define L2C_IQ4_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113

static inline uint16_t l2c_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t l2c_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline float l2c_f32_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float l2c_bf16_to_f32(uint16_t h) {
    return l2c_f32_of_bits((uint32_t)h << 16);
}

/* Exact. Exponent and mantissa move into place; a multiplication by 2^112 then corrects the exponent's bias, which also
 * makes subnormals normal. */
static inline float l2c_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    if (rest >= 0x0f800000) { /* infinity or NaN */
        return l2c_f32_of_bits(sign | 0x7f800000 | rest);
    }
    const float x = l2c_f32_of_bits(rest) * 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return l2c_f32_of_bits(bits | sign);
}

/* The scales and mins of Q4_K and Q5_K, one a byte: their lower bits lie in bytes 0-3 and 4-7 (six bits) and 8-11 (four
 * bits each), the missing upper two of the second four in the upper two of bytes 0-7. */
static inline void l2c_k4_scales(const uint8_t *s, uint64_t *scales, uint64_t *mins) {
    const uint32_t a = l2c_u32(s), b = l2c_u32(s + 4), c = l2c_u32(s + 8);
    *scales = (a & 0x3f3f3f3f) | (uint64_t)((c & 0x0f0f0f0f) | (a >> 2 & 0x30303030)) << 32;
    *mins = (b & 0x3f3f3f3f) | (uint64_t)((c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)) << 32;
}

/* The scales of Q3_K + 32, one a byte: four bits in the nibbles of bytes 0-7, two in bytes 8-11. */
static inline void l2c_q3_scales(const uint8_t *s, uint64_t *low, uint64_t *high) {
    const uint32_t a = l2c_u32(s), b = l2c_u32(s + 4), c = l2c_u32(s + 8);
    *low = ((a & 0x0f0f0f0f) | (c << 4 & 0x30303030)) | (uint64_t)((b & 0x0f0f0f0f) | (c << 2 & 0x30303030)) << 32;
    *high = ((a >> 4 & 0x0f0f0f0f) | (c & 0x30303030)) | (uint64_t)((b >> 4 & 0x0f0f0f0f) | (c >> 2 & 0x30303030))
                                                             << 32;
}

/* The scales of IQ4_XS + 32, one a byte: nibbles and pairs of bits, each spread to bytes. */
static inline uint64_t l2c_iq4_scales(const uint8_t *low, uint16_t high) {
    uint64_t nibbles = l2c_u32(low), pairs = high;
    nibbles = (nibbles | nibbles << 16) & 0x0000ffff0000ffff;
    nibbles = (nibbles | nibbles << 8) & 0x00ff00ff00ff00ff;
    nibbles = (nibbles | nibbles << 4) & 0x0f0f0f0f0f0f0f0f;
    pairs = (pairs | pairs << 24) & 0x000000ff000000ff;
    pairs = (pairs | pairs << 12) & 0x000f000f000f000f;
    pairs = (pairs | pairs << 6) & 0x0303030303030303;
    return nibbles | pairs << 4;
}

#endif
