// Unpacking codes in registers, for the linear kernels of all SIMD levels. Included inside the level's namespace after its
// vector operations and one of dot_bytes-inl.hpp and dot_words-inl.hpp.

namespace {

template <int... I, class Body>
[[gnu::always_inline]] inline void unroll_each(std::integer_sequence<int, I...>, const Body& body) {
  (body(std::integral_constant<int, I>{}), ...);
}
/// body(0), …, body(N - 1) with constants: loops over registers must not survive as loops.
template <int N, class Body>
[[gnu::always_inline]] inline void unroll(const Body& body) {
  unroll_each(std::make_integer_sequence<int, N>{}, body);
}

/// Whether codes are made signed, -128…127, which leaves no zero to correct for. Only those of 8 bits need it.
constexpr bool made_signed(PanelShape shape) { return kSignedCodes && (shape.table || shape.bits == 8); }
constexpr int halves(PanelShape shape) { return kGroupValues / shape.group; }
constexpr int log2_of(int power) { return power <= 1 ? 0 : 1 + log2_of(power / 2); }

/// The i-th quad to take: those of one plane after another, or, where each half of the group has a scale, in order, so
/// that only one half's sums are live.
constexpr int quad_at(PanelShape shape, int i) {
  if (shape.bits == 8 || halves(shape) == 2) return i;
  return shape.bits >= 4 ? i / 2 + i % 2 * 4 : i / 4 + i % 4 * 2;
}

/// Codes of quad `Q`, a byte each; `codes` points at this vector's lanes in the group.
template <PanelShape s, int Q>
[[gnu::always_inline]] inline Bytes unpack_quad(const std::uint8_t* codes, Bytes table) {
  Bytes c;
  if constexpr (s.bits == 8) {
    c = load_bytes(codes + Q * 64);
  } else if constexpr (s.bits >= 4) {
    c = and_bytes(shift_bits<-(Q & 4)>(load_bytes(codes + (Q & 3) * 64)), fill_bytes(15));
    if constexpr (s.bits == 5) c = or_masked(c, shift_bits<4 - Q>(load_bytes(codes + 256)), fill_bytes(16));
    if constexpr (s.bits == 6) {
      c = or_masked(c, shift_bits<4 - (Q & 6)>(load_bytes(codes + 256 + (Q & 1) * 64)), fill_bytes(48));
    }
  } else {
    c = and_bytes(shift_bits<-(Q & 6)>(load_bytes(codes + (Q & 1) * 64)), fill_bytes(3));
    if constexpr (s.bits == 3) c = or_masked(c, shift_bits<2 - Q>(load_bytes(codes + 128)), fill_bytes(4));
  }
  if constexpr (s.table) c = look_up(table, c);
  if constexpr (made_signed(s)) c = xor_bytes(c, fill_bytes(128));
  return c;
}

/// What the P-th of a quad's two multiplications takes of the activations.
template <int Quad, int P>
[[gnu::always_inline]] inline Ints activation_part(const QuantizedGroup& x) {
  return fill_quad(x.codes + (kWords ? Quad * 8 + P * 4 : P * kGroupValues + Quad * 4));
}

}  // namespace
