// The recurrence of a bidirectional LSTM over packed sentences on the CPU, forward and backward, with fused gates.
//
// Products with the input and the weights' gradients are matrix products over all tokens, computed elsewhere. What
// remains is one small product per time step, whose sums stay in registers until the gates have been applied. Sentences
// are independent, so each direction of each group of sentences is a task that runs through all time steps without
// waiting for others.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "steps.h"
#include "vectors.h"

namespace esim_fast {
namespace {

constexpr int64_t kPart = 16;        // units in a part of packed weights: whole vectors on every processor

// One direction of a group of sentences.
struct Task : Group {
  int64_t hidden;
  const float* weight;  // packed; [4H, H] for the backward pass
  float* gates;         // [N, 4H], rows gates_row apart: products with the input, overwritten by the gates if c is kept
  int64_t gates_row;
  float* y;             // [N, 2H], offset to this direction's half
  float* c;             // likewise, or null if there is no backward pass
  // backward
  const float* grad_y;      // [N, 2H], offset to this direction's half
  float* grad_gates;        // [N, 4H], before the gates' activations
  float* previous;          // [N, 2H]: the initial state of each step, offset to this direction's half
};

// Whether prefetches pay. Weights come from the second-level cache, on Intel's processors twice as fast with them. On
// AMD's (measured on Zen 4, 2026-11-30) they make one or two sentences slower, and gain nothing for more.
bool prefetches() {
#if defined(__x86_64__)
  static const bool amd = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
  }();
  return !amd;
#else
  return true;
#endif
}

// product[r, v]: `count` rows of a (at most `rows`) times a block of packed weights.
template <int rows, int vectors, typename V>
ESIM_INLINE void multiply_rows(float* product, int count, const float* a, int64_t a_row, const float* b, int64_t terms) {
  constexpr int lanes = sizeof(V) / sizeof(float), width = vectors * lanes;
  if constexpr (rows > 1) {
    if (count < rows) return multiply_rows<rows - 1, vectors, V>(product, count, a, a_row, b, terms);
  }
  V sum[rows][vectors] = {};
  if (prefetches()) {
    multiply_add<rows, vectors, kAhead>(sum, a, a_row, 1, b, width, terms);
  } else {
    multiply_add<rows, vectors>(sum, a, a_row, 1, b, width, terms);
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) store(product + r * width + v * lanes, sum[r][v]);
  }
}

// One direction's weights [4H, H], and a part of the packed weights [parts, H, 4, 16 units].
struct Part {
  const float* weight;
  float* packed;
  int64_t hidden, number;
};

// Packs as [blocks, H, 4, lanes]: the weights of a block of units, its four gates side by side, padded with 0.
template <int lanes, int>
ESIM_INLINE void pack(const Part& part) {
  constexpr int kWidth = kGates * lanes;
  const int64_t H = part.hidden, first_unit = part.number * kPart, last_unit = std::min(H, first_unit + kPart);
  float* packed = part.packed + part.number * H * kGates * kPart;
  if (last_unit < first_unit + kPart) std::fill_n(packed, H * kGates * kPart, 0.0f);
  for (int64_t unit = first_unit; unit < last_unit; unit += lanes, packed += H * kWidth) {
    const int64_t units = std::min<int64_t>(lanes, last_unit - unit);
    for (int gate = 0; gate < kGates; ++gate) {
      const float* from = part.weight + (gate * H + unit) * H;
      float* to = packed + gate * lanes;
      // In tiles, so that the transposed part stays in the cache.
      for (int64_t first = 0; first < H; first += lanes) {
        const int64_t last = std::min<int64_t>(first + lanes, H);
        for (int64_t lane = 0; lane < units; ++lane) {
          for (int64_t k = first; k < last; ++k) to[k * kWidth + lane] = from[lane * H + k];
        }
      }
    }
  }
}

