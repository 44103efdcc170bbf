// Products in int8 on processors with VNNI: quantization of activations by rows, and products of few rows. oneDNN
// multiplies many rows, but each call costs 20 to 30 us, much of the time that a single pair takes.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "int8_cpu.h"
#include "parallel.h"

namespace esim_fast {
namespace {

constexpr int64_t kElementsPerTask = 1 << 14;
constexpr int64_t kProductsPerTask = 1 << 18;
constexpr int64_t kTileRows = 12;
constexpr int64_t kMostTerms = 1 << 16;  // with more, sums of products may exceed 32 bits

struct Rows {
  const float* x;  // [rows, width]
  uint8_t* q;      // [rows, width], rows q_row apart
  float* scale;    // [rows]
  int64_t first, last, width, q_row;
};

template <int lanes, int>
ESIM_INLINE void quantize(const Rows& rows) {
  for (int64_t row = rows.first; row < rows.last; ++row) {
    rows.scale[row] = quantize_row<lanes>(rows.q + row * rows.q_row, rows.x + row * rows.width, rows.width);
  }
}

ESIM_FOR_EACH_PROCESSOR(quantize_rows_of, quantize, Rows)

// Some tiles of a product of quantized rows and weights: each of kTileRows rows and one block of weights.
struct Product {
  const uint8_t* q;  // [rows, terms * kTerms]
  int64_t rows, terms;
  const int8_t* weight;   // [blocks, terms, 4, lanes, kTerms]
  const int32_t* offset;  // [blocks, 4, lanes]: subtracted from sums to correct for unsigned activations
  const float* scale;     // [outputs]: scales of the weights' rows
  float* y;               // [rows, outputs]
  int64_t outputs, tiles_in_block, first, last;
};

template <int lanes, int rows>
ESIM_INLINE void multiply(const Product& task) {
  using V = Vector<float, lanes>;
  constexpr int kWidth = kVectors * lanes;
  const int64_t width = task.terms * kTerms, tiles = task.tiles_in_block;
  for (int64_t tile = task.first; tile < task.last; ++tile) {
    const int64_t block = tile / tiles, begin = tile % tiles * kTileRows, end = std::min(begin + kTileRows, task.rows);
    for (int64_t i = begin; i < end; i += rows) {
      const int64_t here = std::min<int64_t>(rows, end - i);
      int32_t sums[rows * kWidth];
      multiply_rows<rows, lanes>(sums, here, task.q + i * width, width, task.weight + block * kWidth * width,
                                 task.offset + block * kWidth, task.terms);
      for (int64_t r = 0; r < here; ++r) {
        for (int64_t n = block * kWidth, v = 0; v < kVectors && n < task.outputs; ++v, n += lanes) {
          const V sum = __builtin_convertvector(load<Vector<int32_t, lanes>>(sums + r * kWidth + v * lanes), V);
          const V scale = load<V>(task.scale + n, task.outputs - n);
          store(task.y + (i + r) * task.outputs + n, sum * scale, task.outputs - n);
        }
      }
    }
  }
}

ESIM_FOR_EACH_VNNI(run_product, multiply, Product)

void quantize_all(const Tensor& x, uint8_t* q, int64_t q_row, Tensor& scale) {
  const int64_t width = x.size(1), least = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(width, 1));
  const float* from = x.const_data_ptr<float>();
  float* to = scale.mutable_data_ptr<float>();
  parallel_for(0, x.size(0), least, [&](int64_t first, int64_t last) {
    quantize_rows_of(Rows{from, q, to, first, last, width, q_row});
  });
}

Tensor checked(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2 && x.scalar_type() == ScalarType::Float && x.is_cpu(), "esim_fast: ", name,
                  " needs a float32 tensor [M, K] on the CPU");
  return torch::stable::contiguous(x);
}

std::tuple<Tensor, Tensor> quantize_rows(const Tensor& input) {
  const Tensor x = checked(input, "quantize_rows");
  Tensor q = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Byte);
  Tensor scale = torch::stable::new_empty(x, {x.size(0)});
  quantize_all(x, q.mutable_data_ptr<uint8_t>(), x.size(1), scale);
  return {q, scale};
}

std::tuple<Tensor, Tensor> int8_products(const Tensor& input, const Tensor& weight, const Tensor& weight_scale,
                                         const Tensor& offset) {
  const int64_t lanes = int8_lanes();
  STD_TORCH_CHECK(lanes, "esim_fast: int8 needs a processor with AVX512-VNNI or AVX-VNNI");
  const Tensor x = checked(input, "int8_products");
  STD_TORCH_CHECK(x.size(1) <= kMostTerms, "esim_fast: int8_products supports rows of up to ", kMostTerms,
                  " elements, got ", x.size(1));
  STD_TORCH_CHECK(weight_scale.dim() == 1, "esim_fast: weight_scale must be [N]");
  const int64_t M = x.size(0), N = weight_scale.size(0), width = kVectors * lanes;
  const int64_t blocks = (N + width - 1) / width, terms = (x.size(1) + kTerms - 1) / kTerms;
  check(weight_scale, "weight_scale", {N});
  check(weight, "weight", {blocks, terms, kVectors, lanes, kTerms}, ScalarType::Char);
  check(offset, "offset", {blocks, kVectors, lanes}, ScalarType::Int);
  Tensor y = torch::stable::new_empty(x, {M, N}), scale = torch::stable::new_empty(x, {M});
  std::vector<uint8_t> q(M * terms * kTerms, kZeroPoint);
  quantize_all(x, q.data(), terms * kTerms, scale);
  Product all{q.data(), M, terms, weight.const_data_ptr<int8_t>(), offset.const_data_ptr<int32_t>(),
              weight_scale.const_data_ptr<float>(), y.mutable_data_ptr<float>(), N, (M + kTileRows - 1) / kTileRows};
  const int64_t products = kTileRows * width * terms * kTerms;  // of a tile
  const int64_t least = std::max<int64_t>(1, kProductsPerTask / std::max<int64_t>(1, products));
  parallel_for(0, blocks * all.tiles_in_block, least, [&](int64_t first, int64_t last) {
    Product task = all;
    task.first = first;
    task.last = last;
    run_product(task);
  });
  return {y, scale};
}

}  // namespace
}  // namespace esim_fast

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CPU, m) {
  m.impl("quantize_rows", TORCH_BOX(&esim_fast::quantize_rows));
  m.impl("int8_products", TORCH_BOX(&esim_fast::int8_products));
}
STABLE_TORCH_LIBRARY_IMPL(esim_fast, CompositeExplicitAutograd, m) {
  m.impl("int8_lanes", TORCH_BOX(&esim_fast::int8_lanes));
}
