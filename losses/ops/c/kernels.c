/* The operators of losses/ops/operators.py on a CPU: each makes one pass over each plane of H x W pixels.
 *
 * Plain C11, parallel if compiled with OpenMP. `library.py` compiles this file for the machine it runs on, so loops
 * are written for the compiler to vectorize: no calls inside them, and sums that it may reorder are marked.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define RESTRICT restrict
/* so that constant arguments of a call are resolved at compile time */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* ---- threads: items are scheduled one by one ---- */

typedef int (*work_fn)(int64_t item, void *context); /* returns 0, or 1 if there is not enough memory */

/* OpenMP's threads are PyTorch's own (see library.py): others would compete with them, since idle ones spin */
static int parallel(work_fn work, void *context, int64_t items, int64_t threads) {
    int failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(| : failed)
    for (int64_t item = 0; item < items; item++) failed |= work(item, context);
    return failed;
}

/* ---- memory: prefetch what the processor does not predict, as from one row to the next ---- */

static inline void fetch_row(const float *row, int64_t width) {
    for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(row + i, 0, 2);
}

/* ---- exp(-|x|) and log(1 + e), accurate to float rounding; NaN stays NaN ----
 *
 * Polynomials of minimal relative error over the range of their argument. */

/* A float of this size has no fractional bits, so adding it rounds; its last bits are those of 127 */
#define ROUNDING 12583039.0f

static inline float exp_minus_abs(float x) {
    float a = fabsf(x);
    a = 87.0f < a ? 87.0f : a; /* beyond that, the result is 1e-38 anyway */
    float rounded = fmaf(a, -1.44269504f, ROUNDING), n = rounded - ROUNDING;
    float r = fmaf(n, -0.693145752f, -a);
    r = fmaf(n, -1.42860677e-6f, r); /* in -0.347 ... 0.347; exp(r) to 3e-9 */
    float y = 0.00138145876f;
    y = fmaf(y, r, 0.00836872327f);
    y = fmaf(y, r, 0.0416683886f);
    y = fmaf(y, r, 0.166665206f);
    y = fmaf(y, r, 0.499999934f);
    y = fmaf(y, r, 1.0f);
    y = fmaf(y, r, 1.0f);
    uint32_t bits; /* n + 127 is the exponent of 2^n */
    memcpy(&bits, &rounded, 4);
    bits <<= 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return y * scale;
}

/* e in [0, 1]; accurate to 3e-8 */
static inline float log_one_plus(float e) {
    float y = 0.00523269411f;
    y = fmaf(y, e, -0.0295052373f);
    y = fmaf(y, e, 0.0782259478f);
    y = fmaf(y, e, -0.136632453f);
    y = fmaf(y, e, 0.191060064f);
    y = fmaf(y, e, -0.248429821f);
    y = fmaf(y, e, 0.333190968f);
    y = fmaf(y, e, -0.499994931f);
    y = fmaf(y, e, 0.99999997f);
    return e * y;
}

/* ---- binary cross entropy and pooling ---- */

typedef struct {
    const float *logits;       /* (N, C, H, W) */
    const int16_t *target;     /* (N, H, W) classes, -1 where void; or multi-hot (N, C, H, W) */
    float *pooled;             /* (N, C, h, w), or NULL */
    float *pooled_target;      /* (N, C, h, w), or NULL if pooling windows are single pixels */
    int32_t *indices;          /* (N, C, h, w): pixel of the maximum in its window, or NULL for the mean */
    double *totals;            /* (N, C): summed binary cross entropy, or NULL */
    const float *grad_pooled;  /* backward */
    float *grad;               /* backward */
    float grad_total;          /* backward */
    int64_t multi_hot, classes, height, width, pooled_height, pooled_width, factor;
} pool_t;

/* the labels of a plane, and the label of its class */
static const int16_t *labels_of_plane(const pool_t *m, int64_t item, int16_t *class) {
    *class = m->multi_hot ? 1 : (int16_t)(item % m->classes);
    return m->target + (m->multi_hot ? item : item / m->classes) * m->height * m->width;
}

