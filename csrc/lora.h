/* lora.h: low-rank adapters of a transformer's matrices (Hu et al., 2021): y = x @ W^T + (x @ A^T) @ B^T.
 *
 * The matrices of a layer that take the same input share one A, which holds theirs one below the other; several adapters
 * of one matrix are one with the sum of their ranks. So an input costs one product with A, and each matrix one with B. */
#ifndef L2C_LORA_H
#define L2C_LORA_H

#include "model.h"

typedef struct l2c_lora_matrix {
    l2c_tensor b; /* [rows of W][rank], F32; rank 0: no adapter */
    size_t from;  /* its input are the columns [from, from + rank) of x @ A^T */
} l2c_lora_matrix;

/* A of all matrices that take this role's input, [sum of ranks][cols of W], F32; NULL where none has an adapter. */
const l2c_tensor *l2c_lora_input(const l2c_lora *lora, l2c_tensor_role role, size_t layer);
const l2c_lora_matrix *l2c_lora_matrix_of(const l2c_lora *lora, l2c_tensor_role role, size_t layer);

/* Copies the adapters, checked against the model's shapes. */
int l2c_lora_create(l2c_lora **out, const l2c_model *model, const l2c_adapter *adapters, size_t count,
                    l2c_error *error);
void l2c_lora_free(l2c_lora **lora);
size_t l2c_lora_rank(const l2c_lora *lora);   /* the most rows that an A has */
size_t l2c_lora_values(const l2c_lora *lora); /* of all A and B: a token takes each for one multiply-add */

#endif
