// Inference in int8 on processors with VNNI, which multiply and add four bytes at a time: activations quantized row by
// row, and the recurrence of a bidirectional LSTM with int8 weights, a quarter of fp32's size.
//
// Sums of products are exact in 32 bits and scaled to fp32 before the gates. Everything else is fp32.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "parallel.h"
#include "steps.h"
#include "vectors.h"

namespace esim_fast {
namespace {

constexpr int kTerms = 4;            // bytes per lane that one instruction multiplies and adds
constexpr float kMost = 127.0f;      // the range is symmetric, so -128 is not used
constexpr int kZeroPoint = 128;      // of activations, which are unsigned, because the instruction takes such bytes
constexpr int64_t kElementsPerTask = 1 << 16;
constexpr int64_t kMostUnits = 1 << 16;  // with more, sums of products may exceed 32 bits

// fp32 lanes of this processor's vectors, or 0 without VNNI. setup.py defines the macros that the compiler supports.
int64_t int8_lanes() {
  static const int64_t lanes = [] {
#if defined(ESIM_AVX512_VNNI)
    if (processor() == Processor::avx512 && __builtin_cpu_supports("avx512vnni")) return 16;
#endif
#if defined(ESIM_AVX_VNNI)
    if (processor() != Processor::baseline && __builtin_cpu_supports("avxvnni")) return 8;
#endif
    return 0;
  }();
  return lanes;
}

// sum[lane] + a[4 lane] * b[4 lane] + ... + a[4 lane + 3] * b[4 lane + 3], with a unsigned and b signed.
template <int lanes>
ESIM_INLINE Vector<int32_t, lanes> multiply_bytes(Vector<int32_t, lanes> sum, Vector<int32_t, lanes> a,
                                                  Vector<int32_t, lanes> b) {
  // Inline assembly, because intrinsics do not compile in functions that are built for several processors.
#if defined(ESIM_AVX512_VNNI)
  if constexpr (lanes == 16) asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#endif
#if defined(ESIM_AVX_VNNI)
  if constexpr (lanes == 8) asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#endif
  return sum;
}

struct Rows {
  const float* x;  // [rows, width]
  uint8_t* q;      // [rows, width]
  float* scale;    // [rows]
  int64_t first, last, width;
};

// The largest magnitude in a row; NaN if any value is not finite.
template <int lanes>
ESIM_INLINE float magnitude_of(const float* x, int64_t width) {
  using V = Vector<float, lanes>;
  V most{}, poison{};
  for (int64_t d = 0; d < width; d += lanes) {
    const V v = load<V>(x + d, width - d), size = v < 0.0f ? -v : v;
    most = size > most ? size : most;
    poison += v * 0.0f;
  }
  return highest<lanes, float>(most) + total<lanes, float>(poison);
}

// The factor that scales a row to -127..127. It is 0 for rows near fp32's smallest numbers, and for rows that are not
// finite, whose scale NaN makes the result NaN.
ESIM_INLINE float factor_of(float magnitude) {
  return kMost * std::numeric_limits<float>::min() < magnitude && magnitude <= std::numeric_limits<float>::max()
             ? kMost / magnitude
             : 0.0f;
}

// The nearest 32-bit integers: adding 1.5 * 2^23 leaves them in the low bits.
template <int lanes>
ESIM_INLINE Vector<int32_t, lanes> rounded(const Vector<float, lanes>& x) {
  return (Vector<int32_t, lanes>)(x + 12582912.0f) - 0x4B400000;
}

// Writes a row's integers plus the zero point, and returns their scale.
template <int lanes>
ESIM_INLINE float quantize_row(uint8_t* q, const float* x, int64_t width) {
  using I = Vector<int32_t, lanes>;
  const float magnitude = magnitude_of<lanes>(x, width), factor = factor_of(magnitude);
  for (int64_t d = 0; d < width; d += lanes) {
    const I integers = factor == 0.0f ? I{} : rounded<lanes>(load<Vector<float, lanes>>(x + d, width - d) * factor);
    store(q + d, __builtin_convertvector(integers + kZeroPoint, Vector<uint8_t, lanes>), width - d);
  }
  return magnitude / kMost;
}

template <int lanes, int>
ESIM_INLINE void quantize(const Rows& rows) {
  for (int64_t row = rows.first; row < rows.last; ++row) {
    const int64_t place = row * rows.width;
    rows.scale[row] = quantize_row<lanes>(rows.q + place, rows.x + place, rows.width);
  }
}

ESIM_FOR_EACH_PROCESSOR(quantize_rows_of, quantize, Rows)

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

template <int rows, int lanes>
ESIM_INLINE void multiply_rows(int32_t* product, int64_t count, const uint8_t* h, int64_t h_row, const int8_t* weight,
                               const int32_t* offset, int64_t terms) {
  if constexpr (rows > 1) {
    if (count < rows) return multiply_rows<rows - 1, lanes>(product, count, h, h_row, weight, offset, terms);
  }
  using I = Vector<int32_t, lanes>;
  I sum[rows][kGates];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int gate = 0; gate < kGates; ++gate) sum[r][gate] = -load<I>(offset + gate * lanes);
  }
  for (int64_t k = 0; k < terms; ++k, h += kTerms, weight += kGates * lanes * kTerms) {
    I right[kGates];
#pragma GCC unroll 8
    for (int gate = 0; gate < kGates; ++gate) right[gate] = load<I>(weight + gate * lanes * kTerms);
    // The address may lie past the end, but a prefetch never faults.
#pragma GCC unroll 8
    for (int gate = 0; gate < kGates; ++gate) __builtin_prefetch(weight + (kAhead * kGates + gate) * lanes * kTerms);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      int32_t bytes;
      std::memcpy(&bytes, h + r * h_row, sizeof(bytes));
      const I left = I{} + bytes;
#pragma GCC unroll 8
      for (int gate = 0; gate < kGates; ++gate) sum[r][gate] = multiply_bytes<lanes>(sum[r][gate], left, right[gate]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int gate = 0; gate < kGates; ++gate) store(product + (r * kGates + gate) * lanes, sum[r][gate]);
  }
}

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

