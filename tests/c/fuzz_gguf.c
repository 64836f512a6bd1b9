/* fuzz_gguf.c: libFuzzer's entry: any bytes as a GGUF file, as a model and as a vocabulary.
 *
 *   python csrc/build.py --cc clang --sanitize --no-openmp --no-kernels --main tests/c/fuzz_gguf.c --out fuzz -- \
 *       -fsanitize=fuzzer */
#include "kernels.h"
#include "model.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Nothing is computed: a level's functions are not called. */
const l2c_kernels l2c_kernels_scalar = {.name = "scalar"};

static void read_model(const uint8_t *data, size_t size) {
    l2c_error error;
    l2c_gguf gguf;
    size_t n_parts, part;
    if (l2c_gguf_read(&gguf, data, size, &error) != L2C_OK) {
        return;
    }
    l2c_model model = {0};
    if (l2c_gguf_parts(&n_parts, &part, &gguf, &error) == L2C_OK &&
        l2c_gguf_model(&model, &gguf, 1, &error) == L2C_OK) {
        /* every byte that a forward would read */
        for (size_t i = 0; i < l2c_model_tensors(&model); i++) {
            const l2c_tensor *t = &model.tensors[i];
            float *row = malloc(t->cols * sizeof *row);
            for (size_t r = 0; row && r < t->rows; r++) {
                l2c_tensor_row(t, r, row);
            }
            free(row);
        }
    }
    free(model.tensors);
    l2c_gguf_free(&gguf);
}

static void read_vocabulary(const uint8_t *data, size_t size) {
    l2c_error error;
    l2c_tokenizer *tokenizer;
    int32_t *ids;
    size_t count;
    if (l2c_tokenizer_read_gguf(&tokenizer, data, size, &error) != L2C_OK) {
        return;
    }
    const size_t text = size < 64 ? size : 64;
    if (l2c_tokenizer_encode(tokenizer, &ids, &count, (const char *)data + size - text, text, size % 2, &error) ==
        L2C_OK) {
        for (size_t i = 0; i < count; i++) {
            l2c_tokenizer_bytes(tokenizer, ids[i], &size);
        }
        l2c_ids_free(&ids);
    }
    l2c_tokenizer_free(&tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size ? size : 1); /* of its own size, so that ASan sees every step beyond it */
    if (copy) {
        memcpy(copy, data, size);
        read_model(copy, size);
        read_vocabulary(copy, size);
        free(copy);
    }
    return 0;
}
