// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// Attention of one new token per sequence over its cache, split over the cached tokens: one phase
// of a step.
//
// A block serves the up to eight query heads of one KV head of one row, and a stretch of the
// cache; how many stretches are in use follows the length. Rotation, q and k norm and the append
// to the cache happen here. A lane fetches, asynchronously, exactly the keys and values that its
// tensor-core operands hold, so nothing is exchanged between lanes; they lie where products have
// their vectors, and the weights' ring keeps what it holds of the phases behind. The new token's
// own key never goes through the cache: the first stretch adds it. The blocks of a KV head wait
// for each other and add up the stretches, each for some of the columns.

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

// What attention keeps in shared memory beside keys and values.
template<int D, int WARPS>
struct AttentionWork
{
  u16 query[MAX_GROUP * D];
  u16 new_key[D];
  u16 raw[(MAX_GROUP + 2) * D];            // queries, key, value as they come
  float angles[2 * D];                     // cosines, sines
  float maxima[(WARPS + 1) * MAX_GROUP];
  float weights[(WARPS + 1) * MAX_GROUP];
  float totals[MAX_GROUP];
};

// One (row, KV head, stretch) of one layer.
template<int D, int WARPS>
struct Attention
{
  static const int THREADS = WARPS * 32;
  static const int PIECES = D / 16;             // 16-byte pieces of a lane: keys; and values
  static const int TILE = 16 * WARPS;           // cached tokens of one round
  int split, kv_head, row, slot;
  int length, position;                         // cached tokens, position of the new one
  int tiles_per_split, splits_in_use;
  int end_token;                                // of the stretch
  float sums[D / 16][4];                        // of this warp
  float maximum, weight;

  DEVICE Attention(const StepArgs & args, const Row * rows, int item)
  {
    split = item % args.splits;
    kv_head = item / args.splits % args.kv_heads;
    row = item / args.splits / args.kv_heads;
    slot = rows[row].slot;
    length = rows[row].length;
    position = rows[row].position;
    const int tiles = larger(ceil_div(length, TILE), 1);
    tiles_per_split = larger(ceil_div(tiles, args.splits), args.least_tiles);
    splits_in_use = ceil_div(tiles, tiles_per_split);
    end_token = smaller(length, (split + 1) * tiles_per_split * TILE);
  }

  DEVICE bool has_work() const { return slot >= 0 && split < splits_in_use; }

  // Where rows that nobody has are attended to.
  DEVICE void clear(const StepArgs & args, const Phase & phase) const
  {
    const int own = args.heads / args.kv_heads * D;
    if (slot >= 0 || split > 0) {return;}
#pragma unroll 1
    for (int i = threadIdx.x; i < own; i += THREADS) {
      phase.out[((u64)row * args.kv_heads + kv_head) * own + i] = 0;
    }
  }

  DEVICE void attend(const StepArgs & args, const Phase & phase, u8 * shared, u32 barriers);
  DEVICE void add_up(const StepArgs & args, const Phase & phase, u8 * shared, u32 rounds);
  DEVICE void add_stretches(const StepArgs & args, u16 * out, float * scratch, u32 rounds) const;
  DEVICE float * partial_of(const StepArgs & args) const
  {
    return args.partial + (u64)(row * args.kv_heads + kv_head) * args.splits * MAX_GROUP * (D + 2);
  }
};

