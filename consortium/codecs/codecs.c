/* The codecs of deltas, one pass over memory each. formats.py says what is computed, portable.py is the
 * reference; every result here is the same to the last bit: IEEE float32 in the order written, no contraction,
 * no reassociation. Nothing here allocates, locks or knows Python. */

#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#if __GNUC__ >= 12
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define FAST
#endif
#define INLINE static inline __attribute__((always_inline))

enum { BLOCK = 128, CHUNK = 4096 };
enum { INFINITE = 0x7F800000, MAGNITUDE = 0x7FFFFFFF };

const char *kernels_source(void) { return KERNELS_SOURCE; }

INLINE uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
INLINE float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }

/* t = (after - before) + residual; returns the largest magnitude as bits, above INFINITE - 1 if any is not finite */
INLINE uint32_t add_up(const float *after, const float *before, const float *residual, float *t, int n)
{
    int32_t top = 0; /* magnitudes are below 2^31: compared as signed, for which every vector unit has a maximum */
    for (int i = 0; i < n; i++) {
        t[i] = (after[i] - before[i]) + residual[i];
        int32_t magnitude = (int32_t)(bits_of(t[i]) & MAGNITUDE);
        top = magnitude > top ? magnitude : top;
    }
    return (uint32_t)top;
}

static int64_t first_infinite(const float *t, int n)
{
    for (int i = 0; i < n; i++)
        if ((bits_of(t[i]) & MAGNITUDE) >= INFINITE)
            return i;
    return -1;
}

INLINE float scale_of(uint32_t top, float peak, float scale_max)
{
    float scale = float_of(top) / peak;
    return scale > scale_max ? scale_max : scale;
}

/* The code of t. Adding 1.5 * 2^23 rounds to an integer, ties to even, in the low bits of the sum. */
INLINE int32_t code_of(float t, float divisor, float peak)
{
    const float magic = 12582912.0f;
    float q = t / divisor;
    q = q < -peak ? -peak : q;
    q = q > peak ? peak : q;
    return (int32_t)bits_of(q + magic) - (int32_t)bits_of(magic);
}

INLINE float divisor_of(float scale) { return scale == 0.0f ? float_of(INFINITE) : scale; }

/* Blocks of t become codes, scales and what is left; t may be given as codes of int4 two to a byte. */
INLINE int64_t encode_blocks(const float *after, const float *before, float *residual, int64_t n, float peak,
                             float scale_max, int is_packed, int8_t *codes, float *scales)
{
    float t[BLOCK];
    int8_t block[BLOCK];
    for (int64_t at = 0; at < n; at += BLOCK) {
        int size = n - at < BLOCK ? (int)(n - at) : BLOCK;
        uint32_t top = size == BLOCK ? add_up(after + at, before + at, residual + at, t, BLOCK)
                                     : add_up(after + at, before + at, residual + at, t, size);
        if (top >= INFINITE)
            return at + first_infinite(t, size);
        float scale = scale_of(top, peak, scale_max), divisor = divisor_of(scale);
        if (size < BLOCK) {
            memset(t + size, 0, sizeof(float) * (size_t)(BLOCK - size));
        }
        for (int i = 0; i < BLOCK; i++) {
            int32_t code = code_of(t[i], divisor, peak);
            block[i] = (int8_t)code;
            t[i] -= (float)code * scale;
        }
        memcpy(residual + at, t, sizeof(float) * (size_t)size);
        if (is_packed) {
            uint8_t packed[BLOCK / 2];
            for (int i = 0; i < BLOCK / 2; i++)
                packed[i] = (uint8_t)((block[2 * i] & 15) | ((block[2 * i + 1] & 15) << 4));
            memcpy(codes + at / 2, packed, (size_t)((size + 1) / 2));
        } else {
            memcpy(codes + at, block, (size_t)size);
        }
        *scales++ = scale;
    }
    return -1;
}

FAST int64_t encode_int8(const float *after, const float *before, float *residual, int64_t n, float scale_max,
                         int8_t *codes, float *scales)
{
    return encode_blocks(after, before, residual, n, 127.0f, scale_max, 0, codes, scales);
}

FAST int64_t encode_int4(const float *after, const float *before, float *residual, int64_t n, float scale_max,
                         int8_t *packed, float *scales)
{
    return encode_blocks(after, before, residual, n, 7.0f, scale_max, 1, packed, scales);
}

/* The k-th largest of n keys below 2^31, found by its bits from the top, 11, 10 and 10 of them at a time. Keys that
 * agree with it so far move to the front of `left`, and only they are looked at again. */
INLINE uint32_t border_of(const uint32_t *keys, uint32_t *left, int n, int k)
{
    static const int shifts[3] = {20, 10, 0}, buckets[3] = {2048, 1024, 1024};
    uint32_t border = 0;
    for (int pass = 0; pass < 3; pass++) {
        const uint32_t *from = pass ? left : keys;
        uint32_t digits = (uint32_t)buckets[pass] - 1, digit = digits;
        uint16_t counts[2][2048] = {{0}}; /* two, because neighbours often meet in one bucket */
        for (int i = 0; i < n; i++)
            counts[i & 1][(from[i] >> shifts[pass]) & digits]++;
        while (counts[0][digit] + counts[1][digit] < k) {
            k -= counts[0][digit] + counts[1][digit];
            digit--;
        }
        border |= digit << shifts[pass];
        int found = 0;
        for (int i = 0; i < n; i++) {
            uint32_t key = from[i];
            left[found] = key;
            found += ((key >> shifts[pass]) & digits) == digit;
        }
        n = found;
    }
    return border;
}

