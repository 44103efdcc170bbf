// The inner loops of local inference on the CPU, compiled for each processor. They work on gathered rows of features,
// `stride` elements apart.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "rows.h"
#include "vectors.h"

namespace esim_fast {
namespace {

constexpr int64_t kVectors = 4;           // vectors of sums per row
constexpr int64_t kLanes = 16;            // most fp32 lanes of any processor

template <typename T>
constexpr int lanes_of(int fp32_lanes) {
  return fp32_lanes * sizeof(float) / sizeof(T);
}

// Arguments of the kernels below. Rows of features are padded with zeros to a multiple of 4 vectors, and their number
// to a multiple of 4.

// out[i, d] = sum over k of weights[i, k] * x[k, d], added to out if `add` is true.
template <typename T>
struct Product {
  const T* weights;
  int64_t weights_row, weights_step;
  const T* x;
  T* out;
  int64_t rows, terms, width, stride;
  bool add;
};
// out[i, j] = x[i] . y[j]
template <typename T>
struct RowProducts {
  const T *x, *y;
  T* out;
  int64_t rows, columns, width, stride, out_stride;
};
// The soft alignment's weights of a pair and their gradients, [rows, stride], of which the first `columns` count.
template <typename T>
struct Weights {
  T *alpha, *beta;  // both hold the scores before the softmax
  T *grad_alpha, *grad_beta;
  int64_t rows, columns, stride;
};
// A token: its rows in the tensors and in intermediate results.
template <typename scalar_t>
struct Token {
  using T = accumulate_t<scalar_t>;
  const scalar_t *in, *grad_m;
  scalar_t* out;
  T *x, *aligned, *grad_aligned, *grad;
  int64_t width, parts;  // parts: 4, or 3 without the difference
  scalar_t* row;  // buffer from which out is streamed; null to write out directly
};

template <int rows, int lanes, typename T>
ESIM_INLINE void multiply_tile(const Product<T>& p, int64_t count, int64_t i, int64_t d) {
  if constexpr (rows > 1) {
    if (count < rows) return multiply_tile<rows - 1, lanes>(p, count, i, d);
  }
  using V = Vector<T, lanes>;
  V sum[rows][kVectors] = {};
  multiply_add<rows, kVectors>(sum, p.weights + i * p.weights_row, p.weights_row, p.weights_step, p.x + d, p.stride,
                               p.terms);
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      T* to = p.out + (i + r) * p.stride + d + v * lanes;
      store(to, p.add ? load<V>(to) + sum[r][v] : sum[r][v]);
    }
  }
}

template <int lanes, int rows, typename T>
ESIM_INLINE void multiply_rows_of(const Product<T>& p) {
  constexpr int kLanesOfT = lanes_of<T>(lanes);
  for (int64_t d = 0; d < p.width; d += kVectors * kLanesOfT) {
    for (int64_t i = 0; i < p.rows; i += rows) multiply_tile<rows, kLanesOfT>(p, p.rows - i, i, d);
  }
}

template <int rows, int lanes, typename T>
ESIM_INLINE void row_products_tile(const RowProducts<T>& p, int64_t count, int64_t i, int64_t j) {
  if constexpr (rows > 1) {
    if (count < rows) return row_products_tile<rows - 1, lanes>(p, count, i, j);
  }
  Vector<T, lanes> sum[rows][kVectors] = {};
  multiply_add_rows<rows, kVectors>(sum, p.x + i * p.stride, p.stride, p.y + j * p.stride, p.stride, p.width);
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < kVectors; ++c) p.out[(i + r) * p.out_stride + j + c] = total<lanes, T>(sum[r][c]);
  }
}

template <int lanes, int rows, typename T>
ESIM_INLINE void row_products_of(const RowProducts<T>& p) {
  constexpr int kLanesOfT = lanes_of<T>(lanes);
  for (int64_t j = 0; j < p.columns; j += kVectors) {
    for (int64_t i = 0; i < p.rows; i += rows) row_products_tile<rows, kLanesOfT>(p, p.rows - i, i, j);
  }
}

template <int lanes, typename T>
ESIM_INLINE Vector<T, lanes> exponential_of(Vector<T, lanes> x) {
  if constexpr (std::is_same_v<T, float>) {
    return exponential<lanes>(x);
  } else {
    for (int lane = 0; lane < lanes; ++lane) x[lane] = std::exp(x[lane]);
    return x;
  }
}

