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
  float * partial;           // [batch, kv_heads, splits, 8, D + 2]: sums, maximum, weight
  u32 * finished;            // [batch, kv_heads], zero between launches
  u64 slot_stride;           // elements from one slot of the cache to the next
  int capacity;
  int heads;
  int kv_heads;
  float norm_eps;
  float scale;
  int early;                 // let the next kernel start at the beginning, not near the end
};

const int MAX_GROUP = 8;     // query heads per KV head that one block serves

// One head of the new token: norm, if there is one, and rotation. One warp; result in `to`.
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
    const int d = lane + 32 * i;
    low[i] = bf16_to_float(load_fresh(from + d));
    high[i] = bf16_to_float(load_fresh(from + d + D / 2));
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
    // Products rounded as bf16 tensor code rounds them.
    to[d] = float_to_bf16(
      round_to_bf16(low[i] * round_to_bf16(cos[d])) -
      round_to_bf16(high[i] * round_to_bf16(sin[d])));
    to[d + D / 2] = float_to_bf16(
      round_to_bf16(high[i] * round_to_bf16(cos[d + D / 2])) +
      round_to_bf16(low[i] * round_to_bf16(sin[d + D / 2])));
  }
}

template<int D, int WARPS, int STAGES>
DEVICE void attention(const AttentionArgs & args)
{
  const int THREADS = WARPS * 32;
  const int PIECES = D / 16;                    // 16-byte pieces of a lane: keys, and as many values
  const int TILE = 16 * WARPS;                  // cached tokens of one round
  SHARED_MEMORY(shared);
  Vector16 * const ring = (Vector16 *)shared;   // [STAGES][2 * PIECES][THREADS]
  u16 * const query = (u16 *)(ring + STAGES * 2 * PIECES * THREADS);        // [8][D]
  u16 * const new_key = query + MAX_GROUP * D;                              // [D]
  u16 * const new_value = new_key + D;                                      // [D]
  float * const maxima = (float *)(new_value + D);                          // [WARPS + 1][8]
  float * const weights = maxima + (WARPS + 1) * MAX_GROUP;                 // [WARPS + 1][8]
  int * const is_last = (int *)(weights + (WARPS + 1) * MAX_GROUP);
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
  const int tiles = larger(ceil_div(length, TILE), 1);
  const int tiles_per_split = ceil_div(tiles, (int)gridDim.x);
  const int splits_in_use = ceil_div(tiles, tiles_per_split);
  if (slot < 0 || split >= splits_in_use) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (slot < 0 && split == 0) {
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

#pragma unroll
  for (int stage = 0; stage < STAGES - 1; ++stage) {fetch(stage, first_token + stage * TILE);}
  if (args.early) {let_next_kernel_start();}
  wait_for_previous_kernel();

  const float * const cos = args.cos + (u64)args.positions[slot] * D;
  const float * const sin = args.sin + (u64)args.positions[slot] * D;
  const u16 * const token_qkv = args.qkv + (u64)row * (args.heads + 2 * args.kv_heads) * D;
  for (int head = warp; head < MAX_GROUP + 1; head += WARPS) {
    if (head < group) {
      prepare_head<D>(token_qkv + (kv_head * group + head) * D, args.q_norm, args.norm_eps, cos,
        sin, query + head * D);
    } else if (head < MAX_GROUP) {
      for (int d = lane; d < D; d += 32) {query[head * D + d] = 0;}
    } else if (split == 0) {
      prepare_head<D>(token_qkv + (args.heads + kv_head) * D, args.k_norm, args.norm_eps, cos,
        sin, new_key);
    }
  }
  if (split == 0) {
    for (int d = threadIdx.x; d < D; d += THREADS) {
      new_value[d] = load_fresh(token_qkv + (args.heads + args.kv_heads + kv_head) * D + d);
    }
  }
  __syncthreads();
  if (split == 0 && length < args.capacity) {
    for (int d = threadIdx.x; d < D; d += THREADS) {
      keys[(u64)length * D + d] = new_key[d];
      values[(u64)length * D + d] = new_value[d];
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
  const float scale = args.scale * LOG2_E;      // the softmax is taken to base two
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
  if (!args.early) {let_next_kernel_start();}
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
  for (int head = warp; head < MAX_GROUP; head += WARPS) {
    float dot = 0.0f;
    if (split == 0) {
      for (int d = lane; d < D; d += 32) {
        dot += bf16_to_float(query[head * D + d]) * bf16_to_float(new_key[d]);
      }
    }
    dot = warp_sum(dot);
    if (lane == 0) {
      maxima[WARPS * MAX_GROUP + head] = split == 0 ? dot * scale : MINUS_INFINITY;
      weights[WARPS * MAX_GROUP + head] = split == 0 ? 1.0f : 0.0f;
    }
  }
  __syncthreads();
  const int record = D + 2;
  float * const partial = args.partial +
    ((u64)(row * args.kv_heads + kv_head) * gridDim.x) * MAX_GROUP * record;
  u16 * const out = args.out + ((u64)row * args.heads + kv_head * group) * D;
  for (int i = threadIdx.x; i < group * D; i += THREADS) {
    const int head = i / D;
    const int d = i % D;
    float top = MINUS_INFINITY;
#pragma unroll
    for (int w = 0; w <= WARPS; ++w) {top = fmaxf(top, maxima[w * MAX_GROUP + head]);}
    float sum = 0.0f, total = 0.0f;
#pragma unroll
    for (int w = 0; w <= WARPS; ++w) {
      const float factor = two_to_the(maxima[w * MAX_GROUP + head] - top);
      total += factor * weights[w * MAX_GROUP + head];
      if (w < WARPS) {
        sum += factor * outputs[(w * MAX_GROUP + head) * D + d];
      } else if (split == 0) {
        sum += factor * bf16_to_float(new_value[d]);
      }
    }
    if (splits_in_use == 1) {
      out[i] = float_to_bf16(sum / total);
    } else {
      float * const to = partial + (split * MAX_GROUP + head) * record;
      to[d] = sum;
      if (d == 0) {
        to[D] = top;
        to[D + 1] = total;
      }
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

  // The last block of this KV head: weigh the stretches, then add them.
  float * const factors = outputs;              // [splits][8]
  if (threadIdx.x == 0) {*finished = 0;}
  for (int head = warp; head < group; head += WARPS) {
    float top = MINUS_INFINITY;
    for (int s = lane; s < splits_in_use; s += 32) {
      top = fmaxf(top, load_fresh(partial + (s * MAX_GROUP + head) * record + D));
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, distance));
    }
    float total = 0.0f;
    for (int s = lane; s < splits_in_use; s += 32) {
      const float * const from = partial + (s * MAX_GROUP + head) * record + D;
      total += two_to_the(load_fresh(from) - top) * load_fresh(from + 1);
    }
    total = warp_sum(total);
    for (int s = lane; s < splits_in_use; s += 32) {
      const float maximum_of_split = load_fresh(partial + (s * MAX_GROUP + head) * record + D);
      factors[s * MAX_GROUP + head] = two_to_the(maximum_of_split - top) / total;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * D; i += THREADS) {
    const float * const from = partial + (i / D) * record + i % D;
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < splits_in_use; ++s) {
      sum += factors[s * MAX_GROUP + i / D] * load_fresh(from + s * MAX_GROUP * record);
    }
    out[i] = float_to_bf16(sum);
  }
}
