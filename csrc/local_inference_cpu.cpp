// Local inference on the CPU (equations 11-15): masked co-attention, soft alignment and enhancement, forward and
// backward. One thread computes a pair of sentences from start to end, always in the same order. The tokens that count
// are gathered into contiguous rows, and intermediate results stay in the cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "local_inference_cpu.h"
#include "parallel.h"

namespace esim_fast {
namespace {

constexpr int64_t kParts = 4;  // of an enhanced token
constexpr int64_t kElementsPerTask = 16384;
constexpr int64_t kCached = 2 << 20;  // bytes: results larger than a core's cache bypass it

// Memory that grows to fit the largest pair so far.
template <typename T>
class Buffer {
  struct alignas(64) Line {
    T values[64 / sizeof(T)];
  };
  std::unique_ptr<Line[]> lines;
  int64_t size = 0;

 public:
  T* at_least(int64_t elements) {
    constexpr int64_t kPerLine = 64 / sizeof(T);
    const int64_t needed = up_to_multiple(std::max<int64_t>(elements, 1), kPerLine) / kPerLine;
    if (needed > size) {
      lines.reset();
      lines.reset(new Line[needed]);  // uninitialized, unlike std::make_unique
      size = needed;
    }
    return lines[0].values;
  }
};

// One side of the batch: its tensor, and where its tokens lie.
struct Side {
  Tensor x;
  Layout layout;
  bool padded;

  // Offset of a token in a contiguous tensor of x's shape.
  int64_t offset(int64_t b, int64_t t) const {
    return padded ? (b * layout.tokens.max_length + t) * layout.width : layout.offsets(b, t);
  }
  // End of the positions that get results, including padding, which gets zeros.
  int64_t end(int64_t b) const { return padded ? layout.tokens.max_length : layout.tokens.length(b); }
};

// One sentence in contiguous rows.
template <typename T>
struct Sentence {
  std::vector<int64_t> tokens;  // the positions that count
  Buffer<T> buffers[4];
  T *x, *aligned, *grad_aligned, *grad;
  int64_t count = 0;
};

template <typename scalar_t>
class PairOfSentences {
  using T = accumulate_t<scalar_t>;
  const Side* sides[2];
  Sentence<T> sentences[2];
  Buffer<T> buffers[4];
  Weights<T> weights{};
  int64_t b = 0, width = 0, parts = 0, whole_vectors = 0, stride = 0;
  Buffer<scalar_t> row_buffer;
  scalar_t* row = nullptr;

 public:
  PairOfSentences(const Side& a_side, const Side& b_side, int64_t parts) : sides{&a_side, &b_side}, parts(parts) {
    width = a_side.layout.width;
    whole_vectors = up_to_multiple(width, kLanes);
    // An odd number of cache lines, so that rows do not map to the same few cache sets.
    stride = up_to_multiple(width, kVectors * kLanes) + kLanes;
    const int64_t results = parts * (a_side.x.numel() + b_side.x.numel());
    if (results * int64_t{sizeof(scalar_t)} > kCached) row = row_buffer.at_least(parts * width);
  }

  // Prefetches the features of a later pair.
  void announce(int64_t pair) {
    for (const Side* side : sides) {
      const scalar_t* x = side->x.template const_data_ptr<scalar_t>();
      for (int64_t t = 0; t < side->layout.tokens.length(pair); ++t) {
        announce_row(x + side->layout.offsets(pair, t), width);
      }
    }
  }

  void forward(int64_t pair, scalar_t* const (&m)[2]) {
    align(pair, false);
    for (int side : {0, 1}) {
      for (int64_t i = 0; i < sentences[side].count; ++i) enhance(token(side, i, m[side], parts));
      clear_padding(side, m[side], parts);
    }
  }

  void backward(int64_t pair, const scalar_t* const (&grad_m)[2], scalar_t* const (&grad)[2]) {
    align(pair, true);
    auto& [a, b] = sentences;
    for (int side : {0, 1}) {
      for (int64_t i = 0; i < sentences[side].count; ++i) {
        Token<scalar_t> current = token(side, i, grad[side], 1);
        const auto gradient_of = [&](int64_t i) {
          return grad_m[side] + parts * sides[side]->offset(this->b, sentences[side].tokens[i]);
        };
        current.grad_m = gradient_of(i);
        if (i + 1 < sentences[side].count) announce_row(gradient_of(i + 1), parts * width);
        enhance_backward(current);
      }
    }
    if (a.count && b.count) {
      row_products(RowProducts<T>{a.grad_aligned, b.x, weights.grad_alpha, a.count, b.count, whole_vectors, stride,
                                  weights.stride});
      row_products(RowProducts<T>{a.x, b.grad_aligned, weights.grad_beta, a.count, b.count, whole_vectors, stride,
                                  weights.stride});
      softmax_backward(weights);
      weigh(weights.beta, false, b.grad_aligned, a.grad, true);
      weigh(weights.grad_alpha, false, b.x, a.grad, true);
      weigh(weights.alpha, true, a.grad_aligned, b.grad, true);
      weigh(weights.grad_alpha, true, a.x, b.grad, true);
    }
    for (int side : {0, 1}) {
      for (int64_t i = 0; i < sentences[side].count; ++i) put_gradient(token(side, i, grad[side], 1));
      clear_padding(side, grad[side], 1);
    }
  }

