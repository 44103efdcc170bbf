// The recurrence of a packed BiLSTM on NVIDIA GPUs, forward: all time steps in one launch, with the recurrent weights
// in registers. See bilstm_cuda_team.h for how blocks share the work.
#include <algorithm>
#include <vector>

#include "bilstm_cuda.h"
#include "bilstm_cuda_team.h"

namespace esim_fast {
namespace {

// A warp multiplies the four gates of a group of 8 units with one part of the states, for some tiles of sentences; then
// the warps of a group share their sums, and each finishes one tile. Rows 0 to 7 of the weights' first tile are the
// input gates of the units, and rows 8 to 15 their forget gates; the second tile is for cell and output gates. So a
// thread ends up with all gates of one unit for two sentences, whose cells stay in its registers for all steps.
template <typename Arithmetic_, bool kCluster_, bool kWide_, int kTiles_, int kPasses_>
struct ForwardConfig {
  using Arithmetic = Arithmetic_;
  using Arguments = ForwardArguments;
  static constexpr bool kCluster = kCluster_;
  static constexpr bool kWide = kWide_;      // up to 512 units, else 320
  static constexpr int kTiles = kTiles_;     // of sentences that are multiplied at once
  static constexpr int kPasses = kPasses_;   // for all sentences
  static constexpr int kParts = 4;           // of the states, one for each warp of a group
  static constexpr int kGroups = kWide ? 4 : 5;  // of units, at most, in a block
  static constexpr int kMostBlocks = kWide ? 16 : 8;
  static constexpr int kWords = kGroups * kMostBlocks * kUnitsOfGroup * Arithmetic::kBytes / 4;  // of a state
  static constexpr int kDepth = kWords / 8 / kParts;  // tiles [16, 8 words] of weights, one behind the other, of a part
  static constexpr int kInRegisters = kWide ? 8 : Arithmetic::kMostRegisters;  // of these; others in shared memory
  static constexpr int kSentences = kTile * kTiles * kPasses;
  static constexpr int kThreads = 32 * kParts * kGroups;
  static constexpr int kPieces = kWords / 4;  // of 16 bytes, of a state
  using WarpWeights = Weights<2, kDepth, kInRegisters>;
  static constexpr int kWeightBytes = kGroups * kParts * WarpWeights::kSharedBytes;
  static constexpr int kStateBytes = kPieces * kSentences * 16;
  static constexpr int kSumBytes = kGroups * kParts * kTiles * 2 * 512;
  static constexpr int kSharedBytes = kWeightBytes + 2 * kStateBytes + kSumBytes + 16;
  static_assert(kTiles <= kParts, "a warp finishes one tile");
  static_assert(kGroups < 16, "each group has a named barrier, and one is __syncthreads");
  static_assert(kSharedBytes <= kMostShared);
  static_assert((2 * kInRegisters * 4 + kTiles * 2 * 4 + 24) * kThreads <= 65536, "weights and sums fit the registers");
  static_assert(2ll * kStateBytes < 1 << 20, "an mbarrier counts the bytes of a step");
};

// From one unit of two sentences to 16 bytes of units of one sentence. All lanes of the warp call it.
template <typename A>
__device__ __forceinline__ uint4 of_one_sentence(const float (&state)[2], int sentence, [[maybe_unused]] int piece) {
  uint32_t word[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if constexpr (A::kBytes == 2) {
      const uint32_t pair = A::word([&](int i) { return state[i]; }, 0);
      const uint32_t low = shuffle(pair, 8 * w + sentence / 2), high = shuffle(pair, 8 * w + 4 + sentence / 2);
      word[w] = sentence % 2 ? low >> 16 | (high & 0xffff0000u) : (low & 0xffffu) | high << 16;
    } else {
      const int from = (piece * 4 + w) * 4 + sentence / 2;
      const uint32_t even = shuffle(A::operand(state[0]), from), odd = shuffle(A::operand(state[1]), from);
      word[w] = sentence % 2 ? odd : even;
    }
  }
  return {word[0], word[1], word[2], word[3]};
}

template <typename Config>
__device__ __forceinline__ void forward(const ForwardArguments& a) {
  using A = typename Config::Arithmetic;
  constexpr bool kCluster = Config::kCluster;
  constexpr int kParts = Config::kParts, kDepth = Config::kDepth;
  constexpr int kTiles = Config::kTiles, kPasses = Config::kPasses, kSentences = Config::kSentences;
  constexpr int kPiecesOfGroup = kUnitsOfGroup * A::kBytes / 16;

  unsigned char* const shared = dynamic_shared();
  // Two states, laid out [piece of 16 bytes][sentence]: a warp reads 128 consecutive bytes, and a group writes them.
  unsigned char* const states = shared + Config::kWeightBytes;
  float4* const sums = reinterpret_cast<float4*>(states + 2 * Config::kStateBytes);
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(states + 2 * Config::kStateBytes + Config::kSumBytes);

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = warp_of_thread();
  const int team = static_cast<int>(blockIdx.x) / a.blocks, rank = static_cast<int>(blockIdx.x) % a.blocks;
  const int direction = team % 2, H = a.H;
  const int groups = (H + kUnitsOfGroup - 1) / kUnitsOfGroup;  // of the team
  const int own_group = warp / kParts, group = rank * a.groups + own_group, part = warp % kParts;
  const bool works = own_group < a.groups && group < groups;
  // The tile that this warp finishes, if there is one. The finishing warps are spread over the four schedulers of a
  // multiprocessor, each of which has every fourth warp.
  const int own_tile = (part + own_group) % kParts;
  const int unit = group * kUnitsOfGroup + lane / 4;  // of this thread's row
  const bool has_unit = works && unit < H;
  const int depth = ((H * A::kBytes + 31) / 32 - part + kParts - 1) / kParts;  // without the tiles that are zero

  typename Config::WarpWeights weights(shared, warp, lane);
  const int begin = (part * 8 + lane % 4) * (4 / A::kBytes);  // this thread's first column
  const float* const row = (direction ? a.weight_reverse : a.weight) + unit * H + begin;
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      uint32_t fragment[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* const of_gate = row + (2 * m + j % 2) * H * H;
        const auto value = [&](int i) { return i < (has_unit ? H - begin : 0) ? of_gate[i] : 0.f; };
        fragment[j] = A::word(value, k * kParts * 8 + 4 * (j / 2));
      }
      weights.set(m, k, fragment);
    }
  }
  // Pieces that no unit writes are multiplied with weights of zero, so they must not be NaN.
  for (int i = thread; i < 2 * Config::kStateBytes / 16; i += Config::kThreads) {
    reinterpret_cast<uint4*>(states)[i] = {0, 0, 0, 0};
  }
  const Batch batch(a);
  batch.clear_rest(a.y, 2 * H * A::kBytes);
  batch.clear_rest(a.previous, 2 * H * A::kBytes);
  Signals<kCluster> signals(a, team, barriers);
  __syncthreads();

