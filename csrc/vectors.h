// SIMD with the vector types of GCC and Clang, so that one source serves AVX-512, AVX2, SSE2 and NEON.
//
// A kernel is a template over the number of lanes. ESIM_FOR_EACH_PROCESSOR compiles it for each instruction set of
// x86-64 and picks one on the first call. Everything it calls must be ESIM_INLINE, to be compiled for the same set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#define ESIM_INLINE inline __attribute__((always_inline))

namespace esim_fast {

template <typename T, int lanes>
struct vector_of {
  typedef T type __attribute__((vector_size(sizeof(T) * lanes)));
};
template <typename T, int lanes>
using Vector = typename vector_of<T, lanes>::type;

constexpr int64_t up_to_multiple(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A vector in memory. No alignment is assumed, because rows may have any width.
template <typename V>
struct __attribute__((packed, may_alias)) Unaligned {
  V v;
};

template <typename V, typename T>
ESIM_INLINE V load(const T* p) {
  return reinterpret_cast<const Unaligned<V>*>(p)->v;
}
template <typename V, typename T>
ESIM_INLINE void store(T* p, const V& v) {
  reinterpret_cast<Unaligned<V>*>(p)->v = v;
}
// Load or store the first n lanes; the others are loaded as 0 and not stored.
template <typename V, typename T>
ESIM_INLINE V load(const T* p, int64_t n) {
  if (n >= static_cast<int64_t>(sizeof(V) / sizeof(T))) return load<V>(p);
  V v{};
  std::memcpy(&v, p, n * sizeof(T));
  return v;
}
template <typename V, typename T>
ESIM_INLINE void store(T* p, const V& v, int64_t n) {
  if (n >= static_cast<int64_t>(sizeof(V) / sizeof(T))) return store<V>(p, v);
  std::memcpy(p, &v, n * sizeof(T));
}

// Copies `bytes` past the caches, to memory that is not read again soon, which avoids reading each line before writing
// it. Call finish_streams before another thread reads.
template <int lanes>
ESIM_INLINE void stream(void* to, const void* from, int64_t bytes) {
  using V = Vector<float, lanes>;
  auto* out = static_cast<char*>(to);
  const auto* in = static_cast<const char*>(from);
#if defined(__x86_64__)
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(out) % sizeof(V));
  std::memcpy(out, in, head);
  int64_t done = head;
  for (; done + int64_t{sizeof(V)} <= bytes; done += sizeof(V)) {
    const V v = load<V>(in + done);
    // Inline assembly, because intrinsics do not compile in functions that are built for several processors.
    if constexpr (lanes > 4) {
      asm volatile("vmovntps %1, %0" : "=m"(reinterpret_cast<Unaligned<V>*>(out + done)->v) : "v"(v));
    } else {
      asm volatile("movntps %1, %0" : "=m"(reinterpret_cast<Unaligned<V>*>(out + done)->v) : "x"(v));
    }
  }
  std::memcpy(out + done, in + done, bytes - done);
#else
  std::memcpy(out, in, bytes);
#endif
}
inline void finish_streams() {
#if defined(__x86_64__)
  asm volatile("sfence" ::: "memory");
#endif
}

// sum[r][v] += sum over k of a[r, k] * b[k, v]: the inner loop of a matrix product, with its sums in registers.
// a: rows a_row apart, terms a_step apart; b: terms b_step apart, each `vectors` contiguous vectors.
// b is prefetched `ahead` terms in advance, for a b that is larger than the L1 cache.
template <int rows, int vectors, int ahead = 0, typename V, typename T>
ESIM_INLINE void multiply_add(V (&sum)[rows][vectors], const T* a, int64_t a_row, int64_t a_step, const T* b,
                              int64_t b_step, int64_t terms) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  for (int64_t k = 0; k < terms; ++k, a += a_step, b += b_step) {
    V right[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) right[v] = load<V>(b + v * lanes);
    if constexpr (ahead > 0) {  // the address may lie past the end, but a prefetch never faults
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) __builtin_prefetch(b + ahead * b_step + v * lanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const T left = a[r * a_row];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] += left * right[v];
    }
  }
}

