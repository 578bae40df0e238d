// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// Attention of one new token per sequence over its cache, split over the cached tokens.
//
// Grid: (splits, KV heads, batch rows). A block serves the up to eight query heads of one KV head
// and a stretch of the cache; how many stretches are in use follows the length, which is read
// from device memory. Rotation, q and k norm and the append to the cache happen here. A lane
// fetches, asynchronously, exactly the keys and values that its tensor-core operands hold, so
// nothing is exchanged between lanes. The new token's own key never goes through the cache: the
// first stretch adds it. The block that finishes last adds up the stretches.

struct AttentionArgs
{
  const u16 * qkv;           // [batch, (heads + 2 kv_heads) * D]
  const u16 * q_norm;        // [D] or null
  const u16 * k_norm;
  const float * cos;         // [positions, D]
  const float * sin;
  const int * slot_of_row;   // [batch], -1: nobody
  const int * lengths;       // [slots], cached tokens before this one
  const int * positions;     // [slots], logical position of the new token
  u16 * keys;                // one layer of the cache: [slots, kv_heads, capacity, D]
  u16 * values;
  u16 * out;                 // [batch, heads * D]
  float * partial;           // [batch, kv_heads]: sums [splits, 8, D], (maximum, weight) [splits, 8]
  u32 * finished;            // [batch, kv_heads], zero between launches
  u64 slot_stride;           // elements from one slot of the cache to the next
  int capacity;
  int heads;
  int kv_heads;
  float norm_eps;
  float scale;
  int least_tiles;           // of a stretch, so that a short cache is not split too finely
};

const int MAX_GROUP = 8;     // query heads per KV head that one block serves

// One head of the new token, from and to shared memory: norm, if there is one, and rotation. One
// warp. Products are rounded as bf16 tensor code rounds them.
template<int D>
DEVICE void prepare_head(const u16 * from, const u16 * norm, float eps, const float * cos,
  const float * sin, u16 * to)
{
  const int lane = threadIdx.x % 32;
  const int PER_LANE = D / 64;                  // pairs (d, d + D / 2) of a lane
  float low[PER_LANE], high[PER_LANE];
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < PER_LANE; ++i) {
    low[i] = bf16_to_float(from[lane + 32 * i]);
    high[i] = bf16_to_float(from[lane + 32 * i + D / 2]);
    squares += low[i] * low[i] + high[i] * high[i];
  }
  if (norm != nullptr) {
    const float inverse_rms = inverse_sqrt(warp_sum(squares) / (float)D + eps);
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
      const int d = lane + 32 * i;
      low[i] = round_to_bf16(round_to_bf16(low[i] * inverse_rms) * bf16_to_float(norm[d]));
      high[i] =
        round_to_bf16(round_to_bf16(high[i] * inverse_rms) * bf16_to_float(norm[d + D / 2]));
    }
  }
#pragma unroll
  for (int i = 0; i < PER_LANE; ++i) {
    const int d = lane + 32 * i;
    to[d] = float_to_bf16(round_to_bf16(low[i] * cos[d]) - round_to_bf16(high[i] * sin[d]));
    to[d + D / 2] = float_to_bf16(
      round_to_bf16(high[i] * cos[d + D / 2]) + round_to_bf16(low[i] * sin[d + D / 2]));
  }
}

// The last block of a KV head: weighs the stretches, then adds them.
template<int D, int WARPS>
DEVICE void add_stretches(const float * sums_of, const float * stats_of, int splits, int group,
  float * factors, u16 * out)
{
  const int THREADS = WARPS * 32;
  const int lane = threadIdx.x % 32;
  float * const stats = factors + splits * MAX_GROUP;             // [splits][8][2]
#pragma unroll 1
  for (int i = threadIdx.x; i < splits * MAX_GROUP * 2; i += THREADS) {
    stats[i] = load_fresh(stats_of + i);
  }
  __syncthreads();
#pragma unroll 1
  for (int head = threadIdx.x / 32; head < group; head += WARPS) {
    float top = MINUS_INFINITY;
#pragma unroll 1
    for (int s = lane; s < splits; s += 32) {top = fmaxf(top, stats[(s * MAX_GROUP + head) * 2]);}
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, distance));
    }
    float total = 0.0f;
#pragma unroll 1
    for (int s = lane; s < splits; s += 32) {
      const float * const own = stats + (s * MAX_GROUP + head) * 2;
      total += two_to_the(own[0] - top) * own[1];
    }
    total = warp_sum(total);