// Loops over time steps in the order of the recurrence, then blocks of one vector of units, then tiles of rows.
template <int lanes, int rows>
ESIM_INLINE void forward(const Task& task) {
  using V = Vector<float, lanes>;
  const int64_t H = task.hidden, blocks = (H + lanes - 1) / lanes;
  constexpr int kWidth = kGates * lanes;
  std::vector<float> cells(task.sentences(0) * H);  // cell states for the next step
  for (int64_t n = 0; n < task.steps->count(); ++n) {
    const int64_t t = task.in_order(n), before = task.before(t);
    const int64_t count = task.sentences(t), known = std::min(count, task.sentences(before));
    // For few sentences every other step goes backward, because the weights that it begins with are still in the cache.
    const bool back = n % 2 == 1 && count <= rows;
    for (int64_t nth = 0; nth < blocks; ++nth) {
      const int64_t block = back ? blocks - 1 - nth : nth;
      const int64_t unit = block * lanes, units = std::min<int64_t>(lanes, H - unit);
      const float* panel = task.weight + block * H * kWidth;
      for (int64_t i = 0; i < count; i += rows) {
        const int here = static_cast<int>(std::min<int64_t>(rows, count - i));
        const int with_state = static_cast<int>(std::clamp<int64_t>(known - i, 0, here));
        // The product takes long enough to hide these prefetches.
        for (int r = 0; r < here; ++r) {
          const float* gates = task.gates + task.row(t, i + r) * task.gates_row + unit + units - 1;
          for (int gate = 0; gate < kGates; ++gate) __builtin_prefetch(gates + gate * H);
        }
        float product[rows * kWidth];
        if (with_state > 0) {
          const float* h = task.y + task.row(before, i) * 2 * H;
          multiply_rows<rows, kGates, V>(product, with_state, h, task.groups * 2 * H, panel, H);
        }
        for (int r = 0; r < here; ++r) {
          const int64_t row = task.row(t, i + r);
          float* gates = task.gates + row * task.gates_row + unit;
          float* cell_state = cells.data() + (i + r) * H + unit;
          V x[kGates], c{};
          for (int gate = 0; gate < kGates; ++gate) x[gate] = load<V>(gates + gate * H, units);
          if (r < with_state) {
            for (int gate = 0; gate < kGates; ++gate) x[gate] += load<V>(product + r * kWidth + gate * lanes);
            c = load<V>(cell_state, units);
          }
          const V input = sigmoid<lanes>(x[0]), forget = sigmoid<lanes>(x[1]);
          const V cell = hyperbolic_tangent<lanes>(x[2]), output = sigmoid<lanes>(x[3]);
          c = forget * c + input * cell;
          store(cell_state, c, units);
          store(task.y + row * 2 * H + unit, output * hyperbolic_tangent<lanes>(c), units);
          if (!task.c) continue;
          store(gates, input, units);
          store(gates + H, forget, units);
          store(gates + 2 * H, cell, units);
          store(gates + 3 * H, output, units);
          store(task.c + row * 2 * H + unit, c, units);
        }
      }
    }
  }
}

