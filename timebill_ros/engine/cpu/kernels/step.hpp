// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// A whole decode step for up to 8 sequences in one call: norms, products, rotation, append to the
// cache, attention, gated SiLU, logits. Everything that is small is done by every thread for
// itself, so that threads meet five times a layer.
#pragma once

#include <vector>

#include "attention.hpp"
#include "model.hpp"
#include "pool.hpp"

constexpr int MAX_BATCH = 8;

struct Batch {
  int32_t slots[MAX_BATCH], tokens[MAX_BATCH], lengths[MAX_BATCH], positions[MAX_BATCH];
  float* logits;               // [count, vocab_size]
  int32_t count;
};

// Groups of 16 rows in a piece: enough to outweigh taking it, few enough to share evenly.
constexpr int64_t OUTPUT_GROUPS = 2, GATE_UP_GROUPS = 3, HEAD_GROUPS = 16;

class Step final : public Pool::Walk {
 public:
  Step(const Model& model, Pool& pool)
      : m_(model), pool_(pool), threads_((size_t)pool.threads()),
        parts_((size_t)MAX_BATCH * m_.n_heads * MAX_STRETCHES) {
    const int64_t width = (int64_t)m_.n_heads * m_.head_dim;
    const int64_t widest = std::max({(int64_t)m_.d_model, width, (int64_t)m_.d_ff});
    for (Thread& t : threads_) {
      t.floats.assign(MAX_BATCH * widest, 0.0f);
      t.bytes.assign(MAX_BATCH * widest, 0);
      t.scales.assign(MAX_BATCH * widest / BLOCK, 0.0f);
      t.sums.assign(MAX_BATCH * widest / BLOCK, 0.0f);
      t.head.assign(MAX_BATCH * m_.head_dim, 0.0f);
      t.scores.assign(GROUP_PIECE * stretch_length(m_.capacity), 0.0f);
    }
    x_.assign(MAX_BATCH * (size_t)m_.d_model, 0.0f);
    q_.assign(MAX_BATCH * width, 0.0f);
    gated_.assign(MAX_BATCH * (size_t)m_.d_ff, 0.0f);
    part_values_.assign(parts_.size() * m_.head_dim, 0.0f);
    for (size_t i = 0; i < parts_.size(); ++i)
      parts_[i].values = part_values_.data() + i * m_.head_dim;
  }

  void run(const Tier& tier, const Batch& batch) {
    pool_.settle();
    tier_ = &tier;
    batch_ = &batch;
    stretches_.clear();
    for (int row = 0; row < batch.count; ++row) {
      memcpy(x_.data() + (int64_t)row * m_.d_model,
             m_.embed + (int64_t)batch.tokens[row] * m_.d_model, sizeof(float) * m_.d_model);
      const int count = stretch_count(batch.lengths[row] + 1);
      for (int index = 0; index < count; ++index)
        for (int head = 0; head < m_.n_kv_heads; ++head) stretches_.push_back({row, head, index});
    }
    const Layer& l = tier.layers[0];
    pieces_[QKV] = m_.n_heads + 2 * m_.n_kv_heads;
    pieces_[ATTENTION] = (int)stretches_.size();
    pieces_[OUTPUT] = pieces_of(groups(l.o), OUTPUT_GROUPS);
    pieces_[GATE_UP] = pieces_of(groups(l.gate), GATE_UP_GROUPS);
    pieces_[DOWN] = pieces_of(groups(l.down), OUTPUT_GROUPS);
    pieces_[HEAD] = pieces_of(groups(tier.head), HEAD_GROUPS);
    pool_.run(*this);
  }

  int stages() const override { return m_.n_layers * KINDS + 1; }
  int pieces(int stage) const override { return pieces_[kind(stage)]; }

