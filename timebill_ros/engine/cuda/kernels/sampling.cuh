// Copyright 2026 timebill_ros contributors
// SPDX-License-Identifier: Apache-2.0
//
// From logits to the next token.
//
// The choice follows transformers' processors: repetition penalty (applied where the logits are
// made), temperature, top-k, top-p, draw. Probabilities are counted in units of 2^-40 of the
// likeliest token's as 64-bit integers, so that the result does not depend on the order of
// additions; tokens below that (28 nats down) cannot be drawn. Logits closer than 2^-16 after the
// temperature count as ties, and ties at a threshold are kept together.
//
// Where no logit is a finite number nothing is chosen: the host is told so by -1.

struct SampleArgs
{
  const float * logits;      // [batch, vocabulary], after the repetition penalty
  const float * best_value;  // [batch, n_best]
  const int * best_index;
  const int * slot_of_row;   // [batch]
  const float * temperature; // [slots], 0: greedy
  const int * top_k;         // [slots], 0: off
  const float * top_p;       // [slots], 1: off
  const u64 * seed;          // [slots]
  int * lengths;             // [slots]
  int * positions;           // [slots]
  int * tokens;              // [slots]
  int * chosen;              // [batch, 2] by row and position % 2, the step's result: the host may
                             // read it while the next step is at work; -1: no logit is a number
  u32 * counters;            // barriers of the kernel before, made ready for the next step
  int vocabulary;
  int n_best;
  int n_counters;
};

const int SAMPLE_THREADS = 1024;
const int BINS = 2048;
const float DEEPEST = 28.0f;             // nats below the likeliest token


struct Sampler
{
  const float * logits;
  float best;
  float inverse_temperature;
  int vocabulary;
  u32 last_kept;                         // largest depth that is still in

  // How far below the likeliest token, in units of 2^-16 nats; above last_kept: out.
  DEVICE u32 depth(int token) const
  {
    const float nats = (best - load_fresh(logits + token)) * inverse_temperature;
    return nats < DEEPEST ? (u32)(nats * 65536.0f) : 0xFFFFFFFFu;
  }
  DEVICE static u64 mass(u32 depth)
  {
    return (u64)(two_to_the(-(float)depth * (LOG2_E / 65536.0f)) * 1099511627776.0f);
  }
};

// The bin at which the running sum over `bins` (from bin 0 on) first reaches target; the sum
// before it goes to *before. All threads call, all get the answer.
DEVICE int find_bin(const u64 * bins, u64 target, u64 * shared_result, u64 * before)
{
  if (threadIdx.x < 32) {
    const int lane = threadIdx.x;
    u64 own = 0;
    for (int i = 0; i < BINS / 32; ++i) {own += bins[lane * (BINS / 32) + i];}
    u64 upto = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const u64 other = __shfl_up_sync(0xFFFFFFFFu, upto, distance);
      if (lane >= distance) {upto += other;}
    }
    if (lane == 31) {shared_result[0] = BINS - 1; shared_result[1] = upto - bins[BINS - 1];}
    __syncwarp();
    if (upto >= target && upto - own < target) {
      u64 sum = upto - own;
      int bin = lane * (BINS / 32);
      while (sum + bins[bin] < target) {sum += bins[bin]; ++bin;}
      shared_result[0] = (u64)bin;
      shared_result[1] = sum;
    }
  }
  __syncthreads();
  const int found = (int)shared_result[0];
  *before = shared_result[1];
  __syncthreads();
  return found;
}

DEVICE u64 total_of(const u64 * bins, u64 * shared_result)
{
  if (threadIdx.x < 32) {
    u64 own = 0;
    for (int i = threadIdx.x; i < BINS; i += 32) {own += bins[i];}
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      own += __shfl_xor_sync(0xFFFFFFFFu, own, distance);
    }
    if (threadIdx.x == 0) {shared_result[0] = own;}
  }
  __syncthreads();
  const u64 total = shared_result[0];
  __syncthreads();
  return total;
}

