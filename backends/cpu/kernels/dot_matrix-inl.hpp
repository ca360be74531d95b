// Exact dot products for levels that multiply small matrices of bytes: dot_matrix adds to [2 rows][2] the products of 8
// codes of two rows with 8 high and 8 low bytes of activations. So each multiplication does all of a code, on half of a
// vector's rows. Included inside the level's namespace.

namespace {

constexpr ActivationForm kForm = ActivationForm::pairs;
constexpr bool kSignedCodes = false;
constexpr int kByteRows = kNever;
constexpr int kSteps = 4;  ///< of a group of 32: two quads each
constexpr int kCodeParts = 2;

/// Codes with a zero point of 128.
template <PanelShape s>
[[gnu::always_inline]] inline Bytes slice_codes(Bytes codes) {
  return s.zero == 128 ? codes : add_bytes(codes, fill_bytes(128 - s.zero));
}

// W8A8: sums of products of 8-bit activations.
using ByteSums = Ints;
[[gnu::always_inline]] inline ByteSums start_sums(Ints at) { return at; }
[[gnu::always_inline]] inline Ints total_sums(ByteSums sum) { return sum; }
[[gnu::always_inline]] inline ByteSums add_products(ByteSums sum, Bytes codes, Ints x, [[maybe_unused]] int p) {
  return dot_row_bytes(sum, codes, x);
}

/// A dot product in progress: one per row, vector and group of 16 or 32.
struct Dot {
  Ints rows[2];
  [[gnu::always_inline]] void start(Ints at) { rows[0] = rows[1] = low_lanes(at); }
  [[gnu::always_inline]] void add(Bytes codes, Ints x, int, int p) {
    rows[p] = dot_matrix(rows[p], codes, x);
  }
  [[gnu::always_inline]] Ints result() const { return add_parts(rows[0], rows[1]); }
};

}  // namespace
