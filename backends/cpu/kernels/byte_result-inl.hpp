// From the integer sums of W8A8 to its results. Included inside the level's namespace after its vector operations.

namespace {

/// The scales of kLanes outputs of a panel, and the sums of their codes less 128.
struct ByteScales {
  Floats scale;
  std::int32_t of_codes[kLanes];

  /// `lane`: the first of them in the panel.
  [[gnu::always_inline]] ByteScales(const std::uint8_t* panel, int lane, const PanelLayout& layout)
      : scale(load_floats(panel + lane * 4 + layout.scale)) {
    __builtin_memcpy(of_codes, panel + lane * 4 + layout.minimum, sizeof of_codes);
  }
  /// `total`: sums of (code - 128) * x.code.
  [[gnu::always_inline]] Floats result(Ints total, const ByteRow& x) const {
    if (x.zero != 0) {
      std::int32_t corrected[kLanes];
      for (int i = 0; i < kLanes; ++i) corrected[i] = -x.zero * of_codes[i];
      total = add_ints(total, load_ints(corrected));
    }
    return multiply(multiply(to_floats(total), scale), fill_float(x.scale));
  }
};

}  // namespace
