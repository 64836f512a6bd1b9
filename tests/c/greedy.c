/* greedy.c: llama2.c's `run CKPT -t 0` over the C core alone, for machines that tests reach without Python.
 *
 *   greedy CKPT TOKENIZER STEPS ISA */
#include "llama2c.h"
#include "platform.h"

#include <stdio.h>
#include <stdlib.h>

static int fail(const l2c_error *error) {
    fprintf(stderr, "%s\n", error->message);
    return 1;
}

int main(int argc, char **argv) {
    l2c_error error = {0};
    l2c_file file;
    l2c_tokenizer *tokenizer;
    l2c_transformer *transformer;
    l2c_session *session;
    l2c_batch *batch;
    l2c_sampler *sampler;
    if (argc != 5) {
        fprintf(stderr, "usage: greedy CKPT TOKENIZER STEPS ISA\n");
        return 2;
    }
    const int32_t steps = (int32_t)strtol(argv[3], NULL, 10);
    const l2c_open_options options = {.isa = argv[4]};
    if (l2c_file_open(&file, argv[2], true, 0, &error) ||
        l2c_tokenizer_read_bin(&tokenizer, file.bytes, file.size, &error) ||
        l2c_transformer_open(&transformer, argv[1], &options, &error) ||
        l2c_session_create(&session, transformer, steps, &error) ||
        l2c_batch_create(&batch, transformer, 1, 2, &error) ||
        l2c_sampler_create(&sampler, l2c_transformer_config(transformer)->vocab_size, 0, 0, 1, argv[4], &error)) {
        return fail(&error);
    }
    int32_t token = 1, before = 0;
    l2c_session_enter(session);
    for (int32_t i = 0; i < steps; i++) {
        const l2c_span span = {session, &token, 1, i ? L2C_ROLE_GENERATED : L2C_ROLE_PROMPT, L2C_WANT_LAST};
        if (l2c_batch_step(batch, &span, 1, l2c_sampler_logits(sampler), &error)) {
            return fail(&error);
        }
        before = token;
        token = l2c_sampler_sample(sampler);
        if (token == 1) {
            break;
        }
        size_t size;
        const char *bytes = l2c_tokenizer_bytes(tokenizer, token, &size);
        const size_t skip = before == 1 && size && *bytes == ' ';
        fwrite(bytes + skip, 1, size - skip, stdout);
    }
    l2c_session_leave(session);
    printf("\n");
    l2c_sampler_free(&sampler);
    l2c_batch_free(&batch);
    l2c_session_free(&session);
    l2c_transformer_free(&transformer);
    l2c_tokenizer_free(&tokenizer);
    l2c_file_close(&file);
    return 0;
}
