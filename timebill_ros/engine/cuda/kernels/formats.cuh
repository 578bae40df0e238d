// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// The formats of weights, what x looks like beside them, and the product of one unit.
//
// 16 = bf16: x is bf16 too. 8 = int8, one scale per row. 4 = int4, one scale per 128 columns; byte
// i of a word holds columns i (low half) and i + 4 of eight, in two's complement. 5 = int4 with a
// scale and an offset per 32 columns, five bits a weight in all; rows are padded to 128 columns,
// and the words within 128 columns lie such that one tensor core product takes 32 neighbours: what
// the offset adds is itself times the sum of x over the 32 columns. Beside int8 and
// int4, x is an integer of 16 bits: 128 columns share the scale that maps their largest magnitude
// to 32512. Its upper and its lower byte are two columns of the tensor cores' int8 operand, so the
// weights are never unpacked to floating point, sums within the columns of a scale are exact, and
// x is finer than in bf16 where it matters, in its large entries. The order of columns within a
// unit does not matter to a sum, so x lies permuted in shared memory such that neither operand is
// ever shuffled.

template<int BITS>
struct Format
{
  static const int CHUNK = BITS == INT4_FINE ? 256 : 1024 / BITS;          // columns of a unit
  static const bool FOUR = BITS == 4 || BITS == INT4_FINE;
};

const int SCALE_COLUMNS = 128;                  // that share a scale of x
const float FIXED_POINT_LARGEST = 32512.0f;     // 127 * 256: the upper byte stays within int8
// 1.5 * 2^23 + 128: a float's low bits become an integer, of which byte 1 is rounded.
const float FIXED_POINT_MAGIC = 12583040.0f;

// Bytes from one row of x in shared memory to the next: two rows share no bank.
template<int BITS>
DEVICE int vector_stride(int k)
{
  const int padded = ceil_div(k, Format<BITS>::CHUNK) * Format<BITS>::CHUNK;
  return ceil_div(padded * (BITS == 16 ? 2 : 1), 128) * 128 + 64;
}

// Eight columns of each vector, in each of PLACES places `step` columns apart, to where the products
// want them. All vectors go through the shuffles side by side, which hides how long these take.
template<int BITS, int BATCH, int PLACES>
DEVICE void put_columns(const float (&y)[PLACES * BATCH][8], int first, int step, int row_k,
  int padded, u8 * vectors, float * x_scales, float * x_sums)
{
  const int N = PLACES * BATCH;
  const int stride = vector_stride<BITS>(row_k);
  if (BITS == 16) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int k = first + n / BATCH * step;
      Vector16 packed;
#pragma unroll
      for (int i = 0; i < 4; ++i) {packed.word[i] = pack_bf16(y[n][2 * i], y[n][2 * i + 1]);}
      if (k < padded) {*(Vector16 *)(vectors + n % BATCH * stride + k * 2) = packed;}
    }
    return;
  }
  float largest[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    largest[n] = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {largest[n] = fmaxf(largest[n], fabsf(y[n][i]));}
  }
#pragma unroll
  for (int distance = 1; distance < SCALE_COLUMNS / 8; distance *= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      largest[n] = fmaxf(largest[n], __shfl_xor_sync(0xFFFFFFFFu, largest[n], distance));
    }
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int k = first + n / BATCH * step, b = n % BATCH;
    const float inverse =
      largest[n] > 1e-30f ? FIXED_POINT_LARGEST * reciprocal(largest[n]) : 0.0f;
    u32 q[8];                       // byte 1: the upper byte; byte 0: the lower one plus 128
