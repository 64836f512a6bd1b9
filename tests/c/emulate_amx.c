/* emulate_amx.c: see emulate_amx.h; the operations are those of Intel's Software Developer's Manual, volume 2. */
#include "emulate_amx.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, LANES = ROW_BYTES / 4 };

typedef struct configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} configuration;

static _Thread_local configuration now; /* palette 0: no tiles */
static _Thread_local uint8_t registers[TILES][ROWS][ROW_BYTES];

static void refuse(const char *why) {
    fprintf(stderr, "emulated AMX: %s\n", why);
    abort();
}

static void need(bool right, const char *otherwise) {
    if (!right) {
        refuse(otherwise);
    }
}

static void need_tile(int tile) {
    need(now.palette == 1, "tiles are not configured");
    need(tile >= 0 && tile < TILES, "no such tile");
    need(now.rows[tile] > 0 && now.row_bytes[tile] > 0, "the tile is not configured");
}

void emulated_loadconfig(const void *config) {
    configuration c;
    memcpy(&c, config, sizeof c);
    need(sizeof c == 64 && c.palette == 1 && c.start_row == 0, "another palette or start");
    for (size_t i = 0; i < sizeof c.reserved; i++) {
        need(c.reserved[i] == 0, "reserved bytes of the configuration");
    }
    for (int i = 0; i < 16; i++) {
        need(i < TILES ? c.rows[i] <= ROWS && c.row_bytes[i] <= ROW_BYTES : !c.rows[i] && !c.row_bytes[i],
             "tile sizes");
        need(!c.rows[i] == !c.row_bytes[i], "a tile of rows without bytes or bytes without rows");
    }
    now = c;
    memset(registers, 0, sizeof registers);
}

void emulated_release(void) {
    memset(&now, 0, sizeof now);
    memset(registers, 0, sizeof registers);
}

bool emulated_configured(void) {
    return now.palette != 0;
}

void emulated_zero(int tile) {
    need_tile(tile);
    memset(registers[tile], 0, sizeof registers[tile]);
}

void emulated_load(int tile, const void *memory, size_t stride) {
    emulated_zero(tile);
    for (size_t i = 0; i < now.rows[tile]; i++) {
        memcpy(registers[tile][i], (const uint8_t *)memory + i * stride, now.row_bytes[tile]);
    }
}

void emulated_store(int tile, void *memory, size_t stride) {
    need_tile(tile);
    for (size_t i = 0; i < now.rows[tile]; i++) {
        memcpy((uint8_t *)memory + i * stride, registers[tile][i], now.row_bytes[tile]);
    }
}

/* Subnormals are zeros, of operands and of results. */
static float flushed(float x) {
    return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x;
}

static float from_bf16(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return flushed(x);
}

static void need_product(int sums, int a, int b) {
    need_tile(sums);
    need_tile(a);
    need_tile(b);
    need(sums != a && sums != b && a != b, "one tile twice");
    need(now.rows[sums] == now.rows[a] && now.row_bytes[sums] == now.row_bytes[b] &&
             now.row_bytes[a] == 4 * now.rows[b] && now.row_bytes[sums] % 4 == 0,
         "tiles whose shapes do not fit");
}

void emulated_dpbssd(int sums, int a, int b) {
    need_product(sums, a, b);
    const size_t m = now.rows[sums], n = now.row_bytes[sums] / 4, quads = now.rows[b];
    for (size_t i = 0; i < m; i++) {
        int32_t sum[LANES];
        memcpy(sum, registers[sums][i], sizeof sum);
        for (size_t p = 0; p < quads; p++) {
            for (size_t j = 0; j < n; j++) {
                for (size_t q = 0; q < 4; q++) {
                    sum[j] += (int8_t)registers[a][i][4 * p + q] * (int8_t)registers[b][p][4 * j + q];
                }
            }
        }
        memcpy(registers[sums][i], sum, 4 * n);
    }
}

void emulated_dpbf16ps(int sums, int a, int b) {
    need_product(sums, a, b);
    const size_t m = now.rows[sums], n = now.row_bytes[sums] / 4, pairs = now.rows[b];
    float columns[2][LANES][LANES] = {0}; /* b[p][2j] and b[p][2j + 1] */
    for (size_t p = 0; p < pairs; p++) {
        uint16_t row[2 * LANES];
        memcpy(row, registers[b][p], sizeof row);
        for (size_t j = 0; j < n; j++) {
            columns[0][p][j] = from_bf16(row[2 * j]);
            columns[1][p][j] = from_bf16(row[2 * j + 1]);
        }
    }
    for (size_t i = 0; i < m; i++) {
        float even[LANES] = {0}, odd[LANES] = {0}, sum[LANES];
        uint16_t row[2 * LANES];
        memcpy(row, registers[a][i], sizeof row);
        memcpy(sum, registers[sums][i], sizeof sum);
        for (size_t p = 0; p < pairs; p++) {
            const float first = from_bf16(row[2 * p]), second = from_bf16(row[2 * p + 1]);
            for (size_t j = 0; j < LANES; j++) {
                even[j] = flushed(fmaf(first, columns[0][p][j], even[j]));
                odd[j] = flushed(fmaf(second, columns[1][p][j], odd[j]));
            }
        }
        for (size_t j = 0; j < n; j++) {
            sum[j] = flushed(flushed(sum[j]) + flushed(even[j] + odd[j]));
        }
        memcpy(registers[sums][i], sum, 4 * n);
    }
}
