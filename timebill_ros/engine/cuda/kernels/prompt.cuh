// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// What a prefill and an eviction do beside matrix products and attention, in one pass over memory
// each. They stand alone: primitives.cuh is all they need.

DEVICE float low_half(u32 pair) { return bits_to_float(pair << 16); }
DEVICE float high_half(u32 pair) { return bits_to_float(pair & 0xFFFF0000u); }

// --- queries, keys and values of a chunk ---------------------------------------------------------

struct TurnArgs
{
  const u16 * qkv;           // [count, (heads + 2 kv_heads) * D]
  const u16 * q_norm;        // [D] or null
  const u16 * k_norm;
  const float * cos;         // [positions, D]
  const float * sin;
  u16 * queries;             // [count, heads, D]
  u16 * keys;                // [kv_heads, capacity, D] of a slot
  u16 * values;
  u64 head_stride;           // elements from one KV head to the next
  int start;                 // position, and entry, of the first row
  int count;
  int heads;
  int kv_heads;
  float norm_eps;
};

const int TURN_THREADS = 256;

// Normed (if there are weights), rotated and put where attention reads them. D / 8 lanes a head.
template<int D>
DEVICE void turn(const TurnArgs & args)
{
  const int LANES = D / 8;
  const int all = args.heads + 2 * args.kv_heads;
  const u64 row = ((u64)blockIdx.x * TURN_THREADS + threadIdx.x) / LANES;
  const int lane = threadIdx.x % LANES;
  const bool valid = row < (u64)args.count * all;
  const int token = valid ? (int)(row / all) : 0;
  const int head = valid ? (int)(row % all) : 0;
  const Vector16 taken = *(const Vector16 *)(args.qkv + (valid ? row : 0) * D + lane * 8);
  float x[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = low_half(taken.word[i]);
    x[2 * i + 1] = high_half(taken.word[i]);
  }
  const bool is_value = head >= args.heads + args.kv_heads;
  const u16 * const norm = head < args.heads ? args.q_norm : args.k_norm;
  if (args.q_norm != nullptr) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {squares += x[i] * x[i];}
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
      squares += __shfl_xor_sync(0xFFFFFFFFu, squares, distance);
    }
    const float factor = is_value ? 1.0f : inverse_sqrt(squares / D + args.norm_eps);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 weights = is_value ? 0x3F803F80u : ((const u32 *)(norm + lane * 8))[i];
      const u32 pair = pack_bf16(x[2 * i] * factor * low_half(weights),
        x[2 * i + 1] * factor * high_half(weights));
      x[2 * i] = low_half(pair);
      x[2 * i + 1] = high_half(pair);
    }
  }
  const u64 angle = (u64)(args.start + token) * D + lane * 8;
  const float sign = lane < LANES / 2 ? -1.0f : 1.0f;
  Vector16 turned;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = __shfl_xor_sync(0xFFFFFFFFu, x[2 * i], LANES / 2);
    const float high = __shfl_xor_sync(0xFFFFFFFFu, x[2 * i + 1], LANES / 2);
    const float * const cosines = args.cos + angle + 2 * i;
    const float * const sines = args.sin + angle + 2 * i;
    turned.word[i] = pack_bf16(x[2 * i] * cosines[0] + sign * low * sines[0],
      x[2 * i + 1] * cosines[1] + sign * high * sines[1]);
  }
  if (!valid) {return;}
  u16 * to;
  if (head < args.heads) {
    to = args.queries + ((u64)token * args.heads + head) * D;
  } else {
    const int kv_head = (head - args.heads) % args.kv_heads;
    to = (is_value ? args.values : args.keys) + kv_head * args.head_stride +
      (u64)(args.start + token) * D;
  }
  *(Vector16 *)(to + lane * 8) = is_value ? taken : turned;
}

// --- silu(gate) * up -----------------------------------------------------------------------------

struct GateArgs
{
  const u16 * gate_up;       // [count, 2 width]
  u16 * out;                 // [count, width]
  int count;
  int width;                 // a multiple of 8
};

const int GATE_THREADS = 256;

DEVICE float gated(float gate, float up)
{
  return gate / (1.0f + two_to_the(-1.44269504f * gate)) * up;
}

DEVICE void gate(const GateArgs & args)
{
  const int column = (blockIdx.x * GATE_THREADS + threadIdx.x) * 8;
  if (column >= args.width) {return;}
  const u64 row = blockIdx.y;
  const u16 * const from = args.gate_up + row * 2 * args.width + column;
  const Vector16 gates = *(const Vector16 *)from;
  const Vector16 ups = *(const Vector16 *)(from + args.width);
  Vector16 out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out.word[i] = pack_bf16(gated(low_half(gates.word[i]), low_half(ups.word[i])),
      gated(high_half(gates.word[i]), high_half(ups.word[i])));
  }
  *(Vector16 *)(args.out + row * args.width + column) = out;
}

// --- which entries an eviction keeps -------------------------------------------------------------

struct SelectArgs
{
  const float * scores;      // [rows, n_scored], none negative
  float * kept_scores;       // [rows, n_best]
  int * best;                // [rows, n_best], ascending
  int n_scored;
  int n_best;                // at least 1, at most n_scored
};

const int SELECT_THREADS = 512;
const int SELECT_WARPS = SELECT_THREADS / 32;

