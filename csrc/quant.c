/* quant.c: the table of types, and each type's weights as f32: the same operations in the same order as the definitions in
 * quant.h, so that the results are those of every exact reader. */
#include "quant.h"

#include <stdio.h>

enum { SMALL = 32, LARGE = 256 };

uint16_t l2c_f32_to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    const float size = l2c_f32_of_bits(bits);
    if (size >= L2C_LARGEST_F16) {
        return sign | 0x7bff;
    }
    if (size < 0x1p-14f) { /* subnormal: a multiple of 2^-24 */
        const float multiple = (size * 0x1p24f + 0x1.8p23f) - 0x1.8p23f;
        return (uint16_t)(sign | (uint16_t)multiple);
    }
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | ((bits >> 13) - (112 << 10)));
}

static void from_f32(float *out, const uint8_t *p, size_t n) {
    memcpy(out, p, n * sizeof *out);
}

static void from_f16(float *out, const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = l2c_f16_to_f32(l2c_u16(p + 2 * i));
    }
}

static void from_bf16(float *out, const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = l2c_bf16_to_f32(l2c_u16(p + 2 * i));
    }
}

static void from_q4_0(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 18, out += SMALL) {
        const float d = l2c_f16_to_f32(l2c_u16(p));
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)((p[2 + i] & 15) - 8);
            out[16 + i] = d * (float)((p[2 + i] >> 4) - 8);
        }
    }
}

static void from_q4_1(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 20, out += SMALL) {
        const float d = l2c_f16_to_f32(l2c_u16(p)), m = l2c_f16_to_f32(l2c_u16(p + 2));
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)(p[4 + i] & 15) + m;
            out[16 + i] = d * (float)(p[4 + i] >> 4) + m;
        }
    }
}

static void from_q5_0(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 22, out += SMALL) {
        const float d = l2c_f16_to_f32(l2c_u16(p));
        const uint32_t h = l2c_u32(p + 2);
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)((int)((p[6 + i] & 15) | (h >> i & 1) << 4) - 16);
            out[16 + i] = d * (float)((int)((p[6 + i] >> 4) | (h >> (16 + i) & 1) << 4) - 16);
        }
    }
}

static void from_q5_1(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 24, out += SMALL) {
        const float d = l2c_f16_to_f32(l2c_u16(p)), m = l2c_f16_to_f32(l2c_u16(p + 2));
        const uint32_t h = l2c_u32(p + 4);
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)((p[8 + i] & 15) | (h >> i & 1) << 4) + m;
            out[16 + i] = d * (float)((p[8 + i] >> 4) | (h >> (16 + i) & 1) << 4) + m;
        }
    }
}

static void from_q8_0(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 34, out += SMALL) {
        const float d = l2c_f16_to_f32(l2c_u16(p));
        for (int i = 0; i < SMALL; i++) {
            out[i] = (float)(int8_t)p[2 + i] * d;
        }
    }
}

static const int8_t iq4_values[16] = {L2C_IQ4_VALUES};

static void from_iq4_nl(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 18, out += SMALL) {
        const float d = l2c_f16_to_f32(l2c_u16(p));
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)iq4_values[p[2 + i] & 15];
            out[16 + i] = d * (float)iq4_values[p[2 + i] >> 4];
        }
    }
}

/* Value i of a block of 256 two-bit values: 128 values share 32 bytes. */
static int two_bits(const uint8_t *q, int i) {
    return q[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
}

static void from_q2_k(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 84, out += LARGE) {
        const float d = l2c_f16_to_f32(l2c_u16(p + 80)), dmin = l2c_f16_to_f32(l2c_u16(p + 82));
        for (int g = 0; g < 16; g++) {
            const float scale = d * (float)(p[g] & 15), min = dmin * (float)(p[g] >> 4);
            for (int i = 16 * g; i < 16 * g + 16; i++) {
                out[i] = scale * (float)two_bits(p + 16, i) - min;
            }
        }
    }
}

