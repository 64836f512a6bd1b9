/* quantize_search.h: scales, mins and integers of a block of weights, w = scale q - min, with the least squared error that a
 * short search finds. What is measured last is what the block stores: f16 are rounded, integers in range. */
#ifndef L2C_QUANTIZE_SEARCH_H
#define L2C_QUANTIZE_SEARCH_H

#include "quant.h"

enum { L2C_SMALL_BLOCK = 32, L2C_SUPER_BLOCK = 256, L2C_MAX_GROUPS = 16 };

/* Of integers that are stored: both ends belong to it. */
typedef struct l2c_range {
    float low, high;
} l2c_range;

/* A block of 256 in groups whose scales and mins are integers times two f16. */
typedef struct l2c_super {
    size_t count, size;      /* groups, values of each */
    l2c_range q, scale, min; /* min.high 0: the type has none */
} l2c_super;

/* scale = d scales[g], min = dmin mins[g] in group g */
typedef struct l2c_coding {
    float d, dmin; /* exactly f16 */
    float scales[L2C_MAX_GROUPS], mins[L2C_MAX_GROUPS];
    double error; /* the sum of squares */
} l2c_coding;

/* The scale, exactly f16, of 32 values without a min. */
float l2c_find_scale(const float *x, l2c_range q);
/* The same with a min, exactly f16 and of either sign. */
float l2c_find_line(float *min, const float *x, l2c_range q);
void l2c_find_coding(l2c_coding *out, const l2c_super *super, const float *x);

/* q - range.low of n values. */
void l2c_round_values(uint8_t *q, const float *x, size_t n, float scale, float min, l2c_range range);
void l2c_round_groups(uint8_t *q, const l2c_super *super, const l2c_coding *coding, const float *x);

#endif