// Narrows sampler.last_kept to the `count` likeliest tokens (or, with `share` > 0, to the fewest
// that hold that share of the probability): two rounds of counting, coarse depth and fine depth.
DEVICE void keep_top(Sampler & sampler, u64 count, float share, u64 * bins, u64 * shared_result)
{
  u64 target = count, before = 0;
  u32 coarse = 0;
  for (int round = 0; round < 2; ++round) {
    for (int i = threadIdx.x; i < BINS; i += SAMPLE_THREADS) {bins[i] = 0;}
    __syncthreads();
    for (int token = threadIdx.x; token < sampler.vocabulary; token += SAMPLE_THREADS) {
      const u32 depth = sampler.depth(token);
      if (depth > sampler.last_kept || (round == 1 && depth / BINS != coarse)) {continue;}
      const u32 bin = round == 0 ? depth / BINS : depth % BINS;
      atomicAdd(bins + bin, share > 0.0f ? Sampler::mass(depth) : 1ull);
    }
    __syncthreads();
    if (round == 0 && share > 0.0f) {
      target = (u64)((double)share * (double)total_of(bins, shared_result));
      if (target == 0) {target = 1;}
    }
    u64 sum;
    const int bin = find_bin(bins, target - before, shared_result, &sum);
    before += sum;
    if (round == 0) {coarse = (u32)bin;} else {
      const u32 last = coarse * BINS + (u32)bin;
      sampler.last_kept = last < sampler.last_kept ? last : sampler.last_kept;
    }
  }
}

// 64 random bits for one (seed, position): splitmix64.
DEVICE u64 random_bits(u64 seed, u64 position)
{
  u64 z = seed + (position + 1) * 0x9E3779B97F4A7C15ull;
  for (int round = 0; round < 2; ++round) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z = z ^ (z >> 31);
  }
  return z;
}

// Draws one of the kept tokens; thread i holds tokens i, i + 1024, ... and comes i-th.
DEVICE int draw(const Sampler & sampler, u64 bits, u64 * bins, u64 * shared_result)
{
  u64 own = 0;
  for (int token = threadIdx.x; token < sampler.vocabulary; token += SAMPLE_THREADS) {
    const u32 depth = sampler.depth(token);
    if (depth <= sampler.last_kept) {own += Sampler::mass(depth);}
  }
  bins[threadIdx.x] = own;
  for (int i = SAMPLE_THREADS + threadIdx.x; i < BINS; i += SAMPLE_THREADS) {bins[i] = 0;}
  __syncthreads();
  const u64 total = total_of(bins, shared_result);
  const u64 at = __umul64hi(bits, total);         // uniform in [0, total)
  u64 before;
  const int owner = find_bin(bins, at + 1, shared_result, &before);
  if (threadIdx.x == 0) {
    u64 sum = before;
    int token = owner, last = owner;
    for (; token < sampler.vocabulary && sum <= at; token += SAMPLE_THREADS) {
      const u32 depth = sampler.depth(token);
      if (depth <= sampler.last_kept) {sum += Sampler::mass(depth); last = token;}
    }
    shared_result[0] = (u64)last;
  }
  __syncthreads();
  return (int)shared_result[0];
}

DEVICE void sample(const SampleArgs & args)
{
  SHARED_MEMORY(shared);
  u64 * const bins = (u64 *)shared;               // [BINS]
  u64 * const shared_result = bins + BINS;        // [2]
  float * const best = (float *)(shared_result + 2);
  const int row = blockIdx.x;
  if (row == 0) {
    for (int i = threadIdx.x; i < args.n_counters; i += SAMPLE_THREADS) {args.counters[i] = 0;}
  }
  const int slot = args.slot_of_row[row];
  if (slot < 0) {return;}
  int * const chosen = args.chosen + 2 * row + args.positions[slot] % 2;
  if (threadIdx.x < 32) {
    float value = MINUS_INFINITY;
    int index = 0x7FFFFFFF;
    for (int i = threadIdx.x; i < args.n_best; i += 32) {
      take_better(value, index, load_fresh(args.best_value + row * args.n_best + i),
        load_fresh(args.best_index + row * args.n_best + i));
    }
    warp_best(value, index);
    if (threadIdx.x == 0) {*best = value; shared_result[0] = (u64)index;}
  }
  __syncthreads();
  int token = (int)shared_result[0];
  if (token >= args.vocabulary || !(-*best > MINUS_INFINITY)) {
    if (threadIdx.x == 0) {*chosen = -1;}
    return;
  }
  const float temperature = args.temperature[slot];
  if (temperature > 0.0f) {
    __syncthreads();
    Sampler sampler = {args.logits + (u64)row * args.vocabulary, *best, 1.0f / temperature,
      args.vocabulary, 0xFFFFFFFEu};
    const int top_k = args.top_k[slot];
    const float top_p = args.top_p[slot];
    if (top_k > 0 && top_k < args.vocabulary) {
      keep_top(sampler, (u64)top_k, 0.0f, bins, shared_result);
    }
    if (top_p < 1.0f) {keep_top(sampler, 0, top_p > 0.0f ? top_p : 1e-30f, bins, shared_result);}
    const u64 bits = random_bits(args.seed[slot], (u64)args.positions[slot]);
    token = draw(sampler, bits, bins, shared_result);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    args.tokens[slot] = token;
    *chosen = token;
    args.lengths[slot] += 1;
    args.positions[slot] += 1;
  }
}
