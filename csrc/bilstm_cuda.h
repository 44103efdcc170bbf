// The persistent BiLSTM's kernels, as bilstm_cuda.cu launches them.
#pragma once

#include <cstdint>
#include <vector>

namespace esim_fast {

enum class Format { kBf16, kFp16, kTf32, kTf32x3 };

// Rows are packed: sentence s at time step t is row first_row[t] + s, longer sentences first.
struct Recurrence {
  const float *weight, *weight_reverse;  // W_hh of each direction, [4H, H]
  const int64_t* first_row;              // [steps + 1], ends with the number of rows that sentences fill
  int rows, steps;                       // that there is room for
  int H;
  int groups;             // of 8 units, at most, in a block
  int blocks;             // of a team
  int teams;              // of a direction
  void* exchange;         // without clusters: what the blocks of a team exchange
  unsigned int* counter;  // without clusters: one for each team, zero before the launch
};

// scalar_t is bf16, fp16 or fp32.
struct ForwardArguments : Recurrence {
  void* gates;     // scalar_t [rows, 2, H, 4]: products with the input, overwritten by the gates
  void* y;         // scalar_t [rows, 2, H]: states
  void* previous;  // scalar_t [rows, 2, H]: the states before each step
  float* c;        // [rows, 2, H]: cells
};

struct BackwardArguments : Recurrence {
  const void* grad_y;  // scalar_t [rows, 2, H]
  const void* gates;   // scalar_t [rows, 2, H, 4]
  const float* c;      // [rows, 2, H]
  void* grad_gates;    // scalar_t [rows, 2, H, 4]: gradients of the products with the input
};

// A kernel for some number of sentences. In lists, smaller numbers come first, and clusters before grids.
template <typename Arguments>
struct Variant {
  void (*kernel)(Arguments);
  bool cluster;
  bool wide;  // for up to 512 units, else 320
  int sentences;
  int threads;
  int most_groups;     // of 8 units in a block
  int shared_bytes;    // of a block
  int exchange_bytes;  // without clusters, of a team
};
using ForwardVariant = Variant<ForwardArguments>;
using BackwardVariant = Variant<BackwardArguments>;

std::vector<ForwardVariant> forward_variants(Format format, bool wide);
std::vector<BackwardVariant> backward_variants(Format format, bool wide);

}  // namespace esim_fast
