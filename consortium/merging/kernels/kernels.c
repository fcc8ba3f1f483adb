/* What portable.py computes, the same bits, at the speed of memory.
 *
 * portable.py has the formulas, shapes and papers; here is only how. Plain C99 in loops that compilers turn
 * into vectors, several builds of each in one file where the compiler and the C library can choose among
 * them at load time (gcc, glibc, x86-64). No Python.h: native.py calls it through ctypes, without the
 * interpreter's lock. No function keeps state or allocates; all arrays are contiguous.
 *
 * Bits: to be built without -ffast-math and without contraction (-ffp-contract=off), with rounding to
 * nearest. Byte order: little-endian, which native.py checks.
 */
#define _FILE_OFFSET_BITS 64
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define CHOOSES /* at load time, which build of a function runs */
#include <immintrin.h>
#if __GNUC__ >= 12
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define KERNEL
#endif
#define INLINE static inline __attribute__((always_inline)) /* so that it is built as its caller is */

typedef int64_t i64;

enum { TILE = 512, LANES = 32, SORTED = 8192, WIDTH = 256, MOST_FILES = 256 }; /* of arrays on the stack, up to 32 KiB */

static const uint32_t SIGN = 0x7FFFFFFF; /* all bits but the sign */
static const double UNITS = 68719476736.0; /* 2^36: of the exact grid, in one */
static const double SLIGHT = 1024.0; /* units: a divisor below that is what rounding left of none */

/* sha256 of this file when it was built: native.py refuses a build of another source. */
const char *kernels_source(void) { return KERNELS_SOURCE; }

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE float float_of_bf16(uint16_t raw) { return float_of((uint32_t)raw << 16); }

/* out = scale * x (+ theta, unless null), rounded once. */
INLINE void scaled(const double *x, double scale, const float *theta, float *out, i64 n) {
    if (theta)
        for (i64 i = 0; i < n; i++) out[i] = (float)(x[i] * scale + (double)theta[i]);
    else
        for (i64 i = 0; i < n; i++) out[i] = (float)(x[i] * scale);
}

INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }

/* The order of floats in integers, -0.0 before +0.0; its own inverse. */
INLINE int32_t mirrored(int32_t bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }

INLINE int32_t peak_key(const float *x, i64 n, int32_t peak) {
    for (i64 i = 0; i < n; i++) {
        int32_t key = (int32_t)(bits_of(x[i]) & SIGN);
        peak = key > peak ? key : peak;
    }
    return peak;
}

/* ---- stored formats ---- */

KERNEL void decode_bf16(const uint16_t *raw, uint32_t *out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = (uint32_t)raw[i] << 16;
}

INLINE uint16_t bf16_of(uint32_t bits) {
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & SIGN) > 0x7F800000 ? (bits >> 16) | 0x40 : rounded);
}

KERNEL void encode_bf16(const uint32_t *x, uint16_t *out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = bf16_of(x[i]);
}

KERNEL i64 first_non_finite(const float *x, i64 n) {
    for (i64 begin = 0; begin < n; begin += TILE) {
        i64 size = least(TILE, n - begin);
        if (peak_key(x + begin, size, 0) < 0x7F800000) continue;
        for (i64 i = begin;; i++)
            if ((bits_of(x[i]) & SIGN) >= 0x7F800000) return i;
    }
    return -1;
}

/* ---- sums ---- */

KERNEL double grid_add(double *total, const float *x, double factor, i64 n) {
    int32_t peak = 0;
    for (i64 begin = 0; begin < n; begin += TILE) {
        i64 size = least(TILE, n - begin);
        for (i64 i = begin; i < begin + size; i++) total[i] += rint((double)x[i] * factor);
        peak = peak_key(x + begin, size, peak);
    }
    return float_of((uint32_t)peak);
}

enum { STORED = 1, RELATIVE = 2 }; /* what a row is: bfloat16 as stored; to be made relative to the base */

INLINE int32_t more(int32_t peak, float x) {
    int32_t key = (int32_t)(bits_of(x) & SIGN);
    return key > peak ? key : peak;
}

/* Four stored rows in one visit: a third less work than one by one. Whole numbers: their order is free. */
INLINE void add_four(double *total, const uint16_t *const *rows, const float *base, const double *factors,
                     int32_t *peaks, i64 size, int relative, int first) {
    const uint16_t *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
    double fa = factors[0], fb = factors[1], fc = factors[2], fd = factors[3];
    int32_t pa = peaks[0], pb = peaks[1], pc = peaks[2], pd = peaks[3];
    for (i64 i = 0; i < size; i++) {
        float w = float_of_bf16(a[i]), x = float_of_bf16(b[i]), y = float_of_bf16(c[i]), z = float_of_bf16(d[i]);
        if (relative) w -= base[i], x -= base[i], y -= base[i], z -= base[i];
        double sum = rint((double)w * fa) + rint((double)x * fb) + (rint((double)y * fc) + rint((double)z * fd));
        total[i] = (first ? 0.0 : total[i]) + sum; /* never -0.0 */
        pa = more(pa, w), pb = more(pb, x), pc = more(pc, y), pd = more(pd, z);
    }
    peaks[0] = pa, peaks[1] = pb, peaks[2] = pc, peaks[3] = pd;
}