// alpha: softmax of each row of scores; beta: of each column. Needs at least one row and one column.
template <int lanes, int, typename T>
ESIM_INLINE void softmax_of(const Weights<T>& w) {
  constexpr int kLanesOfT = lanes_of<T>(lanes);
  using V = Vector<T, kLanesOfT>;
  constexpr T kNothing = -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < w.rows; ++i) {
    T* row = w.alpha + i * w.stride;
    std::fill(row + w.columns, row + w.stride, kNothing);
    V most = V{} + kNothing, sum{};
    for (int64_t j = 0; j < w.stride; j += kLanesOfT) {
      const V score = load<V>(row + j);
      most = score > most ? score : most;
    }
    const T maximum = highest<kLanesOfT, T>(most);
    for (int64_t j = 0; j < w.stride; j += kLanesOfT) {
      const V weight = exponential_of<kLanesOfT, T>(load<V>(row + j) - maximum);
      store(row + j, weight);
      sum += weight;
    }
    const T factor = 1 / total<kLanesOfT, T>(sum);
    for (int64_t j = 0; j < w.stride; j += kLanesOfT) store(row + j, load<V>(row + j) * factor);
  }
  for (int64_t j = 0; j < w.columns; j += kLanesOfT) {
    T* column = w.beta + j;
    V most = V{} + kNothing, sum{};
    for (int64_t i = 0; i < w.rows; ++i) {
      const V score = load<V>(column + i * w.stride);
      most = score > most ? score : most;
    }
    for (int64_t i = 0; i < w.rows; ++i) {
      const V weight = exponential_of<kLanesOfT, T>(load<V>(column + i * w.stride) - most);
      store(column + i * w.stride, weight);
      sum += weight;
    }
    const V factor = 1 / sum;
    for (int64_t i = 0; i < w.rows; ++i) store(column + i * w.stride, load<V>(column + i * w.stride) * factor);
  }
}

// The scores' gradient overwrites alpha's.
template <int lanes, int, typename T>
ESIM_INLINE void softmax_backward_of(const Weights<T>& w) {
  constexpr int kLanesOfT = lanes_of<T>(lanes);
  using V = Vector<T, kLanesOfT>;
  for (int64_t i = 0; i < w.rows; ++i) {
    const T* alpha = w.alpha + i * w.stride;
    T* grad = w.grad_alpha + i * w.stride;
    std::fill(grad + w.columns, grad + w.stride, T{0});
    V sum{};
    for (int64_t j = 0; j < w.stride; j += kLanesOfT) sum += load<V>(alpha + j) * load<V>(grad + j);
    const T mean = total<kLanesOfT, T>(sum);
    for (int64_t j = 0; j < w.stride; j += kLanesOfT) {
      store(grad + j, load<V>(alpha + j) * (load<V>(grad + j) - mean));
    }
  }
  for (int64_t j = 0; j < w.columns; j += kLanesOfT) {
    V mean{};
    for (int64_t at = j; at < w.rows * w.stride; at += w.stride) {
      mean += load<V>(w.beta + at) * load<V>(w.grad_beta + at);
    }
    for (int64_t at = j; at < w.rows * w.stride; at += w.stride) {
      const V of_beta = load<V>(w.beta + at) * (load<V>(w.grad_beta + at) - mean);
      store(w.grad_alpha + at, load<V>(w.grad_alpha + at) + of_beta);
    }
  }
}

// Load and store vectors, converting between the tensors' dtype and the sums' dtype.
template <int lanes, typename scalar_t>
ESIM_INLINE Vector<accumulate_t<scalar_t>, lanes> read(const scalar_t* p, int64_t n) {
  if constexpr (sizeof(scalar_t) > 2) {
    return load<Vector<scalar_t, lanes>>(p, n);
  } else {
    const auto bits = load<Vector<uint16_t, lanes>>(reinterpret_cast<const uint16_t*>(p), n);
    if constexpr (std::is_same_v<scalar_t, Half>) return from_half<lanes>(bits);
    return from_bfloat16<lanes>(bits);
  }
}
template <int lanes, typename scalar_t>
ESIM_INLINE void write(scalar_t* p, const Vector<accumulate_t<scalar_t>, lanes>& v, int64_t n) {
  if constexpr (sizeof(scalar_t) > 2) {
    store(p, v, n);
  } else if constexpr (std::is_same_v<scalar_t, Half>) {
    store(reinterpret_cast<uint16_t*>(p), to_half<lanes>(v), n);
  } else {
    store(reinterpret_cast<uint16_t*>(p), to_bfloat16<lanes>(v), n);
  }
}

#define ESIM_INLINE_LAMBDA __attribute__((always_inline))

// Calls f(d, n) for vectors of n elements that cover a row: one at the beginning, one at the end, and between them
// vectors aligned in the written memory, because stores across cache lines are slow. Vectors may overlap. n is less
// than a full vector only if the row is shorter than one.
template <int lanes, typename scalar_t, typename F>
ESIM_INLINE void for_each_vector(const scalar_t* written, int64_t width, const F& f) {
  if (width < lanes) {
    if (width) f(int64_t{0}, width);
    return;
  }
  f(int64_t{0}, int64_t{lanes});
  const int64_t place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(written) / sizeof(scalar_t));
  for (int64_t d = lanes - place % lanes; d < width - lanes; d += lanes) f(d, int64_t{lanes});
  f(width - lanes, int64_t{lanes});
}