 private:
  static void announce_row(const scalar_t* row, int64_t elements) {
    for (int64_t i = 0; i < elements; i += 64 / int64_t{sizeof(scalar_t)}) __builtin_prefetch(row + i, 0, 3);
  }

  // Gathers both sentences of a pair and computes alpha, beta and the soft alignments.
  void align(int64_t pair, bool with_gradients) {
    b = pair;
    for (int side : {0, 1}) gather_sentence(side, with_gradients);
    auto& [a, b] = sentences;
    if (!a.count || !b.count) {
      for (Sentence<T>* sentence : {&a, &b}) std::fill_n(sentence->aligned, sentence->count * stride, T{0});
      return;
    }
    const int64_t columns = up_to_multiple(b.count, kLanes), size = a.count * columns;
    weights = {buffers[0].at_least(size), buffers[1].at_least(size), nullptr, nullptr, a.count, b.count, columns};
    if (with_gradients) {
      weights.grad_alpha = buffers[2].at_least(size);
      weights.grad_beta = buffers[3].at_least(size);
    }
    row_products(RowProducts<T>{a.x, b.x, weights.alpha, a.count, b.count, whole_vectors, stride, columns});
    std::copy_n(weights.alpha, size, weights.beta);
    softmax(weights);
    weigh(weights.alpha, false, b.x, a.aligned, false);
    weigh(weights.beta, true, a.x, b.aligned, false);
  }

  void gather_sentence(int side, bool with_gradients) {
    const Layout& layout = sides[side]->layout;
    Sentence<T>& sentence = sentences[side];
    sentence.tokens.clear();
    for (int64_t t = 0; t < layout.tokens.length(b); ++t) {
      if (layout.tokens.unmasked(b, t)) sentence.tokens.push_back(t);
    }
    sentence.count = static_cast<int64_t>(sentence.tokens.size());
    const int64_t rows = up_to_multiple(sentence.count, kVectors);
    T** const arrays[] = {&sentence.x, &sentence.aligned, &sentence.grad_aligned, &sentence.grad};
    for (int i = 0; i < (with_gradients ? 4 : 2); ++i) *arrays[i] = sentence.buffers[i].at_least(rows * stride);
    clear_rest(sentence.x, sentence.count, rows);
    if (with_gradients) clear_rest(sentence.grad_aligned, sentence.count, rows);
    for (int64_t i = 0; i < sentence.count; ++i) gather(token(side, i, nullptr, 0));
  }

  // Zeros the end of each row, and the rows that pad the count to a multiple of four.
  void clear_rest(T* x, int64_t count, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t filled = i < count ? width : 0;
      std::fill_n(x + i * stride + filled, stride - filled, T{0});
    }
  }

  Token<scalar_t> token(int side, int64_t i, scalar_t* out, int64_t times) {
    const Side& batch = *sides[side];
    const Sentence<T>& sentence = sentences[side];
    const int64_t t = sentence.tokens[i], place = i * stride;
    return {batch.x.template const_data_ptr<scalar_t>() + batch.layout.offsets(b, t),
            nullptr,
            out ? out + times * batch.offset(b, t) : nullptr,
            sentence.x + place,
            sentence.aligned + place,
            sentence.grad_aligned + place,
            sentence.grad + place,
            width,
            parts,
            row};
  }

  // Weighted sums of x's rows, with the weights of each row, or of each column, of `by`.
  void weigh(const T* by, bool columns, const T* x, T* out, bool add) {
    const int64_t rows = columns ? weights.columns : weights.rows, terms = columns ? weights.rows : weights.columns;
    multiply(Product<T>{by, columns ? 1 : weights.stride, columns ? weights.stride : 1, x, out, rows, terms, width,
                        stride, add});
  }

