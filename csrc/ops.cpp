// The operators' schemas, and build information.
#include <torch/csrc/stable/library.h>

#include <string>

#define ESIM_STRING_(...) #__VA_ARGS__
#define ESIM_STRING(...) ESIM_STRING_(__VA_ARGS__)

// Parameters of operators on pairs of sentences: where tokens lie, and which of them count.
#define ESIM_SIDES_SCHEMA                                                                             \
  "Tensor? a_start, Tensor? a_step, Tensor? a_lengths, Tensor? a_mask, Tensor? b_start, "      \
  "Tensor? b_step, Tensor? b_lengths, Tensor? b_mask, SymInt a_longest, SymInt b_longest, bool every_row"

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

  // x: [B, L, D], or [N, D] with start [B] and step [T]. Returns v [B, 2D], int32 argmax [B, D] and int32 count [B].
  m.def(
      "masked_pool(Tensor x, Tensor? start, Tensor? step, Tensor? lengths, Tensor? mask) -> (Tensor, Tensor, Tensor)");
  // rows: L of a padded x, or N of a row-addressed x. filled: int64 [1], how many rows the sequences fill, if they fill
  // the first rows without gaps. Returns the gradient of x.
  m.def(
      "masked_pool_backward(Tensor grad_v, Tensor argmax, Tensor count, Tensor? start, Tensor? step, Tensor? lengths, "
      "Tensor? mask, SymInt rows, *, Tensor? filled=None) -> Tensor");

  // a and b: [B, L, D], or [N, D] with start [B], step [T] and lengths [B]. longest: upper bound of the lengths.
  // every_row: whether the addressed rows are all rows of the tensor. Returns m_a and m_b.
  m.def("local_inference(Tensor a, Tensor b, " ESIM_SIDES_SCHEMA ") -> (Tensor, Tensor)");
  // Returns the gradients of a and b.
  m.def(
      "local_inference_backward(Tensor grad_m_a, Tensor grad_m_b, Tensor a, Tensor b, " ESIM_SIDES_SCHEMA
      ") -> (Tensor, Tensor)");
  // For x [N, D] that holds both sides. They return m, [N, 4D] or without the difference [N, 3D], and the gradient of x.
  m.def("local_inference_packed(Tensor x, " ESIM_SIDES_SCHEMA ", bool difference=True) -> Tensor");
  m.def("local_inference_packed_backward(Tensor grad_m, Tensor x, " ESIM_SIDES_SCHEMA
        ", bool difference=True) -> Tensor");

  // The recurrence of a packed BiLSTM. gates: [N, 4H] for each direction, products with the input, overwritten by the
  // gates. Weights: [4H, H]. batch_sizes: [T], as in a PackedSequence. Returns y [N, 2H] and c [N, 2H].
  m.def(
      "bilstm(Tensor(a!) gates, Tensor(b!) gates_reverse, Tensor weight, Tensor weight_reverse, Tensor batch_sizes) -> "
      "(Tensor, Tensor)");
  // For inference: bilstm_pack returns packed weights [2, H / 16 (rounded up), H, 64] in the order of this processor.
  // bilstm_states takes gates [N, 8H], both directions side by side, which are only read, and returns y [N, 2H].
  m.def("bilstm_pack(Tensor weight, Tensor weight_reverse) -> Tensor");
  m.def("bilstm_states(Tensor gates, Tensor packed, Tensor batch_sizes) -> Tensor");
  // Returns the gradients of the products with the input, [N, 4H] for each direction, and the initial states of the
  // steps, [N, 2H].
  m.def(
      "bilstm_backward(Tensor grad_y, Tensor y, Tensor c, Tensor gates, Tensor gates_reverse, Tensor weight, "
      "Tensor weight_reverse, Tensor batch_sizes) -> (Tensor, Tensor, Tensor)");

  // The same on NVIDIA GPUs with one kernel for all time steps, for up to 512 units, or 320 in fp32. gates: [N, 8H],
  // products with the input, laid out [N, 2, H, 4], overwritten by the gates. Weights: fp32. first_row: [T + 1], the
  // first row of each time step, then the number of rows that the sentences fill; the other rows of y, previous and
  // grad_gates become zero. The last time steps may be empty. sentences: how many there are at most. tf32: whether fp32
  // may be multiplied in TF32. Returns y, c and previous, the states before each step, all [N, 2H].
  m.def(
      "bilstm_cuda(Tensor(a!) gates, Tensor weight, Tensor weight_reverse, Tensor first_row, SymInt sentences, "
      "bool tf32) -> (Tensor, Tensor, Tensor)");
  // Returns the gradients of the products with the input, laid out like gates.
  m.def(
      "bilstm_cuda_backward(Tensor grad_y, Tensor c, Tensor gates, Tensor weight, Tensor weight_reverse, "
      "Tensor first_row, SymInt sentences, bool tf32) -> Tensor");
  // Whether GPU number `device` can run them for this many units, in half precision or in fp32.
  m.def("bilstm_cuda_fits(int device, bool half, int units) -> bool");

  // fp32 lanes of the processor's vectors if it has VNNI (AVX512-VNNI: 16, AVX-VNNI: 8), else 0.
  m.def("int8_lanes() -> int");
  // Quantizes x [N, D] to uint8 [N, D] with zero point 128, and a scale [N] for each row.
  m.def("quantize_rows(Tensor x) -> (Tensor, Tensor)");
  // The product of x [M, K], quantized likewise, with an int8 matrix [N, K]: [M, N], still to be scaled by the second
  // result [M]. weight: the matrix in blocks, [N / (4 * lanes), K / 4, 4, lanes, 4], both quotients rounded up.
  // weight_scale: [N]. offset: int32 [N / (4 * lanes), 4, lanes], 128 times the sums of the matrix's rows.
  m.def("int8_products(Tensor x, Tensor weight, Tensor weight_scale, Tensor offset) -> (Tensor, Tensor)");
  // The quantized recurrence of a packed BiLSTM of H units, in blocks of `lanes`. gates: [N, 2, blocks, 4, lanes],
  // products with the input's integers, whose scale is input_scale [N]. bias, scale and offset: [2, blocks, 4, lanes],
  // for the rows of weight [2, blocks, H / 4 (rounded up), 4, lanes, 4]. Returns y [N, 2H].
  m.def(
      "bilstm_int8(Tensor gates, Tensor input_scale, Tensor bias, Tensor weight, Tensor scale, Tensor offset, int H, "
      "Tensor batch_sizes) -> Tensor");

  // Writes the dense gradient of an embedding to table [V, D], from the gradient of tokens' vectors [N, D]; the row of
  // padding_idx is zero.
  m.def("embedding_backward(Tensor(a!) table, Tensor grad_x, Tensor tokens, int? padding_idx) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(esim_fast, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&build_info)); }