#pragma unroll 1
    for (int s = lane; s < splits; s += 32) {
      factors[s * MAX_GROUP + head] = two_to_the(stats[(s * MAX_GROUP + head) * 2] - top) / total;
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x * 4; i < group * D; i += THREADS * 4) {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
    for (int s = 0; s < splits; ++s) {
      const Vector16 part = load_fresh_16(sums_of + s * MAX_GROUP * D + i);
      const float factor = factors[s * MAX_GROUP + i / D];
#pragma unroll
      for (int j = 0; j < 4; ++j) {sum[j] += factor * bits_to_float(part.word[j]);}
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {out[i + j] = float_to_bf16(sum[j]);}
  }
}

template<int D, int WARPS, int STAGES>
DEVICE void attention(const AttentionArgs & args)
{
  const int THREADS = WARPS * 32;
  const int PIECES = D / 16;                    // 16-byte pieces of a lane: keys; and values
  const int TILE = 16 * WARPS;                  // cached tokens of one round
  SHARED_MEMORY(shared);
  Vector16 * const ring = (Vector16 *)shared;   // [STAGES][2 * PIECES][THREADS]
  u16 * const query = (u16 *)(ring + STAGES * 2 * PIECES * THREADS);        // [8][D]
  u16 * const new_key = query + MAX_GROUP * D;                              // [D]
  u16 * const raw = new_key + D;                // [group + 2][D]: queries, key, value as they come
  float * const angles = (float *)(raw + (MAX_GROUP + 2) * D);              // [2][D]
  float * const maxima = angles + 2 * D;                                    // [WARPS + 1][8]
  float * const weights = maxima + (WARPS + 1) * MAX_GROUP;                 // [WARPS + 1][8]
  float * const totals = weights + (WARPS + 1) * MAX_GROUP;                 // [8]
  int * const is_last = (int *)(totals + MAX_GROUP);
  float * const outputs = (float *)shared;      // [WARPS][8][D], once the ring is done with

  const int split = blockIdx.x;
  const int kv_head = blockIdx.y;
  const int row = blockIdx.z;
  const int group = args.heads / args.kv_heads;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int slot = args.slot_of_row[row];
  const int length = slot < 0 ? 0 : args.lengths[slot];
  const u64 position = slot < 0 ? 0 : args.positions[slot];
  const int tiles = larger(ceil_div(length, TILE), 1);
  const int tiles_per_split = larger(ceil_div(tiles, (int)gridDim.x), args.least_tiles);
  const int splits_in_use = ceil_div(tiles, tiles_per_split);
  if (slot < 0 || split >= splits_in_use) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (slot < 0 && split == 0) {
#pragma unroll 1
      for (int i = threadIdx.x; i < group * D; i += THREADS) {
        args.out[((u64)row * args.heads + kv_head * group) * D + i] = 0;
      }
    }
    return;
  }
  const int first_token = split * tiles_per_split * TILE + warp * 16;
  const int end_token = smaller(length, (split + 1) * tiles_per_split * TILE);
  u16 * const keys =
    args.keys + slot * args.slot_stride + (u64)kv_head * args.capacity * D;
  u16 * const values =
    args.values + slot * args.slot_stride + (u64)kv_head * args.capacity * D;

  // Ahead of the keys, so that nothing waits behind them.
  const int ANGLES = (2 * D + THREADS - 1) / THREADS;
  float angle[ANGLES];
#pragma unroll
  for (int i = 0; i < ANGLES; ++i) {
    const int d = threadIdx.x + i * THREADS;
    angle[i] = d >= 2 * D ? 0.0f : (d < D ? args.cos : args.sin - D)[position * D + d];
  }

  auto fetch = [&](int stage, int token) {
      Vector16 * const to = ring + stage * 2 * PIECES * THREADS + threadIdx.x;
#pragma unroll
      for (int p = 0; p < PIECES; ++p) {        // keys: token g of 8, then the next 8
        const int from = token + (p / (PIECES / 2)) * 8 + g;
        const bool valid = from < end_token;
        const int d = (p % (PIECES / 2)) * 32 + t * 8;
        copy_async_16(to + p * THREADS, valid ? keys + (u64)from * D + d : keys, valid);
      }
#pragma unroll
      for (int p = 0; p < PIECES; ++p) {        // values: tokens 2t, 2t+1, 2t+8, 2t+9
        const int which = p % 4;
        const int from = token + 2 * t + which % 2 + (which / 2) * 8;
        const bool valid = from < end_token;
        const int d = (p / 4) * 64 + g * 8;
        copy_async_16(
          to + (PIECES + p) * THREADS, valid ? values + (u64)from * D + d : values, valid);
      }
      copy_async_commit();
    };