// sum[r][c] += sum over k of a[r, k] * b[c, k], separately per lane. `terms` is a multiple of the vector size.
template <int rows, int columns, typename V, typename T>
ESIM_INLINE void multiply_add_rows(V (&sum)[rows][columns], const T* a, int64_t a_row, const T* b, int64_t b_row,
                                   int64_t terms) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  for (int64_t k = 0; k < terms; k += lanes) {
    V right[columns];
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) right[c] = load<V>(b + c * b_row + k);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const V left = load<V>(a + r * a_row + k);
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) sum[r][c] += left * right[c];
    }
  }
}

// Sum and maximum of a vector's lanes, combining halves until one lane is left.
template <int lanes, typename T>
ESIM_INLINE T total(const Vector<T, lanes>& v) {
  if constexpr (lanes == 1) {
    return v[0];
  } else {
    using Part = Vector<T, lanes / 2>;
    const T* p = reinterpret_cast<const T*>(&v);
    return total<lanes / 2, T>(load<Part>(p) + load<Part>(p + lanes / 2));
  }
}
template <int lanes, typename T>
ESIM_INLINE T highest(const Vector<T, lanes>& v) {
  if constexpr (lanes == 1) {
    return v[0];
  } else {
    using Part = Vector<T, lanes / 2>;
    const T* p = reinterpret_cast<const T*>(&v);
    const Part low = load<Part>(p), high = load<Part>(p + lanes / 2);
    return highest<lanes / 2, T>(low > high ? low : high);
  }
}

