// The table of weight formats. A new format is a trait struct, an enumerator of WeightType and a row here.
#include "quant/format.hpp"

#include <array>
#include <type_traits>

#include "quant/traits_float.hpp"
#include "quant/traits_iq.hpp"
#include "quant/traits_k.hpp"
#include "quant/traits_q.hpp"
#include "quant/traits_small.hpp"
#include "quant/traits_w.hpp"

namespace llminfer::quant {
namespace {

template <class T>
constexpr Format row(std::uint32_t ggml_type) {
  if constexpr (requires { T::shape; }) {
    static_assert(T::block_values <= 256 && T::block_values / T::shape.group <= 16);  // fits GroupedBlock
    return {T::type, T::name, ggml_type, T::block_values, T::block_bytes, T::shape, &T::unpack, &T::decompose};
  } else {
    return {T::type, T::name, ggml_type, T::block_values, T::block_bytes, {}, &T::unpack, nullptr};
  }
}

// In the order of WeightType.
constexpr std::array kFormats = {
    row<F32>(0),
    row<F16>(1),
    row<BF16>(30),  //
    row<Q4_0>(2),
    row<Q4_1>(3),
    row<Q5_0>(6),
    row<Q5_1>(7),
    row<Q8_0>(8),  //
    row<Q2_K>(10),
    row<Q3_K>(11),
    row<Q4_K>(12),
    row<Q5_K>(13),
    row<Q6_K>(14),  //
    row<IQ1_S>(19),
    row<IQ1_M>(29),
    row<IQ2_XXS>(16),
    row<IQ2_XS>(17),
    row<IQ2_S>(22),
    row<IQ3_XXS>(18),  //
    row<IQ3_S>(21),
    row<IQ4_NL>(20),
    row<IQ4_XS>(23),
    row<TQ1_0>(34),
    row<TQ2_0>(35),
    row<MXFP4>(39),  //
    row<NVFP4>(40),
    row<W2>(kNotInGguf),
    row<W3>(kNotInGguf),
    row<W4>(kNotInGguf),
    row<W8>(kNotInGguf),  //
    row<W4_SYM>(kNotInGguf),
    row<W8_SYM>(kNotInGguf),
    row<NF4>(kNotInGguf),
    row<FP4>(kNotInGguf),  //
    row<FP4_16>(kNotInGguf),
    row<FP8>(kNotInGguf),
    row<W2_MIN>(kNotInGguf),
    row<W3_MIN>(kNotInGguf),  //
    row<W4_MIN>(kNotInGguf),
    row<W8_MIN>(kNotInGguf),
};

consteval bool in_order() {
  for (std::size_t i = 0; i < kFormats.size(); ++i) {
    if (static_cast<std::size_t>(kFormats[i].type) != i) return false;
  }
  return true;
}
static_assert(in_order(), "row i describes the WeightType of value i");

}  // namespace

std::span<const Format> formats() noexcept { return kFormats; }

const Format& format(WeightType type) noexcept { return kFormats[static_cast<std::size_t>(type)]; }

const Format* format_by_ggml_type(std::uint32_t ggml_type) noexcept {
  for (const Format& row : kFormats) {
    if (row.ggml_type == ggml_type && ggml_type != kNotInGguf) return &row;
  }
  return nullptr;
}

}  // namespace llminfer::quant
