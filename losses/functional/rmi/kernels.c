/* The CPU kernels of backend="compiled": what map_pass.py and moments.py do, in one sweep over each map.
 *
 * Plain C11, in parallel where it is compiled with OpenMP. `compiled.py` compiles this file for the machine it runs on, so loops are written for
 * the compiler to vectorise: no calls inside them, and sums that it may reorder are marked.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define RESTRICT restrict

/* ---- threads: items are handed out one by one ---- */

typedef void (*work_fn)(int64_t item, void *context);

/* OpenMP's threads are PyTorch's own (see compiled.py): others would compete with them, since they wait actively */
static void parallel(work_fn work, void *context, int64_t items, int64_t threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < items; item++) work(item, context);
}

/* ---- exp(-|x|) and log(1 + e), accurate to float rounding; NaN stays NaN ---- */

static inline float exp_minus_abs(float x) {
    float a = fabsf(x);
    a = a > 87.0f ? 87.0f : a; /* below that the result is 1e-38 anyway */
    float n = nearbyintf(a * -1.44269504f);
    float r = fmaf(n, -0.693145752f, -a);
    r = fmaf(n, -1.42860677e-6f, r);
    float y = 1.0f / 5040.0f;
    y = fmaf(y, r, 1.0f / 720.0f);
    y = fmaf(y, r, 1.0f / 120.0f);
    y = fmaf(y, r, 1.0f / 24.0f);
    y = fmaf(y, r, 1.0f / 6.0f);
    y = fmaf(y, r, 0.5f);
    y = fmaf(y, r, 1.0f);
    y = fmaf(y, r, 1.0f);
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return y * scale;
}

static inline float log_one_plus(float e) { /* e in [0, 1]: 2 artanh(s), s = e / (2 + e) <= 1/3 */
    float s = e / (2.0f + e), q = s * s;
    float y = 1.0f / 13.0f;
    y = fmaf(y, q, 1.0f / 11.0f);
    y = fmaf(y, q, 1.0f / 9.0f);
    y = fmaf(y, q, 1.0f / 7.0f);
    y = fmaf(y, q, 1.0f / 5.0f);
    y = fmaf(y, q, 1.0f / 3.0f);
    y = fmaf(y, q, 1.0f);
    return 2.0f * s * y;
}

/* ---- the pass over the scores ---- */

typedef struct {
    const float *logits;       /* (N, C, H, W) */
    const int16_t *labels;     /* (N, H, W), -1 where void */
    float *pooled;             /* (N, C, h, w), or NULL */
    int16_t *chosen;           /* (N, C, h, w): place of the largest in its window, or NULL for the mean */
    double *totals;            /* (N, C): summed binary cross entropy, or NULL */
    const float *grad_pooled;  /* backward */
    float *grad;               /* backward */
    float grad_total;          /* backward */
    int64_t classes, height, width, small_height, small_width, factor;
} maps_t;

static float row_cross_entropy(const float *RESTRICT x, const int16_t *RESTRICT labels, int16_t class, int64_t width) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) {
        float v = labels[i] == class ? -x[i] : x[i];
        float loss = (v < 0.0f ? 0.0f : v) + log_one_plus(exp_minus_abs(v));
        sum += labels[i] >= 0 ? loss : 0.0f;
    }
    return sum;
}

static void row_probs(const float *RESTRICT x, const int16_t *RESTRICT labels, float *RESTRICT probs, int64_t width) {
    for (int64_t i = 0; i < width; i++) {
        float e = exp_minus_abs(x[i]), inverse = 1.0f / (1.0f + e);
        float p = x[i] < 0.0f ? e * inverse : inverse;
        probs[i] = labels[i] >= 0 ? p : 0.0f;
    }
}

/* both at once, which shares the exponential */
static float row_both(
    const float *RESTRICT x, const int16_t *RESTRICT labels, int16_t class, float *RESTRICT probs, int64_t width) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) {
        float e = exp_minus_abs(x[i]), inverse = 1.0f / (1.0f + e);
        float p = x[i] < 0.0f ? e * inverse : inverse;
        float v = labels[i] == class ? -x[i] : x[i];
        float loss = (v < 0.0f ? 0.0f : v) + log_one_plus(e);
        probs[i] = labels[i] >= 0 ? p : 0.0f;
        sum += labels[i] >= 0 ? loss : 0.0f;
    }
    return sum;
}

