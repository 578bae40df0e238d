// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// Small helpers that every kernel shares.

#define MINUS_INFINITY bits_to_float(0xFF800000u)
const float LOG2_E = 1.4426950408889634f;

DEVICE float bf16_to_float(u16 value) { return bits_to_float((u32)value << 16); }
DEVICE u16 float_to_bf16(float value) { return (u16)(pack_bf16(value, 0.0f) & 0xFFFFu); }
DEVICE float round_to_bf16(float value) { return bf16_to_float(float_to_bf16(value)); }
DEVICE float low_half(u32 pair) { return bits_to_float(pair << 16); }
DEVICE float high_half(u32 pair) { return bits_to_float(pair & 0xFFFF0000u); }
DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }
DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }

DEVICE float warp_sum(float value)
{
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
  }
  return value;
}

// Of two tokens the one with the larger logit; of equals the first.
DEVICE void take_better(float & value, int & index, float other_value, int other_index)
{
  if (other_value > value || (other_value == value && other_index < index)) {
    value = other_value;
    index = other_index;
  }
}

DEVICE void warp_best(float & value, int & index)
{
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const float other_value = __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    const int other_index = __shfl_xor_sync(0xFFFFFFFFu, index, distance);
    take_better(value, index, other_value, other_index);
  }
}