  for (int first = team / 2 * kSentences; first < batch.rows; first += a.teams * kSentences) {
    const int steps = batch.length(first);  // the longest sentence is the first
    if (steps == 0) break;                  // later ones have no steps either
    signals.meet();
    float cell[kPasses][2] = {};
    [[maybe_unused]] float state_before[kPasses][2] = {};  // for fp32, whose operands may be rounded

    for (int n = 0; n < steps; ++n) {
      const Step step = batch.step(direction ? steps - 1 - n : n);
      const bool last = n + 1 == steps;
      const auto place = [&](int sentence) { return ((step.begin + sentence) * 2 + direction) * H + unit; };
      const auto sentence_of = [&](int pass, int e) {
        return first + (pass * kTiles + own_tile) * kTile + lane % 4 * 2 + e;
      };
      const auto exists = [&](int sentence) { return has_unit && own_tile < kTiles && sentence < step.sentences; };
      typename A::Four input[2] = {};  // products with the input
      const auto load_input = [&](int pass) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int sentence = sentence_of(pass, e);
          if (exists(sentence)) input[e] = static_cast<const typename A::Four*>(a.gates)[place(sentence)];
        }
      };
      load_input(0);  // before anybody waits
      if (!last) signals.expect(n + 1, groups * kPiecesOfGroup * kSentences * 16);
      if (n > 0) {
        signals.wait(n, works);
        if constexpr (!kCluster) {
          const uint4* const from =
              static_cast<const uint4*>(a.exchange) + (team * 2 + n % 2) * Config::kPieces * kSentences;
          uint4* const to = reinterpret_cast<uint4*>(states + n % 2 * Config::kStateBytes);
          for (int i = thread; i < groups * kPiecesOfGroup * kSentences; i += Config::kThreads) {
            to[i] = load_shared_by_blocks(from + i);
          }
          __syncthreads();
        }
      }

#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass) {
        if (!works) continue;
        if (pass > 0) load_input(pass);
        const unsigned char* const before = states + n % 2 * Config::kStateBytes;
        if (n > 0) {
          if (pass > 0) named_barrier(1 + own_group, 32 * kParts);  // the sums of the pass before have been read
          const uint32_t* const words = reinterpret_cast<const uint32_t*>(before);
          float acc[kTiles][2][4] = {};
#pragma unroll
          for (int k = 0; k < kDepth; ++k) {
            uint32_t fragment[2][4];
            weights.get(0, k, fragment[0]);
            weights.get(1, k, fragment[1]);
            const int piece = (k * kParts + part) * 2;
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
              const int sentence = (pass * kTiles + j) * kTile;
              const uint32_t b[2] = {words[(piece * kSentences + sentence) * 4 + lane],
                                     words[((piece + 1) * kSentences + sentence) * 4 + lane]};
              if (k >= depth) continue;
              A::multiply(acc[j][0], fragment[0], b);
              A::multiply(acc[j][1], fragment[1], b);
            }
          }
#pragma unroll
          for (int j = 0; j < kTiles; ++j) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              sums[((warp * kTiles + j) * 2 + m) * 32 + lane] = {acc[j][m][0], acc[j][m][1], acc[j][m][2],
                                                                  acc[j][m][3]};
            }
          }
          named_barrier(1 + own_group, 32 * kParts);
        }
        if (own_tile >= kTiles) continue;

        float sum[2][4] = {};
        if (n > 0) {
#pragma unroll
          for (int other = 0; other < kParts; ++other) {  // always in the same order
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              const float4 of = sums[(((own_group * kParts + other) * kTiles + own_tile) * 2 + m) * 32 + lane];
              sum[m][0] += of.x, sum[m][1] += of.y, sum[m][2] += of.z, sum[m][3] += of.w;
            }
          }
        }
        using Scalar = typename A::Scalar;
        float state[2];
        typename A::Four gates[2];
        Scalar previous[2] = {};
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float x[4];
          A::widen(input[e], x);
          const float gate[4] = {A::sigmoid(x[0] + sum[0][e]), A::sigmoid(x[1] + sum[0][2 + e]),
                                 A::tanh(x[2] + sum[1][e]), A::sigmoid(x[3] + sum[1][2 + e])};
          const float next = gate[1] * cell[pass][e] + gate[0] * gate[2];
          // Zero before a sentence begins, in the backward direction, and after it has ended.
          const bool active = exists(sentence_of(pass, e));
          cell[pass][e] = active ? next : 0.f;
          state[e] = active ? gate[3] * A::tanh(next) : 0.f;
          gates[e] = A::narrow(gate);
          if constexpr (A::kBytes == 2) {  // before others write there, which they do when they have got this state
            const int word = (group * kSentences + sentence_of(pass, e) - first) * 4 + lane / 8;
            if (n > 0) previous[e] = reinterpret_cast<const Scalar*>(before)[word * 2 + lane / 4 % 2];
          }
        }

        if (!last) {  // first of all, because the others wait
          constexpr int kLanes = kTile * kPiecesOfGroup;  // that have different 16 bytes
          const int row = lane % kTile, piece = lane / kTile % kPiecesOfGroup;
          const uint4 value = of_one_sentence<A>(state, row, piece);
          const int to = (group * kPiecesOfGroup + piece) * kSentences + (pass * kTiles + own_tile) * kTile + row;
          if constexpr (kCluster) {
            unsigned char* const next = states + (n + 1) % 2 * Config::kStateBytes + to * 16;
            for (int block = lane / kLanes; block < a.blocks; block += 32 / kLanes) {
              store_async(next, signals.barrier(n + 1), block, value);
            }
          } else if (lane < kLanes) {
            static_cast<uint4*>(a.exchange)[(team * 2 + (n + 1) % 2) * Config::kPieces * kSentences + to] = value;
          }
        }

