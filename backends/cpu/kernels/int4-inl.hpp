// Cache pages in 4 bits: see int4.hpp. Included inside namespace isa_<level>. Every element is computed by itself, and
// products with codes are exact, so that all levels give the same bits.

static inline float float_of_bits(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

/// Calls put(i, code) for each x // (n, then zeros up to a multiple of 16); the row's range is returned. What is no
/// number is ignored and becomes the minimum.
template <class Put>
[[gnu::always_inline]] static inline std::uint32_t pack_row(const float* x, std::int32_t n, std::int32_t padded,
                                                            const Put& put) {
  constexpr float kMost = 1e38f;
  float low[16], high[16];
  for (int i = 0; i < 16; ++i) low[i] = kMost, high[i] = -kMost;
  for (std::int32_t at = 0; at < n; at += 16) {
    const int count = n - at < 16 ? n - at : 16;
    for (int i = 0; i < count; ++i) {
      low[i] = x[at + i] < low[i] ? x[at + i] : low[i];
      high[i] = x[at + i] > high[i] ? x[at + i] : high[i];
    }
  }
  float smallest = kMost, largest = -kMost;
  for (int i = 0; i < 16; ++i) {
    smallest = low[i] < smallest ? low[i] : smallest;
    largest = high[i] > largest ? high[i] : largest;
  }
  if (smallest > largest) smallest = largest = 0.0f;  // no numbers at all
  smallest = smallest > -kMost ? smallest : -kMost;
  largest = largest < kMost ? largest : kMost;
  // The minimum is rounded down, so that no code is negative; the scale to nearest, so that the largest one is 15.
  const auto low_bits = __builtin_bit_cast(std::uint32_t, smallest);
  const bool away = smallest < 0.0f && (low_bits & 0xffffu) != 0;
  const std::uint32_t minimum_bits = ((low_bits >> 16) + (away ? 1 : 0)) & 0xffffu;
  const float minimum = float_of_bits(minimum_bits << 16), range = largest - minimum;
  const auto exact = __builtin_bit_cast(std::uint32_t, range / 15.0f);
  const std::uint32_t scale_bits = range < 1e-30f ? 0 : (exact + 0x7fffu + (exact >> 16 & 1)) >> 16;
  const float inverse = scale_bits == 0 ? 0.0f : 1.0f / float_of_bits(scale_bits << 16);
  for (std::int32_t i = 0; i < padded; ++i) {
    const float c = (x[i] - minimum) * inverse;
    const float bounded = c > 0.0f ? (c < 15.0f ? c : 15.0f) : 0.0f;
    put(i, static_cast<std::int32_t>(bounded + 0.5f));
  }
  return scale_bits << 16 | minimum_bits;
}

/// x // (count, cols), of whose columns `n` count, becomes codes and ranges.
static void pack_codes(const float* x, std::int32_t count, std::int32_t n, std::int32_t cols, std::uint8_t* codes,
                       std::uint8_t* ranges) {
  auto* const words = reinterpret_cast<std::uint16_t*>(codes);
  __builtin_memset(codes, 0, static_cast<std::size_t>((count + 7) / 8 * cols) * 4);
  for (std::int32_t k = 0; k < count; ++k) {
    std::uint16_t* const row = words + k / 8 * cols * 2 + k % 2;
    const int shift = k / 2 % 4 * 4;
    const std::uint32_t range = pack_row(x + std::int64_t{k} * cols, n, cols, [&](std::int32_t i, std::int32_t code) {
      row[2 * i] = static_cast<std::uint16_t>(row[2 * i] | code << shift);
    });
    __builtin_memcpy(ranges + k * 4, &range, 4);
  }
}

static void pack_int4(const Int4Layout& layout, const float* keys, const float* values, std::uint8_t* out) {
  pack_codes(keys, layout.head_dim, kPageSlots, kPageSlots, out, out + layout.key_ranges);
  pack_codes(values, kPageSlots, layout.head_dim, layout.padded_dim, out + layout.values, out + layout.value_ranges);
}
