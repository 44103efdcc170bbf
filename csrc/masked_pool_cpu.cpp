// Masked average and max pooling on the CPU: a single pass over x, parallel over sequences and blocks of columns.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>

#include "masked_pool.h"
#include "parallel.h"

// The loops below are compiled for each of these targets, and the loader picks one, so one binary serves every x86-64.
// Targets are instruction sets, because a processor name such as haswell would match only that vendor's processors.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define ESIM_VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ESIM_VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define ESIM_VECTORIZED
#endif

namespace esim_fast {
namespace {

constexpr int64_t kColumns = 256;       // a block's accumulators fit into the L1 cache
constexpr int64_t kRowsPerPartial = 16; // partial sums over 16 rows reduce rounding errors
constexpr int64_t kElementsPerTask = 16384;

template <typename acc_t>
struct Accumulators {
  acc_t partial[kColumns];
  acc_t total[kColumns];
  acc_t maximum[kColumns];
  int32_t argmax[kColumns];
};

// Adds row t to the accumulators. As in torch.max, the first maximum wins and NaN beats everything.
template <typename scalar_t, typename acc_t>
inline __attribute__((always_inline)) void take_row(const scalar_t* __restrict x, int64_t columns, int32_t t,
                                                    Accumulators<acc_t>& acc) {
  for (int64_t j = 0; j < columns; ++j) {
    const acc_t value = static_cast<acc_t>(x[j]);
    acc.partial[j] += value;
    const bool better = !(value <= acc.maximum[j]) & (acc.maximum[j] == acc.maximum[j]);
    acc.maximum[j] = better ? value : acc.maximum[j];
    acc.argmax[j] = better ? t : acc.argmax[j];
  }
}

template <typename scalar_t, typename acc_t>
inline __attribute__((always_inline)) int32_t pool_block(const scalar_t* x, const Layout& layout, int64_t b,
                                                         int64_t first_column, int64_t columns, scalar_t* average,
                                                         scalar_t* maximum, int32_t* argmax) {
  Accumulators<acc_t> acc;
  std::fill_n(acc.partial, columns, acc_t{0});
  std::fill_n(acc.total, columns, acc_t{0});
  std::fill_n(acc.maximum, columns, -std::numeric_limits<acc_t>::infinity());

  int32_t count = 0;
  const int64_t length = layout.tokens.length(b);
  for (int64_t t = 0; t < length; ++t) {
    if (!layout.tokens.unmasked(b, t)) continue;
    // If a column is -inf throughout, its maximum is at the first token.
    if (count == 0) std::fill_n(acc.argmax, columns, static_cast<int32_t>(t));
    take_row(x + layout.offsets(b, t) + first_column, columns, static_cast<int32_t>(t), acc);
    if (++count % kRowsPerPartial == 0) {
      for (int64_t j = 0; j < columns; ++j) {
        acc.total[j] += acc.partial[j];
        acc.partial[j] = 0;
      }
    }
  }
  if (count == 0) {
    std::fill_n(acc.maximum, columns, acc_t{0});
    std::fill_n(acc.argmax, columns, -1);
  }
  const acc_t divisor = static_cast<acc_t>(std::max(count, 1));
  for (int64_t j = 0; j < columns; ++j) {
    average[j] = static_cast<scalar_t>((acc.total[j] + acc.partial[j]) / divisor);
    maximum[j] = static_cast<scalar_t>(acc.maximum[j]);
    argmax[j] = acc.argmax[j];
  }
  return count;
}

template <typename scalar_t, typename acc_t>
inline __attribute__((always_inline)) void gradient_block(scalar_t* grad_x, const Layout& layout, int64_t b,
                                                          int64_t first_column, int64_t columns,
                                                          const scalar_t* grad_average, const scalar_t* grad_maximum,
                                                          const int32_t* argmax, int32_t count, bool padded) {
  acc_t share[kColumns], maximum[kColumns];
  const acc_t divisor = static_cast<acc_t>(std::max(count, 1));
  for (int64_t j = 0; j < columns; ++j) {
    share[j] = static_cast<acc_t>(grad_average[j]) / divisor;
    maximum[j] = static_cast<acc_t>(grad_maximum[j]);
  }
  const int64_t length = layout.tokens.length(b);
  const int64_t end = padded ? layout.tokens.max_length : length;
  for (int64_t t = 0; t < end; ++t) {
    scalar_t* row = grad_x + layout.offsets(b, t) + first_column;
    if (t < length && layout.tokens.unmasked(b, t)) {
      const int32_t now = static_cast<int32_t>(t);
      for (int64_t j = 0; j < columns; ++j) {
        row[j] = static_cast<scalar_t>(share[j] + (argmax[j] == now ? maximum[j] : acc_t{0}));
      }
    } else if (padded) {
      std::fill_n(row, columns, scalar_t(0.0f));
    }
  }
}

// target_clones does not work on templates, so there is a pair of functions for each dtype.
#define ESIM_BLOCKS(scalar_t)                                                                                          \
  ESIM_VECTORIZED int32_t pool(const scalar_t* x, const Layout& layout, int64_t b, int64_t first, int64_t columns,     \
                               scalar_t* average, scalar_t* maximum, int32_t* argmax) {                                \
    return pool_block<scalar_t, accumulate_t<scalar_t>>(x, layout, b, first, columns, average, maximum, argmax);       \
  }                                                                                                                    \
  ESIM_VECTORIZED void gradient(scalar_t* grad_x, const Layout& layout, int64_t b, int64_t first, int64_t columns,     \
                                const scalar_t* grad_average, const scalar_t* grad_maximum, const int32_t* argmax,     \
                                int32_t count, bool padded) {                                                          \
    gradient_block<scalar_t, accumulate_t<scalar_t>>(grad_x, layout, b, first, columns, grad_average, grad_maximum,    \
                                                     argmax, count, padded);                                           \
  }
ESIM_BLOCKS(float)
ESIM_BLOCKS(double)
ESIM_BLOCKS(Half)
ESIM_BLOCKS(BFloat16)
#undef ESIM_BLOCKS

template <typename F>
void for_each_block(const Layout& layout, const F& f) {
  const int64_t blocks = (layout.width + kColumns - 1) / kColumns;
  const int64_t work = std::max<int64_t>(1, layout.tokens.max_length * std::min(layout.width, kColumns));
  const int64_t least = std::max<int64_t>(1, kElementsPerTask / work);
  parallel_for(0, layout.batch * blocks, least, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * kColumns;
      f(i / blocks, first, std::min(kColumns, layout.width - first));
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> masked_pool_cpu(const Tensor& input, std::optional<Tensor> start,
                                                   std::optional<Tensor> step, std::optional<Tensor> lengths,
                                                   std::optional<Tensor> mask) {
  const auto [x, layout] = forward_layout(input, start, step, lengths, mask);
  check_addresses(layout, x.numel());
  PoolOutputs outputs = allocate_outputs(x, layout);
  int32_t* argmax = outputs.argmax.mutable_data_ptr<int32_t>();
  int32_t* count = outputs.count.mutable_data_ptr<int32_t>();
  const int64_t width = layout.width;
  if (width == 0) std::fill_n(count, layout.batch, 0);

  dispatch_floating(x.scalar_type(), "masked_pool", [&, &x = x, &layout = layout](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* data = x.template const_data_ptr<scalar_t>();
    scalar_t* v = outputs.v.template mutable_data_ptr<scalar_t>();
    for_each_block(layout, [&](int64_t b, int64_t first, int64_t columns) {
      scalar_t* average = v + b * 2 * width + first;
      const int32_t n = pool(data, layout, b, first, columns, average, average + width, argmax + b * width + first);
      if (first == 0) count[b] = n;
    });
  });
  return {outputs.v, outputs.argmax, outputs.count};
}

Tensor masked_pool_backward_cpu(const Tensor& grad_v, const Tensor& argmax, const Tensor& count,
                                std::optional<Tensor> start, std::optional<Tensor> step,
                                std::optional<Tensor> lengths, std::optional<Tensor> mask, int64_t rows,
                                std::optional<Tensor>) {
  PoolGradient g = allocate_gradient(grad_v, argmax, count, start, step, lengths, mask, rows);
  check_addresses(g.layout, g.grad_x.numel());
  const int32_t* where = g.argmax.const_data_ptr<int32_t>();
  const int32_t* counts = g.count.const_data_ptr<int32_t>();
  const int64_t width = g.layout.width;
  const bool padded = !start.has_value();

  dispatch_floating(g.grad_v.scalar_type(), "masked_pool_backward", [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* v = g.grad_v.template const_data_ptr<scalar_t>();
    scalar_t* grad_x = g.grad_x.template mutable_data_ptr<scalar_t>();
    for_each_block(g.layout, [&](int64_t b, int64_t first, int64_t columns) {
      const scalar_t* average = v + b * 2 * width + first;
      gradient(grad_x, g.layout, b, first, columns, average, average + width, where + b * width + first, counts[b],
               padded);
    });
  });
  return g.grad_x;
}

}  // namespace
}  // namespace esim_fast

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CPU, m) {
  m.impl("masked_pool", TORCH_BOX(&esim_fast::masked_pool_cpu));
  m.impl("masked_pool_backward", TORCH_BOX(&esim_fast::masked_pool_backward_cpu));
}
