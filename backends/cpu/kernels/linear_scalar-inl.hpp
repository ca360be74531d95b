// The linear kernels in plain C++: what the SIMD levels must reproduce bit for bit. Included inside namespace
// isa_scalar.
//
// The arithmetic of one output, for groups of 32 values in ascending order:
//   dot  = sum of code * x.code - zero * sum of x.code        exact, int32 (at most 32 * 255 * 32639); one per 16
//   values
//                                                             for kinds of group 16
//   t    = scale * float(dot), rounded to nearest             group 16: then t = fma(scale', float(dot'), t)
//   acc  = fma(t, x.scale, acc)
//   acc  = fma(-minimum, x.scale * sum of x.code, acc)        kinds with minimums only
// w8a8: float(sum over k of (code - 128) * (x.code - x.zero)) * scale * x.scale, from the left; the sum exact, int32.
// Dense kinds: acc = fma(w[k], x[k], acc) for ascending k. Sparse kinds: the same without the zeros, which change
// nothing where x is finite. Of bf16 times rows of such numbers k = 1, 0, 3, 2, …, which is what processors do that
// multiply them in pairs (but these take what is below 2^-126 for zero). Of fp8 times such rows, for blocks of
// block_of() columns in ascending order:
//   t    = the same sum of the block, of weights and inputs without their scales
//   acc  = fma(t * scale, x.scale, acc)
#include "panel_read-inl.hpp"
//
#include "row_scale-inl.hpp"
//
#include "group_scale-inl.hpp"

namespace {

constexpr float kNearest = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even

void quantize_group(const float* x, ActivationCodes codes, QuantizedGroup* out) {
  std::uint32_t bits = 0;
  for (int i = 0; i < kGroupValues; ++i) {
    const std::uint32_t b = __builtin_bit_cast(std::uint32_t, x[i]) & 0x7fffffffu;
    if (b > bits) bits = b;
  }
  const GroupScale s = group_scale(bits, codes);
  std::int32_t half[2] = {0, 0};
  for (int i = 0; i < kGroupValues; ++i) {
    const std::int32_t nearest = s.zero ? 0 : static_cast<std::int32_t>((x[i] * s.inverse + kNearest) - kNearest);
    const std::int32_t code = nearest * (1 << codes.shift);
    out->codes[i] = static_cast<std::uint8_t>((code + 128) >> 8);
    out->codes[kGroupValues + i] = static_cast<std::uint8_t>(code);
    half[i / 16] += code;
  }
  finish_group(s, half[0], half[1], out);
}

void quantize_row(const float* x, std::int64_t k, ActivationCodes codes, QuantizedGroup* out) {
  for (; k >= kGroupValues; k -= kGroupValues, x += kGroupValues) quantize_group(x, codes, out++);
  if (k > 0) {
    float tail[kGroupValues] = {};
    for (int i = 0; i < k; ++i) tail[i] = x[i];
    quantize_group(tail, codes, out);
  }
}

float absolute(float x) { return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, x) & 0x7fffffffu); }

/// The largest absolute value, or NaN where not all are finite.
float largest(const float* x, std::int64_t n) {
  float most = 0.0f, invalid = 0.0f;
  for (std::int64_t i = 0; i < n; ++i) {
    most = absolute(x[i]) > most ? absolute(x[i]) : most;
    invalid += x[i] * 0.0f;
  }
  return most + invalid;
}

float clamped(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/// Integers -128 … 127: the nearest to x / scale, and `zero` more.
float to_code(float x, const RowScale& s) {
  const float nearest = (clamped(x / s.scale, -65536.0f, 65536.0f) + kNearest) - kNearest;
  return clamped(nearest + static_cast<float>(s.zero), -128.0f, 127.0f);
}

/// The E4M3 number nearest to x / scale, ties to even.
float to_e4m3(float x, const RowScale& s) {
  const float ratio = x / s.scale;
  const float size = clamped(absolute(ratio), 0.0f, 448.0f);
  const float power = __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, size) & 0x7f800000u);
  const float round = (power < 0x1p-6f ? 0x1p-6f : power) * (kNearest * 0x1p-3f);  // at the last of 3 places
  return __builtin_copysignf((size + round) - round, ratio);
}

float to_bfloat(float x) {
  const std::uint32_t bits = (__builtin_bit_cast(std::uint32_t, x) + 0x8000u) & 0xffff0000u;
  return __builtin_bit_cast(float, bits) + x * 0.0f;
}

void round_row(const InputRounding& how, const float* x, std::int64_t k, float* out) {
  const std::int64_t group = how.dynamic && how.group > 0 ? how.group : k;
  for (std::int64_t begin = 0; begin < k; begin += group) {
    const std::int64_t end = k - begin < group ? k : begin + group;
    const RowScale s = scale_of(how, largest(x + begin, end - begin));
    for (std::int64_t i = begin; i < end; ++i) {
      out[i] =
          !s.live ? s.value : s.scale * (how.floats ? to_e4m3(x[i], s) : to_code(x[i], s) - static_cast<float>(s.zero));
    }
  }
}