INLINE void add_one(double *total, const void *row, int kind, const float *base, double factor, int32_t *peak,
                    i64 begin, i64 size, int first) {
    float x[TILE];
    if (kind & STORED)
        for (i64 i = 0; i < size; i++) x[i] = float_of_bf16(((const uint16_t *)row)[begin + i]);
    else
        memcpy(x, (const float *)row + begin, (size_t)size * sizeof *x);
    if (kind & RELATIVE)
        for (i64 i = 0; i < size; i++) x[i] -= base[i];
    if (first)
        for (i64 i = 0; i < size; i++) total[i] = 0.0 + rint((double)x[i] * factor);
    else
        for (i64 i = 0; i < size; i++) total[i] += rint((double)x[i] * factor);
    *peak = peak_key(x, size, *peak);
}

/* How many rows from `k` on can be added in one visit. */
INLINE i64 together(const uint8_t *kinds, i64 k, i64 num_rows) {
    uint8_t kind = kinds[k];
    int is_four = k + 4 <= num_rows && kinds[k + 1] == kind && kinds[k + 2] == kind && kinds[k + 3] == kind;
    return is_four && kind & STORED ? 4 : 1;
}

/* A tile of each row is decoded, made relative, and added on the grid; nothing leaves the first cache. */
INLINE void sum_tile(double *total, const void *const *rows, const uint8_t *kinds, const float *base,
                     const double *factors, int32_t *peaks, i64 num_rows, i64 begin, i64 size) {
    const float *theta = base ? base + begin : base;
    for (i64 i = 0; num_rows == 0 && i < size; i++) total[i] = 0.0;
    for (i64 k = 0, count; k < num_rows; k += count) {
        count = together(kinds, k, num_rows);
        if (count == 1) {
            add_one(total, rows[k], kinds[k], theta, factors[k], &peaks[k], begin, size, k == 0);
            continue;
        }
        const uint16_t *four[4];
        for (int j = 0; j < 4; j++) four[j] = (const uint16_t *)rows[k + j] + begin;
        int relative = kinds[k] & RELATIVE, first = k == 0; /* constants in each call, or gcc makes no vectors of it */
        if (relative && first)
            add_four(total, four, theta, factors + k, peaks + k, size, 1, 1);
        else if (relative)
            add_four(total, four, theta, factors + k, peaks + k, size, 1, 0);
        else if (first)
            add_four(total, four, theta, factors + k, peaks + k, size, 0, 1);
        else
            add_four(total, four, theta, factors + k, peaks + k, size, 0, 0);
    }
}

KERNEL void sum_rows(const void *const *rows, const uint8_t *kinds, const float *base, const double *factors,
                     int32_t *peaks, i64 num_rows, double *total, i64 n) {
    for (i64 begin = 0; begin < n; begin += TILE)
        sum_tile(total + begin, rows, kinds, base, factors, peaks, num_rows, begin, least(TILE, n - begin));
}

KERNEL void sum_rows_onto(const void *const *rows, const uint8_t *kinds, const float *base, const double *factors,
                          int32_t *peaks, i64 num_rows, double scale, const float *theta, float *out, i64 n) {
    double total[TILE];
    for (i64 begin = 0; begin < n; begin += TILE) {
        i64 size = least(TILE, n - begin);
        sum_tile(total, rows, kinds, base, factors, peaks, num_rows, begin, size);
        scaled(total, scale, theta ? theta + begin : theta, out + begin, size);
    }
}

/* out = x - base in float32 of bfloat16 as stored; returns the largest key of the result. */
KERNEL i64 subtract_bf16(const uint16_t *raw, const float *base, float *out, i64 n) {
    int32_t peak = 0;
    for (i64 begin = 0; begin < n; begin += TILE) {
        i64 size = least(TILE, n - begin);
        for (i64 i = begin; i < begin + size; i++) out[i] = float_of_bf16(raw[i]) - base[i];
        peak = peak_key(out + begin, size, peak);
    }
    return peak;
}

/* ---- files: what would take Python a call for every row and step, in pieces that stay in the second cache ---- */

enum { PIECE = 1 << 15 }; /* elements */

typedef struct {
    i64 offset; /* of the first element, in bytes */
    int32_t file; /* a descriptor; -1: there is none */
    int32_t kind;
} source;

INLINE int read_fully(int file, char *to, size_t size, i64 offset) {
    while (size) {
        ssize_t count = pread(file, to, size, (off_t)offset);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return 0;
        to += count, offset += count, size -= (size_t)count;
    }
    return 1;
}

INLINE size_t width_of(const source *from) { return from->kind & STORED ? 2 : 4; }

INLINE int read_piece(const source *from, void *raw, i64 begin, i64 size) {
    size_t width = width_of(from);
    return read_fully(from->file, raw, (size_t)size * width, from->offset + begin * (i64)width);
}