  void enter(int stage, int thread) override {
    Thread& t = threads_[thread];
    const Layer& l = tier_->layers[layer(stage)];
    const int64_t d = m_.d_model, width = (int64_t)m_.n_heads * m_.head_dim;
    switch (kind(stage)) {
      case QKV: return take_normalised(t, l.input_norm);
      case GATE_UP: return take_normalised(t, l.post_norm);
      case HEAD: return take_normalised(t, tier_->final_norm);
      case OUTPUT:
        for (int row = 0; row < batch_->count; ++row)
          for (int head = 0; head < m_.n_heads; ++head)
            add_stretches(part(row, head, 0), stretch_count(batch_->lengths[row] + 1), m_.head_dim,
                          t.floats.data() + row * width + (int64_t)head * m_.head_dim);
        return take(t, t.floats.data(), width);
      case DOWN: return take(t, gated_.data(), m_.d_ff);
      default: return take(t, nullptr, d);
    }
  }

  void piece(int stage, int piece, int thread) override {
    Thread& t = threads_[thread];
    const int at = layer(stage);
    const Layer& l = tier_->layers[at];
    switch (kind(stage)) {
      case QKV:
        if (piece == 0) tap(at);
        return project(t, at, piece);
      case ATTENTION: return attend(t, at, stretches_[piece]);
      case OUTPUT: return add_rows(t, l.o, piece);
      case GATE_UP: return gate(t, l, piece);
      case DOWN: return add_rows(t, l.down, piece);
      default:
        if (piece == 0) tap(m_.n_layers);
        return logits(t, piece);
    }
  }

 private:
  enum Kind { QKV, ATTENTION, OUTPUT, GATE_UP, DOWN, KINDS, HEAD };
  struct Stretch { int row, kv_head, index; };

  // What a thread has for itself.
  struct Thread {
    std::vector<float> floats, scales, sums, head, scores;
    std::vector<int8_t> bytes;
    FloatVectors x;
    Int8Vectors x8;
  };

  Kind kind(int stage) const {
    return stage == m_.n_layers * KINDS ? HEAD : (Kind)(stage % KINDS);
  }
  int layer(int stage) const { return std::min(stage / KINDS, m_.n_layers - 1); }

  Partial* part(int row, int head, int index) {
    return parts_.data() + ((int64_t)row * m_.n_heads + head) * MAX_STRETCHES + index;
  }

  void take_normalised(Thread& t, const float* weight) {
    const int64_t d = m_.d_model;
    for (int row = 0; row < batch_->count; ++row)
      normalise(x_.data() + row * d, weight, d, m_.norm_eps, t.floats.data() + row * d);
    take(t, t.floats.data(), d);
  }

  // Make ``from`` [batch][columns] what the thread's products of this stage are taken of.
  void take(Thread& t, const float* from, int64_t columns) {
    t.x = {from, columns};
    if (from == nullptr || tier_->activation_bits != 8) return;
    const int64_t blocks = columns / BLOCK;
    for (int row = 0; row < batch_->count; ++row)
      to_whole(from + row * columns, columns, t.bytes.data() + row * columns,
              t.scales.data() + row * blocks, t.sums.data() + row * blocks);
    t.x8 = {t.bytes.data(), t.scales.data(), t.sums.data(), columns};
  }

  template <int N> void rows_for(const Thread& t, const Matrix& m, int64_t group, Floats* out) {
    if (tier_->activation_bits == 8) rows_of_16<N>(m, group, t.x8, out);
    else rows_of_16<N>(m, group, t.x, out);
  }

  // Products of a group of rows with the whole batch; rows of ``out`` behind it are left-overs.
  void rows(const Thread& t, const Matrix& m, int64_t group, Floats* out) {
    const int count = batch_->count;
    if (count == 1) rows_for<1>(t, m, group, out);
    else if (count == 2) rows_for<2>(t, m, group, out);
    else if (count <= 4) rows_for<4>(t, m, group, out);
    else rows_for<MAX_BATCH>(t, m, group, out);
  }

  void project(Thread& t, int at, int head) {
    const int64_t width = m_.head_dim;
    const Layer& l = tier_->layers[at];
    Floats out[MAX_BATCH];
    for (int64_t i = 0; i < width; i += LANES) {
      rows(t, l.qkv, (head * width + i) / LANES, out);
      for (int row = 0; row < batch_->count; ++row) store(&t.head[row * width + i], out[row]);
    }
    const int n_rotated = m_.n_heads + m_.n_kv_heads;
    for (int row = 0; row < batch_->count; ++row) {
      float* from = &t.head[row * width];
      const float* weight = head < m_.n_heads ? l.q_norm : head < n_rotated ? l.k_norm : nullptr;
      if (weight != nullptr) normalise(from, weight, width, m_.norm_eps, from);
      if (head < m_.n_heads)
        rotate(m_, from, batch_->positions[row],
               q_.data() + ((int64_t)row * m_.n_heads + head) * width);
      else if (head < n_rotated)
        rotate(m_, from, batch_->positions[row],
               entry(m_.keys, at, row, head - m_.n_heads, batch_->lengths[row]));
      else
        memcpy(entry(m_.values, at, row, head - n_rotated, batch_->lengths[row]), from,
               sizeof(float) * width);
    }
  }