// Conversions between fp32 and the bits of fp16 or bf16, rounding to nearest even. fp16 follows PyTorch's
// c10/util/Half.h.
template <int lanes>
ESIM_INLINE Vector<float, lanes> from_bfloat16(Vector<uint16_t, lanes> x) {
  using I = Vector<uint32_t, lanes>;
  return (Vector<float, lanes>)(__builtin_convertvector(x, I) << 16);
}
template <int lanes>
ESIM_INLINE Vector<uint16_t, lanes> to_bfloat16(Vector<float, lanes> x) {
  using I = Vector<uint32_t, lanes>;
  const I bits = (I)x;
  const I rounded = (bits + ((bits >> 16) & 1u) + 0x7FFFu) >> 16;
  return __builtin_convertvector(x == x ? rounded : I{} + 0x7FC0u, Vector<uint16_t, lanes>);
}
template <int lanes>
ESIM_INLINE Vector<float, lanes> from_half(Vector<uint16_t, lanes> x) {
  using V = Vector<float, lanes>;
  using I = Vector<uint32_t, lanes>;
  const I bits = __builtin_convertvector(x, I) << 16, twice = bits + bits;
  const V normal = (V)((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const V subnormal = (V)((twice >> 17) | (126u << 23)) - 0.5f;
  const I size = twice < (1u << 27) ? (I)subnormal : (I)normal;
  return (V)((bits & 0x80000000u) | size);
}
template <int lanes>
ESIM_INLINE Vector<uint16_t, lanes> to_half(Vector<float, lanes> x) {
  using V = Vector<float, lanes>;
  using I = Vector<uint32_t, lanes>;
  const I bits = (I)x, twice = bits + bits, magnitude = bits & 0x7FFFFFFFu;
  // Values that are too large become infinite here; adding the bias rounds the rest at fp16's last bit.
  const V scaled = ((V)magnitude * 0x1.0p+112f) * 0x1.0p-110f;
  const I exponent = twice & 0xFF000000u, bias = exponent < 0x71000000u ? I{} + 0x71000000u : exponent;
  const I sum = (I)((V)((bias >> 1) + 0x07800000u) + scaled);
  const I size = ((sum >> 13) & 0x7C00u) + (sum & 0x0FFFu);
  return __builtin_convertvector(((bits & 0x80000000u) >> 16) | (twice > 0xFF000000u ? I{} + 0x7E00u : size),
                                 Vector<uint16_t, lanes>);
}

// exp(x) in fp32, within 2 units in the last place; 0 below -87.3 (where fp32's normal numbers end), NaN for NaN.
template <int lanes>
ESIM_INLINE Vector<float, lanes> exponential(Vector<float, lanes> x) {
  using V = Vector<float, lanes>;
  using I = Vector<int32_t, lanes>;
  constexpr float kLowest = -87.33654f, kHighest = 88.72283f;
  const V limited = x > kHighest ? V{} + kHighest : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const V rounded = limited * 1.44269504f + 12582912.0f;
  const V n = rounded - 12582912.0f;
  const V r = limited - n * 0.693359375f + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, because n may be 128 and an exponent ends at 127. Unsigned, because far below kLowest the
  // arithmetic overflows; those results are discarded.
  using U = Vector<uint32_t, lanes>;
  const I exponent = (I)((U)rounded - 0x4B400000u);
  const U half = (U)(exponent >> 1), other_half = (U)exponent - half;
  const V scaled = p * (V)((half + 127u) << 23) * (V)((other_half + 127u) << 23);
  return x < kLowest ? V{} : (x > kHighest ? V{} + INFINITY : scaled);
}

template <int lanes>
ESIM_INLINE Vector<float, lanes> sigmoid(Vector<float, lanes> x) {
  return 1.0f / (1.0f + exponential<lanes>(-x));
}

// Near 0 the subtraction from 1 cancels, so a polynomial is used there.
template <int lanes>
ESIM_INLINE Vector<float, lanes> hyperbolic_tangent(Vector<float, lanes> x) {
  using V = Vector<float, lanes>;
  const V size = x < 0.0f ? -x : x, square = x * x;
  V p = square * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const V near = x + x * square * p;
  const V far = 1.0f - 2.0f / (exponential<lanes>(2.0f * size) + 1.0f);
  return size < 0.625f ? near : (x < 0.0f ? -far : far);
}

// The processor's instruction set, limited by PyTorch's ATEN_CPU_CAPABILITY (default, avx2, avx512).
enum class Processor { baseline, avx2, avx512 };

inline Processor processor() {
#if defined(__x86_64__)
  const char* wish = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view most = wish ? wish : "avx512";
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (most != "default" && most != "avx2" && avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Processor::avx512;
  }
  if (most != "default" && avx2) return Processor::avx2;
#endif
  return Processor::baseline;
}

}  // namespace esim_fast

// For functions that are compiled for one of the instruction sets.
#define ESIM_FOR_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define ESIM_FOR_AVX2 __attribute__((target("avx2,fma")))

// Defines `void name(const argument& x)`, which calls `body<lanes, rows>(x)` with the fp32 lanes of a vector and the
// number of rows of sums, four vectors each, that fit into registers.
#if defined(__x86_64__)
#define ESIM_FOR_EACH_PROCESSOR(name, body, argument)                            \
  ESIM_FOR_AVX512 void name##_avx512(const argument& x) { body<16, 6>(x); }      \
  ESIM_FOR_AVX2 void name##_avx2(const argument& x) { body<8, 3>(x); }           \
  void name##_baseline(const argument& x) { body<4, 3>(x); }                     \
  void name(const argument& x) {                                                 \
    static const Processor best = processor();                                   \
    if (best == Processor::avx512) return name##_avx512(x);                      \
    if (best == Processor::avx2) return name##_avx2(x);                          \
    name##_baseline(x);                                                          \
  }
#else
#define ESIM_FOR_EACH_PROCESSOR(name, body, argument) \
  void name(const argument& x) { body<4, 6>(x); }
#endif
