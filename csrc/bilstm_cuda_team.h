// What the forward and backward kernels of the persistent BiLSTM have in common.
//
// A team of blocks takes one direction of a group of sentences through all of their time steps. Each block keeps the
// weights of its own units on chip. The blocks of a team exchange something in each step: states forward, gradients of
// states backward. Teams never wait for each other.
//
// A team is a cluster (from compute capability 9.0), whose blocks write into each other's shared memory, or a part of a
// cooperative launch (from 8.0), whose blocks exchange through global memory.
#pragma once

#include "bilstm_cuda.h"
#include "bilstm_cuda_arithmetic.h"

namespace esim_fast {

constexpr int kUnitsOfGroup = 8;  // units come in groups of half a tile of mma
constexpr int kTile = 8;          // sentences of a tile
constexpr int kFragmentBytes = 512;  // of a tile [16, 8 words] of weights
constexpr int kMostShared = 232448;  // bytes that a block can have, on any GPU

// The architecture that device code is compiled for. Kernels of others are left empty.
#if defined(__CUDA_ARCH__)
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 0;  // the tests on the CPU compile everything
#endif
template <bool kCluster, bool kWide>
constexpr bool kCompiled = kArchitecture == 0 || (kCluster ? kArchitecture >= 900
                                                           // A wide layer needs more blocks than clusters always have.
                                                           : kArchitecture >= 800 && (kWide || kArchitecture < 900));

__device__ __forceinline__ int clamp(int64_t value, int largest) {
  return static_cast<int>(value < 0 ? 0 : value > largest ? largest : value);
}

struct Step {
  int begin;      // its first row
  int sentences;  // that reach it; not positive if none does
};

// Numbers in device memory are not checked by the host, so they are clamped: no address lies outside of the tensors.
struct Batch {
  const int64_t* first_row;
  int rows, steps;

  __device__ explicit Batch(const Recurrence& a)
      : first_row(a.first_row), rows(a.rows), steps(a.steps) {}

  __device__ __forceinline__ Step step(int t) const {
    if (t < 0 || t >= steps) return {0, 0};
    const int begin = clamp(first_row[t], rows);
    return {begin, clamp(first_row[t + 1], rows) - begin};
  }
  // How many time steps a sentence has. All threads of the block call it.
  __device__ int length(int sentence) const {
    int length = 0;
    for (int t = 0; t < steps; t += static_cast<int>(blockDim.x)) {
      length += __syncthreads_count(step(t + static_cast<int>(threadIdx.x)).sentences > sentence);
    }
    return length;
  }
  // Rows after the batch become zero in a tensor of `row_bytes` per row, a multiple of 4. All blocks share the work.
  __device__ void clear_rest(void* tensor, int row_bytes) const {
    uint32_t* const words = static_cast<uint32_t*>(tensor);
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    const int64_t filled = clamp(first_row[steps], rows);
    const int64_t begin = filled * row_bytes / 4 + static_cast<int64_t>(blockIdx.x) * blockDim.x;
#pragma unroll 1
    for (int64_t i = begin + threadIdx.x; i < static_cast<int64_t>(rows) * row_bytes / 4; i += stride) words[i] = 0;
  }
};

// A warp's tiles [16, 8 words] of weights: the first ones of each row in registers, the others in shared memory. Rows
// and depths are constants where loops are unrolled, as registers need it.
template <int kRows, int kDepth, int kInRegisters>
class Weights {
 public:
  static constexpr int kSharedBytes = kRows * (kDepth - kInRegisters) * kFragmentBytes;  // of a warp

  __device__ Weights(unsigned char* shared, int warp, int lane)
      : others_(reinterpret_cast<uint4*>(shared + warp * kSharedBytes) + lane) {}

  __device__ __forceinline__ void set(int row, int k, const uint32_t (&fragment)[4]) {
    if (k < kInRegisters) {
#pragma unroll
      for (int j = 0; j < 4; ++j) registers_[row][k < kInRegisters ? k : 0][j] = fragment[j];
    } else {
      others_[place(row, k)] = {fragment[0], fragment[1], fragment[2], fragment[3]};
    }
  }
  __device__ __forceinline__ void get(int row, int k, uint32_t (&fragment)[4]) const {
    if (k < kInRegisters) {
#pragma unroll
      for (int j = 0; j < 4; ++j) fragment[j] = registers_[row][k < kInRegisters ? k : 0][j];
    } else {
      const uint4 from = others_[place(row, k)];
      fragment[0] = from.x, fragment[1] = from.y, fragment[2] = from.z, fragment[3] = from.w;
    }
  }

 private:
  static __device__ __forceinline__ int place(int row, int k) {
    return (row * (kDepth - kInRegisters) + k - kInRegisters) * 32;
  }

  uint32_t registers_[kRows][kInRegisters][4];
  uint4* others_;
};

// How the blocks of a team wait for each other. What a step exchanges goes into one of two buffers, the one of its
// parity, so that a step can be written while the one before is read.
template <bool kCluster>
class Signals {
 public:
  __device__ Signals(const Recurrence& a, int team, uint64_t* barriers)
      : barriers_(barriers), counter_(kCluster ? nullptr : a.counter + team), blocks_(a.blocks) {
    if constexpr (kCluster) {
      if (threadIdx.x < 2) mbarrier_init(&barriers_[threadIdx.x]);
    }
  }

  // The whole team. Before a group of sentences: its blocks run, and none reads states of the group before.
  __device__ void meet() {
    if constexpr (kCluster) {
      cluster_barrier();
    } else {
      arrive();
      wait(0, true);
    }
  }

  // At the beginning of a step, by the block: the bytes that it will get in this step. It waits for them in the next.
  __device__ __forceinline__ void expect([[maybe_unused]] int next, [[maybe_unused]] uint32_t bytes) {
    if constexpr (kCluster) {
      if (threadIdx.x == 0) mbarrier_expect(barrier(next), bytes);
    }
  }

  // At the end of a step, by the block: it has written everything.
  __device__ __forceinline__ void arrive() {
    if constexpr (!kCluster) {
      __syncthreads();
      if (threadIdx.x == 0) add_release(counter_);
      awaited_ += blocks_;
    }
  }

  // At the beginning of step n, by the block: everything that step n - 1 sent has come. Warps that do not read it must
  // not wait for it in a cluster, because nobody waits for them: they could be late by two steps.
  __device__ __forceinline__ void wait(int n, bool reads) {
    if constexpr (kCluster) {
      if (reads) mbarrier_wait(barrier(n), phases_ >> (n & 1) & 1);
      phases_ ^= 1u << (n & 1);
    } else {
      if (threadIdx.x == 0) wait_for_count(counter_, awaited_);
      __syncthreads();
    }
  }

  __device__ __forceinline__ uint64_t* barrier(int n) const { return &barriers_[n & 1]; }

 private:
  uint64_t* barriers_;  // in shared memory
  unsigned int* counter_;
  int blocks_;
  unsigned int awaited_ = 0;
  uint32_t phases_ = 0;  // a bit for each barrier: the parity of its next phase
};

}  // namespace esim_fast