#if defined(ESIM_AVX512_VNNI)
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) void recur_avx512(const Task& task) {
  recur<16, 6>(task);
}
#endif
#if defined(ESIM_AVX_VNNI)
__attribute__((target("avx2,fma"))) void recur_avx2(const Task& task) { recur<8, 2>(task); }
#endif

std::tuple<Tensor, Tensor> quantize_rows(const Tensor& input) {
  STD_TORCH_CHECK(input.dim() == 2 && input.scalar_type() == ScalarType::Float && input.is_cpu(),
                  "esim_fast: quantize_rows needs a float32 tensor [N, D] on the CPU");
  const Tensor x = torch::stable::contiguous(input);
  const int64_t count = x.size(0), width = x.size(1);
  Tensor q = torch::stable::new_empty(x, {count, width}, ScalarType::Byte), scale = torch::stable::new_empty(x, {count});
  const Rows rows{x.const_data_ptr<float>(), q.mutable_data_ptr<uint8_t>(), scale.mutable_data_ptr<float>(), 0, 0, width};
  const int64_t least = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(width, 1));
  parallel_for(0, count, least, [&](int64_t begin, int64_t end) {
    Rows mine = rows;
    mine.first = begin;
    mine.last = end;
    quantize_rows_of(mine);
  });
  return {q, scale};
}

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
#if defined(ESIM_AVX512_VNNI)
    if (lanes == 16) recur_avx512(task);
#endif
#if defined(ESIM_AVX_VNNI)
    if (lanes == 8) recur_avx2(task);
#endif
  });
  return y;
}

}  // namespace
}  // namespace esim_fast

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CPU, m) {
  m.impl("quantize_rows", TORCH_BOX(&esim_fast::quantize_rows));
  m.impl("bilstm_int8", TORCH_BOX(&esim_fast::bilstm_int8));
}
STABLE_TORCH_LIBRARY_IMPL(esim_fast, CompositeExplicitAutograd, m) {
  m.impl("int8_lanes", TORCH_BOX(&esim_fast::int8_lanes));
}
