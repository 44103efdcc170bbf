// The number formats of the persistent BiLSTM's products. Whatever the format, sums and cells are fp32. An operand of
// mma consists of 32-bit words: a pair of half-precision numbers, or one of 32 bits.
#pragma once

#include <cstring>

#include "bilstm_cuda.h"
#include "bilstm_cuda_device.h"

namespace esim_fast {

__device__ __forceinline__ float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

__device__ __forceinline__ uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

__device__ __forceinline__ float exact_tanh(float x) {
  // Near zero the quotient cancels, so a series is used there.
  const float square = x * x;
  const float series =
      x * (1 + square * (-1.f / 3 + square * (2.f / 15 + square * (-17.f / 315 + square * (62.f / 2835)))));
  const float shrunk = __expf(-2 * fabsf(x));
  return fabsf(x) < 0.25f ? series : copysignf(__fdividef(1 - shrunk, 1 + shrunk), x);
}

__device__ __forceinline__ float exact_sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

// What bf16 and fp16 share. Self, the format, packs two numbers into a word, unpacks and multiplies them.
template <typename Self>
struct Half {
  using Scalar = uint16_t;
  using Four = uint2;  // the four gates of a unit
  static constexpr int kBytes = 2;
  static constexpr int kMostRegisters = 5;  // for how many tiles of weights there are registers in the forward pass

  // Word i of an operand whose value k is value(k).
  template <typename Function>
  static __device__ __forceinline__ uint32_t word(const Function& value, int i) {
    return Self::pack(value(2 * i), value(2 * i + 1));
  }
  static __device__ __forceinline__ Scalar narrow(float x) { return static_cast<Scalar>(Self::pack(x, 0.f)); }
  static __device__ __forceinline__ float widen(Scalar x) { return Self::unpack(x).x; }
  static __device__ __forceinline__ Four narrow(const float (&x)[4]) {
    return {Self::pack(x[0], x[1]), Self::pack(x[2], x[3])};
  }
  static __device__ __forceinline__ void widen(const Four& from, float (&x)[4]) {
    const float2 low = Self::unpack(from.x), high = Self::unpack(from.y);
    x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
  }
  static __device__ __forceinline__ Four operand(const float (&x)[4]) { return narrow(x); }
};

struct Bf16 : Half<Bf16> {
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_bf16(low, high); }
  static __device__ __forceinline__ float2 unpack(uint32_t both) {
    return {as_float(both << 16), as_float(both & 0xffff0000u)};
  }
  static __device__ __forceinline__ void multiply(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bf16(acc, a, b);
  }
  // An error of 2^-11 is a quarter of what rounding a state to bf16 may add.
  static __device__ __forceinline__ float tanh(float x) { return tanh_approx(x); }
  static __device__ __forceinline__ float sigmoid(float x) { return 0.5f * tanh_approx(0.5f * x) + 0.5f; }
};

struct Fp16 : Half<Fp16> {
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_fp16(low, high); }
  static __device__ __forceinline__ float2 unpack(uint32_t both) { return unpack_fp16(both); }
  static __device__ __forceinline__ void multiply(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_fp16(acc, a, b);
  }
  static __device__ __forceinline__ float tanh(float x) { return exact_tanh(x); }
  static __device__ __forceinline__ float sigmoid(float x) { return exact_sigmoid(x); }
};

// fp32 in memory; products of numbers rounded to TF32 (kProducts = 1), or as exact as fp32 (3).
template <int kProducts>
struct Fp32 {
  using Scalar = float;
  using Four = float4;
  static constexpr int kBytes = 4;
  static constexpr int kMostRegisters = kProducts == 1 ? 4 : 3;

  static __device__ __forceinline__ uint32_t operand(float x) { return kProducts == 1 ? round_tf32(x) : as_bits(x); }
  template <typename Function>
  static __device__ __forceinline__ uint32_t word(const Function& value, int i) {
    return operand(value(i));
  }
  static __device__ __forceinline__ void multiply(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (kProducts == 1) {
      mma_tf32(acc, a, b);
    } else {
      uint32_t a_high[4], a_low[4], b_high[2], b_low[2];
#pragma unroll
      for (int i = 0; i < 4; ++i) split(a[i], a_high[i], a_low[i]);
#pragma unroll
      for (int i = 0; i < 2; ++i) split(b[i], b_high[i], b_low[i]);
      mma_tf32(acc, a_low, b_high);  // small terms first
      mma_tf32(acc, a_high, b_low);
      mma_tf32(acc, a_high, b_high);
    }
  }
  static __device__ __forceinline__ Scalar narrow(float x) { return x; }
  static __device__ __forceinline__ float widen(Scalar x) { return x; }
  static __device__ __forceinline__ Four narrow(const float (&x)[4]) { return {x[0], x[1], x[2], x[3]}; }
  static __device__ __forceinline__ void widen(const Four& from, float (&x)[4]) {
    x[0] = from.x, x[1] = from.y, x[2] = from.z, x[3] = from.w;
  }
  static __device__ __forceinline__ uint4 operand(const float (&x)[4]) {
    return {operand(x[0]), operand(x[1]), operand(x[2]), operand(x[3])};
  }
  static __device__ __forceinline__ float tanh(float x) { return exact_tanh(x); }
  static __device__ __forceinline__ float sigmoid(float x) { return exact_sigmoid(x); }

 private:
  static __device__ __forceinline__ void split(uint32_t bits, uint32_t& high, uint32_t& low) {
    forget(bits);  // two words of each weight would not fit into the registers
    high = round_tf32(as_float(bits));
    low = round_tf32(as_float(bits) - as_float(high));
  }
};

using Tf32 = Fp32<1>;
using Tf32x3 = Fp32<3>;

// Returns make(A()) for the arithmetic A of a format.
template <typename Make>
auto with_arithmetic(Format format, const Make& make) {
  switch (format) {
    case Format::kBf16: return make(Bf16());
    case Format::kFp16: return make(Fp16());
    case Format::kTf32: return make(Tf32());
    case Format::kTf32x3: break;
  }
  return make(Tf32x3());
}

}  // namespace esim_fast
