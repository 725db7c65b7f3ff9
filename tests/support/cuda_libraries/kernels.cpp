// ONNX Runtime's kernels for small dense networks, one element after another.
//
// A kernel is found by the beginning of its signature. Each comment lists its arguments.

#include <cxxabi.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "fake_cuda.h"

namespace {

template <typename T>
T argument(void** arguments, int index) {
  return *static_cast<T*>(arguments[index]);
}

// ONNX Runtime's divisor for device code, passed by value.
struct DivMod {
  int divisor;
  uint32_t multiplier, shift;
};

template <typename T, int most>
struct Few {
  int count;
  T values[most];
};

using Kernel = Op (*)(void** arguments);

// (in, out, functor, n)
template <typename From, typename To, To (*f)(From)>
Op unary(void** arguments) {
  const auto* in = argument<const From*>(arguments, 0);
  auto* out = argument<To*>(arguments, 1);
  const auto n = argument<int64_t>(arguments, 3);
  return [=] {
    if (!on_device(in, n * sizeof(From)) || !on_device(out, n * sizeof(To))) return illegal_address();
    for (int64_t i = 0; i < n; i++) out[i] = f(in[i]);
  };
}

// (left, right, out, functor, n); step: 1, or 0 if right is a single number
template <float (*f)(float, float), int step = 0>
Op binary(void** arguments) {
  const auto* left = argument<const float*>(arguments, 0);
  const auto* right = argument<const float*>(arguments, 1);
  auto* out = argument<float*>(arguments, 2);
  const int n = argument<int>(arguments, 4);
  return [=] {
    if (!on_device(left, n * sizeof(float)) || !on_device(out, n * sizeof(float)))
      return illegal_address();
    for (int i = 0; i < n; i++) out[i] = f(left[i], right[i * step]);
  };
}

// (left, right, out, functor, n); right is a single number
Op greater(void** arguments) {
  const auto* left = argument<const float*>(arguments, 0);
  const auto* right = argument<const float*>(arguments, 1);
  auto* out = argument<bool*>(arguments, 2);
  const int n = argument<int>(arguments, 4);
  return [=] {
    for (int i = 0; i < n; i++) out[i] = left[i] > *right;
  };
}

// (condition, value if true, value if false, out, n)
Op where(void** arguments) {
  const auto* condition = argument<const bool*>(arguments, 0);
  const auto *yes = argument<const float*>(arguments, 1), *no = argument<const float*>(arguments, 2);
  auto* out = argument<float*>(arguments, 3);
  const int n = argument<int>(arguments, 4);
  return [=] {
    for (int i = 0; i < n; i++) out[i] = condition[i] ? yes[i] : no[i];
  };
}

// (in, out, min tensor, max tensor, min and max if there is no tensor, n)
Op clip(void** arguments) {
  const auto* in = argument<const float*>(arguments, 0);
  auto* out = argument<float*>(arguments, 1);
  const auto *least = argument<const float*>(arguments, 2), *most = argument<const float*>(arguments, 3);
  const auto no_least = argument<float>(arguments, 4), no_most = argument<float>(arguments, 5);
  const auto n = argument<size_t>(arguments, 6);
  return [=] {
    const float low = least ? *least : no_least, high = most ? *most : no_most;
    for (size_t i = 0; i < n; i++) out[i] = std::fmin(std::fmax(in[i], low), high);
  };
}

// (bias, out, n, columns, step from row to row, step from column to column, factor)
Op bias(void** arguments) {
  const auto* in = argument<const float*>(arguments, 0);
  auto* out = argument<float*>(arguments, 1);
  const auto n = argument<int64_t>(arguments, 2);
  const int columns = argument<DivMod>(arguments, 3).divisor;
  const int down = argument<int>(arguments, 4), along = argument<int>(arguments, 5);
  const auto factor = argument<float>(arguments, 6);
  return [=] {
    if (!on_device(out, n * sizeof(float))) return illegal_address();
    for (int64_t i = 0; i < n; i++) out[i] = factor * in[i / columns * down + i % columns * along];
  };
}

// (elements of a block of in, size of the axis, elements of a block of out, elements after the axis,
// indices, their size, in, out, n)
Op gather(void** arguments) {
  const auto from = argument<int64_t>(arguments, 0), axis = argument<int64_t>(arguments, 1);
  const int to = argument<DivMod>(arguments, 2).divisor, rest = argument<DivMod>(arguments, 3).divisor;
  const auto* indices = argument<const int64_t*>(arguments, 4);
  const auto* in = argument<const int32_t*>(arguments, 6);
  auto* out = argument<int32_t*>(arguments, 7);
  const int n = argument<int>(arguments, 8);
  return [=] {
    for (int i = 0; i < n; i++) {
      const int64_t index = indices[i % to / rest];
      out[i] = in[i / to * from + (index < 0 ? index + axis : index) * rest + i % rest];
    }
  };
}

// A tensor cut along an axis into equal parts: the part of each element, and its place there.
struct Cut {
  int block, after, axis;  // elements: from the axis on, after the axis; size of a part's axis

