/* kernels_avx512vnni.c: AVX-512 with VNNI. */
#include "vec_avx512vnni.h"

#define LEVEL avx512vnni

#include "kernels_template.h"
