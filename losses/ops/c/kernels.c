/* The operators of losses/ops/operators.py on a CPU: each makes one pass over each plane of H x W pixels.
 *
 * Plain C11, parallel if compiled with OpenMP. `library.py` compiles this file for the machine it runs on, so loops
 * are written for the compiler to vectorize: no calls inside them, and sums that it may reorder are marked.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define RESTRICT restrict
/* so that constant arguments of a call are resolved at compile time */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* ---- threads ---- */

typedef int (*work_fn)(int64_t item, void *context); /* returns 0, or 1 if there is not enough memory */

/* OpenMP's threads are PyTorch's own (see library.py): others would compete with them, since idle ones spin */
static int parallel(work_fn work, void *context, int64_t items, int64_t threads) {
    int failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(| : failed)
    for (int64_t item = 0; item < items; item++) failed |= work(item, context);
    return failed;
}

/* ---- memory: prefetch what the processor does not predict, as from one row to the next ---- */

enum { STRIP = 512 }; /* number of pixels that are fetched while as many are computed */

static inline void fetch(const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(from + i, 0, 2);
}

/* ---- exp(-|x|), accurate to float rounding; NaN stays NaN ---- */

/* A float of this size has no fractional bits, so adding it rounds; its last bits are those of 127 */
#define ROUNDING 12583039.0f
/* -log2 e in two parts, since one float has it to 1e-8 only, which is multiplied by up to 87 */
#define MINUS_LOG2_E -1.44269502f
#define MINUS_LOG2_E_REST -1.92596300e-8f

static inline float exp_minus_abs(float x) {
    float a = fabsf(x);
    a = 87.0f < a ? 87.0f : a; /* beyond that, the result is 1e-38 anyway */
    float rounded = fmaf(a, MINUS_LOG2_E, ROUNDING), n = rounded - ROUNDING;
    float r = fmaf(a, MINUS_LOG2_E_REST, fmaf(a, MINUS_LOG2_E, -n));
    /* 2^r for r in -0.5 ... 0.5: the polynomial of degree 6 with the least relative error, 2e-9 */
    float y = 0.00015345812f;
    y = fmaf(y, r, 0.00133999312f);
    y = fmaf(y, r, 0.00961848896f);
    y = fmaf(y, r, 0.0555032878f);
    y = fmaf(y, r, 0.240226469f);
    y = fmaf(y, r, 0.693147206f);
    y = fmaf(y, r, 1.0f);
    uint32_t bits; /* n + 127 is the exponent of 2^n */
    memcpy(&bits, &rounded, 4);
    bits <<= 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return y * scale;
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

/* Stores probabilities of n pixels, 0 where void, and adds their cross entropies to the returned sum and to `odds`;
 * both optional. A cross entropy is max(v, 0) + log(1 + e) with e = exp(-|x|) and v = -x at pixels of the class, else x.
 * A logarithm for each pixel takes as long as all the rest, so the product of the 1 + e is formed, without the 1, which
 * keeps the precision of small e: 1 + odds = (1 + e_1) (1 + e_2) ... */
ALWAYS_INLINE float sweep_pixels(
    const float *RESTRICT x, const int16_t *RESTRICT labels, int16_t class, float *RESTRICT probs, float *RESTRICT odds,
    int64_t n, const int with_probs, const int with_loss) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        float e = exp_minus_abs(x[i]);
        if (with_probs) {
            float p = (x[i] < 0.0f ? e : 1.0f) / (1.0f + e);
            probs[i] = labels[i] >= 0 ? p : 0.0f;
        }
        if (with_loss) {
            float v = labels[i] == class ? -x[i] : x[i], loss = v < 0.0f ? 0.0f : v;
            loss = labels[i] >= 0 ? loss : 0.0f;
            e = labels[i] >= 0 ? e : 0.0f;
            sum += loss;
            odds[i] = fmaf(odds[i], e, odds[i] + e);
        }
    }
    return sum;
}

/* cross entropies that are not yet in the total: each of n products has `factors` of at most 2 */
typedef struct {
    float *odds;
    int64_t n, factors;
} pending_t;

enum { MAX_FACTORS = 64, CHAINS = 4 };

