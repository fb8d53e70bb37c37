/* What a decoding step computes beside its matrix products, for float32 on a CPU.

   Torch needs some thirty operators a layer for it, and spends more time on calling them than on computing. These
   functions are called with addresses of contiguous float32 tensors; shapes are those that decoding.py names:

   B prompts, P prompt tokens, W slots of a prompt, R rows, H query heads, K key and value heads, E head width,
   G = H / K queries of a row to one key head, T capacity for own tokens. */

#include "vectors.h"

enum { TILE = 4, BLOCK = 256 };

/* output = x * weight / sqrt(mean(x^2) + epsilon), for each of some rows of `width` values. */
void rms_norm(const float *states, const float *weight, float *output, int64_t rows, int64_t width, double epsilon) {
    for (int64_t row = 0; row < rows; row++)
        normalize(states + row * width, weight, output + row * width, width, epsilon);
}

/* output = gate / (1 + e^-gate) * up, for each of some rows of `width` values. */
void gated(const float *gate, int64_t gate_stride, const float *up, int64_t up_stride, float *output, int64_t rows,
           int64_t width, int64_t threads) {
#pragma omp parallel for num_threads((int)threads) if (threads > 1 && rows * width > 8192)
    for (int64_t row = 0; row < rows; row++) {
        const float *g = gate + row * gate_stride, *u = up + row * up_stride;
        float *y = output + row * width;
        FOR_EACH_VECTOR(width, store_some(y + i, silu(load_some(g + i, lanes)) * load_some(u + i, lanes), lanes))
    }
}

/* Scores of `count` queries with 2 * LANES consecutive keys; keys are stored as [E, key_stride]. */
static inline __attribute__((always_inline)) void score_tile(const int count, const float *query, const float *keys,
                                                             int64_t key_stride, int64_t E, float *scores,
                                                             int64_t score_stride) {
    vec low[TILE] = {0}, high[TILE] = {0};
    for (int64_t e = 0; e < E; e++) {
        vec first = load(keys + e * key_stride), second = load(keys + e * key_stride + LANES);
        for (int q = 0; q < count; q++) {
            low[q] += first * query[q * E + e];
            high[q] += second * query[q * E + e];
        }
    }
    for (int q = 0; q < count; q++) {
        store(scores + q * score_stride, low[q]);
        store(scores + q * score_stride + LANES, high[q]);
    }
}

/* Adds the weighted values of `tokens` tokens to 2 * LANES entries of the results of `count` queries. */
static inline __attribute__((always_inline)) void value_tile(const int count, const float *weights,
                                                             int64_t weight_stride, const float *values, int64_t E,
                                                             int64_t tokens, float *result) {
    vec low[TILE], high[TILE];
    for (int q = 0; q < count; q++) {
        low[q] = load(result + q * E);
        high[q] = load(result + q * E + LANES);
    }
    for (int64_t token = 0; token < tokens; token++) {
        vec first = load(values + token * E), second = load(values + token * E + LANES);
        for (int q = 0; q < count; q++) {
            float weight = weights[q * weight_stride + token];
            low[q] += first * weight;
            high[q] += second * weight;
        }
    }
    for (int q = 0; q < count; q++) {
        store(result + q * E, low[q]);
        store(result + q * E + LANES, high[q]);
    }
}

/* The number of queries of a tile as a constant, so that its sums stay in registers. */
#define FOR_EACH_COUNT(count, call)                                                                                    \
    switch (count) {                                                                                                   \
    case 1: { enum { N = 1 }; call; break; }                                                                           \
    case 2: { enum { N = 2 }; call; break; }                                                                           \
    case 3: { enum { N = 3 }; call; break; }                                                                           \
    default: { enum { N = TILE }; call; break; }                                                                       \
    }

static inline int64_t padded(int64_t tokens) { return (tokens + 2 * LANES - 1) / (2 * LANES) * (2 * LANES); }

/* Scores of `queries` queries with keys `first` to `last`; those of up to 15 more keys are computed beside. */
static void score(const float *query, int64_t queries, const float *keys, int64_t key_stride, int64_t first,
                  int64_t last, int64_t E, float *scores, int64_t score_stride) {
    for (int64_t key = first / (2 * LANES) * (2 * LANES); key < last; key += 2 * LANES)
        for (int64_t q = 0; q < queries; q += TILE)
            FOR_EACH_COUNT(queries - q, score_tile(N, query + q * E, keys + key, key_stride, E,
                                                   scores + q * score_stride + key, score_stride))
}

