/* What training computes beside its matrix products and attention, forward and backward, for float32 on a CPU.

   Each function reads and writes memory once, where torch's operators take several passes. They are called with
   addresses of float32 tensors, contiguous unless a stride is given; shapes are those that training.py names. No result
   depends on the number of threads. */

#include "vectors.h"

/* Fewer values than these are not worth a second thread. */
enum { BLOCK = 4096, ALONE = 4 * BLOCK };

/* output = silu(gate) * up; it may be the memory of one of them. */
void gated(const float *gate, const float *up, float *output, int64_t count, int64_t threads) {
#pragma omp parallel for num_threads((int)threads) if (threads > 1 && count > ALONE)
    for (int64_t start = 0; start < count; start += BLOCK) {
        const float *g = gate + start, *u = up + start;
        float *y = output + start;
        FOR_EACH_VECTOR(least(BLOCK, count - start),
                        store_some(y + i, silu(load_some(g + i, lanes)) * load_some(u + i, lanes), lanes))
    }
}

/* Derivatives of silu(gate) * up, times `gradient`. */
void gated_backward(const float *gradient, const float *gate, const float *up, float *of_gate, float *of_up,
                    int64_t count, int64_t threads) {
#pragma omp parallel for num_threads((int)threads) if (threads > 1 && count > ALONE)
    for (int64_t start = 0; start < count; start += BLOCK) {
        FOR_EACH_VECTOR(least(BLOCK, count - start), {
            const int64_t at = start + i;
            vec d = load_some(gradient + at, lanes), g = load_some(gate + at, lanes), u = load_some(up + at, lanes);
            vec sigmoid = 1.0f / (1.0f + exponential(-g));
            store_some(of_gate + at, d * u * sigmoid * (1.0f + g * (1.0f - sigmoid)), lanes);
            store_some(of_up + at, d * (g * sigmoid), lanes);
        })
    }
}

/* output = x * weight * scale for each row, with scale = 1 / sqrt(mean(x^2) + epsilon), which is stored. */
void rms_norm(const float *states, const float *weight, float *output, float *scales, int64_t rows, int64_t width,
              double epsilon, int64_t threads) {
#pragma omp parallel for num_threads((int)threads) if (threads > 1 && rows * width > ALONE)
    for (int64_t row = 0; row < rows; row++)
        scales[row] = normalize(states + row * width, weight, output + row * width, width, epsilon);
}

/* With n = x * scale, the gradient of states is (gradient * weight - n * mean(gradient * weight * n)) * scale, and that
   of the weight is the sum of gradient * n over rows, here over each `rows_of_sum` of them. Either may be NULL. */
void rms_norm_backward(const float *gradient, const float *states, const float *weight, const float *scales,
                       float *of_states, float *of_weight, int64_t rows, int64_t width, int64_t rows_of_sum,
                       int64_t threads) {
#pragma omp parallel for num_threads((int)threads) if (threads > 1 && rows * width > ALONE)
    for (int64_t first = 0; first < rows; first += rows_of_sum) {
        float *sums = of_weight ? of_weight + first / rows_of_sum * width : NULL;
        if (sums) memset(sums, 0, (size_t)width * sizeof(float));
        for (int64_t row = first; row < least(first + rows_of_sum, rows); row++) {
            const float *d = gradient + row * width, *x = states + row * width;
            const float scale = scales[row];
            vec products = {0};
            FOR_EACH_VECTOR(width, {
                vec along = load_some(d + i, lanes) * (load_some(x + i, lanes) * scale);
                products += along * load_some(weight + i, lanes);
                if (sums) store_some(sums + i, load_some(sums + i, lanes) + along, lanes);
            })
            if (!of_states) continue;
            float *y = of_states + row * width;
            const float mean = sum_of(products) / (float)width;
            FOR_EACH_VECTOR(width, {
                vec n = load_some(x + i, lanes) * scale;
                vec weighted = load_some(d + i, lanes) * load_some(weight + i, lanes);
                store_some(y + i, (weighted - n * mean) * scale, lanes);
            })
        }
    }
}

