// Exact dot products for levels that multiply 16-bit words: dot_words(sum, codes, x) adds products of two words to each
// lane. The bytes of a quad are taken apart into its even and its odd ones. Included inside the level's namespace.

namespace {

constexpr bool kWords = true;
constexpr bool kSignedCodes = false;

/// What the P-th of a quad's two multiplications takes of its codes.
template <int P>
[[gnu::always_inline]] inline Bytes codes_of_part(Bytes codes) {
  return P == 0 ? even_bytes(codes) : odd_bytes(codes);
}

/// A part's codes less their zero point.
template <PanelShape s>
[[gnu::always_inline]] inline Bytes slice_codes(Bytes part) {
  return s.zero == 0 ? part : add_words(part, -s.zero);
}

/// sum + products of a part's codes with 8-bit activations.
[[gnu::always_inline]] inline Ints dot_part(Ints sum, Bytes codes, Ints x) { return dot_words(sum, codes, x); }

/// A dot product in progress: one per row, vector and group of 16 or 32.
struct Dot {
  Ints sum;
  [[gnu::always_inline]] void start(Ints at) { sum = at; }
  template <int P>
  [[gnu::always_inline]] void add(Bytes codes, Ints x) {
    sum = dot_words(sum, codes, x);
  }
  [[gnu::always_inline]] Ints result() const { return sum; }
};

}  // namespace
