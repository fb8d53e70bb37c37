/* Attention of completions to their prompts and to themselves, forward and backward, for float32 on a CPU.

   Torch's attention needs a padded row for each completion, with a copy of its prompt's keys and values, and computes
   the scores that the mask hides too. Here nothing is copied or padded. Queries are the lanes of vectors, so that a
   softmax is one operation for each key. Shapes are those that completion_attention.py names:

   B prompts, P prompt tokens, S completions, T their tokens in a row, H query heads, K key and value heads, G = H / K
   queries to one key head, E head width. */

#include "vectors.h"

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
#endif

/* Queries of a block; and the sums that a tile keeps in registers, of which a processor with longer vectors has more:
   ROWS of QUERY_VECTORS vectors, or WIDE_ROWS of WIDE_VECTORS. */
enum { QUERY_VECTORS = 3, QUERIES = QUERY_VECTORS * LANES, ROWS = LANES / 2 };
enum { WIDE_VECTORS = LANES / 4, WIDE_ROWS = 6 };
/* Arrays of constant size stay in registers. */
enum { MOST_ROWS = 8, MOST_VECTORS = 4 };

/* A tensor [batch, heads, tokens, E]: strides between floats, of which those of a token lie side by side. */
struct part {
    float *data;
    int64_t batch, head, token;
};

struct shape {
    int64_t B, P, S, T, H, K, E;
    const int64_t *first_token;  /* [B], the first token of each prompt that is no padding */
    const int64_t *prompt;       /* [S], which prompt a completion continues */
    const int64_t *first_of_row; /* [S + 1], the first token of each completion in the row, and T */
    int64_t longest;             /* tokens of the longest completion */
    double scaling;
};

struct inputs {
    struct part query;                      /* [1, H, T, E] */
    struct part prompt_keys, prompt_values; /* [B, K, P, E] */
    struct part keys, values;               /* [1, K, T, E] */
};

/* out[row][lane] = sum of a[row * a_row + i * a_step] * b[i][lane] over `count` values of i, or that is added. */
IN_EACH_CALL void tile(const int rows, const int vectors, const float *a, int64_t a_row, int64_t a_step, const float *b,
                       int64_t b_row, int64_t count, float *out, int64_t out_row, const int add) {
    vec sums[MOST_ROWS][MOST_VECTORS];
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int v = 0; v < vectors; v++) sums[r][v] = add ? load(out + r * out_row + v * LANES) : (vec){0};
    for (int64_t i = 0; i < count; i++) {
        vec lanes[MOST_VECTORS];
        UNROLLED for (int v = 0; v < vectors; v++) lanes[v] = load(b + i * b_row + v * LANES);
        UNROLLED for (int r = 0; r < rows; r++) {
            const float value = a[r * a_row + i * a_step];
            UNROLLED for (int v = 0; v < vectors; v++) sums[r][v] += lanes[v] * value;
        }
    }
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int v = 0; v < vectors; v++) store(out + r * out_row + v * LANES, sums[r][v]);
}

/* As `tile`, for any number of rows and a block of queries. */
ONCE void by_queries(int64_t rows, const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t count,
                     float *out, int add) {
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS)
        tile(ROWS, QUERY_VECTORS, a + r * a_row, a_row, a_step, b, QUERIES, count, out + r * QUERIES, QUERIES, add);
    for (; r < rows; r++)
        tile(1, QUERY_VECTORS, a + r * a_row, a_row, a_step, b, QUERIES, count, out + r * QUERIES, QUERIES, add);
}

/* As `tile`, for any number of rows of E lanes: out[row] += sum of a[row][query] * b[query] over queries. */
ONCE void by_width(int64_t rows, const float *a, const float *b, int64_t queries, int64_t E, float *out,
                   int64_t out_row) {
    int64_t r = 0;
    for (; r + WIDE_ROWS <= rows; r += WIDE_ROWS) {
        const float *from = a + r * QUERIES;
        float *to = out + r * out_row;
        int64_t e = 0;
        for (; e + WIDE_VECTORS * LANES <= E; e += WIDE_VECTORS * LANES)
            tile(WIDE_ROWS, WIDE_VECTORS, from, QUERIES, 1, b + e, E, queries, to + e, out_row, 1);
        for (; e < E; e += LANES) tile(WIDE_ROWS, 1, from, QUERIES, 1, b + e, E, queries, to + e, out_row, 1);
    }
    for (; r < rows; r++)
        for (int64_t e = 0; e < E; e += LANES)
            tile(1, 1, a + r * QUERIES, QUERIES, 1, b + e, E, queries, out + r * out_row + e, out_row, 1);
}

