// Many rows of 8-bit activations (kBytes8) on levels that multiply words: products of bytes that are added in pairs fit
// 16 bits, and of narrow codes so do sums of several. These take half of the multiplications that words take.
// Included inside the level's namespace after linear-inl.hpp. Sums are exact, so bits are those of all levels.

namespace {

/// What the weights of all shapes but those of wide_codes() are in these slices: codes of few widths.
constexpr PanelShape pair_shape(PanelShape s) {
  const int bits = s.bits == 6 ? 6 : s.bits == 5 || s.group == 16 ? 5 : 4;
  return {bits, s.group, s.minimum ? 0 : 1 << (bits - 1), false, s.minimum, PanelScale::f32};
}

/// The sum of a group or half: words take the quads of a run, then integers take the words.
template <PanelShape s>
struct PairSum {
  static constexpr int kRun = s.bits == 6 ? 2 : s.bits == 5 ? 4 : 8;  ///< quads
  static_assert(kRun * 2 * ((1 << s.bits) - 1) * kBytes8.limit <= 32767 && kRun * 4 <= s.group);
  Bytes words;
  WordSums total;

  [[gnu::always_inline]] void start(Ints at) { total = start_words(at); }
  [[gnu::always_inline]] void add(Bytes codes, Ints x, int step, int) {
    const Bytes pairs = multiply_pairs(codes, x);
    words = step % kRun == 0 ? pairs : add_words(words, pairs);
    // A code of an activation is 256 times its byte.
    if (step % kRun == kRun - 1) total = dot_words(total, words, fill_word(1 << kBytes8.shift));
  }
  [[gnu::always_inline]] Ints result() const { return total_words(total); }
};

struct PairProducts : Products {
  static constexpr int kParts = 1;
  template <PanelShape s>
  using Sum = PairSum<s>;
  template <PanelShape s>
  [[gnu::always_inline]] static Ints activations(const QuantizedGroup& x, int i, int) {
    return fill_quad(x.codes + i * 4);
  }
};

template <PanelShape s>
[[gnu::noinline]] void fill_byte_slice(PanelReader<s> from, int groups, std::uint8_t* to) {
  using Slice = SliceReader<pair_shape(s), 1>;
  constexpr int V = kTileVectors, kUp = pair_shape(s).zero - s.zero;
  for (; groups > 0; --groups, to += Slice::kGroup) {
    from.enter();
    LLMINFER_UNROLL
    for (int q = 0; q < kSteps; ++q) {
      LLMINFER_UNROLL
      for (int v = 0; v < V; ++v) {
        const Bytes codes = unpack_quad<s>(from.codes[v], q, from.lane_of(v), from.table);
        store_bytes(to + (q * V + v) * Slice::kVector, kUp == 0 ? codes : add_bytes(codes, fill_bytes(kUp)));
      }
    }
    fill_scales<Slice>(from, to);
    from.leave();
  }
}

template <PanelShape s>
void multiply_byte_pairs(PanelReader<s> weights, int groups, const QuantizedGroup* x, std::int64_t x_stride,
                         std::int32_t rows, const Output& out, bool resume, std::uint8_t* slice) {
  fill_byte_slice<s>(weights, groups, slice);
  const SliceReader<pair_shape(s), 1> reader{slice};
  grouped_all_rows<pair_shape(s), PairProducts>(reader, groups, x, x_stride, rows, out, resume);
}

}  // namespace
