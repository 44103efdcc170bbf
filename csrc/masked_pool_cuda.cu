// Masked average and max pooling on NVIDIA GPUs: x is read once, in 16-byte loads, with several rows in flight per
// warp. Every output has one writer and there are no atomics, so results are bitwise reproducible.
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cuda_stream.h"
#include "masked_pool.h"

namespace esim_fast {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;          // per thread block
constexpr int kRows = 8;           // rows that a thread has in flight in the forward pass
constexpr int kGradientRows = 64;  // rows that a warp writes in the backward pass

template <typename scalar_t, int kVector>
struct alignas(sizeof(scalar_t) * kVector) Vector {
  scalar_t value[kVector];
};

// Inline assembly, because the compiler splits 16-byte stores (though not loads) into smaller ones.
template <typename vector_t>
__device__ void store(void* to, const vector_t& from) {
  if constexpr (sizeof(vector_t) == 16) {
    uint4 bits;
    memcpy(&bits, &from, 16);
#if defined(__CUDA_ARCH__)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(bits.x),
                 "r"(bits.y), "r"(bits.z), "r"(bits.w)
                 : "memory");
#else
    *static_cast<uint4*>(to) = bits;  // for the tests, which run this file on the CPU
#endif
  } else {
    *static_cast<vector_t*>(to) = from;
  }
}

// Value j of a vector in the dtype of sums. Unpacking 16-bit values in pairs takes one instruction each instead of
// three.
template <typename scalar_t, int kVector>
__device__ accumulate_t<scalar_t> widened(const Vector<scalar_t, kVector>& from, int j) {
  if constexpr (sizeof(scalar_t) == 2 && kVector % 2 == 0) {
    uint32_t pair;
    memcpy(&pair, from.value + j / 2 * 2, sizeof(pair));
    if constexpr (std::is_same_v<scalar_t, BFloat16>) {
      pair = j % 2 ? pair & 0xffff0000u : pair << 16;  // the upper half of an fp32 number
      float value;
      memcpy(&value, &pair, sizeof(value));
      return value;
    } else {
      const auto bits = static_cast<uint16_t>(j % 2 ? pair >> 16 : pair);
      return static_cast<float>(Half(bits, Half::from_bits()));
    }
  } else {
    return static_cast<accumulate_t<scalar_t>>(from.value[j]);
  }
}

// As in torch.max, NaN beats everything, then the larger value wins, then the earlier token. Branch-free, because each
// branch would wait for the previous one.
template <typename acc_t>
__device__ bool better(acc_t value, int t, acc_t other, int other_t) {
  const bool nan = value != value, other_nan = other != other;
  const bool ahead = nan ? !other_nan : value > other;
  const bool equal = nan ? other_nan : value == other;
  return ahead | (equal & (t < other_t));
}

// A thread pools kVector neighboring columns of one sequence. Threads are numbered across sequences, so that no width
// leaves threads idle. With kSplit > 1, for few but long sequences, that many warps of the block share a sequence's
// tokens and combine their results in shared memory.
template <typename scalar_t, int kVector, int kSplit>
__global__ void __launch_bounds__(kLanes* kWarps, kVector == 8 ? 3 : 4)  // blocks that fit into the registers
    pool_kernel(const scalar_t* __restrict__ x, Layout layout, int64_t vectors, scalar_t* __restrict__ v,
                int32_t* __restrict__ argmax_out, int32_t* __restrict__ count_out) {
  using acc_t = accumulate_t<scalar_t>;
  using vector_t = Vector<scalar_t, kVector>;
  constexpr int kUnits = kWarps / kSplit;  // groups of warps in one thread block

  const int lane = threadIdx.x, warp = threadIdx.y;
  const int part = warp % kSplit;
  const int64_t place = (static_cast<int64_t>(blockIdx.x) * kUnits + warp / kSplit) * kLanes + lane;
  const int64_t b = place / vectors;
  const int64_t column = place % vectors * kVector;
  const bool active = b < layout.batch;

  acc_t total[kVector], maximum[kVector];
  int argmax[kVector];
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    total[j] = 0;
    maximum[j] = -INFINITY;
    argmax[j] = INT_MAX;
  }
  int count = 0;

  const int length = active ? static_cast<int>(layout.tokens.length(b)) : 0;
  const scalar_t* sequence = active ? x + layout.offsets.begin(b) + column : x;

  for (int first = part; first < length; first += kRows * kSplit) {
    // Find out which rows count, one bit each, before loading any, so that no load waits for another.
    unsigned int take = (1u << min((length - 1 - first) / kSplit + 1, kRows)) - 1;
    if (layout.tokens.mask) {
      unsigned int unmasked = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        unmasked |= layout.tokens.unmasked(b, min(first + i * kSplit, length - 1)) ? 1u << i : 0;
      }
      take &= unmasked;
    }
    vector_t row[kRows] = {};  // zeros for rows that do not count
    const scalar_t* strided = sequence + first * layout.offsets.time_stride;