static void from_q3_k(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 110, out += LARGE) {
        const float d = l2c_f16_to_f32(l2c_u16(p + 108));
        uint64_t scales[2];
        l2c_q3_scales(p + 96, &scales[0], &scales[1]);
        for (int g = 0; g < 16; g++) {
            const float scale = d * (float)((int)(scales[g / 8] >> 8 * (g % 8) & 63) - 32);
            for (int i = 16 * g; i < 16 * g + 16; i++) {
                out[i] = scale * (float)((two_bits(p + 32, i) | (p[i % 32] >> (i / 32) & 1) << 2) - 4);
            }
        }
    }
}

static void from_q4_k(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 144, out += LARGE) {
        const float d = l2c_f16_to_f32(l2c_u16(p)), dmin = l2c_f16_to_f32(l2c_u16(p + 2));
        uint64_t scales, mins;
        l2c_k4_scales(p + 4, &scales, &mins);
        for (int g = 0; g < 8; g++) {
            const float scale = d * (float)(scales >> 8 * g & 63), min = dmin * (float)(mins >> 8 * g & 63);
            const uint8_t *q = p + 16 + g / 2 * 32;
            for (int i = 0; i < 32; i++) {
                out[32 * g + i] = scale * (float)(q[i] >> 4 * (g % 2) & 15) - min;
            }
        }
    }
}

static void from_q5_k(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 176, out += LARGE) {
        const float d = l2c_f16_to_f32(l2c_u16(p)), dmin = l2c_f16_to_f32(l2c_u16(p + 2));
        uint64_t scales, mins;
        l2c_k4_scales(p + 4, &scales, &mins);
        for (int g = 0; g < 8; g++) {
            const float scale = d * (float)(scales >> 8 * g & 63), min = dmin * (float)(mins >> 8 * g & 63);
            const uint8_t *h = p + 16, *q = p + 48 + g / 2 * 32;
            for (int i = 0; i < 32; i++) {
                out[32 * g + i] = scale * (float)((q[i] >> 4 * (g % 2) & 15) | (h[i] >> g & 1) << 4) - min;
            }
        }
    }
}

static void from_q6_k(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 210, out += LARGE) {
        const float d = l2c_f16_to_f32(l2c_u16(p + 208));
        for (int g = 0; g < 16; g++) {
            const float scale = d * (float)(int8_t)p[192 + g];
            for (int i = 16 * g; i < 16 * g + 16; i++) {
                const int low = p[i / 128 * 64 + i % 64] >> 4 * (i / 64 % 2) & 15;
                const int high = p[128 + i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
                out[i] = scale * (float)((low | high << 4) - 32);
            }
        }
    }
}

static void from_iq4_xs(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 136, out += LARGE) {
        const float d = l2c_f16_to_f32(l2c_u16(p));
        const uint64_t scales = l2c_iq4_scales(p + 4, l2c_u16(p + 2));
        for (int g = 0; g < 8; g++) {
            const float scale = d * (float)((int)(scales >> 8 * g & 63) - 32);
            for (int i = 0; i < 16; i++) {
                const uint8_t q = p[8 + 16 * g + i];
                out[32 * g + i] = scale * (float)iq4_values[q & 15];
                out[32 * g + 16 + i] = scale * (float)iq4_values[q >> 4];
            }
        }
    }
}

