// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// y = W x for 1 to 8 vectors at once, at the speed of reading W.
//
// One block of WARPS warps owns `rows_per_block` consecutive rows, in tiles of 16. The tiles, cut
// into chunks of columns, make one row of units, of which each warp takes an equal stretch; what
// the warps have of each tile is added up once, at the end. A lane fetches 16 bytes of two rows
// per unit, asynchronously, into slots that only it reads (STAGES deep), unpacks them in
// registers to bf16 and feeds the tensor cores, whose eight columns are the batch. The order of
// the columns within a chunk does not matter to a sum, so x lies permuted in shared memory such
// that neither operand is ever shuffled.
//
// Formats: 16 = bf16; 8 = int8, one scale per row; 4 = int4 (value + 8), groups of 128 columns,
// nibble j of a word holds column 2j (j < 4) or 2(j-4)+1, scales as [row / 4][group][row % 4].

enum Prologue { AS_IS = 0, RMS_NORM = 1 };
enum Epilogue { STORE = 0, ADD_RESIDUAL = 1, SWIGLU = 2, LOGITS = 3 };

struct MatvecArgs
{
  const u8 * weight;         // [n_rows (x 2 with SWIGLU: gate rows, then up rows), k]
  const void * scales;       // int8: float [rows]; int4: bf16, see above
  const u16 * bias;          // [n_rows] or null
  const u16 * x;             // [batch, k]
  const u16 * norm_weight;   // [k], RMS_NORM
  u16 * out;                 // [batch, n_rows]; with ADD_RESIDUAL it holds the residual before
  u16 * tap;                 // [batch, n_rows] or null: a second copy of out
  float * logits;            // [batch, n_rows], LOGITS
  const u8 * seen;           // [slots, n_rows], LOGITS: tokens that the penalty applies to
  const float * penalty;     // [slots]
  const int * slot_of_row;   // [batch], -1: nobody
  float * best_value;        // [batch, blocks]: the block's largest logit and where it is
  int * best_index;
  float norm_eps;
  int n_rows;
  int k;
  int rows_per_block;        // a multiple of 4
};

template<int BITS>
struct Format
{
  static const int PER_LANE = 128 / BITS;       // elements in a lane's 16 bytes
  static const int CHUNK = 4 * PER_LANE;        // columns that four lanes cover
  static const int PIECES = PER_LANE / 8;       // groups of eight elements
};

// Eight columns of a row, from packed words to four pairs of bf16.
template<int BITS>
DEVICE void unpack(const Vector16 & data, int piece, u32 (&pairs)[4])
{
  if (BITS == 16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {pairs[i] = data.word[i];}
  } else if (BITS == 8) {
    // bf16 128 + low seven bits, minus (128 or, if the sign bit is set, 256): exact.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 even = data.word[2 * piece + i];
      const u32 odd = even >> 8;
      const u32 even_low = and_or(even, 0x007F007Fu, 0x43004300u);
      const u32 even_base = and_or(even, 0x00800080u, 0x43004300u);
      const u32 odd_low = and_or(odd, 0x007F007Fu, 0x43004300u);
      const u32 odd_base = and_or(odd, 0x00800080u, 0x43004300u);
      pairs[2 * i] = fma_bf16x2(even_base, 0xBF80BF80u, even_low);
      pairs[2 * i + 1] = fma_bf16x2(odd_base, 0xBF80BF80u, odd_low);
    }
  } else {
    // bf16 128 + nibble, minus 136.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 raised = and_or(data.word[piece] >> (4 * i), 0x000F000Fu, 0x43004300u);
      pairs[i] = fma_bf16x2(raised, 0x3F803F80u, 0xC308C308u);
    }
  }
}