#pragma unroll
    for (int i = 0; i < kRows; ++i, strided += kSplit * layout.offsets.time_stride) {
      if (!(take >> i & 1)) continue;
      ++count;
      const scalar_t* from = layout.offsets.step ? sequence + layout.offsets.step[first + i * kSplit] : strided;
      row[i] = *reinterpret_cast<const vector_t*>(from);
    }
    acc_t partial[kVector] = {};  // separate sums make rounding grow with the number of groups instead of rows
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool counts = take >> i & 1;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const acc_t value = widened(row[i], j);
        partial[j] += value;
        // Tokens come in order, so the first maximum wins. Branch-free: a branch would wait for each comparison.
        const bool larger = counts && value > maximum[j];
        maximum[j] = larger ? value : maximum[j];
        argmax[j] = larger ? first + i * kSplit : argmax[j];
      }
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) total[j] += partial[j];
  }

  // The comparisons above ignore NaN, which makes the sum NaN, and columns that are -inf throughout. Both are rare, so
  // such columns are read again.
  bool passed_over = false;
#pragma unroll
  for (int j = 0; j < kVector; ++j) passed_over = passed_over || total[j] != total[j] || argmax[j] == INT_MAX;
  if (passed_over) {
#pragma unroll 1
    for (int t = part; t < length; t += kSplit) {
      if (!layout.tokens.unmasked(b, t)) continue;
      const vector_t row = *reinterpret_cast<const vector_t*>(sequence + layout.offsets.advance(t));
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const acc_t value = widened(row, j);
        if (argmax[j] == INT_MAX || (value != value && maximum[j] == maximum[j])) {
          maximum[j] = value;
          argmax[j] = t;
        }
      }
    }
  }

  if constexpr (kSplit > 1) {
    __shared__ acc_t totals[kWarps][kLanes * kVector], maxima[kWarps][kLanes * kVector];
    __shared__ int argmaxes[kWarps][kLanes * kVector], counts[kWarps][kLanes];
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      totals[warp][j * kLanes + lane] = total[j];
      maxima[warp][j * kLanes + lane] = maximum[j];
      argmaxes[warp][j * kLanes + lane] = argmax[j];
    }
    counts[warp][lane] = count;
    __syncthreads();
    if (part != 0) return;
    for (int other = warp + 1; other < warp + kSplit; ++other) {
      count += counts[other][lane];
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const int slot = j * kLanes + lane;
        total[j] += totals[other][slot];
        const bool wins = better(maxima[other][slot], argmaxes[other][slot], maximum[j], argmax[j]);
        maximum[j] = wins ? maxima[other][slot] : maximum[j];
        argmax[j] = wins ? argmaxes[other][slot] : argmax[j];
      }
    }
  }
  if (!active) return;

  constexpr int kIndices = kVector < 4 ? kVector : 4;  // 4-byte indices per store
  vector_t average_out, maximum_out;
  Vector<int32_t, kIndices> argmax_group[kVector / kIndices];
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    average_out.value[j] = static_cast<scalar_t>(count ? total[j] / static_cast<acc_t>(count) : acc_t{0});
    maximum_out.value[j] = static_cast<scalar_t>(count ? maximum[j] : acc_t{0});
    argmax_group[j / kIndices].value[j % kIndices] = count ? argmax[j] : -1;
  }
  scalar_t* average = v + b * 2 * layout.width + column;
  store(average, average_out);
  store(average + layout.width, maximum_out);
  int32_t* where = argmax_out + b * layout.width + column;
#pragma unroll
  for (int j = 0; j < kVector / kIndices; ++j) store(where + j * kIndices, argmax_group[j]);
  if (column == 0) count_out[b] = count;
}

