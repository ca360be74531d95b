// Exact dot products for levels that multiply 16-bit words: dot_words(sum, codes, x) adds products of words, two to a
// lane of codes; start_words and total_words make such a sum from integers and the other way round. The bytes of a quad
// are taken apart into its even and its odd ones. Included inside the level's namespace.

namespace {

constexpr ActivationForm kForm = ActivationForm::words;
constexpr bool kSignedCodes = false;
constexpr int kSteps = 8;  ///< of a group of 32: a quad each
constexpr int kCodeParts = 2;

/// What the p-th of a step's two multiplications takes of a quad's codes.
[[gnu::always_inline]] inline Bytes codes_of_part(Bytes codes, [[maybe_unused]] int p) {
  return p == 0 ? even_bytes(codes) : odd_bytes(codes);
}

/// A part's codes less their zero point.
template <PanelShape s>
[[gnu::always_inline]] inline Bytes slice_codes(Bytes part) {
  return s.zero == 0 ? part : add_words(part, -s.zero);
}

// W8A8: sums of products of 8-bit activations, words too.
using ByteSums = WordSums;
[[gnu::always_inline]] inline ByteSums start_sums(Ints at) { return start_words(at); }
[[gnu::always_inline]] inline Ints total_sums(ByteSums sum) { return total_words(sum); }
[[gnu::always_inline]] inline ByteSums add_products(ByteSums sum, Bytes codes, Ints x, [[maybe_unused]] int p) {
  return dot_words(sum, codes_of_part(codes, p), x);
}

/// A dot product in progress: one per row, vector and group of 16 or 32.
struct Dot {
  WordSums sum;
  [[gnu::always_inline]] void start(Ints at) { sum = start_words(at); }
  [[gnu::always_inline]] void add(Bytes codes, Ints x, int, int) {
    sum = dot_words(sum, codes, x);
  }
  [[gnu::always_inline]] Ints result() const { return total_words(sum); }
};

}  // namespace
