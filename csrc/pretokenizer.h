/* pretokenizer.h: cuts text into the pre-tokens that byte-level BPE merges within. */
#ifndef L2C_PRETOKENIZER_H
#define L2C_PRETOKENIZER_H

#include <stddef.h>

/* Bytes of the first pre-token of a text that is not empty; at least 1. */
typedef size_t l2c_pretokenizer(const char *text, size_t size);

/* By GGUF's name (tokenizer.ggml.pre); NULL if there is none. */
l2c_pretokenizer *l2c_pretokenizer_find(const char *name);

#define L2C_PRETOKENIZER_NAMES "gpt-2, llama-bpe, llama3, qwen2, smollm"

#endif
