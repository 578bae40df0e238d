// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// 16 rows of a matrix times up to 8 vectors. The rows are the lanes, so nothing is added across
// lanes and every vector's result has the same order of additions whatever else is in the batch.
//
// Layouts, for each group of 16 rows (the last group is padded with zeros):
//   FLOAT32   row after row, as torch holds it: not copied
//   BFLOAT16  column after column, 16 numbers each
//   INT8      4 columns a word: byte b of lane r's word i is column 4 i + b, stored + 128;
//             w = scale * (byte - 128)
//   INT4      8 columns a word: nibble 2 b is column 8 i + b, nibble 2 b + 1 is column 8 i + 4 + b;
//             w = scale * nibble + minimum
// The scales of a group lie block after block: 16 scales, and for INT4 16 minima behind them, all
// in half precision. Those of GGUF's Q8_0, Q4_0 and Q4_1 are the same numbers.
#pragma once

#include <cstddef>

#include "vector.hpp"

enum Format : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

struct Matrix {
  const void* data;
  const uint16_t* scales;
  const float* bias;           // [rows] or null
  int64_t rows, columns;       // columns: a multiple of BLOCK
  int32_t format;
};

// Activations of a batch as whole numbers (int8_t or int16_t), one scale for each BLOCK columns;
// [batch][columns].
template <class Whole> struct WholeVectors {
  const Whole* values;
  const float* scales;         // [batch][columns / BLOCK]
  const float* sums;           // likewise: scale times the sum of the values
  int64_t columns;
};

using Int8Vectors = WholeVectors<int8_t>;

struct FloatVectors {
  const float* values;         // [batch][columns]
  int64_t columns;
};

// The first row of a group. FLOAT32 has no padding, so its last group begins earlier.
inline int64_t first_row(const Matrix& m, int64_t group) {
  const int64_t row = group * LANES;
  return m.format == FLOAT32 && row + LANES > m.rows ? m.rows - LANES : row;
}

constexpr int64_t INT8_BYTES = LANES * BLOCK, INT4_BYTES = LANES * BLOCK / 2;   // of a block

template <int N> inline void add_bias(const Matrix& m, int64_t group, Floats* out) {
  if (m.bias == nullptr) return;
  Floats bias{};
  const int64_t row = first_row(m, group);
  const int64_t left = m.rows - row;
  memcpy(&bias, m.bias + row, sizeof(float) * (left < LANES ? left : LANES));
  for (int b = 0; b < N; ++b) out[b] += bias;
}

// --- 8-bit activations

template <int N>
inline void int4_rows(const Matrix& m, int64_t group, const Int8Vectors& x, Floats* out) {
  const int64_t blocks = m.columns / BLOCK;
  const char* data = (const char*)m.data + group * blocks * INT4_BYTES;
  const uint16_t* scales = m.scales + group * blocks * 2 * LANES;
  for (int b = 0; b < N; ++b) out[b] = Floats{};
  for (int64_t block = 0; block < blocks; ++block) {
    Ints dot[N] = {};
    for (int i = 0; i < 4; ++i) {
      const Words w = load<Words>(data + 64 * i);
      const Words low = w & 0x0f0f0f0fu, high = (w >> 4) & 0x0f0f0f0fu;
      for (int b = 0; b < N; ++b) {
        const int8_t* v = x.values + b * x.columns + block * BLOCK + 8 * i;
        dot[b] = dot4(dot[b], low, splat_word(v));
        dot[b] = dot4(dot[b], high, splat_word(v + 4));
      }
    }
    const Floats scale = halves_to_floats(scales), minimum = halves_to_floats(scales + LANES);
    for (int b = 0; b < N; ++b) {
      const int64_t at = b * blocks + block;
      out[b] += __builtin_convertvector(dot[b], Floats) * (scale * x.scales[at]);
      out[b] += minimum * x.sums[at];
    }
    data += INT4_BYTES;
    scales += 2 * LANES;
  }
}

template <int N>
inline void int8_rows(const Matrix& m, int64_t group, const Int8Vectors& x, Floats* out) {
  const int64_t blocks = m.columns / BLOCK;
  const char* data = (const char*)m.data + group * blocks * INT8_BYTES;
  const uint16_t* scales = m.scales + group * blocks * LANES;
  for (int b = 0; b < N; ++b) out[b] = Floats{};
  for (int64_t block = 0; block < blocks; ++block) {
    Ints dot[N] = {};
    for (int i = 0; i < 8; ++i) {
      const Words w = load<Words>(data + 64 * i);
      for (int b = 0; b < N; ++b)
        dot[b] = dot4(dot[b], w, splat_word(x.values + b * x.columns + block * BLOCK + 4 * i));
    }
    const Floats scale = halves_to_floats(scales);
    for (int b = 0; b < N; ++b) {
      const int64_t at = b * blocks + block;
      const Floats product = __builtin_convertvector(dot[b], Floats) * x.scales[at];
      out[b] += scale * (product - 128.0f * x.sums[at]);
    }
    data += INT8_BYTES;
    scales += LANES;
  }
}

