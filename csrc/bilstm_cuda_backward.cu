// The recurrence of a packed BiLSTM on NVIDIA GPUs, backward: the gradients of the products with the input. See
// bilstm_cuda_team.h for how blocks share the work.
#include <algorithm>
#include <vector>

#include "bilstm_cuda.h"
#include "bilstm_cuda_team.h"

namespace esim_fast {
namespace {

// A block computes the gradients of its own gates and multiplies them by its own rows of W_hh. So each block has a
// share of the gradients of all states, which it gives to the blocks whose units they belong to, and these add up the
// shares in the order of the blocks. That is half of what it takes to give all gradients of gates to all blocks. A warp
// multiplies for 16 units of all blocks, which are the rows of its tiles of weights; their columns are the gates of the
// block's units, the four of a unit side by side.
template <typename Arithmetic_, bool kCluster_, bool kWide_, int kTiles_>
struct BackwardConfig {
  using Arithmetic = Arithmetic_;
  static constexpr bool kCluster = kCluster_;
  static constexpr bool kWide = kWide_;    // up to 512 units, else 320
  static constexpr int kTiles = kTiles_;   // of sentences
  static constexpr int kGroups = kWide ? 4 : 5;  // of units, at most, in a block
  static constexpr int kMostBlocks = kWide ? 16 : 8;
  static constexpr int kUnits = kGroups * kUnitsOfGroup;
  static constexpr int kWarps = 4 * kGroups;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowTiles = kUnits * kMostBlocks / 16 / kWarps;  // of weights, one below the other, of a warp
  static constexpr int kDepth = kUnits * 4 * Arithmetic::kBytes / 32;   // one behind the other
  static constexpr int kInRegisters = std::min(kDepth, kWide ? 8 : 10);  // of these; the others in shared memory
  static constexpr int kSentences = kTile * kTiles;
  static constexpr int kCells = (kUnits * kSentences + kThreads - 1) / kThreads;  // of a thread
  using WarpWeights = Weights<kRowTiles, kDepth, kInRegisters>;
  static constexpr int kWeightBytes = kWarps * WarpWeights::kSharedBytes;
  static constexpr int kGradBytes = 2 * kDepth * kSentences * 16;  // of the block's gates
  static constexpr int kShareBytes = kMostBlocks * kUnits * kSentences * 4;  // of the block's states, from all blocks
  static constexpr int kSharedBytes = kWeightBytes + 2 * kGradBytes + 2 * kCluster * kShareBytes + 16;
  static_assert(kUnits * kMostBlocks == 16 * kRowTiles * kWarps);
  static_assert(kSharedBytes <= kMostShared);
  static_assert((kRowTiles * kInRegisters * 4 + kCells * 6 + 24) * kThreads <= 65536, "weights fit the registers");
  static_assert(kShareBytes < 1 << 20, "an mbarrier counts the bytes of a step");
};

template <typename Config>
__device__ __forceinline__ void backward(const BackwardArguments& a) {
  using A = typename Config::Arithmetic;
  using Four = typename A::Four;
  constexpr bool kCluster = Config::kCluster;
  constexpr int kDepth = Config::kDepth, kRowTiles = Config::kRowTiles;
  constexpr int kSentences = Config::kSentences, kCells = Config::kCells, kUnits = Config::kUnits;

  unsigned char* const shared = dynamic_shared();
  // Twice the gradients of gates, laid out [piece of 16 bytes][sentence].
  unsigned char* const grads = shared + Config::kWeightBytes;
  // Twice the shares of the gradients of states, laid out [block][unit][sentence].
  float* const shares = reinterpret_cast<float*>(grads + 2 * Config::kGradBytes);
  uint64_t* const barriers =
      reinterpret_cast<uint64_t*>(grads + 2 * Config::kGradBytes + 2 * kCluster * Config::kShareBytes);

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = warp_of_thread();
  const int team = static_cast<int>(blockIdx.x) / a.blocks, rank = static_cast<int>(blockIdx.x) % a.blocks;
  const int direction = team % 2, H = a.H;
  const int groups = (H + kUnitsOfGroup - 1) / kUnitsOfGroup;  // of the team
  const int first_unit = rank * a.groups * kUnitsOfGroup;
  const int own_units = min(a.groups, groups - rank * a.groups) * kUnitsOfGroup;  // with those that fill up a group
  const int depth = own_units * 4 * A::kBytes / 32;

  const Batch batch(a);
  batch.clear_rest(a.grad_gates, 8 * H * A::kBytes);

  typename Config::WarpWeights weights(shared, warp, lane);
  const int begin = lane % 4 * (4 / A::kBytes);  // this thread's first column: a gate of a unit
  const int row = warp * kRowTiles * 16 + lane / 4;
  uint32_t units = max(0, min(own_units, H - first_unit) - begin / 4);  // from here on
  const float* corner =
      (direction ? a.weight_reverse : a.weight) + (begin % 4 * H + first_unit + begin / 4) * H + row;
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      uint32_t fragment[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int down = m * 16 + j % 2 * 8;
        const auto value = [&](int i) {
          return i / 4 < (row + down < H ? static_cast<int>(units) : 0) ? corner[(i % 4 * H + i / 4) * H + down] : 0.f;
        };
        fragment[j] = A::word(value, 4 * (j / 2));
      }
      weights.set(m, k, fragment);
    }
    corner += 8 / A::kBytes * H;
    units -= 8 / A::kBytes;
    forget(units);
  }
  Signals<kCluster> signals(a, team, barriers);
  __syncthreads();

