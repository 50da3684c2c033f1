/* The operators of losses/ops/operators.py on a CPU: each does its work in one sweep over each plane of H x W pixels.
 *
 * Plain C11, in parallel where it is compiled with OpenMP. `library.py` compiles this file for the machine it runs on,
 * so loops are written for the compiler to vectorise: no calls inside them, and sums that it may reorder are marked.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define RESTRICT restrict
/* so that what is constant in a call is decided when it is compiled */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* ---- threads: items are handed out one by one ---- */

typedef void (*work_fn)(int64_t item, void *context);

/* OpenMP's threads are PyTorch's own (see library.py): others would compete with them, since they wait actively */
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

/* e in [0, 1]: a polynomial of the least relative error, 5e-9, since a division would take longer than it all */
static inline float log_one_plus(float e) {
    float y = -0.00324402579f;
    y = fmaf(y, e, 0.0198514651f);
    y = fmaf(y, e, -0.0569595394f);
    y = fmaf(y, e, 0.106036554f);
    y = fmaf(y, e, -0.153055929f);
    y = fmaf(y, e, 0.196759394f);
    y = fmaf(y, e, -0.249541337f);
    y = fmaf(y, e, 0.333299624f);
    y = fmaf(y, e, -0.499999024f);
    y = fmaf(y, e, 0.999999995f);
    return e * y;
}

/* ---- binary cross entropy and pooling ---- */

typedef struct {
    const float *logits;       /* (N, C, H, W) */
    const int16_t *target;     /* (N, H, W) classes, -1 where void; or multi-hot (N, C, H, W) */
    float *pooled;             /* (N, C, h, w), or NULL */
    float *pooled_target;      /* (N, C, h, w), or NULL where windows are single pixels */
    int32_t *indices;          /* (N, C, h, w): pixel of the largest in its window, or NULL for the mean */
    double *totals;            /* (N, C): summed binary cross entropy, or NULL */
    const float *grad_pooled;  /* backward */
    float *grad;               /* backward */
    float grad_total;          /* backward */
    int64_t multi_hot, classes, height, width, pooled_height, pooled_width, factor;
} pool_t;

/* the labels of a plane, and the label that stands for its class */
static const int16_t *labels_of_plane(const pool_t *m, int64_t item, int16_t *class) {
    *class = m->multi_hot ? 1 : (int16_t)(item % m->classes);
    return m->target + (m->multi_hot ? item : item / m->classes) * m->height * m->width;
}

/* probabilities of a row of pixels, 0 where void, and the returned sum of their cross entropies, both if wanted */
ALWAYS_INLINE float sweep_row(
    const float *RESTRICT x, const int16_t *RESTRICT labels, int16_t class, float *RESTRICT probs, int64_t width,
    const int with_probs, const int with_loss) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) {
        float e = exp_minus_abs(x[i]);
        if (with_probs) {
            float inverse = 1.0f / (1.0f + e), p = x[i] < 0.0f ? e * inverse : inverse;
            probs[i] = labels[i] >= 0 ? p : 0.0f;
        }
        if (with_loss) {
            float v = labels[i] == class ? -x[i] : x[i];
            float loss = (v < 0.0f ? 0.0f : v) + log_one_plus(e);
            sum += labels[i] >= 0 ? loss : 0.0f;
        }
    }
    return sum;
}

/* from the sums or largest values of the columns of a row of windows, and their pixels of the class, to the windows */
static void finish_windows(
    const pool_t *m, const float *column, const int32_t *index, const int16_t *hits, int64_t item, int64_t window_row) {
    int64_t k = m->factor, padding = k / 2, offset = (item * m->pooled_height + window_row) * m->pooled_width;
    for (int64_t j = 0; j < m->pooled_width; j++) {
        int64_t from = j * k - padding, to = from + k;
        if (to > m->width) to = m->width;
        if (from < 0) from = 0;
        int32_t hit = 0;
        if (m->indices == NULL) {
            float sum = 0.0f;
            for (int64_t i = from; i < to; i++) sum += column[i], hit += hits[i];
            m->pooled[offset + j] = sum / (float)(k * k);
            m->pooled_target[offset + j] = (float)hit / (float)(k * k);
        } else {
            float largest = column[from];
            int32_t chosen = index[from];
            hit = hits[from];
            for (int64_t i = from + 1; i < to; i++) { /* the first of equals; NaN wins, and stays */
                hit += hits[i];
                int better = (column[i] > largest) | ((column[i] == largest) & (index[i] < chosen)) |
                             (column[i] != column[i]);
                largest = better ? column[i] : largest;
                chosen = better ? index[i] : chosen;
            }
            m->pooled[offset + j] = largest;
            m->indices[offset + j] = chosen;
            m->pooled_target[offset + j] = hit > 0 ? 1.0f : 0.0f;
        }
    }
}

