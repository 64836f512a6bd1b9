/* lora.c: lays the adapters of a model out as the products of a step take them. */
#include "lora.h"

#include "error.h"

#include <stdlib.h>
#include <string.h>

/* What the matrices of a layer multiply: the rows before attention and after it, those of the feed-forward layer. */
typedef enum input { ATTN, ATTENDED, FFN, HIDDEN, INPUTS } input;

struct l2c_lora {
    l2c_tensor *a;             /* [n_layers][INPUTS] */
    l2c_lora_matrix *matrices; /* [n_layers][L2C_TENSOR_PER_LAYER] */
    float *values;             /* [count] of all A and B */
    size_t count, rank;
};

/* INPUTS for what is no matrix of a layer. */
static input input_of(l2c_tensor_role role) {
    switch (role) {
    case L2C_TENSOR_ATTN_Q:
    case L2C_TENSOR_ATTN_K:
    case L2C_TENSOR_ATTN_V: return ATTN;
    case L2C_TENSOR_ATTN_OUTPUT: return ATTENDED;
    case L2C_TENSOR_FFN_GATE:
    case L2C_TENSOR_FFN_UP: return FFN;
    case L2C_TENSOR_FFN_DOWN: return HIDDEN;
    default: return INPUTS;
    }
}

static l2c_tensor *input_at(const l2c_lora *lora, l2c_tensor_role role, size_t layer) {
    return &lora->a[layer * INPUTS + input_of(role)];
}

static l2c_lora_matrix *matrix_at(const l2c_lora *lora, l2c_tensor_role role, size_t layer) {
    return &lora->matrices[layer * L2C_TENSOR_PER_LAYER + (size_t)role - L2C_TENSOR_GLOBALS];
}

const l2c_tensor *l2c_lora_input(const l2c_lora *lora, l2c_tensor_role role, size_t layer) {
    const l2c_tensor *a = input_at(lora, role, layer);
    return a->rows ? a : NULL;
}

const l2c_lora_matrix *l2c_lora_matrix_of(const l2c_lora *lora, l2c_tensor_role role, size_t layer) {
    return matrix_at(lora, role, layer);
}

size_t l2c_lora_rank(const l2c_lora *lora) {
    return lora->rank;
}

size_t l2c_lora_values(const l2c_lora *lora) {
    return lora->count;
}

/* The role of an adapter's matrix, which the model has; L2C_TENSOR_ROLES with an error when it has not. */
static l2c_tensor_role check(const l2c_model *model, const l2c_adapter *adapter, l2c_error *error) {
    const l2c_tensor_role role = l2c_tensor_role_of(adapter->tensor, strlen(adapter->tensor));
    size_t rows, cols;
    if (input_of(role) == INPUTS) {
        l2c_fail(error, L2C_ERROR_ARGUMENT,
                 "an adapter of \"%.40s\", expected a matrix of a layer: attn_q, ffn_down, ...", adapter->tensor);
        return L2C_TENSOR_ROLES;
    }
    if (adapter->layer < 0 || adapter->layer >= model->config.n_layers) {
        l2c_fail(error, L2C_ERROR_ARGUMENT, "an adapter of %s in layer %ld, expected 0 to %ld", adapter->tensor,
                 (long)adapter->layer, (long)model->config.n_layers - 1);
        return L2C_TENSOR_ROLES;
    }
    l2c_tensor_shape(&model->config, role, &rows, &cols);
    if (adapter->rank < 1 || (size_t)adapter->rows != rows || (size_t)adapter->cols != cols) {
        l2c_fail(error, L2C_ERROR_ARGUMENT,
                 "an adapter of %s in layer %ld: B is [%ld][%ld] and A [%ld][%ld], expected [%zu][rank], [rank][%zu]",
                 adapter->tensor, (long)adapter->layer, (long)adapter->rows, (long)adapter->rank, (long)adapter->rank,
                 (long)adapter->cols, rows, cols);
        return L2C_TENSOR_ROLES;
    }
    return role;
}

