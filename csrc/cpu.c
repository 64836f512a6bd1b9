/* cpu.c: which instruction-set levels this machine can run, and the choice among them.
 *
 * A level is granted only if the processor has the instructions and the system saves their registers. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "error.h"
#include "kernels.h"

#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(L2C_HAVE_AMX) && defined(__linux__)
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef struct registers {
    uint32_t eax, ebx, ecx, edx;
} registers;

static registers cpuid(uint32_t leaf, uint32_t subleaf) {
    registers r = {0, 0, 0, 0};
#if defined(_MSC_VER)
    int words[4];
    __cpuid(words, 0);
    if (leaf <= (uint32_t)words[0]) {
        __cpuidex(words, (int)leaf, (int)subleaf);
        r = (registers){(uint32_t)words[0], (uint32_t)words[1], (uint32_t)words[2], (uint32_t)words[3]};
    }
#else
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
    return r;
}

static uint64_t saved_by_system(void) {
    if (!(cpuid(1, 0).ecx >> 27 & 1)) { /* OSXSAVE */
        return 0;
    }
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
#endif
}

static bool all(uint64_t value, uint64_t bits) {
    return (value & bits) == bits;
}

#define BIT(n) (UINT64_C(1) << (n))

static bool has_avx2(void) {
    const registers one = cpuid(1, 0), seven = cpuid(7, 0);
    return all(saved_by_system(), BIT(1) | BIT(2))      /* XMM, YMM */
           && all(one.ecx, BIT(12) | BIT(28) | BIT(29)) /* FMA, AVX, F16C */
           && all(seven.ebx, BIT(3) | BIT(5) | BIT(8)); /* BMI1, AVX2, BMI2 */
}

#ifdef L2C_HAVE_AVXVNNI
static bool has_avxvnni(void) {
    return has_avx2() && all(cpuid(7, 1).eax, BIT(4));
}
#endif

#if defined(L2C_HAVE_AVX512) || defined(L2C_HAVE_AVX512VNNI) || defined(L2C_HAVE_AMX)
static bool has_avx512(void) {
    return has_avx2() && all(saved_by_system(), BIT(5) | BIT(6) | BIT(7))  /* opmask, ZMM low and high */
           && all(cpuid(7, 0).ebx, BIT(16) | BIT(17) | BIT(30) | BIT(31)); /* F, DQ, BW, VL */
}

#if defined(L2C_HAVE_AVX512VNNI) || defined(L2C_HAVE_AMX)
static bool has_avx512vnni(void) {
    return has_avx512() && all(cpuid(7, 0).ecx, BIT(11));
}
#endif
#endif

#ifdef L2C_HAVE_AMX
#if defined(L2C_EMULATE_AMX)
static bool has_amx(void) { /* its tiles are tests/c/emulate_amx.c */
    return has_avx512vnni();
}
#elif defined(__linux__)
/* Linux saves the 8 KiB of tiles only for processes that ask for it. It refuses if a thread has a signal stack that
 * would be too small, or on behalf of a sandbox. Asked once: what is granted stays, in children too. */
static bool tiles_granted(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    static atomic_int answer; /* 0: not asked yet */
    if (atomic_load(&answer) == 0) {
        atomic_store(&answer, syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? 1 : -1);
    }
    return atomic_load(&answer) == 1;
}

static bool has_amx(void) {
    return has_avx512vnni() && all(saved_by_system(), BIT(17) | BIT(18)) /* tile configuration, tiles */
           && all(cpuid(7, 0).edx, BIT(22) | BIT(24) | BIT(25))          /* AMX-BF16, AMX-TILE, AMX-INT8 */
           && all(cpuid(7, 1).eax, BIT(5))                               /* AVX512-BF16 */
           && tiles_granted();
}
#else
static bool has_amx(void) {
    return false;
}
#endif
#endif
#endif

#if defined(__aarch64__) || defined(_M_ARM64)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static bool has_dotprod(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, NULL, 0) == 0 && value;
#else
    return false;
#endif
}
#endif

static bool always(void) {
    return true;
}

/* Lowest first. */
static const struct {
    const l2c_kernels *kernels;
    bool (*runnable)(void);
} levels[] = {
    {&l2c_kernels_scalar, always},
#ifdef L2C_HAVE_AVX2
    {&l2c_kernels_avx2, has_avx2},
#endif
#ifdef L2C_HAVE_AVXVNNI
    {&l2c_kernels_avxvnni, has_avxvnni},
#endif
#ifdef L2C_HAVE_AVX512
    {&l2c_kernels_avx512, has_avx512},
#endif
#ifdef L2C_HAVE_AVX512VNNI
    {&l2c_kernels_avx512vnni, has_avx512vnni},
#endif
#ifdef L2C_HAVE_AMX
    {&l2c_kernels_amx, has_amx},
#endif
#ifdef L2C_HAVE_NEON
    {&l2c_kernels_neon, always},
#endif
#ifdef L2C_HAVE_DOTPROD
    {&l2c_kernels_dotprod, has_dotprod},
#endif
};

enum { LEVELS = sizeof levels / sizeof *levels };

const char *l2c_isa_name(size_t index) {
    for (size_t i = 0; i < LEVELS; i++) {
        if (levels[i].runnable() && index-- == 0) {
            return levels[i].kernels->name;
        }
    }
    return NULL;
}

const char *l2c_isa_best(void) {
    return l2c_kernels_get(NULL)->name;
}

const l2c_kernels *l2c_kernels_get(const char *name) {
    const l2c_kernels *found = NULL;
    for (size_t i = 0; i < LEVELS; i++) {
        if (levels[i].runnable() && (!name || strcmp(name, levels[i].kernels->name) == 0)) {
            found = levels[i].kernels;
        }
    }
    return found;
}

int l2c_kernels_select(const l2c_kernels **out, const char *name, l2c_error *error) {
    char known[200] = "";
    *out = l2c_kernels_get(name);
    if (*out) {
        return L2C_OK;
    }
    for (size_t i = 0; l2c_isa_name(i); i++) {
        strncat(known, i ? ", " : "", sizeof known - strlen(known) - 1);
        strncat(known, l2c_isa_name(i), sizeof known - strlen(known) - 1);
    }
    return l2c_fail(error, L2C_ERROR_ARGUMENT, "no instruction-set level \"%.40s\" on this machine: it has %s", name,
                    known);
}