// Where column k of x lies in shared memory, in elements: lane t's q-th eight columns of a chunk
// stand beside those of the other three lanes. int8 pairs columns (0, 2) and (1, 3) of a word.
template<int BITS>
DEVICE int place_of_eight(int k)
{
  const int chunk = k / Format<BITS>::CHUNK;
  const int within = k % Format<BITS>::CHUNK;
  const int lane = within / Format<BITS>::PER_LANE;
  const int piece = (within % Format<BITS>::PER_LANE) / 8;
  return chunk * Format<BITS>::CHUNK + (piece * 4 + lane) * 8;
}

template<int BITS>
DEVICE Vector16 order_of_eight(const Vector16 & eight)
{
  Vector16 ordered = eight;
  if (BITS == 8) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ordered.word[2 * i] = __byte_perm(eight.word[2 * i], eight.word[2 * i + 1], 0x5410);
      ordered.word[2 * i + 1] = __byte_perm(eight.word[2 * i], eight.word[2 * i + 1], 0x7632);
    }
  }
  return ordered;
}

template<int BITS>
DEVICE int vector_stride(int k)
{
  // A multiple of the chunk, plus 64 bytes modulo 128, so that two vectors share no bank.
  const int padded = ceil_div(k, Format<BITS>::CHUNK) * Format<BITS>::CHUNK;
  return ceil_div(padded, 64) * 64 + 32;
}

// x * weight, rounded to bf16; the division by the root mean square follows at the end of the sum.
DEVICE Vector16 weighted(const Vector16 & x, const Vector16 & weight)
{
  Vector16 y;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    y.word[i] = pack_bf16(low_half(x.word[i]) * low_half(weight.word[i]),
        high_half(x.word[i]) * high_half(weight.word[i]));
  }
  return y;
}

DEVICE float sum_of_squares(const Vector16 & x)
{
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum += low_half(x.word[i]) * low_half(x.word[i]) + high_half(x.word[i]) * high_half(x.word[i]);
  }
  return sum;
}

// Brings x, times the norm's weight if there is one, into shared memory in the order that the
// products want; leaves each warp's sums of squares in `squares` [THREADS / 32][BATCH].
template<int BITS, int PROLOGUE, int BATCH, int THREADS>
DEVICE void load_vectors(const MatvecArgs & args, u16 * vectors, const u16 * norm_weight,
  float * squares)
{
  const int stride = vector_stride<BITS>(args.k);
  const int eights = args.k / 8;
  const int padded_eights =
    ceil_div(args.k, Format<BITS>::CHUNK) * Format<BITS>::CHUNK / 8;
  float sums[BATCH];
#pragma unroll
  for (int b = 0; b < BATCH; ++b) {sums[b] = 0.0f;}
#pragma unroll 1
  for (int e = threadIdx.x; e < padded_eights; e += THREADS) {
    const int place = place_of_eight<BITS>(e * 8);
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      Vector16 x = {{0, 0, 0, 0}};
      if (e < eights) {
        x = load_fresh_16(args.x + (u64)b * args.k + e * 8);
        if (PROLOGUE == RMS_NORM) {
          sums[b] += sum_of_squares(x);
          x = weighted(x, *(const Vector16 *)(norm_weight + e * 8));
        }
      }
      *(Vector16 *)(vectors + b * stride + place) = order_of_eight<BITS>(x);
    }
  }
  if (PROLOGUE == RMS_NORM) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      const float sum = warp_sum(sums[b]);
      if (threadIdx.x % 32 == 0) {squares[(threadIdx.x / 32) * BATCH + b] = sum;}
    }
  }
  __syncthreads();
}

