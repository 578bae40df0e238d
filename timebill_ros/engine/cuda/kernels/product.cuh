// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// y = W x for 1 to 8 vectors at once, at the speed of reading W: one phase of a step.
//
// A warp takes the units of its stretch from the ring and feeds them to the tensor cores, whose
// columns are the vectors. What the warps have of each tile is added up once, at the end, in a
// fixed order.

// Brings x, times the norm's weight if there is one, into shared memory; leaves each warp's sums of
// squares in `squares` [WARPS][BATCH].
template<int BITS, int BATCH, int THREADS, bool NORM, int AT_ONCE>
DEVICE void load_vectors(const Phase & phase, u8 * vectors, float * x_scales, float * x_sums,
  float * squares)
{
  const u16 * const from = phase.x;
  const u16 * const norm = phase.norm;
  const int k = phase.k, row_k = phase.row_k;
  const int padded = ceil_div(k, Format<BITS>::CHUNK) * Format<BITS>::CHUNK;
  const int PLACES = BATCH == 1 ? 2 : 1;      // put side by side; AT_ONCE is a multiple of it
  float sums[BATCH];
#pragma unroll
  for (int b = 0; b < BATCH; ++b) {sums[b] = 0.0f;}
#pragma unroll 1
  for (int start = 0; start < padded; start += THREADS * 8 * AT_ONCE) {
    Vector16 x[AT_ONCE][BATCH], weight[NORM ? AT_ONCE : 1];
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {       // all loads are under way before the first is used
      const int at = start + (i * THREADS + threadIdx.x) * 8;
      if (NORM) {weight[i] = {{0, 0, 0, 0}};}
      if (NORM && at < k) {weight[i] = *(const Vector16 *)(norm + at);}
#pragma unroll
      for (int b = 0; b < BATCH; ++b) {
        x[i][b] = {{0, 0, 0, 0}};
        if (at < k) {x[i][b] = load_fresh_16(from + (u64)b * row_k + at);}
      }
    }
    // Rolled up, what is next moving to the front: so much code, executed once a phase, would take
    // longer to fetch than to execute.
#pragma unroll 1
    for (int i = 0; i < AT_ONCE; i += PLACES) {
      if (start + i * THREADS * 8 >= padded) {break;}
      float y[PLACES * BATCH][8];
#pragma unroll
      for (int n = 0; n < PLACES * BATCH; ++n) {
        const Vector16 from_x = x[n / BATCH][n % BATCH];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          y[n][2 * j] = low_half(from_x.word[j]);
          y[n][2 * j + 1] = high_half(from_x.word[j]);
        }
        if (!NORM) {continue;}
        const Vector16 scale = weight[NORM ? n / BATCH : 0];
#pragma unroll
        for (int j = 0; j < 8; ++j) {sums[n % BATCH] += y[n][j] * y[n][j];}
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // The division by the root mean square follows at the end of the product's sum.
          y[n][2 * j] *= low_half(scale.word[j]);
          y[n][2 * j + 1] *= high_half(scale.word[j]);
        }
      }
      put_columns<BITS, BATCH, PLACES>(
        y, start + (i * THREADS + threadIdx.x) * 8, THREADS * 8, k, padded, vectors, x_scales,
        x_sums);
#pragma unroll
      for (int j = 0; j + PLACES < AT_ONCE; ++j) {
        if (NORM) {weight[j] = weight[j + PLACES];}
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {x[j][b] = x[j + PLACES][b];}
      }
    }
  }
  if (NORM) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      const float sum = warp_sum(sums[b]);
      if (threadIdx.x % 32 == 0) {squares[(threadIdx.x / 32) * BATCH + b] = sum;}
    }
  }
  __syncthreads();
}

// What belongs to one row of the result beside its sum; fetched before it is needed.
struct RowExtras
{
  float scale, up_scale;     // int8
  float bias, up_bias;
};

template<int BITS>
DEVICE RowExtras row_extras(const Phase & phase, int row)
{
  RowExtras extras = {1.0f, 1.0f, 0.0f, 0.0f};
  const bool pairs = phase.epilogue == SWIGLU;
  if (BITS == 8) {
    extras.scale = ((const float *)phase.scales)[row];
    if (pairs) {extras.up_scale = ((const float *)phase.scales)[row + phase.n_rows];}
  }
  if (phase.bias != nullptr) {
    extras.bias = bf16_to_float(phase.bias[row]);
    if (pairs) {extras.up_bias = bf16_to_float(phase.bias[row + phase.n_rows]);}
  }
  return extras;
}