FAST int64_t encode_topk(const float *after, const float *before, float *residual, int64_t n, int64_t kept,
                         float scale_max, int8_t *codes, uint16_t *offsets, float *scales)
{
    float t[CHUNK];
    uint32_t keys[CHUNK], left[CHUNK];
    for (int64_t at = 0; at < n; at += CHUNK) {
        int size = n - at < CHUNK ? (int)(n - at) : CHUNK;
        int k = (int)((size * kept + CHUNK - 1) / CHUNK), above = 0, found = 0;
        uint32_t top = add_up(after + at, before + at, residual + at, t, size);
        if (top >= INFINITE)
            return at + first_infinite(t, size);
        for (int i = 0; i < size; i++)
            keys[i] = bits_of(t[i]) & MAGNITUDE;
        uint32_t border = border_of(keys, left, size, k);
        for (int i = 0; i < size; i++)
            above += keys[i] > border;
        float scale = scale_of(top, 127.0f, scale_max), divisor = divisor_of(scale);
        for (int i = 0, ties = k - above; i < size; i++) {
            if (keys[i] < border || (keys[i] == border && ties-- <= 0))
                continue;
            int32_t code = code_of(t[i], divisor, 127.0f);
            codes[found] = (int8_t)code;
            offsets[found++] = (uint16_t)i;
            t[i] -= (float)code * scale;
        }
        memcpy(residual + at, t, sizeof(float) * (size_t)size);
        codes += k;
        offsets += k;
        *scales++ = scale;
    }
    return -1;
}

/* Whether a scale is neither negative nor NaN nor too large: as bits, those are all greater. */
INLINE int is_scale(float scale, float scale_max) { return bits_of(scale) <= bits_of(scale_max); }

FAST int32_t decode_int8(const int8_t *codes, const float *scales, int64_t start, int64_t n, float scale_max,
                         float *out)
{
    int ok = 1;
    for (int64_t at = 0; at < n;) {
        int64_t room = BLOCK - start, size = n - at < room ? n - at : room;
        float scale = *scales++;
        uint8_t bad = 0;
        if (size == BLOCK) {
            for (int i = 0; i < BLOCK; i++) {
                out[at + i] = (float)codes[at + i] * scale;
                bad |= codes[at + i] == -128;
            }
        } else {
            for (int64_t i = 0; i < size; i++) {
                out[at + i] = (float)codes[at + i] * scale;
                bad |= codes[at + i] == -128;
            }
        }
        ok = ok && !bad && is_scale(scale, scale_max);
        at += size;
        start = 0;
    }
    return ok;
}

FAST int32_t decode_int4(const uint8_t *packed, const float *scales, int64_t start, int64_t n, float scale_max,
                         float *out)
{
    int ok = 1;
    int64_t odd = start & 1; /* the first element lies in the high half of the first byte */
    for (int64_t at = 0; at < n;) {
        int64_t room = BLOCK - start, size = n - at < room ? n - at : room;
        float scale = *scales++;
        uint8_t bad = 0;
        if (size == BLOCK && !((at + odd) & 1)) {
            const uint8_t *bytes = packed + (at + odd) / 2;
            for (int i = 0; i < BLOCK / 2; i++) {
                int8_t low = (int8_t)(bytes[i] << 4), high = (int8_t)(bytes[i] & 0xF0);
                out[at + 2 * i] = (float)(low >> 4) * scale;
                out[at + 2 * i + 1] = (float)(high >> 4) * scale;
                bad |= (low == -128) | (high == -128);
            }
        } else {
            for (int64_t i = at + odd; i < at + odd + size; i++) {
                int8_t code = (int8_t)((uint8_t)(packed[i / 2] << (i & 1 ? 0 : 4)) & 0xF0);
                out[i - odd] = (float)(code >> 4) * scale;
                bad |= code == -128;
            }
        }
        ok = ok && !bad && is_scale(scale, scale_max);
        at += size;
        start = 0;
    }
    return ok;
}

FAST int32_t decode_topk(const int8_t *codes, const uint16_t *offsets, const float *scales, int64_t chunks,
                         int64_t kept, int64_t left, int64_t start, int64_t n, float scale_max, float *out)
{
    int ok = 1;
    memset(out, 0, sizeof(float) * (size_t)n);
    for (int64_t chunk = 0; chunk < chunks; chunk++, left -= CHUNK) {
        int64_t length = left < CHUNK ? left : CHUNK, k = (length * kept + CHUNK - 1) / CHUNK;
        int64_t before = -1;
        float scale = scales[chunk];
        for (int64_t i = 0; i < k; i++) {
            int64_t offset = offsets[i], place = chunk * CHUNK + offset - start;
            ok &= offset > before && offset < length && codes[i] != -128;
            before = offset;
            if (place >= 0 && place < n)
                out[place] = (float)codes[i] * scale;
        }
        ok &= is_scale(scale, scale_max);
        codes += k;
        offsets += k;
    }
    return ok;
}