  float* entry(float* cache, int at, int row, int kv_head, int64_t index) const {
    return cache_entry(m_, cache, at, batch_->slots[row], kv_head, index);
  }

  void attend(Thread& t, int at, const Stretch& s) {
    const int64_t entries = batch_->lengths[s.row] + 1;
    const int64_t length = stretch_length(entries), first = s.index * length;
    const int group = m_.n_heads / m_.n_kv_heads;
    for (int done = 0; done < group; done += GROUP_PIECE) {
      const int head = s.kv_head * group + done, count = std::min(GROUP_PIECE, group - done);
      Partial out[GROUP_PIECE];
      for (int g = 0; g < count; ++g) out[g] = *part(s.row, head + g, s.index);
      attend_heads(count, q_.data() + ((int64_t)s.row * m_.n_heads + head) * m_.head_dim,
                   entry(m_.keys, at, s.row, s.kv_head, first),
                   entry(m_.values, at, s.row, s.kv_head, first),
                   std::min(length, entries - first), m_.head_dim, m_.scale, t.scores.data(), out);
      for (int g = 0; g < count; ++g) *part(s.row, head + g, s.index) = out[g];
    }
  }

  void add_rows(Thread& t, const Matrix& m, int piece) {
    Floats out[MAX_BATCH];
    const int64_t last = std::min(groups(m), (piece + 1) * OUTPUT_GROUPS);
    for (int64_t group = piece * OUTPUT_GROUPS; group < last; ++group) {
      rows(t, m, group, out);
      for (int row = 0; row < batch_->count; ++row) {
        float* x = x_.data() + (int64_t)row * m_.d_model + group * LANES;
        store(x, load<Floats>(x) + out[row]);
      }
    }
  }

  void gate(Thread& t, const Layer& l, int piece) {
    Floats gates[MAX_BATCH], ups[MAX_BATCH];
    const int64_t last = std::min(groups(l.gate), (piece + 1) * GATE_UP_GROUPS);
    for (int64_t group = piece * GATE_UP_GROUPS; group < last; ++group) {
      rows(t, l.gate, group, gates);
      rows(t, l.up, group, ups);
      for (int row = 0; row < batch_->count; ++row)
        store(gated_.data() + (int64_t)row * m_.d_ff + group * LANES, gated(gates[row], ups[row]));
    }
  }

  void logits(Thread& t, int piece) {
    Floats out[MAX_BATCH];
    const Matrix& head = tier_->head;
    const int64_t last = std::min(groups(head), (piece + 1) * HEAD_GROUPS);
    for (int64_t group = piece * HEAD_GROUPS; group < last; ++group) {
      rows(t, head, group, out);
      const int64_t first = first_row(head, group);
      const int64_t left = std::min<int64_t>(LANES, head.rows - first);
      for (int row = 0; row < batch_->count; ++row)
        memcpy(batch_->logits + row * head.rows + first, &out[row], sizeof(float) * left);
    }
  }

  // The hidden state after ``layers`` layers, where that is the tap.
  void tap(int layers) {
    if (layers == 0 || layers != m_.tap_layer) return;
    for (int row = 0; row < batch_->count; ++row)
      memcpy(m_.tap + (int64_t)row * m_.d_model, x_.data() + (int64_t)row * m_.d_model,
             sizeof(float) * m_.d_model);
  }

  const Model m_;
  Pool& pool_;
  const Tier* tier_ = nullptr;
  const Batch* batch_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<float> x_, q_, gated_, part_values_;
  std::vector<Partial> parts_;
  std::vector<Stretch> stretches_;
  int pieces_[HEAD + 1] = {};
};