// What one finished sum becomes.
DEVICE void finish(const StepArgs & args, const Phase & phase, const Row * rows, int row, int b,
  float sum, float up, u16 residual, float & best_value, int & best_index)
{
  const u64 place = (u64)b * phase.n_rows + row;
  if (phase.epilogue == LOGITS) {
    float logit = round_to_bf16(sum);
    const int slot = rows[b].slot;
    if (slot >= 0 && load_fresh(args.seen + (u64)slot * args.vocabulary + row)) {
      const float penalty = args.penalty[slot];
      logit = logit < 0.0f ? logit * penalty : logit / penalty;
    }
    args.logits[place] = logit;
    if (logit > best_value) {best_value = logit; best_index = row;}
    return;
  }
  float value = sum;
  if (phase.epilogue == ADD_RESIDUAL) {value = round_to_bf16(value) + bf16_to_float(residual);}
  if (phase.epilogue == SWIGLU) {
    const float gate = round_to_bf16(value);
    const float silu = round_to_bf16(gate / (1.0f + two_to_the(-gate * LOG2_E)));
    value = silu * round_to_bf16(up);
  }
  phase.out[place] = float_to_bf16(value);
  if (phase.tap != nullptr) {phase.tap[place] = float_to_bf16(value);}
}

// The best token of a block, per vector. A thread has seen one vector only: threadIdx % BATCH.
template<int BATCH, int THREADS>
DEVICE void leave_best(const StepArgs & args, float * shared, float best_value, int best_index)
{
  float * const values = shared;
  int * const indices = (int *)(shared + THREADS);
  values[threadIdx.x] = best_value;
  indices[threadIdx.x] = best_index;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int b = threadIdx.x / 32; b < BATCH; b += THREADS / 32) {
    best_value = MINUS_INFINITY;
    best_index = 0x7FFFFFFF;
    for (int i = lane * BATCH + b; i < THREADS; i += 32 * BATCH) {
      take_better(best_value, best_index, values[i], indices[i]);
    }
    warp_best(best_value, best_index);
    if (lane == 0) {
      args.best_value[b * gridDim.x + blockIdx.x] = best_value;
      args.best_index[b * gridDim.x + blockIdx.x] = best_index;
    }
  }
}

// This warp is through with a tile.
template<int BITS, int BATCH>
DEVICE void leave_tile(Total<BITS, BATCH> & total, float * sums)
{
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int set = 0; set < Total<BITS, BATCH>::SETS; ++set) {
    const int b = Total<BITS, BATCH>::vector(set, t);
    if (b < BATCH) {
      sums[g * BATCH + b] = total.of[set][0];
      sums[(g + 8) * BATCH + b] = total.of[set][1];
    }
  }
  total.clear();
}

// Which warps have a part of a tile, and as their how-manieth tile the first of them has it.
struct Parts
{
  int first_warp, last_warp, place;
  DEVICE Parts(const Stretch & s, int tile)
  {
    const int n = larger(s.n_chunks, 1), per_warp = larger(s.per_warp, 1);
    first_warp = tile * n / per_warp;
    last_warp = ((tile + 1) * n - 1) / per_warp;
    place = tile - first_warp * per_warp / n;
  }
};

