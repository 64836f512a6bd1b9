/* vec_k4_scales.h: the scales and mins of two superblocks of Q4_K or Q5_K by 256-bit vectors; part of vec_avx2.h and
 * vec_avx512.h. */

/* Sixteen scales in lane order, then sixteen mins, six bits each. */
static inline __m256i k4_scales_and_mins(__m128i of_a, __m128i of_b) {
    const __m256i all = _mm256_set_m128i(of_b, of_a);
    /* Dwords of either half: d and dmin; lower bits of scales 0-3, of mins 0-3; nibbles of scales and mins 4-7. The missing
     * bits of 4-7 are the upper ones of 0-3. */
    const __m256i first = _mm256_and_si256(all, _mm256_set1_epi8(63));
    const __m256i last = _mm256_srlv_epi32(_mm256_shuffle_epi32(all, 0xff), _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4));
    const __m256i upper = _mm256_srli_epi16(_mm256_shuffle_epi32(all, 0x95), 2);
    const __m256i second =
        _mm256_or_si256(_mm256_and_si256(last, _mm256_set1_epi8(15)), _mm256_and_si256(upper, _mm256_set1_epi8(48)));
    const __m256i both = _mm256_blend_epi32(first, second, 0x99); /* scales 4-7, scales 0-3, mins 0-3, mins 4-7 */
    const __m128i order = _mm_setr_epi8(4, 6, 0, 2, 5, 7, 1, 3, 8, 10, 12, 14, 9, 11, 13, 15);
    const __m256i lanes = _mm256_shuffle_epi8(both, _mm256_broadcastsi128_si256(order));
    return _mm256_permute4x64_epi64(lanes, 0xd8);
}

/* d of a, its -dmin, those of b. */
static inline __m128 k4_factors(__m128i of_a, __m128i of_b) {
    return _mm_cvtph_ps(_mm_xor_si128(_mm_unpacklo_epi32(of_a, of_b), _mm_set1_epi32(INT32_MIN)));
}