static void add_values(const float *weights, int64_t weight_stride, int64_t queries, const float *values, int64_t tokens,
                       int64_t E, float *result) {
    for (int64_t q = 0; q < queries; q += TILE)
        for (int64_t e = 0; e < E; e += 2 * LANES)
            FOR_EACH_COUNT(queries - q, value_tile(N, weights + q * weight_stride, weight_stride, values + e, E, tokens,
                                                   result + q * E + e))
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

/* The attention of one new token of each row to its prompt and to its own tokens, of which the new one is the last.

   heads          [R, H + 2 * K, E]; queries, keys and values, not rotated
   cosine, sine   [R, E], sine with its first half negated
   prompt_keys    [B * K, E, padded P], prompt_values [B * K, P, E]
   first_token    [B], the first token of each prompt that is no padding
   row_of_slot    [B * W], the row that is stored in each slot; -1 for none
   own_keys       [B * K * W, E, T], own_values [B * K * W, T, E]; the new token is stored at `slot`
   scratch        of scratch_size floats
   output         [R, H * E] */
void attend(const float *heads, const float *cosine, const float *sine, const float *prompt_keys,
            const float *prompt_values, const int64_t *first_token, const int64_t *row_of_slot, float *own_keys,
            float *own_values, float *scratch, float *output, int64_t B, int64_t P, int64_t W, int64_t H, int64_t K,
            int64_t E, int64_t T, int64_t slot, int64_t slots_at_a_time, double scaling, int64_t threads) {
    const int64_t G = H / K, tokens = slot + 1, P_padded = padded(P), score_stride = P_padded + T;
    const int64_t blocks = (W + slots_at_a_time - 1) / slots_at_a_time;
    const int64_t most = slots_at_a_time * G;
    const int64_t task_size = most * (2 * E + score_stride + 1);
#pragma omp parallel for num_threads((int)threads) schedule(static) if (threads > 1)
    for (int64_t task = 0; task < B * K * blocks; task++) {
        const int64_t pair = task / blocks, prompt = pair / K, kv_head = pair % K;
        const int64_t first_slot = task % blocks * slots_at_a_time, end = least(first_slot + slots_at_a_time, W);
        float *query = scratch + task * task_size, *result = query + most * E, *sums = result + most * E;
        float *scores = sums + most;
        const float *values = prompt_values + pair * P * E;
        const int64_t first = first_token[prompt];
        int64_t queries = 0;
        for (int64_t place = first_slot; place < end; place++) {
            const int64_t row = row_of_slot[prompt * W + place];
            if (row < 0) continue;
            const float *own = heads + row * (H + 2 * K) * E;
            for (int64_t g = 0; g < G; g++)
                rotate(own + (kv_head * G + g) * E, cosine + row * E, sine + row * E, query + (queries + g) * E, E,
                       (float)scaling);
            float *key = result; /* not used yet */
            rotate(own + (H + kv_head) * E, cosine + row * E, sine + row * E, key, E, 1);
            const int64_t sequence = pair * W + place;
            for (int64_t e = 0; e < E; e++) own_keys[(sequence * E + e) * T + slot] = key[e];
            memcpy(own_values + (sequence * T + slot) * E, own + (H + K + kv_head) * E, E * sizeof(float));
            score(query + queries * E, G, own_keys + sequence * E * T, T, 0, tokens, E,
                  scores + queries * score_stride + P_padded, score_stride);
            queries += G;
        }
        score(query, queries, prompt_keys + pair * E * P_padded, P_padded, first, P, E, scores, score_stride);
        for (int64_t q = 0; q < queries; q++) {
            float *mine = scores + q * score_stride;
            const float level = largest(mine + P_padded, 0, tokens, largest(mine, first, P, -INFINITY));
            sums[q] = exponentials(mine, first, P, level) + exponentials(mine + P_padded, 0, tokens, level);
        }
        memset(result, 0, queries * E * sizeof(float));
        add_values(scores + first, score_stride, queries, values + first * E, P - first, E, result);
        int64_t done = 0;
        for (int64_t place = first_slot; place < end; place++) {
            const int64_t row = row_of_slot[prompt * W + place];
            if (row < 0) continue;
            add_values(scores + done * score_stride + P_padded, score_stride, G,
                       own_values + (pair * W + place) * T * E, tokens, E, result + done * E);
            for (int64_t g = 0; g < G; g++, done++) {
                float *to = output + (row * H + kv_head * G + g) * E;
                for (int64_t e = 0; e < E; e++) to[e] = result[done * E + e] / sums[done];
            }
        }
    }
}

/* Exponentials of (x - level) * factor for up to BLOCK tokens, 0 where they are below e^-87; returns their sum. */
static double weigh(const float *x, int64_t size, float level, float factor, float *weights) {
    vec sums = {0};
    for (int64_t i = 0; i < size; i += LANES) {
        vec own = (vec){0} - INFINITY;
        if (i + LANES <= size) own = load(x + i);
        else memcpy(&own, x + i, (size - i) * sizeof(float));
        const vec value = exponential((own - level) * factor);
        if (i + LANES <= size) store(weights + i, value);
        else memcpy(weights + i, &value, (size - i) * sizeof(float));
        sums += value;
    }
    return sum_of(sums);
}

/* For each row the first token whose cumulative probability is above a uniform number, and its log-probability; 0 and
   NaN for a row with a NaN, with an infinite logit, or without any finite one. First the block of tokens is found in
   which the sum is reached, then the token.

   logits   [R, V], divided by the temperature here
   uniform  [R] in [0, 1)
   weights  [R, V] and sums [R, V / BLOCK rounded up], for intermediate values */
void sample(const float *logits, const double *uniform, float *weights, double *sums, int64_t *token, float *log_prob,
            int64_t R, int64_t V, double temperature, int64_t threads) {
    const int64_t blocks = (V + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (int64_t row = 0; row < R; row++) {
        const float *x = logits + row * V, level = largest(x, 0, V, -INFINITY);
        float *weight = weights + row * V;
        double *sum = sums + row * blocks, total = 0;
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * BLOCK;
            sum[block] = weigh(x + first, least(BLOCK, V - first), level, (float)(1 / temperature), weight + first);
            total += sum[block];
        }
        double left = uniform[row] * total;
        int64_t block = 0;
        while (block < blocks - 1 && sum[block] <= left) left -= sum[block++];
        /* Sums of another order, and differences, may end a little off: the last token that has any probability. With a
           total that is NaN, none is found. */
        int64_t found = -1;
        double reached = 0;
        for (int64_t i = block * BLOCK; i < least(V, (block + 1) * BLOCK) && reached <= left; i++) {
            reached += weight[i];
            if (weight[i] > 0) found = i;
        }
        for (int64_t i = block * BLOCK - 1; found < 0 && i >= 0; i--)
            if (weight[i] > 0) found = i;
        token[row] = found < 0 ? 0 : found;
        log_prob[row] = (float)log(weight[token[row]] / total);
    }
}
