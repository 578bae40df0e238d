// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// A quantised matrix as bf16, for the products of a prefill where no bf16 weights are kept. The
// formats are those of formats.cuh; primitives.cuh is all that this needs.

struct DequantizeArgs
{
  const u8 * data;           // [rows, row_bytes]
  const void * scales;       // int8: float [rows]; int4: bf16, as program.cuh says
  u16 * out;                 // [rows, k]
  int rows;
  int k;
  int row_bytes;
  int bits;                  // 8 or 4
  int group;                 // of int4: 128, or 32 with an offset
};

const int DEQUANTIZE_THREADS = 256;

// A thread has eight columns of a row.
DEVICE void dequantize(const DequantizeArgs & args)
{
  const int per_row = args.k / 8;
  const u64 at = (u64)blockIdx.x * DEQUANTIZE_THREADS + threadIdx.x;
  if (at >= (u64)args.rows * per_row) {return;}
  const int row = (int)(at / per_row), eight = (int)(at % per_row), k = eight * 8;
  const u8 * const from = args.data + (u64)row * args.row_bytes;
  const int groups = (args.k + 127) / 128;
  float scale, offset = 0.0f, x[8];
  if (args.bits == 8) {
    scale = ((const float *)args.scales)[row];
#pragma unroll
    for (int i = 0; i < 8; ++i) {x[i] = (float)(signed char)from[k + i];}
  } else {
    int word = eight;
    if (args.group == 32) {                     // word 4 j + t of 128 columns is in place 4 t + j
      word = eight / 16 * 16 + eight % 4 * 4 + eight % 16 / 4;
      const u32 both = ((const u32 *)args.scales)[(u64)row * groups * 4 + k / 32];
      scale = bits_to_float(both << 16);
      offset = bits_to_float(both & 0xFFFF0000u);
    } else {
      const u16 * const quad = (const u16 *)args.scales + ((u64)(row / 4) * groups + k / 128) * 4;
      scale = bits_to_float((u32)quad[row % 4] << 16);
    }
    const u32 bits = ((const u32 *)from)[word];
#pragma unroll
    for (int i = 0; i < 8; ++i) {               // byte i % 4, its lower half first
      const int shift = i % 4 * 8 + i / 4 * 4;
      x[i] = (float)((int)((bits >> shift & 15u) ^ 8u) - 8);
    }
  }
  Vector16 packed;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    packed.word[i] = pack_bf16(x[2 * i] * scale + offset, x[2 * i + 1] * scale + offset);
  }
  ((Vector16 *)args.out)[at] = packed;
}
