#pragma once

#include <torch/csrc/stable/ops.h>

#include <exception>
#include <mutex>

namespace esim_fast {

// As torch::stable::parallel_for, but an exception in f reaches the caller. LibTorch's stable ABI would report only that
// the call failed, so nobody could see that memory ran out.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  std::exception_ptr failure;
  std::mutex mutex;
  torch::stable::parallel_for(begin, end, grain_size, [&](int64_t first, int64_t last) {
    try {
      f(first, last);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace esim_fast
