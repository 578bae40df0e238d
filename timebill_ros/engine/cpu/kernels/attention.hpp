// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// Attention of one token over a stretch of a head's cached keys and values, for all query heads
// that share them, and the sum over the stretches. How a sequence is cut into stretches depends on
// its length alone, so that its numbers are the same whatever the threads and the batch.
#pragma once

#include <algorithm>
#include <cmath>

#include "vector.hpp"

constexpr int MAX_STRETCHES = 16;
constexpr int64_t SHORTEST_STRETCH = 128;     // entries
constexpr int GROUP_PIECE = 4;                // query heads that are looked after at a time

inline int64_t stretch_length(int64_t entries) {
  const int64_t even = (entries + MAX_STRETCHES - 1) / MAX_STRETCHES;
  return std::max(SHORTEST_STRETCH, (even + LANES - 1) / LANES * LANES);
}

inline int stretch_count(int64_t entries) {
  return (int)((entries + stretch_length(entries) - 1) / stretch_length(entries));
}

// A query head's attention over a stretch before it is divided by ``weight``: exponentials are
// relative to ``largest``.
struct Partial {
  float largest, weight;
  float* values;               // [head_dim]
};

// Logits of ``G`` heads with 16 keys; ``out`` [G][out_stride].
template <int G>
inline void logits_of_16(const float* q, const float* keys, int64_t head_dim, int valid,
                         float* out, int64_t out_stride) {
  Floats sums[G][LANES];
  for (int entry = 0; entry < LANES; ++entry) {
    const float* key = keys + std::min(entry, valid - 1) * head_dim;
    Floats sum[G] = {};
    for (int64_t d = 0; d < head_dim; d += LANES) {
      const Floats k = load<Floats>(key + d);
      for (int g = 0; g < G; ++g) sum[g] += k * load<Floats>(q + g * head_dim + d);
    }
    for (int g = 0; g < G; ++g) sums[g][entry] = sum[g];
  }
  for (int g = 0; g < G; ++g) store(out + g * out_stride, sums_of_16(sums[g]));
}

// values[g] += sum over the entries of weight[g][entry] * V[entry], 64 columns (or fewer) at once.
template <int G, int VECTORS>
inline void add_values(const float* weights, int64_t weight_stride, const float* v,
                       int64_t entries, int64_t head_dim, float* const* out) {
  Floats sum[G][VECTORS] = {};
  for (int64_t entry = 0; entry < entries; ++entry)
    for (int i = 0; i < VECTORS; ++i) {
      const Floats value = load<Floats>(v + entry * head_dim + i * LANES);
      for (int g = 0; g < G; ++g) sum[g][i] += weights[g * weight_stride + entry] * value;
    }
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < VECTORS; ++i) store(out[g] + i * LANES, sum[g][i]);
}

// ``scores``: room for G * (entries rounded up to 16) numbers.
template <int G>
inline void attend_stretch(const float* q, const float* keys, const float* values, int64_t entries,
                           int64_t head_dim, float scale, float* scores, Partial* out) {
  const int64_t padded = (entries + LANES - 1) / LANES * LANES;
  for (int64_t entry = 0; entry < entries; entry += LANES)
    logits_of_16<G>(q, keys + entry * head_dim, head_dim,
                    (int)std::min<int64_t>(LANES, entries - entry), scores + entry, padded);
  for (int g = 0; g < G; ++g) {
    float* row = scores + g * padded;
    for (int64_t entry = entries; entry < padded; ++entry) row[entry] = -INFINITY;
    Floats most = load<Floats>(row);
    for (int64_t entry = LANES; entry < padded; entry += LANES)
      most = larger(most, load<Floats>(row + entry));
    out[g].largest = largest_of(most) * scale;
    Floats total{};
    for (int64_t entry = 0; entry < padded; entry += LANES) {
      const Floats weight = exponential(load<Floats>(row + entry) * scale - out[g].largest);
      store(row + entry, weight);
      if (entry + LANES <= entries) total += weight;
    }
    for (int64_t entry = entries / LANES * LANES; entry < entries; ++entry) total[0] += row[entry];
    out[g].weight = sum_of(total);
  }
  int64_t column = 0;
  float* to[G];
  for (; column + 4 * LANES <= head_dim; column += 4 * LANES) {
    for (int g = 0; g < G; ++g) to[g] = out[g].values + column;
    add_values<G, 4>(scores, padded, values + column, entries, head_dim, to);
  }
  for (; column < head_dim; column += LANES) {
    for (int g = 0; g < G; ++g) to[g] = out[g].values + column;
    add_values<G, 1>(scores, padded, values + column, entries, head_dim, to);
  }
}

inline void attend_heads(int n_heads, const float* q, const float* keys, const float* values,
                         int64_t entries, int64_t head_dim, float scale, float* scores,
                         Partial* out) {
  for (int head = 0; head < n_heads; head += GROUP_PIECE) {
    const float* from = q + head * head_dim;
    switch (std::min(GROUP_PIECE, n_heads - head)) {
      case 1: attend_stretch<1>(from, keys, values, entries, head_dim, scale, scores, out); break;
      case 2: attend_stretch<2>(from, keys, values, entries, head_dim, scale, scores, out); break;
      case 3: attend_stretch<3>(from, keys, values, entries, head_dim, scale, scores, out); break;
      default: attend_stretch<4>(from, keys, values, entries, head_dim, scale, scores, out);
    }
    out += GROUP_PIECE;
  }
}

// Add the stretches of one query head: ``out`` [head_dim].
inline void add_stretches(const Partial* parts, int count, int64_t head_dim, float* out) {
  float most = parts[0].largest;
  for (int s = 1; s < count; ++s) most = std::max(most, parts[s].largest);
  Floats exponents = splat(-INFINITY);
  for (int s = 0; s < count; ++s) exponents[s] = parts[s].largest - most;
  const Floats factors = exponential(exponents);
  float weight = 0.0f;
  for (int s = 0; s < count; ++s) weight += factors[s] * parts[s].weight;
  for (int64_t d = 0; d < head_dim; d += LANES) {
    Floats sum{};
    for (int s = 0; s < count; ++s) sum += load<Floats>(parts[s].values + d) * factors[s];
    store(out + d, sum / weight);
  }
}
