/* Vectors of float32 numbers, and what several sources compute with them.

   Vectors are the compiler's own extension (GCC, Clang), so that one text serves every processor. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif

/* A function that is compiled into each call, whose constants then are its own; and one that is compiled once, which
   takes the compiler less time. */
#define IN_EACH_CALL static inline __attribute__((always_inline))
#define ONCE static __attribute__((noinline, noclone))

/* Before a loop of a constant count, whose values then stay in registers. */
#define UNROLLED _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static inline vec load(const float *from) {
    vec value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float *to, vec value) { memcpy(to, &value, sizeof value); }

/* The first `lanes` values, and something else in the other lanes. */
static inline vec load_or(const float *from, int64_t lanes, float otherwise) {
    vec value = (vec){0} + otherwise;
    memcpy(&value, from, (size_t)lanes * sizeof(float));
    return value;
}

static inline vec load_some(const float *from, int64_t lanes) { return load_or(from, lanes, 0); }

static inline void store_some(float *to, vec value, int64_t lanes) {
    memcpy(to, &value, (size_t)lanes * sizeof(float));
}

/* A statement for each `lanes` of `count` values, from `i` on: LANES of them as a constant, and fewer at the end. */
#define FOR_EACH_VECTOR(count, ...)                                                                                    \
    {                                                                                                                  \
        const int64_t end_of_values = (count);                                                                         \
        int64_t i = 0;                                                                                                 \
        for (; i + LANES <= end_of_values; i += LANES) { enum { lanes = LANES }; __VA_ARGS__; }                        \
        if (i < end_of_values) { const int64_t lanes = end_of_values - i; __VA_ARGS__; }                               \
    }

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline float sum_of(vec value) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += value[lane];
    return sum;
}

static inline vec chosen(ivec mask, vec a, vec b) {
    ivec bits_of_a, bits_of_b;
    memcpy(&bits_of_a, &a, sizeof a);
    memcpy(&bits_of_b, &b, sizeof b);
    bits_of_a = (bits_of_a & mask) | (bits_of_b & ~mask);
    memcpy(&a, &bits_of_a, sizeof a);
    return a;
}

/* The larger of two values in each lane, and the smaller; `b` where one of them is no number. */
static inline vec larger(vec a, vec b) { return chosen(a > b, a, b); }
static inline vec smaller(vec a, vec b) { return chosen(a < b, a, b); }

static inline vec power_of_two(ivec n) {
    ivec bits = (n + 127) << 23;
    vec power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* e^x = 2^n * e^r with |r| <= ln(2) / 2: returns e^r by its series. */
static inline vec reduced_exponential(vec x, vec *n) {
    /* Adding and subtracting 1.5 * 2^23 rounds to an integer. */
    *n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    vec r = x - *n * 0.693359375f + *n * 2.12194440e-4f;
    vec series = (vec){0} + 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    return series * r + 1.0f;
}

/* e^x to about 1e-7 of itself; 0 for x below -87, infinite where e^x is too large, no number where x is none. */
static inline vec exponential(vec x) {
    const ivec none = x < -87.0f;
    vec n, series = reduced_exponential(smaller((vec){0} + 89.0f, larger((vec){0} - 87.0f, x)), &n);
    /* 2^n in two factors, since 2^128 is none of the numbers. */
    ivec whole = __builtin_convertvector(n, ivec), half = whole >> 1;
    return chosen(none, (vec){0}, series * power_of_two(half) * power_of_two(whole - half));
}

/* The same for x up to 0, or little more. */
static inline vec exponential_below_1(vec x) {
    const ivec none = x < -87.0f;
    vec n, series = reduced_exponential(larger((vec){0} - 87.0f, x), &n);
    return chosen(none, (vec){0}, series * power_of_two(__builtin_convertvector(n, ivec)));
}

static inline vec silu(vec x) { return x / (1.0f + exponential(-x)); }

/* y = x * weight / sqrt(mean(x^2) + epsilon); returns the factor of x * weight. */
static inline float normalize(const float *x, const float *weight, float *y, int64_t width, double epsilon) {
    vec squares = {0};
    FOR_EACH_VECTOR(width, squares += load_some(x + i, lanes) * load_some(x + i, lanes))
    const float scale = 1 / sqrtf(sum_of(squares) / (float)width + (float)epsilon);
    FOR_EACH_VECTOR(width, store_some(y + i, load_some(x + i, lanes) * scale * load_some(weight + i, lanes), lanes))
    return scale;
}