/* stores probabilities of a row of pixels, 0 where void, and returns the sum of their cross entropies; both optional */
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

/* sweep_row with only the outputs that are needed: probabilities if `probs` is not NULL, the loss if totals are not */
static double sweep(const pool_t *m, const float *x, const int16_t *labels, int16_t class, float *probs) {
    if (probs == NULL) return m->totals == NULL ? 0.0 : (double)sweep_row(x, labels, class, NULL, m->width, 0, 1);
    if (m->totals == NULL) return (double)sweep_row(x, labels, class, probs, m->width, 1, 0);
    return (double)sweep_row(x, labels, class, probs, m->width, 1, 1);
}

/* the range from ... to of windows j whose column j k + within lies inside a row */
static void windows_with(const pool_t *m, int64_t within, int64_t *from, int64_t *to) {
    int64_t stop = (m->width - within + m->factor - 1) / m->factor;
    *from = within < 0 ? 1 : 0;
    *to = stop < m->pooled_width ? stop : m->pooled_width;
}

/* sums of each window's columns: one column of all windows at a time, which can be vectorized */
static void sum_windows(const pool_t *m, const float *RESTRICT columns, float *RESTRICT sums) {
    int64_t k = m->factor, padding = k / 2;
    memset(sums, 0, sizeof(float) * (size_t)m->pooled_width);
    for (int64_t within = -padding; within < k - padding; within++) {
        int64_t from, to;
        windows_with(m, within, &from, &to);
        for (int64_t j = from; j < to; j++) sums[j] += columns[j * k + within];
    }
}

/* maxima of each window's columns and their pixels: the first of equal values; NaN propagates */
static void max_windows(
    const pool_t *m, const float *RESTRICT columns, const int32_t *RESTRICT index, float *RESTRICT maxima,
    int32_t *RESTRICT chosen) {
    int64_t k = m->factor, padding = k / 2;
    for (int64_t j = 0; j < m->pooled_width; j++) maxima[j] = -1.0f; /* less than any probability */
    for (int64_t within = -padding; within < k - padding; within++) {
        int64_t from, to;
        windows_with(m, within, &from, &to);
        for (int64_t j = from; j < to; j++) {
            float value = columns[j * k + within];
            int32_t pixel = index[j * k + within];
            int better = (value > maxima[j]) | ((value == maxima[j]) & (pixel < chosen[j])) | (value != value);
            maxima[j] = better ? value : maxima[j];
            chosen[j] = better ? pixel : chosen[j];
        }
    }
}

/* a row of windows while its rows of pixels are read */
typedef struct {
    float *probs;   /* of the row of pixels that is read */
    float *columns; /* sums or maxima of the window row's columns so far */
    float *hits;    /* number of pixels of the class in each column */
    int32_t *index; /* pixels of the maxima */
} window_row_t;

/* adds the row of pixels from `start` on; the first one's probabilities are in `columns` already */
static void add_row(
    const pool_t *m, const window_row_t *w, const int16_t *RESTRICT labels, int16_t class, int32_t start, int first) {
    float *RESTRICT probs = w->probs, *RESTRICT columns = w->columns, *RESTRICT hits = w->hits;
    int32_t *RESTRICT index = w->index;
    int64_t width = m->width;
    for (int64_t i = 0; i < width; i++) hits[i] = (first ? 0.0f : hits[i]) + (labels[i] == class ? 1.0f : 0.0f);
    if (first) {
        for (int64_t i = 0; i < width; i++) index[i] = start + (int32_t)i;
    } else if (m->indices == NULL) {
        for (int64_t i = 0; i < width; i++) columns[i] += probs[i];
    } else {
        for (int64_t i = 0; i < width; i++) {
            int better = (probs[i] > columns[i]) | (probs[i] != probs[i]);
            columns[i] = better ? probs[i] : columns[i];
            index[i] = better ? start + (int32_t)i : index[i];
        }
    }
}