static void finish_windows(const maps_t *m, float *row, const int16_t *row_place, int64_t item, int64_t window_row) {
    int64_t k = m->factor, padding = k / 2, offset = (item * m->small_height + window_row) * m->small_width;
    for (int64_t j = 0; j < m->small_width; j++) {
        int64_t from = j * k - padding, to = from + k;
        if (to > m->width) to = m->width;
        if (m->chosen == NULL) {
            float sum = 0.0f;
            for (int64_t i = from < 0 ? 0 : from; i < to; i++) sum += row[i];
            m->pooled[offset + j] = sum / (float)(k * k);
        } else {
            float largest = 0.0f; /* the value outside the map, and of void pixels */
            int64_t place = 0;
            for (int64_t i = from < 0 ? 0 : from; i < to; i++) {
                int better = (row[i] > largest) | (row[i] != row[i]); /* without a jump: it could not be foreseen */
                largest = better ? row[i] : largest;
                place = better ? row_place[i] * k + (i - from) : place;
            }
            m->pooled[offset + j] = largest;
            m->chosen[offset + j] = (int16_t)place;
        }
    }
}

static void forward_map(int64_t item, void *context) {
    const maps_t *m = context;
    int64_t k = m->factor, padding = k / 2, width = m->width;
    int16_t class = (int16_t)(item % m->classes);
    const float *x = m->logits + item * m->height * width;
    const int16_t *labels = m->labels + item / m->classes * m->height * width;
    float *probs = malloc((size_t)width * (sizeof(float) * 2 + sizeof(int16_t)));
    float *window = probs + width;
    int16_t *place = (int16_t *)(window + width);
    double total = 0.0;
    for (int64_t y = 0; y < m->height; y++, x += width, labels += width) {
        int64_t window_row = (y + padding) / k, within = (y + padding) % k;
        if (m->pooled == NULL || window_row >= m->small_height) {
            if (m->totals != NULL) total += (double)row_cross_entropy(x, labels, class, width);
            continue;
        }
        int first = within == 0 || y == 0;
        float *into = k == 1 ? m->pooled + (item * m->small_height + window_row) * width : first ? window : probs;
        if (m->totals != NULL)
            total += (double)row_both(x, labels, class, into, width);
        else
            row_probs(x, labels, into, width);
        if (k == 1) continue;
        if (first) {
            for (int64_t i = 0; i < width; i++) place[i] = (int16_t)within;
        } else if (m->chosen == NULL) {
            for (int64_t i = 0; i < width; i++) window[i] += probs[i];
        } else {
            for (int64_t i = 0; i < width; i++) {
                int better = (probs[i] > window[i]) | (probs[i] != probs[i]); /* NaN wins, and stays */
                window[i] = better ? probs[i] : window[i];
                place[i] = better ? (int16_t)within : place[i];
            }
        }
        if (within == k - 1 || y == m->height - 1) finish_windows(m, window, place, item, window_row);
    }
    free(probs);
    if (m->totals != NULL) m->totals[item] = total;
}

/* the gradient of the pooled maps laid over the k rows of pixels of a row of windows; all equal for the mean */
static void spread_windows(const maps_t *m, int64_t item, int64_t window_row, float *rows) {
    int64_t k = m->factor, padding = k / 2, offset = (item * m->small_height + window_row) * m->small_width;
    memset(rows, 0, sizeof(float) * (size_t)(m->width * (m->chosen == NULL ? 1 : k)));
    for (int64_t j = 0; j < m->small_width; j++) {
        float g = m->grad_pooled[offset + j];
        int64_t from = j * k - padding, to = from + k;
        if (m->chosen != NULL) {
            int64_t place = m->chosen[offset + j], column = from + place % k;
            /* a window of nothing but void pixels has chosen its corner, which may lie outside */
            if (column >= 0 && column < m->width) rows[place / k * m->width + column] = g;
            continue;
        }
        if (to > m->width) to = m->width;
        for (int64_t i = from < 0 ? 0 : from; i < to; i++) rows[i] = g / (float)(k * k);
    }
}

