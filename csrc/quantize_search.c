/* quantize_search.c: the search for a block's numbers.
 *
 * All types but the floats are w = scale q - min with integers q in a short range. A search holds LANES guesses of (scale,
 * min) at once, side by side, so that compilers vectorise over guesses and every sum keeps one order:
 *
 *   start    guesses that clip the range a little, or leave room, at either end
 *   refit    q as the guess has it, then the least-squares (scale, min) for those q
 *   measure  the squared error with (scale, min) as the block will store them
 *
 * Plain rounding, which spreads the range of values over that of q, is measured among them: nothing is worse than it. */
#include "quantize_search.h"

#include <float.h>
#include <math.h>

enum { LANES = 16 };

/* ---- Numbers ---- */

static float as_f16(float x) {
    return l2c_f16_to_f32(l2c_f32_to_f16(x));
}

/* The integer nearest to v in [low, high], which is shorter than 2^22; low for NaN. */
static inline float nearest(float v, float low, float high) {
    v = v > low ? v : low;
    v = v < high ? v : high;
    return (v + 0x1.8p23f) - 0x1.8p23f;
}

/* 0 for what has no finite inverse. */
static inline float inverse(float x) {
    return fabsf(x) >= FLT_MIN ? 1.0f / x : 0.0f;
}

/* ---- Guesses ---- */

typedef struct guesses {
    float scale[LANES], min[LANES];
    float error[LANES]; /* of measure */
} guesses;

/* error = sum_i (x_i + min - scale q_i)^2 */
static void measure(guesses *g, const float *x, size_t n, l2c_range r) {
    float inverses[LANES], sum[LANES] = {0};
    for (int c = 0; c < LANES; c++) {
        inverses[c] = inverse(g->scale[c]);
    }
    for (size_t i = 0; i < n; i++) {
        for (int c = 0; c < LANES; c++) {
            const float v = x[i] + g->min[c];
            const float e = v - g->scale[c] * nearest(v * inverses[c], r.low, r.high);
            sum[c] += e * e;
        }
    }
    memcpy(g->error, sum, sizeof sum);
}

static int best_of(const guesses *g) {
    int best = 0;
    for (int c = 1; c < LANES; c++) {
        best = g->error[c] < g->error[best] ? c : best;
    }
    return best;
}

/* scale = sum x q / sum q^2, without a min */
static void refit_scale(guesses *g, const float *x, size_t n, l2c_range r) {
    float inverses[LANES], xq[LANES] = {0}, qq[LANES] = {0};
    for (int c = 0; c < LANES; c++) {
        inverses[c] = inverse(g->scale[c]);
    }
    for (size_t i = 0; i < n; i++) {
        for (int c = 0; c < LANES; c++) {
            const float q = nearest(x[i] * inverses[c], r.low, r.high);
            xq[c] += x[i] * q;
            qq[c] += q * q;
        }
    }
    for (int c = 0; c < LANES; c++) {
        g->scale[c] = qq[c] > 0 ? xq[c] / qq[c] : g->scale[c];
    }
}

/* The line through (q, x): scale is its slope, -min where it meets q = 0; least_min bounds min from below. */
static void refit_line(guesses *g, const float *x, size_t n, l2c_range r, float least_min) {
    float inverses[LANES], xq[LANES] = {0}, qq[LANES] = {0}, sum_q[LANES] = {0}, sum_x = 0;
    const float count = (float)n;
    for (int c = 0; c < LANES; c++) {
        inverses[c] = inverse(g->scale[c]);
    }
    for (size_t i = 0; i < n; i++) {
        sum_x += x[i];
        for (int c = 0; c < LANES; c++) {
            const float q = nearest((x[i] + g->min[c]) * inverses[c], r.low, r.high);
            xq[c] += x[i] * q;
            qq[c] += q * q;
            sum_q[c] += q;
        }
    }
    for (int c = 0; c < LANES; c++) {
        const float spread = count * qq[c] - sum_q[c] * sum_q[c];
        const float slope = spread > 0 ? (count * xq[c] - sum_q[c] * sum_x) / spread : g->scale[c];
        const float min = (slope * sum_q[c] - sum_x) / count;
        const bool bound = min < least_min;
        g->min[c] = bound ? least_min : min;
        g->scale[c] = !bound ? slope : qq[c] > 0 ? (xq[c] + least_min * sum_q[c]) / qq[c] : g->scale[c];
    }
}

static float extreme_of(const float *x, size_t n) {
    float extreme = 0;
    for (size_t i = 0; i < n; i++) {
        extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
    }
    return extreme;
}

/* Guess 0 is plain rounding: the value of the largest magnitude becomes r.low. Most others are near it, the last ones have
 * the other sign. */
