// The multiprocessors of the fake GPU: the blocks of several clusters live at the same time, all their threads are
// fibres (fibres.h), and an adversary decides who goes on and when asynchronous stores arrive. What a GPU forbids or
// leaves undefined, and what would hang it, stops the launch with a message.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fibres.h"

struct uint3 {
  unsigned int x, y, z;
};

inline uint3 threadIdx, blockIdx, gridDim, blockDim;

namespace cuda_on_cpu {

constexpr int kLanes = 32;
constexpr size_t kStack = 1 << 16;
constexpr size_t kMargin = 1024;  // on both sides of a block's shared memory, to notice what is written there

struct Block;
struct Warp;

// A thread waits as long as a word has a value.
struct Wait {
  const unsigned int* word = nullptr;
  unsigned int value = 0;
  const char* what = nullptr;
  size_t which = 0;
};

struct Thread : Fibre {
  Block* block = nullptr;
  Warp* warp = nullptr;
  uint3 index = {};
  int lane = 0;
  Wait wait;
  bool polls = false;                   // see poll()
  bool finished = false;

  bool can_go_on() const { return !finished && (!wait.word || *wait.word != wait.value); }
};

struct Barrier {
  unsigned int generation = 0;
  int arrived = 0;
  int expected = 0;
  int sum = 0, last_sum = 0;  // of what threads bring along, and its value in the generation before

  void complete() {
    arrived = 0;
    last_sum = sum;
    sum = 0;
    ++generation;
  }
};

// Counts arrivals and bytes: a phase ends when neither are missing.
struct MBarrier {
  uint32_t count = 0, missing = 0;
  int64_t bytes = 0;  // missing; negative if they come before they are expected
  unsigned int parity = 0;

