// Threads of a kernel as fibres on one core: each runs until it waits or ends.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <memory>

namespace cuda_on_cpu {

struct Fibre {
  ucontext_t context;
  jmp_buf place;  // where it goes on
  bool started = false;
  std::unique_ptr<char[]> memory;
  const char* stack = nullptr;  // where it begins, and its size: AddressSanitizer is told of every change of stack
  size_t stack_size = 0;
  void* sanitizer = nullptr;
};

inline Fibre scheduler;  // the one that kernels are launched from

// swapcontext asks the system for the signal mask, which takes longer than all else here, so a fibre only begins with
// it. AddressSanitizer does not follow longjmp to another stack.
inline void switch_to(Fibre& from, Fibre& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.sanitizer, to.stack, to.stack_size);
  swapcontext(&from.context, &to.context);
  __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#else
  from.started = true;
  if (_setjmp(from.place)) return;
  if (to.started) _longjmp(to.place, 1);
  to.started = true;
  setcontext(&to.context);
#endif
}

// Gives a fibre a stack, on which `run` begins, which must call entered() first and never return.
inline void prepare(Fibre& fibre, size_t stack_size, void (*run)()) {
  fibre.memory = std::unique_ptr<char[]>(new char[stack_size]);
  fibre.stack = fibre.memory.get();
  fibre.stack_size = stack_size;
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.memory.get();
  fibre.context.uc_stack.ss_size = stack_size;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, run, 0);
}

inline void entered() {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &scheduler.stack_size);
  scheduler.stack = static_cast<const char*>(stack);
#endif
}

}  // namespace cuda_on_cpu