/* stores the row of windows that begins at `offset` of the pooled maps */
static void finish_windows(const pool_t *m, const window_row_t *w, int64_t offset) {
    float *RESTRICT pooled = m->pooled + offset, *RESTRICT label = m->pooled_target + offset;
    float area = (float)(m->factor * m->factor);
    sum_windows(m, w->hits, label);
    if (m->indices != NULL) {
        max_windows(m, w->columns, w->index, pooled, m->indices + offset);
        for (int64_t j = 0; j < m->pooled_width; j++) label[j] = label[j] > 0.0f ? 1.0f : 0.0f;
        return;
    }
    sum_windows(m, w->columns, pooled);
    for (int64_t j = 0; j < m->pooled_width; j++) pooled[j] /= area, label[j] /= area;
}

static int forward_plane(int64_t item, void *context) {
    const pool_t *m = context;
    int64_t k = m->factor, padding = k / 2, width = m->width;
    int64_t window_rows = m->pooled == NULL ? 0 : m->pooled_height;
    int16_t class;
    const float *x = m->logits + item * m->height * width;
    const int16_t *labels = labels_of_plane(m, item, &class);
    float *buffer = malloc((size_t)width * (sizeof(float) * 3 + sizeof(int32_t)));
    if (buffer == NULL) return 1;
    window_row_t w = {buffer, buffer + width, buffer + 2 * width, (int32_t *)(buffer + 3 * width)};
    double total = 0.0;
    for (int64_t y = 0; y < m->height; y++, x += width, labels += width) {
        int64_t window_row = (y + padding) / k, within = (y + padding) % k;
        int64_t offset = (item * m->pooled_height + window_row) * m->pooled_width;
        int first = within == 0 || y == 0;
        if (y + 1 < m->height) fetch_row(x + width, width);
        if (window_row >= window_rows) { /* no window has this row */
            total += sweep(m, x, labels, class, NULL);
        } else if (k == 1) {
            total += sweep(m, x, labels, class, m->pooled + offset);
        } else {
            total += sweep(m, x, labels, class, first ? w.columns : w.probs);
            add_row(m, &w, labels, class, (int32_t)(y * width), first);
            if (within == k - 1 || y == m->height - 1) finish_windows(m, &w, offset);
        }
    }
    free(buffer);
    if (m->totals != NULL) m->totals[item] = total;
    return 0;
}

/* spreads the gradient of a row of windows over its rows of pixels, from `top` on; all rows are equal for the mean */
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

/* gradient of a row of pixels: of the cross entropy with weight `pixel`, and of `region` in the probabilities */
static void gradient_row(
    const float *RESTRICT x, const int16_t *RESTRICT labels, int16_t class, float pixel, const float *RESTRICT region,
    float *RESTRICT grad, int64_t width) {
    for (int64_t i = 0; i < width; i++) {
        float e = exp_minus_abs(x[i]), inverse = 1.0f / (1.0f + e), small = e * inverse;
        float p = x[i] < 0.0f ? small : inverse, rest = x[i] < 0.0f ? inverse : small;
        float difference = labels[i] == class ? -rest : p;
        float g = fmaf(pixel, difference, region[i] * (small * inverse));
        grad[i] = labels[i] >= 0 ? g : 0.0f;
    }
}