#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; ++stage) {fetch(stage, first_token + stage * TILE);}
#pragma unroll
  for (int i = 0; i < ANGLES; ++i) {
    const int d = threadIdx.x + i * THREADS;
    if (d < 2 * D) {angles[d] = round_to_bf16(angle[i]);}
  }
  let_next_kernel_start();
  wait_for_previous_kernel();

  const u16 * const token_qkv = args.qkv + (u64)row * (args.heads + 2 * args.kv_heads) * D;
#pragma unroll 1
  for (int e = threadIdx.x; e < (group + 2) * D / 8; e += THREADS) {
    const int head = e / (D / 8);
    const int from = head < group ? kv_head * group + head :
      args.heads + kv_head + (head - group) * args.kv_heads;
    *(Vector16 *)(raw + e * 8) = load_fresh_16(token_qkv + from * D + e % (D / 8) * 8);
  }
  __syncthreads();
  const u16 * const new_value = raw + (group + 1) * D;
#pragma unroll 1
  for (int head = warp; head < MAX_GROUP + 1; head += WARPS) {
    if (head < group) {
      prepare_head<D>(raw + head * D, args.q_norm, args.norm_eps, angles, angles + D,
        query + head * D);
    } else if (head < MAX_GROUP) {
#pragma unroll 1
      for (int d = lane; d < D; d += 32) {query[head * D + d] = 0;}
    } else if (split == 0) {
      prepare_head<D>(raw + group * D, args.k_norm, args.norm_eps, angles, angles + D, new_key);
    }
  }
  __syncthreads();
  const float scale = args.scale * LOG2_E;      // the softmax is taken to base two
  if (split == 0) {
#pragma unroll 1
    for (int d = threadIdx.x; d < D && length < args.capacity; d += THREADS) {
      keys[(u64)length * D + d] = new_key[d];
      values[(u64)length * D + d] = new_value[d];
    }
#pragma unroll 1
    for (int head = warp; head < MAX_GROUP; head += WARPS) {
      float dot = 0.0f;
#pragma unroll 1
      for (int d = lane; d < D; d += 32) {
        dot += bf16_to_float(query[head * D + d]) * bf16_to_float(new_key[d]);
      }
      dot = warp_sum(dot);
      if (lane == 0) {maxima[WARPS * MAX_GROUP + head] = dot * scale;}
    }
  }

  Vector16 q[D / 32];
#pragma unroll
  for (int c = 0; c < D / 32; ++c) {q[c] = *(const Vector16 *)(query + g * D + c * 32 + t * 8);}
  float sums[D / 8][4];
#pragma unroll
  for (int j = 0; j < D / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {sums[j][i] = 0.0f;}
  }
  float maximum = MINUS_INFINITY;
  float weight = 0.0f;
  int stage = 0;
  for (int token = first_token; token < end_token; token += TILE) {
    copy_async_wait<STAGES - 2>();
    fetch(stage == 0 ? STAGES - 1 : stage - 1, token + (STAGES - 1) * TILE);
    const Vector16 * const from = ring + stage * 2 * PIECES * THREADS + threadIdx.x;
    float score[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
    for (int p = 0; p < PIECES; ++p) {
      const Vector16 k = from[p * THREADS];
      float (&to)[4] = score[p / (PIECES / 2)];
      const Vector16 & x = q[p % (PIECES / 2)];
      multiply_accumulate(to, x.word[0], 0, x.word[1], 0, k.word[0], k.word[1]);
      multiply_accumulate(to, x.word[2], 0, x.word[3], 0, k.word[2], k.word[3]);
    }
    float highest = MINUS_INFINITY;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = token + (i / 2) * 8 + 2 * t + i % 2;
      float & s = score[i / 2][i % 2];
      s = at < end_token ? s * scale : MINUS_INFINITY;
      highest = fmaxf(highest, s);
    }
    highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFFu, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFFu, highest, 2));
    const float before = maximum;
    maximum = fmaxf(maximum, highest);
    const float shrink = two_to_the(before - maximum);
    float p_sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float & s = score[i / 2][i % 2];
      s = two_to_the(s - maximum);
      p_sum += s;
    }
    weight = weight * shrink + p_sum;
    const u32 p_first = pack_bf16(score[0][0], score[0][1]);
    const u32 p_second = pack_bf16(score[1][0], score[1][1]);
    if (__any_sync(0xFFFFFFFFu, maximum > before)) {
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        sums[j][0] *= shrink;
        sums[j][1] *= shrink;
      }
    }
