// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// Runs the CUDA kernels on a CPU, slowly, one fiber per CUDA thread, so that their arithmetic and
// indexing are tested where there is no GPU. It takes the place of kernels/primitives.cuh. A fiber
// yields where CUDA threads wait for each other; all blocks of a launch run side by side, so that
// they may wait for each other too. Asynchronous copies happen at the wait that completes them, so
// that a missing wait shows; shared memory starts as NaN.

#include <setjmp.h>
#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE inline
#define __syncwarp warp_barrier
#define SHARED_MEMORY(name) u8 * const name = emulator.shared
#define ENTRY(name, threads, args_type, call) \
  extern "C" void name(int gx, int gy, int gz, int bytes, const args_type * args) { \
    emulator.run(gx, gy, gz, threads, bytes, [args]() {call(*args);}); }

struct Index3 { unsigned x, y, z; };
static Index3 threadIdx, blockIdx, gridDim, blockDim;

struct PendingCopy { void * to; const void * from; int bytes; bool valid; };

struct Fiber
{
  ucontext_t context;                     // for the first entry; later ones jump, without system calls
  jmp_buf place;
  std::vector<char> stack;
  bool started, done;
  Index3 thread, block;
  std::vector<PendingCopy> open;
  std::deque<std::vector<PendingCopy>> groups;
};

struct Barrier { unsigned arrived = 0, generation = 0; };

struct Block
{
  std::vector<u8> memory;
  u8 * shared;
  Barrier whole;
  std::vector<Barrier> warps;
  std::vector<u64> exchange;              // [thread][8]
};

struct Emulator
{
  u8 * shared;                            // of the block that runs
  Block * block;
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  jmp_buf scheduler;
  unsigned current = 0;
  void (* body)(void *) = nullptr;
  void * closure = nullptr;

  void yield()
  {
    if (_setjmp(fibers[current].place) == 0) {_longjmp(scheduler, 1);}
  }

  void resume()
  {
    Fiber & fiber = fibers[current];
    if (_setjmp(scheduler) != 0) {return;}
    if (fiber.started) {_longjmp(fiber.place, 1);}
    fiber.started = true;
    setcontext(&fiber.context);
  }

  static void enter()
  {
    extern Emulator emulator;
    emulator.body(emulator.closure);
    emulator.fibers[emulator.current].done = true;
    emulator.yield();
  }

  template<class Function>
  void run(unsigned gx, unsigned gy, unsigned gz, unsigned threads, int bytes, Function function)
  {
    gridDim = {gx, gy, gz};
    blockDim = {threads, 1, 1};
    closure = &function;
    body = [](void * f) {(*(Function *)f)();};
    blocks.assign(gx * gy * gz, Block());
    fibers.resize(gx * gy * gz * threads);
    for (unsigned i = 0; i < blocks.size(); ++i) {
      Block & own = blocks[i];
      own.memory.assign(bytes + 128, 0xFF);
      own.shared = own.memory.data() + (128 - (u64)own.memory.data() % 128);
      own.warps.resize(threads / 32);
      own.exchange.assign(threads * 8, 0);
      for (unsigned thread = 0; thread < threads; ++thread) {
        prepare(fibers[i * threads + thread], thread, {i % gx, i / gx % gy, i / gx / gy});
      }
    }
    for (unsigned left = fibers.size(); left > 0; ) {
      for (current = 0; current < fibers.size(); ++current) {
        if (fibers[current].done) {continue;}
        threadIdx = fibers[current].thread;
        blockIdx = fibers[current].block;
        block = &blocks[current / threads];
        shared = block->shared;
        resume();
        if (fibers[current].done) {--left;}
      }
    }
  }

  static void prepare(Fiber & fiber, unsigned thread, Index3 block)
  {
    fiber.stack.resize(48 * 1024);
    fiber.started = fiber.done = false;
    fiber.thread = {thread, 0, 0};
    fiber.block = block;
    fiber.open.clear();
    fiber.groups.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Emulator::enter, 0);
  }

  void wait(Barrier & barrier, unsigned count)
  {
    const unsigned mine = barrier.generation;
    if (++barrier.arrived == count) {barrier.arrived = 0; ++barrier.generation; return;}
    while (barrier.generation == mine) {yield();}
  }
};

Emulator emulator;

inline void __syncthreads() { emulator.wait(emulator.block->whole, blockDim.x); }
inline void warp_barrier() { emulator.wait(emulator.block->warps[threadIdx.x / 32], 32); }
inline void add_to_barrier(u32 * counter) { ++*counter; }
inline void wait_for_barrier(const u32 * counter, u32 target)
{
  while (*(volatile const u32 *)counter < target) {emulator.yield();}
}
inline void __threadfence() {}