// What one finished sum becomes.
template<int EPILOGUE>
DEVICE void finish(const MatvecArgs & args, int row, int b, float sum, float up,
  float & best_value, int & best_index)
{
  const u64 place = (u64)b * args.n_rows + row;
  if (EPILOGUE == LOGITS) {
    float logit = round_to_bf16(sum);
    const int slot = args.slot_of_row[b];
    if (slot >= 0 && args.seen[(u64)slot * args.n_rows + row]) {
      const float penalty = args.penalty[slot];
      logit = logit < 0.0f ? logit * penalty : logit / penalty;
    }
    args.logits[place] = logit;
    if (logit > best_value) {best_value = logit; best_index = row;}
    return;
  }
  float value = sum;
  if (args.bias != nullptr) {value += bf16_to_float(args.bias[row]);}
  if (EPILOGUE == ADD_RESIDUAL) {
    value = round_to_bf16(value) + bf16_to_float(load_fresh(args.out + place));
  }
  if (EPILOGUE == SWIGLU) {
    if (args.bias != nullptr) {up += bf16_to_float(args.bias[row + args.n_rows]);}
    const float gate = round_to_bf16(value);
    const float silu = round_to_bf16(gate / (1.0f + two_to_the(-gate * LOG2_E)));
    value = silu * round_to_bf16(up);
  }
  args.out[place] = float_to_bf16(value);
  if (EPILOGUE == ADD_RESIDUAL && args.tap != nullptr) {args.tap[place] = float_to_bf16(value);}
}

// The best token of a block, per vector. A thread has seen one vector only: threadIdx % BATCH.
template<int BATCH, int THREADS>
DEVICE void leave_best(const MatvecArgs & args, float * shared, float best_value, int best_index)
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

// Tiles that one warp's stretch can touch; variants.py computes the same.
DEVICE int tile_span(int tiles, int n_chunks, int warps)
{
  return smaller(tiles, (ceil_div(tiles * n_chunks, warps) + n_chunks - 2) / n_chunks + 1);
}