static void backward_map(int64_t item, void *context) {
    const maps_t *m = context;
    int64_t k = m->factor, padding = k / 2, width = m->width;
    int16_t class = (int16_t)(item % m->classes);
    const float *RESTRICT x = m->logits + item * m->height * width;
    const int16_t *RESTRICT labels = m->labels + item / m->classes * m->height * width;
    float *RESTRICT grad = m->grad + item * m->height * width;
    float *rows = malloc(sizeof(float) * (size_t)(width * (m->chosen == NULL ? 1 : k)));
    float pixel = m->grad_total;
    for (int64_t y = 0; y < m->height; y++, x += width, labels += width, grad += width) {
        int64_t window_row = (y + padding) / k, within = (y + padding) % k;
        if (m->grad_pooled == NULL || window_row >= m->small_height) {
            memset(rows, 0, sizeof(float) * (size_t)width);
            within = 0;
        } else if (within == 0 || y == 0) {
            spread_windows(m, item, window_row, rows);
        }
        const float *RESTRICT region = rows + (m->chosen == NULL ? 0 : within * width);
        for (int64_t i = 0; i < width; i++) {
            float e = exp_minus_abs(x[i]), inverse = 1.0f / (1.0f + e), small = e * inverse;
            float p = x[i] < 0.0f ? small : inverse, rest = x[i] < 0.0f ? inverse : small;
            float difference = labels[i] == class ? -rest : p;
            float g = fmaf(pixel, difference, region[i] * (small * inverse));
            grad[i] = labels[i] >= 0 ? g : 0.0f;
        }
    }
    free(rows);
}

void maps_forward(
    const float *logits, const int16_t *labels, float *pooled, int16_t *chosen, double *totals, int64_t images,
    int64_t classes, int64_t height, int64_t width, int64_t small_height, int64_t small_width, int64_t factor,
    int64_t threads) {
    maps_t maps = {logits, labels, pooled, chosen, totals, NULL, NULL, 0.0f,
                   classes, height, width, small_height, small_width, factor};
    parallel(forward_map, &maps, images * classes, threads);
}

void maps_backward(
    const float *logits, const int16_t *labels, int16_t *chosen, const float *grad_pooled, float *grad,
    float grad_total, int64_t images, int64_t classes, int64_t height, int64_t width, int64_t small_height,
    int64_t small_width, int64_t factor, int64_t threads) {
    maps_t maps = {logits, labels, NULL, chosen, NULL, grad_pooled, grad, grad_total,
                   classes, height, width, small_height, small_width, factor};
    parallel(backward_map, &maps, images * classes, threads);
}

/* ---- pooled labels ---- */

typedef struct {
    const int16_t *labels; /* (N, H, W) */
    float *pooled;         /* (N, C, h, w) */
    int64_t largest;       /* whether the largest and not the mean is wanted */
    int64_t classes, height, width, small_height, small_width, factor;
} labels_t;

static void pool_labels_of_image(int64_t item, void *context) {
    const labels_t *l = context;
    int64_t k = l->factor, padding = k / 2, size = l->small_height * l->small_width;
    float *out = l->pooled + item * l->classes * size, share = l->largest ? 1.0f : 1.0f / (float)(k * k);
    const int16_t *labels = l->labels + item * l->height * l->width;
    memset(out, 0, sizeof(float) * (size_t)(l->classes * size));
    for (int64_t y = 0; y < l->height; y++) {
        int64_t row = (y + padding) / k;
        if (row >= l->small_height) break;
        for (int64_t column = 0; column < l->small_width; column++) {
            int64_t from = column * k - padding, to = from + k;
            if (to > l->width) to = l->width;
            for (int64_t x = from < 0 ? 0 : from; x < to; x++) {
                int16_t class = labels[y * l->width + x];
                if (class >= 0) out[class * size + row * l->small_width + column] += 1.0f;
            }
        }
    }
    for (int64_t i = 0; i < l->classes * size; i++) out[i] = l->largest ? (out[i] > 0.0f ? 1.0f : 0.0f) : out[i] * share;
}

