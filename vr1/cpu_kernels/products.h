/* Products of a weight with a few rows, fast enough that reading the weight from memory is what takes the time.

   Rows lie along vectors: `x` is stored as [inputs, stride] with a row in each column, and so is what comes out. A
   weight [outputs, inputs] is packed for that: of OUTPUTS outputs, the numbers for one input side by side. */

#pragma once

#include "vectors.h"

enum {
    OUTPUTS = 16,
    /* Inputs whose products are summed by themselves, so that rounding does not grow with the inputs. */
    SUMMED = 128,
    /* Vectors of rows that are multiplied at a time, and sums that fit in the processor's registers. */
    ROW_VECTORS = 2,
    REGISTERS = LANES == 16 ? 16 : 8,
    TILE_ROWS = ROW_VECTORS * LANES,
    /* The weight is read from memory in order: ask for what comes so many inputs later. */
    AHEAD = 96,
};

struct product {
    const float *weight; /* [outputs / OUTPUTS rounded up, inputs, OUTPUTS] */
    const float *bias;   /* [outputs rounded up to OUTPUTS], or NULL */
    int64_t outputs, inputs;
};

static inline int64_t blocks_of(int64_t outputs) { return (outputs + OUTPUTS - 1) / OUTPUTS; }

/* Adds the products of inputs `start` to `end` for some outputs of some vectors of rows; these numbers are constants,
   so that the sums stay in registers. */
IN_EACH_CALL void multiply_part(const int vectors, const int outputs, const float *weight, const float *x,
                                int64_t start, int64_t end, int64_t stride, float *tile) {
    vec sums[REGISTERS] = {0};
    for (int64_t i = start; i < end; i++) {
        vec rows[ROW_VECTORS];
        UNROLLED for (int v = 0; v < vectors; v++) rows[v] = load(x + i * stride + v * LANES);
        __builtin_prefetch(weight + (i + AHEAD) * OUTPUTS);
        UNROLLED for (int o = 0; o < outputs; o++)
            UNROLLED for (int v = 0; v < vectors; v++) sums[o * vectors + v] += rows[v] * weight[i * OUTPUTS + o];
    }
    UNROLLED for (int o = 0; o < outputs; o++)
        UNROLLED for (int v = 0; v < vectors; v++) {
            float *to = tile + o * TILE_ROWS + v * LANES;
            store(to, load(to) + sums[o * vectors + v]);
        }
}

/* The outputs of one block for up to TILE_ROWS rows: tile [OUTPUTS, TILE_ROWS]. */
ONCE void multiply(const struct product *product, int64_t block, const float *x, int64_t stride, int64_t vectors,
                   float *tile) {
    const int64_t inputs = product->inputs;
    const float *weight = product->weight + block * inputs * OUTPUTS;
    for (int o = 0; o < OUTPUTS; o++) {
        const float start = product->bias ? product->bias[block * OUTPUTS + o] : 0;
        for (int v = 0; v < ROW_VECTORS; v++) store(tile + o * TILE_ROWS + v * LANES, (vec){0} + start);
    }
    for (int64_t start = 0; start < inputs; start += SUMMED) {
        const int64_t end = least(start + SUMMED, inputs);
        if (vectors == 1)
            for (int o = 0; o < OUTPUTS; o += REGISTERS)
                multiply_part(1, REGISTERS, weight + o, x, start, end, stride, tile + o * TILE_ROWS);
        else
            for (int o = 0; o < OUTPUTS; o += REGISTERS / ROW_VECTORS)
                multiply_part(ROW_VECTORS, REGISTERS / ROW_VECTORS, weight + o, x, start, end, stride,
                              tile + o * TILE_ROWS);
    }
}

/* A statement for each block of a product's outputs and each `vectors` vectors of rows from `row` on, which has the
   sums in `tile`. The threads that run it share the blocks, and wait for each other at its end. */
#define FOR_EACH_TILE(product, x, stride, ...)                                                                         \
    _Pragma("omp for schedule(static)")                                                                                \
    for (int64_t block = 0; block < blocks_of((product)->outputs); block++)                                            \
        for (int64_t row = 0; row < (stride); row += TILE_ROWS) {                                                      \
            const int64_t vectors = least(ROW_VECTORS, ((stride) - row) / LANES);                                      \
            float tile[OUTPUTS * TILE_ROWS];                                                                           \
            multiply(product, block, (x) + row, stride, vectors, tile);                                                \
            __VA_ARGS__;                                                                                               \
        }

/* Stores a tile with one row after another: `to` [rows, outputs], of which the tile's rows begin at `row`. */
ONCE void store_rows(const float *tile, const struct product *product, int64_t block, int64_t row, int64_t rows,
                     float *to) {
    const int64_t first = block * OUTPUTS, count = least(OUTPUTS, product->outputs - first);
    for (int64_t r = row; r < least(row + TILE_ROWS, rows); r++)
        for (int64_t o = 0; o < count; o++) to[r * product->outputs + first + o] = tile[o * TILE_ROWS + r - row];
}

/* Adds a tile to `to` [outputs, stride]. */
ONCE void add_tile(const float *tile, int64_t block, int64_t row, int64_t vectors, float *to, int64_t stride) {
    for (int o = 0; o < OUTPUTS; o++)
        for (int v = 0; v < vectors; v++) {
            float *place = to + (block * OUTPUTS + o) * stride + row + v * LANES;
            store(place, load(place) + load(tile + o * TILE_ROWS + v * LANES));
        }
}