#pragma unroll
    for (int i = 0; i < 8; ++i) {q[i] = float_to_bits(fmaf(y[n][i], inverse, FIXED_POINT_MAGIC));}
    float sum = 0.0f;
    if (BITS == INT4_FINE) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {sum += bits_to_float(q[i]) - FIXED_POINT_MAGIC;}
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
    }
    if (k >= padded) {continue;}
    const int within = k % SCALE_COLUMNS;
    const int place = BITS == 8 ? k : k - within + (BITS == 4 ?
      within % 32 / 16 * 64 + within / 32 * 16 + within % 16 :
      within / 64 * 64 + within % 32 / 8 * 16 + within % 64 / 32 * 8);
    u8 * const to = vectors + 2 * b * stride + place;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 even = __byte_perm(q[4 * i], q[4 * i + 1], 0x5140);
      const u32 odd = __byte_perm(q[4 * i + 2], q[4 * i + 3], 0x5140);
      ((u32 *)to)[i] = __byte_perm(even, odd, 0x7632);
      ((u32 *)(to + stride))[i] = __byte_perm(even, odd, 0x5410) ^ 0x80808080u;
    }
    const float unit = largest[n] * (1.0f / FIXED_POINT_LARGEST);
    if (within == 0) {
      // int4 values stand in the upper halves of bytes, so they are 16 times too large.
      x_scales[k / SCALE_COLUMNS * BATCH + b] = unit * (Format<BITS>::FOUR ? 1.0f / 16.0f : 1.0f);
    }
    if (BITS == INT4_FINE && k % FINE_COLUMNS == 0) {
      x_sums[k / FINE_COLUMNS * BATCH + b] = sum * unit;
    }
  }
}

// What a lane adds up of a tile: rows g and g + 8 of vectors. bf16: vectors 2t and 2t + 1 of the
// tensor cores' eight columns. Integers: vector t (and 4 + t), as upper and lower byte.
template<int BITS, int BATCH>
struct Total
{
  static const int SETS = BITS == 16 ? 2 : (BATCH + 3) / 4;
  float of[SETS][2];         // [vector][row g, row g + 8]

  DEVICE void clear()
  {
#pragma unroll
    for (int i = 0; i < SETS; ++i) {of[i][0] = of[i][1] = 0.0f;}
  }
  DEVICE static int vector(int set, int t) { return BITS == 16 ? 2 * t + set : 4 * set + t; }
};

// Where in shared memory a lane's columns of x begin, for one set.
template<int BITS, int BATCH>
DEVICE int vector_place(int k)
{
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int ROWS = BITS == 16 ? BATCH : BATCH < 4 ? 2 * BATCH : 8;
  return (g < ROWS ? g : 0) * vector_stride<BITS>(k) + t * 16;
}

// What a lane has of one unit: two halves of a row, and of another. int4's scales of a half: those
// of the two rows in the halves of a word; or for FINE_COLUMNS columns each a word of either row,
// with the scale in its lower half and the offset in its upper one.
template<int BITS>
struct Unit
{
  Vector16 first[2], second[2];
  u32 scales_of_half[2];
  Vector16 fine_first[2], fine_second[2];

  // `mine` are the lane's slots, STRIDE apart; `scales` those of the warp.
  template<int STRIDE>
  DEVICE void take(const Vector16 * mine, const u16 * scales)
  {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      first[half] = mine[half * STRIDE];
      second[half] = mine[(2 + half) * STRIDE];
      if (BITS == 4) {
        scales_of_half[half] = scales[half * 16 + g] | (u32)scales[half * 16 + g + 8] << 16;
      }
      if (BITS == INT4_FINE) {
        fine_first[half] = ((const Vector16 *)scales)[2 * g + half];
        fine_second[half] = ((const Vector16 *)scales)[2 * (g + 8) + half];
      }
    }
  }
};

// The products of one unit; x points to the lane's columns of the chunk.
template<int BATCH>
DEVICE void add_unit(Total<16, BATCH> & total, const Unit<16> & unit, const u8 * x, int,
  const float *, const float *)
{
  float part[4] = {total.of[0][0], total.of[1][0], total.of[0][1], total.of[1][1]};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Vector16 a = unit.first[half], b = unit.second[half];
    const Vector16 v = *(const Vector16 *)(x + half * 64);
    multiply_accumulate(part, a.word[0], b.word[0], a.word[1], b.word[1], v.word[0], v.word[1]);
    multiply_accumulate(part, a.word[2], b.word[2], a.word[3], b.word[3], v.word[2], v.word[3]);
  }
  total.of[0][0] = part[0];
  total.of[1][0] = part[1];
  total.of[0][1] = part[2];
  total.of[1][1] = part[3];
}

