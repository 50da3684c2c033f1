/* Calls every kernel with arrays of exactly the size that it may touch, for random sizes and options. Compiled with
 * AddressSanitizer and UndefinedBehaviorSanitizer, it ends with an error at the first access beyond an array. */
#include <stdio.h>

#include "kernels.c"

static int64_t below(int64_t limit) { return rand() % limit; }

static void *floats(int64_t count) {
    float *values = malloc(sizeof(float) * (size_t)count);
    for (int64_t i = 0; i < count; i++) values[i] = (float)(below(2000) - 1000) / 50.0f;
    return values;
}

static int check_pooling(void) {
    int64_t images = 1 + below(2), classes = 1 + below(3), height = 1 + below(40), width = 1 + below(40);
    int64_t k = 1 + below(7), multi_hot = below(2), with_loss = below(2), with_maps = below(4) > 0, with_max = below(2);
    if (!with_maps) k = 1;
    int64_t h = (height + k / 2 * 2) / k, w = (width + k / 2 * 2) / k;
    int64_t planes = images * classes, pixels = planes * height * width, pooled_pixels = planes * h * w;
    if (pooled_pixels == 0) return 0;
    int64_t labeled = (multi_hot ? planes : images) * height * width;
    int16_t *target = malloc(sizeof(int16_t) * (size_t)labeled);
    for (int64_t i = 0; i < labeled; i++) target[i] = (int16_t)(multi_hot ? below(2) : below(classes + 1) - 1);
    float *logits = floats(pixels), *grad = floats(pixels), *pooled = with_maps ? floats(pooled_pixels) : NULL;
    float *pooled_target = k > 1 ? floats(pooled_pixels) : NULL;
    int32_t *indices = k > 1 && with_max ? malloc(sizeof(int32_t) * (size_t)pooled_pixels) : NULL;
    double *totals = with_loss ? malloc(sizeof(double) * (size_t)planes) : NULL;
    if (!with_maps) h = w = 0;
    int failed = pool_forward(logits, target, pooled, pooled_target, indices, totals, multi_hot, images, classes, height,
                              width, h, w, k, 1);
    failed |= pool_backward(logits, target, indices, pooled, grad, 0.3f, multi_hot, images, classes, height, width, h, w,
                            k, 1);
    free(target), free(logits), free(grad), free(pooled), free(pooled_target), free(indices), free(totals);
    return failed;
}

static int check_moments(void) {
    int64_t planes = 1 + below(3), side = 1 + below(7), height = side + below(40), width = side + below(40);
    int64_t pixels = planes * height * width, entries = 2 * side * side;
    double *moments = malloc(sizeof(double) * (size_t)(planes * entries * entries));
    float *labels = floats(pixels), *probs = floats(pixels), *grad = floats(pixels);
    int failed = regions_moments(labels, probs, moments, planes, height, width, side, 1);
    failed |= regions_backward(moments, labels, probs, grad, planes, height, width, side, 1);
    free(moments), free(labels), free(probs), free(grad);
    return failed;
}

int main(void) {
    for (int number = 0; number < 500; number++) {
        srand((unsigned)number);
        if (check_pooling() || check_moments()) return 1;
    }
    puts("500 random sizes");
    return 0;
}
