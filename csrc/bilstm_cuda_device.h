// Instructions that CUDA C++ has no names for, as the persistent BiLSTM uses them. The tests give these functions the
// same meaning on the CPU.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <cstdint>

namespace esim_fast {

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char shared[];
  return shared;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A wait that never ends would hang the GPU. A build with NVCC_APPEND_FLAGS=-DESIM_FAST_DEBUG ends it with an error
// after 2^28 polls.
__device__ __forceinline__ void count_poll([[maybe_unused]] uint32_t& polls) {
#if defined(ESIM_FAST_DEBUG)
  if (++polls == 1u << 28) __trap();
#endif
}

// ---- Arithmetic

// acc [16, 8] += a [16, 8 words] * b [8 words, 8], by all threads of a warp. With g = lane / 4 and t = lane % 4, a
// thread has rows g and g + 8 of columns 2t and 2t + 1 of acc, words t and t + 4 of these rows of a, and words t and
// t + 4 of column g of b.
#define ESIM_MMA(name, shape_and_types)                                                                            \
  __device__ __forceinline__ void name(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {          \
    asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])                                                   \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                       \
  }
ESIM_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
ESIM_MMA(mma_fp16, "m16n8k16.row.col.f32.f16.f16.f32")
ESIM_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef ESIM_MMA

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ uint32_t pack_fp16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ float2 unpack_fp16(uint32_t pair) {
  float2 value;
  asm("{\n.reg .f16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
      : "=f"(value.x), "=f"(value.y)
      : "r"(pair));
  return value;
}

// The bits of x rounded to TF32, the nearest, ties away from zero.
__device__ __forceinline__ uint32_t round_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// With a relative error of at most 2^-11.
__device__ __forceinline__ float tanh_approx(float x) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Hides from the compiler that a word is the same in every step, so that it does not keep what it computes from it.
__device__ __forceinline__ void forget(uint32_t& word) { asm volatile("" : "+r"(word)); }

// ---- Threads of a block

// The value of another lane. All lanes of the warp call it.
__device__ __forceinline__ uint32_t shuffle(uint32_t value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// The warp's number in its block, by a shuffle: so the compiler knows that it is the same in all lanes, and keeps what
// follows from it in registers of the warp.
__device__ __forceinline__ int warp_of_thread() { return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); }

// Waits for `threads` threads in all, which are whole warps. id: 1 to 15; 0 belongs to __syncthreads.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Blocks that share global memory

// Adds one, after everything that this thread has seen before: with a __syncthreads before it, what its block wrote.
__device__ __forceinline__ void add_release(unsigned int* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(counter)) : "memory");
}

__device__ __forceinline__ void wait_for_count(const unsigned int* counter, unsigned int count) {
  unsigned int value;
  uint32_t polls = 0;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(value)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
    count_poll(polls);
  } while (value < count);
}

// From the L2 cache, because L1 may have an older value.
__device__ __forceinline__ uint4 load_shared_by_blocks(const uint4* from) { return __ldcg(from); }
__device__ __forceinline__ float load_shared_by_blocks(const float* from) { return __ldcg(from); }

// ---- Blocks of a cluster, from compute capability 9.0

__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Each phase ends after one arrival and all the bytes that it expects.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(
                   shared_address(barrier))
               : "memory");
}

// The arrival. Bytes may already have come.
__device__ __forceinline__ void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Waits for the end of the phase with this parity. A thread that is late by two phases would wait for the next one.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done, polls = 0;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    count_poll(polls);
  } while (!done);
  __syncwarp();
}

// Writes 16 bytes to where block `rank` of the cluster has `to`, and counts them at its `barrier`.
__device__ __forceinline__ void store_async(void* to, uint64_t* barrier, int rank, uint4 value) {
  uint32_t there, its_barrier;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(its_barrier) : "r"(shared_address(barrier)), "r"(rank));
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(its_barrier)
      : "memory");
}

}  // namespace esim_fast
#else
#include "bilstm_device_on_cpu.h"
#endif