// Loops in the reverse order, with blocks of four vectors of units.
template <int lanes, int rows>
ESIM_INLINE void backward(const Task& task) {
  using V = Vector<float, lanes>;
  constexpr int kVectors = 4, kWidth = kVectors * lanes;
  const int64_t H = task.hidden, blocks = (H + kWidth - 1) / kWidth;
  // [blocks, 4H, 4 vectors of units]
  std::vector<float> packed(blocks * kGates * H * kWidth);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t unit = block * kWidth, units = std::min<int64_t>(kWidth, H - unit);
    float* panel = packed.data() + block * kGates * H * kWidth;
    for (int64_t k = 0; k < kGates * H; ++k) std::copy_n(task.weight + k * H + unit, units, panel + k * kWidth);
  }
  std::vector<float> grad_c(task.sentences(0) * H);  // gradient of the state that is passed to the next step
  for (int64_t n = task.steps->count() - 1; n >= 0; --n) {
    const int64_t t = task.in_order(n), before = task.before(t), after = task.before(t) == t + 1 ? t - 1 : t + 1;
    const int64_t count = task.sentences(t), known = std::min(count, task.sentences(before));
    const int64_t continued = std::min(count, task.sentences(after));
    for (int64_t block = 0; block < blocks; ++block) {
      const float* panel = packed.data() + block * kGates * H * kWidth;
      for (int64_t i = 0; i < count; i += rows) {
        const int here = static_cast<int>(std::min<int64_t>(rows, count - i));
        const int with_state = static_cast<int>(std::clamp<int64_t>(continued - i, 0, here));
        float product[rows * kWidth];
        if (with_state > 0) {
          const float* grad = task.grad_gates + task.row(after, i) * kGates * H;
          multiply_rows<rows, kVectors, V>(product, with_state, grad, task.groups * kGates * H, panel, kGates * H);
        }
        for (int r = 0; r < here; ++r) {
          const int64_t row = task.row(t, i + r);
          for (int v = 0; v < kVectors; ++v) {
            const int64_t unit = block * kWidth + v * lanes, units = std::min<int64_t>(lanes, H - unit);
            if (units <= 0) break;
            const float* gates = task.gates + row * kGates * H + unit;
            float* grad_gates = task.grad_gates + row * kGates * H + unit;
            const V input = load<V>(gates, units), forget = load<V>(gates + H, units);
            const V cell = load<V>(gates + 2 * H, units), output = load<V>(gates + 3 * H, units);
            const V tangent = hyperbolic_tangent<lanes>(load<V>(task.c + row * 2 * H + unit, units));
            V c_before{}, grad_h = load<V>(task.grad_y + row * 2 * H + unit, units), grad{};
            if (i + r < known) c_before = load<V>(task.c + task.row(before, i + r) * 2 * H + unit, units);
            if (r < with_state) {
              grad_h += load<V>(product + r * kWidth + v * lanes);
              grad = load<V>(grad_c.data() + (i + r) * H + unit, units);
            }
            grad += grad_h * output * (1.0f - tangent * tangent);
            store(grad_gates, grad * cell * input * (1.0f - input), units);
            store(grad_gates + H, grad * c_before * forget * (1.0f - forget), units);
            store(grad_gates + 2 * H, grad * input * (1.0f - cell * cell), units);
            store(grad_gates + 3 * H, grad_h * tangent * output * (1.0f - output), units);
            store(grad_c.data() + (i + r) * H + unit, grad * forget, units);
          }
        }
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      float* to = task.previous + task.row(t, i) * 2 * H;
      if (i < known) {
        std::copy_n(task.y + task.row(before, i) * 2 * H, H, to);
      } else {
        std::fill_n(to, H, 0.0f);
      }
    }
  }
}

ESIM_FOR_EACH_PROCESSOR(pack_part, pack, Part)
ESIM_FOR_EACH_PROCESSOR(forward_task, forward, Task)
ESIM_FOR_EACH_PROCESSOR(backward_task, backward, Task)

int64_t hidden_size(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) >= kGates, "esim_fast: recurrent weights must be [4H, H]");
  return weight.size(0) / kGates;  // not size(1), because four times that could overflow
}

int64_t parts_of(int64_t hidden) { return hidden / kPart + (hidden % kPart != 0); }

Tensor bilstm_pack_cpu(const Tensor& weight, const Tensor& weight_reverse) {
  const int64_t H = hidden_size(weight), parts = parts_of(H);
  for (const Tensor* w : {&weight, &weight_reverse}) check(*w, "a recurrent weight", {kGates * H, H});
  Tensor packed = torch::stable::new_empty(weight, {2, parts, H, kGates * kPart});
  float* const to = packed.mutable_data_ptr<float>();
  const float* const weights[] = {weight.const_data_ptr<float>(), weight_reverse.const_data_ptr<float>()};
  parallel_for(0, 2 * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t direction = n / parts;
      pack_part(Part{weights[direction], to + direction * parts * H * kGates * kPart, H, n % parts});
    }
  });
  return packed;
}

// gates: both directions, rows gates_row apart. If c is null, nothing is saved for a backward pass.
Tensor run_forward(const Steps& steps, float* const (&gates)[2], int64_t gates_row, const Tensor& packed, Tensor* c) {
  const int64_t H = packed.size(2);
  Tensor y = torch::stable::new_empty(packed, {steps.rows, 2 * H});
  for_each_group(steps, [&](const Group& group) {
    Task task{group, H};
    task.weight = packed.const_data_ptr<float>() + task.reverse * packed.numel() / 2;
    task.gates = gates[task.reverse];
    task.gates_row = gates_row;
    task.y = y.mutable_data_ptr<float>() + task.reverse * H;
    task.c = c ? c->mutable_data_ptr<float>() + task.reverse * H : nullptr;
    forward_task(task);
  });
  return y;
}

