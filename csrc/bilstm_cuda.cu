// The persistent BiLSTM: operators, and how their kernels are chosen and launched.
#include "bilstm_cuda.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <climits>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>

#include "cuda_stream.h"

namespace esim_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kPortableCluster = 8;  // blocks of a cluster that every GPU with clusters supports
constexpr int kNarrow = 320, kWide = 512;  // most units of a kernel's weights

int ceil_div(int a, int b) { return (a + b - 1) / b; }

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  cudaDeviceGetAttribute(&value, name, device);
  return value;
}

// How a cluster or a cooperative grid is launched.
struct Launch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};

  template <typename Arguments>
  Launch(const Variant<Arguments>& variant, int blocks, int teams, cudaStream_t stream) {
    config.gridDim = dim3(blocks * teams);
    config.blockDim = dim3(variant.threads);
    config.dynamicSmemBytes = variant.shared_bytes;
    config.stream = stream;
    if (variant.cluster) {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = blocks;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    } else {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  Launch(const Launch&) = delete;  // config points into it
};

// How many teams of this size can run at the same time on the current device; 0 if it has no code for them.
template <typename Arguments>
int ask_for_resident_teams(const Variant<Arguments>& variant, int blocks, int device) {
  cudaFuncAttributes code;
  if (cudaFuncGetAttributes(&code, variant.kernel)) return 0;
  // See kCompiled in bilstm_cuda_team.h: the kernel's body is empty elsewhere. The version is that of its virtual code,
  // which may be older than the GPU.
  const bool clusters = code.ptxVersion >= 90;
  if (variant.cluster ? !clusters : code.ptxVersion < 80 || (clusters && !variant.wide)) return 0;
  if (variant.shared_bytes > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) return 0;
  if (cudaFuncSetAttribute(variant.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, variant.shared_bytes)) return 0;
  int resident = 0;
  if (variant.cluster) {
    if (blocks > kPortableCluster &&
        cudaFuncSetAttribute(variant.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) {
      return 0;
    }
    const Launch launch(variant, blocks, 1, nullptr);
    return cudaOccupancyMaxActiveClusters(&resident, variant.kernel, &launch.config) ? 0 : resident;
  }
  if (!attribute(cudaDevAttrCooperativeLaunch, device)) return 0;
  if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, variant.kernel, variant.threads, variant.shared_bytes)) {
    return 0;
  }
  return resident * attribute(cudaDevAttrMultiProcessorCount, device) / blocks;
}

template <typename Arguments>
int resident_teams(const Variant<Arguments>& variant, int blocks, int device) {
  static std::mutex mutex;
  static std::map<std::tuple<void (*)(Arguments), int, int, int, int>, int> known;
  const int capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor, device) + attribute(cudaDevAttrComputeCapabilityMinor, device);
  const auto key = std::make_tuple(variant.kernel, blocks, device, capability,
                                   attribute(cudaDevAttrMultiProcessorCount, device));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const int resident = ask_for_resident_teams(variant, blocks, device);
  cudaGetLastError();  // what a device does not support is no error
  return known[key] = resident;
}

template <typename Arguments>
struct Plan {
  Variant<Arguments> variant;
  int groups, blocks;  // of 8 units in a block, and of blocks in a team
  int teams;           // of a direction
};

// The kernel for this many sentences: the smallest number of sentences for each team with which all teams run at the
// same time, or the largest number. It depends on the device and on sizes alone, so that results are reproducible.
template <typename Arguments>
std::optional<Plan<Arguments>> plan(const std::vector<Variant<Arguments>>& variants, int H, int sentences, int device) {
  std::optional<Plan<Arguments>> best;
  for (const Variant<Arguments>& variant : variants) {
    if (best && best->variant.cluster != variant.cluster) break;  // a cluster is better than a grid
    const int all_groups = ceil_div(H, 8), groups = ceil_div(all_groups, ceil_div(all_groups, variant.most_groups));
    const int blocks = ceil_div(all_groups, groups);  // each with a group
    const int resident = resident_teams(variant, blocks, device);
    const int jobs = ceil_div(std::max(sentences, 1), variant.sentences);
    // Clusters do not wait for each other, but both directions of a grid must be there.
    if (resident < (variant.cluster ? 1 : 2)) continue;
    best = {variant, groups, blocks, std::min(jobs, std::max(resident / 2, 1))};
    if (2 * jobs <= resident) break;
  }
  return best;
}