  for (int first = team / 2 * kSentences; first < batch.rows; first += a.teams * kSentences) {
    const int steps = batch.length(first);  // the longest sentence is the first
    if (steps == 0) break;                  // later ones have no steps either
    signals.meet();
    // A thread has kCells of the block's units and sentences, in all steps.
    const auto own_of = [&](int i) { return (thread + i * Config::kThreads) / kSentences; };
    const auto sentence_of = [&](int i) { return first + (thread + i * Config::kThreads) % kSentences; };
    const auto exists = [&](int i, const Step& step) {
      return own_of(i) < own_units && first_unit + own_of(i) < H && sentence_of(i) < step.sentences;
    };
    const auto place = [&](int i, const Step& step) {
      return ((step.begin + sentence_of(i)) * 2 + direction) * H + first_unit + own_of(i);
    };
    float grad_cell[kCells] = {}, cell[kCells] = {};
    Step step = batch.step(direction ? 0 : steps - 1);
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      if (exists(i, step)) cell[i] = a.c[place(i, step)];
    }

    for (int n = 0; n < steps; ++n) {  // from the state computed last to the first
      const Step before = batch.step(direction ? n + 1 : steps - 2 - n);
      const bool last = n + 1 == steps;
      Four gates[kCells] = {};  // loaded before anybody waits, like the next two
      float grad_state[kCells] = {}, cell_before[kCells] = {};
#pragma unroll
      for (int i = 0; i < kCells; ++i) {
        if (exists(i, step)) {
          gates[i] = static_cast<const Four*>(a.gates)[place(i, step)];
          grad_state[i] = A::widen(static_cast<const typename A::Scalar*>(a.grad_y)[place(i, step)]);
        }
        if (exists(i, before)) cell_before[i] = a.c[place(i, before)];
      }
      if (!last) signals.expect(n + 1, own_units * kSentences * 4 * a.blocks);
      if (n > 0) {
        signals.wait(n, true);
#pragma unroll
        for (int i = 0; i < kCells; ++i) {
          if (own_of(i) >= own_units) continue;
          const int at = thread + i * Config::kThreads;
          float sum = 0;
#pragma unroll 8
          for (int block = 0; block < a.blocks; ++block) {  // always in the same order
            if constexpr (kCluster) {
              sum += shares[(n % 2 * Config::kMostBlocks + block) * kUnits * kSentences + at];
            } else {
              const int row = ((team * 2 + n % 2) * a.blocks + block) * groups * kUnitsOfGroup + first_unit;
              sum += load_shared_by_blocks(static_cast<const float*>(a.exchange) + row * kSentences + at);
            }
          }
          grad_state[i] += sum;
        }
      }
      unsigned char* const grads_here = grads + n % 2 * Config::kGradBytes;
#pragma unroll
      for (int i = 0; i < kCells; ++i) {
        if (own_of(i) >= own_units) continue;
        const bool active = exists(i, step);
        float gate[4];
        A::widen(gates[i], gate);
        const float tangent = A::tanh(cell[i]);
        const float grad = active ? grad_cell[i] + grad_state[i] * gate[3] * (1 - tangent * tangent) : 0.f;
        const float grad_gate[4] = {grad * gate[2] * gate[0] * (1 - gate[0]),
                                    grad * cell_before[i] * gate[1] * (1 - gate[1]),
                                    grad * gate[0] * (1 - gate[2] * gate[2]),
                                    active ? grad_state[i] * tangent * gate[3] * (1 - gate[3]) : 0.f};
        grad_cell[i] = grad * gate[1];
        cell[i] = cell_before[i];
        if (active) static_cast<Four*>(a.grad_gates)[place(i, step)] = A::narrow(grad_gate);
        const auto operand = A::operand(grad_gate);
        const int byte = own_of(i) * static_cast<int>(sizeof(operand));
        const int to = (byte / 16 * kSentences + sentence_of(i) - first) * 16 + byte % 16;
        memcpy(grads_here + to, &operand, sizeof(operand));
      }
      step = before;
      if (last) continue;
      __syncthreads();

      const uint32_t* const words = reinterpret_cast<const uint32_t*>(grads_here);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const int row_tile = warp * kRowTiles + m;
        if (row_tile * 2 >= groups) continue;
#pragma unroll 2
        for (int tile = 0; tile < Config::kTiles; ++tile) {
          float acc[2][4] = {};  // two, because an mma waits for the one before
#pragma unroll
          for (int k = 0; k < kDepth; ++k) {
            uint32_t fragment[4];
            weights.get(m, k, fragment);
            const uint32_t b[2] = {words[(2 * k * kSentences + tile * kTile) * 4 + lane],
                                   words[((2 * k + 1) * kSentences + tile * kTile) * 4 + lane]};
            if (k < depth) A::multiply(acc[k % 2], fragment, b);
          }
          float sum[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[j] = acc[0][j] + acc[1][j];
          // From two sentences of two units to four sentences of one: two neighbors swap.
          const bool odd = lane % 2;
          const uint32_t first_of_other = shuffle(as_bits(odd ? sum[0] : sum[2]), lane ^ 1);
          const uint32_t second_of_other = shuffle(as_bits(odd ? sum[1] : sum[3]), lane ^ 1);
          const uint4 value = odd ? uint4{first_of_other, second_of_other, as_bits(sum[2]), as_bits(sum[3])}
                                  : uint4{as_bits(sum[0]), as_bits(sum[1]), first_of_other, second_of_other};
          const int group = row_tile * 2 + odd, sentence = tile * kTile + lane % 4 / 2 * 4;
          if (group >= groups) continue;
          if constexpr (kCluster) {
            const int owner = group / a.groups, unit = (group - owner * a.groups) * kUnitsOfGroup + lane / 4;
            const int row = ((n + 1) % 2 * Config::kMostBlocks + rank) * kUnits + unit;
            store_async(shares + row * kSentences + sentence, signals.barrier(n + 1), owner, value);
          } else {
            const int unit = group * kUnitsOfGroup + lane / 4;
            const int row = ((team * 2 + (n + 1) % 2) * a.blocks + rank) * groups * kUnitsOfGroup + unit;
            *reinterpret_cast<uint4*>(static_cast<float*>(a.exchange) + row * kSentences + sentence) = value;
          }
        }
      }
      signals.arrive();
    }
  }
  if constexpr (kCluster) cluster_barrier();  // a block's shared memory must outlive what its team writes there
}

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, 1) backward_kernel(const BackwardArguments a) {
  if constexpr (kCompiled<Config::kCluster, Config::kWide>) backward<Config>(a);
}

