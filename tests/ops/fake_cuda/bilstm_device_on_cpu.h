// The functions of csrc/bilstm_cuda_device.h, which has them for GPUs, with the same meaning on the CPU.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda_runtime.h"

namespace esim_fast {

inline unsigned char* dynamic_shared() { return cuda_on_cpu::running->block->shared; }

// ---- Arithmetic

// Numbers of 16 bits, two in a word, or of 32 bits, of which TF32 ignores the last 13.
inline float bf16_in(uint32_t word, int i) { return c10::detail::f32_from_bits(static_cast<uint16_t>(word >> 16 * i)); }
inline float fp16_in(uint32_t word, int i) {
  return c10::detail::fp16_ieee_to_fp32_value(static_cast<uint16_t>(word >> 16 * i));
}
inline float tf32_in(uint32_t word, int) { return c10::detail::fp32_from_bits(word & ~0x1fffu); }

// With sums in double, rounded once.
template <int count, float (*number)(uint32_t, int)>
void mma(const char* instruction, float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t operands[10];
  std::memcpy(operands, a, sizeof(a));
  std::memcpy(operands + 4, b, sizeof(b));
  std::memcpy(operands + 6, acc, sizeof(acc));
  const uint32_t* results = cuda_on_cpu::collective(instruction, operands, [](cuda_on_cpu::Warp& warp) {
    double left[16][8 * count], right[8 * count][8], sum[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const uint32_t* given = warp.operands[lane];
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < count; ++i) {
        for (int j = 0; j < 4; ++j) left[g + j % 2 * 8][(t + j / 2 * 4) * count + i] = number(given[j], i);
        for (int j = 0; j < 2; ++j) right[(t + j * 4) * count + i][g] = number(given[4 + j], i);
      }
      for (int j = 0; j < 4; ++j) sum[g + j / 2 * 8][t * 2 + j % 2] = c10::detail::fp32_from_bits(given[6 + j]);
    }
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 8 * count; ++k) {
        for (int column = 0; column < 8; ++column) sum[row][column] += left[row][k] * right[k][column];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int j = 0; j < 4; ++j) {
        const double value = sum[lane / 4 + j / 2 * 8][lane % 4 * 2 + j % 2];
        warp.results[lane][j] = c10::detail::fp32_to_bits(static_cast<float>(value));
      }
    }
  });
  std::memcpy(acc, results, sizeof(acc));
}
inline void mma_bf16(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma<2, bf16_in>("mma_bf16", acc, a, b);
}
inline void mma_fp16(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma<2, fp16_in>("mma_fp16", acc, a, b);
}
inline void mma_tf32(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma<1, tf32_in>("mma_tf32", acc, a, b);
}

inline uint32_t pack_bf16(float low, float high) {
  const auto bits = [](float x) { return uint32_t{torch::headeronly::BFloat16(x).x}; };
  return bits(low) | bits(high) << 16;
}
inline uint32_t pack_fp16(float low, float high) {
  const auto bits = [](float x) { return uint32_t{torch::headeronly::Half(x).x}; };
  return bits(low) | bits(high) << 16;
}
inline float2 unpack_fp16(uint32_t pair) { return {fp16_in(pair, 0), fp16_in(pair, 1)}; }
inline uint32_t round_tf32(float x) { return (c10::detail::fp32_to_bits(x) + 0x1000) & ~0x1fffu; }

// Rounded, so that its relative error is as large as a GPU's may be: 2^-11.
inline float tanh_approx(float x) {
  int exponent;
  const float fraction = std::frexp(std::tanh(x), &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 11)), exponent - 11);
}

inline void forget(uint32_t&) {}

// ---- Threads of a block

inline uint32_t shuffle(uint32_t value, int lane) {
  const uint32_t operands[] = {value, static_cast<uint32_t>(lane)};
  return *cuda_on_cpu::collective("shuffle", operands, [](cuda_on_cpu::Warp& warp) {
    for (int i = 0; i < 32; ++i) warp.results[i][0] = warp.operands[warp.operands[i][1] % 32][0];
  });
}

inline int warp_of_thread() { return static_cast<int>(shuffle(threadIdx.x / 32, 0)); }

inline void named_barrier(int id, int threads) {
  if (id < 1 || id > 15 || threads % 32 != 0) cuda_on_cpu::stop("an impossible named barrier");
  cuda_on_cpu::meet(cuda_on_cpu::running->block->named[id], threads, 0, "named barrier", id);
}

// ---- Blocks that share global memory

inline void add_release(unsigned int* counter) {
  ++*counter;
  ++cuda_on_cpu::progress;
}

inline void wait_for_count(const unsigned int* counter, unsigned int count) {
  while (*counter < count) cuda_on_cpu::poll();
}

inline uint4 load_shared_by_blocks(const uint4* from) { return *from; }
inline float load_shared_by_blocks(const float* from) { return *from; }

// ---- Blocks of a cluster

inline void cluster_barrier() {
  cuda_on_cpu::Cluster& cluster = *cuda_on_cpu::running->block->cluster;
  cuda_on_cpu::meet(cluster.barrier, cluster.alive, 0, "cluster barrier");
}

inline void mbarrier_init(uint64_t* barrier) {
  cuda_on_cpu::running->block->mbarriers[cuda_on_cpu::place_of(barrier, 8)] = {.count = 1, .missing = 1};
}

inline void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {
  const size_t place = cuda_on_cpu::place_of(barrier, 8);
  cuda_on_cpu::MBarrier& its = cuda_on_cpu::mbarrier_at(*cuda_on_cpu::running->block, place);
  if (its.missing == 0) cuda_on_cpu::stop("more arrivals at an mbarrier than it counts");
  if (bytes >= 1 << 20) cuda_on_cpu::stop("more bytes than an mbarrier counts");
  its.bytes += bytes;
  --its.missing;
  its.completed();
}

inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  const size_t place = cuda_on_cpu::place_of(barrier, 8);
  const cuda_on_cpu::MBarrier& its = cuda_on_cpu::mbarrier_at(*cuda_on_cpu::running->block, place);
  cuda_on_cpu::wait_while(its.parity, parity, "mbarrier", place);
  __syncwarp();
}

inline void store_async(void* to, uint64_t* barrier, int rank, uint4 value) {
  const auto& blocks = cuda_on_cpu::running->block->cluster->blocks;
  if (rank < 0 || rank >= static_cast<int>(blocks.size())) cuda_on_cpu::stop("a block outside of the cluster");
  cuda_on_cpu::send({blocks[rank].get(), cuda_on_cpu::place_of(to, 16), cuda_on_cpu::place_of(barrier, 8), 16,
                     {value.x, value.y, value.z, value.w}});
}

}  // namespace esim_fast
