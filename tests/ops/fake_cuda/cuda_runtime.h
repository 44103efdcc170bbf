// The little of CUDA that csrc/masked_pool_cuda.cu uses, on the CPU: ops/cuda_on_cpu.py compiles that file with this
// header in place of CUDA's own. Blocks run one after another, on one core. The threads of a block are fibres: each
// runs until it waits for the others or ends, so what one run finds the next one finds too.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <ucontext.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

using std::max;
using std::min;

struct uint3 {
  unsigned int x, y, z;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
struct dim3 {
  unsigned int x, y, z;
  dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorMisalignedAddress = 716 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
using cudaStream_t = void*;

#define CUDA_ON_CPU_EXPORT extern "C" __attribute__((visibility("default")))

// For the test to set, and to read: a line for each launch, with the kernel and its template arguments in it.
CUDA_ON_CPU_EXPORT int cuda_on_cpu_multiprocessors;
int cuda_on_cpu_multiprocessors = 1;

namespace cuda_on_cpu {

inline std::string launches;
inline cudaError_t error = cudaSuccess;

struct Fibre {
  ucontext_t context;
  const char* stack = nullptr;  // where it begins, and its size: AddressSanitizer is told of every change of stack
  size_t stack_size = 0;
  void* sanitizer = nullptr;
  std::unique_ptr<char[]> memory;
  uint3 thread;
  bool finished = false;
};

inline Fibre scheduler;
inline Fibre* running = nullptr;  // null outside of kernels
inline const std::function<void()>* body;

inline void switch_to(Fibre& from, Fibre& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from.finished ? nullptr : &from.sanitizer, to.stack, to.stack_size);
#endif
  swapcontext(&from.context, &to.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

inline void end_thread() {
  running->finished = true;
  switch_to(*running, scheduler);
}

inline void run_fibre() {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &scheduler.stack_size);
  scheduler.stack = static_cast<const char*>(stack);
#endif
  (*body)();
  end_thread();
}

// Every thread up to its first __syncthreads, then every thread from there on, and so forth; a thread that has ended
// is not waited for. Backwards, the last thread is the first one each time.
inline void run_block(dim3 threads, bool backwards, const std::function<void()>& kernel) {
  static std::vector<Fibre> fibres;
  const size_t count = static_cast<size_t>(threads.x) * threads.y * threads.z;
  if (fibres.size() < count) fibres.resize(count);
  body = &kernel;
  for (size_t i = 0; i < count; ++i) {
    Fibre& fibre = fibres[i];
    if (!fibre.memory) {
      fibre.stack_size = 1 << 16;
      fibre.memory = std::make_unique<char[]>(fibre.stack_size);
      fibre.stack = fibre.memory.get();
    }
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.memory.get();
    fibre.context.uc_stack.ss_size = fibre.stack_size;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, run_fibre, 0);
    const unsigned int number = static_cast<unsigned int>(i);
    fibre.thread = {number % threads.x, number / threads.x % threads.y, number / threads.x / threads.y};
    fibre.finished = false;
  }
  for (bool waiting = true; waiting;) {
    waiting = false;
    for (size_t i = 0; i < count; ++i) {
      Fibre& fibre = fibres[backwards ? count - 1 - i : i];
      if (fibre.finished) continue;
      running = &fibre;
      threadIdx = fibre.thread;
      switch_to(scheduler, fibre);
      running = nullptr;
      waiting = waiting || !fibre.finished;
    }
  }
}

// What kernel<<<grid, threads, shared, stream>>>(arguments ...) is rewritten to.
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
    const std::function<void()> thread = [&] { kernel(arguments...); };
    for (unsigned int block = 0; block < grid.x && !error; ++block) {
      blockIdx = {block, 0, 0};
      run_block(threads, block % 2 == 1, thread);  // two orders, neither of which may matter
    }
  }
};

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::switch_to(*cuda_on_cpu::running, cuda_on_cpu::scheduler); }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = cuda_on_cpu_multiprocessors;
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return std::exchange(cuda_on_cpu::error, cudaSuccess); }

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMisalignedAddress ? "misaligned address" : "invalid configuration argument";
}

CUDA_ON_CPU_EXPORT const char* cuda_on_cpu_launches() { return cuda_on_cpu::launches.c_str(); }
CUDA_ON_CPU_EXPORT void cuda_on_cpu_forget_launches() { cuda_on_cpu::launches.clear(); }

// -fsanitize=alignment looks at every access, and calls this before a misaligned one: a GPU goes no further either.
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void*) {
  if (!cuda_on_cpu::running) return;
  cuda_on_cpu::error = cudaErrorMisalignedAddress;
  cuda_on_cpu::end_thread();
}

// What torch has only where it has CUDA.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
extern "C" AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