struct SelectWork
{
  u32 bins[256];
  u32 totals[SELECT_WARPS];
  u32 prefix;                // the threshold's leading bits
  u32 wanted;                // of those that begin so, how many are kept
};

// The sum of `value` over the threads before this one; all threads call. *total: of all of them.
DEVICE u32 sum_before(u32 value, u32 * totals, u32 * total)
{
  u32 sum = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const u32 below = __shfl_up_sync(0xFFFFFFFFu, sum, distance);
    if ((int)(threadIdx.x % 32) >= distance) {sum += below;}
  }
  if (threadIdx.x % 32 == 31) {totals[threadIdx.x / 32] = sum;}
  __syncthreads();
  u32 before = sum - value, all = 0;
#pragma unroll 1
  for (int warp = 0; warp < SELECT_WARPS; ++warp) {
    if (warp < (int)(threadIdx.x / 32)) {before += totals[warp];}
    all += totals[warp];
  }
  __syncthreads();
  *total = all;
  return before;
}

// A block per row: the n_best-th largest score by radix, then what lies above it and, in order, as
// many of its equals as there is room for. Scores are not negative, so their bits are in order.
DEVICE void select(const SelectArgs & args)
{
  SHARED_MEMORY(shared);
  SelectWork & work = *(SelectWork *)shared;
  const u32 * const scores = (const u32 *)args.scores + (u64)blockIdx.x * args.n_scored;
  if (threadIdx.x == 0) {work.prefix = 0; work.wanted = args.n_best;}
#pragma unroll 1
  for (int shift = 24; shift >= 0; shift -= 8) {
#pragma unroll 1
    for (int bin = threadIdx.x; bin < 256; bin += SELECT_THREADS) {work.bins[bin] = 0;}
    __syncthreads();
    const u32 prefix = work.prefix;
#pragma unroll 4
    for (int i = threadIdx.x; i < args.n_scored; i += SELECT_THREADS) {
      const u32 bits = scores[i];
      if (shift == 24 || bits >> (shift + 8) == prefix) {
        atomicAdd(&work.bins[bits >> shift & 255], 1u);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = 255;
      u32 wanted = work.wanted;
#pragma unroll 1
      for (; work.bins[bin] < wanted; --bin) {wanted -= work.bins[bin];}
      work.prefix = prefix << 8 | (u32)bin;
      work.wanted = wanted;
    }
    __syncthreads();
  }
  const u32 threshold = work.prefix, room = work.wanted;
  int * const best = args.best + (u64)blockIdx.x * args.n_best;
  float * const kept_scores = args.kept_scores + (u64)blockIdx.x * args.n_best;
  u32 above_before = 0, equal_before = 0;
#pragma unroll 1
  for (int first = 0; first < args.n_scored; first += SELECT_THREADS) {
    const int i = first + threadIdx.x;
    const u32 bits = i < args.n_scored ? scores[i] : 0;
    const bool above = i < args.n_scored && bits > threshold;
    const bool equal = i < args.n_scored && bits == threshold;
    u32 total;
    const u32 before = sum_before((u32)above | (u32)equal << 16, work.totals, &total);
    const u32 equals = equal_before + (before >> 16);
    if (above || (equal && equals < room)) {
      const u32 place = above_before + (before & 0xFFFFu) + (equals < room ? equals : room);
      best[place] = i;
      kept_scores[place] = bits_to_float(bits);
    }
    above_before += total & 0xFFFFu;
    equal_before += total >> 16;
  }
}

// --- moving them to the front --------------------------------------------------------------------

struct CompactArgs
{
  u16 * keys;                // [layers, ..., kv_heads, capacity, D] of a slot
  u16 * values;
  const int * best;          // [layers * kv_heads, n_best], ascending
  u64 layer_stride;          // elements
  u64 head_stride;
  int kv_heads;
  int n_best;                // these come first ...
  int tail;                  // ... and then everything from this entry on
  int length;                // entries before the eviction
  int vectors;               // 16-byte vectors of a head: D / 8
};

const int COMPACT_THREADS = 512;
const int COMPACT_EACH = 4;              // vectors of a thread under way

// A block per layer, KV head and side. An entry never moves back, so a tile may be written once the
// whole block has read it: what later tiles read lies behind it.
DEVICE void compact(const CompactArgs & args)
{
  const u64 kv_head = blockIdx.x, layer = blockIdx.y;
  Vector16 * const entries = (Vector16 *)((blockIdx.z == 0 ? args.keys : args.values) +
    layer * args.layer_stride + kv_head * args.head_stride);
  const int * const best = args.best + (layer * args.kv_heads + kv_head) * args.n_best;
  const int kept = args.n_best + args.length - args.tail;
  const u64 total = (u64)kept * args.vectors;
#pragma unroll 1
  for (u64 first = 0; first < total; first += COMPACT_THREADS * COMPACT_EACH) {
    Vector16 taken[COMPACT_EACH];
#pragma unroll
    for (int i = 0; i < COMPACT_EACH; ++i) {
      const u64 at = first + i * COMPACT_THREADS + threadIdx.x;
      if (at < total) {
        const int to = (int)(at / args.vectors);
        const u64 from = to < args.n_best ? best[to] : args.tail + to - args.n_best;
        taken[i] = entries[from * args.vectors + at % args.vectors];
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COMPACT_EACH; ++i) {
      const u64 at = first + i * COMPACT_THREADS + threadIdx.x;
      if (at < total) {entries[at] = taken[i];}
    }
  }
}