static int backward_plane(int64_t item, void *context) {
    const pool_t *m = context;
    int64_t k = m->factor, padding = k / 2, width = m->width, top = 0;
    int64_t window_rows = m->grad_pooled == NULL ? 0 : m->pooled_height;
    int16_t class;
    const float *x = m->logits + item * m->height * width;
    const int16_t *labels = labels_of_plane(m, item, &class);
    float *grad = m->grad + item * m->height * width;
    float *rows = malloc(sizeof(float) * (size_t)(width * (m->indices == NULL ? 1 : k)));
    if (rows == NULL) return 1;
    for (int64_t y = 0; y < m->height; y++, x += width, labels += width, grad += width) {
        int64_t window_row = (y + padding) / k;
        if (y + 1 < m->height) fetch_row(x + width, width);
        if (window_row >= window_rows) { /* no window has this row */
            memset(rows, 0, sizeof(float) * (size_t)width);
            top = y;
        } else if ((y + padding) % k == 0 || y == 0) {
            top = y;
            spread_windows(m, item, window_row, top, rows);
        }
        const float *region = rows + (m->indices == NULL ? 0 : (y - top) * width);
        gradient_row(x, labels, class, m->grad_total, region, grad, width);
    }
    free(rows);
    return 0;
}

int pool_forward(
    const float *logits, const int16_t *target, float *pooled, float *pooled_target, int32_t *indices, double *totals,
    int64_t multi_hot, int64_t images, int64_t classes, int64_t height, int64_t width, int64_t pooled_height,
    int64_t pooled_width, int64_t factor, int64_t threads) {
    pool_t pool = {logits, target, pooled, pooled_target, indices, totals, NULL, NULL, 0.0f,
                   multi_hot, classes, height, width, pooled_height, pooled_width, factor};
    return parallel(forward_plane, &pool, images * classes, threads);
}

/* New memory is allocated page by page at the first write, which takes as long as computing what is written. Where
 * Linux offers pages of 2 MiB, they are requested: 512 times fewer. They are touched beforehand, since two threads that
 * first write to the same page would both clear one. A refused request has no effect. */
#define LARGE_PAGE ((uintptr_t)1 << 21)

static int touch_page(int64_t page, void *start) {
    *((volatile char *)start + (uintptr_t)page * LARGE_PAGE) = 0;
    return 0;
}

static void ask_for_large_pages(float *memory, int64_t count, int64_t threads) {
#ifdef MADV_HUGEPAGE
    uintptr_t start = ((uintptr_t)memory + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    uintptr_t stop = (uintptr_t)(memory + count) / LARGE_PAGE * LARGE_PAGE;
    if (stop > start && madvise((void *)start, stop - start, MADV_HUGEPAGE) == 0)
        parallel(touch_page, (void *)start, (int64_t)((stop - start) / LARGE_PAGE), threads);
#endif
}

int pool_backward(
    const float *logits, const int16_t *target, int32_t *indices, const float *grad_pooled, float *grad,
    float grad_total, int64_t multi_hot, int64_t images, int64_t classes, int64_t height, int64_t width,
    int64_t pooled_height, int64_t pooled_width, int64_t factor, int64_t threads) {
    pool_t pool = {logits, target, NULL, NULL, indices, NULL, grad_pooled, grad, grad_total,
                   multi_hot, classes, height, width, pooled_height, pooled_width, factor};
    ask_for_large_pages(grad, images * classes * height * width, threads);
    return parallel(backward_plane, &pool, images * classes, threads);
}

/* ---- moments of regions: sums of lagged products ---- */

typedef struct {
    const float *labels, *probs; /* (M, h, w) */
    double *moments;             /* (M, 2d, 2d) */
    const double *weights;       /* backward: (M, d, 2d), gradient in P = weights [Y; P] */
    float *grad;                 /* backward: (M, h, w) */
    int64_t height, width, side;
} regions_t;

/* number of shifts or taps that are computed together, to share their loads; 4 x 5 sums fit the registers */
#define AT_ONCE 5
#define FOR_COUNT(call, count) \
    switch (count) { \
        case 1: call(1); break; \
        case 2: call(2); break; \
        case 3: call(3); break; \
        case 4: call(4); break; \
        default: call(AT_ONCE); \
    }

/* doubles per vector; for processors with shorter vectors, the compiler splits them */
#ifdef __AVX512F__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef double lanes __attribute__((vector_size(LANES * sizeof(double))));

ALWAYS_INLINE lanes load(const double *from, int64_t count) {
    lanes values = {0.0};
    memcpy(&values, from, sizeof(double) * (size_t)count);
    return values;
}

ALWAYS_INLINE void add_products(lanes (*sums)[AT_ONCE], lanes a0, lanes a1, const double *const *b, const int shifts) {
    for (int s = 0; s < shifts; s++) {
        lanes b0 = load(b[0] + s, LANES), b1 = load(b[1] + s, LANES);
        sums[0][s] += a0 * b0, sums[1][s] += a0 * b1, sums[2][s] += a1 * b0, sums[3][s] += a1 * b1;
    }
}

/* sums[2 j + k][s] = sum over i of a_j[i] b_k[i + s]; values beyond the rows are read and multiplied by 0 */
ALWAYS_INLINE void dots_at_once(
    const double *const *a, const double *const *b, int64_t n, double (*sums)[AT_ONCE], const int shifts) {
    lanes total[4][AT_ONCE] = {{{0.0}}};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const double *from[2] = {b[0] + i, b[1] + i};
        add_products(total, load(a[0] + i, LANES), load(a[1] + i, LANES), from, shifts);
    }
    if (i < n) {
        const double *from[2] = {b[0] + i, b[1] + i};
        add_products(total, load(a[0] + i, n - i), load(a[1] + i, n - i), from, shifts);
    }
    for (int pair = 0; pair < 4; pair++)
        for (int s = 0; s < shifts; s++) {
            double sum = 0.0;
            for (int lane = 0; lane < LANES; lane++) sum += total[pair][s][lane];
            sums[pair][s] = sum;
        }
}