// The arguments that both operators have, checked. Values on the GPU are not read: kernels bound every address.
struct Layer {
  int rows, steps, H, sentences;
  bool wide;
  Format format;

  Layer(const char* name, const Tensor& gates, const Tensor& weight, const Tensor& weight_reverse,
        const Tensor& first_row, int64_t most_sentences, bool tf32) {
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) > 0 && weight.size(0) == 4 * weight.size(1),
                    "esim_fast: ", name, " needs weights [4H, H]");
    const int64_t units = weight.size(1);
    const ScalarType type = gates.scalar_type();
    const bool half = type == ScalarType::BFloat16 || type == ScalarType::Half;
    STD_TORCH_CHECK(half || type == ScalarType::Float, "esim_fast: ", name, " supports float32, float16 and bfloat16");
    STD_TORCH_CHECK(units <= (half ? kWide : kNarrow), "esim_fast: ", name, " supports up to ", half ? kWide : kNarrow,
                    " units here, got ", units);
    for (const Tensor* each : {&weight, &weight_reverse}) {
      STD_TORCH_CHECK(each->dim() == 2 && each->size(0) == 4 * units && each->size(1) == units &&
                          each->scalar_type() == ScalarType::Float && each->is_contiguous() &&
                          each->device() == gates.device(),
                      "esim_fast: ", name, " needs two contiguous fp32 weights [", 4 * units, ", ", units,
                      "] on the device of gates");
    }
    STD_TORCH_CHECK(gates.dim() == 2 && gates.size(1) == 8 * units && gates.is_contiguous() &&
                        reinterpret_cast<uintptr_t>(gates.data_ptr()) % 16 == 0,
                    "esim_fast: ", name, " needs contiguous gates [N, ", 8 * units, "] aligned to 16 bytes");
    STD_TORCH_CHECK(gates.size(0) * 2 * units <= INT_MAX, "esim_fast: ", name, " supports up to ", INT_MAX / 2 / units,
                    " rows of ", units, " units, got ", gates.size(0));
    STD_TORCH_CHECK(first_row.dim() == 1 && first_row.scalar_type() == ScalarType::Long && first_row.is_contiguous() &&
                        first_row.device() == gates.device() && 0 < first_row.numel() && first_row.numel() <= INT_MAX,
                    "esim_fast: ", name, " needs contiguous int64 first_row [T + 1] on the device of gates");
    STD_TORCH_CHECK(most_sentences >= 0, "esim_fast: ", name, " got ", most_sentences, " sentences");
    rows = static_cast<int>(gates.size(0));
    steps = static_cast<int>(first_row.numel()) - 1;
    H = static_cast<int>(units);
    sentences = static_cast<int>(std::min(most_sentences, gates.size(0)));
    wide = H > kNarrow;
    format = type == ScalarType::BFloat16 ? Format::kBf16
             : type == ScalarType::Half   ? Format::kFp16
             : tf32                       ? Format::kTf32
                                          : Format::kTf32x3;
  }
};

template <typename Arguments>
void launch(const char* name, const CudaStream& cuda, const Layer& layer,
            const std::vector<Variant<Arguments>>& variants, Arguments arguments, const Tensor& weight,
            const Tensor& weight_reverse, const Tensor& first_row) {
  const auto planned = plan(variants, layer.H, layer.sentences, cuda.device);
  STD_TORCH_CHECK(planned, "esim_fast: ", name, " cannot run on this GPU: it has no room for the blocks of a layer of ",
                  layer.H, " units");
  const Variant<Arguments>& variant = planned->variant;
  const int teams = 2 * planned->teams;
  arguments.weight = weight.const_data_ptr<float>();
  arguments.weight_reverse = weight_reverse.const_data_ptr<float>();
  arguments.first_row = first_row.const_data_ptr<int64_t>();
  arguments.rows = layer.rows;
  arguments.steps = layer.steps;
  arguments.H = layer.H;
  arguments.groups = planned->groups;
  arguments.blocks = planned->blocks;
  arguments.teams = planned->teams;
  std::optional<Tensor> exchange, counter;
  if (!variant.cluster) {
    const int64_t bytes = static_cast<int64_t>(teams) * variant.exchange_bytes;
    exchange = torch::stable::new_empty(weight, {bytes}, ScalarType::Byte);
    counter = torch::stable::new_zeros(weight, {teams}, ScalarType::Int);
    arguments.exchange = exchange->mutable_data_ptr();
    arguments.counter = static_cast<unsigned int*>(counter->mutable_data_ptr());
  }
  const Launch launch(variant, planned->blocks, teams, cuda.stream);
  cudaLaunchKernelEx(&launch.config, variant.kernel, arguments);
  check_launch(name);
}

