// The little of CUDA that csrc/*_cuda*.cu use, on the CPU: ops/cuda_on_cpu.py compiles these files with this header in
// place of CUDA's own. Kernels run on one core (scheduler.h), so what one run finds the next one finds too.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <climits>
#include <cmath>
#include <tuple>
#include <utility>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // for launches that run one block at a time; dynamic shared memory belongs to its block

using std::max;
using std::min;

struct alignas(8) uint2 {
  unsigned int x, y;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned int x, y, z;
  dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorMisalignedAddress = 716,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrClusterLaunch = 120,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14,
};
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4 };
using cudaStream_t = void*;

struct cudaLaunchAttributeValue {
  int cooperative;
  struct {
    unsigned int x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned int numAttrs = 0;
};

// For the test to set: the GPU, and how the adversary (scheduler.h) schedules the next launches.
extern "C" int cuda_on_cpu_multiprocessors, cuda_on_cpu_capability, cuda_on_cpu_policy, cuda_on_cpu_seed;

namespace cuda_on_cpu {

inline std::string launches;  // a line for each, with the kernel and its template arguments in it
inline cudaError_t error = cudaSuccess;
inline std::map<const void*, size_t> dynamic_shared;  // that kernels were allowed
inline std::map<const void*, bool> large_clusters;     // of more than 8 blocks

inline int shared_limit() {
  const int capability = cuda_on_cpu_capability;
  return capability == 80 ? 163 * 1024 : capability == 90 || capability == 100 ? 227 * 1024 : 99 * 1024;
}

// What kernel<<<grid, threads, shared, stream>>>(arguments ...) is rewritten to: one block after another, every other
// one backwards.
template <auto kernel>
struct Launch {
  dim3 grid, threads;
  size_t shared;
  cudaStream_t stream;

  template <typename... Arguments>
  void operator()(Arguments... arguments) const {
    launches += __PRETTY_FUNCTION__;
    launches += '\n';
    const size_t count = static_cast<size_t>(threads.x) * threads.y * threads.z;
    if (count == 0 || count > 1024 || grid.x == 0 || grid.y != 1 || grid.z != 1) {
      error = cudaErrorInvalidConfiguration;
      return;
    }
    run({grid.x, 1, 1, {threads.x, threads.y, threads.z}, shared}, kInOrder, 0, [&] { kernel(arguments...); });
    if (!failure.empty() && !error) error = cudaErrorLaunchFailure;
  }
};

// How blocks of this launch live together: clusters of how many blocks, and how many clusters at the same time. A
// multiprocessor takes one block.
struct Together {
  unsigned int cluster = 1;
  bool cooperative = false;

  explicit Together(const cudaLaunchConfig_t& config) {
    for (unsigned int i = 0; i < config.numAttrs; ++i) {
      const cudaLaunchAttribute& attribute = config.attrs[i];
      if (attribute.id == cudaLaunchAttributeCooperative) cooperative = attribute.val.cooperative != 0;
      if (attribute.id == cudaLaunchAttributeClusterDimension) cluster = attribute.val.clusterDim.x;
    }
  }
  unsigned int resident() const {
    return static_cast<unsigned int>(std::max(cuda_on_cpu_multiprocessors, 0)) / cluster;
  }
};

inline cudaError_t problem(const cudaLaunchConfig_t& config, const void* kernel) {
  const Together together(config);
  const dim3 &grid = config.gridDim, &threads = config.blockDim;
  if (grid.x == 0 || grid.y != 1 || grid.z != 1 || grid.x % together.cluster != 0) return cudaErrorInvalidConfiguration;
  if (threads.x == 0 || threads.x > 1024 || threads.y != 1 || threads.z != 1) return cudaErrorInvalidConfiguration;
  if (together.cluster > 1 && cuda_on_cpu_capability < 90) return cudaErrorInvalidConfiguration;
  if (together.cluster > 8 && !large_clusters[kernel]) return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > std::max<size_t>(48 * 1024, dynamic_shared[kernel])) return cudaErrorInvalidValue;
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  using namespace cuda_on_cpu;
  const Together together(*config);
  if (error = problem(*config, reinterpret_cast<const void*>(kernel)); error) return error;
  if (together.cooperative && config->gridDim.x > together.resident() * together.cluster) {
    return error = cudaErrorCooperativeLaunchTooLarge;
  }
  if (together.resident() == 0) return error = cudaErrorLaunchFailure;  // a GPU would wait for ever
  launches += std::to_string(config->gridDim.x) + " blocks" + (together.cooperative ? " together" : "") +
              " in clusters of " + std::to_string(together.cluster) + '\n';
  const dim3& threads = config->blockDim;
  run({config->gridDim.x, together.cluster, together.resident(), {threads.x, 1, 1}, config->dynamicSmemBytes},
      static_cast<Policy>(cuda_on_cpu_policy), static_cast<unsigned int>(cuda_on_cpu_seed),
      [&] { kernel(arguments...); });
  if (!failure.empty() && !error) error = cudaErrorLaunchFailure;
  return error;
}

struct cudaFuncAttributes {
  int ptxVersion;
};

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  *attributes = {cuda_on_cpu_capability};
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute attribute, int value) {
  const void* const key = reinterpret_cast<const void*>(kernel);
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    cuda_on_cpu::large_clusters[key] = value != 0;
  } else if (value > cuda_on_cpu::shared_limit()) {
    return cuda_on_cpu::error = cudaErrorInvalidValue;
  } else {
    cuda_on_cpu::dynamic_shared[key] = value;
  }
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel kernel, const cudaLaunchConfig_t* config) {
  *clusters = 0;
  const cudaError_t found = cuda_on_cpu::problem(*config, reinterpret_cast<const void*>(kernel));
  if (found) return cuda_on_cpu::error = found;
  *clusters = static_cast<int>(cuda_on_cpu::Together(*config).resident());
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t shared) {
  *blocks = shared <= size_t(cuda_on_cpu::shared_limit());
  return cudaSuccess;
}

inline void __syncthreads() {
  cuda_on_cpu::Block& block = *cuda_on_cpu::running->block;
  cuda_on_cpu::meet(block.all, block.alive, 0, "__syncthreads");
}
inline int __syncthreads_count(int predicate) {
  cuda_on_cpu::Block& block = *cuda_on_cpu::running->block;
  return cuda_on_cpu::meet(block.all, block.alive, predicate != 0, "__syncthreads");
}
inline void __syncwarp() {
  cuda_on_cpu::collective("__syncwarp", {0}, [](cuda_on_cpu::Warp&) {});
}

// Like the compiler's --use_fast_math.
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = cuda_on_cpu_multiprocessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = cuda_on_cpu_capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = cuda_on_cpu_capability % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = cuda_on_cpu::shared_limit();
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrClusterLaunch:
      *value = cuda_on_cpu_capability >= 90;
      break;
  }
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return std::exchange(cuda_on_cpu::error, cudaSuccess); }

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMisalignedAddress:
      return "misaligned address";
    case cudaErrorLaunchFailure:
      return cuda_on_cpu::failure.c_str();
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    default:
      return "invalid configuration argument";
  }
}