static void start_scale(guesses *g, const float *x, size_t n, l2c_range r) {
    const float extreme = extreme_of(x, n);
    for (int c = 0; c < LANES; c++) {
        const float room = c < 12 ? 0.25f * (float)(c < 8 ? -c : c - 7) : 0.45f * (float)(c - 13);
        g->scale[c] = extreme / (c < 12 ? r.low + room : r.high + room);
        g->min[c] = 0;
    }
}

/* Guess 0 is plain rounding of [min x, max x]; the others move either end in by up to a step. */
static void start_line(guesses *g, const float *x, size_t n, l2c_range r, float least_min) {
    static const float moves[4] = {0, 0.3f, 0.6f, 0.9f};
    float low = x[0], high = x[0];
    for (size_t i = 1; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    low = low > -least_min ? -least_min : low;
    for (int c = 0; c < LANES; c++) {
        const float step = (high - low) / r.high;
        g->scale[c] = (high - low - (moves[c % 4] + moves[c / 4]) * step) / r.high;
        g->min[c] = -(low + moves[c / 4] * step);
    }
}

/* ---- Blocks of 32 with scales of their own ---- */

float l2c_find_scale(const float *x, l2c_range r) {
    guesses g;
    start_scale(&g, x, L2C_SMALL_BLOCK, r);
    const float plain = g.scale[0];
    refit_scale(&g, x, L2C_SMALL_BLOCK, r);
    g.scale[LANES - 1] = plain;
    for (int c = 0; c < LANES; c++) {
        g.scale[c] = as_f16(g.scale[c]);
    }
    measure(&g, x, L2C_SMALL_BLOCK, r);
    return g.scale[best_of(&g)];
}

float l2c_find_line(float *min, const float *x, l2c_range r) {
    guesses g;
    start_line(&g, x, L2C_SMALL_BLOCK, r, -FLT_MAX);
    const float plain = g.scale[0], plain_min = g.min[0];
    refit_line(&g, x, L2C_SMALL_BLOCK, r, -FLT_MAX);
    refit_line(&g, x, L2C_SMALL_BLOCK, r, -FLT_MAX);
    g.scale[LANES - 1] = plain;
    g.min[LANES - 1] = plain_min;
    for (int c = 0; c < LANES; c++) {
        g.scale[c] = as_f16(g.scale[c]);
        g.min[c] = as_f16(g.min[c]);
    }
    measure(&g, x, L2C_SMALL_BLOCK, r);
    const int best = best_of(&g);
    *min = g.min[best];
    return g.scale[best];
}

void l2c_round_values(uint8_t *q, const float *x, size_t n, float scale, float min, l2c_range r) {
    const float factor = inverse(scale);
    for (size_t i = 0; i < n; i++) {
        q[i] = (uint8_t)(nearest((x[i] + min) * factor, r.low, r.high) - r.low);
    }
}

/* ---- Blocks of 256: groups of 16 or 32 whose scales and mins are integers times two f16 ---- */

/* What the groups would take, were their scales and mins any numbers. */
typedef struct ideal {
    float scale[L2C_MAX_GROUPS], min[L2C_MAX_GROUPS];
} ideal;

static void find_ideal(ideal *best, ideal *plain, const l2c_super *s, const float *x) {
    for (size_t i = 0; i < s->count; i++, x += s->size) {
        guesses g;
        if (s->min.high > 0) {
            start_line(&g, x, s->size, s->q, 0);
        } else {
            start_scale(&g, x, s->size, s->q);
        }
        plain->scale[i] = g.scale[0];
        plain->min[i] = g.min[0];
        for (int round = 0; round < 2; round++) {
            if (s->min.high > 0) {
                refit_line(&g, x, s->size, s->q, 0);
            } else {
                refit_scale(&g, x, s->size, s->q);
            }
        }
        measure(&g, x, s->size, s->q);
        const int c = best_of(&g);
        best->scale[i] = g.scale[c];
        best->min[i] = g.min[c];
    }
}

/* The f16 of which integers in r are closest to all numbers: sum (numbers - step integer)^2 is least. tries 1: the one that
 * makes the largest number the end of r. */
static float find_step(const float *numbers, size_t n, l2c_range r, int tries) {
    const float extreme = extreme_of(numbers, n), end = r.low < 0 ? r.low : r.high;
    float best = as_f16(extreme / end), least = FLT_MAX;
    for (int t = 0; t < tries; t++) {
        const float step = as_f16(extreme / (end * (1 - 0.25f * (float)t / (float)tries)));
        float error = 0;
        for (size_t i = 0; i < n; i++) {
            const float e = numbers[i] - step * nearest(numbers[i] * inverse(step), r.low, r.high);
            error += e * e;
        }
        if (error < least) {
            least = error;
            best = step;
        }
    }
    return best;
}

static void encode_plain(l2c_coding *c, const l2c_super *s, const ideal *plain) {
    c->d = find_step(plain->scale, s->count, s->scale, 1);
    c->dmin = s->min.high > 0 ? find_step(plain->min, s->count, s->min, 1) : 0;
    c->error = 0;
    for (size_t i = 0; i < s->count; i++) {
        c->scales[i] = nearest(plain->scale[i] * inverse(c->d), s->scale.low, s->scale.high);
        c->mins[i] = nearest(plain->min[i] * inverse(c->dmin), s->min.low, s->min.high);
    }
}

/* Guesses around (scale, min), integers of group i; the last one is the plain coding's. */
static void start_around(guesses *g, const l2c_super *s, const l2c_coding *c, float scale, float min,
                         const l2c_coding *plain, size_t i, float scales[LANES], float mins[LANES]) {
    for (int lane = 0; lane < LANES; lane++) {
        const bool line = s->min.high > 0;
        const float by = line ? (float)(lane / 5 - 1) : (float)(lane - 7), min_by = line ? (float)(lane % 5 - 2) : 0;
        scales[lane] = nearest(scale + by, s->scale.low, s->scale.high);
        mins[lane] = nearest(min + min_by, s->min.low, s->min.high);
        g->scale[lane] = c->d * scales[lane];
        g->min[lane] = c->dmin * mins[lane];
    }
    g->scale[LANES - 1] = plain->d * plain->scales[i];
    g->min[LANES - 1] = plain->dmin * plain->mins[i];
}

/* The integers of every group for c->d and c->dmin, near those of `near`; adds up the plain coding's error too. */
static void place(l2c_coding *c, l2c_coding *plain, const l2c_super *s, const ideal *near, const float *x) {
    c->error = plain->error = 0;
    for (size_t i = 0; i < s->count; i++, x += s->size) {
        guesses g;
        float scales[LANES], mins[LANES];
        const float scale = nearest(near->scale[i] * inverse(c->d), s->scale.low, s->scale.high);
        const float min = nearest(near->min[i] * inverse(c->dmin), s->min.low, s->min.high);
        start_around(&g, s, c, scale, min, plain, i, scales, mins);
        measure(&g, x, s->size, s->q);
        plain->error += (double)g.error[LANES - 1];
        g.error[LANES - 1] = FLT_MAX;
        const int best = best_of(&g);
        c->error += (double)g.error[best];
        c->scales[i] = scales[best];
        c->mins[i] = mins[best];
    }
}

void l2c_round_groups(uint8_t *q, const l2c_super *s, const l2c_coding *c, const float *x) {
    for (size_t i = 0; i < s->count; i++) {
        l2c_round_values(q + i * s->size, x + i * s->size, s->size, c->d * c->scales[i], c->dmin * c->mins[i], s->q);
    }
}

/* Least squares for (d, dmin), the integers being what they are. */
static void refit_steps(l2c_coding *c, const l2c_super *s, const float *x) {
    uint8_t q[L2C_SUPER_BLOCK];
    double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0; /* a: scales q, b: -mins */
    l2c_round_groups(q, s, c, x);
    for (size_t i = 0; i < s->count; i++) {
        float sum_q = 0, qq = 0, xq = 0, sum_x = 0;
        for (size_t j = i * s->size; j < (i + 1) * s->size; j++) {
            const float value = (float)q[j] + s->q.low;
            sum_q += value;
            qq += value * value;
            xq += x[j] * value;
            sum_x += x[j];
        }
        const double scale = (double)c->scales[i], min = (double)c->mins[i];
        aa += scale * scale * (double)qq;
        ab -= scale * min * (double)sum_q;
        bb += min * min * (double)s->size;
        ax += scale * (double)xq;
        bx -= min * (double)sum_x;
    }
    const double determinant = aa * bb - ab * ab;
    if (bb > 0 && determinant > 1e-9 * aa * bb) {
        c->d = as_f16((float)((ax * bb - bx * ab) / determinant));
        c->dmin = as_f16((float)((bx * aa - ax * ab) / determinant));
    } else if (aa > 0) {
        c->d = as_f16((float)((ax - ab * (double)c->dmin) / aa));
    }
}

void l2c_find_coding(l2c_coding *best, const l2c_super *s, const float *x) {
    ideal goal = {0}, plain_goal = {0};
    l2c_coding plain = {0}, c = {0};
    find_ideal(&goal, &plain_goal, s, x);
    encode_plain(&plain, s, &plain_goal);
    c.d = find_step(goal.scale, s->count, s->scale, 16);
    c.dmin = s->min.high > 0 ? find_step(goal.min, s->count, s->min, 16) : 0;
    place(&c, &plain, s, &goal, x);
    *best = plain.error <= c.error ? plain : c;
    for (int round = 0; round < 2; round++) {
        refit_steps(&c, s, x);
        for (size_t i = 0; i < s->count; i++) {
            goal.scale[i] = c.d * c.scales[i];
            goal.min[i] = c.dmin * c.mins[i];
        }
        place(&c, &plain, s, &goal, x);
        *best = c.error < best->error ? c : *best;
    }
}