std::tuple<Tensor, Tensor> bilstm_cpu(Tensor gates, Tensor gates_reverse, const Tensor& weight,
                                      const Tensor& weight_reverse, const Tensor& batch_sizes) {
  const Steps steps(batch_sizes);
  const Tensor packed = bilstm_pack_cpu(weight, weight_reverse);
  const int64_t H = packed.size(2);
  for (const Tensor* g : {&gates, &gates_reverse}) check(*g, "a direction's gates", {steps.rows, kGates * H});
  Tensor c = torch::stable::new_empty(gates, {steps.rows, 2 * H});
  float* const data[] = {gates.mutable_data_ptr<float>(), gates_reverse.mutable_data_ptr<float>()};
  return {run_forward(steps, data, kGates * H, packed, &c), c};
}

Tensor bilstm_states_cpu(const Tensor& gates, const Tensor& packed, const Tensor& batch_sizes) {
  const Steps steps(batch_sizes);
  const int64_t H = packed.dim() == 4 ? packed.size(2) : 0;
  check(packed, "packed weights", {2, parts_of(H), H, kGates * kPart});
  STD_TORCH_CHECK(H > 0, "esim_fast: packed weights must come from bilstm_pack");
  check(gates, "both directions' gates", {steps.rows, 2 * kGates * H});
  // Without c, gates are only read.
  float* const data = const_cast<float*>(gates.const_data_ptr<float>());
  return run_forward(steps, {data, data + kGates * H}, 2 * kGates * H, packed, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> bilstm_backward_cpu(const Tensor& grad_y, const Tensor& y, const Tensor& c,
                                                       const Tensor& gates, const Tensor& gates_reverse,
                                                       const Tensor& weight, const Tensor& weight_reverse,
                                                       const Tensor& batch_sizes) {
  const Steps steps(batch_sizes);
  const int64_t H = hidden_size(weight);
  const Tensor grad = torch::stable::contiguous(grad_y);
  for (const Tensor* w : {&weight, &weight_reverse}) check(*w, "a recurrent weight", {kGates * H, H});
  for (const Tensor* g : {&gates, &gates_reverse}) check(*g, "a direction's gates", {steps.rows, kGates * H});
  for (const Tensor* s : {&grad, &y, &c}) check(*s, "grad_y, y and c", {steps.rows, 2 * H});
  Tensor grad_gates[] = {torch::stable::empty_like(gates), torch::stable::empty_like(gates)};
  Tensor previous = torch::stable::empty_like(y);
  const Tensor* const kept[] = {&gates, &gates_reverse};
  const float* const weights[] = {weight.const_data_ptr<float>(), weight_reverse.const_data_ptr<float>()};
  for_each_group(steps, [&](const Group& group) {
    Task task{group, H};
    const int64_t half = task.reverse * H;
    task.weight = weights[task.reverse];
    // Only read here, because there may be several backward passes.
    task.gates = const_cast<float*>(kept[task.reverse]->const_data_ptr<float>());
    task.y = const_cast<float*>(y.const_data_ptr<float>()) + half;
    task.c = const_cast<float*>(c.const_data_ptr<float>()) + half;
    task.grad_y = grad.const_data_ptr<float>() + half;
    task.grad_gates = grad_gates[task.reverse].mutable_data_ptr<float>();
    task.previous = previous.mutable_data_ptr<float>() + half;
    backward_task(task);
  });
  return {grad_gates[0], grad_gates[1], previous};
}

}  // namespace
}  // namespace esim_fast

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CPU, m) {
  m.impl("bilstm", TORCH_BOX(&esim_fast::bilstm_cpu));
  m.impl("bilstm_pack", TORCH_BOX(&esim_fast::bilstm_pack_cpu));
  m.impl("bilstm_states", TORCH_BOX(&esim_fast::bilstm_states_cpu));
  m.impl("bilstm_backward", TORCH_BOX(&esim_fast::bilstm_backward_cpu));
}
