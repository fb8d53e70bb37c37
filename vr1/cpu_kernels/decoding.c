/* A language model for one more token in every row, and the choice of tokens, for float32 on a CPU.

   Torch needs some thirty operators a layer for a token, and spends more time on calling them, and on waiting for the
   threads of each, than on computing. Here a token is one call. Shapes are those that decoding.py names:

   B prompts, P prompt tokens, W slots of a prompt, R rows, D hidden size, H query heads, K key and value heads, E head
   width, G = H / K queries of a row to one key head, F width of the feed-forward part, T capacity for own tokens, V
   vocabulary. */

#include "attention.h"
#include "products.h"

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
#endif

/* Of the vocabulary, as many tokens are summed at a time. */
enum { SAMPLED = 256 };

struct norm {
    const float *weight; /* NULL for none */
    double epsilon;
};

struct layer {
    struct norm attention_norm, query_norm, key_norm, mlp_norm;
    struct product qkv, output;    /* [(H + 2 * K) * E, D], [D, H * E] */
    struct product gate, up, down; /* [F, D], [F, D], [D, F] */
    double scaling;
    const float *prompt_keys, *prompt_values; /* [B * K, P / BLOCK rounded up, E, BLOCK], [B * K, P, E] */
    float *own_keys, *own_values;             /* [B * K * W, T / BLOCK, E, BLOCK], [B * K * W, T, E] */
};

struct network {
    const struct layer *layers;
    int64_t count, D, H, K, E;
    struct norm norm;
    struct product head; /* [V, D] */
};

struct rows {
    int64_t R, B, P, W, T, slot; /* The new token is stored at `slot`. */
    const int64_t *first_token; /* [B], the first token of each prompt that is no padding */
    const int64_t *row_of_slot; /* [B * W], the row that is stored in each slot; -1 for none */
    const float *cosine, *sine; /* [R, E], sine with its first half negated */
};

static inline int64_t in_vectors(int64_t rows) { return (rows + LANES - 1) / LANES * LANES; }

/* What a thread needs for the attention of `slots` slots of a prompt. */
static int64_t attention_size(const struct network *n, const struct rows *r, int64_t slots) {
    return n->E + slots * (n->H / n->K) * (2 * n->E + padded(r->P) + r->T + 1);
}

/* F, rounded up; the layers are of one shape. */
static int64_t feed_forward_width(const struct network *n) { return blocks_of(n->layers[0].gate.outputs) * OUTPUTS; }

/* How many floats `step` needs beside its arguments. */
int64_t scratch_size(const struct network *n, const struct rows *r, int64_t slots, int64_t threads) {
    const int64_t stride = in_vectors(r->R), D = blocks_of(n->D) * OUTPUTS;
    const int64_t shared = D + n->H * n->E + feed_forward_width(n) + (n->H + 2 * n->K) * n->E;
    return stride * shared + threads * (stride * D + attention_size(n, r, slots));
}

