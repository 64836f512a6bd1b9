/* checkteam.c: random works on teams of 1 to 9 threads; every item is taken once, whoever is late, and a late thread's share by
 * the others. Prints for each number of threads how many items were not taken once, and how many were left. */
#include "ops.h"
#include "platform.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ITEMS = 700, PHASES = 60, MOST_WORKS = 9, LATE_ITEMS = 64 };

typedef struct phase {
    size_t works, n[MOST_WORKS], unit[MOST_WORKS], piece[MOST_WORKS];
} phase;

typedef struct check {
    phase phases[PHASES];
    atomic_int taken[PHASES][MOST_WORKS][ITEMS];
    atomic_int wrong, left; /* left: of the work that one thread is late for */
} check;

static size_t below(size_t n) {
    return (size_t)rand() % n;
}

/* A thread is late now and then: for the others that is the same as slow. */
static void be_late_at_times(unsigned *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    if (*seed >> 28 == 0) {
        l2c_nap();
    }
}

static void take_all(const l2c_team *team, void *argument) {
    check *c = argument;
    unsigned seed = (unsigned)team->rank + 1;
    for (size_t p = 0; p < PHASES; p++) {
        const phase *now = &c->phases[p];
        for (size_t w = 0; w < now->works; w++) {
            l2c_work work = l2c_team_work(team, now->n[w], now->unit[w], now->piece[w]);
            for (l2c_range items; l2c_team_take(&work, &items);) {
                c->wrong += items.from >= items.to || items.to > now->n[w];
                for (size_t i = items.from; i < items.to && i < ITEMS; i++) {
                    c->taken[p][w][i]++;
                }
                be_late_at_times(&seed);
            }
        }
        l2c_team_wait(team);
    }
}

/* The first thread holds one item until all others are done, which they are only if someone does the rest of its share. */
static void hold_one(const l2c_team *team, void *argument) {
    check *c = argument;
    l2c_work work = l2c_team_work(team, LATE_ITEMS, 1, 1);
    for (l2c_range items; l2c_team_take(&work, &items);) {
        if (team->rank == 0) {
            while (team->size > 1 && atomic_load(&c->left) > 1) {
                l2c_nap();
            }
        }
        c->left -= (int)(items.to - items.from);
    }
    l2c_team_wait(team);
}

static int wrong_items(const check *c) {
    int wrong = c->wrong;
    for (size_t p = 0; p < PHASES; p++) {
        for (size_t w = 0; w < c->phases[p].works; w++) {
            for (size_t i = 0; i < ITEMS; i++) {
                wrong += c->taken[p][w][i] != (i < c->phases[p].n[w]);
            }
        }
    }
    return wrong;
}

int main(int argc, char **argv) {
    static check c;
    srand(argc > 1 ? (unsigned)atoi(argv[1]) : 1);
    for (int threads = 1; threads <= 9; threads++) {
        memset(&c, 0, sizeof c);
        for (size_t p = 0; p < PHASES; p++) {
            c.phases[p].works = below(MOST_WORKS + 1);
            for (size_t w = 0; w < c.phases[p].works; w++) {
                c.phases[p].n[w] = below(4) ? below(ITEMS + 1) : below(3);
                c.phases[p].unit[w] = 1 + below(40);
                c.phases[p].piece[w] = 1 + below(100);
            }
        }
        l2c_team_run(threads, take_all, &c);
        const int wrong = wrong_items(&c);
        c.left = LATE_ITEMS;
        l2c_team_run(threads, hold_one, &c);
        printf("%d threads: %d wrong, %d left\n", threads, wrong, c.left);
    }
    return 0;
}