void pool_labels(
    const int16_t *labels, float *pooled, int64_t largest, int64_t images, int64_t classes, int64_t height,
    int64_t width, int64_t small_height, int64_t small_width, int64_t factor, int64_t threads) {
    labels_t pooling = {labels, pooled, largest, classes, height, width, small_height, small_width, factor};
    parallel(pool_labels_of_image, &pooling, images, threads);
}

/* ---- moments of regions: sums of lagged products ---- */

typedef struct {
    const float *labels, *probs; /* (M, h, w) */
    double *moments;             /* (M, 2d, 2d) */
    const double *weights;       /* backward: (M, d, 2d), gradient in P = weights [Y; P] */
    float *grad;                 /* backward: (M, h, w) */
    int64_t height, width, side;
} regions_t;

/* sums[s] = sum over i of a[i] b[i + s], for all shifts from `first` on; four at a time share the reading of a */
static void shifted_dots(
    const double *RESTRICT a, const double *RESTRICT b, int64_t n, int64_t first, int64_t shifts, double *sums) {
    int64_t s = first;
    for (; s + 3 < shifts; s += 4) {
        double s0 = 0.0, s1 = 0.0, s2 = 0.0, s3 = 0.0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t i = 0; i < n; i++) {
            s0 += a[i] * b[i + s], s1 += a[i] * b[i + s + 1];
            s2 += a[i] * b[i + s + 2], s3 += a[i] * b[i + s + 3];
        }
        sums[s] = s0, sums[s + 1] = s1, sums[s + 2] = s2, sums[s + 3] = s3;
    }
    for (; s + 1 < shifts; s += 2) {
        double s0 = 0.0, s1 = 0.0;
#pragma omp simd reduction(+ : s0, s1)
        for (int64_t i = 0; i < n; i++) s0 += a[i] * b[i + s], s1 += a[i] * b[i + s + 1];
        sums[s] = s0, sums[s + 1] = s1;
    }
    if (s < shifts) {
        double s0 = 0.0;
#pragma omp simd reduction(+ : s0)
        for (int64_t i = 0; i < n; i++) s0 += a[i] * b[i + s];
        sums[s] = s0;
    }
}

/* both maps in double, less their means, which keeps digits */
static void centre(const regions_t *r, int64_t item, double *out) {
    int64_t size = r->height * r->width;
    for (int j = 0; j < 2; j++, out += size) {
        const float *RESTRICT map = (j == 0 ? r->labels : r->probs) + item * size;
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) sum += (double)map[i];
        double mean = sum / (double)size;
        for (int64_t i = 0; i < size; i++) out[i] = (double)map[i] - mean;
    }
}

/* (2, R, R): for each map and offset the mean over all regions */
static void offset_means(const regions_t *r, const double *maps, double *means) {
    int64_t side = r->side, rows = r->height - side + 1, columns = r->width - side + 1;
    memset(means, 0, sizeof(double) * (size_t)(2 * side * side));
    for (int64_t j = 0; j < 2; j++)
        for (int64_t y = 0; y < r->height; y++) {
            const double *row = maps + (j * r->height + y) * r->width;
            double sum = 0.0;
#pragma omp simd reduction(+ : sum)
            for (int64_t x = 0; x < columns; x++) sum += row[x];
            for (int64_t dx = 0; dx < side; dx++) {
                if (dx > 0) sum += row[dx - 1 + columns] - row[dx - 1];
                for (int64_t dy = 0; dy < side; dy++)
                    if (y >= dy && y < dy + rows) means[(j * side + dy) * side + dx] += sum;
            }
        }
    for (int64_t i = 0; i < 2 * side * side; i++) means[i] /= (double)(rows * columns);
}

/* the moments of map j and map k for regions' rows ly apart, and columns lx >= 0 apart, or with `mirrored` -lx apart:
 * the entry of offsets (dy, dx) and (dy + ly, dx + lx) sums products of pixels (ly, lx) apart */