/* Sizes and offsets, given the rank of every matrix. */
static void measure(l2c_lora *lora, const l2c_model *model) {
    for (size_t layer = 0; layer < (size_t)model->config.n_layers; layer++) {
        for (l2c_tensor_role role = L2C_TENSOR_GLOBALS; role < L2C_TENSOR_ROLES; role++) {
            l2c_lora_matrix *matrix = matrix_at(lora, role, layer);
            if (matrix->b.cols == 0) {
                continue;
            }
            l2c_tensor *a = input_at(lora, role, layer);
            matrix->b.type = a->type = l2c_type_of(L2C_TYPE_F32);
            matrix->b.group_size = a->group_size = 1;
            l2c_tensor_shape(&model->config, role, &matrix->b.rows, &a->cols);
            matrix->from = a->rows;
            a->rows += matrix->b.cols;
            lora->rank = a->rows > lora->rank ? a->rows : lora->rank;
            lora->count += matrix->b.cols * (a->cols + matrix->b.rows);
        }
    }
}

static void place(l2c_tensor *tensor, float **values) {
    tensor->data = *values;
    *values += tensor->rows * tensor->cols;
}

/* Adapter by adapter; those of a matrix lie in the order given. taken: [matrices] ranks placed so far, zeros at first. */
static void fill(l2c_lora *lora, const l2c_model *model, const l2c_adapter *adapters, size_t count, size_t *taken) {
    float *values = lora->values;
    for (size_t i = 0; i < (size_t)model->config.n_layers * INPUTS; i++) {
        place(&lora->a[i], &values);
    }
    for (size_t i = 0; i < (size_t)model->config.n_layers * L2C_TENSOR_PER_LAYER; i++) {
        place(&lora->matrices[i].b, &values);
    }
    for (size_t i = 0; i < count; i++) {
        const l2c_adapter *adapter = &adapters[i];
        const l2c_tensor_role role = l2c_tensor_role_of(adapter->tensor, strlen(adapter->tensor));
        const l2c_lora_matrix *matrix = matrix_at(lora, role, (size_t)adapter->layer);
        const l2c_tensor *a = input_at(lora, role, (size_t)adapter->layer);
        const size_t rank = (size_t)adapter->rank, at = taken[matrix - lora->matrices];
        /* the tensors are views of values, which are the adapter's own */
        float *to_a = lora->values + ((const float *)a->data - lora->values) + (matrix->from + at) * a->cols;
        float *to_b = lora->values + ((const float *)matrix->b.data - lora->values) + at;
        memcpy(to_a, adapter->a, rank * a->cols * sizeof *to_a);
        for (size_t row = 0; row < matrix->b.rows; row++) {
            memcpy(to_b + row * matrix->b.cols, adapter->b + row * rank, rank * sizeof *to_b);
        }
        taken[matrix - lora->matrices] += rank;
    }
}

static int create(l2c_lora *lora, const l2c_model *model, const l2c_adapter *adapters, size_t count, l2c_error *error) {
    const size_t n_layers = (size_t)model->config.n_layers;
    lora->a = calloc(n_layers * INPUTS, sizeof *lora->a);
    lora->matrices = calloc(n_layers * L2C_TENSOR_PER_LAYER, sizeof *lora->matrices);
    if (!lora->a || !lora->matrices) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for the adapters of %zu layers", n_layers);
    }
    for (size_t i = 0; i < count; i++) {
        const l2c_tensor_role role = check(model, &adapters[i], error);
        if (role == L2C_TENSOR_ROLES) {
            return error->status;
        }
        matrix_at(lora, role, (size_t)adapters[i].layer)->b.cols += (size_t)adapters[i].rank;
    }
    measure(lora, model);
    if (lora->rank > INT32_MAX) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "adapters of rank %zu together", lora->rank);
    }
    size_t *taken = calloc(n_layers * L2C_TENSOR_PER_LAYER, sizeof *taken);
    lora->values = malloc(lora->count * sizeof *lora->values);
    if (!taken || !lora->values) {
        free(taken);
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu values of adapters", lora->count);
    }
    fill(lora, model, adapters, count, taken);
    free(taken);
    return L2C_OK;
}

int l2c_lora_create(l2c_lora **out, const l2c_model *model, const l2c_adapter *adapters, size_t count,
                    l2c_error *error) {
    *out = calloc(1, sizeof **out);
    if (!*out) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for adapters");
    }
    const int status = create(*out, model, adapters, count, error);
    if (status != L2C_OK) {
        l2c_lora_free(out);
    }
    return status;
}

void l2c_lora_free(l2c_lora **lora) {
    if (*lora) {
        free((*lora)->values);
        free((*lora)->matrices);
        free((*lora)->a);
        free(*lora);
    }
    *lora = NULL;
}