/* As float32; returns whether all of it was there and is finite. `out` may not be `raw`. */
INLINE int load_piece(const source *from, void *raw, float *out, i64 begin, i64 size) {
    if (from->kind & STORED) {
        if (!read_piece(from, raw, begin, size)) return 0;
        for (i64 i = 0; i < size; i++) out[i] = float_of_bf16(((const uint16_t *)raw)[i]);
    } else if (!read_piece(from, out, begin, size)) {
        return 0;
    }
    return peak_key(out, size, 0) < 0x7F800000;
}

typedef struct { /* the outer step, see sgd_step; before.file is -1 where nothing was kept */
    source before;
    double rate, momentum;
    i64 nesterov;
    float *kept;
} momentum_step;

/* One element of sgd_step. A momentum of -0.0 is none: added to anything it leaves it as it is. */
INLINE float stepped(double theta, double delta, double before, double rate, double momentum, i64 nesterov,
                     float *kept) {
    double gradient = -delta, velocity = momentum * before + gradient;
    *kept = (float)velocity;
    return (float)(theta - rate * (nesterov ? gradient + momentum * velocity : velocity));
}

INLINE void store(const float *next, int stored, void *out, i64 at, i64 size) {
    if (stored) {
        uint16_t *to = (uint16_t *)out + at;
        for (i64 i = 0; i < size; i++) to[i] = bf16_of(bits_of(next[i]));
    } else {
        memcpy((float *)out + at, next, (size_t)size * sizeof *next);
    }
}

/* sum_rows_onto of rows that lie in files, the base among them, with the outer step if there is one (else null);
 * out is bfloat16 or float32. raw has room for 4 * PIECE * (num_rows + 2) bytes. Returns whether every byte could
 * be read and base and momentum are finite; what the peaks say of the rows is the caller's to judge. */
KERNEL int sum_files_onto(const source *rows, i64 num_rows, const source *base, const double *factors, int32_t *peaks,
                          double scale, int onto_base, const momentum_step *step, int stored, void *out, i64 n,
                          char *raw) {
    const void *places[MOST_FILES];
    uint8_t kinds[MOST_FILES];
    float *theta = (float *)(raw + 4 * PIECE * num_rows), *before = theta + PIECE, next[TILE];
    double total[TILE];
    for (i64 i = 0; step && i < PIECE; i++) before[i] = -0.0f;
    for (i64 begin = 0; begin < n; begin += PIECE) {
        i64 size = least(PIECE, n - begin);
        if (base->file >= 0 && !load_piece(base, raw, theta, begin, size)) return 0;
        if (step && step->before.file >= 0 && !load_piece(&step->before, raw, before, begin, size)) return 0;
        for (i64 k = 0; k < num_rows; k++) {
            places[k] = raw + 4 * PIECE * k;
            kinds[k] = (uint8_t)rows[k].kind;
            if (!read_piece(&rows[k], raw + 4 * PIECE * k, begin, size)) return 0;
        }
        float *kept = step ? step->kept + begin : 0;
        for (i64 at = 0; at < size; at += TILE) {
            i64 tile = least(TILE, size - at);
            sum_tile(total, places, kinds, theta, factors, peaks, num_rows, at, tile);
            if (step)
                for (i64 i = 0; i < tile; i++)
                    next[i] = stepped(theta[at + i], total[i] * scale, before[at + i], step->rate, step->momentum,
                                      step->nesterov, &kept[at + i]);
            else
                scaled(total, scale, onto_base ? theta + at : 0, next, tile);
            store(next, stored, out, begin + at, tile);
        }
    }
    return 1;
}

/* Rows that lie in files as float32, relative ones less the base, which is left in `theta` (n elements).
 * Returns whether every byte could be read and everything is finite. */
KERNEL int read_rows(const source *rows, i64 num_rows, const source *base, float *out, float *theta, i64 n, char *raw) {
    for (i64 begin = 0; begin < n; begin += PIECE) {
        i64 size = least(PIECE, n - begin);
        if (base->file >= 0 && !load_piece(base, raw, theta + begin, begin, size)) return 0;
        for (i64 k = 0; k < num_rows; k++) {
            float *x = out + k * n + begin;
            if (!load_piece(&rows[k], raw, x, begin, size)) return 0;
            if (rows[k].kind & RELATIVE) {
                for (i64 i = 0; i < size; i++) x[i] -= theta[begin + i];
                if (peak_key(x, size, 0) >= 0x7F800000) return 0;
            }
        }
    }
    return 1;
}

/* ---- steps ---- */

KERNEL void sgd_step(const float *theta, const double *merged, double scale, const float *before, double rate,
                     double momentum, int nesterov, float *next, float *kept, i64 n) {
    for (i64 i = 0; i < n; i++)
        next[i] = stepped(theta[i], merged[i] * scale, before ? before[i] : -0.0, rate, momentum, nesterov, &kept[i]);
}

KERNEL void scale_to(const double *merged, double factor, float *out, i64 n) {
    scaled(merged, factor, 0, out, n);
}