template<class T> T from_lane(T value, int lane)
{
  u64 * const warp = &emulator.block->exchange[threadIdx.x / 32 * 32 * 8];
  u64 bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  warp[threadIdx.x % 32 * 8] = bits;
  warp_barrier();
  bits = warp[lane * 8];
  warp_barrier();
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template<class T> T __shfl_sync(u32, T value, int lane) { return from_lane(value, lane % 32); }
template<class T> T __shfl_xor_sync(u32, T value, int distance)
{
  return from_lane(value, (int)(threadIdx.x % 32) ^ distance);
}
template<class T> T __shfl_up_sync(u32, T value, int distance)
{
  const int lane = threadIdx.x % 32;
  return from_lane(value, lane >= distance ? lane - distance : lane);
}
inline bool __any_sync(u32, bool value)
{
  bool any = false;
  for (int lane = 0; lane < 32; ++lane) {any |= from_lane((u32)value, lane) != 0;}
  return any;
}
template<class T> T atomicAdd(T * at, T value) { const T old = *at; *at += value; return old; }
inline u64 __umul64hi(u64 a, u64 b) { return (u64)(((unsigned __int128)a * b) >> 64); }
inline u32 __byte_perm(u32 a, u32 b, u32 selector)
{
  const u64 both = ((u64)b << 32) | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= (u32)((both >> (8 * ((selector >> (4 * i)) & 7))) & 255) << (8 * i);
  }
  return result;
}

inline float bits_to_float(u32 bits) { float f; std::memcpy(&f, &bits, 4); return f; }
inline u32 float_to_bits(float value) { u32 u; std::memcpy(&u, &value, 4); return u; }
inline float inverse_sqrt(float x) { return 1.0f / std::sqrt(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float two_to_the(float x) { return std::exp2(x); }
inline u32 one_bf16(float value)
{
  const u32 bits = float_to_bits(value);
  if (std::isnan(value)) {return 0x7FC0;}
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}
inline u32 pack_bf16(float low, float high) { return one_bf16(low) | (one_bf16(high) << 16); }
inline float half_of(u32 pair, int high) { return bits_to_float(high ? pair & 0xFFFF0000u : pair << 16); }

// What the lanes of a warp hand to a product; c as in kernels/primitives.cuh. `product` multiplies
// the k-th entries of a word of a and one of b.
template<class Sum, class Product>
void multiply_fragments(Sum (&c)[4], const u32 (&operands)[6], int depth, Product product)
{
  u64 * const warp = &emulator.block->exchange[threadIdx.x / 32 * 32 * 8];
  for (int i = 0; i < 6; ++i) {warp[threadIdx.x % 32 * 8 + i] = operands[i];}
  warp_barrier();
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, in_word = depth / 8;
  for (int i = 0; i < 4; ++i) {
    const int row_high = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < depth; ++k) {
      const int owner = k % (depth / 2) / in_word, upper = k / (depth / 2);
      const u32 a = (u32)warp[(g * 4 + owner) * 8 + row_high + 2 * upper];
      const u32 b = (u32)warp[(column * 4 + owner) * 8 + 4 + upper];
      c[i] += product(a, b, k % in_word);
    }
  }
  warp_barrier();
}
inline void multiply_accumulate(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
  multiply_fragments(c, {a0, a1, a2, a3, b0, b1}, 16, [](u32 a, u32 b, int k) {
      return half_of(a, k) * half_of(b, k);
    });
}
inline void multiply_accumulate(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
  multiply_fragments(c, {a0, a1, a2, a3, b0, b1}, 32, [](u32 a, u32 b, int k) {
      return (int)(signed char)(a >> (8 * k)) * (int)(signed char)(b >> (8 * k));
    });
}

struct alignas(16) Vector16 { u32 word[4]; };
inline Vector16 load_fresh_16(const void * address) { return *(const Vector16 *)address; }
template<class T> T load_fresh(const T * address) { return *address; }

inline void copy_async(void * to, const void * from, int bytes, bool valid)
{
  if ((u64)to % bytes != 0 || (valid && (u64)from % bytes != 0)) {
    std::fprintf(stderr, "copy_async: address is not a multiple of %d\n", bytes);
    std::abort();
  }
  emulator.fibers[emulator.current].open.push_back({to, from, bytes, valid});
}
inline void copy_async_16(void * to, const void * from, bool valid) { copy_async(to, from, 16, valid); }
inline void copy_async_8_if(void * to, const void * from, bool wanted, bool valid)
{
  if (wanted) {copy_async(to, from, 8, valid);}
}
inline void copy_async_commit()
{
  Fiber & fiber = emulator.fibers[emulator.current];
  fiber.groups.push_back(fiber.open);
  fiber.open.clear();
}
template<int PENDING> void copy_async_wait()
{
  Fiber & fiber = emulator.fibers[emulator.current];
  while ((int)fiber.groups.size() > PENDING) {
    for (const PendingCopy & copy : fiber.groups.front()) {
      if (copy.valid) {std::memcpy(copy.to, copy.from, copy.bytes);} else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
    fiber.groups.pop_front();
  }
}
inline void prefetch(const void * address) { (void)*(volatile const char *)address; }
