// The recurrence of a bidirectional LSTM with int8 weights, a quarter of fp32's size, on processors with VNNI.
//
// States are quantized after each step. Gates, cell states and everything else are fp32.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "int8_cpu.h"

namespace esim_fast {
namespace {

constexpr int64_t kMostUnits = 1 << 16;  // with more, sums of products may exceed 32 bits
static_assert(kGates == kVectors, "a block of weights has one vector for each gate");

// One direction of a group of sentences, as in bilstm_cpu.cpp. Units are in blocks of one vector, and each block has
// its four gates side by side.
struct Task : Group {
  int64_t hidden, blocks;
  const float* gates;        // [N, 2, blocks, 4, lanes]: products with the input's integers, offset to this direction
  const float* input_scale;  // [N]: scales of the input's rows
  const float* bias;         // [blocks, 4, lanes]
  const int8_t* weight;      // [blocks, terms, 4, lanes, kTerms]
  const float* scale;        // [blocks, 4, lanes]: scales of the weights' rows
  const int32_t* offset;     // [blocks, 4, lanes]: subtracted from sums to correct for unsigned activations
  float* y;                  // [N, 2H], offset to this direction's half
};

// sigmoid(x) tanh(y) with one division, which costs as much as an exponential. Beyond 20, tanh is 1 in fp32.
template <int lanes>
ESIM_INLINE Vector<float, lanes> sigmoid_by_tangent(const Vector<float, lanes>& x, const Vector<float, lanes>& y) {
  using V = Vector<float, lanes>;
  const V above = y < -20.0f ? V{} - 20.0f : y, within = above > 20.0f ? V{} + 20.0f : above;
  const V power = exponential<lanes>(-2.0f * within);
  return (1.0f - power) / ((1.0f + exponential<lanes>(-x)) * (1.0f + power));
}

template <int lanes, int rows>
ESIM_INLINE void recur(const Task& task) {
  using V = Vector<float, lanes>;
  using I = Vector<int32_t, lanes>;
  constexpr int kWidth = kGates * lanes;
  const int64_t H = task.hidden, terms = (H + kTerms - 1) / kTerms, padded = up_to_multiple(terms * kTerms, 64);
  std::vector<float> c(task.sentences(0) * task.blocks * lanes);
  std::vector<uint8_t> h(task.sentences(0) * padded, kZeroPoint);  // quantized states of the previous step
  std::vector<float> h_scale(task.sentences(0));
  for (int64_t n = 0; n < task.steps->count(); ++n) {
    const int64_t t = task.in_order(n), count = task.sentences(t);
    const int64_t known = std::min(count, task.sentences(task.before(t)));
    for (int64_t block = 0; block < task.blocks; ++block) {
      const int64_t place = block * kWidth, unit = block * lanes, units = std::min<int64_t>(lanes, H - unit);
      for (int64_t i = 0; i < count; i += rows) {
        const int64_t here = std::min<int64_t>(rows, count - i), with_state = std::clamp<int64_t>(known - i, 0, here);
        // The product takes long enough to hide these prefetches.
        for (int64_t r = 0; r < here; ++r) {
          const float* gates = task.gates + task.row(t, i + r) * 2 * task.blocks * kWidth + place;
          for (int gate = 0; gate < kGates; ++gate) __builtin_prefetch(gates + gate * lanes);
        }
        int32_t product[rows * kWidth];
        if (with_state > 0) {
          multiply_rows<rows, lanes>(product, with_state, h.data() + i * padded, padded,
                                     task.weight + place * terms * kTerms, task.offset + place, terms);
        }
        for (int64_t r = 0; r < here; ++r) {
          const int64_t row = task.row(t, i + r);
          const float* gates = task.gates + row * 2 * task.blocks * kWidth + place;
          float* cell_state = c.data() + (i + r) * task.blocks * lanes + unit;
          V x[kGates], state{};
          for (int gate = 0; gate < kGates; ++gate) {
            const int64_t at = gate * lanes;
            x[gate] = load<V>(gates + at) * task.input_scale[row] + load<V>(task.bias + place + at);
            if (r < with_state) {
              const V sums = __builtin_convertvector(load<I>(product + r * kWidth + at), V);
              x[gate] += sums * (load<V>(task.scale + place + at) * h_scale[i + r]);
            }
          }
          if (r < with_state) state = load<V>(cell_state);
          state = state / (1.0f + exponential<lanes>(-x[1])) + sigmoid_by_tangent<lanes>(x[0], x[2]);
          store(cell_state, state);
          store(task.y + row * 2 * H + unit, sigmoid_by_tangent<lanes>(x[3], state), units);
        }
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      h_scale[i] = quantize_row<lanes>(h.data() + i * padded, task.y + task.row(t, i) * 2 * H, H);
    }
  }
}

ESIM_FOR_EACH_VNNI(run_task, recur, Task)

Tensor bilstm_int8(const Tensor& gates, const Tensor& input_scale, const Tensor& bias, const Tensor& weight,
                   const Tensor& scale, const Tensor& offset, int64_t H, const Tensor& batch_sizes) {
  const int64_t lanes = int8_lanes();
  STD_TORCH_CHECK(lanes, "esim_fast: int8 needs a processor with AVX512-VNNI or AVX-VNNI");
  STD_TORCH_CHECK(0 < H && H <= kMostUnits, "esim_fast: bilstm_int8 supports 1 to ", kMostUnits,
                  " hidden units, got ", H);
  const Steps steps(batch_sizes);
  const int64_t blocks = (H + lanes - 1) / lanes, terms = (H + kTerms - 1) / kTerms, N = steps.rows;
  check(gates, "gates", {N, 2, blocks, kGates, lanes});
  check(input_scale, "input_scale", {N});
  check(bias, "bias", {2, blocks, kGates, lanes});
  check(weight, "weight", {2, blocks, terms, kGates, lanes, kTerms}, ScalarType::Char);
  check(scale, "scale", {2, blocks, kGates, lanes});
  check(offset, "offset", {2, blocks, kGates, lanes}, ScalarType::Int);
  Tensor y = torch::stable::new_empty(gates, {N, 2 * H});
  float* const states = y.mutable_data_ptr<float>();
  const int64_t width = blocks * kGates * lanes;
  for_each_group(steps, [&](const Group& group) {
    const int64_t place = group.reverse * width;
    const Task task{group,
                    H,
                    blocks,
                    gates.const_data_ptr<float>() + place,
                    input_scale.const_data_ptr<float>(),
                    bias.const_data_ptr<float>() + place,
                    weight.const_data_ptr<int8_t>() + place * terms * kTerms,
                    scale.const_data_ptr<float>() + place,
                    offset.const_data_ptr<int32_t>() + place,
                    states + group.reverse * H};
    run_task(task);
  });
  return y;
}

}  // namespace
}  // namespace esim_fast

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CPU, m) { m.impl("bilstm_int8", TORCH_BOX(&esim_fast::bilstm_int8)); }
