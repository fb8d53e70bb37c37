/* Attention of the new token of a row, in tiles of queries and of BLOCK keys, or of BLOCK numbers of values. */

#pragma once

#include "vectors.h"

enum { BLOCK = 16, BLOCK_VECTORS = BLOCK / LANES, TILE = 8 / BLOCK_VECTORS };

/* Scores of `count` queries with a block of keys, [E, BLOCK]. */
IN_EACH_CALL void score_tile(const int count, const float *query, const float *keys, int64_t E, float *scores,
                             int64_t score_stride) {
    vec sums[TILE][BLOCK_VECTORS] = {0};
    for (int64_t e = 0; e < E; e++)
        UNROLLED for (int v = 0; v < BLOCK_VECTORS; v++) {
            const vec key = load(keys + e * BLOCK + v * LANES);
            UNROLLED for (int q = 0; q < count; q++) sums[q][v] += key * query[q * E + e];
        }
    UNROLLED for (int q = 0; q < count; q++)
        UNROLLED for (int v = 0; v < BLOCK_VECTORS; v++) store(scores + q * score_stride + v * LANES, sums[q][v]);
}

/* Adds the weighted values of `tokens` tokens to BLOCK entries of the results of `count` queries. */
IN_EACH_CALL void value_tile(const int count, const float *weights, int64_t weight_stride, const float *values,
                             int64_t E, int64_t tokens, float *result) {
    vec sums[TILE][BLOCK_VECTORS];
    UNROLLED for (int q = 0; q < count; q++)
        UNROLLED for (int v = 0; v < BLOCK_VECTORS; v++) sums[q][v] = load(result + q * E + v * LANES);
    for (int64_t token = 0; token < tokens; token++)
        UNROLLED for (int v = 0; v < BLOCK_VECTORS; v++) {
            const vec value = load(values + token * E + v * LANES);
            UNROLLED for (int q = 0; q < count; q++) sums[q][v] += value * weights[q * weight_stride + token];
        }
    UNROLLED for (int q = 0; q < count; q++)
        UNROLLED for (int v = 0; v < BLOCK_VECTORS; v++) store(result + q * E + v * LANES, sums[q][v]);
}

/* A call for each tile of up to TILE queries `q` to `q + N`. The number N is a constant, so that a tile's sums stay in
   registers; from 5 to 7 queries are two tiles, since each number takes the compiler as long as the rest. */
#define FOR_EACH_TILE_OF_QUERIES(queries, call)                                                                        \
    for (int64_t q = 0; q < (queries);) {                                                                              \
        const int64_t left = (queries) - q;                                                                            \
        if (left >= TILE) { enum { N = TILE }; call; q += N; }                                                         \
        else if (left >= 4) { enum { N = 4 }; call; q += N; }                                                          \
        else if (left == 3) { enum { N = 3 }; call; q += N; }                                                          \
        else if (left == 2) { enum { N = 2 }; call; q += N; }                                                          \
        else { enum { N = 1 }; call; q += N; }                                                                         \
    }

static inline int64_t padded(int64_t tokens) { return (tokens + BLOCK - 1) / BLOCK * BLOCK; }

/* Scores of `queries` queries with keys `first` to `last`, of keys stored as [blocks, E, BLOCK]: what is read lies side
   by side. Scores of up to BLOCK - 1 more keys before and behind are computed too. */
ONCE void score(const float *query, int64_t queries, const float *keys, int64_t first, int64_t last, int64_t E,
                float *scores, int64_t score_stride) {
    for (int64_t key = first / BLOCK * BLOCK; key < last; key += BLOCK)
        FOR_EACH_TILE_OF_QUERIES(queries, score_tile(N, query + q * E, keys + key * E, E,
                                                     scores + q * score_stride + key, score_stride))
}

ONCE void add_values(const float *weights, int64_t weight_stride, int64_t queries, const float *values, int64_t tokens,
                     int64_t E, float *result) {
    for (int64_t e = 0; e < E; e += BLOCK)
        FOR_EACH_TILE_OF_QUERIES(queries, value_tile(N, weights + q * weight_stride, weight_stride, values + e, E,
                                                     tokens, result + q * E + e))
}

static float largest(const float *scores, int64_t first, int64_t last, float found) {
    vec highest = (vec){0} + found;
    int64_t i = first;
    for (; i + LANES <= last; i += LANES) highest = larger(load(scores + i), highest);
    for (; i < last; i++) found = scores[i] > found ? scores[i] : found;
    for (int lane = 0; lane < LANES; lane++) found = highest[lane] > found ? highest[lane] : found;
    return found;
}

/* Replaces scores by their exponentials over that of `level`; returns the sum. */
static float exponentials(float *scores, int64_t first, int64_t last, float level) {
    vec sums = {0};
    int64_t i = first;
    for (; i + LANES <= last; i += LANES) {
        vec value = exponential(load(scores + i) - level);
        store(scores + i, value);
        sums += value;
    }
    float sum = sum_of(sums);
    for (; i < last; i++) {
        scores[i] = exponential((vec){0} + (scores[i] - level))[0];
        sum += scores[i];
    }
    return sum;
}

/* x * cosine + (second half, first half) * sine, in `to`, times a factor. */
static void rotate(const float *x, const float *cosine, const float *sine, float *to, int64_t E, float factor) {
    for (int64_t e = 0; e < E / 2; e++) to[e] = (x[e] * cosine[e] + x[e + E / 2] * sine[e]) * factor;
    for (int64_t e = E / 2; e < E; e++) to[e] = (x[e] * cosine[e] + x[e - E / 2] * sine[e]) * factor;
}
