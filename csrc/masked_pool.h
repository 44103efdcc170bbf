// Code shared by the CPU and CUDA kernels of average and max pooling (equations 18-20).
#pragma once

#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "rows.h"

namespace esim_fast {

struct PoolOutputs {
  Tensor v;       // [B, 2D]: averages, then maxima
  Tensor argmax;  // [B, D] int32: time step of the first maximum, -1 for an empty sequence
  Tensor count;   // [B] int32: number of pooled tokens
};

inline PoolOutputs allocate_outputs(const Tensor& x, const Layout& layout) {
  return {torch::stable::new_empty(x, {layout.batch, 2 * layout.width}),
          torch::stable::new_empty(x, {layout.batch, layout.width}, ScalarType::Int),
          torch::stable::new_empty(x, {layout.batch}, ScalarType::Int)};
}

// Offsets refer to a contiguous tensor, so row-addressed input is made contiguous; padded input keeps its strides.
inline std::pair<Tensor, Layout> forward_layout(const Tensor& input, const std::optional<Tensor>& start,
                                                const std::optional<Tensor>& step,
                                                const std::optional<Tensor>& lengths,
                                                const std::optional<Tensor>& mask) {
  if (start) {
    STD_TORCH_CHECK(input.dim() == 2, "esim_fast: row-addressed input must be [N, D], got ", input.dim(),
                    " dimensions");
    Tensor x = torch::stable::contiguous(input);
    return {x, make_layout(x, 0, 0, 0, 0, x.size(1), start, step, lengths, mask)};
  }
  STD_TORCH_CHECK(input.dim() == 3, "esim_fast: padded input must be [B, L, D], got ", input.dim(), " dimensions");
  Tensor x = contiguous_columns(input);
  return {x, make_layout(x, x.stride(0), x.stride(1), x.size(0), x.size(1), x.size(2), start, step, lengths, mask)};
}

struct PoolGradient {
  Tensor grad_v;   // [B, 2D], contiguous
  Tensor argmax;   // [B, D], contiguous
  Tensor count;    // [B], contiguous
  Tensor grad_x;   // contiguous [B, L, D], or [N, D] initialized with zeros unless the kernel writes every row
  Layout layout;   // of grad_x
};

// `rows` is L of a padded input or N of a row-addressed one. `written` is whether the kernel also writes the rows of a
// row-addressed one that no sequence addresses.
inline PoolGradient allocate_gradient(const Tensor& grad_v, const Tensor& argmax, const Tensor& count,
                                      const std::optional<Tensor>& start, const std::optional<Tensor>& step,
                                      const std::optional<Tensor>& lengths, const std::optional<Tensor>& mask,
                                      int64_t rows, bool written = false) {
  STD_TORCH_CHECK(grad_v.dim() == 2 && argmax.dim() == 2 && count.dim() == 1 && rows >= 0 &&
                      grad_v.size(1) % 2 == 0 && grad_v.size(1) / 2 == argmax.size(1) &&
                      grad_v.size(0) == argmax.size(0) && count.size(0) == argmax.size(0) &&
                      argmax.scalar_type() == ScalarType::Int && count.scalar_type() == ScalarType::Int &&
                      argmax.device() == grad_v.device() && count.device() == grad_v.device(),
                  "esim_fast: masked_pool_backward needs grad_v [B, 2D], argmax [B, D] and count [B]");
  const int64_t batch = argmax.size(0), width = argmax.size(1);
  Tensor grad_x = !start    ? torch::stable::new_empty(grad_v, {batch, rows, width})
                  : written ? torch::stable::new_empty(grad_v, {rows, width})
                            : torch::stable::new_zeros(grad_v, {rows, width});
  Layout layout = make_layout(grad_x, rows * width, width, batch, rows, width, start, step, lengths, mask);
  STD_TORCH_CHECK(layout.batch == batch, "esim_fast: start must have ", batch, " entries, got ", layout.batch);
  return {torch::stable::contiguous(grad_v), torch::stable::contiguous(argmax), torch::stable::contiguous(count),
          grad_x, layout};
}

}  // namespace esim_fast
