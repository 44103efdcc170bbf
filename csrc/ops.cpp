// The operators' schemas, and what this library was built with.
#include <torch/csrc/stable/library.h>

#include <string>

#define ESIM_STRING_(...) #__VA_ARGS__
#define ESIM_STRING(...) ESIM_STRING_(__VA_ARGS__)

namespace {

// "key=value" lines; setup.py passes the values.
std::string build_info() {
  return "cuda_architectures=" ESIM_STRING(ESIM_FAST_CUDA_ARCHITECTURES) "\n"
         "torch_target=" ESIM_STRING(ESIM_FAST_TORCH_TARGET) "\n"
         "built_with_torch=" ESIM_STRING(ESIM_FAST_BUILT_WITH_TORCH) "\n"
#if defined(__clang__)
         "compiler=clang " __clang_version__;
#elif defined(__GNUC__)
         "compiler=gcc " __VERSION__;
#else
         "compiler=unknown";
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY(esim_fast, m) {
  m.def("build_info() -> str");

  // x: [B, L, D], or [N, D] with start [B] and step [T]. Returns v [B, 2D], argmax [B, D] int32, count [B] int32.
  m.def(
      "masked_pool(Tensor x, Tensor? start, Tensor? step, Tensor? lengths, Tensor? mask) -> (Tensor, Tensor, Tensor)");
  // rows: L of a padded x, N of a row-addressed one. Returns the gradient of x.
  m.def(
      "masked_pool_backward(Tensor grad_v, Tensor argmax, Tensor count, Tensor? start, Tensor? step, Tensor? lengths, "
      "Tensor? mask, SymInt rows) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&build_info)); }