/* A block of the queries of a completion to a key head. Query i of them is that of token i / G, head i % G. */
struct block {
    int64_t kv_head, first, count; /* queries first to first + count */
    int64_t start, last;           /* the completion's first token in the row, and how many of its tokens are seen */
    int64_t prompt, skipped, seen; /* its prompt, padding before it, and tokens of it */
};

static struct block block_of(const struct shape *s, int64_t sequence, int64_t kv_head, int64_t number) {
    const int64_t G = s->H / s->K, start = s->first_of_row[sequence], end = s->first_of_row[sequence + 1];
    struct block b = {.kv_head = kv_head, .first = number * QUERIES, .start = start, .prompt = s->prompt[sequence]};
    b.count = least(QUERIES, (end - start) * G - b.first);
    b.last = (b.first + b.count - 1) / G + 1;
    b.skipped = s->first_token[b.prompt];
    b.seen = s->P - b.skipped;
    return b;
}

static int64_t blocks_of(const struct shape *s, int64_t tokens) {
    return (tokens * (s->H / s->K) + QUERIES - 1) / QUERIES;
}

/* The row of query `i` of a block. */
static inline int64_t row_of(const struct shape *s, const struct block *b, const struct part *part, int64_t i) {
    const int64_t G = s->H / s->K, query = b->first + i;
    return (b->kv_head * G + query % G) * part->head + (b->start + query / G) * part->token;
}

/* Queries of a block, times a factor, as lanes [E, QUERIES], and as rows [QUERIES, E] unless `rows` is NULL. A block of
   fewer queries leaves anything in the other lanes, and nothing reads what is computed of them. */
static void read_queries(const struct shape *s, const struct block *b, const struct part *part, float factor,
                         float *lanes, float *rows) {
    for (int64_t i = 0; i < b->count; i++) {
        const float *from = part->data + row_of(s, b, part, i);
        for (int64_t e = 0; e < s->E; e++) lanes[e * QUERIES + i] = from[e] * factor;
        if (rows)
            for (int64_t e = 0; e < s->E; e++) rows[i * s->E + e] = from[e] * factor;
    }
}

static void write_queries(const struct shape *s, const struct block *b, const struct part *part, const float *lanes) {
    for (int64_t i = 0; i < b->count; i++) {
        float *to = part->data + row_of(s, b, part, i);
        for (int64_t e = 0; e < s->E; e++) to[e] = lanes[e * QUERIES + i];
    }
}

/* Where keys and values of a block begin. */
static inline float *of_prompt(const struct block *b, const struct part *part) {
    return part->data + b->prompt * part->batch + b->kv_head * part->head + b->skipped * part->token;
}
static inline float *own(const struct block *b, const struct part *part) {
    return part->data + b->kv_head * part->head + b->start * part->token;
}

/* products[key][query] of all keys, or of all values, that a block sees: those of the prompt, then its own. */
static void multiply(const struct shape *s, const struct block *b, const struct part *prompt, const struct part *row,
                     const float *lanes, float *products) {
    by_queries(b->seen, of_prompt(b, prompt), prompt->token, 1, lanes, s->E, products, 0);
    by_queries(b->last, own(b, row), row->token, 1, lanes, s->E, products + b->seen * QUERIES, 0);
}

/* sums[e][query] of weights[key][query] * values[key][e], with keys in place of values too. */
static void combine(const struct shape *s, const struct block *b, const struct part *prompt, const struct part *row,
                    const float *weights, float *sums) {
    by_queries(s->E, of_prompt(b, prompt), 1, prompt->token, weights, b->seen, sums, 0);
    by_queries(s->E, own(b, row), 1, row->token, weights + b->seen * QUERIES, b->last, sums, 1);
}