  explicit Cut(void** arguments)
      : block(argument<DivMod>(arguments, 0).divisor),
        after(argument<DivMod>(arguments, 1).divisor),
        axis(argument<DivMod>(arguments, 2).divisor) {}
  int part(int i) const { return i % block / after / axis; }
  int place(int i) const { return (i / block * axis + i % block / after % axis) * after + i % after; }
};

// (cut, how many parts, in, the parts, n)
Op split_evenly(void** arguments) {
  const Cut cut(arguments);
  const auto* in = argument<const int32_t*>(arguments, 4);
  const auto parts = argument<Few<int32_t*, 32>>(arguments, 5);
  const int n = argument<int>(arguments, 6);
  return [=] {
    for (int i = 0; i < n; i++) parts.values[cut.part(i)][cut.place(i)] = in[i];
  };
}

// (cut, out, the parts, n)
Op join_evenly(void** arguments) {
  const Cut cut(arguments);
  auto* out = argument<int32_t*>(arguments, 3);
  const auto parts = argument<Few<const int32_t*, 32>>(arguments, 4);
  const int n = argument<int>(arguments, 5);
  return [=] {
    for (int i = 0; i < n; i++) out[i] = parts.values[cut.part(i)][cut.place(i)];
  };
}

// (bytes of a row in each part, in, the parts, bytes of a row, total in units of 16 bytes)
Op split(void** arguments) {
  const auto sizes = argument<Few<int64_t, 4>>(arguments, 0);
  const auto* in = argument<const char*>(arguments, 1);
  const auto parts = argument<Few<char*, 4>>(arguments, 2);
  const auto row = argument<int64_t>(arguments, 3);
  const int64_t rows = argument<int>(arguments, 4) * int64_t{16} / row;
  return [=] {
    const char* at = in;
    for (int64_t i = 0; i < rows; i++)
      for (int part = 0; part < sizes.count; at += sizes.values[part++])
        memcpy(parts.values[part] + i * sizes.values[part], at, sizes.values[part]);
  };
}

float widened(uint8_t x) { return x; }
uint8_t narrowed(float x) { return static_cast<uint8_t>(x); }
float rounded(float x) { return std::nearbyint(x); }
float rectified(float x) { return std::fmax(x, 0.0f); }
float squashed(float x) { return 1 / (1 + std::exp(-x)); }
float softplus(float x) { return std::fmax(x, 0.0f) + std::log1p(std::exp(-std::fabs(x))); }
float added(float x, float y) { return x + y; }
float subtracted(float x, float y) { return x - y; }
float multiplied(float x, float y) { return x * y; }
float divided(float x, float y) { return x / y; }

const std::vector<std::pair<std::string, Kernel>> known{
    {"_UnaryElementWise<unsigned char, float, OP_Cast", unary<uint8_t, float, widened>},
    {"_UnaryElementWise<float, unsigned char, OP_Cast", unary<float, uint8_t, narrowed>},
    {"_UnaryElementWise<float, float, OP_Round", unary<float, float, rounded>},
    {"_UnaryElementWise<float, float, OP_Relu", unary<float, float, rectified>},
    {"_UnaryElementWise<float, float, OP_Tanh", unary<float, float, std::tanh>},
    {"_UnaryElementWise<float, float, OP_Sigmoid", unary<float, float, squashed>},
    {"_UnaryElementWise<float, float, OP_Softplus", unary<float, float, softplus>},
    {"_BinaryElementWiseSimple<true, false, float, float, float, OP_Add", binary<added>},
    {"_BinaryElementWiseSimple<true, false, float, float, float, OP_Sub", binary<subtracted>},
    {"_BinaryElementWiseSimple<true, false, float, float, float, OP_Mul", binary<multiplied>},
    {"_BinaryElementWiseSimple<true, false, float, float, float, OP_Div", binary<divided>},
    {"_BinaryElementWiseSimple<true, true, float, float, float, OP_Add", binary<added, 1>},
    {"_BinaryElementWiseSimple<true, true, float, float, float, OP_Mul", binary<multiplied, 1>},
    {"_BinaryElementWiseSimple<true, false, bool, float, float, OP_Greater", greater},
    {"_TenaryElementWiseSimple<float, (BroadcastIndexType)0, (BroadcastIndexType)0", where},
    {"_Clip<float>", clip},
    {"BroadcastBiasKernel<float, int, false>", bias},
    {"_GatherKernel<int>", gather},
    {"_SplitSmallInnerKernel<int4>", split},
    {"_SplitKernelSameSplitDim<int, ", split_evenly},
    {"_ConcatKernelSameConcatDim<int, ", join_evenly},
};

}  // namespace

std::string signature(const std::string& mangled) {
  int status;
  char* const text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string found = text ? text : mangled;
  free(text);
  for (const std::string noise : {"void ", "onnxruntime::cuda::"})
    for (size_t at; (at = found.find(noise)) != std::string::npos;) found.erase(at, noise.size());
  return found;
}

Op kernel(const std::string& name, void** arguments) {
  const std::string found = signature(name);
  for (const auto& [beginning, make] : known)
    if (found.starts_with(beginning)) return make(arguments);
  return {};
}