KERNEL void apply_step(const float *theta, const double *merged, double factor, float *out, i64 n) {
    scaled(merged, factor, theta, out, n);
}

INLINE double folded(double *lane) {
    for (int width = LANES / 2; width; width /= 2)
        for (int l = 0; l < width; l++) lane[l] += lane[l + width];
    return lane[0];
}

INLINE double dot(const float *a, const float *b, i64 n) {
    double lane[LANES] = {0.0};
    i64 whole = n - n % LANES;
    for (i64 i = 0; i < whole; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += (double)a[i + l] * (double)b[i + l];
    for (i64 i = whole; i < n; i++) lane[i - whole] += (double)a[i] * (double)b[i];
    return folded(lane);
}

KERNEL void gram(const float *rows, i64 num_rows, i64 n, i64 block, double *out) {
    for (i64 begin = 0; begin < n; begin += block)
        for (i64 i = 0; i < num_rows; i++)
            for (i64 j = i; j < num_rows; j++)
                *out++ = dot(rows + i * n + begin, rows + j * n + begin, least(block, n - begin));
}

KERNEL void abs_sum(const float *x, i64 n, i64 block, double *out) {
    for (i64 begin = 0; begin < n; begin += block) {
        const float *a = x + begin;
        double lane[LANES] = {0.0};
        i64 size = least(block, n - begin), whole = size - size % LANES;
        for (i64 i = 0; i < whole; i += LANES)
            for (int l = 0; l < LANES; l++) lane[l] += (double)fabsf(a[i + l]);
        for (i64 i = whole; i < size; i++) lane[i - whole] += (double)fabsf(a[i]);
        *out++ = folded(lane);
    }
}

/* ---- sparsifying ---- */

/* Keeps the keys in low < key <= high, signed so that low = -1 lets every key in. */
INLINE void keep_between(uint32_t *x, i64 n, int32_t low, int32_t high) {
    for (i64 i = 0; i < n; i++) {
        int32_t key = (int32_t)(x[i] & SIGN);
        x[i] = (key > low) & (key <= high) ? x[i] : 0;
    }
}

/* Keys equal to `top` are in before its limit, equal to `without` out before its: three stretches. */
INLINE void window(uint32_t *x, i64 n, int32_t top, i64 top_limit, int32_t without, i64 without_limit) {
    i64 first = least(top_limit, without_limit), second = top_limit + without_limit - first;
    i64 cuts[4] = {0, first, second, n};
    for (int part = 0; part < 3; part++) {
        i64 begin = cuts[part];
        keep_between(x + begin, cuts[part + 1] - begin, top - (begin < top_limit),
                     without - (begin < without_limit));
    }
}

KERNEL void keep_window(uint32_t *x, i64 n, int32_t top, i64 top_limit, int32_t without, i64 without_limit) {
    window(x, n, top, top_limit, without, without_limit);
}

/* Philox2x32 on `num` counters, two words each. */
KERNEL static void draw_blocks_anywhere(uint64_t key, uint64_t counter, i64 num, uint32_t *words) {
    for (i64 i = 0; i < num; i++, counter++) {
        uint32_t round_key = (uint32_t)key;
        uint64_t left = counter & 0xFFFFFFFF, right = (counter >> 32) ^ (key >> 32);
        for (int round = 0; round < 10; round++, round_key += 0x9E3779B9) {
            uint64_t product = left * 0xD256D193;
            left = (product >> 32) ^ right ^ round_key;
            right = product & 0xFFFFFFFF;
        }
        left |= right << 32;
        memcpy(words + 2 * i, &left, sizeof left);
    }
}

#ifdef CHOOSES
/* gcc does not find the instruction that multiplies 32 bits to 64. With it this is three times as fast, six times
 * with vectors of 512 bits, if CHAINS of multiplications run side by side: one alone waits for its results. */
enum { CHAINS = 4 };

__attribute__((target("avx2"))) static void draw_blocks_avx2(uint64_t key, uint64_t counter, i64 num,
                                                             uint32_t *words) {
    enum { STEP = 4 * CHAINS };
    const __m256i multiplier = _mm256_set1_epi64x(0xD256D193), first = _mm256_set_epi64x(3, 2, 1, 0);
    const __m256i high = _mm256_set1_epi64x((i64)(key >> 32));
    for (; num >= STEP; num -= STEP, counter += STEP, words += 2 * STEP) {
        __m256i left[CHAINS], right[CHAINS];
        for (int c = 0; c < CHAINS; c++) {
            left[c] = _mm256_add_epi64(_mm256_set1_epi64x((i64)counter + 4 * c), first);
            right[c] = _mm256_xor_si256(_mm256_srli_epi64(left[c], 32), high);
        }
        for (int round = 0; round < 10; round++) {
            __m256i round_key = _mm256_set1_epi64x((uint32_t)key + (uint32_t)round * 0x9E3779B9);
            for (int c = 0; c < CHAINS; c++) {
                __m256i product = _mm256_mul_epu32(left[c], multiplier); /* of the low halves */
                __m256i mixed = _mm256_xor_si256(right[c], round_key);
                left[c] = _mm256_xor_si256(_mm256_srli_epi64(product, 32), mixed);
                right[c] = product;
            }
        }
        for (int c = 0; c < CHAINS; c++) {
            __m256i second = _mm256_slli_epi64(right[c], 32);
            _mm256_storeu_si256((__m256i *)words + c, _mm256_blend_epi32(left[c], second, 0xAA));
        }
    }
    draw_blocks_anywhere(key, counter, num, words);
}

__attribute__((target("avx512f"))) static void draw_blocks_avx512(uint64_t key, uint64_t counter, i64 num,
                                                                  uint32_t *words) {
    enum { STEP = 8 * CHAINS, XOR = 0x96 };
    const __m512i multiplier = _mm512_set1_epi64(0xD256D193), first = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i high = _mm512_set1_epi64((i64)(key >> 32));
    for (; num >= STEP; num -= STEP, counter += STEP, words += 2 * STEP) {
        __m512i left[CHAINS], right[CHAINS];
        for (int c = 0; c < CHAINS; c++) {
            left[c] = _mm512_add_epi64(_mm512_set1_epi64((i64)counter + 8 * c), first);
            right[c] = _mm512_xor_si512(_mm512_srli_epi64(left[c], 32), high);
        }
        for (int round = 0; round < 10; round++) {
            __m512i round_key = _mm512_set1_epi64((uint32_t)key + (uint32_t)round * 0x9E3779B9);
            for (int c = 0; c < CHAINS; c++) {
                __m512i product = _mm512_mul_epu32(left[c], multiplier);
                left[c] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product, 32), right[c], round_key, XOR);
                right[c] = product;
            }
        }
        for (int c = 0; c < CHAINS; c++) {
            __m512i second = _mm512_slli_epi64(right[c], 32);
            _mm512_storeu_si512((__m512i *)words + c, _mm512_mask_blend_epi32(0xAAAA, left[c], second));
        }
    }
    draw_blocks_avx2(key, counter, num, words);
}
#endif