#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if constexpr (A::kBytes == 4) {
            previous[e] = state_before[pass][e];
            state_before[pass][e] = state[e];
          }
          const int sentence = sentence_of(pass, e);
          if (!exists(sentence)) continue;
          const int at = place(sentence);
          static_cast<typename A::Four*>(a.gates)[at] = gates[e];
          a.c[at] = cell[pass][e];
          static_cast<Scalar*>(a.y)[at] = A::narrow(state[e]);
          static_cast<Scalar*>(a.previous)[at] = previous[e];
        }
      }
      if (!last) signals.arrive();
    }
  }
  if constexpr (kCluster) cluster_barrier();  // a block's shared memory must outlive what its team writes there
}

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, 1) forward_kernel(const ForwardArguments a) {
  if constexpr (kCompiled<Config::kCluster, Config::kWide>) forward<Config>(a);
}

template <typename Config>
ForwardVariant variant() {
  return {&forward_kernel<Config>, Config::kCluster, Config::kWide, Config::kSentences, Config::kThreads,
          Config::kGroups, Config::kSharedBytes, 2 * Config::kStateBytes};
}

// The configurations of a number format: 8, 16 and 64 sentences.
template <typename A>
std::vector<ForwardVariant> variants(bool wide) {
  if constexpr (A::kBytes == 4) {
    if (wide) return {};
    return {variant<ForwardConfig<A, true, false, 1, 1>>(), variant<ForwardConfig<A, true, false, 2, 1>>()};
  } else if (wide) {
    return {variant<ForwardConfig<A, true, true, 1, 1>>(), variant<ForwardConfig<A, true, true, 2, 1>>(),
            variant<ForwardConfig<A, true, true, 2, 4>>(), variant<ForwardConfig<A, false, true, 1, 1>>(),
            variant<ForwardConfig<A, false, true, 2, 1>>()};
  } else {
    return {variant<ForwardConfig<A, true, false, 1, 1>>(),  variant<ForwardConfig<A, true, false, 2, 1>>(),
            variant<ForwardConfig<A, true, false, 2, 4>>(),  variant<ForwardConfig<A, false, false, 1, 1>>(),
            variant<ForwardConfig<A, false, false, 2, 1>>(), variant<ForwardConfig<A, false, false, 2, 4>>()};
  }
}

}  // namespace

std::vector<ForwardVariant> forward_variants(Format format, bool wide) {
  return with_arithmetic(format, [wide](auto arithmetic) { return variants<decltype(arithmetic)>(wide); });
}

}  // namespace esim_fast