/* Hides own keys from queries of tokens before them. */
static void hide(const struct shape *s, const struct block *b, float *scores) {
    const int64_t G = s->H / s->K;
    for (int64_t key = b->first / G + 1; key < b->last; key++)
        for (int64_t i = 0; i < b->count && (b->first + i) / G < key; i++)
            scores[(b->seen + key) * QUERIES + i] = -INFINITY;
}

static int64_t queries_size(const struct shape *s) { return s->E * QUERIES; }
static int64_t scores_size(const struct shape *s) { return (s->P + s->longest) * QUERIES; }

/* How many floats a thread of `forward`, or of `backward`, needs beside its arguments; and all threads. */
static int64_t thread_size(const struct shape *s, int64_t backward) {
    return backward ? 5 * queries_size(s) + 2 * scores_size(s) : 2 * queries_size(s) + scores_size(s);
}
int64_t scratch_size(const struct shape *s, int64_t backward, int64_t threads) {
    return threads * thread_size(s, backward);
}

/* Strides of [T, H], a number for each query. */
static struct part of_queries(const struct shape *s) { return (struct part){.head = 1, .token = s->H}; }

/* output [1, H, T, E], and the logarithms [T, H] of the sums of the exponentials of scores. */
void forward(const struct shape *s, const struct inputs *in, const struct part *output, float *totals, float *scratch,
             int64_t threads) {
    const int64_t of_completion = blocks_of(s, s->longest), tasks = s->S * s->K * of_completion;
    const struct part numbers = of_queries(s);
#pragma omp parallel for num_threads((int)threads) schedule(dynamic) if (threads > 1)
    for (int64_t task = 0; task < tasks; task++) {
        const int64_t number = task % of_completion, pair = task / of_completion;
        const struct block b = block_of(s, pair / s->K, pair % s->K, number);
        if (b.count <= 0) continue;
        const int64_t keys = b.seen + b.last;
        float *query = scratch + omp_get_thread_num() * thread_size(s, 0);
        float *sums = query + queries_size(s), *scores = sums + queries_size(s);
        read_queries(s, &b, &in->query, (float)s->scaling, query, NULL);
        multiply(s, &b, &in->prompt_keys, &in->keys, query, scores);
        hide(s, &b, scores);
        float of_block[QUERIES];
        vec factors[QUERY_VECTORS];
        for (int v = 0; v < QUERY_VECTORS; v++) {
            vec highest = load(scores + v * LANES), sum = {0};
            for (int64_t key = 1; key < keys; key++)
                highest = larger(load(scores + key * QUERIES + v * LANES), highest);
            for (int64_t key = 0; key < keys; key++) {
                float *score = scores + key * QUERIES + v * LANES;
                const vec weight = exponential_below_1(load(score) - highest);
                sum += weight;
                store(score, weight);
            }
            factors[v] = 1.0f / sum;
            for (int lane = 0; lane < LANES; lane++) of_block[v * LANES + lane] = highest[lane] + logf(sum[lane]);
        }
        combine(s, &b, &in->prompt_values, &in->values, scores, sums);
        for (int64_t e = 0; e < s->E; e++)
            for (int v = 0; v < QUERY_VECTORS; v++) {
                float *sum = sums + e * QUERIES + v * LANES;
                store(sum, load(sum) * factors[v]);
            }
        write_queries(s, &b, output, sums);
        for (int64_t i = 0; i < b.count; i++) totals[row_of(s, &b, &numbers, i)] = of_block[i];
    }
}

/* Derivatives of the inputs, given that of the output. Those of the prompts are sums over their completions: what each
   completion adds is stored in `of_completions` [S, K, 2, P, E], and added in the completions' order, so that the sums
   do not depend on the number of threads. In `gradients`, prompt_keys and prompt_values are contiguous. */
