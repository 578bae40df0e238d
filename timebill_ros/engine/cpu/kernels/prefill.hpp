// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// A chunk of one prompt through all layers in one call, from the packed weights: in float32, or
// with products of whole numbers where the tier has activations of 8 or 16 bits.
#pragma once

#include <vector>

#include "chunk_attention.hpp"
#include "model.hpp"
#include "pool.hpp"

constexpr int WINDOW = 32;               // queries that SnapKV looks at (budget/kept.py)

struct Chunk {
  const int32_t* ids;                    // [count]
  float* logits;                         // [vocab_size] after the last token, or null
  float* tap;                            // [d_model] of the last token, or null
  float* window;                         // [n_layers, n_heads, WINDOW, head_dim], the last queries
                                         // at the end; or null
  int64_t first, position;               // entries that the slot has, position of the first token
  int32_t count, slot;
};

class Prefill final : public Pool::Walk {
 public:
  Prefill(const Model& model, Pool& pool) : m_(model), pool_(pool) {}

  void run(const Tier& tier, const Chunk& chunk) {
    pool_.settle();
    tier_ = &tier;
    chunk_ = &chunk;
    make_room();
    for (int64_t t = 0; t < chunk.count; ++t)
      memcpy(&x_[t * m_.d_model], m_.embed + (int64_t)chunk.ids[t] * m_.d_model,
             sizeof(float) * m_.d_model);
    const int64_t tiles = (chunk.count + TILE - 1) / TILE;
    parts_ = (tiles * TILE + TOKENS - 1) / TOKENS;
    part_tokens_ = (tiles + parts_ - 1) / parts_ * TILE;
    count_pieces();
    pool_.run(*this);
    if (chunk.logits != nullptr) {
      pool_.settle();                    // a latecomer counts the pieces of the walk it is on
      last_ = true;
      pool_.run(*this);
      pool_.settle();
      last_ = false;
    }
  }

  int stages() const override { return last_ ? 1 : m_.n_layers * KINDS; }

  // (not from the chunk: a latecomer still asks when that is gone)
  int pieces(int stage) const override { return last_ ? pieces_[KINDS] : pieces_[stage % KINDS]; }

  void enter(int, int thread) override {
    if (last_)
      normalise(&x_[(chunk_->count - 1) * m_.d_model], tier_->final_norm, m_.d_model, m_.norm_eps,
                threads_[thread].panel.data());
  }

  void piece(int stage, int piece, int thread) override {
    Thread& t = threads_[thread];
    if (last_ && piece == 0) tap(m_.n_layers);
    if (last_) return logits(t, piece);
    const int at = stage / KINDS;
    const Layer& l = tier_->layers[at];
    switch (stage % KINDS) {
      case NORM:
        if (piece == 0) tap(at);
        return norm_rows(l.input_norm, piece);
      case ROUND: return round_rows(attended_, l.o.columns, piece);
      case ROUND_GATED: return round_rows(gated_, l.down.columns, piece);
      case QKV: return project(t, l, piece);
      case ROTATE: return rotate_rows(l, at, piece);
      case ATTENTION: return attend(t, at, piece);
      case OUTPUT: return add_product(t, l.o, attended_, piece);
      case POST_NORM: return norm_rows(l.post_norm, piece);
      case GATE_UP: return gate(t, l, piece);
      default: return add_product(t, l.down, gated_, piece);
    }
  }

 private:
  enum Kind {
    NORM, QKV, ROTATE, ATTENTION, ROUND, OUTPUT, POST_NORM, GATE_UP, ROUND_GATED, DOWN, KINDS
  };
  static constexpr int64_t ROWS = 16;            // tokens of a piece that is done row by row
  static constexpr int64_t TOKENS = 12 * TILE;   // at most, of a piece of a product
  static constexpr int64_t HEAD_GROUPS = 16;

  struct Thread {
    explicit Thread(const Model& m, int64_t widest)
        : panel((size_t)(widest * PANEL)), int8(widest), int16(widest), attention(m.head_dim) {}
    std::vector<float> panel;
    WholePanel<int8_t> int8;
    WholePanel<int16_t> int16;
    ChunkAttention attention;
  };

  // Tokens that one piece of a product takes, and the group of rows.
  struct Part { int64_t group, first, count; };

  void make_room() {
    const int64_t width = (int64_t)m_.n_heads * m_.head_dim;
    if (threads_.empty()) {
      const int64_t widest = std::max({(int64_t)m_.d_model, width, (int64_t)m_.d_ff});
      threads_.assign((size_t)pool_.threads(), Thread(m_, widest));
    }
    const size_t count = (size_t)chunk_->count;
    if (room_ >= count) return;
    room_ = count;
    const int64_t numbers = chunk_->count * std::max({(int64_t)m_.d_model, width, (int64_t)m_.d_ff});
    values_.resize(numbers), scales_.resize(numbers / BLOCK), sums_.resize(numbers / BLOCK);
    x_.resize(count * m_.d_model), normed_.resize(count * m_.d_model);
    qkv_.resize(count * (width + 2 * m_.n_kv_heads * m_.head_dim));
    attended_.resize(count * width), gated_.resize(count * m_.d_ff);
  }

