// Exact dot products for levels that multiply bytes: dot_bytes(sum, codes, x) adds products of four bytes to each lane.
// An activation code is two signed bytes, which have a sum each. The level says whether codes must be signed, too
// (kSignedCodes). Included inside the level's namespace.

namespace {

constexpr ActivationForm kForm = ActivationForm::bytes;
constexpr int kByteRows = 0;   ///< the two forms are one
constexpr int kSteps = 8;      ///< of a group of 32: a quad each
constexpr int kCodeParts = 1;  ///< both multiplications of a step take the same codes

/// What the p-th of a step's two multiplications takes of a quad's codes.
[[gnu::always_inline]] inline Bytes codes_of_part(Bytes codes, [[maybe_unused]] int p) {
  return codes;
}

/// Codes with a zero point of 128, or signed ones without any.
template <PanelShape s>
[[gnu::always_inline]] inline Bytes slice_codes(Bytes codes) {
  if constexpr (s.zero == 128) return codes;
  return add_bytes(codes, fill_bytes((kSignedCodes ? 0 : 128) - s.zero));
}

// W8A8: sums of products of 8-bit activations.
using ByteSums = Ints;
[[gnu::always_inline]] inline ByteSums start_sums(Ints at) { return at; }
[[gnu::always_inline]] inline Ints total_sums(ByteSums sum) { return sum; }
[[gnu::always_inline]] inline ByteSums add_products(ByteSums sum, Bytes codes, Ints x, [[maybe_unused]] int p) {
  return dot_bytes(sum, codes, x);
}

/// A dot product in progress: one per row, vector and group of 16 or 32.
struct Dot {
  Ints high, low;
  [[gnu::always_inline]] void start(Ints at) { high = zero_ints(), low = at; }
  [[gnu::always_inline]] void add(Bytes codes, Ints x, int, int p) {
    Ints& sum = p == 0 ? high : low;
    sum = dot_bytes(sum, codes, x);
  }
  [[gnu::always_inline]] Ints result() const { return add_ints(shift_ints<8>(high), low); }
};

/// What a step multiplies where codes come from a slice and the low bytes of all activations are 0. Sums are 1/256 of
/// what they stand for, and the rows' scales 256 times theirs: powers of two round nothing.
struct HighProducts {
  struct Dot {
    Ints high;
    [[gnu::always_inline]] void start(Ints at) { high = at; }
    [[gnu::always_inline]] void add(Bytes codes, Ints x, int, int) {
      high = dot_bytes(high, codes, x);
    }
    [[gnu::always_inline]] Ints result() const { return high; }
  };
  static constexpr int kParts = 1;
  template <PanelShape s>
  static constexpr int kRows = high_tile_rows(s);
  template <PanelShape s>
  using Sum = Dot;
  template <PanelShape s>
  [[gnu::always_inline]] static Ints activations(const QuantizedGroup& x, int i, int) {
    return fill_quad(x.codes + i * 4);
  }
  template <int shift>
  [[gnu::always_inline]] static Ints zero(Ints minus_sum) {
    return shift_ints<shift - 8>(minus_sum);
  }
  [[gnu::always_inline]] static Floats scale(const QuantizedGroup& x) { return fill_float(x.high_scale); }
};

}  // namespace