/* both planes in double, minus their means, which keeps precision */
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

/* (2, R, R): the mean over all regions for each plane and offset */
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

/* adds up row sums of pixels (ly, lx) apart, lx = +-shift, to entries of all offsets (dy, dx), (dy + ly, dx + lx) */
static void sum_rows(
    const regions_t *r, const double *means, int64_t j, int64_t k, int64_t ly, int64_t shift, int mirrored,
    const double *row_sums, double *out) {
    int64_t side = r->side, h = r->height, rows = h - side + 1, columns = r->width - side + 1, d = side * side;
    for (int64_t dx = 0; dx + shift < side; dx++, row_sums += h) {
        int64_t dx_j = mirrored ? dx + shift : dx, dx_k = mirrored ? dx : dx + shift;
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t y = 0; y < rows; y++) sum += row_sums[y];
        for (int64_t dy = 0; dy + ly < side; dy++) {
            if (dy > 0) sum += row_sums[dy - 1 + rows] - row_sums[dy - 1];
            int64_t one = j * d + dy * side + dx_j, two = k * d + (dy + ly) * side + dx_k;
            double value = sum - means[one] * means[two] * (double)(rows * columns);
            out[one * 2 * d + two] = value;
            out[two * 2 * d + one] = value;
        }
    }
}

/* Row sums of products of pixels of the rows `fixed` and `moved` that are shift ... shift + shifts - 1 apart, at `y`
 * of row_sums (4, AT_ONCE, R, h). A sum over the first columns of regions gives that over the next by one product
 * added, one subtracted. */
static void sum_products(
    const regions_t *r, const double *const *fixed, const double *const *moved, int64_t shift, int64_t shifts,
    int64_t y, double *row_sums) {
    int64_t side = r->side, columns = r->width - side + 1;
    const double *const from[2] = {moved[0] + shift, moved[1] + shift};
    double sums[4][AT_ONCE];
#define DOTS(count) dots_at_once(fixed, from, columns, sums, count)
    FOR_COUNT(DOTS, shifts)
#undef DOTS
    for (int pair = 0; pair < 4; pair++)
        for (int64_t s = 0; s < shifts; s++) {
            const double *a = fixed[pair / 2], *b = from[pair % 2] + s;
            double sum = sums[pair][s], *of_row = row_sums + (pair * AT_ONCE + s) * side * r->height + y;
            of_row[0] = sum;
            for (int64_t dx = 1; dx + shift + s < side; dx++) {
                sum += a[dx - 1 + columns] * b[dx - 1 + columns] - a[dx - 1] * b[dx - 1];
                of_row[dx * r->height] = sum;
            }
        }
}

