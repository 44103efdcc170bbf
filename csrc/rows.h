// Where the tokens of a batch lie, and which of them count. One rule covers padded, concatenated and packed layouts:
// the D values of token t of sequence b begin at element offset(b, t) = start[b] + step[t].
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <type_traits>

#if defined(__CUDACC__)
#define ESIM_HOST_DEVICE __host__ __device__
#else
#define ESIM_HOST_DEVICE
#endif

namespace esim_fast {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sums and averages use fp32, or fp64 for fp64 input.
template <typename scalar_t>
using accumulate_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

struct Offsets {
  const int64_t* start;  // [B], or null: b * batch_stride
  const int64_t* step;   // [T], or null: t * time_stride
  int64_t batch_stride;
  int64_t time_stride;

  ESIM_HOST_DEVICE int64_t begin(int64_t b) const { return start ? start[b] : b * batch_stride; }
  ESIM_HOST_DEVICE int64_t advance(int64_t t) const { return step ? step[t] : t * time_stride; }
  ESIM_HOST_DEVICE int64_t operator()(int64_t b, int64_t t) const { return begin(b) + advance(t); }
};

struct Tokens {
  const int64_t* lengths;  // [B], or null: every sequence has max_length tokens
  const uint8_t* mask;     // boolean [B, max_length], or null: every token below the length counts
  int64_t mask_batch_stride;
  int64_t mask_time_stride;
  int64_t max_length;

  // Lengths on a GPU are not read back to be checked, so they are clamped to prevent reads out of bounds.
  ESIM_HOST_DEVICE int64_t length(int64_t b) const {
    if (!lengths) return max_length;
    const int64_t n = lengths[b];
    return n < 0 ? 0 : (n > max_length ? max_length : n);
  }
  ESIM_HOST_DEVICE bool unmasked(int64_t b, int64_t t) const {
    // As bytes, because a C++ bool must be 0 or 1, while a tensor viewed as bool may hold any byte.
    return !mask || mask[b * mask_batch_stride + t * mask_time_stride] != 0;
  }
};

// The batch as operators see it: x is [B, L, D] (padded) or, with start and step, [N, D] (row-addressed).
struct Layout {
  int64_t batch;
  int64_t width;  // D
  Offsets offsets;
  Tokens tokens;
};

inline Tensor contiguous_columns(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.stride(last) == 1 || x.size(last) <= 1 ? x : torch::stable::contiguous(x);
}

inline void check_vector(const std::optional<Tensor>& vector, const char* name, const Tensor& x) {
  if (!vector) return;
  STD_TORCH_CHECK(vector->dim() == 1 && vector->scalar_type() == ScalarType::Long && vector->is_contiguous() &&
                      vector->device() == x.device(),
                  "esim_fast: ", name, " must be a contiguous one-dimensional int64 tensor on the device of x");
}

// Operators can be called directly and inside compiled graphs, which bypasses the Python checks, so everything that
// could crash is checked here again.
inline Layout make_layout(const Tensor& x, int64_t batch_stride, int64_t time_stride, int64_t padded_batch,
                          int64_t padded_length, int64_t width, const std::optional<Tensor>& start,
                          const std::optional<Tensor>& step, const std::optional<Tensor>& lengths,
                          const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(start.has_value() == step.has_value(), "esim_fast: start and step must be given together");
  check_vector(start, "start", x);
  check_vector(step, "step", x);
  check_vector(lengths, "lengths", x);
  STD_TORCH_CHECK(!start || lengths, "esim_fast: row-addressed input needs lengths");

  const int64_t batch = start ? start->size(0) : padded_batch;
  const int64_t length = step ? step->size(0) : padded_length;
  // Results are up to four times as wide.
  STD_TORCH_CHECK(width <= INT64_MAX / 64, "esim_fast: rows of ", width, " elements are wider than supported");
  // Time steps and counts are 32-bit.
  STD_TORCH_CHECK(length < INT32_MAX - 1024, "esim_fast: sentences of ", length, " tokens are longer than supported");
  STD_TORCH_CHECK(!lengths || lengths->size(0) == batch, "esim_fast: lengths must have one entry for each of the ",
                  batch, " sequences, got ", lengths ? lengths->size(0) : 0);
  if (mask) {
    STD_TORCH_CHECK(mask->dim() == 2 && mask->scalar_type() == ScalarType::Bool && mask->device() == x.device() &&
                        mask->size(0) == batch && mask->size(1) == length,
                    "esim_fast: mask must be a boolean tensor [", batch, ", ", length, "] on the device of x");
  }
  return Layout{
      batch,
      width,
      Offsets{start ? start->const_data_ptr<int64_t>() : nullptr, step ? step->const_data_ptr<int64_t>() : nullptr,
              batch_stride, time_stride},
      Tokens{lengths ? lengths->const_data_ptr<int64_t>() : nullptr,
             mask ? static_cast<const uint8_t*>(mask->const_data_ptr()) : nullptr, mask ? mask->stride(0) : 0,
             mask ? mask->stride(1) : 0, length},
  };
}

// Checks lengths and addresses on the CPU before anything is read or written through them.
inline void check_addresses(const Layout& layout, int64_t elements) {
  for (int64_t b = 0; b < layout.batch; ++b) {
    const int64_t length = layout.tokens.lengths ? layout.tokens.lengths[b] : layout.tokens.max_length;
    STD_TORCH_CHECK(0 <= length && length <= layout.tokens.max_length, "esim_fast: lengths[", b, "] = ", length,
                    ", expected 0 to ", layout.tokens.max_length);
    if (!layout.offsets.start) continue;
    for (int64_t t = 0; t < length; ++t) {
      int64_t offset = 0;
      const bool overflow = __builtin_add_overflow(layout.offsets.start[b], layout.offsets.step[t], &offset);
      STD_TORCH_CHECK(!overflow && 0 <= offset && offset <= elements - layout.width, "esim_fast: start[", b,
                      "] + step[", t, "] is outside x, which has ", elements, " elements");
    }
  }
}

// Calls f with a zero of the C++ type that corresponds to `type`.
template <typename F>
void dispatch_floating(ScalarType type, const char* name, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, "esim_fast: ", name, " needs float16, bfloat16, float32 or float64, got ",
                      torch::headeronly::toString(type));
  }
}

}  // namespace esim_fast