// `barriers` that must be complete before x may be read.
template<int BITS, int BATCH, int WARPS, int STAGES>
DEVICE void product(const StepArgs & args, const Phase & phase, Cursor<WARPS, STAGES> & cursor,
  u8 * shared, u32 barriers)
{
  const int THREADS = WARPS * 32;
  const int warp = threadIdx.x / 32;
  const int t = threadIdx.x % 4;
  const Stretch s = stretch_of<WARPS>(phase, warp);
  const int span = tile_span((phase.rows_per_block + (1 << s.tile_shift) - 1) >> s.tile_shift, s.n_chunks,
      WARPS);
  float * const sums = (float *)(shared + args.work_at);        // [WARPS][span][16][BATCH]
  float * const squares = sums + WARPS * span * 16 * BATCH;     // [WARPS][BATCH]
  float * const carry = (float *)(shared + args.carry_at);      // [rows_per_block][BATCH]
  const Row * const rows = (const Row *)(shared + args.rows_at);
  u8 * const vectors = shared + args.x_at;
  const int stride = vector_stride<BITS>(phase.k);
  float * const x_scales = (float *)(vectors + 2 * BATCH * stride);
  float * const x_sums = x_scales +
    ceil_div(phase.k, Format<BITS>::CHUNK) * Format<BITS>::CHUNK / SCALE_COLUMNS * BATCH;

  // Everything that does not depend on the phase before, while waiting for it.
  const int n_sums = larger(s.end_row - s.first_row, 0) * BATCH;
  const int b = threadIdx.x % BATCH;
  const int first_row = s.first_row + threadIdx.x / BATCH;
  const bool has_first = (int)threadIdx.x < n_sums;
  if (phase.norm != nullptr) {
    for (int e = threadIdx.x * 64; e < phase.k; e += THREADS * 64) {prefetch(phase.norm + e);}
  }
  for (int row = first_row + THREADS / BATCH; row < s.end_row; row += THREADS) {
    if (BITS == 8) {prefetch((const float *)phase.scales + row);}
  }
  RowExtras extras = {};
  if (has_first) {extras = row_extras<BITS>(phase, first_row);}
  Parts parts(s, threadIdx.x / BATCH >> s.tile_shift);
  if (!phase.continues && barriers > 0) {wait_for_all(args, barriers);}
  u16 residual = 0;
  if (has_first && phase.epilogue == ADD_RESIDUAL) {
    residual = load_fresh(phase.out + (u64)b * phase.n_rows + first_row);
  }
  if (phase.norm != nullptr) {
    load_vectors<BITS, BATCH, THREADS, true, BATCH < 4 ? 2 : 1>(
      phase, vectors, x_scales, x_sums, squares);
  } else {
    load_vectors<BITS, BATCH, THREADS, false, BATCH == 1 ? 10 : BATCH == 2 ? 3 : BATCH == 4 ? 2 : 1>(
      phase, vectors, x_scales, x_sums, squares);
  }

  const u8 * const my_vector = vectors + vector_place<BITS, BATCH>(phase.k);
  const float * const my_scales = x_scales + (t < BATCH ? t : 0);
  const float * const my_x_sums = x_sums + (t < BATCH ? t : 0);
  const int GROUPS = Format<BITS>::FOUR ? 2 : 1;        // of a chunk: scales of x, 128 bytes of x
  float * my_sums = sums + warp * span * 16 * BATCH;
  Total<BITS, BATCH> total;
  total.clear();
  int chunk = s.units > 0 ? s.first_unit % s.n_chunks : 0;
  int left = s.units;
#pragma unroll 1
  while (left > 0) {
    bool fetches;
    int n = cursor.template prepare<BITS>(left, &fetches);
    left -= n;
#pragma unroll 1
    for (; n > 0; --n) {
      copy_async_wait<STAGES - 2>();
      if (Format<BITS>::FOUR) {__syncwarp();}
      const u16 * const scales = cursor.template scales_of<BITS>(cursor.taken);
      Unit<BITS> unit;
      unit.template take<THREADS>(cursor.take(), scales);
      if (fetches) {cursor.template fetch<BITS>(true);} else {copy_async_commit();}
      add_unit(total, unit, my_vector + chunk * GROUPS * 128, 8 * stride,
        my_scales + chunk * GROUPS * BATCH, my_x_sums + chunk * 8 * BATCH);
      if (++chunk == s.n_chunks) {
        leave_tile<BITS, BATCH>(total, my_sums);
        my_sums += 16 * BATCH;
        chunk = 0;
      }
    }
  }
  if (chunk != 0) {leave_tile<BITS, BATCH>(total, my_sums);}
  __syncthreads();
  float best_value = MINUS_INFINITY;
  int best_index = 0;
  float inverse_rms = 1.0f;
  if (phase.norm != nullptr) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {sum += squares[w * BATCH + b];}
    inverse_rms = inverse_sqrt(sum / (float)phase.k + args.norm_eps);
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < n_sums; i += THREADS) {
    const int row = s.first_row + i / BATCH, in_tile = i / BATCH & ((1 << s.tile_shift) - 1);
    if (i >= THREADS) {
      extras = row_extras<BITS>(phase, row);
      parts = Parts(s, i / BATCH >> s.tile_shift);
      if (phase.epilogue == ADD_RESIDUAL) {
        residual = load_fresh(phase.out + (u64)b * phase.n_rows + row);
      }
    }
    float sum = phase.continues ? carry[i] : 0.0f, up = 0.0f;
    // Warps behind the first one begin within this tile: it is the first that they have.
    const float * part = sums + ((parts.first_warp * span + parts.place) * 16 + in_tile) * BATCH + b;
    sum += part[0];
    if (phase.epilogue == SWIGLU) {up += part[8 * BATCH];}
    part -= parts.place * 16 * BATCH;
#pragma unroll 4
    for (int w = parts.first_warp + 1; w <= parts.last_warp; ++w) {
      part += span * 16 * BATCH;
      sum += part[0];
      if (phase.epilogue == SWIGLU) {up += part[8 * BATCH];}
    }
    if (phase.epilogue == KEEP) {
      carry[i] = sum;
      continue;
    }
    sum = sum * extras.scale * inverse_rms + extras.bias;
    up = up * extras.up_scale * inverse_rms + extras.up_bias;
    finish(args, phase, rows, row, b, sum, up, residual, best_value, best_index);
  }
  if (phase.epilogue == LOGITS) {
    leave_best<BATCH, THREADS>(args, (float *)shared, best_value, best_index);
  }
}