/* the sum of the logarithms of the products, which begin anew */
static double take_logs(pending_t *p) {
    double total = 0.0, products[CHAINS] = {0.0}; /* independent ones, which the processor computes together */
    for (int64_t i = 0; i < p->n; i += CHAINS)
        for (int64_t c = 0; c < CHAINS && i + c < p->n; c++) {
            products[c] = fma(products[c], (double)p->odds[i + c], products[c] + (double)p->odds[i + c]);
            if (products[c] > 1e200) total += log1p(products[c]), products[c] = 0.0;
        }
    for (int64_t c = 0; c < CHAINS; c++) total += log1p(products[c]);
    memset(p->odds, 0, sizeof(float) * (size_t)p->n);
    p->factors = 0;
    return total;
}

/* sweep_pixels, strip by strip, with only the outputs that are needed: probabilities if `probs` is not NULL, the loss
 * if totals are not */
static double sweep(
    const pool_t *m, const float *x, const int16_t *labels, int16_t class, int64_t n, float *probs, pending_t *p) {
    double total = p->factors == MAX_FACTORS ? take_logs(p) : 0.0;
    for (int64_t at = 0; at < n; at += STRIP) {
        int64_t size = n - at < STRIP ? n - at : STRIP;
        fetch(x + at + n, size); /* has no effect behind the end */
        if (m->totals == NULL && probs != NULL)
            sweep_pixels(x + at, labels + at, class, probs + at, NULL, size, 1, 0);
        else if (m->totals != NULL && probs == NULL)
            total += (double)sweep_pixels(x + at, labels + at, class, NULL, p->odds + at, size, 0, 1);
        else if (m->totals != NULL)
            total += (double)sweep_pixels(x + at, labels + at, class, probs + at, p->odds + at, size, 1, 1);
    }
    p->factors++;
    return total;
}

/* ---- pooling: rows with a margin of k / 2 columns at both sides, so that all windows are complete ---- */

typedef struct {
    float *probs;   /* of the pixels of a row of windows, without margins */
    float *columns; /* sums or maxima of its columns */
    float *hits;    /* number of pixels of the class in each column */
    int16_t *count; /* the same while they are counted, without margins */
    int32_t *index; /* pixels of the maxima */
} window_row_t;

static void count_hits(
    const pool_t *m, const window_row_t *w, const int16_t *RESTRICT labels, int16_t class, int64_t rows) {
    int16_t *RESTRICT count = w->count;
    float *RESTRICT hits = w->hits + m->factor / 2;
    memset(count, 0, sizeof(int16_t) * (size_t)m->width);
    for (int64_t row = 0; row < rows; row++, labels += m->width)
        for (int64_t i = 0; i < m->width; i++) count[i] += (int16_t)(labels[i] == class);
    for (int64_t i = 0; i < m->width; i++) hits[i] = (float)count[i];
}

static void sum_columns(const pool_t *m, const window_row_t *w, int64_t rows) {
    const float *RESTRICT probs = w->probs;
    float *RESTRICT sums = w->columns + m->factor / 2;
    for (int64_t i = 0; i < m->width; i++) sums[i] = probs[i];
    for (int64_t row = 1; row < rows; row++) {
        probs += m->width;
        for (int64_t i = 0; i < m->width; i++) sums[i] += probs[i];
    }
}

/* the maximum in each column, and its pixel, counted from `start` on */
static void max_columns(const pool_t *m, const window_row_t *w, int32_t start, int64_t rows) {
    const float *RESTRICT probs = w->probs;
    float *RESTRICT maxima = w->columns + m->factor / 2;
    int32_t *RESTRICT index = w->index + m->factor / 2;
    for (int64_t i = 0; i < m->width; i++) maxima[i] = probs[i], index[i] = start + (int32_t)i;
    for (int64_t row = 1; row < rows; row++) {
        probs += m->width, start += (int32_t)m->width;
        for (int64_t i = 0; i < m->width; i++) {
            int better = (probs[i] > maxima[i]) | (probs[i] != probs[i]);
            maxima[i] = better ? probs[i] : maxima[i];
            index[i] = better ? start + (int32_t)i : index[i];
        }
    }
}

ALWAYS_INLINE void sum_windows(const float *RESTRICT columns, float *RESTRICT sums, int64_t windows, const int64_t k) {
    for (int64_t j = 0; j < windows; j++) {
        float sum = 0.0f;
        for (int64_t within = 0; within < k; within++) sum += columns[j * k + within];
        sums[j] = sum;
    }
}

ALWAYS_INLINE void fill_windows(const float *RESTRICT values, float *RESTRICT columns, int64_t windows, const int64_t k) {
    for (int64_t j = 0; j < windows; j++)
        for (int64_t within = 0; within < k; within++) columns[j * k + within] = values[j];
}