template <int N> inline void rows_of_16(const Matrix& m, int64_t group, const Int8Vectors& x,
                                        Floats* out) {
  if (m.format == INT4) int4_rows<N>(m, group, x, out);
  else int8_rows<N>(m, group, x, out);
  add_bias<N>(m, group, out);
}

// --- float activations. A weight is unpacked to the very number that the checkpoint holds.

// Partial sums, so that an addition need not wait for the one before; as many for every N, or the
// order of additions, and with it the last bits, would depend on the batch.
constexpr int CHAINS = 2;

template <int N> struct Sums {
  Floats part[N][CHAINS] = {};

  inline void add(const FloatVectors& x, int64_t column, Floats w) {
    for (int b = 0; b < N; ++b)
      part[b][column % CHAINS] += w * x.values[b * x.columns + column];
  }

  inline void total(Floats* out) const {
    for (int b = 0; b < N; ++b) {
      out[b] = part[b][0];
      for (int c = 1; c < CHAINS; ++c) out[b] += part[b][c];
    }
  }
};

template <int N>
inline void int4_rows(const Matrix& m, int64_t group, const FloatVectors& x, Floats* out) {
  const int64_t blocks = m.columns / BLOCK;
  const char* data = (const char*)m.data + group * blocks * INT4_BYTES;
  const uint16_t* scales = m.scales + group * blocks * 2 * LANES;
  Sums<N> sums;
  for (int64_t block = 0; block < blocks; ++block) {
    const Floats scale = halves_to_floats(scales), minimum = halves_to_floats(scales + LANES);
    for (int i = 0; i < 4; ++i) {
      const Words w = load<Words>(data + 64 * i);
#pragma GCC unroll 8
      for (int nibble = 0; nibble < 8; ++nibble)
        sums.add(x, block * BLOCK + 8 * i + nibble / 2 + 4 * (nibble % 2),
                 scale * nibbles_to_floats(w, nibble) + minimum);
    }
    data += INT4_BYTES;
    scales += 2 * LANES;
  }
  sums.total(out);
}

template <int N>
inline void int8_rows(const Matrix& m, int64_t group, const FloatVectors& x, Floats* out) {
  const int64_t blocks = m.columns / BLOCK;
  const char* data = (const char*)m.data + group * blocks * INT8_BYTES;
  const uint16_t* scales = m.scales + group * blocks * LANES;
  Sums<N> sums;
  for (int64_t block = 0; block < blocks; ++block) {
    const Floats scale = halves_to_floats(scales);
    const Floats minimum = scale * -128.0f;
    for (int i = 0; i < 8; ++i) {
      const Words w = load<Words>(data + 64 * i);
#pragma GCC unroll 4
      for (int byte = 0; byte < 4; ++byte)
        sums.add(x, block * BLOCK + 4 * i + byte,
                 scale * to_floats((w >> (8 * byte)) & 255u) + minimum);
    }
    data += INT8_BYTES;
    scales += LANES;
  }
  sums.total(out);
}

template <int N>
inline void bfloat_rows(const Matrix& m, int64_t group, const FloatVectors& x, Floats* out) {
  const uint16_t* data = (const uint16_t*)m.data + group * m.columns * LANES;
  Sums<N> sums;
  for (int64_t column = 0; column < m.columns; column += 4)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c)
      sums.add(x, column + c, bfloats_to_floats(data + (column + c) * LANES));
  sums.total(out);
}

// The one format whose rows are not lanes: a row's products are added across the lanes at the end.
template <int N>
inline void float_rows(const Matrix& m, int64_t group, const FloatVectors& x, Floats* out) {
  constexpr int AT_ONCE = N <= 4 ? 4 : 2;
  const float* data = (const float*)m.data + first_row(m, group) * m.columns;
  Floats products[N][LANES];
  for (int row = 0; row < LANES; row += AT_ONCE) {
    Floats sum[AT_ONCE][N] = {};
    for (int64_t column = 0; column < m.columns; column += LANES)
      for (int r = 0; r < AT_ONCE; ++r) {
        const Floats w = load<Floats>(data + (row + r) * m.columns + column);
        for (int b = 0; b < N; ++b)
          sum[r][b] += w * load<Floats>(x.values + b * x.columns + column);
      }
    for (int r = 0; r < AT_ONCE; ++r)
      for (int b = 0; b < N; ++b) products[b][row + r] = sum[r][b];
  }
  for (int b = 0; b < N; ++b) out[b] = sums_of_16(products[b]);
}

template <int N> inline void rows_of_16(const Matrix& m, int64_t group, const FloatVectors& x,
                                        Floats* out) {
  switch (m.format) {
    case INT4: int4_rows<N>(m, group, x, out); break;
    case INT8: int8_rows<N>(m, group, x, out); break;
    case BFLOAT16: bfloat_rows<N>(m, group, x, out); break;
    default: float_rows<N>(m, group, x, out);
  }
  add_bias<N>(m, group, out);
}
