// What quantize_group does beside the codes themselves, in scalars: the same at all levels. Included inside a level's
// namespace.

/// How the values of a group become codes. A group that is not finite or too small for a scale has codes 0.
struct GroupScale {
  ActivationCodes codes;
  float absmax;
  bool finite;
  bool zero;      ///< codes are 0
  float inverse;  ///< code = nearest(x * inverse) << codes.shift
};

/// `bits`: of the largest absolute value. Integers order as floats do, NaN above all.
static inline GroupScale group_scale(std::uint32_t bits, ActivationCodes codes) {
  GroupScale s{codes, __builtin_bit_cast(float, bits), bits < 0x7f800000u, false, 0.0f};
  s.zero = !s.finite || s.absmax < 1e-30f;
  if (!s.zero) s.inverse = static_cast<float>(codes.limit) / s.absmax;
  return s;
}

/// All of a group but its codes, whose halves sum up to `sum_a` and `sum_b`.
static inline void finish_group(const GroupScale& s, std::int32_t sum_a, std::int32_t sum_b, QuantizedGroup* out) {
  out->scale = !s.finite ? __builtin_nanf("")
               : s.zero  ? 0.0f
                         : s.absmax / static_cast<float>(s.codes.limit << s.codes.shift);
  out->scaled_sum = out->scale * static_cast<float>(sum_a + sum_b);
  out->scaled_half_sum[0] = out->scale * static_cast<float>(sum_a);
  out->scaled_half_sum[1] = out->scale * static_cast<float>(sum_b);
  out->minus_sum = -(sum_a + sum_b);
  out->minus_half_sum[0] = -sum_a;
  out->minus_half_sum[1] = -sum_b;
  out->high_scale = 256.0f * out->scale;
}