static void draw_blocks(uint64_t key, uint64_t counter, i64 num, uint32_t *words) {
#ifdef CHOOSES
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx2")) {
        draw_blocks_avx512(key, counter, num, words);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        draw_blocks_avx2(key, counter, num, words);
        return;
    }
#endif
    draw_blocks_anywhere(key, counter, num, words);
}

/* The draws of places start .. start + n - 1, n <= TILE: where in `words` they begin. */
INLINE const uint32_t *draws(uint64_t key, i64 start, i64 n, uint32_t words[TILE + 2]) {
    draw_blocks(key, (uint64_t)start >> 1, ((start & 1) + n + 1) >> 1, words);
    return words + (start & 1);
}

KERNEL void draw32(uint64_t key, const i64 *index, uint32_t *out, i64 n) {
    for (i64 i = 0; i < n; i++) {
        uint32_t words[2];
        draw_blocks(key, (uint64_t)index[i] >> 1, 1, words);
        out[i] = words[index[i] & 1];
    }
}

/* threshold < 2^32 */
INLINE void random_ones(uint32_t *x, i64 n, i64 start, uint64_t key, uint32_t threshold) {
    uint32_t words[TILE + 2];
    for (i64 begin = 0; begin < n; begin += TILE) {
        i64 size = least(TILE, n - begin);
        const uint32_t *drawn = draws(key, start + begin, size, words);
        for (i64 i = 0; i < size; i++) x[begin + i] = drawn[i] < threshold ? x[begin + i] : 0;
    }
}

KERNEL void keep_random(uint32_t *x, i64 n, i64 start, uint64_t key, uint32_t threshold) {
    random_ones(x, n, start, key, threshold);
}

/* Sorts entries (key << 32 | column), keys below 2^31, into `other`; equal keys keep their order. */
INLINE void radix_sort(uint64_t *entries, uint64_t *other, i64 n) {
    enum { DIGITS = 11, BUCKETS = 1 << DIGITS, PASSES = 3 };
    uint32_t places[PASSES][BUCKETS] = {{0}};
    for (i64 i = 0; i < n; i++)
        for (int pass = 0; pass < PASSES; pass++)
            places[pass][entries[i] >> (32 + pass * DIGITS) & (BUCKETS - 1)]++;
    for (int pass = 0; pass < PASSES; pass++) {
        uint32_t sum = 0;
        for (int bucket = 0; bucket < BUCKETS; bucket++) {
            uint32_t size = places[pass][bucket];
            places[pass][bucket] = sum;
            sum += size;
        }
        for (i64 i = 0; i < n; i++) {
            uint64_t entry = entries[i];
            other[places[pass][entry >> (32 + pass * DIGITS) & (BUCKETS - 1)]++] = entry;
        }
        uint64_t *swap = entries;
        entries = other, other = swap;
    }
}