void backward(const struct shape *s, const struct inputs *in, const float *totals, const struct part *of_output,
              const struct inputs *gradients, float *of_completions, float *scratch, int64_t threads) {
    const int64_t size = s->P * s->E, pairs = s->S * s->K;
    const struct part numbers = of_queries(s);
#pragma omp parallel num_threads((int)threads) if (threads > 1)
    {
        float *query = scratch + omp_get_thread_num() * thread_size(s, 1);
        float *query_rows = query + queries_size(s), *given = query_rows + queries_size(s);
        float *given_rows = given + queries_size(s), *sums = given_rows + queries_size(s);
        float *weights = sums + queries_size(s), *products = weights + scores_size(s);
#pragma omp for schedule(dynamic)
        for (int64_t pair = 0; pair < pairs; pair++) {
            const int64_t sequence = pair / s->K, kv_head = pair % s->K;
            const int64_t tokens = s->first_of_row[sequence + 1] - s->first_of_row[sequence];
            float *of_prompt_keys = of_completions + 2 * pair * size, *of_prompt_values = of_prompt_keys + size;
            memset(of_prompt_keys, 0, (size_t)(2 * size) * sizeof(float));
            for (int64_t number = 0; number < blocks_of(s, tokens); number++) {
                const struct block b = block_of(s, sequence, kv_head, number);
                float *of_keys = own(&b, &gradients->keys), *of_values = own(&b, &gradients->values);
                if (!number)
                    for (int64_t token = 0; token < tokens; token++) {
                        memset(of_keys + token * gradients->keys.token, 0, (size_t)s->E * sizeof(float));
                        memset(of_values + token * gradients->values.token, 0, (size_t)s->E * sizeof(float));
                    }
                const int64_t keys = b.seen + b.last, after = b.seen * QUERIES;
                read_queries(s, &b, &in->query, (float)s->scaling, query, query_rows);
                read_queries(s, &b, of_output, 1, given, given_rows);
                multiply(s, &b, &in->prompt_keys, &in->keys, query, weights);
                hide(s, &b, weights);
                multiply(s, &b, &in->prompt_values, &in->values, given, products);
                float of_block[QUERIES] = {0};
                for (int64_t i = 0; i < b.count; i++) of_block[i] = totals[row_of(s, &b, &numbers, i)];
                for (int v = 0; v < QUERY_VECTORS; v++) {
                    const vec total = load(of_block + v * LANES);
                    vec mean = {0};
                    for (int64_t key = 0; key < keys; key++) {
                        float *weight = weights + key * QUERIES + v * LANES;
                        const vec value = exponential_below_1(load(weight) - total);
                        store(weight, value);
                        mean += value * load(products + key * QUERIES + v * LANES);
                    }
                    for (int64_t key = 0; key < keys; key++) {
                        float *product = products + key * QUERIES + v * LANES;
                        store(product, load(weights + key * QUERIES + v * LANES) * (load(product) - mean));
                    }
                }
                combine(s, &b, &in->prompt_keys, &in->keys, products, sums);
                for (int64_t i = 0; i < queries_size(s); i += LANES)
                    store(sums + i, load(sums + i) * (float)s->scaling);
                write_queries(s, &b, &gradients->query, sums);
                const int64_t skipped = b.skipped * s->E;
                by_width(b.seen, weights, given_rows, b.count, s->E, of_prompt_values + skipped, s->E);
                by_width(b.last, weights + after, given_rows, b.count, s->E, of_values, gradients->values.token);
                by_width(b.seen, products, query_rows, b.count, s->E, of_prompt_keys + skipped, s->E);
                by_width(b.last, products + after, query_rows, b.count, s->E, of_keys, gradients->keys.token);
            }
        }
#pragma omp for schedule(static)
        for (int64_t place = 0; place < s->B * s->K * s->P; place++) {
            const int64_t pair = place / s->P, prompt = pair / s->K, at = place % s->P * s->E;
            float *of_keys = gradients->prompt_keys.data + place * s->E;
            float *of_values = gradients->prompt_values.data + place * s->E;
            memset(of_keys, 0, (size_t)s->E * sizeof(float));
            memset(of_values, 0, (size_t)s->E * sizeof(float));
            for (int64_t sequence = 0; sequence < s->S; sequence++) {
                if (s->prompt[sequence] != prompt) continue;
                const float *more_keys = of_completions + 2 * (sequence * s->K + pair % s->K) * size + at;
                const float *more_values = more_keys + size;
                for (int64_t e = 0; e < s->E; e += LANES) {
                    store(of_keys + e, load(of_keys + e) + load(more_keys + e));
                    store(of_values + e, load(of_values + e) + load(more_values + e));
                }
            }
        }
    }
}
