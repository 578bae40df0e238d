// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// The few machine instructions that the kernels are made of. Compiled by NVRTC, so no header is
// included anywhere: a bf16 number is its bits in a u16, two of them sit in a u32.
// The tests put an emulator (test/engine/cuda_emulator.hpp) in this file's place.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__
#define SHARED_MEMORY(name) extern __shared__ __align__(128) u8 name[]
#define ENTRY(name, threads, args_type, call) \
  extern "C" __global__ void __launch_bounds__(threads, 1) \
  name(const __grid_constant__ args_type args) { call(args); }

DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_to_bits(float value) { return __float_as_uint(value); }
DEVICE float inverse_sqrt(float x) { return rsqrtf(x); }
DEVICE float reciprocal(float x) { return __fdividef(1.0f, x); }

// Zero below 2^-126.
DEVICE float two_to_the(float x)
{
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats, rounded to nearest even, as two bf16; `low` in the lower half.
DEVICE u32 pack_bf16(float low, float high)
{
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// c[16x8] += a[16x16] * b[16x8], bf16 inputs, float32 sums, one warp. With g = lane / 4 and
// t = lane % 4: a0 row g, a1 row g + 8 at columns 2t, 2t+1; a2, a3 the same rows at 2t+8, 2t+9;
// b0 rows 2t, 2t+1, b1 rows 2t+8, 2t+9 of column g; c0, c1 row g, c2, c3 row g + 8 at 2t, 2t+1.
DEVICE void multiply_accumulate(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
  asm volatile(
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
    "{%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
    : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// c[16x8] += a[16x32] * b[32x8], int8 inputs, int32 sums, one warp. a0 row g, a1 row g + 8 at
// columns 4t to 4t+3; a2, a3 the same rows at 4t+16 on; b0 rows 4t on, b1 rows 4t+16 on of column
// g; c as above.
DEVICE void multiply_accumulate(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
  asm volatile(
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
    "{%8,%9}, {%0,%1,%2,%3};"
    : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
    : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Reads of what another block or kernel wrote go past the L1 cache, which may be stale.
struct alignas(16) Vector16 { u32 word[4]; };

DEVICE Vector16 load_fresh_16(const void * address)
{
  Vector16 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
    : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
    : "l"(address) : "memory");
  return v;
}

DEVICE u32 load_fresh(const u8 * address)
{
  u32 v;
  asm volatile("ld.global.cg.u8 %0, [%1];" : "=r"(v) : "l"(address) : "memory");
  return v;
}

DEVICE u16 load_fresh(const u16 * address)
{
  u16 v;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(address) : "memory");
  return v;
}

DEVICE float load_fresh(const float * address)
{
  float v;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(address) : "memory");
  return v;
}

DEVICE u64 load_fresh(const u64 * address)
{
  u64 v;
  asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(v) : "l"(address) : "memory");
  return v;
}

DEVICE int load_fresh(const int * address)
{
  int v;
  asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(address) : "memory");
  return v;
}

// Asks for a line to be brought into the L2 cache.
DEVICE void prefetch(const void * address)
{
  asm volatile("prefetch.global.L2 [%0];" :: "l"(address));
}

// 16 bytes from global to shared memory, behind the thread's back; zeros if not valid.
DEVICE void copy_async_16(void * shared, const void * global, bool valid)
{
  const u32 address = (u32)__cvta_generic_to_shared(shared);
  const int bytes = valid ? 16 : 0;
  asm volatile(
    "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
    :: "r"(address), "l"(global), "r"(bytes) : "memory");
}

// 8 bytes, zeros if not valid; or nothing at all. Without a branch.
DEVICE void copy_async_8_if(void * shared, const void * global, bool wanted, bool valid)
{
  const u32 address = (u32)__cvta_generic_to_shared(shared);
  const int bytes = valid ? 8 : 0;
  asm volatile(
    "{ .reg .pred p; setp.ne.s32 p, %3, 0; @p cp.async.ca.shared.global [%0], [%1], 8, %2; }"
    :: "r"(address), "l"(global), "r"(bytes), "r"((int)wanted) : "memory");
}

DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template<int PENDING>
DEVICE void copy_async_wait()
{
  asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

// A barrier over all blocks of a launch whose blocks are all resident (a cooperative launch): one
// thread of each block adds itself to a counter, which makes visible what the block wrote before
// its own barrier, and waits for the others. What they wrote is then read past the L1 cache
// (load_fresh).
DEVICE void add_to_barrier(u32 * counter)
{
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(counter) : "memory");
}

DEVICE void wait_for_barrier(const u32 * counter, u32 target)
{
  u32 seen;
  int polls = 0;
  do {
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    if (++polls == 1 << 24) {__trap();}    // many seconds: an error is better than a hang
  } while (seen < target);
}
