/* logits.c: the logits of a text over the C core alone, for builds of it that tests reach without Python.
 *
 *   logits MODEL ISA THREADS CHUNK < ids as int32 > logits as f32
 *
 * Writes [ids][vocab_size] of the ids as prompt rows, CHUNK a step, then as much of them as generated rows, one a step
 * beside up to three prompt rows of another session. */
#include "llama2c.h"

#include <stdio.h>
#include <stdlib.h>

enum { MOST = 4096, BESIDE = 3 };

static int fail(const l2c_error *error) {
    fprintf(stderr, "%s\n", error->message);
    return 1;
}

static int32_t smaller(int32_t a, int32_t b) {
    return a < b ? a : b;
}

int main(int argc, char **argv) {
    static int32_t ids[MOST];
    l2c_error error = {0};
    l2c_transformer *transformer;
    l2c_session *session, *other;
    l2c_batch *batch;
    if (argc != 5) {
        fprintf(stderr, "usage: logits MODEL ISA THREADS CHUNK\n");
        return 2;
    }
    const l2c_open_options options = {.isa = argv[2]};
    const int threads = (int)strtol(argv[3], NULL, 10);
    const int32_t chunk = (int32_t)strtol(argv[4], NULL, 10), count = (int32_t)fread(ids, sizeof *ids, MOST, stdin);
    if (l2c_transformer_open(&transformer, argv[1], &options, &error) ||
        l2c_session_create(&session, transformer, count, &error) ||
        l2c_session_create(&other, transformer, count, &error) ||
        l2c_batch_create(&batch, transformer, chunk, threads, &error)) {
        return fail(&error);
    }
    const size_t width = (size_t)l2c_transformer_config(transformer)->vocab_size;
    float *logits = malloc((size_t)chunk * width * sizeof *logits);
    l2c_session_enter(session);
    l2c_session_enter(other);
    for (int32_t from = 0, rows; logits && from < count; from += rows) {
        rows = smaller(count - from, chunk);
        const l2c_span span = {session, ids + from, rows, L2C_ROLE_PROMPT, L2C_WANT_ALL};
        if (l2c_batch_step(batch, &span, 1, logits, &error)) {
            return fail(&error);
        }
        fwrite(logits, sizeof *logits, (size_t)rows * width, stdout);
    }
    const int32_t beside = smaller(smaller(chunk - 1, BESIDE), count);
    l2c_session_rewind(session, 0, &error);
    for (int32_t i = 0; logits && i < count; i++) {
        const l2c_span spans[] = {{other, ids, beside, L2C_ROLE_PROMPT, L2C_WANT_NONE},
                                  {session, ids + i, 1, L2C_ROLE_GENERATED, L2C_WANT_ALL}};
        if (l2c_batch_step(batch, beside ? spans : spans + 1, beside ? 2 : 1, logits, &error) ||
            l2c_session_rewind(other, 0, &error)) {
            return fail(&error);
        }
        fwrite(logits, sizeof *logits, width, stdout);
    }
    l2c_session_leave(other);
    l2c_session_leave(session);
    free(logits);
    l2c_batch_free(&batch);
    l2c_session_free(&other);
    l2c_session_free(&session);
    l2c_transformer_free(&transformer);
    return 0;
}