// This warp's part; `barriers` that must be complete before qkv may be read (0: they are).
template<int D, int WARPS>
DEVICE void Attention<D, WARPS>::attend(const StepArgs & args, const Phase & phase, u8 * shared,
  u32 barriers)
{
  AttentionWork<D, WARPS> & work = *(AttentionWork<D, WARPS> *)(shared + args.work_at);
  Vector16 * const key_slots = (Vector16 *)(shared + args.x_at) + threadIdx.x; // [PIECES][THREADS]
  Vector16 * const value_slots = key_slots + PIECES * THREADS;
  const int group = args.heads / args.kv_heads;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int first_token = split * tiles_per_split * TILE + warp * 16;
  const u64 cache_at = slot * args.slot_stride + (u64)kv_head * args.capacity * D;
  u16 * const keys = (u16 *)phase.weight + cache_at;
  u16 * const values = (u16 *)phase.scales + cache_at;

  auto fetch_keys = [&](int token) {            // token g of 8, then the next 8
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int from = token + r * 8 + g;
        const bool valid = from < end_token;
        const u16 * const key = keys + (valid ? (u64)from * D : 0) + t * 8;
#pragma unroll
        for (int p = 0; p < PIECES / 2; ++p) {
          copy_async_16(key_slots + (r * PIECES / 2 + p) * THREADS, key + p * 32, valid);
        }
      }
      copy_async_commit();
    };
  auto fetch_values = [&](int token) {          // tokens 2t, 2t+1, 2t+8, 2t+9
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int from = token + 2 * t + r % 2 + (r / 2) * 8;
        const bool valid = from < end_token;
        const u16 * const value = values + (valid ? (u64)from * D : 0) + g * 8;
#pragma unroll
        for (int part = 0; part < D / 64; ++part) {
          copy_async_16(value_slots + (part * 4 + r) * THREADS, value + part * 64, valid);
        }
      }
      copy_async_commit();
    };
  fetch_keys(first_token);
  fetch_values(first_token);
  const int ANGLES = (2 * D + THREADS - 1) / THREADS;
  float angle[ANGLES];
#pragma unroll
  for (int i = 0; i < ANGLES; ++i) {
    const int d = threadIdx.x + i * THREADS;
    angle[i] = d >= 2 * D ? 0.0f : (d < D ? args.cos : args.sin - D)[(u64)position * D + d];
  }
  if (barriers > 0) {wait_for_all(args, barriers);}
#pragma unroll
  for (int i = 0; i < ANGLES; ++i) {
    const int d = threadIdx.x + i * THREADS;
    if (d < 2 * D) {work.angles[d] = round_to_bf16(angle[i]);}
  }

  const u16 * const token_qkv = phase.x + (u64)row * (args.heads + 2 * args.kv_heads) * D;
#pragma unroll 1
  for (int e = threadIdx.x; e < (group + 2) * D / 8; e += THREADS) {
    const int head = e / (D / 8);
    const int from = head < group ? kv_head * group + head :
      args.heads + kv_head + (head - group) * args.kv_heads;
    *(Vector16 *)(work.raw + e * 8) = load_fresh_16(token_qkv + from * D + e % (D / 8) * 8);
  }
  __syncthreads();
  const u16 * const new_value = work.raw + (group + 1) * D;
#pragma unroll 1
  for (int i = warp; i < MAX_GROUP + 1; i += WARPS) {      // queries, the new key, no queries
    if (i > group) {
#pragma unroll
      for (int d = 0; d < D; d += 32) {work.query[(i - 1) * D + d + lane] = 0;}
    } else if (i < group || split == 0) {
      prepare_head<D>(work.raw + i * D, i < group ? phase.norm : phase.bias, args.norm_eps,
        work.angles, work.angles + D, i < group ? work.query + i * D : work.new_key);
    }
  }
  __syncthreads();
  const float scale = args.scale * LOG2_E;      // the softmax is taken to base two
  if (split == 0) {
#pragma unroll 1
    for (int d = threadIdx.x; d < D && length < args.capacity; d += THREADS) {
      keys[(u64)length * D + d] = work.new_key[d];
      values[(u64)length * D + d] = new_value[d];
    }
#pragma unroll 1
    for (int head = warp; head < MAX_GROUP; head += WARPS) {
      float dot = 0.0f;
#pragma unroll
      for (int d = 0; d < D; d += 32) {
        dot += bf16_to_float(work.query[head * D + d + lane]) *
          bf16_to_float(work.new_key[d + lane]);
      }
      dot = warp_sum(dot);
      if (lane == 0) {work.maxima[WARPS * MAX_GROUP + head] = dot * scale;}
    }
  }

  Vector16 q[D / 32];
#pragma unroll
  for (int c = 0; c < D / 32; ++c) {
    q[c] = *(const Vector16 *)(work.query + g * D + c * 32 + t * 8);
  }
  // Scores have the heads as rows; outputs have them as columns: of part j / 4, columns
  // g * 8 + 2 * (j % 4) and the next one, for heads 2t and 2t + 1.
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {sums[j][i] = 0.0f;}
  }
  maximum = MINUS_INFINITY;
  weight = 0.0f;
