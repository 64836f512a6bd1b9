/* logits.c: the logits of a prompt over the C core alone, for builds of it that tests reach without Python.
 *
 *   logits MODEL ISA THREADS CHUNK < ids as int32 > logits [ids][vocab_size] of prompt rows as f32, then as much of
 *                                                   generated rows after the same prompt */
#include "llama2c.h"

#include <stdio.h>
#include <stdlib.h>

enum { MOST = 4096 };

static int fail(const l2c_error *error) {
    fprintf(stderr, "%s\n", error->message);
    return 1;
}

int main(int argc, char **argv) {
    static int32_t ids[MOST];
    l2c_error error = {0};
    l2c_transformer *transformer;
    l2c_session *session;
    l2c_batch *batch;
    if (argc != 5) {
        fprintf(stderr, "usage: logits MODEL ISA THREADS CHUNK\n");
        return 2;
    }
    const l2c_open_options options = {.isa = argv[2]};
    const int threads = (int)strtol(argv[3], NULL, 10);
    const int32_t chunk = (int32_t)strtol(argv[4], NULL, 10), count = (int32_t)fread(ids, sizeof *ids, MOST, stdin);
    if (l2c_transformer_open(&transformer, argv[1], &options, &error) ||
        l2c_session_create(&session, transformer, 2 * count, &error) ||
        l2c_batch_create(&batch, transformer, chunk, threads, &error)) {
        return fail(&error);
    }
    const size_t width = (size_t)l2c_transformer_config(transformer)->vocab_size;
    float *logits = malloc((size_t)chunk * width * sizeof *logits);
    l2c_session_enter(session);
    for (int32_t from = 0, rows; logits && from < 2 * count; from += rows) {
        const bool prompt = from < count;
        rows = prompt ? count - from < chunk ? count - from : chunk : 1;
        const l2c_span span = {session, ids + from % count, rows, prompt ? L2C_ROLE_PROMPT : L2C_ROLE_GENERATED,
                               L2C_WANT_ALL};
        if (l2c_batch_step(batch, &span, 1, logits, &error)) {
            return fail(&error);
        }
        fwrite(logits, sizeof *logits, (size_t)rows * width, stdout);
    }
    l2c_session_leave(session);
    free(logits);
    l2c_batch_free(&batch);
    l2c_session_free(&session);
    l2c_transformer_free(&transformer);
    return 0;
}
