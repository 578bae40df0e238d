// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// From rows of float32 to the layouts of matvec.hpp. What a GGUF block of Q4_0, Q4_1 or Q8_0 stood
// for is found again exactly: its scale follows from the block's extremes.
#include <cmath>

#include "matvec.hpp"

namespace {

// Nearest half-precision number, ties to even; what is too large becomes the largest.
uint16_t to_half(float value) {
  const uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
  const float magnitude = std::fabs(value);
  if (!(magnitude < 65504.0f)) return (uint16_t)(sign | 0x7bffu);
  if (magnitude < 0x1p-14f)                                   // subnormal: steps of 2^-24
    return (uint16_t)(sign | (uint32_t)std::nearbyint(magnitude * 0x1p24f));
  uint32_t bits;
  memcpy(&bits, &magnitude, sizeof(bits));
  bits += 0x0fffu + ((bits >> 13) & 1u);
  return (uint16_t)(sign | ((bits >> 13) - (112u << 10)));
}

float from_half(uint16_t half) {
  const uint32_t bits = (half & 0x7fffu) << 13;
  float magnitude;
  memcpy(&magnitude, &bits, sizeof(bits));
  magnitude *= 0x1p112f;
  return half & 0x8000u ? -magnitude : magnitude;
}

typedef uint8_t Bytes __attribute__((vector_size(16)));

// A block of 32 numbers.
struct Block { Floats part[2]; };

// Its codes, w = scale * code + minimum, and how far that is from the block.
struct Coded {
  uint16_t scale = 0, minimum = 0;
  Block codes = {};
  float error = INFINITY;      // sum of squares
};

// The codes that come closest for a scale and a minimum, out of ``least`` .. ``most``.
Coded with_codes(const Block& w, uint16_t scale, uint16_t minimum, float least, float most) {
  Coded out;
  out.scale = scale, out.minimum = minimum;
  const float d = from_half(scale), m = from_half(minimum);
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  Floats error{};
  for (int i = 0; i < 2; ++i) {
    const Floats exact = larger(-larger((w.part[i] - m) * -inverse, splat(-most)), splat(least));
    out.codes.part[i] = (exact + ROUND) - ROUND;
    const Floats off = w.part[i] - (d * out.codes.part[i] + m);
    error += off * off;
  }
  out.error = sum_of(error);
  return out;
}

void try_int4(const Block& w, uint16_t scale, uint16_t minimum, Coded& best) {
  const Coded now = with_codes(w, scale, minimum, 0.0f, 15.0f);
  if (now.error < best.error) best = now;
}

Coded best_int4(const Block& w) {
  const float high = largest_of(larger(w.part[0], w.part[1]));
  const float low = -largest_of(larger(-w.part[0], -w.part[1]));
  Coded best;
  try_int4(w, to_half((high - low) / 15.0f), to_half(low), best);                       // Q4_1
  if (best.error == 0.0f) return best;
  const uint16_t scale = to_half((high > -low ? high : low) / -8.0f);                   // Q4_0
  try_int4(w, scale, to_half(-8.0f * from_half(scale)), best);
  // No grid of a file: cut the extremes a little where that brings the others closer.
  for (int cut = 1; cut <= 5 && best.error > 0.0f; ++cut) {
    const float less = 0.025f * (float)cut * (high - low);
    for (int side = 1; side <= 3; ++side) {
      const float from = side & 1 ? low + less : low, to = side & 2 ? high - less : high;
      try_int4(w, to_half((to - from) / 15.0f), to_half(from), best);
    }
  }
  return best;
}

Coded best_int8(const Block& w) {
  const Floats both = larger(w.part[0], w.part[1]), neither = larger(-w.part[0], -w.part[1]);
  Coded best = with_codes(
      w, to_half(largest_of(larger(both, neither)) / 127.0f), 0, -128.0f, 127.0f);
  for (Floats& part : best.codes.part) part += 128.0f;
  return best;
}

}  // namespace

extern "C" {

// Pack ``w`` [rows, columns] as INT4 or INT8. Returns the sum of the squared errors; with
// ``exact`` it stops at the first row that has one.
double timebill_pack(const float* w, int64_t rows, int64_t columns, int32_t format, int32_t exact,
                     uint8_t* data, uint16_t* scales) {
  const int64_t blocks = columns / BLOCK;
  const int per_block = format == INT4 ? 2 * LANES : LANES;
  const int64_t bytes = format == INT4 ? INT4_BYTES : INT8_BYTES;
  double error = 0.0;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t lane = row % LANES;
    for (int64_t block = 0; block < blocks; ++block) {
      const float* from = w + row * columns + block * BLOCK;
      const Block numbers = {{load<Floats>(from), load<Floats>(from + LANES)}};
      const Coded coded = format == INT4 ? best_int4(numbers) : best_int8(numbers);
      uint32_t codes[BLOCK / 4];         // four columns a word, the first in the lowest byte
      for (int i = 0; i < 2; ++i) {
        const Bytes bytes = __builtin_convertvector(coded.codes.part[i], Bytes);
        memcpy(codes + i * LANES / 4, &bytes, sizeof(bytes));
      }
      const int64_t at = row / LANES * blocks + block;
      uint16_t* scale = scales + at * per_block + lane;
      uint8_t* to = data + at * bytes + 4 * lane;
      scale[0] = coded.scale;
      if (format == INT4) {
        scale[LANES] = coded.minimum;
        for (int i = 0; i < BLOCK / 8; ++i) {
          const uint32_t word = codes[2 * i] | codes[2 * i + 1] << 4;
          memcpy(to + 64 * i, &word, sizeof(word));
        }
      } else {
        for (int i = 0; i < BLOCK / 4; ++i) memcpy(to + 64 * i, codes + i, sizeof(codes[i]));
      }
      error += coded.error;
    }
    if (exact && error > 0.0) return error;
  }
  return error;
}

// Pack ``w`` [rows, columns] as BFLOAT16, cutting the lower halves off. Returns how many numbers
// that changed; with ``exact`` it stops at the first row that has one.
int64_t timebill_pack_bfloat16(const float* w, int64_t rows, int64_t columns, int32_t exact,
                               uint16_t* data) {
  int64_t changed = 0;
  for (int64_t row = 0; row < rows; ++row) {
    uint16_t* to = data + row / LANES * columns * LANES + row % LANES;
    for (int64_t column = 0; column < columns; ++column) {
      uint32_t bits;
      memcpy(&bits, w + row * columns + column, sizeof(bits));
      changed += (bits & 0xffffu) != 0;
      to[column * LANES] = (uint16_t)(bits >> 16);
    }
    if (exact && changed > 0) return changed;
  }
  return changed;
}

}
