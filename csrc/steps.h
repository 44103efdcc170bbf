// The time steps of packed sentences, and how the recurrence of a bidirectional LSTM is distributed over threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "parallel.h"
#include "rows.h"

namespace esim_fast {

constexpr int kGates = 4;          // input, forget, cell, output: torch.nn.LSTM's order
constexpr int kAhead = 8;          // prefetch distance for weights, in terms of a product
constexpr int64_t kLeastRows = 6;  // sentences in a group: with fewer, rereading the weights costs too much

// Row (t, r) of a packed tensor is token t of the r-th longest sentence.
struct Steps {
  std::vector<int64_t> size;   // how many sentences reach step t
  std::vector<int64_t> first;  // row of (t, 0)
  int64_t rows = 0;

  explicit Steps(const Tensor& batch_sizes) {
    STD_TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.scalar_type() == ScalarType::Long &&
                        batch_sizes.is_contiguous() && batch_sizes.is_cpu() && batch_sizes.size(0) > 0,
                    "esim_fast: batch_sizes must be a contiguous int64 tensor [T] on the CPU, with T > 0");
    const int64_t* values = batch_sizes.const_data_ptr<int64_t>();
    for (int64_t t = 0; t < batch_sizes.size(0); ++t) {
      STD_TORCH_CHECK(values[t] > 0 && (t == 0 || values[t] <= values[t - 1]), "esim_fast: batch_sizes[", t, "] = ",
                      values[t], ", expected positive, non-increasing numbers");
      size.push_back(values[t]);
      first.push_back(rows);
      STD_TORCH_CHECK(!__builtin_add_overflow(rows, values[t], &rows), "esim_fast: batch_sizes[", t, "] = ", values[t],
                      " overflows the number of rows");
    }
  }
  int64_t count() const { return static_cast<int64_t>(size.size()); }
};

// The work of one task: a direction, and every `groups`-th sentence starting at `group`. Sentences are sorted by
// length, so distributing them round-robin balances the groups.
struct Group {
  const Steps* steps;
  bool reverse;
  int64_t group, groups;

  int64_t sentences(int64_t t) const {
    if (t < 0 || t >= steps->count()) return 0;
    return std::max<int64_t>(0, (steps->size[t] - group + groups - 1) / groups);
  }
  int64_t row(int64_t t, int64_t i) const { return steps->first[t] + group + groups * i; }
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  // The n-th step in the order in which states are computed.
  int64_t in_order(int64_t n) const { return reverse ? steps->count() - 1 - n : n; }
};

// Operators can be called directly, so every tensor that a recurrence reads is checked.
inline void check(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape,
                  ScalarType type = ScalarType::Float) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size()) && tensor.scalar_type() == type &&
              tensor.is_contiguous() && tensor.is_cpu();
  for (int64_t i = 0; fits && i < tensor.dim(); ++i) fits = tensor.size(i) == shape.begin()[i];
  const char* dtype = type == ScalarType::Float ? "float32" : type == ScalarType::Char ? "int8" : "int32";
  STD_TORCH_CHECK(fits, "esim_fast: ", name, " must be a contiguous ", dtype, " tensor of the right shape on the CPU");
}

// Calls run(group) for each direction of each group of sentences. Sentences are independent, so a task runs through all
// time steps without waiting for others.
template <typename F>
void for_each_group(const Steps& steps, const F& run) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t groups = std::clamp<int64_t>((threads + 1) / 2, 1, (steps.size[0] + kLeastRows - 1) / kLeastRows);
  parallel_for(0, 2 * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) run(Group{&steps, n % 2 == 1, n / 2, groups});
  });
}

}  // namespace esim_fast