  void count_pieces() {
    const Layer& l = tier_->layers[0];
    pieces_[NORM] = pieces_[ROTATE] = pieces_[POST_NORM] = pieces_of(chunk_->count, ROWS);
    pieces_[ROUND] = pieces_[ROUND_GATED] = rounds() ? pieces_[NORM] : 0;
    pieces_[QKV] = products(l.qkv, 2);
    pieces_[ATTENTION] = m_.n_heads * pieces_of(chunk_->count, QUERIES);
    pieces_[OUTPUT] = products(l.o, 2);
    pieces_[GATE_UP] = products(l.gate, 1);
    pieces_[DOWN] = products(l.down, 2);
    pieces_[KINDS] = pieces_of(groups(tier_->head), HEAD_GROUPS);
  }

  int products(const Matrix& m, int64_t groups_each) const {
    return (int)(pieces_of(groups(m), groups_each) * parts_);
  }

  // Pieces of the same rows are neighbours.
  Part part(int piece, int64_t groups_each) const {
    const int64_t first = piece % parts_ * part_tokens_;
    return {piece / parts_ * groups_each, first,
            std::min(part_tokens_, chunk_->count - first)};
  }

  void norm_rows(const float* weight, int piece) {
    const int64_t d = m_.d_model, last = std::min<int64_t>((piece + 1) * ROWS, chunk_->count);
    for (int64_t t = piece * ROWS; t < last; ++t)
      normalise(&x_[t * d], weight, d, m_.norm_eps, &normed_[t * d]);
    if (rounds()) round_rows(normed_, d, piece);
  }

  void round_rows(const std::vector<float>& from, int64_t columns, int piece) {
    const int64_t last = std::min<int64_t>((piece + 1) * ROWS, chunk_->count);
    const int64_t blocks = columns / BLOCK;
    for (int64_t t = piece * ROWS; t < last; ++t) {
      float *scales = &scales_[t * blocks], *sums = &sums_[t * blocks];
      if (tier_->activation_bits == 8)
        to_whole(&from[t * columns], columns, values<int8_t>() + t * columns, scales, sums);
      else
        to_whole(&from[t * columns], columns, values<int16_t>() + t * columns, scales, sums);
    }
  }

  bool rounds() const { return tier_->activation_bits < 32; }

  template <class Whole> Whole* values() { return (Whole*)values_.data(); }

  static Floats bias_of(const Matrix& m, int64_t group) {
    Floats out[1] = {};
    add_bias<1>(m, group, out);
    return out[0];
  }

  template <class Store>
  void product(Thread& t, const Matrix& m, const float* x, int piece, const Store& put) {
    const Part p = part(piece, 2);
    if (p.count <= 0) return;
    const bool both = p.group + 1 < groups(m);
    const Floats low_bias = bias_of(m, p.group);
    const Floats high_bias = both ? bias_of(m, p.group + 1) : Floats{};
    multiply_pair(t, m, p.group, m, both ? p.group + 1 : p.group, x, p,
                  [&](int64_t token, Floats low, Floats high) {
                    put(token, p.group * LANES, low + low_bias);
                    if (both) put(token, (p.group + 1) * LANES, high + high_bias);
                  });
  }

  // A group of rows of one matrix and one of another with the tokens of a part.
  template <class Take>
  void multiply_pair(Thread& t, const Matrix& first, int64_t first_group, const Matrix& second,
                     int64_t second_group, const float* x, const Part& p, const Take& take) {
    const int64_t columns = first.columns;
    const auto rounded = [&](auto& panel, auto* values) {
      unpack(first, first_group, 0, panel);
      unpack(second, second_group, 1, panel);
      multiply({values, scales_.data(), sums_.data(), columns}, p.first, p.count, panel, take);
    };
    if (tier_->activation_bits == 8) return rounded(t.int8, values<int8_t>());
    if (tier_->activation_bits == 16) return rounded(t.int16, values<int16_t>());
    unpack(first, first_group, t.panel.data());
    unpack(second, second_group, t.panel.data() + LANES);
    multiply(x + p.first * columns, p.count, columns, t.panel.data(), columns,
             [&](int64_t token, Floats low, Floats high) { take(p.first + token, low, high); });
  }

  void project(Thread& t, const Layer& l, int piece) {
    const int64_t rows = l.qkv.rows;
    product(t, l.qkv, normed_.data(), piece, [&](int64_t token, int64_t row, Floats sum) {
      store(&qkv_[token * rows + row], sum);
    });
  }