  bool completed() {
    if (missing != 0 || bytes != 0) return false;
    missing = count;
    parity ^= 1;
    return true;
  }
};

struct Warp {
  std::vector<Thread*> threads;
  // Of the current collective instruction: its name, each lane's operands and results.
  const char* instruction = nullptr;
  uint32_t operands[kLanes][10], results[kLanes][4];
  Barrier barrier;
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  Barrier barrier;
  int alive = 0;
};

struct Block {
  Cluster* cluster = nullptr;
  unsigned int number = 0;
  int rank = 0;
  int alive = 0;
  std::vector<unsigned char> memory;
  unsigned char* shared = nullptr;
  size_t shared_size = 0;
  std::vector<Warp> warps;
  Barrier all, named[16];
  std::map<size_t, MBarrier> mbarriers;  // by their place in shared memory
};

// An asynchronous store to another block's shared memory, whose mbarrier there counts its bytes.
struct Message {
  Block* block;
  size_t place, mbarrier;
  int bytes;
  uint32_t words[4];
};

// Who goes on: everybody in turn, odd blocks from the last thread to the first, or even ones; or at random; or
// everybody but one warp, block or thread, as long as anybody gets on or, restlessly, for a while.
enum Policy { kInOrder, kBackwards, kShuffled, kStarvedWarp, kStarvedBlock, kStarvedThread, kRestless, kPolicies };
enum Delivery { kAtOnce, kAnyTime, kLate };

inline Thread* running = nullptr;  // null outside of kernels
inline const std::function<void()>* body;
inline std::string failure;
inline uint64_t progress;  // grows when anything happens
inline std::vector<Message> messages;
inline std::mt19937 dice;
inline Delivery delivery;

// Ends the launch. The threads never go on.
[[noreturn]] inline void stop(const std::string& why) {
  const Block& block = *running->block;
  const auto thread = running->lane + kLanes * (running->warp - block.warps.data());
  failure = why + " (block " + std::to_string(block.number) + ", thread " + std::to_string(thread) + ")";
  for (;;) switch_to(*running, scheduler);
}

inline void wait_while(const unsigned int& word, unsigned int value, const char* what, size_t which = 0) {
  running->wait = {&word, value, what, which};
  while (word == value) switch_to(*running, scheduler);
  running->wait = {};
}

// Called by a thread that reads global memory again and again, until another block has written there.
inline void poll() {
  running->polls = true;
  switch_to(*running, scheduler);
}

// The n-th thread to arrive lets all go on. Returns the sum of what they bring along.
inline int meet(Barrier& barrier, int expected, int brought, const char* what, size_t which = 0) {
  if (barrier.arrived == 0) barrier.expected = expected;
  if (barrier.expected != expected) stop(std::string("threads expect different numbers of others at ") + what);
  barrier.sum += brought;
  if (++barrier.arrived == expected) {
    barrier.complete();
  } else {
    wait_while(barrier.generation, barrier.generation, what, which);
  }
  return barrier.last_sum;
}

// An instruction that a warp executes as one: the last lane to arrive computes it for all. Returns this lane's results.
template <size_t count, typename Compute>
const uint32_t* collective(const char* instruction, const uint32_t (&operands)[count], const Compute& compute) {
  Warp& warp = *running->warp;
  if (warp.barrier.arrived == 0) warp.instruction = instruction;
  if (warp.instruction != instruction) stop(std::string(instruction) + " where other lanes are at " + warp.instruction);
  std::memcpy(warp.operands[running->lane], operands, sizeof(operands));
  if (++warp.barrier.arrived == kLanes) {
    compute(warp);
    warp.barrier.complete();
  } else {
    wait_while(warp.barrier.generation, warp.barrier.generation, instruction);
  }
  return warp.results[running->lane];
}

inline size_t place_of(const void* pointer, size_t bytes) {
  Block& block = *running->block;
  const size_t place = static_cast<const unsigned char*>(pointer) - block.shared;
  if (place > block.shared_size || bytes > block.shared_size - place) stop("an address outside of shared memory");
  if (place % bytes != 0) stop("a misaligned address in shared memory");
  return place;
}

inline MBarrier& mbarrier_at(Block& block, size_t place) {
  const auto found = block.mbarriers.find(place);
  if (found == block.mbarriers.end()) stop("an mbarrier that was not initialized");
  return found->second;
}

// Delivers a message, and returns whether a phase has ended.
inline bool arrive(const Message& message) {
  std::memcpy(message.block->shared + message.place, message.words, message.bytes);
  MBarrier& mbarrier = mbarrier_at(*message.block, message.mbarrier);
  mbarrier.bytes -= message.bytes;
  ++progress;
  return mbarrier.completed();
}

inline void send(const Message& message) {
  if (message.block->alive == 0) stop("an asynchronous store to a block that has ended");
  mbarrier_at(*message.block, message.mbarrier);
  if (delivery == kAtOnce) {
    arrive(message);
  } else {
    messages.push_back(message);
  }
}

inline bool deliver_one() {
  std::swap(messages[dice() % messages.size()], messages.back());
  const bool ended = arrive(messages.back());
  messages.pop_back();
  return ended;
}

inline void end_thread() {
  Block& block = *running->block;
  running->finished = true;
  --block.cluster->alive;
  if (--block.alive == 0) {
    for (const Message& message : messages) {
      if (message.block == &block) stop("an asynchronous store is on its way to a block that has ended");
    }
  }
  // Nobody waits for a thread that has ended.
  if (block.all.arrived > 0 && block.all.arrived == --block.all.expected) block.all.complete();
  Barrier& barrier = block.cluster->barrier;
  if (barrier.arrived > 0 && barrier.arrived == block.cluster->alive) barrier.complete();
  switch_to(*running, scheduler);
}

inline void run_threads() {
  entered();
  for (;;) {  // a fibre runs one thread after another
    (*body)();
    end_thread();
  }
}

inline std::unique_ptr<Cluster> started(unsigned int first_block, unsigned int blocks, uint3 threads, size_t shared,
                                        std::vector<std::unique_ptr<Thread>>& idle) {
  auto cluster = std::make_unique<Cluster>();
  const unsigned int count = threads.x * threads.y * threads.z;
  for (unsigned int rank = 0; rank < blocks; ++rank) {
    auto block = std::make_unique<Block>();
    block->cluster = cluster.get();
    block->number = first_block + rank;
    block->rank = static_cast<int>(rank);
    block->alive = static_cast<int>(count);
    block->memory.assign(shared + 3 * kMargin, 0xff);  // NaN
    block->shared_size = shared;
    const auto begin = reinterpret_cast<uintptr_t>(block->memory.data()) + kMargin;
    block->shared = block->memory.data() + kMargin + (kMargin - begin % kMargin) % kMargin;
    block->warps.resize((count + kLanes - 1) / kLanes);
    for (unsigned int i = 0; i < count; ++i) {
      if (idle.empty()) {
        idle.push_back(std::make_unique<Thread>());
        prepare(*idle.back(), kStack, run_threads);
      }
      Thread* thread = idle.back().release();
      idle.pop_back();
      thread->block = block.get();
      thread->warp = &block->warps[i / kLanes];
      thread->lane = static_cast<int>(i % kLanes);
      thread->index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
      thread->finished = thread->polls = false;
      thread->warp->threads.push_back(thread);
    }
    cluster->alive += block->alive;
    cluster->blocks.push_back(std::move(block));
  }
  return cluster;
}

// What each block's threads wait for.
inline std::string described(const std::vector<std::unique_ptr<Cluster>>& clusters) {
  std::string text;
  for (const auto& cluster : clusters) {
    for (const auto& block : cluster->blocks) {
      std::map<std::string, int> waiting;
      for (const Warp& warp : block->warps) {
        for (const Thread* thread : warp.threads) {
          if (thread->finished) continue;
          const Wait& wait = thread->wait;
          std::string what = wait.word ? wait.what : "a counter in global memory";
          if (wait.which) what += " " + std::to_string(wait.which);
          const auto found = block->mbarriers.find(wait.which);
          if (what.starts_with("mbarrier") && found != block->mbarriers.end()) {
            const MBarrier& its = found->second;
            what += " (" + std::to_string(its.missing) + " arrivals and ";
            what += std::to_string(its.bytes) + " bytes are missing)";
          }
          ++waiting[what];
        }
      }
      for (const auto& [what, count] : waiting) {
        text += "\n  block " + std::to_string(block->number) + ": " + std::to_string(count) + " threads at " + what;
      }
    }
  }
  return text;
}

struct Adversary {
  Policy policy;
  const void* victim = nullptr;  // a thread, warp or block, which does not go on
  bool spared = true;            // the last victim runs before the next one is chosen