void quantize_bytes(const InputRounding& how, const float* x, std::int64_t k, QuantizedGroup* out) {
  const RowScale s = scale_of(how, largest(x, k));
  auto* const row = reinterpret_cast<ByteRow*>(out);
  auto* const codes = reinterpret_cast<std::int8_t*>(row + 1);
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    codes[i] = s.live ? static_cast<std::int8_t>(to_code(x[i], s)) : std::int8_t{0};
    sum += codes[i];
  }
  *row = {s.live ? s.scale : s.value, s.live ? s.zero : 0, -sum, {}};
}

void quantize_bfloats(const InputRounding* how, const float* x, std::int64_t k, QuantizedGroup* out) {
  const std::int64_t shared = how && how->dynamic && how->group > 0 ? how->group : k;
  RowScale s{true, 1.0f, 0, 0.0f};
  for (std::int64_t i = 0; i < k; ++i) {
    if (how && i % shared == 0) s = scale_of(*how, largest(x + i, k - i < shared ? k - i : shared));
    QuantizedGroup& group = out[i / kGroupValues];
    if (i % kGroupValues == 0) group = {{}, s.live ? s.scale : s.value, {}, {}, {}, {}, {}};
    const float value = !how ? to_bfloat(x[i]) : s.live ? to_e4m3(x[i], s) : 0.0f;
    const auto bits = static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, value) >> 16);
    __builtin_memcpy(group.codes + i % kGroupValues * 2, &bits, sizeof bits);
  }
}

/// One output of bf16 or fp8, a row of BF16 numbers given.
float bfloats_output(const PackedWeightView& w, const std::uint8_t* panel, int lane, const QuantizedGroup* x) {
  const bool blocks = w.kind == PanelKind::fp8;
  const std::int64_t block = blocks ? block_of(w.layout) : w.cols;
  float acc = 0.0f;
  for (std::int64_t begin = 0; begin < w.cols; begin += block) {
    const std::int64_t end = w.cols - begin < block ? w.cols : begin + block;
    float t = 0.0f;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t k = (i ^ 1) < end ? i ^ 1 : i;
      const float weight = blocks ? panel_e4m3(panel[k * kPanelRows + lane]) * 256.0f : panel_dense(w, panel, k, lane);
      t = __builtin_fmaf(weight, panel_bfloat(x[k / kGroupValues].codes + k % kGroupValues * 2), t);
    }
    if (!blocks) return t;
    const float scale = panel_fp8_scale(w, panel, begin, lane);
    acc = __builtin_fmaf(t * scale, x[begin / kGroupValues].scale, acc);
  }
  return acc;
}

/// One output of w8a8, from its row's codes // (K).
float byte_output(std::int64_t cols, const std::uint8_t* codes, float scale, const ByteRow* x) {
  const auto* const in = reinterpret_cast<const std::int8_t*>(x + 1);
  std::int32_t dot = 0;
  for (std::int64_t k = 0; k < cols; ++k) dot += (codes[k] - 128) * (in[k] - x->zero);
  return static_cast<float>(dot) * scale * x->scale;
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
      for (int i = h * shape.group; i < (h + 1) * shape.group; ++i)
        dot += codes[g * kGroupValues + i] * activation_code(*x, i);
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
    if (w.kind == PanelKind::f16_sparse || w.kind == PanelKind::bf16_sparse) {
      for (std::int32_t row = row_begin; row < row_end; ++row) {
        const float* const in = x.f32 + row * x.stride;
        float acc = 0.0f;
        for (std::int64_t i = 0; i < w.cols / 2; ++i) {
          int column = 0;
          const float value = panel_sparse(w, panel, i / 2, static_cast<int>(i % 2), lane, &column);
          acc = __builtin_fmaf(value, in[i / 2 * 4 + column], acc);
        }
        out[row * out_stride + n] = acc;
      }
      continue;
    }
    if (shape.bits == 0) {
      for (std::int32_t row = row_begin; row < row_end; ++row) {
        if (x.bfloats) {
          out[row * out_stride + n] = bfloats_output(w, panel, lane, x.groups + row * x.group_stride);
          continue;
        }
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
      if (w.kind == PanelKind::w8a8) {
        const auto* const in = reinterpret_cast<const ByteRow*>(x.groups + row * x.group_stride);
        out[row * out_stride + n] = byte_output(w.cols, codes, scales[0], in);
        continue;
      }
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
  static constexpr LinearKernels kKernels{.level = "scalar",
                                          .form = ActivationForm::bytes,
                                          .byte_rows = kNever,
                                          .quantize_row = quantize_row,
                                          .round_row = round_row,
                                          .quantize_bytes = quantize_bytes,
                                          .quantize_bfloats = quantize_bfloats,
                                          .linear = linear,
                                          .dot_rows = dot_rows};
  return kKernels;
}
