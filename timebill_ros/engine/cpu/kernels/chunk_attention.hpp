// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// Causal attention of 32 neighbouring tokens of one head. Queries are lanes, so the softmax needs
// nothing across lanes; keys are gone through in blocks, and what was summed so far is scaled when
// a larger logit turns up (FlashAttention, arXiv 2205.14135).
#pragma once

#include <cmath>
#include <vector>

#include "gemm.hpp"

constexpr int QUERIES = PANEL;
constexpr int64_t KEYS = 96;             // of a block

// values[q] += sum over keys of weights[key][q] * v[key], for 6 queries and VECTORS * 16 columns.
template <int VECTORS>
inline void add_weighted(const float* weights, const float* v, int64_t keys, int64_t head_dim,
                         float* out) {
  constexpr int Q = 6;
  Floats sum[Q][VECTORS];
  for (int q = 0; q < Q; ++q)
    for (int i = 0; i < VECTORS; ++i) sum[q][i] = load<Floats>(out + q * head_dim + i * LANES);
  for (int64_t key = 0; key < keys; ++key) {
    Floats value[VECTORS];
    for (int i = 0; i < VECTORS; ++i) value[i] = load<Floats>(v + key * head_dim + i * LANES);
#pragma GCC unroll 6
    for (int q = 0; q < Q; ++q)
      for (int i = 0; i < VECTORS; ++i) sum[q][i] += value[i] * weights[key * QUERIES + q];
  }
  for (int q = 0; q < Q; ++q)
    for (int i = 0; i < VECTORS; ++i) store(out + q * head_dim + i * LANES, sum[q][i]);
}

// What a thread needs for it. Rows are padded to 36 queries, six at a time.
struct ChunkAttention {
  static constexpr int ROWS = 36;

  explicit ChunkAttention(int64_t head_dim)
      : queries(head_dim * PANEL), logits(KEYS * QUERIES + 4), sums(ROWS * head_dim) {}

  std::vector<float> queries, logits, sums;    // [head_dim][32], [KEYS][32], [36][head_dim]

  // ``q`` [count][q_stride], the tokens at entries first .. first + count - 1 of the cache;
  // ``out`` [count][out_stride].
  void run(const float* q, int64_t count, int64_t q_stride, const float* keys, const float* values,
           int64_t first, int64_t head_dim, float scale, float* out, int64_t out_stride) {
    for (int64_t row = 0; row < QUERIES; ++row)
      for (int64_t d = 0; d < head_dim; ++d)
        queries[d * PANEL + row] = q[std::min(row, count - 1) * q_stride + d] * scale;
    std::fill(sums.begin(), sums.end(), 0.0f);
    Floats largest[2] = {splat(-1e30f), splat(-1e30f)}, weight[2] = {};
    for (int64_t key = 0; key < first + count; key += KEYS) {
      const int64_t n = std::min(KEYS, first + count - key);
      add_block(keys + key * head_dim, values + key * head_dim, n, key - first, head_dim, largest,
                weight);
    }
    for (int64_t row = 0; row < count; ++row) {
      const float factor = 1.0f / weight[row / LANES][row % LANES];
      for (int64_t d = 0; d < head_dim; d += LANES)
        store(out + row * out_stride + d, load<Floats>(&sums[row * head_dim + d]) * factor);
    }
  }

 private:
  // ``ahead``: the block's first key less the first query's own.
  void add_block(const float* keys, const float* values, int64_t n, int64_t ahead,
                 int64_t head_dim, Floats* largest, Floats* weight) {
    Floats most[2] = {largest[0], largest[1]};
    Floats row[2];
    for (int lane = 0; lane < LANES; ++lane)
      row[0][lane] = (float)lane, row[1][lane] = (float)(lane + LANES);
    float* to = logits.data();
    multiply(keys, n, head_dim, queries.data(), head_dim,
             [&](int64_t key, Floats low, Floats high) {
               if (ahead + key > 0) {                          // some queries are before this key
                 const float own = (float)(ahead + key);
                 low = row[0] < own ? splat(-INFINITY) : low;
                 high = row[1] < own ? splat(-INFINITY) : high;
               }
               most[0] = larger(most[0], low), most[1] = larger(most[1], high);
               store(to + key * QUERIES, low), store(to + key * QUERIES + LANES, high);
             });
    for (int half = 0; half < 2; ++half) {
      const Floats factor = exponential(largest[half] - most[half]);
      weight[half] *= factor;
      for (int lane = 0; lane < LANES; ++lane) {
        float* sum = &sums[(half * LANES + lane) * head_dim];
        if (factor[lane] != 1.0f)
          for (int64_t d = 0; d < head_dim; d += LANES)
            store(sum + d, load<Floats>(sum + d) * factor[lane]);
      }
      for (int64_t key = 0; key < n; ++key) {
        float* at = to + key * QUERIES + half * LANES;
        const Floats logit = load<Floats>(at);
        const Floats share = logit < -1e30f ? Floats{} : exponential(logit - most[half]);
        weight[half] += share;
        store(at, share);
      }
      largest[half] = most[half];
    }
    for (int query = 0; query < QUERIES; query += 6) {
      float* sum = &sums[query * head_dim];
      int64_t column = 0;
      for (; column + 4 * LANES <= head_dim; column += 4 * LANES)
        add_weighted<4>(to + query, values + column, n, head_dim, sum + column);
      for (; column < head_dim; column += LANES)
        add_weighted<1>(to + query, values + column, n, head_dim, sum + column);
    }
  }
};
