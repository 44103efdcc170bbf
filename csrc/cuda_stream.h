// The device and stream that torch wants CUDA kernels to run on.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

// Only a CUDA build of torch has this symbol. Weak linkage lets the library also load under a CPU-only torch, where the
// symbol is null and no CUDA tensor reaches this file.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace esim_fast {

struct CudaStream {
  torch::stable::accelerator::DeviceGuard guard;
  int device;
  cudaStream_t stream = nullptr;

  explicit CudaStream(const torch::stable::Tensor& x) : guard(x.get_device_index()), device(x.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "esim_fast: this torch has no CUDA support");
    void* current = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &current) == AOTI_TORCH_SUCCESS,
                    "esim_fast: torch returned no CUDA stream for device ", device);
    stream = static_cast<cudaStream_t>(current);
  }
  int multiprocessors() const {
    int count = 1;
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count;
  }
};

inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "esim_fast: ", name, " failed to launch: ", cudaGetErrorString(error));
}

}  // namespace esim_fast