// A warp writes kGradientRows rows of kLanes * kVector columns of one sequence, and its share of the rows after those
// that the sequences fill, if `filled` says how many these are.
template <typename scalar_t, int kVector>
__global__ void __launch_bounds__(kLanes* kWarps)
    gradient_kernel(const scalar_t* __restrict__ grad_v, const int32_t* __restrict__ argmax_in,
                    const int32_t* __restrict__ count_in, Layout layout, int64_t column_blocks, int64_t row_blocks,
                    bool padded, const int64_t* __restrict__ filled, int64_t rows, scalar_t* __restrict__ grad_x) {
  using acc_t = accumulate_t<scalar_t>;
  using vector_t = Vector<scalar_t, kVector>;

  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  const int64_t column = (unit % column_blocks * kLanes + threadIdx.x) * kVector;
  const int64_t row_block = unit / column_blocks % row_blocks;
  const int64_t b = unit / column_blocks / row_blocks;
  if (b >= layout.batch || column >= layout.width) return;

  if (filled) {
    const vector_t zeros = {};
    const int64_t end = min(max(*filled, int64_t{0}), rows);
    for (int64_t row = end + unit / column_blocks; row < rows; row += layout.batch * row_blocks) {
      store(grad_x + row * layout.width + column, zeros);
    }
  }

  const scalar_t* average = grad_v + b * 2 * layout.width + column;
  const vector_t grad_average = *reinterpret_cast<const vector_t*>(average);
  const vector_t grad_maximum = *reinterpret_cast<const vector_t*>(average + layout.width);
  const acc_t divisor = static_cast<acc_t>(max(count_in[b], 1));
  acc_t share[kVector], maximum[kVector];
  int argmax[kVector];
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    share[j] = static_cast<acc_t>(grad_average.value[j]) / divisor;
    maximum[j] = static_cast<acc_t>(grad_maximum.value[j]);
    argmax[j] = argmax_in[b * layout.width + column + j];
  }

  scalar_t* sequence = grad_x + layout.offsets.begin(b) + column;
  const int64_t length = layout.tokens.length(b);
  const int64_t end = padded ? layout.tokens.max_length : length;
  const int64_t first = row_block * kGradientRows;
  for (int64_t t = first; t < min(end, first + kGradientRows); ++t) {
    const bool counts = t < length && layout.tokens.unmasked(b, t);
    if (!counts && !padded && !filled) continue;  // these are zero already
    vector_t row;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      row.value[j] = static_cast<scalar_t>(counts ? share[j] + (argmax[j] == t ? maximum[j] : acc_t{0}) : acc_t{0});
    }
    store(sequence + layout.offsets.advance(t), row);
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

unsigned int grid_size(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, "esim_fast: the batch needs ", blocks, " thread blocks, more than CUDA allows");
  return static_cast<unsigned int>(blocks);
}

// Whether every row is aligned to 16 bytes. For row-addressed input it suffices that D is, because start and step are
// multiples of D; esim_fast.Rows requires that, and checking it here would need a sync.
template <typename scalar_t>
bool rows_aligned(const scalar_t* data, const Layout& layout) {
  constexpr int64_t kVector = 16 / sizeof(scalar_t);
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && layout.width % kVector == 0 &&
         layout.offsets.batch_stride % kVector == 0 && layout.offsets.time_stride % kVector == 0;
}

template <typename scalar_t, int kVector>
void launch_pool(const CudaStream& cuda, const scalar_t* x, const Layout& layout, scalar_t* v, int32_t* argmax,
                 int32_t* count) {
  const int64_t vectors = layout.width / kVector;
  const int64_t units = ceil_div(layout.batch * vectors, kLanes);
  const dim3 threads(kLanes, kWarps);
  // Many sequences fill the GPU with one warp each; a few long ones are split over a block's warps.
  const bool split = layout.tokens.max_length > 2 * kRows && units < 16 * cuda.multiprocessors();
  if (split) {
    pool_kernel<scalar_t, kVector, kWarps>
        <<<grid_size(units), threads, 0, cuda.stream>>>(x, layout, vectors, v, argmax, count);
  } else {
    pool_kernel<scalar_t, kVector, 1>
        <<<grid_size(ceil_div(units, kWarps)), threads, 0, cuda.stream>>>(x, layout, vectors, v, argmax, count);
  }
  check_launch("masked_pool");
}

