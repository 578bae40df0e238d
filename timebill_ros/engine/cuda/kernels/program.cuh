// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// What a step consists of: a list of phases in device memory, which all blocks go through together.
//
// A phase is a product W x with what follows it, or the attention of one layer. Between two phases
// lies a barrier over all blocks. Weights depend on nothing, so fetching them runs ahead across it.

const int INT4_FINE = 5;                // formats.cuh: int4 with scale and offset for ...
const int FINE_COLUMNS = 32;            // ... so many columns

enum Epilogue { STORE = 0, ADD_RESIDUAL = 1, SWIGLU = 2, LOGITS = 3, KEEP = 4 };

struct Phase
{
  const u8 * weight;         // [n_rows (x 2 with SWIGLU: gate rows, then up rows), row_k]
  const u8 * scales;         // int8: float [rows]; int4: bf16 [row / 4][group][row % 4], or with
                             // groups of 32 columns (scale, offset) [row][group], 4 k for 128 k
  const u16 * bias;          // [n_rows] or null
  const u16 * norm;          // [k]: x goes through an RMS norm; or null
  const u16 * x;             // [batch, row_k]
  u16 * out;                 // [batch, n_rows]; with ADD_RESIDUAL it holds the residual before
  u16 * tap;                 // [batch, n_rows] or null: a second copy of out
  int attends;               // attention: weight = keys, scales = values, norm and bias = q and k norm
  int epilogue;
  int bits;
  int n_rows;
  int k;                     // columns that this phase takes, a whole number of chunks or the last
  int row_k;                 // columns that a row of x has
  int row_bytes;             // of a row of W
  int group;                 // columns of int4 that share a scale: 128, or 32 (INT4_FINE)
  int rows_per_block;        // a multiple of 4
  int continues;             // the same rows as the phase before, which has KEEP: no barrier
};

struct StepArgs
{
  const Phase * phases;
  u32 * barrier;             // zero at the start
  const u16 * table;         // embedding [vocabulary, width]; null: begin with the first phase
  const int * tokens;        // [slots]
  u16 * hidden;              // [batch, width]
  const int * slot_of_row;   // [batch], -1: nobody
  const int * lengths;       // [slots], cached tokens before this one
  const int * positions;     // [slots], logical position of the new token
  const float * cos;         // [positions, D]
  const float * sin;
  float * partial;           // [batch, kv_heads]: sums [splits, 8, D], (maximum, weight) [splits, 8]
  u32 * finished;            // [batch, kv_heads] stretches of attention, zero at the start
  float * logits;            // [batch, n_rows], LOGITS
  u8 * seen;                 // [slots, vocabulary]: tokens that the penalty applies to
  const float * penalty;     // [slots]
  float * best_value;        // [batch, blocks]: the block's largest logit and where it is
  int * best_index;
  u64 slot_stride;           // elements from one slot of the cache to the next
  int n_phases;
  int width;
  int vocabulary;
  int capacity;
  int heads;
  int kv_heads;
  int splits;                // stretches that attention may divide a cache into
  int least_tiles;           // of a stretch, so that a short cache is not split too finely
  float norm_eps;
  float scale;               // of the attention scores
  // Where things lie in shared memory; the ring comes first.
  int x_at;                  // vectors; in attention the outputs of the warps
  int work_at;               // sums of a product; what attention needs
  int carry_at;              // what KEEP keeps
  int phases_at;             // [4] phases
  int rows_at;               // [batch]
};

const int PHASES_HELD = 4;
const int PHASE_WORDS = sizeof(Phase) / 4;

// A word of phase p, for a thread to put into shared memory later.
DEVICE u32 phase_word(const StepArgs & args, int p)
{
  const bool mine = p < args.n_phases && threadIdx.x < PHASE_WORDS;
  return mine ? ((const u32 *)(args.phases + p))[threadIdx.x] : 0;
}

DEVICE void hold_phase(Phase * held, int p, u32 word)
{
  if (threadIdx.x < PHASE_WORDS) {((u32 *)(held + p % PHASES_HELD))[threadIdx.x] = word;}
}

// What the rows of the batch are, in shared memory.
struct Row
{
  int slot;                  // -1: nobody
  int length;                // cached tokens before this one
  int position;              // logical position of the new token
};

DEVICE void arrive(const StepArgs & args)
{
  __syncthreads();
  if (threadIdx.x == 0) {add_to_barrier(args.barrier);}
}

DEVICE void wait_for_all(const StepArgs & args, u32 barriers)
{
  if (threadIdx.x == 0) {wait_for_barrier(args.barrier, barriers * gridDim.x);}
  __syncthreads();
}

// The part of a product that a warp does. A block owns rows_per_block consecutive rows, in tiles of
// 16 (SWIGLU: 8 gate rows and the 8 up rows that belong to them). The tiles, cut into chunks of 128
// bytes of a row, make one row of units, of which each warp takes an equal stretch.
struct Stretch
{
  int first_row;             // of the block
  int end_row;
  int tile_shift;            // log2 of the output rows of a tile
  int tiles;
  int n_chunks;              // of a row
  int per_warp;
  int first_unit;            // of the warp
  int units;
};

template<int WARPS>
DEVICE Stretch stretch_of(const Phase & phase, int warp)
{
  Stretch s;
  s.first_row = blockIdx.x * phase.rows_per_block;
  s.end_row = smaller(s.first_row + phase.rows_per_block, phase.n_rows);
  s.tile_shift = phase.epilogue == SWIGLU ? 3 : 4;
  s.tiles = (larger(s.end_row - s.first_row, 0) + (1 << s.tile_shift) - 1) >> s.tile_shift;
  s.n_chunks = ceil_div(phase.k * phase.bits / 8, 128);
  s.per_warp = ceil_div(s.tiles * s.n_chunks, WARPS);
  s.first_unit = smaller(warp * s.per_warp, s.tiles * s.n_chunks);
  s.units = smaller(s.per_warp, s.tiles * s.n_chunks - s.first_unit);
  return s;
}

// Tiles that one warp's stretch can touch; layout.py computes the same.
DEVICE int tile_span(int tiles, int n_chunks, int warps)
{
  return smaller(tiles, (ceil_div(tiles * n_chunks, warps) + n_chunks - 2) / n_chunks + 1);
}
