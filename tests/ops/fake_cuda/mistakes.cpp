// Kernels with mistakes that the fake GPU must notice. Prints a line for each outcome that some schedule has.
#include <iostream>
#include <set>

#include "bilstm_device_on_cpu.h"

using namespace esim_fast;

namespace {

constexpr int kBlocks = 4, kThreads = 64, kShared = 256, kSteps = 5, kPolicies = cuda_on_cpu::kPolicies, kSeeds = 9;

int results[2 * kBlocks];
unsigned int counter;

enum Mistake {
  kNone,
  kOneBuffer,       // the next step overwrites what is still read
  kNoWait,          // what has not come yet is read
  kFewerBytes,      // a phase ends too early
  kMoreBytes,       // or never
  kNoFirstBarrier,  // a block sends to one that is not ready
  kNoBlockBarrier,  // a warp reads what the next step overwrites
  kLate,            // nobody waits for a warp, which can miss a phase
};

// In each step the blocks of a cluster exchange numbers and add them up.
void ring(Mistake mistake) {
  auto* const numbers = reinterpret_cast<uint4*>(dynamic_shared());  // [2][kBlocks]
  auto* const barriers = reinterpret_cast<uint64_t*>(numbers + 2 * kBlocks);
  auto* const total = reinterpret_cast<unsigned int*>(barriers + 2);
  const int rank = static_cast<int>(blockIdx.x) % kBlocks, thread = static_cast<int>(threadIdx.x);
  if (thread < 2) mbarrier_init(barriers + thread);
  if (mistake != kNoFirstBarrier) cluster_barrier();
  unsigned int mine = rank + 1, parities = 0, seen = 0;
  for (int n = 0; n < kSteps; ++n) {
    uint64_t* const barrier = barriers + n % 2;
    uint4* const buffer = numbers + (mistake == kOneBuffer ? 0 : n % 2 * kBlocks);
    if (thread == 0) mbarrier_expect(barrier, 16 * (kBlocks + (mistake == kMoreBytes) - (mistake == kFewerBytes)));
    if (thread < kBlocks) store_async(buffer + rank, barrier, thread, {mine, 0, 0, 0});
    if (mistake != kNoWait && (mistake == kLate || thread < 32)) mbarrier_wait(barrier, parities >> n % 2 & 1);
    parities ^= 1u << n % 2;
    if (mistake == kLate && thread >= 32) continue;
    if (thread == 0) {
      unsigned int sum = 0;
      for (int from = 0; from < kBlocks; ++from) sum = 3 * sum + buffer[from].x;
      *total = sum;
    }
    if (mistake == kLate) {
      __syncwarp();
    } else {
      __syncthreads();
    }
    mine = *total + rank;
    seen = 3 * seen + mine;
    if (mistake == kLate) {
      __syncwarp();
    } else if (mistake != kNoBlockBarrier) {
      __syncthreads();
    }
  }
  if (thread == (mistake == kLate ? 0 : 32)) results[blockIdx.x] = static_cast<int>(seen % 1000);
  cluster_barrier();
}

void waits_for_a_warp() {
  if (threadIdx.x < 32) named_barrier(1, 64);
}

void waits_for_a_block() {
  if (threadIdx.x != 0) return;
  add_release(&counter);
  wait_for_count(&counter, gridDim.x);
}

void lets_lanes_differ() {
  if (threadIdx.x % 2) {
    shuffle(0, 0);
  } else {
    __syncwarp();
  }
}

void sends(int place, bool last_barrier) {
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(dynamic_shared());
  if (threadIdx.x == 0) mbarrier_init(barrier);
  cluster_barrier();
  if (threadIdx.x == 0) store_async(dynamic_shared() + place, barrier, 1, {});
  if (last_barrier) cluster_barrier();
}

// Prints what a kernel of `blocks` does, in clusters of which `resident` live at the same time: the results of each
// block's first thread, or what stops it.
template <typename Kernel>
void print(const char* name, unsigned int blocks, unsigned int cluster, unsigned int resident, const Kernel& kernel) {
  std::set<std::string> outcomes;
  for (int policy = 0; policy < kPolicies; ++policy) {
    for (int seed = 0; seed < kSeeds; ++seed) {
      std::fill(std::begin(results), std::end(results), 0);
      counter = 0;
      const cuda_on_cpu::Shape shape = {blocks, cluster, resident, {kThreads, 1, 1}, kShared};
      cuda_on_cpu::run(shape, cuda_on_cpu::Policy(policy), seed, kernel);
      std::string outcome = cuda_on_cpu::failure;
      if (outcome.empty()) {
        for (unsigned int i = 0; i < blocks; ++i) outcome += std::to_string(results[i]) + ' ';
      }
      outcomes.insert(outcome);
    }
  }
  for (const std::string& outcome : outcomes) std::cout << name << ": " << outcome << std::endl;
}

}  // namespace

int main() {
  const auto rings = {std::pair{"none", kNone}, {"one buffer", kOneBuffer}, {"no wait", kNoWait},
                      {"fewer bytes", kFewerBytes}, {"more bytes", kMoreBytes}, {"no first barrier", kNoFirstBarrier},
                      {"no block barrier", kNoBlockBarrier},
                      {"late", kLate}};
  for (const auto& [name, mistake] : rings) {
    print(name, 2 * kBlocks, kBlocks, 2, [mistake = mistake] { ring(mistake); });
  }
  print("a warp is missing", 1, 1, 1, waits_for_a_warp);
  print("enough room", 2, 1, 2, waits_for_a_block);
  print("too little room", 2, 1, 1, waits_for_a_block);
  print("writes too far", 1, 1, 1, [] { dynamic_shared()[kShared - 10 + threadIdx.x] = 1; });
  print("lanes differ", 1, 1, 1, lets_lanes_differ);
  print("sends too far", 2, 2, 1, [] { sends(kShared, true); });
  print("sends between", 2, 2, 1, [] { sends(20, true); });
  print("no last barrier", 2, 2, 1, [] { sends(16, false); });
  print("nobody wrote", 1, 1, 1, [] { results[0] = std::isnan(reinterpret_cast<float*>(dynamic_shared())[63]); });
}