/* IQ3_S: 512 points of four odd values, 1 to 15: (value - 1) / 2 in three bits each. */
static const uint16_t iq3_grid[512] = {
    0x000, 0x001, 0x002, 0x005, 0x007, 0x008, 0x009, 0x00a, 0x00c, 0x00e, 0x010, 0x011, 0x015, 0x01b, 0x020, 0x022,
    0x025, 0x027, 0x029, 0x02b, 0x030, 0x032, 0x039, 0x03c, 0x03f, 0x040, 0x041, 0x042, 0x044, 0x048, 0x049, 0x04d,
    0x050, 0x053, 0x057, 0x059, 0x05d, 0x064, 0x071, 0x075, 0x07a, 0x080, 0x081, 0x085, 0x087, 0x088, 0x08b, 0x08e,
    0x091, 0x095, 0x098, 0x09c, 0x0a2, 0x0a5, 0x0a7, 0x0a9, 0x0ab, 0x0b8, 0x0bb, 0x0c3, 0x0c9, 0x0cd, 0x0d0, 0x0d2,
    0x0d9, 0x0db, 0x0de, 0x0e4, 0x0e8, 0x0ea, 0x0f7, 0x0f9, 0x0fd, 0x100, 0x10b, 0x10f, 0x111, 0x114, 0x11a, 0x120,
    0x123, 0x129, 0x138, 0x142, 0x144, 0x150, 0x152, 0x156, 0x15b, 0x161, 0x165, 0x167, 0x176, 0x17b, 0x186, 0x189,
    0x18b, 0x199, 0x1aa, 0x1b9, 0x1c0, 0x1c2, 0x1c4, 0x1d0, 0x1d2, 0x1d6, 0x1db, 0x1e8, 0x1ec, 0x200, 0x201, 0x202,
    0x204, 0x208, 0x209, 0x20b, 0x20d, 0x20f, 0x210, 0x212, 0x219, 0x21c, 0x21e, 0x22c, 0x22e, 0x231, 0x23a, 0x240,
    0x241, 0x243, 0x246, 0x248, 0x24c, 0x251, 0x258, 0x25b, 0x261, 0x268, 0x26a, 0x278, 0x27e, 0x280, 0x28a, 0x28d,
    0x28f, 0x290, 0x294, 0x29a, 0x2a0, 0x2a3, 0x2ad, 0x2b0, 0x2ba, 0x2c1, 0x2c4, 0x2c7, 0x2c8, 0x2cb, 0x2d1, 0x2d7,
    0x2d8, 0x2dc, 0x2e1, 0x2f2, 0x2f8, 0x303, 0x305, 0x30a, 0x30c, 0x319, 0x31b, 0x322, 0x326, 0x328, 0x32c, 0x341,
    0x348, 0x34b, 0x351, 0x358, 0x35a, 0x369, 0x390, 0x394, 0x397, 0x3a4, 0x3a6, 0x3c1, 0x3c3, 0x3c8, 0x3ca, 0x3d1,
    0x3dd, 0x3e1, 0x3f2, 0x3f8, 0x400, 0x401, 0x403, 0x405, 0x407, 0x408, 0x40a, 0x40c, 0x40e, 0x411, 0x413, 0x417,
    0x418, 0x41a, 0x421, 0x423, 0x425, 0x428, 0x42a, 0x437, 0x438, 0x43b, 0x43d, 0x440, 0x442, 0x448, 0x44b, 0x44f,
    0x452, 0x455, 0x459, 0x45c, 0x462, 0x469, 0x481, 0x484, 0x487, 0x491, 0x493, 0x498, 0x49f, 0x4a1, 0x4ab, 0x4af,
    0x4b9, 0x4bc, 0x4c0, 0x4c2, 0x4c5, 0x4c9, 0x4d2, 0x4d4, 0x4d9, 0x4db, 0x4e2, 0x4e8, 0x4f6, 0x501, 0x507, 0x510,
    0x513, 0x51a, 0x51d, 0x521, 0x53a, 0x53d, 0x544, 0x549, 0x552, 0x55f, 0x560, 0x56b, 0x578, 0x580, 0x582, 0x587,
    0x591, 0x5ad, 0x5b1, 0x5c5, 0x5c9, 0x5d6, 0x5d8, 0x5e3, 0x5e8, 0x602, 0x609, 0x60b, 0x60d, 0x60f, 0x612, 0x619,
    0x61b, 0x61d, 0x622, 0x624, 0x627, 0x629, 0x633, 0x639, 0x641, 0x643, 0x645, 0x64c, 0x651, 0x653, 0x660, 0x670,
    0x67a, 0x67e, 0x680, 0x68a, 0x690, 0x69a, 0x69c, 0x6a8, 0x6c1, 0x6c8, 0x6cc, 0x6d1, 0x6d3, 0x6d7, 0x6d8, 0x6e1,
    0x6e3, 0x6e7, 0x6ed, 0x6fb, 0x703, 0x709, 0x70e, 0x712, 0x719, 0x72a, 0x730, 0x734, 0x741, 0x748, 0x74a, 0x755,
    0x75a, 0x764, 0x76e, 0x77b, 0x78e, 0x7a1, 0x7c1, 0x7c3, 0x7d0, 0x7d2, 0x7dd, 0x800, 0x804, 0x80a, 0x810, 0x814,
    0x817, 0x81a, 0x821, 0x828, 0x838, 0x842, 0x847, 0x849, 0x84b, 0x852, 0x858, 0x85d, 0x863, 0x869, 0x86d, 0x881,
    0x883, 0x888, 0x88d, 0x891, 0x89b, 0x8a0, 0x8af, 0x8b2, 0x8b8, 0x8c4, 0x8c9, 0x8cb, 0x8d0, 0x8d2, 0x8d9, 0x8dd,
    0x900, 0x902, 0x914, 0x91f, 0x920, 0x939, 0x945, 0x947, 0x951, 0x972, 0x98b, 0x99c, 0x9b0, 0x9c8, 0x9cd, 0x9d8,
    0x9e3, 0x9e9, 0xa02, 0xa08, 0xa0c, 0xa12, 0xa20, 0xa24, 0xa27, 0xa2a, 0xa36, 0xa3c, 0xa41, 0xa43, 0xa45, 0xa4a,
    0xa51, 0xa5a, 0xa7a, 0xa80, 0xa89, 0xa93, 0xa98, 0xa9e, 0xaab, 0xac2, 0xac7, 0xac8, 0xad7, 0xae4, 0xae9, 0xaf5,
    0xafb, 0xb01, 0xb04, 0xb10, 0xb1a, 0xb26, 0xb4a, 0xb56, 0xb69, 0xb6b, 0xba2, 0xbc2, 0xbc4, 0xbd2, 0xc09, 0xc0b,
    0xc0d, 0xc19, 0xc1b, 0xc30, 0xc40, 0xc50, 0xc57, 0xc74, 0xc8a, 0xc9c, 0xca2, 0xcad, 0xcb2, 0xcb8, 0xcc0, 0xccc,
    0xcd1, 0xce0, 0xd15, 0xd23, 0xd32, 0xd40, 0xd43, 0xd5c, 0xd70, 0xd85, 0xda0, 0xdc9, 0xdcb, 0xe00, 0xe04, 0xe07,
    0xe10, 0xe12, 0xe1e, 0xe20, 0xe2c, 0xe32, 0xe42, 0xe49, 0xe54, 0xe63, 0xe65, 0xe81, 0xe84, 0xe88, 0xe8e, 0xe91,
    0xe98, 0xea9, 0xec2, 0xeda, 0xedd, 0xeeb, 0xf01, 0xf05, 0xf0b, 0xf10, 0xf28, 0xf52, 0xf62, 0xf82, 0xf99, 0xfc0,
};

