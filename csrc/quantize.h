/* quantize.h: f32 weights into blocks of the types in quant.h. */
#ifndef L2C_QUANTIZE_H
#define L2C_QUANTIZE_H

#include "llama2c.h"
#include "quant.h"

/* Whether l2c_quantize writes the type. */
bool l2c_can_quantize(l2c_type type);
/* n_values, whole blocks of the type, into blocks. Pure: the same bits on every machine, whoever else calls. Fails with
 * the index of a value that is not finite, or so large that the type's scales cannot hold it. */
int l2c_quantize(uint8_t *blocks, l2c_type type, const float *x, size_t n_values, l2c_error *error);
/* sum (w - x)^2 over the weights w that blocks hold; *norm is sum x^2. */
double l2c_quantize_error(double *norm, const uint8_t *blocks, l2c_type type, const float *x, size_t n_values);

#endif