template <int lanes, int, typename scalar_t>
ESIM_INLINE void gather_of(const Token<scalar_t>& t) {
  constexpr int kLanesOfT = lanes_of<typename Token<scalar_t>::T>(lanes);
  for_each_vector<kLanesOfT>(t.x, t.width, [&](int64_t d, int64_t n) ESIM_INLINE_LAMBDA {
    store(t.x + d, read<kLanesOfT>(t.in + d, n));
  });
}

// Writes the parts one after another, as they lie in memory.
template <int lanes, int, typename scalar_t>
ESIM_INLINE void enhance_of(const Token<scalar_t>& t) {
  constexpr int kLanesOfT = lanes_of<typename Token<scalar_t>::T>(lanes);
  using V = Vector<typename Token<scalar_t>::T, kLanesOfT>;
  scalar_t* out = t.row ? t.row : t.out;
  const auto put = [&](const auto& part) ESIM_INLINE_LAMBDA {
    for_each_vector<kLanesOfT>(out, t.width, [&](int64_t d, int64_t n) ESIM_INLINE_LAMBDA {
      write<kLanesOfT, scalar_t>(out + d, part(d), n);
    });
    out += t.width;
  };
  put([&](int64_t d) ESIM_INLINE_LAMBDA { return load<V>(t.x + d); });
  put([&](int64_t d) ESIM_INLINE_LAMBDA { return load<V>(t.aligned + d); });
  if (t.parts == 4) put([&](int64_t d) ESIM_INLINE_LAMBDA { return load<V>(t.x + d) - load<V>(t.aligned + d); });
  put([&](int64_t d) ESIM_INLINE_LAMBDA { return load<V>(t.x + d) * load<V>(t.aligned + d); });
  if (t.row) stream<lanes>(t.out, t.row, t.parts * t.width * int64_t{sizeof(scalar_t)});
}

// Gradients of the soft alignment, and of x through the enhancement.
template <int lanes, int, typename scalar_t>
ESIM_INLINE void enhance_backward_of(const Token<scalar_t>& t) {
  constexpr int kLanesOfT = lanes_of<typename Token<scalar_t>::T>(lanes);
  using V = Vector<typename Token<scalar_t>::T, kLanesOfT>;
  const int64_t D = t.width;
  for_each_vector<kLanesOfT>(t.grad, D, [&](int64_t d, int64_t n) ESIM_INLINE_LAMBDA {
    const V of_x = read<kLanesOfT>(t.grad_m + d, n), of_aligned = read<kLanesOfT>(t.grad_m + D + d, n);
    const V of_difference = t.parts == 4 ? read<kLanesOfT>(t.grad_m + 2 * D + d, n) : V{};
    const V of_product = read<kLanesOfT>(t.grad_m + (t.parts - 1) * D + d, n);
    store(t.grad_aligned + d, of_aligned - of_difference + of_product * load<V>(t.x + d));
    store(t.grad + d, of_x + of_difference + of_product * load<V>(t.aligned + d));
  });
}

template <int lanes, int, typename scalar_t>
ESIM_INLINE void put_gradient_of(const Token<scalar_t>& t) {
  constexpr int kLanesOfT = lanes_of<typename Token<scalar_t>::T>(lanes);
  using V = Vector<typename Token<scalar_t>::T, kLanesOfT>;
  for_each_vector<kLanesOfT>(t.out, t.width, [&](int64_t d, int64_t n) ESIM_INLINE_LAMBDA {
    write<kLanesOfT>(t.out + d, load<V>(t.grad + d), n);
  });
}

#define ESIM_FOR_EACH_SUM(T)                                                       \
  ESIM_FOR_EACH_PROCESSOR(multiply, multiply_rows_of, Product<T>)                  \
  ESIM_FOR_EACH_PROCESSOR(row_products, row_products_of, RowProducts<T>)           \
  ESIM_FOR_EACH_PROCESSOR(softmax, softmax_of, Weights<T>)                         \
  ESIM_FOR_EACH_PROCESSOR(softmax_backward, softmax_backward_of, Weights<T>)
#define ESIM_FOR_EACH_DTYPE(scalar_t)                                              \
  ESIM_FOR_EACH_PROCESSOR(gather, gather_of, Token<scalar_t>)                      \
  ESIM_FOR_EACH_PROCESSOR(enhance, enhance_of, Token<scalar_t>)                    \
  ESIM_FOR_EACH_PROCESSOR(enhance_backward, enhance_backward_of, Token<scalar_t>)  \
  ESIM_FOR_EACH_PROCESSOR(put_gradient, put_gradient_of, Token<scalar_t>)
ESIM_FOR_EACH_SUM(float)
ESIM_FOR_EACH_SUM(double)
ESIM_FOR_EACH_DTYPE(float)
ESIM_FOR_EACH_DTYPE(double)
ESIM_FOR_EACH_DTYPE(Half)
ESIM_FOR_EACH_DTYPE(BFloat16)

}  // namespace
}  // namespace esim_fast
