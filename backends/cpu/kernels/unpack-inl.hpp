// Unpacking codes in registers, for the linear kernels of all SIMD levels. Included inside the level's namespace after
// its vector operations and one of dot_bytes-inl.hpp, dot_words-inl.hpp and dot_matrix-inl.hpp.

#include "unroll-inl.hpp"

namespace {

/// Whether codes are made signed, -128…127, which leaves no zero to correct for. Only those of 8 bits need it.
constexpr bool made_signed(PanelShape shape) { return kSignedCodes && (shape.table || shape.bits == 8); }
constexpr int halves(PanelShape shape) { return kGroupValues / shape.group; }
constexpr int log2_of(int power) { return power <= 1 ? 0 : 1 + log2_of(power / 2); }

/// The i-th quad, or pair of quads, to take: those of one plane after another, or, where each half of the group has a
/// scale, in order, so that only one half's sums are live.
[[gnu::always_inline]] constexpr int quad_at(PanelShape shape, int i) {
  if (shape.bits == 8 || halves(shape) == 2) return i;
  if (kForm == ActivationForm::pairs) return shape.bits >= 4 ? i / 2 + i % 2 * 2 : i;
  return shape.bits >= 4 ? i / 2 + i % 2 * 4 : i / 4 + i % 4 * 2;
}

/// Codes of quad `q`, a byte each, of rows from `lane` on; `codes` points at these in the group, in sparse panels at
/// the group.
template <PanelShape s>
[[gnu::always_inline]] inline Bytes unpack_quad(const std::uint8_t* codes, int q, [[maybe_unused]] int lane,
                                                Bytes table) {
  Bytes c;
  if constexpr (s.sparse) {
    c = spread_pairs(codes + q * 32, codes + kPairMasks + q * 8, lane, fill_bytes(s.zero));
  } else if constexpr (s.bits == 8) {
    c = load_bytes(codes + q * 64);
  } else if constexpr (s.bits >= 4) {
    c = and_bytes(shift_right(load_bytes(codes + (q & 3) * 64), q & 4), fill_bytes(15));
    if constexpr (s.bits == 5) c = or_masked(c, shift_left(load_bytes(codes + 256), 4 - q), fill_bytes(16));
    if constexpr (s.bits == 6) {
      c = or_masked(c, shift_left(load_bytes(codes + 256 + (q & 1) * 64), 4 - (q & 6)), fill_bytes(48));
    }
  } else {
    c = and_bytes(shift_right(load_bytes(codes + (q & 1) * 64), q & 6), fill_bytes(3));
    if constexpr (s.bits == 3) c = or_masked(c, shift_left(load_bytes(codes + 128), 2 - q), fill_bytes(4));
  }
  if constexpr (s.table) c = look_up(table, c);
  if constexpr (made_signed(s)) c = xor_bytes(c, fill_bytes(128));
  return c;
}

/// What the p-th of the two multiplications of step i takes of the codes.
template <PanelShape s>
[[gnu::always_inline]] inline Bytes step_codes(const std::uint8_t* codes, int i, int p, int lane, Bytes table) {
  const int at = quad_at(s, i);
  if constexpr (kForm == ActivationForm::pairs) {
    return interleave(unpack_quad<s>(codes, 2 * at, lane, table), unpack_quad<s>(codes, 2 * at + 1, lane, table), p);
  } else {
    return codes_of_part(unpack_quad<s>(codes, at, lane, table), p);
  }
}
/// What it takes of the activations.
template <PanelShape s>
[[gnu::always_inline]] inline Ints step_activations(const QuantizedGroup& x, int i, int p) {
  const int at = quad_at(s, i);
  if constexpr (kForm == ActivationForm::bytes) return fill_quad(x.codes + p * kGroupValues + at * 4);
  if constexpr (kForm == ActivationForm::words) return fill_quad(x.codes + at * 8 + p * 4);
  if constexpr (kForm == ActivationForm::pairs) return load_ints(x.codes + at * 16);
}

}  // namespace
