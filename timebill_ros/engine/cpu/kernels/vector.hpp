// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// Vectors of 16 lanes, in the compiler's own vector types: one zmm register with AVX-512, two ymm
// with AVX2, four q registers with NEON. Intrinsics stand only where the compiler would not find
// the instruction by itself, and always beside portable code.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

constexpr int LANES = 16;
constexpr int BLOCK = 32;       // columns that share a scale
constexpr float ROUND = 12582912.0f;    // 1.5 * 2^23: (x + ROUND) - ROUND is x rounded, |x| < 2^22

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

template <class Vector> inline Vector load(const void* from) {
  Vector v;
  memcpy(&v, from, sizeof(v));
  return v;
}

inline void store(float* to, Floats v) { memcpy(to, &v, sizeof(v)); }
inline Floats splat(float value) { return Floats{} + value; }
inline Words splat_word(const void* from) {
  uint32_t word;
  memcpy(&word, from, sizeof(word));
  return Words{} + word;
}
inline Floats bits_as_floats(Words v) { return (Floats)v; }

inline Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

inline Floats to_floats(Words v) {         // values below 2^31
  return __builtin_convertvector((Ints)v, Floats);
}

inline Floats halves_to_floats(const uint16_t* from) {      // IEEE half precision, finite
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps((__m256i)load<Halves>(from));
#else
  const Words h = __builtin_convertvector(load<Halves>(from), Words);
  const Floats magnitude = bits_as_floats((h & 0x7fffu) << 13) * 0x1p112f;
  return bits_as_floats((Words)magnitude | ((h & 0x8000u) << 16));
#endif
}

inline Floats bfloats_to_floats(const uint16_t* from) {
  return bits_as_floats(__builtin_convertvector(load<Halves>(from), Words) << 16);
}

// Nibble ``index`` of every word, as floats.
inline Floats nibbles_to_floats(Words v, int index) {
#if defined(__AVX512F__)
  const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return (Floats)_mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)v, 4 * index), table);
#else
  return to_floats((v >> (4 * index)) & 15u);
#endif
}

// sum + four products per lane: unsigned bytes of ``w`` times signed bytes of ``x``.
inline Ints dot4(Ints sum, Words w, Words x) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVXVNNI__)
  __m256i parts[2], a[2], b[2];
  memcpy(parts, &sum, 64), memcpy(a, &w, 64), memcpy(b, &x, 64);
  for (int i = 0; i < 2; ++i) parts[i] = _mm256_dpbusd_avx_epi32(parts[i], a[i], b[i]);
  return load<Ints>(parts);
#elif defined(__AVX2__)
  __m256i parts[2], a[2], b[2];
  memcpy(parts, &sum, 64), memcpy(a, &w, 64), memcpy(b, &x, 64);
  const __m256i low = _mm256_set1_epi16(255);
  for (int i = 0; i < 2; ++i) {     // even and odd bytes as 16-bit numbers: nothing saturates
    const __m256i even = _mm256_madd_epi16(
        _mm256_and_si256(a[i], low), _mm256_srai_epi16(_mm256_slli_epi16(b[i], 8), 8));
    const __m256i odd = _mm256_madd_epi16(
        _mm256_srli_epi16(a[i], 8), _mm256_srai_epi16(b[i], 8));
    parts[i] = _mm256_add_epi32(parts[i], _mm256_add_epi32(even, odd));
  }
  return load<Ints>(parts);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  int32x4_t parts[4];
  uint8x16_t a[4];
  int8x16_t b[4];
  memcpy(parts, &sum, 64), memcpy(a, &w, 64), memcpy(b, &x, 64);
  for (int i = 0; i < 4; ++i) parts[i] = vusdotq_s32(parts[i], a[i], b[i]);
  return load<Ints>(parts);
#elif defined(__ARM_FEATURE_DOTPROD)
  // signed times signed: w - 128, and 128 times the sum of x put back
  int32x4_t parts[4];
  int8x16_t a[4], b[4];
  w ^= 0x80808080u;
  memcpy(parts, &sum, 64), memcpy(a, &w, 64), memcpy(b, &x, 64);
  const int8x16_t most = vdupq_n_s8(64);
  for (int i = 0; i < 4; ++i) {
    parts[i] = vdotq_s32(vdotq_s32(parts[i], most, b[i]), most, b[i]);
    parts[i] = vdotq_s32(parts[i], a[i], b[i]);
  }
  return load<Ints>(parts);
#else
  const Ints signed_x = (Ints)x;
  for (int byte = 0; byte < 4; ++byte)
    sum += (Ints)((w >> (8 * byte)) & 255u) * ((signed_x << (24 - 8 * byte)) >> 24);
  return sum;
#endif
}

// sum + two products per lane: 16-bit numbers of ``w`` times those of ``x``, all signed.
inline Ints dot2(Ints sum, Words w, Words x) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
  __m256i parts[2], a[2], b[2];
  memcpy(parts, &sum, 64), memcpy(a, &w, 64), memcpy(b, &x, 64);
  for (int i = 0; i < 2; ++i)
    parts[i] = _mm256_add_epi32(parts[i], _mm256_madd_epi16(a[i], b[i]));
  return load<Ints>(parts);
#else
  return sum + ((Ints)(w << 16) >> 16) * ((Ints)(x << 16) >> 16) + ((Ints)w >> 16) * ((Ints)x >> 16);
#endif
}

inline Ints add_products(Ints sum, Words w, Words x, int8_t) { return dot4(sum, w, x); }
inline Ints add_products(Ints sum, Words w, Words x, int16_t) { return dot2(sum, w, x); }

// e^x within 2 ulp; x <= 0 or small. Cephes' polynomial on [-ln 2 / 2, ln 2 / 2].
inline Floats exponential(Floats x) {
  x = larger(x, splat(-87.0f));
  const Floats shifted = x * 1.44269504f + ROUND;
  const Floats n = shifted - ROUND;
  Floats r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Ints exponent = (Ints)shifted << 23;                   // the integer's bits are the lowest
  return (Floats)((Ints)p + exponent);
}

// Lanes that are ``width`` apart, exchanged.
template <int width> inline Floats exchanged(Floats v) {
  Ints from;
  for (int lane = 0; lane < LANES; ++lane) from[lane] = lane ^ width;
  return __builtin_shuffle(v, from);
}

inline float sum_of(Floats v) {
  v += exchanged<8>(v);
  v += exchanged<4>(v);
  v += exchanged<2>(v);
  v += exchanged<1>(v);
  return v[0];
}

inline float largest_of(Floats v) {
  v = larger(v, exchanged<8>(v));
  v = larger(v, exchanged<4>(v));
  v = larger(v, exchanged<2>(v));
  v = larger(v, exchanged<1>(v));
  return v[0];
}

// One step of a transposing sum: lanes of ``a`` and ``b``, ``half`` apart, are added.
template <int half> inline Floats fold(Floats a, Floats b) {
  Ints first, second;
  for (int lane = 0; lane < LANES; ++lane) {
    const int place = lane % (2 * half);
    first[lane] = place < half ? lane : lane - half + LANES;
    second[lane] = first[lane] + half;
  }
  return __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
}

// Lane i of the result is the sum of the lanes of v[i].
inline Floats sums_of_16(Floats* v) {
  for (int i = 0; i < 8; ++i) v[i] = fold<8>(v[i], v[i + 8]);
  for (int i = 0; i < 4; ++i) v[i] = fold<4>(v[i], v[i + 4]);
  for (int i = 0; i < 2; ++i) v[i] = fold<2>(v[i], v[i + 2]);
  return fold<1>(v[0], v[1]);
}
