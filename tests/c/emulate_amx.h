/* emulate_amx.h: the tile instructions that kernels_amx.c uses, in C, for machines without AMX; `build.py --emulate amx`
 * puts it before that file. The tiles are palette 1's, eight of up to 16 rows of 64 bytes, one set for each thread.
 * What a processor would refuse aborts: tiles that are not configured, a configuration or shapes that do not fit. */
#ifndef EMULATE_AMX_H
#define EMULATE_AMX_H

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <stdbool.h>
#include <stddef.h>

void emulated_loadconfig(const void *config);
void emulated_release(void);
void emulated_zero(int tile);
void emulated_load(int tile, const void *memory, size_t stride);
void emulated_store(int tile, void *memory, size_t stride);
/* sums[i][j] += sum_p a[i][2p] b[p][2j] + sum_p a[i][2p + 1] b[p][2j + 1] */
void emulated_dpbf16ps(int sums, int a, int b);
/* sums[i][j] += the sum of a[i][4p + q] b[p][4j + q], q < 4, of int8 */
void emulated_dpbssd(int sums, int a, int b);
bool emulated_configured(void); /* this thread has tiles */

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig emulated_loadconfig
#define _tile_release emulated_release
#define _tile_zero emulated_zero
#define _tile_loadd emulated_load
#define _tile_stored emulated_store
#define _tile_dpbf16ps emulated_dpbf16ps
#define _tile_dpbssd emulated_dpbssd

#if defined(__AVX512BW__)
/* bf16 of sixteen f32: to even, subnormals are zeros, NaN stays one. */
static inline __m256i emulated_bf16(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x), all = _mm512_set1_epi32(0x7fffffff);
    const __m512i size = _mm512_and_si512(bits, all),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    r = _mm512_mask_andnot_epi32(r, _mm512_cmplt_epu32_mask(size, _mm512_set1_epi32(0x00800000)), all, bits);
    r = _mm512_mask_or_epi32(r, _mm512_cmpgt_epu32_mask(size, _mm512_set1_epi32(0x7f800000)), bits,
                             _mm512_set1_epi32(0x00400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}

static inline __m512i emulated_cvtne2ps(__m512 high, __m512 low) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(emulated_bf16(low)), emulated_bf16(high), 1);
}

#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps
#endif

#endif
