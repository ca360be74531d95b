// The scale of a row of activations that is rounded as a checkpoint declares. Included inside a level's namespace.

struct RowScale {
  bool live;  ///< values are rounded with scale and zero; else all become `value`
  float scale;
  std::int32_t zero;
  float value;
};

/// `largest`: the largest absolute value of those that share the scale; NaN if not all are finite. int8: 127.5 is half
/// of the 255 steps between -128 and 127, as compressed-tensors has it.
static inline RowScale scale_of(const InputRounding& how, float largest) {
  if (!(largest == largest)) return {false, 0.0f, 0, largest};
  if (!how.dynamic) return {true, how.scale, how.zero, 0.0f};
  if (largest < 0x1p-126f) return {false, 0.0f, 0, 0.0f};
  float scale = (largest < how.limit ? largest : how.limit) / (how.floats ? 448.0f : 127.5f);
  if (how.powers) {
    const auto bits = __builtin_bit_cast(std::uint32_t, scale);
    scale = __builtin_bit_cast(float, (bits + 0x7fffffu) & 0x7f800000u);
  }
  return {true, scale, 0, 0.0f};
}