static void from_iq3_s(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 110, out += LARGE) {
        const float d = l2c_f16_to_f32(l2c_u16(p));
        const uint8_t *q = p + 2, *h = p + 66, *signs = p + 74, *scales = p + 106;
        for (int i = 0; i < LARGE; i++) {
            const int g = i / 32, point = i / 4;
            const float scale = d * (float)(1 + 2 * (scales[g / 2] >> 4 * (g % 2) & 15));
            const int index = q[point] | (h[g] >> point % 8 & 1) << 8;
            const int value = 2 * (iq3_grid[index] >> 3 * (i % 4) & 7) + 1;
            out[i] = scale * (float)(signs[i / 8] >> i % 8 & 1 ? -value : value);
        }
    }
}

/* A byte holds a fraction of 256 whose digits to the base 3 are the trits. */
static int trit(uint8_t q, int digit) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    return (uint8_t)(q * powers[digit]) * 3 >> 8;
}

static void from_tq1_0(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 54, out += LARGE) {
        const float d = l2c_f16_to_f32(l2c_u16(p + 52));
        for (int i = 0; i < LARGE; i++) {
            const int t = i < 160   ? trit(p[i % 32], i / 32)
                          : i < 240 ? trit(p[32 + (i - 160) % 16], (i - 160) / 16)
                                    : trit(p[48 + i % 4], (i - 240) / 4);
            out[i] = d * (float)(t - 1);
        }
    }
}