// STREAM: x travels through the ring beside W instead of lying in shared memory as a whole (AS_IS
// only): for long rows.
template<int BITS, int PROLOGUE, int EPILOGUE, int BATCH, int WARPS, int STAGES, int STREAM>
DEVICE void matvec(const MatvecArgs & args)
{
  typedef Format<BITS> F;
  const int THREADS = WARPS * 32;
  const int SLOTS = STREAM ? 2 + F::PIECES : 2;      // 16-byte slots of a lane and stage
  const int TILE = EPILOGUE == SWIGLU ? 8 : 16;      // output rows of one 16-row tile
  SHARED_MEMORY(shared);
  Vector16 * const ring = (Vector16 *)shared;                       // [STAGES][SLOTS][THREADS]
  u16 * const scale_ring = (u16 *)(ring + STAGES * SLOTS * THREADS);      // [STAGES][WARPS][16]
  float * const sums = (float *)(scale_ring + (BITS == 4 ? STAGES * WARPS * 16 : 0));

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int first_row = blockIdx.x * args.rows_per_block;
  const int end_row = smaller(first_row + args.rows_per_block, args.n_rows);
  const int tiles = ceil_div(larger(end_row - first_row, 0), TILE);
  const int n_chunks = ceil_div(args.k, F::CHUNK);
  // Each warp takes an equal stretch of the block's units; `span` tiles at most have a part in it.
  const int units = ceil_div(tiles * n_chunks, WARPS);
  const int first_unit = smaller(warp * units, tiles * n_chunks);
  const int my_units = smaller(units, tiles * n_chunks - first_unit);
  const int span = tile_span(ceil_div(args.rows_per_block, TILE), n_chunks, WARPS);
  float * const squares = sums + WARPS * span * 16 * BATCH;   // sums [WARPS][span][16][BATCH]
  u16 * const norm_weight = (u16 *)(squares + (PROLOGUE == RMS_NORM ? WARPS * BATCH : 0));
  u16 * const vectors = norm_weight + (PROLOGUE == RMS_NORM ? args.k : 0);
  const u64 row_bytes = (u64)args.k * BITS / 8;
  const bool lane_in_last_chunk = (n_chunks - 1) * F::CHUNK + t * F::PER_LANE < args.k;

  // What the lane fetches next: pointers run along the rows and jump at the end of a tile. Where
  // nothing is to be fetched they point anywhere, and zeros are written.
  int next_row = first_row + first_unit / n_chunks * TILE;
  int next_chunk = first_unit % n_chunks;
  const u8 * next_first, * next_second;
  const u16 * next_scales;
  auto enter_tile = [&]() {
      const u64 column = (u64)(next_chunk * F::CHUNK + t * F::PER_LANE) * BITS / 8;
      next_first = args.weight + (next_row + g) * row_bytes + column;
      next_second = next_first + (EPILOGUE == SWIGLU ? args.n_rows : 8) * row_bytes;
      const int quad = next_row / 4 +
        (EPILOGUE == SWIGLU ? lane % 2 + lane / 2 * (args.n_rows / 4) : lane);
      next_scales = (const u16 *)args.scales + ((u64)quad * n_chunks + next_chunk) * 4;
    };
  auto fetch = [&](int stage, bool wanted) {
      const bool inside = wanted && (next_chunk != n_chunks - 1 || lane_in_last_chunk);
      const int quad_row = next_row + (EPILOGUE == SWIGLU ? lane % 2 : lane) * 4;
      Vector16 * const slot = ring + stage * SLOTS * THREADS + threadIdx.x;
      copy_async_16(slot, next_first, inside && next_row + g < end_row);
      copy_async_16(slot + THREADS, next_second,
        inside && next_row + g + (EPILOGUE == SWIGLU ? 0 : 8) < end_row);
      if (BITS == 4 && lane < 4) {
        copy_async_8(scale_ring + (stage * WARPS + warp) * 16 + lane * 4, next_scales,
          wanted && quad_row < end_row);
      }
    };
  auto fetch_vectors = [&](int stage, int chunk, bool wanted) {
      const int k = chunk * F::CHUNK + t * F::PER_LANE;
      Vector16 * const slot = ring + (stage * SLOTS + 2) * THREADS + threadIdx.x;
      if (!STREAM || g >= BATCH) {return;}
#pragma unroll
      for (int piece = 0; piece < F::PIECES; ++piece) {
        copy_async_16(
          slot + piece * THREADS, args.x + (u64)g * args.k + k + piece * 8, wanted && k < args.k);
      }
    };
  auto advance = [&]() {
      next_first += 64;
      next_second += 64;
      next_scales += 4;
      if (++next_chunk == n_chunks) {
        next_chunk = 0;
        next_row += TILE;
        enter_tile();
      }
    };

  if (PROLOGUE == RMS_NORM) {
#pragma unroll 1
    for (int e = threadIdx.x; e < args.k / 8; e += THREADS) {
      copy_async_16(norm_weight + e * 8, args.norm_weight + e * 8, true);
    }
    copy_async_commit();
  }
  enter_tile();
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    fetch(stage, stage < my_units);
    copy_async_commit();
    advance();
  }
  let_next_kernel_start();