template <typename Config>
BackwardVariant variant() {
  return {&backward_kernel<Config>, Config::kCluster, Config::kWide, Config::kSentences, Config::kThreads,
          Config::kGroups, Config::kSharedBytes, 2 * Config::kMostBlocks * Config::kShareBytes};
}

// The configurations of a number format: 8, 16 and 64 sentences. For 64, the shares of a wide layer take 256 KB.
template <typename A>
std::vector<BackwardVariant> variants(bool wide) {
  if constexpr (A::kBytes == 4) {
    if (wide) return {};
    return {variant<BackwardConfig<A, true, false, 1>>(), variant<BackwardConfig<A, true, false, 2>>()};
  } else if (wide) {
    return {variant<BackwardConfig<A, true, true, 1>>(), variant<BackwardConfig<A, true, true, 2>>(),
            variant<BackwardConfig<A, false, true, 1>>(), variant<BackwardConfig<A, false, true, 2>>()};
  } else {
    return {variant<BackwardConfig<A, true, false, 1>>(),  variant<BackwardConfig<A, true, false, 2>>(),
            variant<BackwardConfig<A, true, false, 8>>(),  variant<BackwardConfig<A, false, false, 1>>(),
            variant<BackwardConfig<A, false, false, 2>>(), variant<BackwardConfig<A, false, false, 8>>()};
  }
}

}  // namespace

std::vector<BackwardVariant> backward_variants(Format format, bool wide) {
  return with_arithmetic(format, [wide](auto arithmetic) { return variants<decltype(arithmetic)>(wide); });
}

}  // namespace esim_fast