template <typename scalar_t, int kVector>
void launch_gradient(const CudaStream& cuda, const scalar_t* grad_v, const int32_t* argmax, const int32_t* count,
                     const Layout& layout, bool padded, const int64_t* filled, int64_t rows, scalar_t* grad_x) {
  const int64_t column_blocks = ceil_div(layout.width, kLanes * kVector);
  const int64_t row_blocks = ceil_div(layout.tokens.max_length, kGradientRows);
  const int64_t units = layout.batch * column_blocks * row_blocks;
  gradient_kernel<scalar_t, kVector><<<grid_size(ceil_div(units, kWarps)), dim3(kLanes, kWarps), 0, cuda.stream>>>(
      grad_v, argmax, count, layout, column_blocks, row_blocks, padded, filled, rows, grad_x);
  check_launch("masked_pool_backward");
}

std::tuple<Tensor, Tensor, Tensor> masked_pool_cuda(const Tensor& input, std::optional<Tensor> start,
                                                    std::optional<Tensor> step, std::optional<Tensor> lengths,
                                                    std::optional<Tensor> mask) {
  const CudaStream cuda(input);
  const auto [x, layout] = forward_layout(input, start, step, lengths, mask);
  PoolOutputs outputs = allocate_outputs(x, layout);
  if (outputs.argmax.numel() == 0) return {outputs.v, outputs.argmax, torch::stable::fill_(outputs.count, 0)};

  dispatch_floating(x.scalar_type(), "masked_pool", [&, &x = x, &layout = layout](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* data = x.template const_data_ptr<scalar_t>();
    scalar_t* v = outputs.v.template mutable_data_ptr<scalar_t>();
    int32_t* argmax = outputs.argmax.template mutable_data_ptr<int32_t>();
    int32_t* count = outputs.count.template mutable_data_ptr<int32_t>();
    if (rows_aligned(data, layout)) {
      launch_pool<scalar_t, 16 / sizeof(scalar_t)>(cuda, data, layout, v, argmax, count);
    } else {
      launch_pool<scalar_t, 1>(cuda, data, layout, v, argmax, count);
    }
  });
  return {outputs.v, outputs.argmax, outputs.count};
}

Tensor masked_pool_backward_cuda(const Tensor& grad_v, const Tensor& argmax, const Tensor& count,
                                 std::optional<Tensor> start, std::optional<Tensor> step,
                                 std::optional<Tensor> lengths, std::optional<Tensor> mask, int64_t rows,
                                 std::optional<Tensor> filled) {
  const CudaStream cuda(grad_v);
  check_vector(filled, "filled", grad_v);
  STD_TORCH_CHECK(!filled || filled->size(0) == 1, "esim_fast: filled must have one entry, got ", filled->size(0));
  const bool written = filled && step && step->numel() > 0 && argmax.numel() > 0;  // otherwise no kernel runs
  PoolGradient g = allocate_gradient(grad_v, argmax, count, start, step, lengths, mask, rows, written);
  if (g.grad_x.numel() == 0 || g.layout.batch == 0 || g.layout.tokens.max_length == 0) return g.grad_x;

  dispatch_floating(g.grad_v.scalar_type(), "masked_pool_backward", [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* v = g.grad_v.template const_data_ptr<scalar_t>();
    scalar_t* grad_x = g.grad_x.template mutable_data_ptr<scalar_t>();
    const int32_t* where = g.argmax.template const_data_ptr<int32_t>();
    const int32_t* counts = g.count.template const_data_ptr<int32_t>();
    const bool padded = !start.has_value();
    const int64_t* end = written ? filled->template const_data_ptr<int64_t>() : nullptr;
    // grad_v comes from autograd and may have any alignment; grad_x is allocated here.
    if (rows_aligned(grad_x, g.layout) && reinterpret_cast<uintptr_t>(v) % 16 == 0) {
      launch_gradient<scalar_t, 16 / sizeof(scalar_t)>(cuda, v, where, counts, g.layout, padded, end, rows, grad_x);
    } else {
      launch_gradient<scalar_t, 1>(cuda, v, where, counts, g.layout, padded, end, rows, grad_x);
    }
  });
  return g.grad_x;
}

}  // namespace
}  // namespace esim_fast

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CUDA, m) {
  m.impl("masked_pool", TORCH_BOX(&esim_fast::masked_pool_cuda));
  m.impl("masked_pool_backward", TORCH_BOX(&esim_fast::masked_pool_backward_cuda));
}