/* with a constant k, the compiler vectorizes these loops */
#define FOR_FACTOR(function, from, to, windows, k) \
    switch (k) { \
        case 2: function(from, to, windows, 2); break; \
        case 3: function(from, to, windows, 3); break; \
        case 4: function(from, to, windows, 4); break; \
        default: function(from, to, windows, k); \
    }

/* maxima of each window's columns and their pixels: the first of equal values; NaN propagates */
static void max_windows(const pool_t *m, const window_row_t *w, float *RESTRICT maxima, int32_t *RESTRICT chosen) {
    int64_t k = m->factor;
    for (int64_t j = 0; j < m->pooled_width; j++) maxima[j] = -1.0f; /* less than any probability */
    for (int64_t within = 0; within < k; within++)
        for (int64_t j = 0; j < m->pooled_width; j++) {
            float value = w->columns[j * k + within];
            int32_t pixel = w->index[j * k + within];
            int better = (value > maxima[j]) | ((value == maxima[j]) & (pixel < chosen[j])) | (value != value);
            maxima[j] = better ? value : maxima[j];
            chosen[j] = better ? pixel : chosen[j];
        }
}

/* pools the `rows` rows of pixels from `top` on, whose probabilities are known, to the windows from `offset` on */
static void pool_windows(
    const pool_t *m, const window_row_t *w, const int16_t *labels, int16_t class, int64_t top, int64_t rows,
    int64_t offset) {
    float *RESTRICT pooled = m->pooled + offset, *RESTRICT label = m->pooled_target + offset;
    int64_t k = m->factor, windows = m->pooled_width;
    float area = (float)(k * k);
    count_hits(m, w, labels, class, rows);
    FOR_FACTOR(sum_windows, w->hits, label, windows, k)
    if (m->indices == NULL) {
        sum_columns(m, w, rows);
        FOR_FACTOR(sum_windows, w->columns, pooled, windows, k)
        for (int64_t j = 0; j < windows; j++) pooled[j] /= area, label[j] /= area;
    } else {
        max_columns(m, w, (int32_t)(top * m->width), rows);
        max_windows(m, w, pooled, m->indices + offset);
        for (int64_t j = 0; j < windows; j++) label[j] = label[j] > 0.0f ? 1.0f : 0.0f;
    }
}

/* the rows of pixels [top, bottom) of a row of windows; behind the last window, up to k rows that are in none */
static int64_t rows_from(const pool_t *m, int64_t top) {
    int64_t k = m->factor, bottom = top == 0 ? k - k / 2 : top + k;
    return (bottom < m->height ? bottom : m->height) - top;
}

static int forward_plane(int64_t item, void *context) {
    const pool_t *m = context;
    int64_t k = m->factor, width = m->width, window_rows = m->pooled == NULL ? 0 : m->pooled_height;
    int16_t class;
    const float *x = m->logits + item * m->height * width;
    const int16_t *labels = labels_of_plane(m, item, &class);
    int64_t padded = width + 2 * (k / 2);
    float *buffer = calloc((size_t)(2 * k * width + 4 * padded), sizeof(float));
    if (buffer == NULL) return 1;
    pending_t pending = {buffer, k * width, 0};
    float *columns = buffer + 2 * k * width, *hits = columns + padded;
    window_row_t w = {buffer + k * width, columns, hits, (int16_t *)(hits + padded), (int32_t *)(hits + 2 * padded)};
    for (int64_t i = 0; i < padded; i++) columns[i] = -2.0f * (float)(m->indices != NULL); /* less than any maximum */
    double total = 0.0;
    for (int64_t top = 0, window_row = 0, rows; top < m->height; top += rows, window_row++) {
        rows = rows_from(m, top);
        int64_t offset = (item * m->pooled_height + window_row) * m->pooled_width;
        int in_windows = window_row < window_rows;
        float *probs = !in_windows ? NULL : k == 1 ? m->pooled + offset : w.probs;
        total += sweep(m, x + top * width, labels + top * width, class, rows * width, probs, &pending);
        if (in_windows && k > 1) pool_windows(m, &w, labels + top * width, class, top, rows, offset);
    }
    if (m->totals != NULL) m->totals[item] = total + take_logs(&pending);
    free(buffer);
    return 0;
}