#pragma unroll 1
  for (int row = first_row + threadIdx.x; row < end_row; row += THREADS) {
    if (BITS == 8) {prefetch((const float *)args.scales + row);}
    if (args.bias != nullptr) {prefetch(args.bias + row);}
  }
  wait_for_previous_kernel();
  if (STREAM) {
    // Groups of their own, one per stage: so the wait in the loop counts right from the start.
#pragma unroll 1
    for (int stage = 0; stage < STAGES - 1; ++stage) {
      fetch_vectors(stage, (first_unit + stage) % n_chunks, stage < my_units);
      copy_async_commit();
    }
  } else {
    // A thread reads of the norm's weight only what it fetched itself.
    if (PROLOGUE == RMS_NORM) {copy_async_wait<STAGES - 1>();}
    load_vectors<BITS, PROLOGUE, BATCH, THREADS>(args, vectors, norm_weight, squares);
  }

  // Columns of the product beyond the batch come out as anything; nobody reads them.
  const u16 * const my_vector =
    vectors + (g < BATCH ? g : 0) * vector_stride<BITS>(args.k) + t * 8;
  float * my_sums = sums + warp * span * 16 * BATCH;
  float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  int chunk = first_unit % n_chunks;
  int stage = 0, stage_before = STAGES - 1;
  for (int left = my_units; left > 0; --left) {
    copy_async_wait<STAGES - 2>();
    if (BITS == 4) {__syncwarp();}
    fetch(stage_before, left >= STAGES);
    fetch_vectors(stage_before, next_chunk, left >= STAGES);
    copy_async_commit();
    advance();

    const Vector16 * const mine = ring + stage * SLOTS * THREADS + threadIdx.x;
    const Vector16 first = mine[0];
    const Vector16 second = mine[THREADS];
    float part[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
    for (int piece = 0; piece < F::PIECES; ++piece) {
      const Vector16 x = STREAM ? order_of_eight<BITS>(mine[(2 + piece) * THREADS]) :
        *(const Vector16 *)(my_vector + chunk * F::CHUNK + piece * 32);
      u32 a[4], b[4];
      unpack<BITS>(first, piece, a);
      unpack<BITS>(second, piece, b);
      multiply_accumulate(part[0], a[0], b[0], a[1], b[1], x.word[0], x.word[1]);
      multiply_accumulate(part[1], a[2], b[2], a[3], b[3], x.word[2], x.word[3]);
    }
    float scale_first = 1.0f, scale_second = 1.0f;
    if (BITS == 4) {
      const u16 * const scales = scale_ring + (stage * WARPS + warp) * 16;
      scale_first = bf16_to_float(scales[g]);
      scale_second = bf16_to_float(scales[g + 8]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      total[i] += (part[0][i] + part[1][i]) * (i < 2 ? scale_first : scale_second);
    }
    stage_before = stage;
    stage = stage == STAGES - 1 ? 0 : stage + 1;
    if (++chunk == n_chunks || left == 1) {
      // This warp is through with the tile.
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int b = 2 * t + i % 2;
        if (b < BATCH) {my_sums[(g + (i / 2) * 8) * BATCH + b] = total[i];}
        total[i] = 0.0f;
      }
      my_sums += 16 * BATCH;
      chunk = 0;
    }
  }
  copy_async_wait<0>();
  __syncthreads();
  float best_value = MINUS_INFINITY;
  int best_index = 0;
  const int b = threadIdx.x % BATCH;
  float inverse_rms = 1.0f;
  if (PROLOGUE == RMS_NORM) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {sum += squares[w * BATCH + b];}
    inverse_rms = inverse_sqrt(sum / (float)args.k + args.norm_eps);
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < tiles * TILE * BATCH; i += THREADS) {
    const int tile = i / BATCH / TILE;
    const int row = first_row + i / BATCH;
    if (row >= end_row) {continue;}
    const int first_warp = tile * n_chunks / units;
    const int last_warp = ((tile + 1) * n_chunks - 1) / units;
    float sum = 0.0f, up = 0.0f;
#pragma unroll 1
    for (int w = first_warp; w <= last_warp; ++w) {
      const int local = tile - w * units / n_chunks;
      const float * const part =
        sums + ((w * span + local) * 16 + i / BATCH % TILE) * BATCH + b;
      sum += part[0];
      if (EPILOGUE == SWIGLU) {up += part[8 * BATCH];}
    }
    if (BITS == 8) {
      const float * const scales = (const float *)args.scales;
      sum *= scales[row];
      if (EPILOGUE == SWIGLU) {up *= scales[row + args.n_rows];}
    }
    sum *= inverse_rms;
    up *= inverse_rms;
    finish<EPILOGUE>(args, row, b, sum, up, best_value, best_index);
  }
  if (EPILOGUE == LOGITS) {
    leave_best<BATCH, THREADS>(args, (float *)shared, best_value, best_index);
  }
}