  bool holds(const Block* block) const { return victim == block; }
  bool holds(const Warp* warp) const { return victim == warp; }
  bool holds(const Thread* thread) const { return victim == thread; }

  void choose(const std::vector<Warp*>& warps) {
    if (policy < kStarvedWarp || warps.empty()) return;
    if (policy == kRestless ? dice() % 12 != 0 && victim : victim != nullptr) return;
    if (spared) {
      spared = false;
      return;
    }
    const Warp* warp = warps[dice() % warps.size()];
    const Thread* thread = warp->threads[dice() % warp->threads.size()];
    const int kind = policy == kRestless ? kStarvedWarp + static_cast<int>(dice() % 3) : policy;
    victim = kind == kStarvedWarp ? static_cast<const void*>(warp)
             : kind == kStarvedBlock ? static_cast<const void*>(thread->block)
                                     : static_cast<const void*>(thread);
  }
  bool spare() {
    const bool had = victim != nullptr;
    victim = nullptr;
    spared = true;
    return had;
  }
};

// Lets a warp's threads go on until all wait, or for one turn.
inline void run_warp(Warp& warp, const Adversary& adversary) {
  const int count = static_cast<int>(warp.threads.size());
  const bool random = adversary.policy >= kShuffled;
  const bool backwards = random ? dice() % 2 : (adversary.policy == kBackwards) != warp.threads[0]->block->number % 2;
  const int turns = random && dice() % 4 == 0 ? 1 : INT32_MAX;
  bool again = true;
  for (int turn = 0; again && turn < turns; ++turn) {
    again = false;
    for (int i = 0; i < count; ++i) {
      Thread* thread = warp.threads[backwards ? count - 1 - i : i];
      if (!thread->can_go_on() || adversary.holds(thread)) continue;
      thread->polls = false;
      running = thread;
      threadIdx = thread->index;
      blockIdx = {thread->block->number, 0, 0};
      switch_to(scheduler, *thread);
      running = nullptr;
      if (!failure.empty()) return;
      if (thread->polls) continue;
      ++progress;
      again = true;
    }
  }
}

struct Shape {
  unsigned int blocks;
  unsigned int cluster;   // blocks of a cluster
  unsigned int resident;  // clusters that may live at the same time
  uint3 threads;
  size_t shared;
};

// Runs all threads; `failure` says what went wrong.
inline void run(const Shape& shape, Policy policy, unsigned int seed, const std::function<void()>& kernel) {
  static std::vector<std::unique_ptr<Thread>> idle;
  failure.clear();
  messages.clear();
  dice.seed(seed);
  delivery = policy == kInOrder ? kAtOnce : policy == kBackwards ? kLate : static_cast<Delivery>(dice() % 3);
  body = &kernel;
  gridDim = {shape.blocks, 1, 1};
  blockDim = shape.threads;
  std::vector<unsigned int> waiting(shape.blocks / shape.cluster);  // clusters, the next one last
  for (size_t i = 0; i < waiting.size(); ++i) waiting[i] = static_cast<unsigned int>(waiting.size() - 1 - i);
  if (policy >= kShuffled) std::shuffle(waiting.begin(), waiting.end(), dice);  // CUDA promises no order
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<Warp*> warps;
  Adversary adversary{policy};
  for (int idle_passes = 0; failure.empty();) {
    bool changed = false;
    for (auto& cluster : clusters) {
      if (cluster->alive > 0) continue;
      for (auto& block : cluster->blocks) {
        for (size_t i = 0; i < block->memory.size(); ++i) {
          const unsigned char* byte = block->memory.data() + i;
          const bool inside = byte >= block->shared && byte < block->shared + block->shared_size;
          if (!inside && *byte != 0xff) {
            failure = "block " + std::to_string(block->number) + " wrote outside of its shared memory";
          }
        }
        for (Warp& warp : block->warps) {
          for (Thread* thread : warp.threads) idle.emplace_back(thread);
        }
      }
      cluster.reset();
      changed = true;
    }
    std::erase(clusters, nullptr);
    for (; !waiting.empty() && clusters.size() < shape.resident; waiting.pop_back()) {
      clusters.push_back(started(waiting.back() * shape.cluster, shape.cluster, shape.threads, shape.shared, idle));
      changed = true;
    }
    if (clusters.empty()) break;
    if (changed) {
      adversary.spare();
      warps.clear();
      for (auto& cluster : clusters) {
        for (auto& block : cluster->blocks) {
          for (Warp& warp : block->warps) warps.push_back(&warp);
          if ((policy == kBackwards) != block->number % 2) std::reverse(warps.end() - block->warps.size(), warps.end());
        }
      }
    }
    adversary.choose(warps);
    if (policy >= kShuffled) std::shuffle(warps.begin(), warps.end(), dice);
    const uint64_t before = progress;
    for (Warp* warp : warps) {
      if (adversary.holds(warp) || adversary.holds(warp->threads[0]->block)) continue;
      run_warp(*warp, adversary);
      if (!failure.empty()) break;
      if (delivery == kAnyTime) {
        for (size_t count = messages.empty() ? 0 : dice() % (messages.size() + 1); count > 0; --count) deliver_one();
      }
    }
    if (progress != before) {
      idle_passes = 0;
    } else if (!messages.empty()) {
      while (!deliver_one() && !messages.empty()) continue;
    } else if (!adversary.spare() && ++idle_passes > 2) {
      failure = "deadlock: nobody goes on" + described(clusters);
    }
  }
  if (failure.empty()) return;
  for (auto& cluster : clusters) {  // these threads are in the middle of something
    if (!cluster) continue;
    for (auto& block : cluster->blocks) {
      for (Warp& warp : block->warps) {
        for (Thread* thread : warp.threads) delete thread;
      }
    }
  }
}

}  // namespace cuda_on_cpu