/* entries  room for 2 * num_columns; ranks  for num_columns */
KERNEL void keep_ranked(float *x, i64 num_rows, i64 num_columns, i64 row0, uint64_t key, double density,
                        double epsilon, int rescale, uint64_t *entries, uint32_t *ranks) {
    double low = density - epsilon, span = 2 * epsilon, steps = (double)(num_columns - (num_columns > 1));
    uint32_t words[TILE + 2];
    for (i64 row = row0; row < row0 + num_rows; row++, x += num_columns) {
        for (i64 i = 0; i < num_columns; i++)
            entries[i] = (uint64_t)(bits_of(x[i]) & SIGN) << 32 | (uint64_t)i;
        radix_sort(entries, entries + num_columns, num_columns);
        for (i64 rank = 0; rank < num_columns; rank++) /* three passes: sorted into the other half */
            ranks[(uint32_t)entries[num_columns + rank]] = (uint32_t)rank;
        for (i64 begin = 0; begin < num_columns; begin += TILE) {
            i64 size = least(TILE, num_columns - begin);
            const uint32_t *drawn = draws(key, row * num_columns + begin, size, words);
            for (i64 i = 0; i < size; i++) {
                double chance = low + span * (double)(int32_t)ranks[begin + i] / steps;
                double y = rescale ? (double)x[begin + i] / chance : (double)x[begin + i];
                /* of integers, draw < floor(p 2^32) is draw + 1 <= p 2^32 */
                x[begin + i] = (double)drawn[i] + 1.0 <= chance * 4294967296.0 ? (float)y : 0.0f;
            }
        }
    }
}

/* ---- consensus ---- */

static const float nothing[TILE]; /* stands in for rows that are not there, of four */

/* Rows four by four, which is a third of the traffic. With S and A the sums of the units and of their sizes, those
 * that are positive sum to (S + A) / 2, those that are negative to (S - A) / 2, exactly: both are even. */
INLINE void elect_tile(const float *rows, i64 num_rows, i64 n, const double *factors, const double *weights,
                       double *out, i64 size, int normalize) {
    double sum[TILE], sizes[TILE], positive[TILE], negative[TILE];
    for (i64 i = 0; i < size; i++) sum[i] = sizes[i] = positive[i] = negative[i] = 0.0;
    for (i64 k = 0; k < num_rows; k += 4) {
        const float *x[4];
        double f[4], w[4];
        for (int j = 0; j < 4; j++) {
            int is_there = k + j < num_rows;
            x[j] = is_there ? rows + (k + j) * n : nothing;
            f[j] = is_there ? factors[k + j] : 0.0, w[j] = is_there ? weights[k + j] : 0.0;
        }
        const float *p = x[0], *q = x[1], *r = x[2], *s = x[3];
        for (i64 i = 0; i < size; i++) {
            double a = (double)p[i] * f[0], b = (double)q[i] * f[1], c = (double)r[i] * f[2], d = (double)s[i] * f[3];
            double ua = rint(a), ub = rint(b), uc = rint(c), ud = rint(d);
            sum[i] += (ua + ub) + (uc + ud);
            sizes[i] += (fabs(ua) + fabs(ub)) + (fabs(uc) + fabs(ud));
            positive[i] += (a > 0.0 ? w[0] : 0.0) + (b > 0.0 ? w[1] : 0.0) + (c > 0.0 ? w[2] : 0.0);
            negative[i] += (a < 0.0 ? w[0] : 0.0) + (b < 0.0 ? w[1] : 0.0) + (c < 0.0 ? w[2] : 0.0);
            positive[i] += d > 0.0 ? w[3] : 0.0, negative[i] += d < 0.0 ? w[3] : 0.0;
        }
    }
    for (i64 i = 0; i < size; i++) {
        int up = sum[i] >= 0.0;
        double weight = up ? positive[i] : negative[i];
        double units = (up ? sum[i] + sizes[i] : sum[i] - sizes[i]) * 0.5;
        out[i] = units / (normalize && fabs(weight) >= SLIGHT ? weight : UNITS);
    }
}

/* factors and weights are in grid units, weights whole ones */
KERNEL double elect(const float *rows, i64 num_rows, i64 n, const double *factors, const double *weights,
                    double *out, int normalize) {
    int32_t peak = 0;
    for (i64 begin = 0; begin < n; begin += TILE) {
        i64 size = least(TILE, n - begin);
        elect_tile(rows + begin, num_rows, n, factors, weights, out + begin, size, normalize);
        for (i64 k = 0; k < num_rows; k++) peak = peak_key(rows + k * n + begin, size, peak);
    }
    return float_of((uint32_t)peak);
}

/* Sorts each of `size` columns of a tile by Batcher's merge exchange (Knuth, volume 3, algorithm 5.2.2M). */
INLINE void sort_columns(int32_t *tile, i64 num_rows, i64 size) {
    i64 top = 1;
    while (2 * top < num_rows) top *= 2;
    for (i64 p = top; p; p /= 2)
        for (i64 q = top, r = 0, d = p;; d = q - p, q /= 2, r = p) {
            for (i64 i = 0; i + d < num_rows; i++) {
                if ((i & p) != r) continue;
                int32_t *a = tile + i * size, *b = tile + (i + d) * size;
                for (i64 j = 0; j < size; j++) {
                    int32_t low = a[j] < b[j] ? a[j] : b[j], high = a[j] < b[j] ? b[j] : a[j];
                    a[j] = low, b[j] = high;
                }
            }
            if (q == p) break;
        }
}