  void clear_padding(int side, scalar_t* out, int64_t times) {
    const Side& batch = *sides[side];
    for (int64_t t = 0; t < batch.end(b); ++t) {
      if (t < batch.layout.tokens.length(b) && batch.layout.tokens.unmasked(b, t)) continue;
      std::fill_n(out + times * batch.offset(b, t), times * width, scalar_t(0.0f));
    }
  }
};

// Where the tokens of one side lie and which of them count, as passed to the operators.
struct Where {
  const std::optional<Tensor>& start;
  std::optional<Tensor> step;
  const std::optional<Tensor>&lengths, &mask;
  int64_t longest;
};

Side make_side(const Tensor& input, Where at) {
  STD_TORCH_CHECK(input.is_cpu() && input.dim() == (at.start ? 2 : 3),
                  "esim_fast: local_inference needs [B, L, D], or [N, D] with start and step, on the CPU");
  const Tensor x = at.start ? torch::stable::contiguous(input) : contiguous_columns(input);
  if (at.start && at.step && at.step->dim() == 1 && at.longest != at.step->size(0)) {
    STD_TORCH_CHECK(0 <= at.longest && at.longest < at.step->size(0), "esim_fast: longest = ", at.longest,
                    " must lie between 0 and the ", at.step->size(0), " entries of step");
    at.step = torch::stable::narrow(*at.step, 0, 0, at.longest);
  }
  const bool padded = !at.start;
  const Layout layout =
      make_layout(x, padded ? x.stride(0) : 0, padded ? x.stride(1) : 0, padded ? x.size(0) : 0,
                  padded ? x.size(1) : 0, x.size(-1), at.start, at.step, at.lengths, at.mask);
  check_addresses(layout, x.numel());
  return {x, layout, padded};
}

// Both sides of a batch of pairs, in two tensors or in one.
struct Sides {
  Side a, b;

  Sides(const Tensor& a_input, const Tensor& b_input, const Where& a_at, const Where& b_at)
      : a(make_side(a_input, a_at)), b(make_side(b_input, b_at)) {
    STD_TORCH_CHECK(a.x.scalar_type() == b.x.scalar_type() && a.layout.width == b.layout.width &&
                        a.layout.batch == b.layout.batch,
                    "esim_fast: a and b must have the same dtype, width and number of sentences");
  }

  // For both sides in one tensor, which is contiguous.
  Sides(const Tensor& x, const Where& a_at, const Where& b_at) : Sides(x, x, a_at, b_at) {
    STD_TORCH_CHECK(a_at.start && b_at.start,
                    "esim_fast: start and step must be given for both sides, because one tensor holds them");
  }
};

// A tensor for results, `times` as wide as x. Kernels write all of a padded tensor, but only the addressed rows of a
// row-addressed one.
Tensor new_like(const Side& side, int64_t times, bool every_row) {
  std::vector<int64_t> shape(side.x.sizes().begin(), side.x.sizes().end());
  shape.back() *= times;
  return side.padded || every_row ? torch::stable::new_empty(side.x, shape) : torch::stable::new_zeros(side.x, shape);
}

Tensor contiguous_gradient(const Tensor& grad_m, const Side& side, int64_t parts) {
  bool fits = grad_m.is_cpu() && grad_m.scalar_type() == side.x.scalar_type() && grad_m.dim() == side.x.dim() &&
              grad_m.size(-1) == parts * side.layout.width;
  for (int64_t i = 0; fits && i + 1 < grad_m.dim(); ++i) fits = grad_m.size(i) == side.x.size(i);
  STD_TORCH_CHECK(fits, "esim_fast: gradients of local_inference must have the shape and dtype of its results");
  return torch::stable::contiguous(grad_m);
}

// Calls f(pair, b) for each pair b. Each pair is computed by one thread, which reuses its memory for the next.
// Batches may be sorted by length, so pairs are distributed round-robin to balance the threads.
template <typename scalar_t, typename F>
void for_each_pair(const Side& a, const Side& b, int64_t parts, const F& f) {
  if (a.layout.width == 0) return;
  const int64_t tokens = a.layout.tokens.max_length + b.layout.tokens.max_length, pairs = a.layout.batch;
  const int64_t least = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, tokens) / a.layout.width);
  const int64_t tasks = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(1, pairs / least));
  parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    PairOfSentences<scalar_t> pair(a, b, parts);
    for (int64_t task = begin; task < end; ++task) {
      for (int64_t i = task; i < pairs; i += tasks) {
        if (i + tasks < pairs) pair.announce(i + tasks);
        f(pair, i);
      }
    }
    finish_streams();
  });
}

