// The dense gradient of an embedding on the CPU: zero except in the rows of the batch's words.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "parallel.h"
#include "rows.h"

namespace esim_fast {
namespace {

constexpr int64_t kElementsPerTask = 1 << 18;

void embedding_backward_cpu(Tensor table, const Tensor& grad_x, const Tensor& tokens,
                            std::optional<int64_t> padding_idx) {
  STD_TORCH_CHECK(grad_x.dim() == 2 && grad_x.scalar_type() == ScalarType::Float && tokens.dim() == 1 &&
                      tokens.scalar_type() == ScalarType::Long && tokens.size(0) == grad_x.size(0) &&
                      table.dim() == 2 && table.scalar_type() == ScalarType::Float && table.is_contiguous() &&
                      table.size(1) == grad_x.size(1),
                  "esim_fast: embedding_backward needs a table [V, D] and grad_x [N, D] in float32, and int64 tokens [N]");
  const Tensor grad = torch::stable::contiguous(grad_x), ids = torch::stable::contiguous(tokens);
  const int64_t count = grad.size(0), width = grad.size(1), words = table.size(0);
  const float* const rows = grad.const_data_ptr<float>();
  const int64_t* const id = ids.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < count; ++n) {
    STD_TORCH_CHECK(0 <= id[n] && id[n] < words, "esim_fast: tokens[", n, "] = ", id[n], ", expected 0 to ", words - 1);
  }
  if (table.numel() == 0) return;  // its data pointer may be null
  float* const sums = table.mutable_data_ptr<float>();
  // Each word belongs to one task, which adds in token order, so results are bitwise equal for any number of threads.
  const int64_t words_per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(width, 1));
  parallel_for(0, words, words_per_task, [&](int64_t begin, int64_t end) {
    std::memset(sums + begin * width, 0, (end - begin) * width * sizeof(float));
    for (int64_t n = 0; n < count; ++n) {
      if (id[n] < begin || id[n] >= end || (padding_idx && id[n] == *padding_idx)) continue;
      float* to = sums + id[n] * width;
      const float* from = rows + n * width;
      for (int64_t j = 0; j < width; ++j) to[j] += from[j];
    }
  });
}

}  // namespace
}  // namespace esim_fast

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CPU, m) {
  m.impl("embedding_backward", TORCH_BOX(&esim_fast::embedding_backward_cpu));
}