/* y = x * weight / sqrt(mean(x^2) + epsilon) of columns: [D, stride]. */
ONCE void normalize_columns(const float *x, const struct norm *norm, float *y, int64_t D, int64_t stride) {
    for (int64_t row = 0; row < stride; row += LANES) {
        vec squares[4] = {0}, scale;
        for (int64_t d = 0; d < D; d++) {
            const vec value = load(x + d * stride + row);
            squares[d % 4] += value * value;
        }
        const vec mean = ((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)D + (float)norm->epsilon;
        for (int lane = 0; lane < LANES; lane++) scale[lane] = 1 / sqrtf(mean[lane]);
        for (int64_t d = 0; d < D; d++)
            store(y + d * stride + row, load(x + d * stride + row) * scale * norm->weight[d]);
    }
}

/* A head of queries or keys, normalized where the model does so, then rotated. */
static void rotated(const float *x, const struct norm *norm, const struct rows *r, int64_t row, float *to, int64_t E,
                    float factor, float *normed) {
    if (norm->weight) {
        normalize(x, norm->weight, normed, E, norm->epsilon);
        x = normed;
    }
    rotate(x, r->cosine + row * E, r->sine + row * E, to, E, factor);
}

/* The attention of the new token of some slots of a prompt, to the prompt and to the row's own tokens, of which the new
   one is the last.

   heads     [R, H + 2 * K, E]; queries, keys and values, not rotated
   attended  [H * E, stride] */
ONCE void attend(const struct network *n, const struct layer *layer, const struct rows *r, const float *heads,
                 int64_t pair, int64_t first_slot, int64_t end_slot, float *scratch, float *attended, int64_t stride) {
    const int64_t H = n->H, K = n->K, E = n->E, G = H / K, W = r->W, T = r->T, tokens = r->slot + 1;
    const int64_t prompt = pair / K, kv_head = pair % K, first = r->first_token[prompt];
    const int64_t P_padded = padded(r->P), score_stride = P_padded + T, most = (end_slot - first_slot) * G;
    float *normed = scratch, *query = normed + E, *result = query + most * E, *sums = result + most * E;
    float *scores = sums + most;
    const float *values = layer->prompt_values + pair * r->P * E;
    int64_t queries = 0;
    for (int64_t place = first_slot; place < end_slot; place++) {
        const int64_t row = r->row_of_slot[prompt * W + place], sequence = pair * W + place;
        if (row < 0) continue;
        const float *own = heads + row * (H + 2 * K) * E;
        float *key = result; /* not used yet */
        for (int64_t g = 0; g < G; g++)
            rotated(own + (kv_head * G + g) * E, &layer->query_norm, r, row, query + (queries + g) * E, E,
                    (float)layer->scaling, normed);
        rotated(own + (H + kv_head) * E, &layer->key_norm, r, row, key, E, 1, normed);
        float *keys = layer->own_keys + sequence * E * T;
        float *place_of_key = keys + r->slot / BLOCK * BLOCK * E + r->slot % BLOCK;
        for (int64_t e = 0; e < E; e++) place_of_key[e * BLOCK] = key[e];
        memcpy(layer->own_values + (sequence * T + r->slot) * E, own + (H + K + kv_head) * E, E * sizeof(float));
        score(query + queries * E, G, keys, 0, tokens, E, scores + queries * score_stride + P_padded, score_stride);
        queries += G;
    }
    score(query, queries, layer->prompt_keys + pair * E * P_padded, first, r->P, E, scores, score_stride);
    for (int64_t q = 0; q < queries; q++) {
        float *mine = scores + q * score_stride;
        const float level = largest(mine + P_padded, 0, tokens, largest(mine, first, r->P, -INFINITY));
        sums[q] = exponentials(mine, first, r->P, level) + exponentials(mine + P_padded, 0, tokens, level);
    }
    memset(result, 0, queries * E * sizeof(float));
    add_values(scores + first, score_stride, queries, values + first * E, r->P - first, E, result);
    int64_t done = 0;
    for (int64_t place = first_slot; place < end_slot; place++) {
        const int64_t row = r->row_of_slot[prompt * W + place];
        if (row < 0) continue;
        add_values(scores + done * score_stride + P_padded, score_stride, G,
                   layer->own_values + (pair * W + place) * T * E, tokens, E, result + done * E);
        for (int64_t g = 0; g < G; g++, done++)
            for (int64_t e = 0; e < E; e++)
                attended[((kv_head * G + g) * E + e) * stride + row] = result[done * E + e] / sums[done];
    }
}

/* Logits [R, V] of states [R, D], which are the embeddings of the new tokens; stores their keys and values.

   `slots` slots of a prompt are a task of the attention. Each thread normalizes all rows for itself: for a few rows
   that takes less time than waiting for what others have computed. Results do not depend on the number of threads. */
void step(const struct network *n, const struct rows *r, const float *states, float *logits, float *scratch,
          int64_t slots, int64_t threads) {
    const int64_t stride = in_vectors(r->R), D = n->D, D_padded = blocks_of(D) * OUTPUTS;
    const int64_t width = (n->H + 2 * n->K) * n->E, blocks = (r->W + slots - 1) / slots;
    float *x = scratch, *attended = x + D_padded * stride, *gated = attended + n->H * n->E * stride;
    float *heads = gated + feed_forward_width(n) * stride, *of_threads = heads + width * stride;
    const int64_t of_thread = stride * D_padded + attention_size(n, r, slots);
#pragma omp parallel num_threads((int)threads)
    {
        float *normed = of_threads + omp_get_thread_num() * of_thread, *scores = normed + stride * D_padded;
#pragma omp for schedule(static)
        for (int64_t d = 0; d < D_padded; d++)
            for (int64_t row = 0; row < stride; row++)
                x[d * stride + row] = d < D && row < r->R ? states[row * D + d] : 0;
#pragma omp for schedule(static)
        for (int64_t d = 0; d < n->H * n->E; d++) memset(attended + d * stride, 0, stride * sizeof(float));
        for (const struct layer *layer = n->layers; layer < n->layers + n->count; layer++) {
            normalize_columns(x, &layer->attention_norm, normed, D, stride);
            FOR_EACH_TILE(&layer->qkv, normed, stride, store_rows(tile, &layer->qkv, block, row, r->R, heads))
#pragma omp for schedule(static)
            for (int64_t task = 0; task < r->B * n->K * blocks; task++) {
                const int64_t first = task % blocks * slots;
                attend(n, layer, r, heads, task / blocks, first, least(first + slots, r->W), scores, attended, stride);
            }
            FOR_EACH_TILE(&layer->output, attended, stride, add_tile(tile, block, row, vectors, x, stride))
            normalize_columns(x, &layer->mlp_norm, normed, D, stride);
            FOR_EACH_TILE(&layer->gate, normed, stride, {
                float up[OUTPUTS * TILE_ROWS];
                multiply(&layer->up, block, normed + row, stride, vectors, up);
                for (int o = 0; o < OUTPUTS; o++)
                    for (int v = 0; v < vectors; v++) {
                        const int64_t at = o * TILE_ROWS + v * LANES;
                        store(gated + (block * OUTPUTS + o) * stride + row + v * LANES,
                              silu(load(tile + at)) * load(up + at));
                    }
            })
            FOR_EACH_TILE(&layer->down, gated, stride, add_tile(tile, block, row, vectors, x, stride))
        }
        normalize_columns(x, &n->norm, normed, D, stride);
        FOR_EACH_TILE(&n->head, normed, stride, store_rows(tile, &n->head, block, row, r->R, logits))
    }
}

/* Packs a weight [outputs, inputs], as products.h describes; outputs beyond the last are 0. As many inputs as fill a
   line of the cache are copied at a time. */
void pack(const float *weight, float *packed, int64_t outputs, int64_t inputs, int64_t threads) {
    enum { LINE = 16 };
#pragma omp parallel for num_threads((int)threads) schedule(static) if (threads > 1)
    for (int64_t block = 0; block < blocks_of(outputs); block++) {
        const int64_t first = block * OUTPUTS, count = least(OUTPUTS, outputs - first);
        float lines[OUTPUTS][LINE] = {{0}};
        for (int64_t start = 0; start < inputs; start += LINE) {
            const int64_t size = least(LINE, inputs - start);
            for (int64_t o = 0; o < count; o++)
                memcpy(lines[o], weight + (first + o) * inputs + start, (size_t)size * sizeof(float));
            float *to = packed + (block * inputs + start) * OUTPUTS;
            for (int64_t i = 0; i < size; i++)
                for (int64_t o = 0; o < OUTPUTS; o++) to[i * OUTPUTS + o] = lines[o][i];
        }
    }
}

/* Exponentials of (x - level) * factor for up to SAMPLED tokens, 0 where they are below e^-87; returns their sum. */
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

/* Draws the first token whose cumulative probability is above a uniform number, and its log-probability; 0 and NaN for
   logits with a NaN, with an infinite one, or without any finite one. First the block of tokens is found in which the
   sum is reached, then the token. `weight` [V] and `sum` [V / SAMPLED rounded up] are for intermediate values. */
static int64_t draw(const float *logits, double uniform, int64_t V, double temperature, float *weight, double *sum,
                    float *log_prob) {
    const int64_t blocks = (V + SAMPLED - 1) / SAMPLED;
    const float level = largest(logits, 0, V, -INFINITY);
    double total = 0;
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t first = block * SAMPLED;
        sum[block] = weigh(logits + first, least(SAMPLED, V - first), level, (float)(1 / temperature), weight + first);
        total += sum[block];
    }
    double left = uniform * total;
    int64_t block = 0;
    while (block < blocks - 1 && sum[block] <= left) left -= sum[block++];
    /* Sums of another order, and differences, may end a little off: the last token that has any probability. With a
       total that is NaN, none is found. */
    int64_t found = -1;
    double reached = 0;
    for (int64_t i = block * SAMPLED; i < least(V, (block + 1) * SAMPLED) && reached <= left; i++) {
        reached += weight[i];
        if (weight[i] > 0) found = i;
    }
    for (int64_t i = block * SAMPLED - 1; found < 0 && i >= 0; i--)
        if (weight[i] > 0) found = i;
    const int64_t token = found < 0 ? 0 : found;
    *log_prob = (float)log(weight[token] / total);
    return token;
}