static void moments_of_rows(
    const regions_t *r, const double *maps, const double *means, int64_t j, int64_t k, int64_t ly, int mirrored,
    double *row_sums, double *out) {
    int64_t side = r->side, h = r->height, w = r->width, rows = h - side + 1, columns = w - side + 1, d = side * side;
    /* each pair is wanted once: of rows that are the same, lx = 0 of two maps in one order only, and lx < 0 not at all */
    int64_t first = mirrored || (ly == 0 && j > k) ? 1 : 0;
    for (int64_t y = 0; y + ly < h; y++) {
        const double *a = maps + (j * h + y) * w, *b = maps + (k * h + y + ly) * w;
        const double *fixed = mirrored ? b : a, *moved = mirrored ? a : b;
        double sums[64];
        shifted_dots(fixed, moved, columns, first, side, sums);
        for (int64_t shift = first; shift < side; shift++) {
            double sum = sums[shift];
            double *of_row = row_sums + (shift * h + y) * side;
            of_row[0] = sum;
            for (int64_t dx = 1; dx + shift < side; dx++) {
                sum += fixed[dx - 1 + columns] * moved[dx - 1 + columns + shift] - fixed[dx - 1] * moved[dx - 1 + shift];
                of_row[dx] = sum;
            }
        }
    }
    for (int64_t shift = first; shift < side; shift++)
        for (int64_t dx = 0; dx + shift < side; dx++) {
            const double *of_rows = row_sums + shift * h * side + dx;
            int64_t dx_j = mirrored ? dx + shift : dx, dx_k = mirrored ? dx : dx + shift;
            double sum = 0.0;
            for (int64_t y = 0; y < rows; y++) sum += of_rows[y * side];
            for (int64_t dy = 0; dy + ly < side; dy++) {
                if (dy > 0) sum += of_rows[(dy - 1 + rows) * side] - of_rows[(dy - 1) * side];
                int64_t one = j * d + dy * side + dx_j, two = k * d + (dy + ly) * side + dx_k;
                double value = sum - means[one] * means[two] * (double)(rows * columns);
                out[one * 2 * d + two] = value;
                out[two * 2 * d + one] = value;
            }
        }
}

static void moments_of_map(int64_t item, void *context) {
    const regions_t *r = context;
    int64_t side = r->side, d = side * side, size = r->height * r->width;
    double *maps = malloc(sizeof(double) * (size_t)(2 * size + 2 * d + side * r->height * side));
    double *means = maps + 2 * size, *row_sums = means + 2 * d;
    double *out = r->moments + item * 4 * d * d;
    centre(r, item, maps);
    offset_means(r, maps, means);
    for (int64_t j = 0; j < 2; j++)
        for (int64_t k = 0; k < 2; k++)
            for (int64_t ly = 0; ly < side; ly++) {
                moments_of_rows(r, maps, means, j, k, ly, 0, row_sums, out);
                if (ly > 0) moments_of_rows(r, maps, means, j, k, ly, 1, row_sums, out);
            }
    free(maps);
}

/* which offsets a row or column can have within a region that fits: low … high */
static void reach(int64_t position, int64_t regions, int64_t side, int64_t *low, int64_t *high) {
    *low = position - regions + 1 > 0 ? position - regions + 1 : 0;
    *high = position < side - 1 ? position : side - 1;
}

/* the taps of a filter: the weights of all offset pairs that are (ly, lx) apart, for offsets within reach */
static double make_filter(
    const double *weights, const double *means, int64_t side, const int64_t *reach_y, const int64_t *reach_x,
    double *taps) {
    int64_t d = side * side, span = 2 * side - 1;
    double constant = 0.0;
    memset(taps, 0, sizeof(double) * (size_t)(2 * span * span));
    for (int64_t dy = reach_y[0]; dy <= reach_y[1]; dy++)
        for (int64_t dx = reach_x[0]; dx <= reach_x[1]; dx++) {
            const double *row = weights + (dy * side + dx) * 2 * d;
            for (int64_t j = 0; j < 2; j++)
                for (int64_t ey = 0; ey < side; ey++)
                    for (int64_t ex = 0; ex < side; ex++) {
                        double weight = row[j * d + ey * side + ex];
                        taps[(j * span + ey - dy + side - 1) * span + ex - dx + side - 1] += weight;
                        constant += weight * means[j * d + ey * side + ex];
                    }
        }
    return constant;
}

