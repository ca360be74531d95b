// The linear kernels in plain C++: what the SIMD levels must reproduce bit for bit. Included inside namespace
// isa_scalar.
//
// The arithmetic of one output, for groups of 32 values in ascending order:
//   dot  = sum of code * x.code - zero * sum of x.code        exact, int32 (at most 32 * 255 * 32639); one per 16 values
//                                                             for kinds of group 16
//   t    = scale * float(dot), rounded to nearest             group 16: then t = fma(scale', float(dot'), t)
//   acc  = fma(t, x.scale, acc)
//   acc  = fma(-minimum, x.scale * sum of x.code, acc)        kinds with minimums only
// Dense kinds: acc = fma(w[k], x[k], acc) for ascending k.
#include "panel_read-inl.hpp"

namespace {

void quantize_group(const float* x, QuantizedGroup* out) {
  std::uint32_t bits = 0;  // of the largest absolute value: integers order as floats do, NaN above all
  for (int i = 0; i < kGroupValues; ++i) {
    const std::uint32_t b = __builtin_bit_cast(std::uint32_t, x[i]) & 0x7fffffffu;
    if (b > bits) bits = b;
  }
  const float absmax = __builtin_bit_cast(float, bits);
  const bool finite = bits < 0x7f800000u;
  const bool zero = !finite || absmax < 1e-30f;
  const float inverse = zero ? 0.0f : static_cast<float>(kCodeLimit) / absmax;
  std::int32_t half[2] = {0, 0};
  for (int i = 0; i < kGroupValues; ++i) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even
    const std::int32_t code = zero ? 0 : static_cast<std::int32_t>((x[i] * inverse + kRound) - kRound);
    out->codes[i] = static_cast<std::uint8_t>((code + 128) >> 8);
    out->codes[kGroupValues + i] = static_cast<std::uint8_t>(code);
    half[i / 16] += code;
  }
  out->scale = !finite ? __builtin_nanf("") : zero ? 0.0f : absmax / static_cast<float>(kCodeLimit);
  for (int h = 0; h < 2; ++h) {
    out->scaled_half_sum[h] = out->scale * static_cast<float>(half[h]);
    out->minus_half_sum[h] = -half[h];
  }
  out->scaled_sum = out->scale * static_cast<float>(half[0] + half[1]);
  out->minus_sum = -(half[0] + half[1]);
  out->unused = 0;
}

void quantize_row(const float* x, std::int64_t k, QuantizedGroup* out) {
  for (; k >= kGroupValues; k -= kGroupValues, x += kGroupValues) quantize_group(x, out++);
  if (k > 0) {
    float tail[kGroupValues] = {};
    for (int i = 0; i < k; ++i) tail[i] = x[i];
    quantize_group(tail, out);
  }
}

std::int32_t activation_code(const QuantizedGroup& x, int i) {
  return 256 * static_cast<std::int8_t>(x.codes[i]) + static_cast<std::int8_t>(x.codes[kGroupValues + i]);
}

/// One output of a grouped kind, from its row's codes // (K) and scales and minimums // (K / group).
float grouped_output(const PanelShape& shape, std::int64_t groups, const std::uint8_t* codes, const float* scales,
                     const float* minimums, const QuantizedGroup* x) {
  const int halves = kGroupValues / shape.group;
  float acc = 0.0f;
  for (std::int64_t g = 0; g < groups; ++g, ++x) {
    float t = 0.0f;
    for (int h = 0; h < halves; ++h) {
      std::int32_t dot = shape.zero * (halves == 1 ? x->minus_sum : x->minus_half_sum[h]);
      for (int i = h * shape.group; i < (h + 1) * shape.group; ++i) dot += codes[g * kGroupValues + i] * activation_code(*x, i);
      const float scale = scales[g * halves + h];
      t = h == 0 ? scale * static_cast<float>(dot) : __builtin_fmaf(scale, static_cast<float>(dot), t);
    }
    acc = __builtin_fmaf(t, x->scale, acc);
    for (int h = 0; shape.minimum && h < halves; ++h) {
      acc = __builtin_fmaf(-minimums[g * halves + h], halves == 1 ? x->scaled_sum : x->scaled_half_sum[h], acc);
    }
  }
  return acc;
}

void linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end, const ActivationView& x,
            std::int32_t row_begin, std::int32_t row_end, float* out, std::int64_t out_stride, void* scratch) {
  const PanelShape shape = panel_shape(w.kind);
  const std::int64_t groups = (w.cols + kGroupValues - 1) / kGroupValues;
  float* const scales = static_cast<float*>(scratch);
  float* const minimums = scales + groups * 2;
  std::uint8_t* const codes = reinterpret_cast<std::uint8_t*>(minimums + groups * 2);
  for (std::int64_t n = std::int64_t{panel_begin} * kPanelRows; n < w.rows && n < std::int64_t{panel_end} * kPanelRows;
       ++n) {
    const std::uint8_t* const panel = w.data + n / kPanelRows * w.layout.bytes;
    const int lane = static_cast<int>(n % kPanelRows);
    if (shape.bits == 0) {
      for (std::int32_t row = row_begin; row < row_end; ++row) {
        const float* const in = x.f32 + row * x.stride;
        float acc = 0.0f;
        for (std::int64_t k = 0; k < w.cols; ++k) acc = __builtin_fmaf(panel_dense(w, panel, k, lane), in[k], acc);
        out[row * out_stride + n] = acc;
      }
      continue;
    }
    for (std::int64_t g = 0; g < groups; ++g) panel_codes(w, shape, panel, g, lane, codes + g * kGroupValues);
    for (std::int64_t i = 0; i < groups * kGroupValues / shape.group; ++i) {
      panel_scale(w, shape, panel, i, lane, scales + i, minimums + i);
    }
    for (std::int32_t row = row_begin; row < row_end; ++row) {
      out[row * out_stride + n] =
          grouped_output(shape, groups, codes, scales, minimums, x.groups + row * x.group_stride);
    }
  }
}

void dot_rows(const float* w, std::int64_t k, const float* x, std::int64_t stride, std::int32_t rows, float* out,
              std::int64_t out_stride) {
  for (std::int32_t row = 0; row < rows; ++row, x += stride) {
    float sum[16] = {};
    for (std::int64_t i = 0; i < k; ++i) sum[i % 16] = __builtin_fmaf(w[i], x[i], sum[i % 16]);
    for (int step = 8; step > 0; step /= 2) {
      for (int i = 0; i < step; ++i) sum[i] += sum[i + step];
    }
    out[row * out_stride] = sum[0];
  }
}

}  // namespace

const LinearKernels& linear_kernels() {
  static constexpr LinearKernels kKernels{"scalar", ActivationForm::bytes, quantize_row, linear, dot_rows};
  return kKernels;
}
