// Eight float lanes, and the few functions on them that every kernel shares.
//
// GCC's vector types carry the arithmetic, so the same source serves any processor; intrinsics stand
// only where a vector type has no word for it. Every function is one fixed sequence of correctly
// rounded operations: a value never depends on its neighbours or on where it lies.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && !defined(DECODERY_GENERIC)
#include <immintrin.h>
#define DECODERY_AVX2 1
#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
#define DECODERY_VNNI 1
#endif
#endif

namespace decodery {

constexpr int64_t LANES = 8;

typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(32), may_alias));
typedef uint32_t Words __attribute__((vector_size(32), may_alias));
typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

inline Vector splat(float value) {
    return Vector{value, value, value, value, value, value, value, value};
}

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }

inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// bfloat16 is the upper half of a float32.
inline Vector load(const BFloat16* from) {
    const Halves halves = *reinterpret_cast<const Halves*>(from);
    const Words words = __builtin_convertvector(halves, Words) << 16;
    return reinterpret_cast<const Vector&>(words);
}

inline float to_float(Float16 half) {
    const uint32_t sign = (half.bits & 0x8000u) << 16;
    const uint32_t exponent = (half.bits >> 10) & 31, fraction = half.bits & 0x3FF;
    if (exponent == 0) {  // zero and subnormals: multiples of 2^-24
        const float small = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -small : small;
    }
    const uint32_t bits =
        sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | (fraction << 13);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Round to nearest, ties to even; beyond the range, infinity.
inline Float16 to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};
    if (magnitude >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};
    if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves a multiple of 2^-24 at the end
        float small;
        std::memcpy(&small, &magnitude, sizeof small);
        small += 0.5f;
        uint32_t shifted;
        std::memcpy(&shifted, &small, sizeof shifted);
        return {static_cast<uint16_t>(sign | (shifted - 0x3F000000u))};
    }
    const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23);
    return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

inline Vector load(const Float16* from) {
#ifdef DECODERY_AVX2
    return reinterpret_cast<Vector>(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    Vector value;
    for (int64_t lane = 0; lane < LANES; ++lane) value[lane] = to_float(from[lane]);
    return value;
#endif
}

inline void store(Float16* to, Vector value) {
#ifdef DECODERY_AVX2
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(reinterpret_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
#else
    for (int64_t lane = 0; lane < LANES; ++lane) to[lane] = to_half(value[lane]);
#endif
}

// a * b + c, rounded once where the processor can. Said, never left to the compiler: it fuses one copy
// of a template and not another, and the same row would then differ with the number of rows.
inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(DECODERY_AVX2) && defined(__FMA__)
    return reinterpret_cast<Vector>(_mm256_fmadd_ps(
        reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
    return a * b + c;
#endif
}

// ((0+1) + (2+3)) + ((4+5) + (6+7)).
inline float sum(Vector v) { return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])); }

// The `sum` of four vectors side by side, in the same order of additions.
inline void sums(Vector a, Vector b, Vector c, Vector d, float* to) {
#ifdef DECODERY_AVX2
    const __m256 ab = _mm256_hadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b));
    const __m256 cd = _mm256_hadd_ps(reinterpret_cast<__m256>(c), reinterpret_cast<__m256>(d));
    const __m256 all = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
    to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
#endif
}

inline Vector maximum(Vector a, Vector b) { return a > b ? a : b; }

inline float maximum(Vector v) {
#ifdef DECODERY_AVX2
    const __m256 all = reinterpret_cast<__m256>(v);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
#else
    float largest = v[0];
    for (int64_t lane = 1; lane < LANES; ++lane) largest = v[lane] > largest ? v[lane] : largest;
    return largest;
#endif
}

inline int32_t sum(Integers v) {
#ifdef DECODERY_AVX2
    const __m256i all = reinterpret_cast<__m256i>(v);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    four = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_srli_epi64(four, 32)));
#else
    int32_t total = 0;
    for (int64_t lane = 0; lane < LANES; ++lane) total += v[lane];
    return total;
#endif
}

// e^x to about 1 ulp. exp(0) is 1; below -87.3 it is 0, so exp(-inf) is 0; above 88 it is inf.
inline Vector exponential(Vector x) {
    const Vector capped = x > splat(89.0f) ? splat(89.0f) : x < splat(-88.0f) ? splat(-88.0f) : x;
    const Vector shifted =
        multiply_add(capped, splat(1.44269504f), splat(12582912.0f));  // 1.5 * 2^23
    const Vector power = shifted - splat(12582912.0f);  // x / ln 2, rounded
    Vector rest = multiply_add(power, splat(-0.693359375f), capped);
    rest = multiply_add(power, splat(2.12194440e-4f), rest);
    Vector series = splat(1.9875691500e-4f);  // Cephes' expf
    series = multiply_add(series, rest, splat(1.3981999507e-3f));
    series = multiply_add(series, rest, splat(8.3334519073e-3f));
    series = multiply_add(series, rest, splat(4.1665795894e-2f));
    series = multiply_add(series, rest, splat(1.6666665459e-1f));
    series = multiply_add(series, rest, splat(5.0000001201e-1f));
    const Vector value = multiply_add(series, rest * rest, rest) + splat(1.0f);
    // Two factors, since 2^128 is no float32.
    const Integers whole = __builtin_convertvector(power, Integers);
    const Integers first = whole >> 1, second = whole - first;
    const Integers low = (first + 127) << 23, high = (second + 127) << 23;
    const Vector result =
        value * reinterpret_cast<const Vector&>(low) * reinterpret_cast<const Vector&>(high);
    return x < splat(-87.3f) ? splat(0.0f) : x > splat(88.72f) ? splat(INFINITY) : result;
}

}  // namespace decodery
