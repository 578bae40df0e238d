// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// What Python calls.
#include "prefill.hpp"
#include "step.hpp"

namespace {

struct Runner {
  Runner(const Model& model, int threads) : pool(threads), step(model, pool), prefill(model, pool) {}
  ~Runner() { pool.stop(); }

  Pool pool;
  Step step;
  Prefill prefill;
};

}  // namespace

extern "C" {

// The sizes of the structures, so that the caller's declarations can be checked.
void timebill_sizes(int64_t* sizes) {
  sizes[0] = sizeof(Matrix), sizes[1] = sizeof(Layer), sizes[2] = sizeof(Tier);
  sizes[3] = sizeof(Model), sizes[4] = sizeof(Batch), sizes[5] = sizeof(Chunk);
}

void* timebill_create(const Model* model, int threads) { return new Runner(*model, threads); }
void timebill_destroy(void* runner) { delete (Runner*)runner; }

void timebill_step(void* runner, const Tier* tier, const Batch* batch) {
  ((Runner*)runner)->step.run(*tier, *batch);
}

void timebill_prefill(void* runner, const Tier* tier, const Chunk* chunk) {
  ((Runner*)runner)->prefill.run(*tier, *chunk);
}

}