// Writes the enhanced sentences of both sides, which may share one tensor.
void forward(const Sides& sides, int64_t parts, Tensor& m_a, Tensor& m_b) {
  dispatch_floating(sides.a.x.scalar_type(), "local_inference", [&](auto zero) {
    using scalar_t = decltype(zero);
    scalar_t* const m[] = {m_a.template mutable_data_ptr<scalar_t>(), m_b.template mutable_data_ptr<scalar_t>()};
    for_each_pair<scalar_t>(sides.a, sides.b, parts, [&](auto& pair, int64_t i) { pair.forward(i, m); });
  });
}

// Writes the gradients of both sides, which may share one tensor.
void backward(const Sides& sides, int64_t parts, const Tensor& grad_m_a, const Tensor& grad_m_b, Tensor& grad_a,
              Tensor& grad_b) {
  dispatch_floating(sides.a.x.scalar_type(), "local_inference_backward", [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* const grad_m[] = {grad_m_a.template const_data_ptr<scalar_t>(),
                                      grad_m_b.template const_data_ptr<scalar_t>()};
    scalar_t* const grad[] = {grad_a.template mutable_data_ptr<scalar_t>(),
                              grad_b.template mutable_data_ptr<scalar_t>()};
    for_each_pair<scalar_t>(sides.a, sides.b, parts,
                            [&](auto& pair, int64_t i) { pair.backward(i, grad_m, grad); });
  });
}

// The last parameters of all operators here, and their parts for a and b.
#define ESIM_SIDES_PARAMETERS                                                                              \
  std::optional<Tensor> a_start, std::optional<Tensor> a_step, std::optional<Tensor> a_lengths,            \
      std::optional<Tensor> a_mask, std::optional<Tensor> b_start, std::optional<Tensor> b_step,           \
      std::optional<Tensor> b_lengths, std::optional<Tensor> b_mask, int64_t a_longest, int64_t b_longest, \
      bool every_row
#define ESIM_AT {a_start, a_step, a_lengths, a_mask, a_longest}, {b_start, b_step, b_lengths, b_mask, b_longest}

std::tuple<Tensor, Tensor> local_inference_cpu(const Tensor& a, const Tensor& b, ESIM_SIDES_PARAMETERS) {
  const Sides sides(a, b, ESIM_AT);
  Tensor m_a = new_like(sides.a, kParts, every_row), m_b = new_like(sides.b, kParts, every_row);
  forward(sides, kParts, m_a, m_b);
  return {m_a, m_b};
}

std::tuple<Tensor, Tensor> local_inference_backward_cpu(const Tensor& grad_m_a, const Tensor& grad_m_b,
                                                        const Tensor& a, const Tensor& b, ESIM_SIDES_PARAMETERS) {
  const Sides sides(a, b, ESIM_AT);
  Tensor grad_a = new_like(sides.a, 1, every_row), grad_b = new_like(sides.b, 1, every_row);
  backward(sides, kParts, contiguous_gradient(grad_m_a, sides.a, kParts),
           contiguous_gradient(grad_m_b, sides.b, kParts), grad_a, grad_b);
  return {grad_a, grad_b};
}

Tensor local_inference_packed_cpu(const Tensor& x, ESIM_SIDES_PARAMETERS, bool difference) {
  const Sides sides(x, ESIM_AT);
  const int64_t parts = difference ? kParts : kParts - 1;
  Tensor m = new_like(sides.a, parts, every_row);
  forward(sides, parts, m, m);
  return m;
}

Tensor local_inference_packed_backward_cpu(const Tensor& grad_m, const Tensor& x, ESIM_SIDES_PARAMETERS,
                                           bool difference) {
  const Sides sides(x, ESIM_AT);
  const int64_t parts = difference ? kParts : kParts - 1;
  const Tensor contiguous = contiguous_gradient(grad_m, sides.a, parts);
  Tensor grad = new_like(sides.a, 1, every_row);
  backward(sides, parts, contiguous, contiguous, grad, grad);
  return grad;
}

}  // namespace
}  // namespace esim_fast

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CPU, m) {
  m.impl("local_inference", TORCH_BOX(&esim_fast::local_inference_cpu));
  m.impl("local_inference_backward", TORCH_BOX(&esim_fast::local_inference_backward_cpu));
  m.impl("local_inference_packed", TORCH_BOX(&esim_fast::local_inference_packed_cpu));
  m.impl("local_inference_packed_backward", TORCH_BOX(&esim_fast::local_inference_packed_backward_cpu));
}
