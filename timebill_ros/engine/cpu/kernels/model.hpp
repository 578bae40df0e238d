// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// A model as the caller describes it (steps.py declares the same structures), and what decode steps
// and prefill share.
#pragma once

#include <cmath>

#include "matvec.hpp"

struct Layer {
  const float *input_norm, *post_norm, *q_norm, *k_norm;       // the last two may be null
  Matrix qkv, o, gate, up, down;
};

struct Tier {
  const Layer* layers;
  const float* final_norm;
  Matrix head;
  int32_t activation_bits;     // 8, 16 (in a prefill) or 32: float32
};

struct Model {
  int32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size;
  int32_t tap_layer;           // its output goes to ``tap``; 0 = no tap
  float norm_eps, scale;
  const float *embed, *cos, *signed_sin;       // [vocab_size, d_model], [positions, head_dim] each
  float *keys, *values;        // [n_layers, n_slots, n_kv_heads, capacity, head_dim]
  int64_t n_slots, capacity;
  float* tap;                  // [count, d_model] of the newest step
};

inline int64_t groups(const Matrix& m) { return (m.rows + LANES - 1) / LANES; }
inline int pieces_of(int64_t count, int64_t per_piece) {
  return (int)((count + per_piece - 1) / per_piece);
}

inline void normalise(const float* x, const float* weight, int64_t n, float eps, float* out) {
  Floats squares{};
  for (int64_t i = 0; i < n; i += LANES) squares += load<Floats>(x + i) * load<Floats>(x + i);
  const float factor = 1.0f / std::sqrt(sum_of(squares) / (float)n + eps);
  for (int64_t i = 0; i < n; i += LANES)
    store(out + i, load<Floats>(x + i) * factor * load<Floats>(weight + i));
}

// Round ``x`` [n] to whole numbers with a scale for each block, as WholeVectors has them.
template <class Whole>
inline void to_whole(const float* x, int64_t n, Whole* values, float* scales, float* sums) {
  typedef Whole Wholes __attribute__((vector_size(LANES * sizeof(Whole))));
  constexpr float MOST = sizeof(Whole) == 1 ? 127.0f : 32767.0f;
  for (int64_t block = 0; block < n / BLOCK; ++block) {
    const Floats a = load<Floats>(x + block * BLOCK), b = load<Floats>(x + block * BLOCK + LANES);
    const float most = largest_of(larger(larger(a, -a), larger(b, -b)));
    const float inverse = most > 0.0f ? MOST / most : 0.0f;
    const Floats whole_a = (a * inverse + ROUND) - ROUND, whole_b = (b * inverse + ROUND) - ROUND;
    const Wholes wholes[2] = {__builtin_convertvector(whole_a, Wholes),
                              __builtin_convertvector(whole_b, Wholes)};
    memcpy(values + block * BLOCK, wholes, sizeof(wholes));
    scales[block] = most / MOST;
    sums[block] = scales[block] * sum_of(whole_a + whole_b);
  }
}

// ``to`` [head_dim] = ``from`` rotated to a position.
inline void rotate(const Model& m, const float* from, int64_t position, float* to) {
  const int64_t width = m.head_dim, half = width / 2;
  const float* cosine = m.cos + position * width;
  const float* sine = m.signed_sin + position * width;
  for (int64_t i = 0; i < half; ++i) {
    const float first = from[i], second = from[i + half];
    to[i] = first * cosine[i] + second * sine[i];
    to[i + half] = second * cosine[i + half] + first * sine[i + half];
  }
}

// Where an entry of a slot's KV head lies in the keys or the values.
inline float* cache_entry(const Model& m, float* cache, int64_t layer, int64_t slot,
                          int64_t kv_head, int64_t index) {
  return cache + (((layer * m.n_slots + slot) * m.n_kv_heads + kv_head) * m.capacity + index)
      * m.head_dim;
}

inline Floats gated(Floats gate, Floats up) {
  return gate / (exponential(-larger(gate, splat(-80.0f))) + 1.0f) * up;
}