/* What has been sampled of R rows, of C tokens at most. */
struct sampled {
    int64_t R, C, forbidden_count, end_count;
    const int64_t *forbidden, *ends; /* tokens that are never sampled, and those that end a row */
    const double *uniform;           /* [R, C] in [0, 1) */
    int64_t *count;                  /* [1], tokens of each row so far */
    int64_t *tokens, *lengths;       /* [R, C], [R] */
    float *log_probs;                /* [R, C] */
    int64_t *latest, *position;      /* [R] */
    uint8_t *running;                /* [R] */
    double temperature;
};

/* Samples the next token of each row by its logits [R, V], which are changed; `weights` [R, V] and `sums`
   [R, V / SAMPLED rounded up] are for intermediate values. A row that has ended gets the first of `ends`. */
void sample(const struct sampled *s, float *logits, int64_t V, float *weights, double *sums, int64_t threads) {
    const int64_t blocks = (V + SAMPLED - 1) / SAMPLED, C = s->C, count = *s->count;
#pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (int64_t row = 0; row < s->R; row++) {
        float *own = logits + row * V, log_prob;
        for (int64_t i = 0; i < s->forbidden_count; i++)
            if (s->forbidden[i] >= 0 && s->forbidden[i] < V) own[s->forbidden[i]] = -INFINITY;
        const int64_t token = draw(own, s->uniform[row * C + count], V, s->temperature, weights + row * V,
                                   sums + row * blocks, &log_prob);
        const int is_running = s->running[row];
        s->tokens[row * C + count] = is_running ? token : s->ends[0];
        s->log_probs[row * C + count] = is_running ? log_prob : 0;
        s->lengths[row] += is_running;
        for (int64_t i = 0; i < s->end_count; i++)
            if (token == s->ends[i]) s->running[row] = 0;
        s->latest[row] = token;
        s->position[row]++;
    }
    ++*s->count;
}