  void add_product(Thread& t, const Matrix& m, const std::vector<float>& from, int piece) {
    product(t, m, from.data(), piece, [&](int64_t token, int64_t row, Floats sum) {
      float* x = &x_[token * m_.d_model + row];
      store(x, load<Floats>(x) + sum);
    });
  }

  void gate(Thread& t, const Layer& l, int piece) {
    const Part p = part(piece, 1);
    if (p.count <= 0) return;
    const Floats gate_bias = bias_of(l.gate, p.group), up_bias = bias_of(l.up, p.group);
    multiply_pair(t, l.gate, p.group, l.up, p.group, normed_.data(), p,
                  [&](int64_t token, Floats low, Floats high) {
                    store(&gated_[token * m_.d_ff + p.group * LANES],
                          gated(low + gate_bias, high + up_bias));
                  });
  }

  void rotate_rows(const Layer& l, int at, int piece) {
    const int64_t width = m_.head_dim, last = std::min<int64_t>((piece + 1) * ROWS, chunk_->count);
    const int n_rotated = m_.n_heads + m_.n_kv_heads;
    for (int64_t t = piece * ROWS; t < last; ++t)
      for (int head = 0; head < n_rotated + m_.n_kv_heads; ++head) {
        float* from = &qkv_[t * l.qkv.rows + head * width];
        const float* weight = head < m_.n_heads ? l.q_norm : head < n_rotated ? l.k_norm : nullptr;
        if (weight != nullptr) normalise(from, weight, width, m_.norm_eps, from);
        const int64_t entry = chunk_->first + t;
        if (head < m_.n_heads) {
          rotate(m_, from, chunk_->position + t, from);
          keep_query(at, head, t, from);
        } else if (head < n_rotated) {
          rotate(m_, from, chunk_->position + t,
                 cache_entry(m_, m_.keys, at, chunk_->slot, head - m_.n_heads, entry));
        } else {
          memcpy(cache_entry(m_, m_.values, at, chunk_->slot, head - n_rotated, entry), from,
                 sizeof(float) * width);
        }
      }
  }

  void keep_query(int at, int head, int64_t token, const float* query) {
    const int64_t row = token - chunk_->count + WINDOW;
    if (chunk_->window == nullptr || row < 0) return;
    memcpy(chunk_->window + (((int64_t)at * m_.n_heads + head) * WINDOW + row) * m_.head_dim,
           query, sizeof(float) * m_.head_dim);
  }

  void attend(Thread& t, int at, int piece) {
    // the last queries see most keys: they come first, so that threads end together
    const int64_t blocks = pieces_of(chunk_->count, QUERIES);
    const int64_t block = blocks - 1 - piece / m_.n_heads, head = piece % m_.n_heads;
    const int64_t kv_head = head / (m_.n_heads / m_.n_kv_heads), token = block * QUERIES;
    const int64_t rows = (int64_t)(m_.n_heads + 2 * m_.n_kv_heads) * m_.head_dim;
    const int64_t width = (int64_t)m_.n_heads * m_.head_dim;
    t.attention.run(
        &qkv_[token * rows + head * m_.head_dim],
        std::min<int64_t>(QUERIES, chunk_->count - token), rows,
        cache_entry(m_, m_.keys, at, chunk_->slot, kv_head, 0),
        cache_entry(m_, m_.values, at, chunk_->slot, kv_head, 0), chunk_->first + token,
        m_.head_dim, m_.scale, &attended_[token * width + head * m_.head_dim], width);
  }

  void tap(int layers) {
    if (layers == 0 || layers != m_.tap_layer || chunk_->tap == nullptr) return;
    memcpy(chunk_->tap, &x_[(chunk_->count - 1) * m_.d_model], sizeof(float) * m_.d_model);
  }

  void logits(Thread& t, int piece) {
    const Matrix& head = tier_->head;
    const int64_t last = std::min(groups(head), (piece + 1) * HEAD_GROUPS);
    for (int64_t group = piece * HEAD_GROUPS; group < last; ++group) {
      Floats out[1];
      rows_of_16<1>(head, group, FloatVectors{t.panel.data(), m_.d_model}, out);
      const int64_t first = first_row(head, group);
      memcpy(chunk_->logits + first, out,
             sizeof(float) * std::min<int64_t>(LANES, head.rows - first));
    }
  }

  const Model m_;
  Pool& pool_;
  const Tier* tier_ = nullptr;
  const Chunk* chunk_ = nullptr;
  bool last_ = false;
  size_t room_ = 0;
  int pieces_[KINDS + 1] = {};           // the last: of the logits
  int64_t parts_ = 1, part_tokens_ = TILE;
  std::vector<Thread> threads_;
  std::vector<float> x_, normed_, qkv_, attended_, gated_;
  std::vector<int16_t> values_;          // what the next products are taken of, rounded
  std::vector<float> scales_, sums_;
};