static void forward_plane(int64_t item, void *context) {
    const pool_t *m = context;
    int64_t k = m->factor, padding = k / 2, width = m->width;
    int16_t class;
    const float *x = m->logits + item * m->height * width;
    const int16_t *labels = labels_of_plane(m, item, &class);
    float *probs = malloc((size_t)width * (sizeof(float) * 2 + sizeof(int32_t) + sizeof(int16_t)));
    float *window = probs + width;
    int32_t *index = (int32_t *)(window + width);
    int16_t *hits = (int16_t *)(index + width);
    double total = 0.0;
    for (int64_t y = 0; y < m->height; y++, x += width, labels += width) {
        int64_t window_row = (y + padding) / k, within = (y + padding) % k;
        if (m->pooled == NULL || window_row >= m->pooled_height) {
            if (m->totals != NULL) total += (double)sweep_row(x, labels, class, NULL, width, 0, 1);
            continue;
        }
        int first = within == 0 || y == 0;
        float *into = k == 1 ? m->pooled + (item * m->pooled_height + window_row) * width : first ? window : probs;
        if (m->totals != NULL)
            total += (double)sweep_row(x, labels, class, into, width, 1, 1);
        else
            sweep_row(x, labels, class, into, width, 1, 0);
        if (k == 1) continue;
        for (int64_t i = 0; i < width; i++) hits[i] = (int16_t)((first ? 0 : hits[i]) + (labels[i] == class));
        int32_t start = (int32_t)(y * width);
        if (first) {
            for (int64_t i = 0; i < width; i++) index[i] = start + (int32_t)i;
        } else if (m->indices == NULL) {
            for (int64_t i = 0; i < width; i++) window[i] += probs[i];
        } else {
            for (int64_t i = 0; i < width; i++) {
                int better = (probs[i] > window[i]) | (probs[i] != probs[i]);
                window[i] = better ? probs[i] : window[i];
                index[i] = better ? start + (int32_t)i : index[i];
            }
        }
        if (within == k - 1 || y == m->height - 1) finish_windows(m, window, index, hits, item, window_row);
    }
    free(probs);
    if (m->totals != NULL) m->totals[item] = total;
}

/* the gradient of a row of windows laid over its rows of pixels, from `top` on; these are all equal for the mean */
static void spread_windows(const pool_t *m, int64_t item, int64_t window_row, int64_t top, float *rows) {
    int64_t k = m->factor, padding = k / 2, offset = (item * m->pooled_height + window_row) * m->pooled_width;
    memset(rows, 0, sizeof(float) * (size_t)(m->width * (m->indices == NULL ? 1 : k)));
    for (int64_t j = 0; j < m->pooled_width; j++) {
        float g = m->grad_pooled[offset + j];
        int64_t from = j * k - padding, to = from + k;
        if (m->indices != NULL) {
            rows[m->indices[offset + j] - top * m->width] = g;
            continue;
        }
        if (to > m->width) to = m->width;
        for (int64_t i = from < 0 ? 0 : from; i < to; i++) rows[i] = g / (float)(k * k);
    }
}