typedef struct {
    int32_t rows[SORTED]; /* mirrored bits, row by row */
    double sum[WIDTH];
} columns;

/* Elements begin .. begin + size - 1 of all rows, ascending. */
INLINE void load_sorted(columns *c, const float *rows, i64 num_rows, i64 n, i64 begin, i64 size) {
    for (i64 k = 0; k < num_rows; k++)
        for (i64 j = 0; j < size; j++)
            c->rows[k * size + j] = mirrored((int32_t)bits_of(rows[k * n + begin + j]));
    sort_columns(c->rows, num_rows, size);
}

INLINE double value(const columns *c, i64 at) { return float_of((uint32_t)mirrored(c->rows[at])); }

/* Rows first .. last - 1, in order. */
INLINE void add_up(columns *c, i64 first, i64 last, i64 size) {
    for (i64 j = 0; j < size; j++) c->sum[j] = 0.0;
    for (i64 k = first; k < last; k++)
        for (i64 j = 0; j < size; j++) c->sum[j] += value(c, k * size + j);
}

INLINE i64 width_for(i64 num_rows) { return least(WIDTH, SORTED / num_rows); }

KERNEL void median(const float *rows, i64 num_rows, i64 n, double *out) {
    columns c;
    i64 below = (num_rows - 1) / 2, above = num_rows / 2;
    for (i64 begin = 0, size; begin < n; begin += size) {
        size = least(width_for(num_rows), n - begin);
        load_sorted(&c, rows, num_rows, n, begin, size);
        if (below == above)
            for (i64 j = 0; j < size; j++) out[begin + j] = value(&c, above * size + j);
        else
            for (i64 j = 0; j < size; j++)
                out[begin + j] = (value(&c, above * size + j) + value(&c, below * size + j)) * 0.5;
    }
}

KERNEL void trimmed_mean(const float *rows, i64 num_rows, i64 n, i64 trim, double *out) {
    columns c;
    for (i64 begin = 0, size; begin < n; begin += size) {
        size = least(width_for(num_rows), n - begin);
        load_sorted(&c, rows, num_rows, n, begin, size);
        add_up(&c, trim, num_rows - trim, size);
        for (i64 j = 0; j < size; j++) out[begin + j] = c.sum[j] / (double)(num_rows - 2 * trim);
    }
}

KERNEL void variance(const float *rows, i64 num_rows, i64 n, float *out) {
    columns c;
    double squares[WIDTH];
    for (i64 begin = 0, size; begin < n; begin += size) {
        size = least(width_for(num_rows), n - begin);
        load_sorted(&c, rows, num_rows, n, begin, size);
        add_up(&c, 0, num_rows, size);
        for (i64 j = 0; j < size; j++) c.sum[j] /= (double)num_rows, squares[j] = 0.0;
        for (i64 k = 0; k < num_rows; k++)
            for (i64 j = 0; j < size; j++) {
                double deviation = value(&c, k * size + j) - c.sum[j];
                squares[j] += deviation * deviation;
            }
        for (i64 j = 0; j < size; j++) out[begin + j] = (float)(squares[j] / (double)num_rows);
    }
}

/* ---- whole merges of files, in tiles that stay in the first cache ---- */

enum { WINDOW = 1, RANDOM = 2, ELECT = 0, MEDIAN = 1 };

typedef struct { /* how a row is thinned out, see keep_window and keep_random */
    i64 top_index, without_index;
    uint64_t key;
    uint32_t top_bits, without_bits, threshold;
    int32_t how;
} thinning;

INLINE i64 limit_of(uint32_t bits, i64 index, i64 start, i64 size) {
    i64 limit = index - start + 1;
    return bits > SIGN || limit < 0 ? 0 : least(limit, size);
}

INLINE int32_t key_of(uint32_t bits) { return (int32_t)(bits > SIGN ? SIGN : bits); }

INLINE void thin_out(const thinning *how, uint32_t *x, i64 start, i64 size) {
    if (how->how == WINDOW)
        window(x, size, key_of(how->top_bits), limit_of(how->top_bits, how->top_index, start, size),
               key_of(how->without_bits), limit_of(how->without_bits, how->without_index, start, size));
    else if (how->how == RANDOM)
        random_ones(x, size, start, how->key, how->threshold);
}

/* `size` elements of a piece from `at` on, as float32, relative ones less `theta`; returns the larger of their peak
 * and `peak`. */
