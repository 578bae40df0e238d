// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// y = W x for 1 to 8 vectors at once, at the speed of reading W.
//
// One block of WARPS warps owns `rows_per_block` consecutive rows and walks through them in tiles
// of 16; within a tile the warps share the columns, chunk by chunk. A lane fetches 16 bytes of
// two rows per chunk, asynchronously, into slots that only it reads (STAGES deep), unpacks them
// in registers to bf16 and feeds the tensor cores, whose eight columns are the batch. The order
// of the columns within a chunk does not matter to a sum, so x lies permuted in shared memory
// such that neither operand is ever shuffled.
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
  int lead;                  // units before its end at which a block lets the next kernel start
  int prefetch_bytes;        // of the block's weights, brought to L2 while the kernel waits
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
      const u32 even_low = (even & 0x007F007Fu) | 0x43004300u;
      const u32 even_base = (even & 0x00800080u) | 0x43004300u;
      const u32 odd_low = (odd & 0x007F007Fu) | 0x43004300u;
      const u32 odd_base = (odd & 0x00800080u) | 0x43004300u;
      pairs[2 * i] = fma_bf16x2(even_base, 0xBF80BF80u, even_low);
      pairs[2 * i + 1] = fma_bf16x2(odd_base, 0xBF80BF80u, odd_low);
    }
  } else {
    // bf16 128 + nibble, minus 136.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 raised = ((data.word[piece] >> (4 * i)) & 0x000F000Fu) | 0x43004300u;
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

DEVICE Vector16 normalised(const Vector16 & x, const Vector16 & weight, float inverse_rms)
{
  Vector16 y;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = round_to_bf16(low_half(x.word[i]) * inverse_rms) * low_half(weight.word[i]);
    const float high =
      round_to_bf16(high_half(x.word[i]) * inverse_rms) * high_half(weight.word[i]);
    y.word[i] = pack_bf16(low, high);
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

// Brings x, normalised if asked, into shared memory in the order that the products want.
template<int BITS, int PROLOGUE, int BATCH, int THREADS>
DEVICE void load_vectors(const MatvecArgs & args, u16 * vectors, float * scratch)
{
  const int stride = vector_stride<BITS>(args.k);
  const int eights = args.k / 8;
  const int padded_eights =
    ceil_div(args.k, Format<BITS>::CHUNK) * Format<BITS>::CHUNK / 8;
  float squares[BATCH];
#pragma unroll
  for (int b = 0; b < BATCH; ++b) {squares[b] = 0.0f;}
  for (int e = threadIdx.x; e < padded_eights; e += THREADS) {
    const int place = place_of_eight<BITS>(e * 8);
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      Vector16 x = {{0, 0, 0, 0}};
      if (e < eights) {x = load_fresh_16(args.x + (u64)b * args.k + e * 8);}
      if (PROLOGUE == RMS_NORM) {squares[b] += sum_of_squares(x);}
      if (PROLOGUE == AS_IS) {x = order_of_eight<BITS>(x);}
      *(Vector16 *)(vectors + b * stride + place) = x;
    }
  }
  if (PROLOGUE == RMS_NORM) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      const float sum = warp_sum(squares[b]);
      if (threadIdx.x % 32 == 0) {scratch[(threadIdx.x / 32) * BATCH + b] = sum;}
    }
    __syncthreads();
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      float sum = 0.0f;
      for (int w = 0; w < THREADS / 32; ++w) {sum += scratch[w * BATCH + b];}
      squares[b] = inverse_sqrt(sum / (float)args.k + args.norm_eps);
    }
    for (int e = threadIdx.x; e < eights; e += THREADS) {
      const int place = place_of_eight<BITS>(e * 8);
      const Vector16 weight = *(const Vector16 *)(args.norm_weight + e * 8);
#pragma unroll
      for (int b = 0; b < BATCH; ++b) {
        Vector16 * const x = (Vector16 *)(vectors + b * stride + place);
        *x = order_of_eight<BITS>(normalised(*x, weight, squares[b]));
      }
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

// A warp's place in its stream of (tile, chunk) units.
struct UnitCursor
{
  int tile;
  int chunk;
  DEVICE void advance(int warp, int warps, int last_chunk)
  {
    chunk += warps;
    if (chunk >= last_chunk) {chunk = warp; ++tile;}
  }
};

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
  Vector16 * const ring = (Vector16 *)shared;                             // [STAGES][SLOTS][THREADS]
  u16 * const scale_ring = (u16 *)(ring + STAGES * SLOTS * THREADS);      // [STAGES][WARPS][16]
  float * const sums = (float *)(scale_ring + (BITS == 4 ? STAGES * WARPS * 16 : 0));
  u16 * const vectors = (u16 *)(sums + 2 * WARPS * 16 * BATCH);           // after 2 sums buffers

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int first_row = blockIdx.x * args.rows_per_block;
  const int end_row = smaller(first_row + args.rows_per_block, args.n_rows);
  const int tiles = ceil_div(larger(end_row - first_row, 0), TILE);
  const int n_chunks = ceil_div(args.k, F::CHUNK);
  // Every warp walks the same number of units per tile, the last one maybe empty.
  const int last_chunk = ceil_div(n_chunks, WARPS) * WARPS;
  const int units = tiles * (last_chunk / WARPS);
  const u64 row_bytes = (u64)args.k * BITS / 8;
  const int groups = n_chunks;                       // of int4: one chunk is one group

  auto fetch = [&](int stage, const UnitCursor & at) {
      const int k = at.chunk * F::CHUNK + t * F::PER_LANE;
      const int row = first_row + at.tile * TILE + g;
      const bool valid = at.tile < tiles && k < args.k;
      const bool first = valid && row < end_row;
      const int other = EPILOGUE == SWIGLU ? row + args.n_rows : row + 8;
      const bool second = valid && (EPILOGUE == SWIGLU ? row : other) < end_row;
      const u8 * const column = args.weight + (u64)k * BITS / 8;
      Vector16 * const slot = ring + stage * SLOTS * THREADS + threadIdx.x;
      copy_async_16(slot, first ? column + row * row_bytes : args.weight, first);
      copy_async_16(slot + THREADS, second ? column + other * row_bytes : args.weight, second);
      if (BITS == 4 && lane < 4) {
        int quad = first_row + at.tile * TILE + (EPILOGUE == SWIGLU ? lane % 2 : lane) * 4;
        const bool inside = at.tile < tiles && at.chunk < n_chunks && quad < end_row;
        if (EPILOGUE == SWIGLU && lane >= 2) {quad += args.n_rows;}
        const u16 * const from = (const u16 *)args.scales +
          (inside ? ((u64)(quad / 4) * groups + at.chunk) * 4 : 0);
        copy_async_8(scale_ring + (stage * WARPS + warp) * 16 + lane * 4, from, inside);
      }
    };
  auto fetch_vectors = [&](int stage, const UnitCursor & at) {
      const int k = at.chunk * F::CHUNK + t * F::PER_LANE;
      const bool valid = at.tile < tiles && k < args.k;
      Vector16 * const slot = ring + (stage * SLOTS + 2) * THREADS + threadIdx.x;
      if (!STREAM || g >= BATCH) {return;}
#pragma unroll
      for (int piece = 0; piece < F::PIECES; ++piece) {
        const u16 * const from = valid ? args.x + (u64)g * args.k + k + piece * 8 : args.x;
        copy_async_16(slot + piece * THREADS, from, valid);
      }
    };

  UnitCursor ahead = {0, warp};
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    fetch(stage, ahead);
    copy_async_commit();
    ahead.advance(warp, WARPS, last_chunk);
  }
  if (lane == 0 && warp < (EPILOGUE == SWIGLU ? 2 : 1)) {
    const u64 bytes = (u64)larger(end_row - first_row, 0) * row_bytes;
    const u32 wanted = args.prefetch_bytes / (EPILOGUE == SWIGLU ? 2 : 1);
    const u64 row = first_row + (u64)warp * args.n_rows;
    const u32 size = (u32)(bytes < wanted ? bytes : wanted) & ~15u;
    if (size > 0) {prefetch_to_l2(args.weight + row * row_bytes, size);}
  }
  if (args.lead >= units) {let_next_kernel_start();}
  wait_for_previous_kernel();
  if (STREAM) {
    // Groups of their own, one per stage: so the wait in the loop counts right from the start.
    UnitCursor at = {0, warp};
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
      fetch_vectors(stage, at);
      copy_async_commit();
      at.advance(warp, WARPS, last_chunk);
    }
  } else {
    load_vectors<BITS, PROLOGUE, BATCH, THREADS>(args, vectors, sums);
  }

  const int stride = vector_stride<BITS>(args.k);
  const u16 * const my_vector = vectors + (g < BATCH ? g : 0) * stride + t * 8;
  float best_value = MINUS_INFINITY;
  int best_index = 0;
  float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  UnitCursor at = {0, warp};
  int stage = 0;
  for (int unit = 0; unit < units; ++unit) {
    if (unit == units - args.lead) {let_next_kernel_start();}
    copy_async_wait<STAGES - 2>();
    if (BITS == 4) {__syncwarp();}
    fetch(stage == 0 ? STAGES - 1 : stage - 1, ahead);
    fetch_vectors(stage == 0 ? STAGES - 1 : stage - 1, ahead);
    copy_async_commit();
    ahead.advance(warp, WARPS, last_chunk);

    const Vector16 * const mine = ring + stage * SLOTS * THREADS + threadIdx.x;
    const Vector16 first = mine[0];
    const Vector16 second = mine[THREADS];
    float part[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
    if (at.chunk < n_chunks) {
#pragma unroll
      for (int piece = 0; piece < F::PIECES; ++piece) {
        Vector16 x = {{0, 0, 0, 0}};
        if (g < BATCH) {
          x = STREAM ? order_of_eight<BITS>(mine[(2 + piece) * THREADS]) :
            *(const Vector16 *)(my_vector + at.chunk * F::CHUNK + piece * 32);
        }
        u32 a[4], b[4];
        unpack<BITS>(first, piece, a);
        unpack<BITS>(second, piece, b);
        multiply_accumulate(part[0], a[0], b[0], a[1], b[1], x.word[0], x.word[1]);
        multiply_accumulate(part[1], a[2], b[2], a[3], b[3], x.word[2], x.word[3]);
      }
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
    const int tile = at.tile;
    at.advance(warp, WARPS, last_chunk);
    stage = stage == STAGES - 1 ? 0 : stage + 1;
    if (at.tile == tile) {continue;}

    // The tile is through: add up what the warps have.
    float * const buffer = sums + (tile % 2) * WARPS * 16 * BATCH;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int b = 2 * t + i % 2;
      if (b < BATCH) {buffer[(warp * 16 + g + (i / 2) * 8) * BATCH + b] = total[i];}
      total[i] = 0.0f;
    }
    __syncthreads();
    const int row_in_tile = threadIdx.x / BATCH;
    const int b = threadIdx.x % BATCH;
    const int row = first_row + tile * TILE + row_in_tile;
    if (row_in_tile < TILE && row < end_row) {
      float sum = 0.0f, up = 0.0f;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) {
        sum += buffer[(w * 16 + row_in_tile) * BATCH + b];
        if (EPILOGUE == SWIGLU) {up += buffer[(w * 16 + row_in_tile + 8) * BATCH + b];}
      }
      if (BITS == 8) {
        const float * const scales = (const float *)args.scales;
        sum *= scales[row];
        if (EPILOGUE == SWIGLU) {up *= scales[row + args.n_rows];}
      }
      finish<EPILOGUE>(args, row, b, sum, up, best_value, best_index);
    }
  }
  copy_async_wait<0>();

  if (EPILOGUE == LOGITS) {
    __syncthreads();
    float * const values = sums;
    int * const indices = (int *)(sums + 16 * BATCH);
    if (threadIdx.x < 16 * BATCH) {
      values[threadIdx.x] = best_value;
      indices[threadIdx.x] = best_index;
    }
    __syncthreads();
    if (threadIdx.x < BATCH) {
      for (int r = 0; r < 16; ++r) {
        const float value = values[r * BATCH + threadIdx.x];
        const int index = indices[r * BATCH + threadIdx.x];
        const bool better = value > best_value || (value == best_value && index < best_index);
        if (r == 0 || better) {best_value = value; best_index = index;}
      }
      args.best_value[threadIdx.x * gridDim.x + blockIdx.x] = best_value;
      args.best_index[threadIdx.x * gridDim.x + blockIdx.x] = best_index;
    }
  }
}
