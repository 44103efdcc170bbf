// Arithmetic of int8 inference on processors with VNNI, which multiply and add four bytes at a time.
//
// Sums of products are exact in 32 bits. Weights are in blocks of four vectors: [blocks, terms, 4, lanes, kTerms].
#pragma once

#include <cstring>
#include <limits>

#include "steps.h"
#include "vectors.h"

namespace esim_fast {

constexpr int kTerms = 4;        // bytes per lane that one instruction multiplies and adds
constexpr float kMost = 127.0f;  // the range is symmetric, so -128 is not used
constexpr int kZeroPoint = 128;  // of activations, which are unsigned, because the instruction takes such bytes
constexpr int kVectors = 4;      // in a block of weights

// fp32 lanes of this processor's vectors, or 0 without VNNI, for which ESIM_FOR_EACH_PROCESSOR does not look. setup.py
// defines the macros that the compiler supports.
inline int64_t int8_lanes() {
  static const int64_t lanes = [] {
#if defined(ESIM_AVX512_VNNI)
    if (processor() == Processor::avx512 && __builtin_cpu_supports("avx512vnni")) return 16;
#endif
#if defined(ESIM_AVX_VNNI)
    if (processor() != Processor::baseline && __builtin_cpu_supports("avxvnni")) return 8;
#endif
    return 0;
  }();
  return lanes;
}

// sum[lane] + a[4 lane] * b[4 lane] + ... + a[4 lane + 3] * b[4 lane + 3], with a unsigned and b signed.
template <int lanes>
ESIM_INLINE Vector<int32_t, lanes> multiply_bytes(Vector<int32_t, lanes> sum, Vector<int32_t, lanes> a,
                                                  Vector<int32_t, lanes> b) {
  // Inline assembly, because intrinsics do not compile in functions that are built for several processors.
#if defined(ESIM_AVX512_VNNI)
  if constexpr (lanes == 16) asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#endif
#if defined(ESIM_AVX_VNNI)
  if constexpr (lanes == 8) asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#endif
  return sum;
}

// The largest magnitude in a row; NaN if any value is not finite.
template <int lanes>
ESIM_INLINE float magnitude_of(const float* x, int64_t width) {
  using V = Vector<float, lanes>;
  V most{}, poison{};
  for (int64_t d = 0; d < width; d += lanes) {
    const V v = load<V>(x + d, width - d), size = v < 0.0f ? -v : v;
    most = size > most ? size : most;
    poison += v * 0.0f;
  }
  return highest<lanes, float>(most) + total<lanes, float>(poison);
}

// The factor that scales a row to -127..127. It is 0 for rows near fp32's smallest numbers, and for rows that are not
// finite, whose scale NaN makes the result NaN.
ESIM_INLINE float factor_of(float magnitude) {
  return kMost * std::numeric_limits<float>::min() < magnitude && magnitude <= std::numeric_limits<float>::max()
             ? kMost / magnitude
             : 0.0f;
}

// The nearest 32-bit integers: adding 1.5 * 2^23 leaves them in the low bits.
template <int lanes>
ESIM_INLINE Vector<int32_t, lanes> rounded(const Vector<float, lanes>& x) {
  return (Vector<int32_t, lanes>)(x + 12582912.0f) - 0x4B400000;
}

// Writes a row's integers plus the zero point, and returns their scale.
template <int lanes>
ESIM_INLINE float quantize_row(uint8_t* q, const float* x, int64_t width) {
  using I = Vector<int32_t, lanes>;
  const float magnitude = magnitude_of<lanes>(x, width), factor = factor_of(magnitude);
  for (int64_t d = 0; d < width; d += lanes) {
    const I integers = factor == 0.0f ? I{} : rounded<lanes>(load<Vector<float, lanes>>(x + d, width - d) * factor);
    store(q + d, __builtin_convertvector(integers + kZeroPoint, Vector<uint8_t, lanes>), width - d);
  }
  return magnitude / kMost;
}

// product[r, v]: `count` rows of q (at most `rows`), in terms of four bytes, times a block of weights.
template <int rows, int lanes>
ESIM_INLINE void multiply_rows(int32_t* product, int64_t count, const uint8_t* q, int64_t q_row, const int8_t* weight,
                               const int32_t* offset, int64_t terms) {
  if constexpr (rows > 1) {
    if (count < rows) return multiply_rows<rows - 1, lanes>(product, count, q, q_row, weight, offset, terms);
  }
  using I = Vector<int32_t, lanes>;
  I sum[rows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = -load<I>(offset + v * lanes);
  }
  for (int64_t k = 0; k < terms; ++k, q += kTerms, weight += kVectors * lanes * kTerms) {
    I right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = load<I>(weight + v * lanes * kTerms);
    // The address may lie past the end, but a prefetch never faults.
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(weight + (kAhead * kVectors + v) * lanes * kTerms);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      int32_t bytes;
      std::memcpy(&bytes, q + r * q_row, sizeof(bytes));
      const I left = I{} + bytes;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_bytes<lanes>(sum[r][v], left, right[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(product + (r * kVectors + v) * lanes, sum[r][v]);
  }
}

}  // namespace esim_fast

// As ESIM_FOR_EACH_PROCESSOR, for processors with VNNI. Call it only if int8_lanes() is not 0.
#if defined(__x86_64__)
#define ESIM_FOR_EACH_VNNI(name, body, argument)                            \
  ESIM_FOR_AVX512 void name##_avx512(const argument& x) { body<16, 6>(x); } \
  ESIM_FOR_AVX2 void name##_avx2(const argument& x) { body<8, 2>(x); }      \
  void name(const argument& x) { int8_lanes() == 16 ? name##_avx512(x) : name##_avx2(x); }
#else
#define ESIM_FOR_EACH_VNNI(name, body, argument) \
  void name(const argument&) {}
#endif