#pragma unroll
    for (int part = 0; part < D / 64; ++part) {
      const Vector16 * const v = from + (PIECES + part * 4) * THREADS;
      const Vector16 v0 = v[0], v1 = v[THREADS], v8 = v[2 * THREADS], v9 = v[3 * THREADS];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const u32 halves = i % 2 == 0 ? 0x5410 : 0x7632;
        multiply_accumulate(sums[part * 8 + i], p_first, 0, p_second, 0,
          __byte_perm(v0.word[i / 2], v1.word[i / 2], halves),
          __byte_perm(v8.word[i / 2], v9.word[i / 2], halves));
      }
    }
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }
  copy_async_wait<0>();
  weight += __shfl_xor_sync(0xFFFFFFFFu, weight, 1);
  weight += __shfl_xor_sync(0xFFFFFFFFu, weight, 2);
  __syncthreads();

  // Add up the warps, and the new token with the first stretch.
#pragma unroll
  for (int j = 0; j < D / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int d = (j / 8) * 64 + (2 * t + i) * 8 + j % 8;
      outputs[(warp * MAX_GROUP + g) * D + d] = sums[j][i];
    }
  }
  if (t == 0) {
    maxima[warp * MAX_GROUP + g] = maximum;
    weights[warp * MAX_GROUP + g] = weight;
  }
  __syncthreads();
  const int parts = split == 0 ? WARPS + 1 : WARPS;
  float * const sums_of = args.partial +
    (u64)(row * args.kv_heads + kv_head) * gridDim.x * MAX_GROUP * (D + 2);
  float * const stats_of = sums_of + gridDim.x * MAX_GROUP * D;
  if (threadIdx.x < MAX_GROUP) {                // maxima become factors
    const int head = threadIdx.x;
    float top = MINUS_INFINITY;
#pragma unroll 1
    for (int w = 0; w < parts; ++w) {top = fmaxf(top, maxima[w * MAX_GROUP + head]);}
    float total = 0.0f;
#pragma unroll 1
    for (int w = 0; w < parts; ++w) {
      const float factor = two_to_the(maxima[w * MAX_GROUP + head] - top);
      maxima[w * MAX_GROUP + head] = factor;
      total += factor * (w < WARPS ? weights[w * MAX_GROUP + head] : 1.0f);
    }
    totals[head] = splits_in_use == 1 ? 1.0f / total : 1.0f;
    stats_of[(split * MAX_GROUP + head) * 2] = top;
    stats_of[(split * MAX_GROUP + head) * 2 + 1] = total;
  }
  __syncthreads();
  u16 * const out = args.out + ((u64)row * args.heads + kv_head * group) * D;
#pragma unroll 1
  for (int i = threadIdx.x; i < group * D; i += THREADS) {
    const int head = i / D;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      sum += maxima[w * MAX_GROUP + head] * outputs[w * MAX_GROUP * D + i];
    }
    if (split == 0) {sum += maxima[WARPS * MAX_GROUP + head] * bf16_to_float(new_value[i % D]);}
    if (splits_in_use == 1) {
      out[i] = float_to_bf16(sum * totals[head]);
    } else {
      sums_of[split * MAX_GROUP * D + i] = sum;
    }
  }
  if (splits_in_use == 1) {return;}
  __threadfence();
  __syncthreads();
  u32 * const finished = args.finished + row * args.kv_heads + kv_head;
  if (threadIdx.x == 0) {*is_last = atomicAdd(finished, 1u) == (u32)splits_in_use - 1;}
  __syncthreads();
  if (!*is_last) {return;}
  __threadfence();
  if (threadIdx.x == 0) {*finished = 0;}
  add_stretches<D, WARPS>(sums_of, stats_of, splits_in_use, group, outputs, out);
}
