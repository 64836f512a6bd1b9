/* kernels_turned.h: sums of groups without adding across lanes; part of kernels_quant.h.
 *
 * The dwords of a step's weights are turned in registers such that those of sixteen groups lie side by side; a chain of
 * products then gives the sums of the groups, where products of values as they lie have sums of lanes after them, for each
 * row of x. There are three ways, by what 16 bytes of weights have in them, and l2c_s8_rows has its values turned in all:
 *   blocks   a group of 32: dword d of turned values has in lane g the d-th dword of group g, in the lane order;
 *   halves   a half of one group in the lower nibbles, of the next one in the upper: in lane 8s + 4h + c, dword d has the
 *            dword 4h + d % 4 of the c-th pair of superblock s, the first group of it for d < 4, then the second;
 *   quarters of other types, whose values are unpacked first: in lane 4q + c, dword d of a superblock has the dword 4q + d
 *            of its chunk c. */

typedef struct turning {
    size_t offset, step, half; /* bytes before a superblock's pieces; from pair to pair of them; in a pair */
    bool halves;
} turning;

enum { TURNED_WAY = 2 * SUPER, QUARTERS = 2 * TURNED_WAY };
_Static_assert((int)QUARTERS + (int)TURNED_WAY == (int)L2C_TURNED, "three ways");
_Static_assert((int)PANEL_ROWS <= (int)L2C_FEW, "more rows would be turned than there is room for");

/* Turned before they are unpacked. */
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

/* The values of a step in the order of turned_row, first four then four; p: its superblocks. */
TILE void turned_values(const l2c_type type, bvec w[8], const uint8_t *const p[2]) {
    static const int8_t iq4[16] = {L2C_IQ4_VALUES};
    if (!is_turned(type)) {
        UNROLL for (size_t half = 0; half < step_supers(type); half++) {
            bvec_turn_quarters(w + 4 * half, super_values(type, p[half], 0), super_values(type, p[half], 1),
                               super_values(type, p[half], 2), super_values(type, p[half], 3));
        }
        return;
    }
    const turning t = turning_of(type);
    const bool is_five = type == L2C_TYPE_Q5_K;
    const bvec fifths = is_five ? bvec_pieces(p[0] + 16, p[1] + 16, 16) : ivec_zero();
    bvec turned[4];
    bvec_turn(turned, p[0] + t.offset, p[1] + t.offset, t.step, t.half);
    UNROLL for (int d = 0; d < 4; d++) {
        bvec low = bvec_low_nibbles(turned[d]), high = bvec_high_nibbles(turned[d]);
        if (is_signed(type)) {
            low = bvec_lookup(low, iq4);
            high = bvec_lookup(high, iq4);
        }
        w[d] = is_five ? bvec_or_fifths(low, fifths, d, 0) : low;
        w[4 + d] = is_five ? bvec_or_fifths(high, fifths, d, 1) : high;
    }
}

/* The values of a row of x for a step. */
TILE void turned_row(const l2c_type type, const int8_t *of[2], const l2c_s8_rows *x, size_t step, size_t row) {
    const size_t two = is_narrow(type) ? step / 2 : step;
    const int8_t *turned = x->turned + (two * x->rows + row) * L2C_TURNED;
    of[0] = turned +
            (!is_turned(type)          ? QUARTERS
             : turning_of(type).halves ? TURNED_WAY
                                       : 0) +
            (is_narrow(type) ? step % 2 * SUPER : 0);
    of[1] = of[0] + SUPER;
}

/* Sums of the groups of a step. */
TILE ivec turned_sums(const l2c_type type, const bvec w[8], const int8_t *const x[2]) {
    const size_t run = type == L2C_TYPE_Q6_K ? CHAIN_OF_SIX_BITS : 4;
    ivec sums[2];
    UNROLL for (size_t half = 0; half < step_supers(type); half++) {
        UNROLL for (size_t from = 0; from < 4; from += run) {
            chain c = chain_zero();
            UNROLL for (size_t d = from; d < from + run; d++) {
                c = chain_add(is_signed(type), c, w[4 * half + d], bvec_load(x[half] + d * L2C_Q8_CHUNK));
            }
            const ivec sum = chain_end(is_signed(type), c);
            sums[half] = from == 0 ? sum : ivec_add(sums[half], sum);
        }
    }
    return is_narrow(type)           ? sums[0]
           : !is_turned(type)        ? ivec_sums_of_2(sums[0], sums[1])
           : turning_of(type).halves ? ivec_sums_of_halves(sums[0], sums[1])
                                     : ivec_add(sums[0], sums[1]);
}

/* Turns the values of a row of x, of an even number of superblocks. */
static void turn_row(const l2c_s8_rows *x, size_t row, size_t supers) {
    for (size_t s = 0; s < supers; s += 2) {
        const uint8_t *a = (const uint8_t *)x->values + (s * x->rows + row) * SUPER, *b = a + x->rows * SUPER;
        int8_t *out = x->turned + (s / 2 * x->rows + row) * L2C_TURNED;
        for (size_t part = 0; part < 6; part++, out += SUPER) {
            bvec turned[4];
            if (part < 2) {
                bvec_turn(turned, a + 16 * part, b + 16 * part, 64, 32);
            } else if (part < 4) {
                bvec_turn(turned, a + 32 * (part - 2), b + 32 * (part - 2), 64, 16);
            } else {
                const int8_t *of_half = (const int8_t *)(part == 4 ? a : b);
                bvec_turn_quarters(turned, bvec_load(of_half), bvec_load(of_half + L2C_Q8_CHUNK),
                                   bvec_load(of_half + 2 * L2C_Q8_CHUNK), bvec_load(of_half + 3 * L2C_Q8_CHUNK));
            }
            for (size_t d = 0; d < 4; d++) {
                bvec_store(out + d * L2C_Q8_CHUNK, turned[d]);
            }
        }
    }
}
