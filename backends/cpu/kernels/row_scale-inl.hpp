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
  return {true, largest / (how.floats ? 448.0f : 127.5f), 0, 0.0f};
}