#pragma unroll 1
  for (int token = first_token; token < end_token; token += TILE) {
    copy_async_wait<1>();
    float score[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
    for (int p = 0; p < PIECES; ++p) {
      const Vector16 k = key_slots[p * THREADS];
      float (&to)[4] = score[p / (PIECES / 2)];
      const Vector16 & x = q[p % (PIECES / 2)];
      multiply_accumulate(to, x.word[0], 0, x.word[1], 0, k.word[0], k.word[1]);
      multiply_accumulate(to, x.word[2], 0, x.word[3], 0, k.word[2], k.word[3]);
    }
    fetch_keys(token + TILE);
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
      const float shrink_even = __shfl_sync(0xFFFFFFFFu, shrink, 8 * t);
      const float shrink_odd = __shfl_sync(0xFFFFFFFFu, shrink, 8 * t + 4);
#pragma unroll
      for (int j = 0; j < D / 16; ++j) {
        sums[j][0] *= shrink_even;
        sums[j][1] *= shrink_odd;
        sums[j][2] *= shrink_even;
        sums[j][3] *= shrink_odd;
      }
    }
    copy_async_wait<1>();
#pragma unroll
    for (int part = 0; part < D / 64; ++part) {
      const Vector16 * const v = value_slots + part * 4 * THREADS;
      const Vector16 v0 = v[0], v1 = v[THREADS], v8 = v[2 * THREADS], v9 = v[3 * THREADS];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        multiply_accumulate(sums[part * 4 + i],
          __byte_perm(v0.word[i], v1.word[i], 0x5410), __byte_perm(v0.word[i], v1.word[i], 0x7632),
          __byte_perm(v8.word[i], v9.word[i], 0x5410), __byte_perm(v8.word[i], v9.word[i], 0x7632),
          p_first, p_second);
      }
    }
    fetch_values(token + TILE);
  }
  copy_async_wait<0>();
  weight += __shfl_xor_sync(0xFFFFFFFFu, weight, 1);
  weight += __shfl_xor_sync(0xFFFFFFFFu, weight, 2);
  __syncthreads();
}

// Adds up the warps, and the new token with the first stretch; then the stretches.
template<int D, int WARPS>
DEVICE void Attention<D, WARPS>::add_up(const StepArgs & args, const Phase & phase, u8 * shared,
  u32 rounds)
{
  AttentionWork<D, WARPS> & work = *(AttentionWork<D, WARPS> *)(shared + args.work_at);
  float * const outputs = (float *)(shared + args.x_at);                   // [WARPS][8][D + 1]
  const int group = args.heads / args.kv_heads;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const u16 * const new_value = work.raw + (group + 1) * D;
  u16 * const out = phase.out + ((u64)row * args.heads + kv_head * group) * D;
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int d = j / 4 * 64 + g * 8 + j % 4 * 2 + i / 2;
      outputs[(warp * MAX_GROUP + 2 * t + i % 2) * (D + 1) + d] = sums[j][i];
    }
  }
  if (t == 0) {
    work.maxima[warp * MAX_GROUP + g] = maximum;
    work.weights[warp * MAX_GROUP + g] = weight;
  }
  if (split > 0 && threadIdx.x < MAX_GROUP) {
    work.maxima[WARPS * MAX_GROUP + threadIdx.x] = MINUS_INFINITY;         // no new token here
  }
  __syncthreads();
  float * const sums_of = partial_of(args);
  float * const stats_of = sums_of + args.splits * MAX_GROUP * D;