static void filter_row(
    const regions_t *r, const double *maps, const double *taps, int64_t y, int64_t from, int64_t to,
    const int64_t *reach_y, const int64_t *reach_x, double *RESTRICT out) {
    int64_t side = r->side, span = 2 * side - 1;
    for (int64_t j = 0; j < 2; j++)
        for (int64_t ly = -reach_y[1]; ly <= side - 1 - reach_y[0]; ly++) {
            const double *row = maps + (j * r->height + y + ly) * r->width;
            const double *tap = taps + (j * span + ly + side - 1) * span + side - 1;
            int64_t lx = -reach_x[1], last = side - 1 - reach_x[0];
            /* several taps at once, so that `out` is read and written less often */
            for (; lx + 3 <= last; lx += 4) {
                double w0 = tap[lx], w1 = tap[lx + 1], w2 = tap[lx + 2], w3 = tap[lx + 3];
                const double *RESTRICT shifted = row + lx;
                for (int64_t x = from; x < to; x++)
                    out[x] += w0 * shifted[x] + w1 * shifted[x + 1] + (w2 * shifted[x + 2] + w3 * shifted[x + 3]);
            }
            for (; lx <= last; lx++) {
                double weight = tap[lx];
                const double *RESTRICT shifted = row + lx;
                for (int64_t x = from; x < to; x++) out[x] += weight * shifted[x];
            }
        }
}

static void moments_backward_of_map(int64_t item, void *context) {
    const regions_t *r = context;
    int64_t side = r->side, h = r->height, w = r->width, rows = h - side + 1, columns = w - side + 1;
    int64_t d = side * side, size = h * w, span = 2 * side - 1, filter = 2 * span * span;
    const double *weights = r->weights + item * 2 * d * d;
    /* columns come in stretches with the same reach: one each at the borders, one long one between */
    int64_t (*stretches)[4] = malloc(sizeof(int64_t[4]) * (size_t)w);
    int64_t count = 0;
    for (int64_t x = 0; x < w; x++) {
        int64_t low, high;
        reach(x, columns, side, &low, &high);
        if (count > 0 && stretches[count - 1][2] == low && stretches[count - 1][3] == high)
            stretches[count - 1][1] = x + 1;
        else
            stretches[count][0] = x, stretches[count][1] = x + 1, stretches[count][2] = low,
            stretches[count][3] = high, count++;
    }
    double *maps = malloc(sizeof(double) * (size_t)(2 * size + 2 * d + w + count * (filter + 1)));
    double *means = maps + 2 * size, *line = means + 2 * d, *filters = line + w, *constants = filters + count * filter;
    centre(r, item, maps);
    offset_means(r, maps, means);
    int64_t before[2] = {-1, -1};
    for (int64_t y = 0; y < h; y++) {
        int64_t reach_y[2];
        reach(y, rows, side, &reach_y[0], &reach_y[1]);
        if (reach_y[0] != before[0] || reach_y[1] != before[1])
            for (int64_t s = 0; s < count; s++)
                constants[s] = make_filter(weights, means, side, reach_y, &stretches[s][2], filters + s * filter);
        before[0] = reach_y[0], before[1] = reach_y[1];
        for (int64_t s = 0; s < count; s++) {
            for (int64_t x = stretches[s][0]; x < stretches[s][1]; x++) line[x] = -constants[s];
            filter_row(r, maps, filters + s * filter, y, stretches[s][0], stretches[s][1], reach_y, &stretches[s][2],
                       line);
        }
        for (int64_t x = 0; x < w; x++) r->grad[item * size + y * w + x] = (float)line[x];
    }
    free(maps);
    free(stretches);
}

void regions_moments(
    const float *labels, const float *probs, double *moments, int64_t maps, int64_t height, int64_t width,
    int64_t side, int64_t threads) {
    regions_t regions = {labels, probs, moments, NULL, NULL, height, width, side};
    parallel(moments_of_map, &regions, maps, threads);
}

void regions_backward(
    const double *weights, const float *labels, const float *probs, float *grad, int64_t maps, int64_t height,
    int64_t width, int64_t side, int64_t threads) {
    regions_t regions = {labels, probs, NULL, weights, grad, height, width, side};
    parallel(moments_backward_of_map, &regions, maps, threads);
}

/* ---- the bound from the moments ---- */