/* spreads the gradient of a row of windows over its `rows` rows of pixels, from `top` on; `columns` is a buffer */
static void spread_windows(
    const pool_t *m, const float *grad, const int32_t *indices, int64_t top, int64_t rows, float *columns,
    float *pixels) {
    int64_t k = m->factor, width = m->width;
    if (indices != NULL) {
        memset(pixels, 0, sizeof(float) * (size_t)(width * rows));
        for (int64_t j = 0; j < m->pooled_width; j++) pixels[indices[j] - top * width] = grad[j];
        return;
    }
    FOR_FACTOR(fill_windows, grad, columns, m->pooled_width, k)
    for (int64_t i = 0; i < width; i++) pixels[i] = columns[k / 2 + i] / (float)(k * k);
    for (int64_t row = 1; row < rows; row++) memcpy(pixels + row * width, pixels, sizeof(float) * (size_t)width);
}

/* gradient in n logits: of the cross entropy with weight `pixel`, and of `region` in the probabilities */
static void gradient_pixels(
    const float *RESTRICT x, const int16_t *RESTRICT labels, int16_t class, float pixel, const float *RESTRICT region,
    float *RESTRICT grad, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float e = exp_minus_abs(x[i]), inverse = 1.0f / (1.0f + e), small = e * inverse;
        float p = x[i] < 0.0f ? small : inverse, rest = x[i] < 0.0f ? inverse : small;
        float difference = labels[i] == class ? -rest : p;
        float g = fmaf(pixel, difference, region[i] * (small * inverse));
        grad[i] = labels[i] >= 0 ? g : 0.0f;
    }
}

static int backward_plane(int64_t item, void *context) {
    const pool_t *m = context;
    int64_t width = m->width, window_rows = m->grad_pooled == NULL ? 0 : m->pooled_height;
    int16_t class;
    const float *x = m->logits + item * m->height * width;
    const int16_t *labels = labels_of_plane(m, item, &class);
    float *grad = m->grad + item * m->height * width;
    float *pixels = calloc((size_t)(m->factor * width + width + 2 * (m->factor / 2)), sizeof(float));
    if (pixels == NULL) return 1;
    float *columns = pixels + m->factor * width; /* those behind the last window stay 0 */
    for (int64_t top = 0, window_row = 0, rows; top < m->height; top += rows, window_row++) {
        rows = rows_from(m, top);
        int64_t from = top * width, n = rows * width;
        int64_t offset = (item * m->pooled_height + window_row) * m->pooled_width;
        const int32_t *indices = m->indices == NULL ? NULL : m->indices + offset;
        if (window_row < window_rows)
            spread_windows(m, m->grad_pooled + offset, indices, top, rows, columns, pixels);
        else /* no window has these rows */
            memset(pixels, 0, sizeof(float) * (size_t)n);
        for (int64_t at = 0; at < n; at += STRIP) {
            int64_t size = n - at < STRIP ? n - at : STRIP, i = from + at;
            fetch(x + i + n, size);
            gradient_pixels(x + i, labels + i, class, m->grad_total, pixels + at, grad + i, size);
        }
    }
    free(pixels);
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

int pool_backward(
    const float *logits, const int16_t *target, int32_t *indices, const float *grad_pooled, float *grad,
    float grad_total, int64_t multi_hot, int64_t images, int64_t classes, int64_t height, int64_t width,
    int64_t pooled_height, int64_t pooled_width, int64_t factor, int64_t threads) {
    pool_t pool = {logits, target, NULL, NULL, indices, NULL, grad_pooled, grad, grad_total,
                   multi_hot, classes, height, width, pooled_height, pooled_width, factor};
    return parallel(backward_plane, &pool, images * classes, threads);
}

/* ---- moments of regions: sums of lagged products ---- */

/* doubles per vector; for processors with shorter vectors, the compiler splits them */
#ifdef __AVX512F__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef double lanes __attribute__((vector_size(LANES * sizeof(double))));

static inline lanes load(const double *from) {
    lanes values;
    memcpy(&values, from, sizeof(values));
    return values;
}

typedef struct {
    const float *labels, *probs; /* (M, h, w) */
    double *moments;             /* (M, 2d, 2d) */
    const double *weights;       /* backward: (M, d, 2d), gradient in P = weights [Y; P] */
    float *grad;                 /* backward: (M, h, w) */
    int64_t height, width, side;
    int64_t rows, columns; /* of the regions' positions */
    int64_t pitch;         /* distance of two rows of a plane in double, with zeros behind each row */
} regions_t;

static regions_t make_regions(const float *labels, const float *probs, int64_t height, int64_t width, int64_t side) {
    regions_t r = {labels, probs, NULL, NULL, NULL, height, width, side, height - side + 1, width - side + 1, 0};
    r.pitch = width + side + LANES;
    return r;
}

/* both planes (2, h, pitch) in double, minus their means, which keeps precision */
static void center(const regions_t *r, int64_t item, double *out) {
    int64_t size = r->height * r->width;
    for (int j = 0; j < 2; j++) {
        const float *RESTRICT plane = (j == 0 ? r->labels : r->probs) + item * size;
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) sum += (double)plane[i];
        double mean = sum / (double)size;
        for (int64_t y = 0; y < r->height; y++, plane += r->width, out += r->pitch) {
            for (int64_t x = 0; x < r->width; x++) out[x] = (double)plane[x] - mean;
            memset(out + r->width, 0, sizeof(double) * (size_t)(r->pitch - r->width));
        }
    }
}