INLINE int32_t decoded(const void *from, int kind, const float *theta, float *out, i64 at, i64 size, int32_t peak) {
    if (kind == (STORED | RELATIVE)) { /* most of all, in one go */
        for (i64 i = 0; i < size; i++) {
            out[i] = float_of_bf16(((const uint16_t *)from)[at + i]) - theta[i];
            peak = more(peak, out[i]);
        }
        return peak;
    }
    if (kind & STORED)
        for (i64 i = 0; i < size; i++) out[i] = float_of_bf16(((const uint16_t *)from)[at + i]);
    else
        memcpy(out, (const float *)from + at, (size_t)size * sizeof *out);
    if (kind & RELATIVE)
        for (i64 i = 0; i < size; i++) out[i] -= theta[i];
    return peak_key(out, size, peak);
}

INLINE int32_t lesser(int32_t a, int32_t b) { return a < b ? a : b; }
INLINE int32_t greater(int32_t a, int32_t b) { return a < b ? b : a; }

/* Of `size` columns, in place of which their order is left. */
INLINE void median_tile(int32_t *rows, i64 num_rows, i64 size, double *out) {
    i64 below = (num_rows - 1) / 2, above = num_rows / 2;
    for (i64 i = 0; i < num_rows * size; i++) rows[i] = mirrored(rows[i]);
    int32_t *low = rows + below * size, *high = rows + above * size;
    if (num_rows == 4)
        for (i64 i = 0; i < size; i++) {
            int32_t a = rows[i], b = rows[size + i], c = rows[2 * size + i], d = rows[3 * size + i];
            low[i] = greater(lesser(a, b), lesser(c, d)), high[i] = lesser(greater(a, b), greater(c, d));
        }
    else
        sort_columns(rows, num_rows, size);
    for (i64 i = 0; i < size; i++) {
        double a = float_of((uint32_t)mirrored(low[i])), b = float_of((uint32_t)mirrored(high[i]));
        out[i] = below == above ? b : (b + a) * 0.5;
    }
}

/* Rows of files, the base among them, from element `start` of their tensor on: thinned out, then elected or their
 * median; out = scale * that (+ base), as bfloat16 or float32. raw has room for 4 * PIECE * (num_rows + 1) and
 * 4 * TILE * num_rows bytes. Returns whether every byte could be read and everything is finite; `peak` is the
 * largest size of what was left of the rows. */
KERNEL int merge_files_onto(const source *rows, i64 num_rows, const source *base, const thinning *thin, i64 start,
                            int op, const double *factors, const double *weights, int normalize, double scale,
                            int onto_base, int stored, void *out, i64 n, char *raw, double *peak) {
    float *theta = (float *)(raw + 4 * PIECE * num_rows), *x = theta + PIECE, next[TILE];
    double merged[TILE];
    int32_t before = 0, after = 0;
    for (i64 begin = 0; begin < n; begin += PIECE) {
        i64 size = least(PIECE, n - begin);
        if (base->file >= 0 && !load_piece(base, raw, theta, begin, size)) return 0;
        for (i64 k = 0; k < num_rows; k++)
            if (!read_piece(&rows[k], raw + 4 * PIECE * k, begin, size)) return 0;
        for (i64 at = 0; at < size; at += TILE) {
            i64 tile = least(TILE, size - at);
            for (i64 k = 0; k < num_rows; k++) {
                float *row = x + k * tile;
                before = decoded(raw + 4 * PIECE * k, rows[k].kind, theta + at, row, at, tile, before);
                thin_out(&thin[k], (uint32_t *)row, start + begin + at, tile);
                after = peak_key(row, tile, after);
            }
            if (op == MEDIAN)
                median_tile((int32_t *)x, num_rows, tile, merged);
            else
                elect_tile(x, num_rows, tile, factors, weights, merged, tile, normalize);
            scaled(merged, scale, onto_base ? theta + at : 0, next, tile);
            store(next, stored, out, begin + at, tile);
        }
    }
    *peak = float_of((uint32_t)after);
    return before < 0x7F800000;
}

/* ---- selection ---- */

/* num_bins << shift <= 2^31, so that keys below `low`, which wrap around, are in no bin */
enum { GROUP = 16 };

KERNEL i64 count_keys(const uint32_t *x, i64 n, uint32_t low, int shift, uint32_t *counts,
                      uint32_t num_bins) {
    uint32_t bins[TILE];
    i64 above = 0;
    for (i64 begin = 0; begin < n; begin += TILE) {
        i64 size = least(TILE, n - begin);
        int32_t below = 0, outside = 0;
        for (i64 i = 0; i < size; i++) {
            uint32_t offset = (x[begin + i] & SIGN) - low;
            bins[i] = offset >> shift;
            below += (int32_t)offset < 0;
            outside += bins[i] >= num_bins;
        }
        above += outside - below;
        i64 i = 0;
        for (; i + GROUP <= size; i += GROUP) { /* few are near a boundary: most groups have none */
            uint32_t lowest = bins[i];
            for (int j = 1; j < GROUP; j++) lowest = bins[i + j] < lowest ? bins[i + j] : lowest;
            if (lowest < num_bins)
                for (int j = 0; j < GROUP; j++)
                    if (bins[i + j] < num_bins) counts[bins[i + j]]++;
        }
        for (; i < size; i++)
            if (bins[i] < num_bins) counts[bins[i]]++;
    }
    return above;
}