typedef struct {
    const double *moments; /* (M, 2d, 2d) */
    double *bound;         /* (M) */
    double *weights;       /* (M, d, 2d): gradient of the bound times d in P = weights [Y; P], or NULL */
    uint8_t *failed;       /* (M): whether a matrix was not positive definite; then the rest is not to be used */
    double scale, ridge;
    int64_t d;
} bounds_t;

/* the lower Cholesky factor in place; 0 where a pivot is not positive, NaN included */
static int factorise(double *a, int64_t d) {
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j <= i; j++) {
            double sum = a[i * d + j];
#pragma omp simd reduction(- : sum)
            for (int64_t k = 0; k < j; k++) sum -= a[i * d + k] * a[j * d + k];
            if (i > j)
                a[i * d + j] = sum / a[j * d + j];
            else if (sum > 0.0)
                a[i * d + i] = sqrt(sum);
            else
                return 0;
        }
    return 1;
}

/* right = L^-1 right, for all columns at once */
static void solve_lower(const double *RESTRICT factor, double *right, int64_t d) {
    for (int64_t i = 0; i < d; i++) {
        double *RESTRICT row = right + i * d;
        for (int64_t k = 0; k < i; k++)
            for (int64_t j = 0; j < d; j++) row[j] -= factor[i * d + k] * right[k * d + j];
        for (int64_t j = 0; j < d; j++) row[j] /= factor[i * d + i];
    }
}

/* right = L^-T right */
static void solve_upper(const double *RESTRICT factor, double *right, int64_t d) {
    for (int64_t i = d - 1; i >= 0; i--) {
        double *RESTRICT row = right + i * d;
        for (int64_t k = i + 1; k < d; k++)
            for (int64_t j = 0; j < d; j++) row[j] -= factor[k * d + i] * right[k * d + j];
        for (int64_t j = 0; j < d; j++) row[j] /= factor[i * d + i];
    }
}

/* as in bound.py: A = S_P + ridge = F F^T, half = F^-1 C^T, M = S_Y - half^T half + ridge = G G^T */
static void bound_of_map(int64_t item, void *context) {
    const bounds_t *b = context;
    int64_t d = b->d;
    const double *labels = b->moments + item * 4 * d * d, *cross = labels + d, *probs = labels + 2 * d * d + d;
    double *factor = malloc(sizeof(double) * (size_t)(4 * d * d));
    double *half = factor + d * d, *residual = half + d * d, *solved = residual + d * d;
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) {
            factor[i * d + j] = b->scale * probs[i * 2 * d + j] + (i == j ? b->ridge : 0.0);
            residual[i * d + j] = b->scale * labels[i * 2 * d + j] + (i == j ? b->ridge : 0.0);
            half[i * d + j] = b->scale * cross[j * 2 * d + i];
        }
    int definite = factorise(factor, d);
    if (definite) {
        solve_lower(factor, half, d);
        for (int64_t k = 0; k < d; k++)
            for (int64_t i = 0; i < d; i++)
                for (int64_t j = 0; j < d; j++) residual[i * d + j] -= half[k * d + i] * half[k * d + j];
        definite = factorise(residual, d);
    }
    b->failed[item] = !definite;
    double sum = 0.0;
    for (int64_t i = 0; definite && i < d; i++) sum -= log(residual[i * d + i]);
    b->bound[item] = sum / (double)d;
    if (definite && b->weights != NULL) {
        double *weights = b->weights + item * 2 * d * d;
        solve_upper(factor, half, d); /* W^T, W = C A^-1 */
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j < d; j++) solved[i * d + j] = half[j * d + i];
        solve_lower(residual, solved, d);
        solve_upper(residual, solved, d); /* M^-1 W, the transpose of what Y is multiplied with */
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j < d; j++) {
                double product = 0.0;
                for (int64_t k = 0; k < d; k++) product += solved[k * d + i] * half[j * d + k];
                weights[i * 2 * d + j] = solved[j * d + i];
                weights[i * 2 * d + d + j] = -product;
            }
    }
    free(factor);
}

void regions_bound(
    const double *moments, double *bound, double *weights, uint8_t *failed, double scale, double ridge, int64_t maps,
    int64_t d, int64_t threads) {
    bounds_t bounds = {moments, bound, weights, failed, scale, ridge, d};
    parallel(bound_of_map, &bounds, maps, threads);
}