std::tuple<Tensor, Tensor, Tensor> bilstm_cuda(Tensor gates, const Tensor& weight, const Tensor& weight_reverse,
                                               const Tensor& first_row, int64_t sentences, bool tf32) {
  const CudaStream cuda(gates);
  const Layer layer("bilstm_cuda", gates, weight, weight_reverse, first_row, sentences, tf32);
  Tensor y = torch::stable::new_empty(gates, {layer.rows, 2 * layer.H});
  Tensor c = torch::stable::new_empty(gates, {layer.rows, 2 * layer.H}, ScalarType::Float);
  Tensor previous = torch::stable::new_empty(gates, {layer.rows, 2 * layer.H});
  if (layer.rows > 0) {
    ForwardArguments arguments = {};
    arguments.gates = gates.mutable_data_ptr();
    arguments.y = y.mutable_data_ptr();
    arguments.previous = previous.mutable_data_ptr();
    arguments.c = c.mutable_data_ptr<float>();
    launch("bilstm_cuda", cuda, layer, forward_variants(layer.format, layer.wide), arguments, weight, weight_reverse,
           first_row);
  }
  return {y, c, previous};
}

Tensor bilstm_cuda_backward(const Tensor& grad_y, const Tensor& c, const Tensor& gates, const Tensor& weight,
                            const Tensor& weight_reverse, const Tensor& first_row, int64_t sentences, bool tf32) {
  const CudaStream cuda(gates);
  const Layer layer("bilstm_cuda_backward", gates, weight, weight_reverse, first_row, sentences, tf32);
  for (const auto& [each, type] : {std::pair(&grad_y, gates.scalar_type()), std::pair(&c, ScalarType::Float)}) {
    STD_TORCH_CHECK(each->dim() == 2 && each->size(0) == layer.rows && each->size(1) == 2 * layer.H &&
                        each->scalar_type() == type && each->device() == gates.device(),
                    "esim_fast: bilstm_cuda_backward needs grad_y like gates and fp32 c, [", layer.rows, ", ",
                    2 * layer.H, "] on the device of gates");
  }
  const Tensor grad = torch::stable::contiguous(grad_y), cells = torch::stable::contiguous(c);
  Tensor grad_gates = torch::stable::new_empty(gates, {layer.rows, 8 * layer.H});
  if (layer.rows > 0) {
    BackwardArguments arguments = {};
    arguments.grad_y = grad.data_ptr();
    arguments.gates = gates.data_ptr();
    arguments.c = cells.const_data_ptr<float>();
    arguments.grad_gates = grad_gates.mutable_data_ptr();
    launch("bilstm_cuda_backward", cuda, layer, backward_variants(layer.format, layer.wide), arguments, weight,
           weight_reverse, first_row);
  }
  return grad_gates;
}

bool bilstm_cuda_fits(int64_t device, bool half, int64_t units) {
  if (units < 1 || units > (half ? kWide : kNarrow)) return false;
  const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(device));
  const Format format = half ? Format::kBf16 : Format::kTf32;  // the others of this size need as much
  const int H = static_cast<int>(units), number = static_cast<int>(device);
  const bool wide = H > kNarrow;
  return plan(forward_variants(format, wide), H, 1, number) && plan(backward_variants(format, wide), H, 1, number);
}

}  // namespace
}  // namespace esim_fast

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CUDA, m) {
  m.impl("bilstm_cuda", TORCH_BOX(&esim_fast::bilstm_cuda));
  m.impl("bilstm_cuda_backward", TORCH_BOX(&esim_fast::bilstm_cuda_backward));
}

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CompositeExplicitAutograd, m) {
  m.impl("bilstm_cuda_fits", TORCH_BOX(&esim_fast::bilstm_cuda_fits));
}
