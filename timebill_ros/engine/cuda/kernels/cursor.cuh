// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// Where a warp is with fetching weights: ahead of where it multiplies, and across phases.
//
// A unit is 16 rows times 128 bytes: a lane fetches twice 16 bytes of two rows, asynchronously,
// into slots of a ring that only it reads. The scales of int4 come beside it, for the warp: 64
// bytes (four rows' in each of eight lanes) or, of INT4_FINE, 512 (half a row's in each lane). The
// cursor passes over attention, whose phase has no rows.

template<int WARPS, int STAGES>
struct Cursor
{
  static const int THREADS = WARPS * 32;
  static const int SLOTS = 4;                   // of a lane and stage: first row, second row, twice
  const Phase * held;        // [PHASES_HELD], in shared memory
  u8 * ring;                 // [STAGES][SLOTS][THREADS] Vector16, then scales [STAGES][WARPS]
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
    const bool fine = phase.bits == 4 && phase.group == FINE_COLUMNS;
    const int row_bytes = phase.row_bytes;
    const int part_bytes = fine ? ceil_div(phase.k, 128) * 64 : phase.k * phase.bits / 8;
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
    if (phase.bits == 4) {enter_scales(phase, pairs, fine);} else {scales_chunks = 0;}
  }

  // Where this lane's scales are, of 128 columns: four rows', or one row's with their offsets.
  DEVICE void enter_scales(const Phase & phase, bool pairs, bool fine)
  {
    const int lane = threadIdx.x % 32, first_row = row - lane / 4;
    const int half = fine ? lane % 2 : lane / 4;        // of a chunk
    const int in_tile = fine ? lane / 2 : lane % 4 * 4; // the row that they are of
    const int ahead = pairs ? in_tile % 8 : in_tile;
    const int source = first_row + ahead + (pairs && in_tile >= 8 ? phase.n_rows : 0);
    const int groups = ceil_div(phase.row_k, 128), each = fine ? 8 : 4;
    scales_chunks = fine || lane < 8 ? (ceil_div(phase.k, 128) - half + 1) / 2 : 0;
    scales_ahead = ahead - lane / 4;
    scales = (const u16 *)phase.scales +
      ((u64)(fine ? source : source / 4) * groups + chunk * 2 + half) * each;
    scales_jump = (fine ? tile : tile / 4) * groups * each - (n_chunks - 1) * 2 * each;
  }

  DEVICE bool find_work()
  {
    while (left == 0 && at + 1 < readable) {enter(at + 1);}
    return left > 0;
  }

  // Phase p begins: all units of phases before it were taken. (A warp may have had none of them.)
  DEVICE void begin(int p, int n_phases)
  {
    at = larger(at, p - 1);
    readable = smaller(p + PHASES_HELD - 1, n_phases);
  }

  // Before the first phase, with an empty ring.
  DEVICE void start()
  {
    at = -1;
    left = stage = taken = in_flight = 0;
  }

  // This warp's scales of a stage.
  template<int BITS>
  DEVICE u16 * scales_of(int at_stage) const
  {
    return (u16 *)(ring + STAGES * WARPS * 2048) +
      (at_stage * WARPS + threadIdx.x / 32) * (BITS == INT4_FINE ? 256 : 32);
  }

  // One unit, as one group of copies: an empty one if it is not wanted. No branches.
  template<int BITS>
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
    // Where there is no group, zero: what lay there before times no sum is not always zero.
    const int lane = threadIdx.x % 32;
    const bool has_scales = row + scales_ahead < end_row && chunk < scales_chunks;
    if (BITS == 4) {
      copy_async_8_if(scales_of<BITS>(stage) + lane * 4, scales, wanted && lane < 8, has_scales);
    }
    if (BITS == INT4_FINE) {
      copy_async_16(scales_of<BITS>(stage) + lane * 8, scales, wanted && has_scales);
    }
    copy_async_commit();
    const bool at_end = ++chunk == n_chunks;
    first += at_end ? jump : 128;
    second += at_end ? jump : 128;
    scales += at_end ? scales_jump : BITS == INT4_FINE ? 16 : 8;
    row += at_end ? tile : 0;
    chunk = at_end ? 0 : chunk;
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }

  // Fetches until all but one stage are in use, which is how products go on.
  template<int BITS>
  DEVICE void top_up()
  {
#pragma unroll 1
    while (in_flight < STAGES - 1 && find_work()) {
      const int n = smaller(STAGES - 1 - in_flight, left);
#pragma unroll 1
      for (int i = 0; i < n; ++i) {fetch<BITS>(true);}
      in_flight += n;
      left -= n;
    }
  }

  // Makes the next units ready to be taken: returns how many of `wanted` can be taken in a row,
  // each behind a wait for all but STAGES - 2 groups of copies and a call of fetch(*fetches).
  template<int BITS>
  DEVICE int prepare(int wanted, bool * fetches)
  {
    top_up<BITS>();                             // needed only where phases are very short
    *fetches = in_flight == STAGES - 1 && find_work();
    const int n = smaller(wanted, *fetches ? left : in_flight);
    if (*fetches) {
      left -= n;
    } else {
      if (in_flight != STAGES - 1) {copy_async_wait<0>();}
      in_flight -= n;
    }
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
