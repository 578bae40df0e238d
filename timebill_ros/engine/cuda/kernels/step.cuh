// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// One decode step, from the current tokens to the logits: one launch, one block on each
// multiprocessor, which goes through the phases together with all others.

// Attention of one layer.
template<int BITS, int BATCH, int D, int WARPS, int STAGES>
DEVICE void attend_phase(const StepArgs & args, const Phase & phase,
  Cursor<WARPS, STAGES> & cursor, u8 * shared, u32 barriers, u32 rounds)
{
  const Row * const rows = (const Row *)(shared + args.rows_at);
  const int items = args.splits * args.kv_heads * BATCH;
  bool waited = false;
  cursor.template top_up<BITS>();
#pragma unroll 1
  for (int item = blockIdx.x; item < items || !waited; item += gridDim.x) {
    Attention<D, WARPS> own(args, rows, smaller(item, items - 1));
    if (item < items && own.has_work()) {
      own.attend(args, phase, shared, waited ? 0 : barriers);
      own.add_up(args, phase, shared, rounds);
    } else {
      if (!waited) {wait_for_all(args, barriers);}
      if (item < items) {own.clear(args, phase);}
    }
    waited = true;
    __syncthreads();
  }
}

// BITS: of the layers' matrices, HEAD_BITS: of the head.
template<int BITS, int HEAD_BITS, int BATCH, int D, int WARPS, int STAGES>
DEVICE void step(const StepArgs & args)
{
  const int THREADS = WARPS * 32;
  SHARED_MEMORY(shared);
  Phase * const held = (Phase *)(shared + args.phases_at);
  Row * const rows = (Row *)(shared + args.rows_at);
  u32 barriers = 0;                             // that this block has arrived at
  u32 rounds = 0;                               // of attention
  for (int p = 0; p < PHASES_HELD - 1; ++p) {hold_phase(held, p, phase_word(args, p));}
  if (threadIdx.x < BATCH) {
    const int slot = args.slot_of_row[threadIdx.x];
    rows[threadIdx.x] =
      {slot, slot < 0 ? 0 : args.lengths[slot], slot < 0 ? 0 : args.positions[slot]};
  }
  __syncthreads();
  Cursor<WARPS, STAGES> cursor;
  cursor.held = held;
  cursor.ring = shared;
  cursor.start();
  cursor.begin(0, args.n_phases);
  cursor.template top_up<BITS>();
  if (args.table != nullptr) {
    if ((int)blockIdx.x < BATCH) {
      const int slot = rows[blockIdx.x].slot;
      const int token = slot < 0 ? 0 : args.tokens[slot];
      if (slot >= 0 && threadIdx.x == 0) {args.seen[(u64)slot * args.vocabulary + token] = 1;}
      const Vector16 * const from = (const Vector16 *)(args.table + (u64)token * args.width);
      for (int e = threadIdx.x; e < args.width / 8; e += THREADS) {
        ((Vector16 *)(args.hidden + (u64)blockIdx.x * args.width))[e] = from[e];
      }
    }
    arrive(args);
    ++barriers;
  }
#pragma unroll 1
  for (int p = 0; p < args.n_phases; ++p) {
    const Phase & phase = held[p % PHASES_HELD];
    cursor.begin(p, args.n_phases);
    const u32 word = phase_word(args, p + PHASES_HELD - 1);
    if (phase.attends) {
      attend_phase<BITS, BATCH, D, WARPS, STAGES>(
        args, phase, cursor, shared, barriers, rounds);
      ++rounds;
    } else if (HEAD_BITS != BITS && phase.bits == HEAD_BITS) {
      product<HEAD_BITS, BATCH, WARPS, STAGES>(args, phase, cursor, shared, barriers);
    } else {
      product<BITS, BATCH, WARPS, STAGES>(args, phase, cursor, shared, barriers);
    }
    const bool keeps = phase.epilogue == KEEP;
    hold_phase(held, p + PHASES_HELD - 1, word);
    if (keeps) {
      __syncthreads();
    } else if (p + 1 < args.n_phases) {
      arrive(args);
      ++barriers;
    }
  }
}
