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
  extern "C" __global__ void __launch_bounds__(threads) \
  name(const __grid_constant__ args_type args) { call(args); }

DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_to_bits(float value) { return __float_as_uint(value); }
DEVICE float inverse_sqrt(float x) { return rsqrtf(x); }
DEVICE float two_to_the(float x) { return exp2f(x); }

// Two floats, rounded to nearest even, as two bf16; `low` in the lower half.
DEVICE u32 pack_bf16(float low, float high)
{
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// (a & b) | c in one instruction; the compiler makes two of it where b and c are constants.
DEVICE u32 and_or(u32 a, u32 b, u32 c)
{
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// a * b + c on two bf16 at once.
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c)
{
  u32 d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
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

// Reads of what another kernel of the same graph wrote go past the L1 cache, which may be stale.
struct alignas(16) Vector16 { u32 word[4]; };

DEVICE Vector16 load_fresh_16(const void * address)
{
  Vector16 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
    : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
    : "l"(address) : "memory");
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

DEVICE void copy_async_8(void * shared, const void * global, bool valid)
{
  const u32 address = (u32)__cvta_generic_to_shared(shared);
  const int bytes = valid ? 8 : 0;
  asm volatile(
    "cp.async.ca.shared.global [%0], [%1], 8, %2;"
    :: "r"(address), "l"(global), "r"(bytes) : "memory");
}

DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template<int PENDING>
DEVICE void copy_async_wait()
{
  asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

// Programmatic dependent launch (compute capability 9.0): a kernel starts, and fetches weights,
// while the one before it still runs; it may read that one's results only after the wait.
DEVICE void let_next_kernel_start()
{
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE void wait_for_previous_kernel()
{
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
