// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// Products of many vectors with 32 rows at a time: the rows are unpacked once into a panel of
// float32, column after column, and every vector is then multiplied with the panel. A result is a
// sum over the columns in their order, whatever the other vectors are.
#pragma once

#include <algorithm>
#include <vector>

#include "matvec.hpp"

constexpr int PANEL = 2 * LANES;
constexpr int TILE = 12;                 // vectors at a time: 24 sums in 32 registers

// Unpack group ``group`` of a packed matrix into half a panel: ``to`` [columns][PANEL].
inline void unpack(const Matrix& m, int64_t group, float* to) {
  const int64_t blocks = m.columns / BLOCK;
  if (m.format == BFLOAT16) {
    const uint16_t* data = (const uint16_t*)m.data + group * m.columns * LANES;
    for (int64_t column = 0; column < m.columns; ++column)
      store(to + column * PANEL, bfloats_to_floats(data + column * LANES));
    return;
  }
  const bool four = m.format == INT4;
  const char* data = (const char*)m.data + group * blocks * (four ? INT4_BYTES : INT8_BYTES);
  const uint16_t* scales = m.scales + group * blocks * (four ? 2 * LANES : LANES);
  for (int64_t block = 0; block < blocks; ++block, to += BLOCK * PANEL) {
    const Floats scale = halves_to_floats(scales);
    const Floats minimum = four ? halves_to_floats(scales + LANES) : scale * -128.0f;
    if (four) {
      for (int i = 0; i < 4; ++i)
        for (int nibble = 0; nibble < 8; ++nibble)
          store(to + (8 * i + nibble / 2 + 4 * (nibble % 2)) * PANEL,
                scale * nibbles_to_floats(load<Words>(data + 64 * i), nibble) + minimum);
    } else {
      for (int i = 0; i < 8; ++i)
        for (int byte = 0; byte < 4; ++byte)
          store(to + (4 * i + byte) * PANEL,
                scale * to_floats((load<Words>(data + 64 * i) >> (8 * byte)) & 255u) + minimum);
    }
    data += four ? INT4_BYTES : INT8_BYTES;
    scales += four ? 2 * LANES : LANES;
  }
}

// The sums of ``T`` vectors, handed to ``take(vector, first half, second half)``.
template <int T, class Take>
inline void multiply_tile(const float* x, int64_t stride, const float* panel, int64_t columns,
                          int64_t first, const Take& take) {
  Floats sums[T][2] = {};
  for (int64_t column = 0; column < columns; ++column) {
    const Floats low = load<Floats>(panel + column * PANEL);
    const Floats high = load<Floats>(panel + column * PANEL + LANES);
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      const float value = x[t * stride + column];
      sums[t][0] += low * value;
      sums[t][1] += high * value;
    }
  }
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) take(first + t, sums[t][0], sums[t][1]);
}

// All ``count`` vectors x [count][stride] with a panel.
template <class Take>
inline void multiply(const float* x, int64_t count, int64_t stride, const float* panel,
                     int64_t columns, const Take& take) {
  int64_t at = 0;
  for (; at + TILE <= count; at += TILE)
    multiply_tile<TILE>(x + at * stride, stride, panel, columns, at, take);
  for (; at + 4 <= count; at += 4)
    multiply_tile<4>(x + at * stride, stride, panel, columns, at, take);
  for (; at < count; ++at) multiply_tile<1>(x + at * stride, stride, panel, columns, at, take);
}

// --- vectors of whole numbers

constexpr int WHOLE_TILE = 6;            // 12 sums of a block, 12 of all

// A panel of two groups as whole numbers: words [columns / PER_WORD][2][LANES], scales and minima
// [columns / BLOCK][2][LANES].
template <class Whole> struct WholePanel {
  static constexpr int PER_WORD = 4 / sizeof(Whole);     // columns
  std::vector<Words> words;
  std::vector<Floats> scales, minima;

  explicit WholePanel(int64_t columns)
      : words(2 * columns / PER_WORD), scales(columns / LANES), minima(columns / LANES) {}
};

// Four columns, a byte each, into a panel; ``to`` is the word of the first.
inline void spread(Words bytes, int8_t, Words* to) { to[0] = bytes; }
inline void spread(Words bytes, int16_t, Words* to) {
  to[0] = (bytes & 0xffu) | ((bytes & 0xff00u) << 8);
  to[2] = ((bytes >> 16) & 0xffu) | ((bytes >> 8) & 0xff0000u);
}

// Unpack a group of an INT4 or INT8 matrix into one ``half`` of a panel.
template <class Whole>
inline void unpack(const Matrix& m, int64_t group, int half, WholePanel<Whole>& to) {
  const int64_t blocks = m.columns / BLOCK;
  const bool four = m.format == INT4;
  const char* data = (const char*)m.data + group * blocks * (four ? INT4_BYTES : INT8_BYTES);
  const uint16_t* scales = m.scales + group * blocks * (four ? 2 * LANES : LANES);
  Words* words = to.words.data() + half;
  for (int64_t block = 0; block < blocks; ++block) {
    const Floats scale = halves_to_floats(scales);
    to.scales[2 * block + half] = scale;
    to.minima[2 * block + half] = four ? halves_to_floats(scales + LANES) : scale * -128.0f;
    for (int i = 0; i < BLOCK / 4; ++i) {
      const Words both = load<Words>(data + 64 * (four ? i / 2 : i));
      spread(four ? (both >> (4 * (i % 2))) & 0x0f0f0f0fu : both, Whole(), words);
      words += 2 * sizeof(Whole);
    }
    data += four ? INT4_BYTES : INT8_BYTES;
    scales += four ? 2 * LANES : LANES;
  }
}

template <int T, class Whole, class Take>
inline void multiply_tile(const WholeVectors<Whole>& x, int64_t first,
                          const WholePanel<Whole>& panel, const Take& take) {
  constexpr int PER_WORD = WholePanel<Whole>::PER_WORD;
  const int64_t blocks = x.columns / BLOCK;
  Floats sums[T][2] = {};
  for (int64_t block = 0; block < blocks; ++block) {
    const Words* words = panel.words.data() + block * BLOCK / PER_WORD * 2;
    const Whole* values = x.values + first * x.columns + block * BLOCK;
    Ints dots[T][2] = {};
    for (int i = 0; i < BLOCK / PER_WORD; ++i) {
      const Words low = words[2 * i], high = words[2 * i + 1];
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        const Words word = splat_word(values + t * x.columns + PER_WORD * i);
        dots[t][0] = add_products(dots[t][0], low, word, Whole());
        dots[t][1] = add_products(dots[t][1], high, word, Whole());
      }
    }
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      const int64_t at = (first + t) * blocks + block;
      for (int half = 0; half < 2; ++half) {
        sums[t][half] += __builtin_convertvector(dots[t][half], Floats)
            * (panel.scales[2 * block + half] * x.scales[at]);
        sums[t][half] += panel.minima[2 * block + half] * x.sums[at];
      }
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) take(first + t, sums[t][0], sums[t][1]);
}

// Vectors ``first`` .. ``first + count - 1`` with a panel.
template <class Whole, class Take>
inline void multiply(const WholeVectors<Whole>& x, int64_t first, int64_t count,
                     const WholePanel<Whole>& panel, const Take& take) {
  const int64_t last = first + count;
  for (; first + WHOLE_TILE <= last; first += WHOLE_TILE)
    multiply_tile<WHOLE_TILE>(x, first, panel, take);
  for (; first < last; ++first) multiply_tile<1>(x, first, panel, take);
}