/* output = x * cosine + (-second half, first half of x) * sine for each head, or the same backwards: its transpose.

   x              [rows, heads, width], a row every `stride` values
   cosine, sine   [rows, width], with an even width */
void rotate(const float *x, int64_t stride, const float *cosine, const float *sine, float *output, int64_t rows,
            int64_t heads, int64_t width, int64_t backwards, int64_t threads) {
    const int64_t half = width / 2;
    const float sign = backwards ? -1 : 1;
#pragma omp parallel for num_threads((int)threads) if (threads > 1 && rows * heads * width > ALONE)
    for (int64_t row = 0; row < rows; row++) {
        const float *c = cosine + row * width, *s = sine + row * width;
        /* What the second half is multiplied with for the first one, and the other way round. */
        const float *to_first = backwards ? s + half : s, *to_second = backwards ? s : s + half;
        for (int64_t head = 0; head < heads; head++) {
            const float *a = x + row * stride + head * width, *b = a + half;
            float *y = output + (row * heads + head) * width;
            FOR_EACH_VECTOR(half, {
                vec first = load_some(a + i, lanes), second = load_some(b + i, lanes);
                vec added = first * load_some(to_second + i, lanes), taken = second * load_some(to_first + i, lanes);
                store_some(y + i, first * load_some(c + i, lanes) - taken * sign, lanes);
                store_some(y + half + i, second * load_some(c + half + i, lanes) + added * sign, lanes);
            })
        }
    }
}

/* totals = log(sum(e^x)) of each row. */
void logsumexp(const float *x, float *totals, int64_t rows, int64_t width, int64_t threads) {
#pragma omp parallel for num_threads((int)threads) if (threads > 1 && rows * width > ALONE)
    for (int64_t row = 0; row < rows; row++) {
        const float *own = x + row * width;
        vec highest = (vec){0} - INFINITY;
        FOR_EACH_VECTOR(width, highest = larger(load_or(own + i, lanes, -INFINITY), highest))
        float level = -INFINITY;
        for (int lane = 0; lane < LANES; lane++) level = highest[lane] > level ? highest[lane] : level;
        /* Infinity less infinity would be no number. */
        const float shift = isinf(level) ? 0 : level;
        double sum = 0;
        for (int64_t start = 0; start < width; start += BLOCK) {
            vec sums = {0};
            FOR_EACH_VECTOR(least(BLOCK, width - start),
                            sums += exponential(load_or(own + start + i, lanes, -INFINITY) - shift))
            sum += sum_of(sums);
        }
        totals[row] = (float)(shift + log(sum));
    }
}

/* entropies = -sum(e^(x - total) * (x - total)) of each row. */
void entropy(const float *x, const float *totals, float *entropies, int64_t rows, int64_t width, int64_t threads) {
#pragma omp parallel for num_threads((int)threads) if (threads > 1 && rows * width > ALONE)
    for (int64_t row = 0; row < rows; row++) {
        double sum = 0;
        for (int64_t start = 0; start < width; start += BLOCK) {
            const float *own = x + row * width + start;
            vec sums = {0};
            FOR_EACH_VECTOR(least(BLOCK, width - start), {
                vec log_prob = load_or(own + i, lanes, totals[row]) - totals[row];
                sums += exponential(log_prob) * log_prob;
            })
            sum += sum_of(sums);
        }
        entropies[row] = (float)-sum;
    }
}

/* output = e^(x - total) * factor for each row. */
void scaled_softmax(const float *x, const float *totals, const float *factors, float *output, int64_t rows,
                    int64_t width, int64_t threads) {
#pragma omp parallel for num_threads((int)threads) if (threads > 1 && rows * width > ALONE)
    for (int64_t row = 0; row < rows; row++) {
        const float *own = x + row * width;
        float *y = output + row * width;
        FOR_EACH_VECTOR(width, store_some(y + i, exponential(load_some(own + i, lanes) - totals[row]) * factors[row],
                                          lanes))
    }
}