#pragma unroll 1
  for (int head = warp; head < MAX_GROUP; head += WARPS) {                 // maxima become factors
    const bool is_part = lane <= WARPS;
    const float own = is_part ? work.maxima[lane * MAX_GROUP + head] : MINUS_INFINITY;
    float top = own;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, distance));
    }
    const float factor = two_to_the(own - top);
    const float own_weight = lane < WARPS ? work.weights[lane * MAX_GROUP + head] : 1.0f;
    const float total = warp_sum(is_part ? factor * own_weight : 0.0f);
    if (is_part) {work.maxima[lane * MAX_GROUP + head] = factor;}
    if (lane == 0) {
      work.totals[head] = splits_in_use == 1 ? reciprocal(total) : 1.0f;
      stats_of[(split * MAX_GROUP + head) * 2] = top;
      stats_of[(split * MAX_GROUP + head) * 2 + 1] = total;
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < ceil_div(MAX_GROUP * D, THREADS); ++n) {
    const int place = n * THREADS + threadIdx.x, i = smaller(place, group * D - 1), head = i / D;
    float sum = work.maxima[WARPS * MAX_GROUP + head] * bf16_to_float(new_value[i % D]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      sum += work.maxima[w * MAX_GROUP + head] * outputs[(w * MAX_GROUP + head) * (D + 1) + i % D];
    }
    if (place >= group * D) {continue;}
    if (splits_in_use == 1) {
      out[i] = float_to_bf16(sum * work.totals[head]);
    } else {
      sums_of[split * MAX_GROUP * D + i] = sum;
    }
  }
  if (splits_in_use > 1) {add_stretches(args, out, outputs, rounds);}
}

// This block's share of the columns, from all stretches, when they are there: `rounds` is how often
// blocks have waited for each other here in this step. A thread has one column and some of the
// stretches; threads of the same column then add up theirs.
template<int D, int WARPS>
DEVICE void Attention<D, WARPS>::add_stretches(const StepArgs & args, u16 * out, float * scratch,
  u32 rounds) const
{
  const float * const sums_of = partial_of(args);
  const u64 * const stats_of = (const u64 *)(sums_of + args.splits * MAX_GROUP * D);
  const int columns = args.heads / args.kv_heads * D;
  const int share = ceil_div(columns, splits_in_use);
  const int end = smaller((split + 1) * share, columns);
  const int lanes = smaller(ceil_div(share, 32) * 32, THREADS);            // columns at a time
  const int parts = THREADS / lanes;
  const int part = threadIdx.x / lanes;
  u32 * const finished = args.finished + row * args.kv_heads + kv_head;
  __syncthreads();
  if (threadIdx.x == 0) {
    add_to_barrier(finished);
    wait_for_barrier(finished, (rounds + 1) * splits_in_use);
  }
  __syncthreads();
#pragma unroll 1
  for (int start = split * share; start < end; start += lanes) {
    const int column = start + threadIdx.x - part * lanes;
    const int head = smaller(column, columns - 1) / D;
    float top = MINUS_INFINITY, total = 0.0f, sum = 0.0f;
    if (part < parts && column < end) {
#pragma unroll 1
      for (int first = part; first < splits_in_use; first += parts * 6) {
        u64 stats[6];
        float value[6];
#pragma unroll
        for (int i = 0; i < 6; ++i) {               // all under way at once
          const int s = smaller(first + i * parts, splits_in_use - 1);
          stats[i] = load_fresh(stats_of + s * MAX_GROUP + head);
          value[i] = load_fresh(sums_of + s * MAX_GROUP * D + column);
        }
        const float before = top;
        float own_top[6];
#pragma unroll
        for (int i = 0; i < 6; ++i) {
          own_top[i] = first + i * parts < splits_in_use ?
            bits_to_float((u32)stats[i]) : MINUS_INFINITY;
          top = fmaxf(top, own_top[i]);
        }
        const float shrink = two_to_the(before - top);
        total *= shrink;
        sum *= shrink;
#pragma unroll
        for (int i = 0; i < 6; ++i) {
          const float factor = two_to_the(own_top[i] - top);
          total += factor * bits_to_float((u32)(stats[i] >> 32));
          sum += factor * value[i];
        }
      }
    }
    scratch[threadIdx.x] = top;
    scratch[THREADS + threadIdx.x] = total;
    scratch[2 * THREADS + threadIdx.x] = sum;
    __syncthreads();
    if (part == 0 && column < end) {
      float highest = MINUS_INFINITY;
      for (int p = 0; p < parts; ++p) {
        highest = fmaxf(highest, scratch[p * lanes + threadIdx.x]);
      }
      total = sum = 0.0f;
      for (int p = 0; p < parts; ++p) {
        const int from = p * lanes + threadIdx.x;
        const float factor = two_to_the(scratch[from] - highest);
        total += factor * scratch[THREADS + from];
        sum += factor * scratch[2 * THREADS + from];
      }
      out[column] = float_to_bf16(sum * reciprocal(total));
    }
    __syncthreads();
  }
}
