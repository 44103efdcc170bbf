// Compiled once into each library that ops/cuda_on_cpu.py builds: what the tests set and read, and functions that torch
// and the compiler expect.
#include "cuda_runtime.h"

#define CUDA_ON_CPU_EXPORT extern "C" __attribute__((visibility("default")))

CUDA_ON_CPU_EXPORT int cuda_on_cpu_multiprocessors, cuda_on_cpu_capability, cuda_on_cpu_policy, cuda_on_cpu_seed;
int cuda_on_cpu_multiprocessors = 1, cuda_on_cpu_capability = 90, cuda_on_cpu_policy = 0, cuda_on_cpu_seed = 0;

CUDA_ON_CPU_EXPORT const char* cuda_on_cpu_launches() { return cuda_on_cpu::launches.c_str(); }
CUDA_ON_CPU_EXPORT void cuda_on_cpu_forget_launches() { cuda_on_cpu::launches.clear(); }

// -fsanitize=alignment looks at every access, and calls this before a misaligned one: a GPU goes no further either.
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void*) {
  if (!cuda_on_cpu::running) return;
  cuda_on_cpu::error = cudaErrorMisalignedAddress;
  cuda_on_cpu::stop("misaligned address");
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