static void from_tq2_0(float *out, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p += 66, out += LARGE) {
        const float d = l2c_f16_to_f32(l2c_u16(p + 64));
        for (int i = 0; i < LARGE; i++) {
            out[i] = d * (float)(two_bits(p, i) - 1);
        }
    }
}

static const l2c_type_info types[] = {
    {L2C_TYPE_F32, "F32", 1, 4, false, from_f32},
    {L2C_TYPE_F16, "F16", 1, 2, false, from_f16},
    {L2C_TYPE_BF16, "BF16", 1, 2, false, from_bf16},
    {L2C_TYPE_Q8_0, "Q8_0", SMALL, 34, true, from_q8_0},
    {L2C_TYPE_Q4_0, "Q4_0", SMALL, 18, true, from_q4_0},
    {L2C_TYPE_Q4_1, "Q4_1", SMALL, 20, true, from_q4_1},
    {L2C_TYPE_Q5_0, "Q5_0", SMALL, 22, true, from_q5_0},
    {L2C_TYPE_Q5_1, "Q5_1", SMALL, 24, true, from_q5_1},
    {L2C_TYPE_Q2_K, "Q2_K", LARGE, 84, true, from_q2_k},
    {L2C_TYPE_Q3_K, "Q3_K", LARGE, 110, true, from_q3_k},
    {L2C_TYPE_Q4_K, "Q4_K", LARGE, 144, true, from_q4_k},
    {L2C_TYPE_Q5_K, "Q5_K", LARGE, 176, true, from_q5_k},
    {L2C_TYPE_Q6_K, "Q6_K", LARGE, 210, true, from_q6_k},
    {L2C_TYPE_IQ4_NL, "IQ4_NL", SMALL, 18, true, from_iq4_nl},
    {L2C_TYPE_IQ4_XS, "IQ4_XS", LARGE, 136, true, from_iq4_xs},
    {L2C_TYPE_IQ3_S, "IQ3_S", LARGE, 110, false, from_iq3_s},
    {L2C_TYPE_TQ1_0, "TQ1_0", LARGE, 54, false, from_tq1_0},
    {L2C_TYPE_TQ2_0, "TQ2_0", LARGE, 66, true, from_tq2_0},
    {L2C_TYPE_Q8_GROUP, "q8", 1, 1, true, NULL},
};

const l2c_type_info *l2c_type_of(uint32_t number) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if ((uint32_t)types[i].type == number) {
            return &types[i];
        }
    }
    return NULL;
}

const l2c_type_info *l2c_type_named(const char *name) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(types[i].name, name) == 0) {
            return &types[i];
        }
    }
    return NULL;
}

const char *l2c_type_name(uint32_t number, char unknown[24]) {
    static const char *const names[] = {
        "F32",    "F16",     "Q4_0",    "Q4_1",    "type 4", "type 5", "Q5_0",    "Q5_1",    "Q8_0",    "Q8_1",
        "Q2_K",   "Q3_K",    "Q4_K",    "Q5_K",    "Q6_K",   "Q8_K",   "IQ2_XXS", "IQ2_XS",  "IQ3_XXS", "IQ1_S",
        "IQ4_NL", "IQ3_S",   "IQ2_S",   "IQ4_XS",  "I8",     "I16",    "I32",     "I64",     "F64",     "IQ1_M",
        "BF16",   "type 31", "type 32", "type 33", "TQ1_0",  "TQ2_0",  "type 36", "type 37", "type 38", "MXFP4"};
    if (number < sizeof names / sizeof *names) {
        return names[number];
    }
    snprintf(unknown, 24, "type %lu", (unsigned long)number);
    return unknown;
}

const char *l2c_type_names(void) {
    return "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, IQ3_S, TQ1_0, "
           "TQ2_0";
}
