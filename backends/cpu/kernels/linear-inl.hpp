// The linear kernels of a SIMD level. Included inside the level's namespace after its vector operations and one of
// dot_bytes-inl.hpp, dot_words-inl.hpp and dot_matrix-inl.hpp.

// In this order: each stands on those before it.
#include "unpack-inl.hpp"
//
#include "grouped-inl.hpp"
//
#include "grouped_linear-inl.hpp"
//
#include "byte_result-inl.hpp"
//
#include "bytes-inl.hpp"
//
#include "dense-inl.hpp"
//
#include "bfloats-inl.hpp"
//
#include "row_scale-inl.hpp"
//
#include "input-inl.hpp"

namespace {

template <PanelKind kind>
void linear_of_kind(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                    const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                    std::int64_t out_stride, std::uint8_t* slice) {
  if constexpr (kind == PanelKind::f32) {
    dense_linear<Dense::f32>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride, slice);
  } else if constexpr (kind == PanelKind::f16) {
    dense_linear<Dense::f16>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride, slice);
  } else if constexpr (kind == PanelKind::bf16) {
    const auto multiply_all = x.bfloats ? bfloat_linear<Dense::bf16> : dense_linear<Dense::bf16>;
    multiply_all(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride, slice);
  } else if constexpr (kind == PanelKind::w8a8) {
    byte_linear(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride);
  } else if constexpr (kind == PanelKind::fp8) {
    const auto multiply_all = x.bfloats ? bfloat_linear<Dense::fp8> : dense_linear<Dense::fp8>;
    multiply_all(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride, slice);
  } else if constexpr (kind == PanelKind::f16_sparse) {
    dense_linear<Dense::f16_sparse>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride, slice);
  } else if constexpr (kind == PanelKind::bf16_sparse) {
    dense_linear<Dense::bf16_sparse>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride, slice);
  } else {
    grouped_linear<panel_shape(kind)>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride, slice);
  }
}

void linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end, const ActivationView& x,
            std::int32_t row_begin, std::int32_t row_end, float* out, std::int64_t out_stride, void* scratch) {
  unroll<kPanelKinds>([&](auto i) __attribute__((always_inline)) {
    constexpr PanelKind kind = static_cast<PanelKind>(i.value);
    if (w.kind == kind) {
      linear_of_kind<kind>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride,
                           static_cast<std::uint8_t*>(scratch));
    }
  });
}

void quantize_row(const float* x, std::int64_t k, ActivationCodes codes, QuantizedGroup* out) {
  for (; k >= kGroupValues; k -= kGroupValues, x += kGroupValues) quantize_group(x, codes, out++);
  if (k > 0) {
    float tail[kGroupValues] = {};
    for (int i = 0; i < k; ++i) tail[i] = x[i];
    quantize_group(tail, codes, out);
  }
}

void dot_rows(const float* w, std::int64_t k, const float* x, std::int64_t stride, std::int32_t rows, float* out,
              std::int64_t out_stride) {
  for (std::int32_t row = 0; row < rows; ++row, x += stride) out[row * out_stride] = dot_row(w, x, k);
}

constexpr LinearKernels kLinearKernels{.level = kLevelName,
                                       .form = kForm,
                                       .byte_rows = kByteRows,
                                       .quantize_row = quantize_row,
                                       .round_row = round_row,
                                       .quantize_bytes = quantize_bytes,
                                       .quantize_bfloats = quantize_bfloats,
                                       .linear = linear,
                                       .dot_rows = dot_rows};

}  // namespace