static void backward_plane(int64_t item, void *context) {
    const pool_t *m = context;
    int64_t k = m->factor, padding = k / 2, width = m->width, top = 0;
    int16_t class;
    const float *RESTRICT x = m->logits + item * m->height * width;
    const int16_t *RESTRICT labels = labels_of_plane(m, item, &class);
    float *RESTRICT grad = m->grad + item * m->height * width;
    float *rows = malloc(sizeof(float) * (size_t)(width * (m->indices == NULL ? 1 : k)));
    float pixel = m->grad_total;
    for (int64_t y = 0; y < m->height; y++, x += width, labels += width, grad += width) {
        int64_t window_row = (y + padding) / k;
        if (m->grad_pooled == NULL || window_row >= m->pooled_height) {
            memset(rows, 0, sizeof(float) * (size_t)width);
            top = y;
        } else if ((y + padding) % k == 0 || y == 0) {
            top = y;
            spread_windows(m, item, window_row, top, rows);
        }
        const float *RESTRICT region = rows + (m->indices == NULL ? 0 : (y - top) * width);
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

void pool_forward(
    const float *logits, const int16_t *target, float *pooled, float *pooled_target, int32_t *indices, double *totals,
    int64_t multi_hot, int64_t images, int64_t classes, int64_t height, int64_t width, int64_t pooled_height,
    int64_t pooled_width, int64_t factor, int64_t threads) {
    pool_t pool = {logits, target, pooled, pooled_target, indices, totals, NULL, NULL, 0.0f,
                   multi_hot, classes, height, width, pooled_height, pooled_width, factor};
    parallel(forward_plane, &pool, images * classes, threads);
}

/* Fresh memory comes page by page as it is first written, which takes as long as computing what is written. Where
 * Linux offers pages of 2 MiB, they are asked for: 512 times fewer. A wish: nothing is lost where it is refused. */
static void ask_for_large_pages(float *memory, int64_t count) {
#ifdef MADV_HUGEPAGE
    uintptr_t page = (uintptr_t)1 << 21, start = ((uintptr_t)memory + page - 1) / page * page;
    uintptr_t stop = (uintptr_t)(memory + count) / page * page;
    if (stop > start) madvise((void *)start, stop - start, MADV_HUGEPAGE);
#endif
}

void pool_backward(
    const float *logits, const int16_t *target, int32_t *indices, const float *grad_pooled, float *grad,
    float grad_total, int64_t multi_hot, int64_t images, int64_t classes, int64_t height, int64_t width,
    int64_t pooled_height, int64_t pooled_width, int64_t factor, int64_t threads) {
    pool_t pool = {logits, target, NULL, NULL, indices, NULL, grad_pooled, grad, grad_total,
                   multi_hot, classes, height, width, pooled_height, pooled_width, factor};
    ask_for_large_pages(grad, images * classes * height * width);
    parallel(backward_plane, &pool, images * classes, threads);
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

/* both planes in double, less their means, which keeps digits */
static void center(const regions_t *r, int64_t item, double *out) {
    int64_t size = r->height * r->width;
    for (int j = 0; j < 2; j++, out += size) {
        const float *RESTRICT plane = (j == 0 ? r->labels : r->probs) + item * size;
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) sum += (double)plane[i];
        double mean = sum / (double)size;
        for (int64_t i = 0; i < size; i++) out[i] = (double)plane[i] - mean;
    }
}

/* (2, R, R): for each plane and offset the mean over all regions */
static void offset_means(const regions_t *r, const double *planes, double *means) {
    int64_t side = r->side, rows = r->height - side + 1, columns = r->width - side + 1;
    memset(means, 0, sizeof(double) * (size_t)(2 * side * side));
    for (int64_t j = 0; j < 2; j++)
        for (int64_t y = 0; y < r->height; y++) {
            const double *row = planes + (j * r->height + y) * r->width;
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

/* the moments of plane j and plane k for regions' rows ly apart, and columns lx >= 0 apart, or with `mirrored` -lx apart:
 * the entry of offsets (dy, dx) and (dy + ly, dx + lx) sums products of pixels (ly, lx) apart */
static void moments_of_rows(
    const regions_t *r, const double *planes, const double *means, int64_t j, int64_t k, int64_t ly, int mirrored,
    double *row_sums, double *out) {
    int64_t side = r->side, h = r->height, w = r->width, rows = h - side + 1, columns = w - side + 1, d = side * side;
    /* each pair is wanted once: of rows that are the same, lx = 0 of two planes in one order only, and lx < 0 not at all */
    int64_t first = mirrored || (ly == 0 && j > k) ? 1 : 0;
    for (int64_t y = 0; y + ly < h; y++) {
        const double *a = planes + (j * h + y) * w, *b = planes + (k * h + y + ly) * w;
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

static void moments_of_plane(int64_t item, void *context) {
    const regions_t *r = context;
    int64_t side = r->side, d = side * side, size = r->height * r->width;
    double *planes = malloc(sizeof(double) * (size_t)(2 * size + 2 * d + side * r->height * side));
    double *means = planes + 2 * size, *row_sums = means + 2 * d;
    double *out = r->moments + item * 4 * d * d;
    center(r, item, planes);
    offset_means(r, planes, means);
    for (int64_t j = 0; j < 2; j++)
        for (int64_t k = 0; k < 2; k++)
            for (int64_t ly = 0; ly < side; ly++) {
                moments_of_rows(r, planes, means, j, k, ly, 0, row_sums, out);
                if (ly > 0) moments_of_rows(r, planes, means, j, k, ly, 1, row_sums, out);
            }
    free(planes);
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
    const regions_t *r, const double *planes, const double *taps, int64_t y, int64_t from, int64_t to,
    const int64_t *reach_y, const int64_t *reach_x, double *RESTRICT out) {
    int64_t side = r->side, span = 2 * side - 1;
    for (int64_t j = 0; j < 2; j++)
        for (int64_t ly = -reach_y[1]; ly <= side - 1 - reach_y[0]; ly++) {
            const double *row = planes + (j * r->height + y + ly) * r->width;
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

static void moments_backward_of_plane(int64_t item, void *context) {
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
    double *planes = malloc(sizeof(double) * (size_t)(2 * size + 2 * d + w + count * (filter + 1)));
    double *means = planes + 2 * size, *line = means + 2 * d, *filters = line + w, *constants = filters + count * filter;
    center(r, item, planes);
    offset_means(r, planes, means);
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
            filter_row(r, planes, filters + s * filter, y, stretches[s][0], stretches[s][1], reach_y, &stretches[s][2],
                       line);
        }
        for (int64_t x = 0; x < w; x++) r->grad[item * size + y * w + x] = (float)line[x];
    }
    free(planes);
    free(stretches);
}

void regions_moments(
    const float *labels, const float *probs, double *moments, int64_t planes, int64_t height, int64_t width,
    int64_t side, int64_t threads) {
    regions_t regions = {labels, probs, moments, NULL, NULL, height, width, side};
    parallel(moments_of_plane, &regions, planes, threads);
}

void regions_backward(
    const double *weights, const float *labels, const float *probs, float *grad, int64_t planes, int64_t height,
    int64_t width, int64_t side, int64_t threads) {
    regions_t regions = {labels, probs, NULL, weights, grad, height, width, side};
    parallel(moments_backward_of_plane, &regions, planes, threads);
}