DEVICE float both_bytes(int upper, int lower) { return (float)(upper * 256 + lower); }

const u32 UPPER = 0xF0F0F0F0u;                  // halves of four bytes

template<int BATCH>
DEVICE void add_unit(Total<8, BATCH> & total, const Unit<8> & unit, const u8 * x, int set_stride,
  const float * x_scales, const float *)
{
#pragma unroll
  for (int set = 0; set < Total<8, BATCH>::SETS; ++set) {
    int part[4] = {0, 0, 0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Vector16 a = unit.first[half], b = unit.second[half];
      const Vector16 v = *(const Vector16 *)(x + set * set_stride + half * 64);
      multiply_accumulate(part, a.word[0], b.word[0], a.word[1], b.word[1], v.word[0], v.word[1]);
      multiply_accumulate(part, a.word[2], b.word[2], a.word[3], b.word[3], v.word[2], v.word[3]);
    }
    const float scale = x_scales[set * 4];
    total.of[set][0] += both_bytes(part[0], part[1]) * scale;
    total.of[set][1] += both_bytes(part[2], part[3]) * scale;
  }
}

template<int BATCH>
DEVICE void add_unit(Total<4, BATCH> & total, const Unit<4> & unit, const u8 * x, int set_stride,
  const float * x_scales, const float *)
{
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Vector16 a = unit.first[half], b = unit.second[half];
    int part[Total<4, BATCH>::SETS][4] = {};
#pragma unroll
    for (int set = 0; set < Total<4, BATCH>::SETS; ++set) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Vector16 v = *(const Vector16 *)(x + set * set_stride + half * 128 + j / 2 * 64);
        multiply_accumulate(part[set], (a.word[j] << 4) & UPPER, (b.word[j] << 4) & UPPER,
          a.word[j] & UPPER, b.word[j] & UPPER, v.word[j % 2 * 2], v.word[j % 2 * 2 + 1]);
      }
    }
    const float scale_first = low_half(unit.scales_of_half[half]);
    const float scale_second = high_half(unit.scales_of_half[half]);
#pragma unroll
    for (int set = 0; set < Total<4, BATCH>::SETS; ++set) {
      const float scale = x_scales[half * BATCH + set * 4];
      total.of[set][0] += both_bytes(part[set][0], part[set][1]) * (scale * scale_first);
      total.of[set][1] += both_bytes(part[set][2], part[set][3]) * (scale * scale_second);
    }
  }
}

template<int BATCH>
DEVICE void add_unit(Total<INT4_FINE, BATCH> & total, const Unit<INT4_FINE> & unit, const u8 * x,
  int set_stride, const float * x_scales, const float * x_sums)
{
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Vector16 a = unit.first[half], b = unit.second[half];
    const Vector16 of_first = unit.fine_first[half], of_second = unit.fine_second[half];
#pragma unroll
    for (int set = 0; set < Total<INT4_FINE, BATCH>::SETS; ++set) {
      const float scale = x_scales[half * BATCH + set * 4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Vector16 v = *(const Vector16 *)(x + set * set_stride + half * 128 + j / 2 * 64);
        int part[4] = {0, 0, 0, 0};
        multiply_accumulate(part, (a.word[j] << 4) & UPPER, (b.word[j] << 4) & UPPER,
          a.word[j] & UPPER, b.word[j] & UPPER, v.word[j % 2 * 2], v.word[j % 2 * 2 + 1]);
        const float sum = x_sums[(half * 4 + j) * BATCH + set * 4];
        total.of[set][0] += both_bytes(part[0], part[1]) * (scale * low_half(of_first.word[j]))
          + sum * high_half(of_first.word[j]);
        total.of[set][1] += both_bytes(part[2], part[3]) * (scale * low_half(of_second.word[j]))
          + sum * high_half(of_second.word[j]);
      }
    }
  }
}
