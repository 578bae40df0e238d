// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// Where a warp is with fetching weights: ahead of where it multiplies, and across phases.
//
// A unit is 16 rows times 128 bytes: a lane fetches twice 16 bytes of two rows, asynchronously,
// into slots of a ring that only it reads. The scales of int4 come beside it, for the warp. The
// cursor stops at attention, which uses the ring's memory itself, and goes on behind it.

template<int WARPS, int STAGES>
struct Cursor
{
  static const int THREADS = WARPS * 32;
  static const int SLOTS = 4;                   // of a lane and stage: first row, second row, twice
  const Phase * held;        // [PHASES_HELD], in shared memory
  u8 * ring;                 // [STAGES][SLOTS][THREADS] Vector16, then scales [STAGES][WARPS][32]
  int at;                    // phase that it fetches
  int left;                  // units of it that are still to be fetched
  int readable;              // phases before this one are in shared memory
  int stage;                 // where the next unit goes
  int taken;                 // where the next unit is taken from
  int in_flight;             // units fetched and not taken
  const u8 * first, * second;                   // what this lane fetches next, of two rows
  const u16 * scales;
  int row;                   // the first of them
  int end_row;
  int second_ahead;          // rows from the first to the second, as end_row counts them
  int scales_ahead;          // and to that of the scales
  int tile, chunk, n_chunks;
  int jump, scales_jump;     // bytes and elements from the end of a tile to the next one
  int lane_chunks[2], scales_chunks;            // of a row, in which there is something to fetch

  DEVICE void enter(int p)
  {
    const Phase & phase = held[p % PHASES_HELD];
    const Stretch s = stretch_of<WARPS>(phase, threadIdx.x / 32);
    at = p;
    left = s.units;
    if (left == 0) {return;}
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool pairs = phase.epilogue == SWIGLU;
    const int row_bytes = phase.row_k * phase.bits / 8, part_bytes = phase.k * phase.bits / 8;
    const int tiles_before = s.first_unit / s.n_chunks;
    n_chunks = s.n_chunks;
    chunk = s.first_unit - tiles_before * n_chunks;
    tile = 1 << s.tile_shift;
    end_row = s.end_row;
    row = s.first_row + tiles_before * tile + g;
    second_ahead = pairs ? 0 : 8;
    first = phase.weight + (u64)row * row_bytes + chunk * 128 + t * 16;
    second = first + (u64)(pairs ? phase.n_rows : 8) * row_bytes;
    jump = tile * row_bytes - (n_chunks - 1) * 128;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      lane_chunks[half] = (part_bytes - t * 16 - half * 64 + 127) / 128;
    }
    // Lanes 0 to 3 have the scales of a chunk's first group of 128 columns, 4 to 7 of the second.
    const int groups = ceil_div(phase.row_k, 128), group = lane / 4;
    scales_chunks = phase.bits == 4 && lane < 8 ? (ceil_div(phase.k, 128) - group + 1) / 2 : 0;
    scales_ahead = (pairs ? t % 2 : t) * 4 - g;
    const int quad = (row - g) / 4 + (pairs ? t % 2 + t / 2 * (phase.n_rows / 4) : t);
    scales = (const u16 *)phase.scales + ((u64)quad * groups + chunk * 2 + group) * 4;
    scales_jump = tile * groups - (n_chunks - 1) * 8;
  }

  DEVICE bool find_work()
  {
    while (left == 0 && at + 1 < readable && !held[(at + 1) % PHASES_HELD].attends) {enter(at + 1);}
    return left > 0;
  }

  // Phase p begins: all units of phases before it were taken. (A warp may have had none of them.)
  DEVICE void begin(int p, int n_phases)
  {
    at = larger(at, p - 1);
    readable = smaller(p + PHASES_HELD - 1, n_phases);
  }

  // Starts again behind phase p with an empty ring.
  DEVICE void restart(int p)
  {
    at = p;
    left = stage = taken = in_flight = 0;
  }

  // This warp's scales of a stage.
  DEVICE u16 * scales_of(int at_stage) const
  {
    return (u16 *)(ring + STAGES * WARPS * 2048) + (at_stage * WARPS + threadIdx.x / 32) * 32;
  }

  // One unit, as one group of copies: an empty one if it is not wanted. No branches.
  template<bool FOUR_BITS>
  DEVICE void fetch(bool wanted)
  {
    const bool has_first = wanted && row < end_row;
    const bool has_second = wanted && row + second_ahead < end_row;
    const bool in_low = chunk < lane_chunks[0], in_high = chunk < lane_chunks[1];
    Vector16 * const slot = (Vector16 *)ring + stage * SLOTS * THREADS + threadIdx.x;
    copy_async_16(slot, first, has_first && in_low);
    copy_async_16(slot + THREADS, first + 64, has_first && in_high);
    copy_async_16(slot + 2 * THREADS, second, has_second && in_low);
    copy_async_16(slot + 3 * THREADS, second + 64, has_second && in_high);
    if (FOUR_BITS) {
      // Where there is no group, zero: what lay there before times no sum is not always zero.
      const bool has_scales = row + scales_ahead < end_row && chunk < scales_chunks;
      copy_async_8_if(scales_of(stage) + threadIdx.x % 32 * 4, scales,
        wanted && threadIdx.x % 32 < 8, has_scales);
    }
    copy_async_commit();
    const bool at_end = ++chunk == n_chunks;
    first += at_end ? jump : 128;
    second += at_end ? jump : 128;
    scales += at_end ? scales_jump : 8;
    row += at_end ? tile : 0;
    chunk = at_end ? 0 : chunk;
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }

  // Fetches until the ring is full.
  template<bool FOUR_BITS>
  DEVICE void top_up()
  {
#pragma unroll 1
    while (in_flight < STAGES && find_work()) {
      const int n = smaller(STAGES - in_flight, left);
#pragma unroll 1
      for (int i = 0; i < n; ++i) {fetch<FOUR_BITS>(true);}
      in_flight += n;
      left -= n;
    }
  }

  // Makes the next units ready to be taken: returns how many of `wanted` can be taken in a row,
  // each behind a wait for all but STAGES - 2 groups of copies and a call of fetch(*fetches).
  template<bool FOUR_BITS>
  DEVICE int prepare(int wanted, bool * fetches)
  {
    const bool more = find_work();
    *fetches = more && in_flight == STAGES - 1;
    int n = smaller(wanted, in_flight);
    if (*fetches) {
      n = smaller(wanted, left);
      left -= n;
      return n;
    }
    if (in_flight != STAGES - 1) {              // the first units, or phases that are very short
      if (more) {top_up<FOUR_BITS>();}
      copy_async_wait<0>();
      n = in_flight == STAGES ? 1 : smaller(wanted, in_flight);
    }
    in_flight -= n;
    return n;
  }

  // The oldest unit's first slot of this lane.
  DEVICE const Vector16 * take()
  {
    const Vector16 * const slot = (const Vector16 *)ring + taken * SLOTS * THREADS + threadIdx.x;
    taken = taken == STAGES - 1 ? 0 : taken + 1;
    return slot;
  }
};
