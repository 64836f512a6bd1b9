/* sampler.c: from logits to a token id, with llama2.c's random numbers (xorshift64*) in llama2.c's order, so that a seed
 * gives the same text: temperature, softmax, one random number, then nucleus (top-p) or plain sampling. */
#include "error.h"
#include "kernels.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct candidate {
    float probability;
    int32_t id;
} candidate;

struct l2c_sampler {
    const l2c_kernels *kernels;
    int32_t vocab_size;
    float temperature, top_p;
    uint64_t state;
    atomic_bool busy;
    float *logits;         /* [vocab_size], owned */
    candidate *candidates; /* [2][vocab_size], owned; the second half is where the radix sort writes */
};

int l2c_sampler_create(l2c_sampler **out, int32_t vocab_size, float temperature, float top_p, uint64_t seed,
                       const char *isa, l2c_error *error) {
    const l2c_kernels *kernels;
    *out = NULL;
    if (vocab_size < 1) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "vocab_size is %ld, expected at least 1", (long)vocab_size);
    }
    if (!(temperature >= 0) || !isfinite(temperature)) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "temperature is %g, expected 0 or more", (double)temperature);
    }
    if (!isfinite(top_p)) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "top_p is %g, expected 0 to 1", (double)top_p);
    }
    if (seed == 0) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "seed is 0, from which xorshift64* never leaves");
    }
    const int status = l2c_kernels_select(&kernels, isa, error);
    if (status != L2C_OK) {
        return status;
    }
    l2c_sampler *s = *out = calloc(1, sizeof **out);
    if (s) {
        s->kernels = kernels;
        s->vocab_size = vocab_size;
        s->temperature = isfinite(1.0f / temperature) ? temperature : 0.0f;
        s->top_p = top_p;
        s->state = seed;
        s->logits = calloc((size_t)vocab_size, sizeof *s->logits);
        s->candidates = malloc(2 * (size_t)vocab_size * sizeof *s->candidates);
    }
    if (!s || !s->logits || !s->candidates) {
        l2c_sampler_free(out);
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for a sampler of %ld tokens", (long)vocab_size);
    }
    return L2C_OK;
}

void l2c_sampler_free(l2c_sampler **sampler) {
    if (*sampler) {
        free((*sampler)->logits);
        free((*sampler)->candidates);
        free(*sampler);
    }
    *sampler = NULL;
}

/* xorshift64* (Vigna, 2016): the upper 32 bits of the product */
static uint32_t random_u32(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t)((*state * UINT64_C(0x2545F4914F6CDD1D)) >> 32);
}

/* [0, 1) in steps of 2^-24 */
static float random_f32(uint64_t *state) {
    return (float)(random_u32(state) >> 8) / 16777216.0f;
}

static int32_t sample_all(const float *probabilities, int32_t n, float coin) {
    float sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += probabilities[i];
        if (coin < sum) {
            return i;
        }
    }
    return n - 1; /* the sum rounded to less than the coin */
}

static void insertion_sort(candidate *c, size_t n) {
    for (size_t i = 1; i < n; i++) {
        const candidate moved = c[i];
        size_t j = i;
        for (; j > 0 && c[j - 1].probability < moved.probability; j--) {
            c[j] = c[j - 1];
        }
        c[j] = moved;
    }
}

/* Descending by the bits of the probability, which order as the positive floats do; stable, so equals keep id order.
 * Result in c. */
static void radix_sort(candidate *c, candidate *other, size_t n) {
    enum { BITS = 8, BUCKETS = 1 << BITS };
    for (int shift = 0; shift < 32; shift += BITS) {
        size_t starts[BUCKETS + 1] = {0};
        for (size_t i = 0; i < n; i++) {
            uint32_t key;
            memcpy(&key, &c[i].probability, sizeof key);
            starts[BUCKETS - (key >> shift & (BUCKETS - 1))]++;
        }
        for (int bucket = 0; bucket < BUCKETS; bucket++) {
            starts[bucket + 1] += starts[bucket];
        }
        for (size_t i = 0; i < n; i++) {
            uint32_t key;
            memcpy(&key, &c[i].probability, sizeof key);
            other[starts[BUCKETS - 1 - (key >> shift & (BUCKETS - 1))]++] = c[i];
        }
        candidate *swap = c;
        c = other;
        other = swap;
    }
}

/* The smallest set of most probable tokens whose sum exceeds top_p (Holtzman et al., 2019). */
static int32_t sample_top_p(l2c_sampler *s, const float *probabilities, float coin) {
    enum { FEW = 96 };
    candidate *c = s->candidates;
    size_t n = 0;
    /* A token below the cutoff cannot be in the set: even all the others together leave less than 1 - top_p outside. */
    const float cutoff = s->vocab_size > 1 ? (1.0f - s->top_p) / (float)(s->vocab_size - 1) : 0.0f;
    for (int32_t i = 0; i < s->vocab_size; i++) {
        if (probabilities[i] >= cutoff) {
            c[n++] = (candidate){probabilities[i], i};
        }
    }
    if (n <= FEW) {
        insertion_sort(c, n);
    } else {
        radix_sort(c, c + s->vocab_size, n);
    }
    float sum = 0;
    size_t last = n - 1;
    for (size_t i = 0; i < n; i++) {
        sum += c[i].probability;
        if (sum > s->top_p) {
            last = i;
            break;
        }
    }
    const float target = coin * sum;
    sum = 0;
    for (size_t i = 0; i < last; i++) {
        sum += c[i].probability;
        if (target < sum) {
            return c[i].id;
        }
    }
    return c[last].id;
}

bool l2c_sampler_enter(l2c_sampler *sampler) {
    return !atomic_exchange(&sampler->busy, true);
}

void l2c_sampler_leave(l2c_sampler *sampler) {
    atomic_store(&sampler->busy, false);
}

float *l2c_sampler_logits(l2c_sampler *sampler) {
    return sampler->logits;
}

/* Whether a softmax of them is a distribution. */
static bool are_logits(const float *x, size_t n) {
    size_t below = 0, possible = 0; /* counted, not branched on: compilers make vectors of this */
    for (size_t i = 0; i < n; i++) {
        below += x[i] < INFINITY;
        possible += x[i] > -INFINITY;
    }
    return below == n && possible > 0;
}

int32_t l2c_sampler_sample(l2c_sampler *sampler) {
    return l2c_sampler_choose(sampler, sampler->logits);
}

int32_t l2c_sampler_choose(l2c_sampler *sampler, float *logits) {
    const size_t n = (size_t)sampler->vocab_size;
    if (!are_logits(logits, n)) {
        return -1;
    }
    if (sampler->temperature == 0) {
        return (int32_t)sampler->kernels->argmax(logits, n);
    }
    sampler->kernels->softmax(logits, n, 1.0f / sampler->temperature);
    const float coin = random_f32(&sampler->state);
    if (sampler->top_p <= 0 || sampler->top_p >= 1) {
        return sample_all(logits, sampler->vocab_size, coin);
    }
    return sample_top_p(sampler, logits, coin);
}

void l2c_sampler_skip(l2c_sampler *sampler, int32_t count) {
    for (int32_t i = 0; i < count && sampler->temperature > 0; i++) {
        random_u32(&sampler->state);
    }
}

uint64_t l2c_sampler_state(const l2c_sampler *sampler) {
    return sampler->state;
}

void l2c_sampler_set_state(l2c_sampler *sampler, uint64_t state) {
    sampler->state = state;
}