/* all moments of pixels whose rows are ly apart, and columns 0 ... R - 1, or with `mirrored` 1 ... R - 1 backward */
static void moments_of_rows(
    const regions_t *r, const double *planes, const double *means, int64_t ly, int mirrored, double *row_sums,
    double *out) {
    int64_t side = r->side, h = r->height, w = r->width;
    for (int64_t shift = mirrored; shift < side; shift += AT_ONCE) {
        int64_t shifts = shift + AT_ONCE < side ? AT_ONCE : side - shift;
        for (int64_t y = 0; y + ly < h; y++) {
            const double *upper[2] = {planes + y * w, planes + (h + y) * w};
            const double *lower[2] = {upper[0] + ly * w, upper[1] + ly * w};
            sum_products(r, mirrored ? lower : upper, mirrored ? upper : lower, shift, shifts, y, row_sums);
        }
        for (int pair = 0; pair < 4; pair++)
            for (int64_t s = 0; s < shifts; s++) {
                int fixed = pair / 2, moved = pair % 2;
                sum_rows(r, means, mirrored ? moved : fixed, mirrored ? fixed : moved, ly, shift + s, mirrored,
                         row_sums + (pair * AT_ONCE + s) * side * h, out);
            }
    }
}

static int moments_of_plane(int64_t item, void *context) {
    const regions_t *r = context;
    int64_t side = r->side, d = side * side, size = r->height * r->width;
    size_t behind = (size_t)(side + LANES), sums = (size_t)(4 * AT_ONCE * side * r->height);
    double *planes = malloc(sizeof(double) * ((size_t)(2 * size + 2 * d) + behind + sums));
    if (planes == NULL) return 1;
    double *means = planes + 2 * size + behind, *row_sums = means + 2 * d;
    double *out = r->moments + item * 4 * d * d;
    center(r, item, planes);
    memset(planes + 2 * size, 0, sizeof(double) * behind);
    offset_means(r, planes, means);
    for (int64_t ly = 0; ly < side; ly++) {
        moments_of_rows(r, planes, means, ly, 0, row_sums, out);
        if (ly > 0) moments_of_rows(r, planes, means, ly, 1, row_sums, out);
    }
    free(planes);
    return 0;
}

/* range of offsets, low … high, that a row or column can have in a region inside the plane */
static void reach(int64_t position, int64_t regions, int64_t side, int64_t *low, int64_t *high) {
    *low = position - regions + 1 > 0 ? position - regions + 1 : 0;
    *high = position < side - 1 ? position : side - 1;
}

/* the taps of a filter: the sums of the weights of offset pairs that are (ly, lx) apart, for offsets within reach */
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

ALWAYS_INLINE void taps_at_once(
    double *RESTRICT out, const double *RESTRICT row, const double *tap, int64_t from, int64_t to, const int taps) {
    double w0 = tap[0], w1 = taps > 1 ? tap[1] : 0.0, w2 = taps > 2 ? tap[2] : 0.0, w3 = taps > 3 ? tap[3] : 0.0;
    double w4 = taps > 4 ? tap[4] : 0.0;
    for (int64_t x = from; x < to; x++) {
        double sum = w0 * row[x];
        if (taps > 1) sum += w1 * row[x + 1];
        if (taps > 2) sum += w2 * row[x + 2];
        if (taps > 3) sum += w3 * row[x + 3];
        if (taps > 4) sum += w4 * row[x + 4];
        out[x] += sum;
    }
}

