// Unpacking codes in registers, for the linear kernels of all SIMD levels. Included inside the level's namespace after
// its vector operations and one of dot_bytes-inl.hpp, dot_words-inl.hpp and dot_matrix-inl.hpp.

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

/// The i-th quad, or pair of quads, to take: those of one plane after another, or, where each half of the group has a
/// scale, in order, so that only one half's sums are live.
constexpr int quad_at(PanelShape shape, int i) {
  if (shape.bits == 8 || halves(shape) == 2) return i;
  if (kForm == ActivationForm::pairs) return shape.bits >= 4 ? i / 2 + i % 2 * 2 : i;
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

/// What the P-th of the two multiplications of step I takes of the codes.
template <PanelShape s, int I, int P>
[[gnu::always_inline]] inline Bytes step_codes(const std::uint8_t* codes, Bytes table) {
  constexpr int kAt = quad_at(s, I);
  if constexpr (kForm == ActivationForm::pairs) {
    return interleave<P>(unpack_quad<s, 2 * kAt>(codes, table), unpack_quad<s, 2 * kAt + 1>(codes, table));
  } else {
    return codes_of_part<P>(unpack_quad<s, kAt>(codes, table));
  }
}
/// What it takes of the activations.
template <PanelShape s, int I, int P>
[[gnu::always_inline]] inline Ints step_activations(const QuantizedGroup& x) {
  constexpr int kAt = quad_at(s, I);
  if constexpr (kForm == ActivationForm::bytes) return fill_quad(x.codes + P * kGroupValues + kAt * 4);
  if constexpr (kForm == ActivationForm::words) return fill_quad(x.codes + kAt * 8 + P * 4);
  if constexpr (kForm == ActivationForm::pairs) return load_ints(x.codes + kAt * 16);
}

}  // namespace