/* (2, R, R): the mean over all regions for each plane and offset */
static void offset_means(const regions_t *r, const double *planes, double *means) {
    int64_t side = r->side, rows = r->rows, columns = r->columns;
    memset(means, 0, sizeof(double) * (size_t)(2 * side * side));
    for (int64_t j = 0; j < 2; j++)
        for (int64_t y = 0; y < r->height; y++) {
            const double *row = planes + (j * r->height + y) * r->pitch;
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

/* number of shifts that are summed together, to share their loads; 4 x 5 sums fit the registers */
enum { AT_ONCE = 5 };

/* for two planes a_j and b_k: [2 j + k][s] is the sum of a_j times b_k shifted by s columns */
typedef double dots_t[4][AT_ONCE];

/* values of two planes, or of one column of each, from a position on */
typedef struct {
    const double *of[2];
} pair_t;

static pair_t from(pair_t values, int64_t offset) {
    return (pair_t){{values.of[0] + offset, values.of[1] + offset}};
}

ALWAYS_INLINE void add_products(
    lanes (*sums)[AT_ONCE], pair_t a, pair_t b, int64_t offset, const lanes *mask, const int shifts) {
    lanes a0 = load(a.of[0] + offset), a1 = load(a.of[1] + offset);
    if (mask != NULL) a0 *= *mask, a1 *= *mask;
    for (int s = 0; s < shifts; s++) {
        lanes b0 = load(b.of[0] + offset + s), b1 = load(b.of[1] + offset + s);
        sums[0][s] += a0 * b0, sums[1][s] += a0 * b1, sums[2][s] += a1 * b0, sums[3][s] += a1 * b1;
    }
}

ALWAYS_INLINE void dots_at_once(
    const regions_t *r, pair_t a, pair_t b, int64_t rows, int64_t columns, double (*dots)[AT_ONCE], const int shifts) {
    lanes sums[4][AT_ONCE] = {{{0.0}}}, mask = {0.0};
    int64_t whole = columns / LANES * LANES;
    for (int64_t lane = 0; lane < columns - whole; lane++) mask[lane] = 1.0;
    for (int64_t row = 0; row < rows; row++) {
        int64_t offset = row * r->pitch;
        for (int64_t x = 0; x < whole; x += LANES) add_products(sums, a, b, offset + x, NULL, shifts);
        if (whole < columns) add_products(sums, a, b, offset + whole, &mask, shifts);
    }
    for (int pair = 0; pair < 4; pair++)
        for (int s = 0; s < shifts; s++) {
            double sum = 0.0;
            for (int lane = 0; lane < LANES; lane++) sum += sums[pair][s][lane];
            dots[pair][s] = sum;
        }
}

/* dots over rows and columns; behind the columns, at least LANES + shifts values are read and multiplied by 0 */
static void sum_products(
    const regions_t *r, pair_t a, pair_t b, int64_t rows, int64_t columns, int64_t shifts, double (*dots)[AT_ONCE]) {
    switch (shifts) {
        case 1: dots_at_once(r, a, b, rows, columns, dots, 1); break;
        case 2: dots_at_once(r, a, b, rows, columns, dots, 2); break;
        case 3: dots_at_once(r, a, b, rows, columns, dots, 3); break;
        case 4: dots_at_once(r, a, b, rows, columns, dots, 4); break;
        default: dots_at_once(r, a, b, rows, columns, dots, AT_ONCE);
    }
}

/* what the moments of a plane are computed from */
typedef struct {
    double *planes; /* (2, h, pitch) */
    double *edges;  /* (2, 2 (R - 1), h + LANES): their first and last R - 1 columns as rows, with zeros behind them */
    double *means;  /* (2, R, R) */
    dots_t *steps;  /* R - 1 */
} workspace_t;

static void copy_edges(const regions_t *r, const workspace_t *w) {
    int64_t side = r->side;
    double *edge = w->edges;
    for (int64_t j = 0; j < 2; j++)
        for (int64_t c = 0; c < 2 * (side - 1); c++, edge += r->height + LANES) {
            int64_t x = c < side - 1 ? c : c - (side - 1) + r->columns;
            for (int64_t y = 0; y < r->height; y++) edge[y] = w->planes[(j * r->height + y) * r->pitch + x];
            memset(edge + r->height, 0, sizeof(double) * LANES);
        }
}

static pair_t edge_columns(const regions_t *r, const workspace_t *w, int64_t c) {
    int64_t length = r->height + LANES;
    const double *first = w->edges + c * length;
    return (pair_t){{first, first + 2 * (r->side - 1) * length}};
}

/* pixels of the upper plane and of pixels `rows` below in the lower plane, 0 ... R - 1 columns to the right of them, or
 * with `mirrored` 1 ... R - 1 columns to the left */
typedef struct {
    int64_t rows, mirrored;
    int64_t steps; /* rows of offsets that a pair can have, minus 1 */
} lag_t;

/* the dots over all regions for the first row of offsets, and in w->steps their change from each row to the next */
static void sum_first_column(
    const regions_t *r, const workspace_t *w, const lag_t *lag, int64_t shift, int64_t shifts, double (*dots)[AT_ONCE]) {
    pair_t planes = {{w->planes, w->planes + r->height * r->pitch}}, below = from(planes, lag->rows * r->pitch);
    pair_t a = lag->mirrored ? below : planes, b = from(lag->mirrored ? planes : below, shift);
    sum_products(r, a, b, r->rows, r->columns, shifts, dots);
    for (int64_t dy = 0; dy < lag->steps; dy++) {
        int64_t top = dy * r->pitch, bottom = (dy + r->rows) * r->pitch;
        dots_t before, after;
        sum_products(r, from(a, top), from(b, top), 1, r->columns, shifts, before);
        sum_products(r, from(a, bottom), from(b, bottom), 1, r->columns, shifts, after);
        for (int pair = 0; pair < 4; pair++)
            for (int64_t s = 0; s < shifts; s++) w->steps[dy][pair][s] = after[pair][s] - before[pair][s];
    }
}

/* Moves shift s of `dots`, over regions whose first offset is column c, to column c + 1: the products of a column are
 * subtracted, those of another are added; w->steps likewise. */
static void move_right(
    const regions_t *r, const workspace_t *w, const lag_t *lag, int64_t shift, int64_t s, int64_t c,
    double (*dots)[AT_ONCE]) {
    for (int64_t last = 0; last < 2; last++) {
        double sign = last ? 1.0 : -1.0;
        int64_t column = c + last * (r->side - 1);
        pair_t a = from(edge_columns(r, w, column), lag->mirrored ? lag->rows : 0);
        pair_t b = from(edge_columns(r, w, column + shift + s), lag->mirrored ? 0 : lag->rows);
        dots_t column_dots;
        sum_products(r, a, b, 1, r->rows, 1, column_dots);
        for (int pair = 0; pair < 4; pair++) {
            const double *x = a.of[pair / 2], *y = b.of[pair % 2];
            dots[pair][s] += sign * column_dots[pair][0];
            for (int64_t dy = 0; dy < lag->steps; dy++)
                w->steps[dy][pair][s] += sign * (x[dy + r->rows] * y[dy + r->rows] - x[dy] * y[dy]);
        }
    }
}

/* stores the moments of shift s from column dx on, for all rows of offsets and both orders of each pair */
static void store_moments(
    const regions_t *r, const workspace_t *w, const lag_t *lag, int64_t shift, int64_t s, int64_t dx,
    double (*dots)[AT_ONCE], double *out) {
    int64_t side = r->side, d = side * side, right = dx + shift + s;
    int64_t upper_dx = lag->mirrored ? right : dx, lower_dx = lag->mirrored ? dx : right;
    for (int pair = 0; pair < 4; pair++) {
        int64_t upper = lag->mirrored ? pair % 2 : pair / 2, lower = lag->mirrored ? pair / 2 : pair % 2;
        double sum = dots[pair][s];
        for (int64_t dy = 0; dy <= lag->steps; dy++) {
            int64_t one = upper * d + dy * side + upper_dx, two = lower * d + (dy + lag->rows) * side + lower_dx;
            double value = sum - w->means[one] * w->means[two] * (double)(r->rows * r->columns);
            out[one * 2 * d + two] = value;
            out[two * 2 * d + one] = value;
            if (dy < lag->steps) sum += w->steps[dy][pair][s];
        }
    }
}

static void moments_of_lag(const regions_t *r, const workspace_t *w, int64_t rows, int64_t mirrored, double *out) {
    lag_t lag = {rows, mirrored, r->side - 1 - rows};
    for (int64_t shift = mirrored; shift < r->side; shift += AT_ONCE) {
        int64_t shifts = shift + AT_ONCE < r->side ? AT_ONCE : r->side - shift;
        dots_t dots;
        sum_first_column(r, w, &lag, shift, shifts, dots);
        for (int64_t s = 0; s < shifts; s++)
            for (int64_t dx = 0; dx + shift + s < r->side; dx++) {
                if (dx > 0) move_right(r, w, &lag, shift, s, dx - 1, dots);
                store_moments(r, w, &lag, shift, s, dx, dots, out);
            }
    }
}

static int moments_of_plane(int64_t item, void *context) {
    const regions_t *r = context;
    int64_t side = r->side, d = side * side, size = 2 * r->height * r->pitch;
    int64_t edges = 4 * (side - 1) * (r->height + LANES), steps = (side - 1) * 4 * AT_ONCE;
    workspace_t w;
    w.planes = malloc(sizeof(double) * (size_t)(size + edges + 2 * d + steps));
    if (w.planes == NULL) return 1;
    w.edges = w.planes + size, w.means = w.edges + edges, w.steps = (dots_t *)(w.means + 2 * d);
    double *out = r->moments + item * 4 * d * d;
    center(r, item, w.planes);
    offset_means(r, w.planes, w.means);
    copy_edges(r, &w);
    for (int64_t ly = 0; ly < side; ly++) {
        moments_of_lag(r, &w, ly, 0, out);
        if (ly > 0) moments_of_lag(r, &w, ly, 1, out);
    }
    free(w.planes);
    return 0;
}

/* ---- gradient of the moments in P: each plane filtered by the sums of its weights ---- */

/* number of rows that are filtered together, to share their loads */
enum { ROWS_AT_ONCE = 4 };

/* range of offsets, low ... high, that a row or column can have in a region inside the plane */
static void reach(int64_t position, int64_t regions, int64_t side, int64_t *low, int64_t *high) {
    *low = position - regions + 1 > 0 ? position - regions + 1 : 0;
    *high = position < side - 1 ? position : side - 1;
}

/* columns [from, to) whose pixels have the same offsets, low ... high, in a region: one filter is for all of them */
typedef struct {
    int64_t from, to, reach[2];
    double *taps; /* (2, 2 R - 1, 2 R - 1), with ROWS_AT_ONCE - 1 rows of zeros above and below those of each plane */
    double constant;
} stretch_t;

/* divides the columns into stretches, single ones at the borders and a long one in between, and returns their number */
static int64_t find_stretches(const regions_t *r, stretch_t *stretches) {
    int64_t count = 0;
    for (int64_t x = 0; x < r->width; x++) {
        stretch_t one = {x, x + 1, {0, 0}, NULL, 0.0};
        reach(x, r->columns, r->side, &one.reach[0], &one.reach[1]);
        if (count > 0 && memcmp(stretches[count - 1].reach, one.reach, sizeof(one.reach)) == 0)
            stretches[count - 1].to = x + 1;
        else
            stretches[count++] = one;
    }
    return count;
}

static int64_t rows_of_taps(int64_t side) { return 2 * side - 1 + 2 * (ROWS_AT_ONCE - 1); }

/* the tap of plane j for pixels ly rows below and in the same column */
static double *tap_of(const stretch_t *at, int64_t side, int64_t j, int64_t ly) {
    return at->taps + (j * rows_of_taps(side) + ROWS_AT_ONCE - 1 + ly + side - 1) * (2 * side - 1) + side - 1;
}

/* the taps of a stretch: the sums of the weights of offset pairs that are (ly, lx) apart, for offsets within reach */
static void make_filter(
    const double *weights, const double *means, int64_t side, const int64_t *reach_y, stretch_t *at) {
    int64_t d = side * side;
    memset(at->taps, 0, sizeof(double) * (size_t)(2 * rows_of_taps(side) * (2 * side - 1)));
    at->constant = 0.0;
    for (int64_t dy = reach_y[0]; dy <= reach_y[1]; dy++)
        for (int64_t dx = at->reach[0]; dx <= at->reach[1]; dx++) {
            const double *row = weights + (dy * side + dx) * 2 * d;
            for (int64_t i = 0; i < 2 * d; i++) { /* offset (ey, ex) of plane j */
                int64_t j = i / d, ey = i % d / side, ex = i % side;
                tap_of(at, side, j, ey - dy)[ex - dx] += row[i];
                at->constant += row[i] * means[i];
            }
        }
}

/* the gradient in `rows` rows from y on, all with the same reach, for the columns of a stretch and up to LANES - 1
 * behind it, which the next stretch overwrites */
ALWAYS_INLINE void filter_rows(
    const regions_t *r, const double *planes, const stretch_t *at, int64_t y, const int64_t *reach_y, double *out,
    const int rows) {
    int64_t side = r->side, span = 2 * side - 1;
    for (int64_t x = at->from; x < at->to; x += LANES) {
        lanes sums[ROWS_AT_ONCE];
        for (int row = 0; row < rows; row++) sums[row] = (lanes){0.0} - at->constant;
        for (int64_t j = 0; j < 2; j++)
            for (int64_t ly = -reach_y[1]; ly < side - reach_y[0] + rows - 1; ly++) {
                const double *values = planes + (j * r->height + y + ly) * r->pitch + x, *tap = tap_of(at, side, j, ly);
                for (int64_t lx = -at->reach[1]; lx < side - at->reach[0]; lx++) {
                    lanes value = load(values + lx);
                    for (int row = 0; row < rows; row++) sums[row] += value * tap[lx - row * span];
                }
            }
        for (int row = 0; row < rows; row++) memcpy(out + row * r->pitch + x, &sums[row], sizeof(lanes));
    }
}

static int moments_backward_of_plane(int64_t item, void *context) {
    const regions_t *r = context;
    int64_t side = r->side, h = r->height, w = r->width, d = side * side, size = 2 * h * r->pitch;
    int64_t filter = 2 * rows_of_taps(side) * (2 * side - 1), reach_y[2], before[2] = {-1, -1};
    stretch_t *stretches = malloc(sizeof(stretch_t) * (size_t)w);
    if (stretches == NULL) return 1;
    int64_t count = find_stretches(r, stretches);
    double *planes = malloc(sizeof(double) * (size_t)(size + 2 * d + ROWS_AT_ONCE * r->pitch + count * filter));
    if (planes == NULL) {
        free(stretches);
        return 1;
    }
    double *means = planes + size, *out = means + 2 * d, *taps = out + ROWS_AT_ONCE * r->pitch;
    for (int64_t s = 0; s < count; s++) stretches[s].taps = taps + s * filter;
    center(r, item, planes);
    offset_means(r, planes, means);
    for (int64_t y = 0, rows; y < h; y += rows) {
        reach(y, r->rows, side, &reach_y[0], &reach_y[1]);
        int changed = memcmp(reach_y, before, sizeof(before)) != 0;
        memcpy(before, reach_y, sizeof(before));
        int inner = y >= side - 1 && y + ROWS_AT_ONCE <= r->rows; /* all of these rows have all offsets */
        rows = inner ? ROWS_AT_ONCE : 1;
        for (int64_t s = 0; s < count; s++) {
            if (changed) make_filter(r->weights + item * 2 * d * d, means, side, reach_y, &stretches[s]);
            if (inner)
                filter_rows(r, planes, &stretches[s], y, reach_y, out, ROWS_AT_ONCE);
            else
                filter_rows(r, planes, &stretches[s], y, reach_y, out, 1);
        }
        for (int64_t row = 0; row < rows; row++)
            for (int64_t x = 0; x < w; x++) r->grad[item * h * w + (y + row) * w + x] = (float)out[row * r->pitch + x];
    }
    free(planes);
    free(stretches);
    return 0;
}

int regions_moments(
    const float *labels, const float *probs, double *moments, int64_t planes, int64_t height, int64_t width,
    int64_t side, int64_t threads) {
    regions_t regions = make_regions(labels, probs, height, width, side);
    regions.moments = moments;
    return parallel(moments_of_plane, &regions, planes, threads);
}

int regions_backward(
    const double *weights, const float *labels, const float *probs, float *grad, int64_t planes, int64_t height,
    int64_t width, int64_t side, int64_t threads) {
    regions_t regions = make_regions(labels, probs, height, width, side);
    regions.weights = weights, regions.grad = grad;
    return parallel(moments_backward_of_plane, &regions, planes, threads);
}