static void filter_row(
    const regions_t *r, const double *planes, const double *taps, int64_t y, int64_t from, int64_t to,
    const int64_t *reach_y, const int64_t *reach_x, double *out) {
    int64_t side = r->side, span = 2 * side - 1, last = side - 1 - reach_x[0];
    for (int64_t j = 0; j < 2; j++)
        for (int64_t ly = -reach_y[1]; ly <= side - 1 - reach_y[0]; ly++) {
            const double *row = planes + (j * r->height + y + ly) * r->width;
            const double *tap = taps + (j * span + ly + side - 1) * span + side - 1;
#define TAPS(count) taps_at_once(out, row + lx, tap + lx, from, to, count)
            for (int64_t lx = -reach_x[1]; lx <= last; lx += AT_ONCE) FOR_COUNT(TAPS, last - lx + 1)
#undef TAPS
        }
}

/* columns [from, to) whose pixels have the same offsets, low ... high, in a region: one filter is for all of them */
typedef struct {
    int64_t from, to, reach[2];
} stretch_t;

/* divides the columns into stretches, single ones at the borders and a long one in between, and returns their number */
static int64_t find_stretches(const regions_t *r, stretch_t *stretches) {
    int64_t count = 0;
    for (int64_t x = 0; x < r->width; x++) {
        stretch_t one = {x, x + 1, {0, 0}};
        reach(x, r->width - r->side + 1, r->side, &one.reach[0], &one.reach[1]);
        if (count > 0 && memcmp(stretches[count - 1].reach, one.reach, sizeof(one.reach)) == 0)
            stretches[count - 1].to = x + 1;
        else
            stretches[count++] = one;
    }
    return count;
}

static int moments_backward_of_plane(int64_t item, void *context) {
    const regions_t *r = context;
    int64_t side = r->side, h = r->height, w = r->width, d = side * side, size = h * w;
    int64_t filter = 2 * (2 * side - 1) * (2 * side - 1), reach_y[2], before[2] = {-1, -1};
    stretch_t *stretches = malloc(sizeof(stretch_t) * (size_t)w);
    if (stretches == NULL) return 1;
    int64_t count = find_stretches(r, stretches);
    double *planes = malloc(sizeof(double) * (size_t)(2 * size + 2 * d + w + count * (filter + 1)));
    if (planes == NULL) {
        free(stretches);
        return 1;
    }
    double *means = planes + 2 * size, *line = means + 2 * d;
    double *filters = line + w, *constants = filters + count * filter;
    center(r, item, planes);
    offset_means(r, planes, means);
    for (int64_t y = 0; y < h; y++) {
        reach(y, h - side + 1, side, &reach_y[0], &reach_y[1]);
        int changed = memcmp(reach_y, before, sizeof(before)) != 0;
        memcpy(before, reach_y, sizeof(before));
        for (int64_t s = 0; s < count; s++) {
            const stretch_t *at = stretches + s;
            double *taps = filters + s * filter;
            if (changed)
                constants[s] = make_filter(r->weights + item * 2 * d * d, means, side, reach_y, at->reach, taps);
            for (int64_t x = at->from; x < at->to; x++) line[x] = -constants[s];
            filter_row(r, planes, taps, y, at->from, at->to, reach_y, at->reach, line);
        }
        for (int64_t x = 0; x < w; x++) r->grad[item * size + y * w + x] = (float)line[x];
    }
    free(planes);
    free(stretches);
    return 0;
}

int regions_moments(
    const float *labels, const float *probs, double *moments, int64_t planes, int64_t height, int64_t width,
    int64_t side, int64_t threads) {
    regions_t regions = {labels, probs, moments, NULL, NULL, height, width, side};
    return parallel(moments_of_plane, &regions, planes, threads);
}

int regions_backward(
    const double *weights, const float *labels, const float *probs, float *grad, int64_t planes, int64_t height,
    int64_t width, int64_t side, int64_t threads) {
    regions_t regions = {labels, probs, NULL, weights, grad, height, width, side};
    return parallel(moments_backward_of_plane, &regions, planes, threads);
}
