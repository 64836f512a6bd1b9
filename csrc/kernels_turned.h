/* kernels_turned.h: sums of groups without adding across lanes, for types of four and five bits; part of kernels_quant.h.
 *
 * The dwords of a step's weights are turned in registers, before they are unpacked, such that those of sixteen groups lie
 * side by side; a chain of products then gives the sums of the groups, where products of values as they lie have sums of
 * lanes after them. There are two ways, by what 16 bytes of weights have in them, and l2c_s8_rows has its values turned in
 * both:
 *   blocks   a group of 32: dword d of turned values has in lane g the d-th dword of group g, in the lane order;
 *   halves   a half of one group in the lower nibbles, of the next one in the upper: in lane 8s + 4h + c, dword d has the
 *            dword 4h + d % 4 of the c-th pair of superblock s, the first group of it for d < 4, then the second. */

typedef struct turning {
    size_t offset, step, half; /* bytes before a superblock's pieces; from pair to pair of them; in a pair */
    bool halves;
} turning;

enum { TURNED_WAY = 2 * SUPER };
_Static_assert((int)PANEL_ROWS <= (int)L2C_FEW, "more rows would be turned than there is room for");

TILE bool is_turned(const l2c_type type) {
    return type == L2C_TYPE_Q4_0 || type == L2C_TYPE_Q4_1 || type == L2C_TYPE_IQ4_NL || type == L2C_TYPE_IQ4_XS ||
           type == L2C_TYPE_Q4_K || type == L2C_TYPE_Q5_K;
}

TILE turning turning_of(const l2c_type type) {
    switch (type) {
    case L2C_TYPE_Q4_1: return (turning){4, 40, 20, false};
    case L2C_TYPE_IQ4_XS: return (turning){8, 32, 16, false};
    case L2C_TYPE_Q4_K: return (turning){16, 32, 16, true};
    case L2C_TYPE_Q5_K: return (turning){48, 32, 16, true};
    default: return (turning){2, 36, 18, false}; /* Q4_0, IQ4_NL */
    }
}

/* Sums of the groups of a step for M rows of x; p: its superblocks. */
TILE void turned_products(const l2c_type type, const size_t M, ivec *of_group, const l2c_s8_rows *x, size_t row,
                          size_t step, const uint8_t *const p[2]) {
    static const int8_t iq4[16] = {L2C_IQ4_VALUES};
    const turning t = turning_of(type);
    const bool is_five = type == L2C_TYPE_Q5_K;
    const bvec fifths = is_five ? bvec_pieces(p[0] + 16, p[1] + 16, 16) : ivec_zero();
    chain first[QUANT_M], second[QUANT_M];
    bvec turned[4];
    bvec_turn(turned, p[0] + t.offset, p[1] + t.offset, t.step, t.half);
    UNROLL for (size_t i = 0; i < M; i++) first[i] = second[i] = chain_zero();
    UNROLL for (int d = 0; d < 4; d++) {
        bvec low = bvec_low_nibbles(turned[d]), high = bvec_high_nibbles(turned[d]);
        if (is_signed(type)) {
            low = bvec_lookup(low, iq4);
            high = bvec_lookup(high, iq4);
        }
        if (is_five) {
            low = bvec_or_fifths(low, fifths, d, 0);
            high = bvec_or_fifths(high, fifths, d, 1);
        }
        UNROLL for (size_t i = 0; i < M; i++) {
            const int8_t *values = x->turned + (step * x->rows + row + i) * L2C_TURNED + (t.halves ? TURNED_WAY : 0);
            first[i] = chain_add(is_signed(type), first[i], low, bvec_load(values + d * L2C_Q8_CHUNK));
            second[i] = chain_add(is_signed(type), second[i], high, bvec_load(values + SUPER + d * L2C_Q8_CHUNK));
        }
    }
    UNROLL for (size_t i = 0; i < M; i++) {
        const ivec a = chain_end(is_signed(type), first[i]), b = chain_end(is_signed(type), second[i]);
        of_group[i] = t.halves ? ivec_sums_of_halves(a, b) : ivec_add(a, b);
    }
}

/* Turns the values of a row of x, of an even number of superblocks. */
static void turn_row(const l2c_s8_rows *x, size_t row, size_t supers) {
    for (size_t s = 0; s < supers; s += 2) {
        const uint8_t *a = (const uint8_t *)x->values + (s * x->rows + row) * SUPER, *b = a + x->rows * SUPER;
        int8_t *out = x->turned + (s / 2 * x->rows + row) * L2C_TURNED;
        for (size_t part = 0; part < 4; part++, out += SUPER) {
            bvec turned[4];
            if (part < 2) {
                bvec_turn(turned, a + 16 * part, b + 16 * part, 64, 32);
            } else {
                bvec_turn(turned, a + 32 * (part - 2), b + 32 * (part - 2), 64, 16);
            }
            for (size_t d = 0; d < 4; d++) {
                bvec_store(out + d * L2C_Q8_CHUNK, turned[d]);
            }
        }
    }
}
