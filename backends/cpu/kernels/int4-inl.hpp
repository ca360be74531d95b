// Cache pages in 4 bits: see int4.hpp. Included inside namespace isa_<level>. Every element is computed by itself, and
// products with codes are exact, so that all levels give the same bits.

using Floats8 = float __attribute__((vector_size(32)));
using Ints8 = std::int32_t __attribute__((vector_size(32)));
using Bytes8 = std::uint8_t __attribute__((vector_size(8)));

static inline float float_of_bits(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

/// Codes of x // (n, then zeros up to a multiple of 16) -> codes // (padded / 2); the row's range is returned. What is
/// no number is ignored and becomes the minimum.
static std::uint32_t pack_row(const float* x, std::int32_t n, std::int32_t padded, std::uint8_t* codes) {
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
  for (std::int32_t at = 0; at < padded; at += 16) {
    std::int32_t code[16];
    for (int i = 0; i < 16; ++i) {
      const float c = (x[at + i] - minimum) * inverse;
      const float bounded = c > 0.0f ? (c < 15.0f ? c : 15.0f) : 0.0f;
      code[i] = static_cast<std::int32_t>(bounded + 0.5f);
    }
    for (int i = 0; i < 8; ++i) codes[at / 2 + i] = static_cast<std::uint8_t>(code[i] | code[i + 8] << 4);
  }
  return scale_bits << 16 | minimum_bits;
}

static inline void unpack_row(const std::uint8_t* codes, std::uint32_t bits, std::int32_t padded, float* out) {
  const float s = float_of_bits(bits & 0xffff0000u), m = float_of_bits(bits << 16);
  const Floats8 scale = {s, s, s, s, s, s, s, s}, minimum = {m, m, m, m, m, m, m, m};
  for (std::int32_t at = 0; at < padded; at += 16) {
    Bytes8 pairs;
    __builtin_memcpy(&pairs, codes + at / 2, 8);
    const Floats8 low = __builtin_convertvector(__builtin_convertvector(pairs & 15, Ints8), Floats8) * scale + minimum;
    const Floats8 high = __builtin_convertvector(__builtin_convertvector(pairs >> 4, Ints8), Floats8) * scale + minimum;
    __builtin_memcpy(out + at, &low, sizeof low);
    __builtin_memcpy(out + at + 8, &high, sizeof high);
  }
}

static void pack_int4(const Int4Layout& layout, const float* keys, const float* values, std::uint8_t* out) {
  for (std::int32_t i = 0; i < layout.head_dim; ++i) {
    const std::uint32_t range = pack_row(keys + i * kPageSlots, kPageSlots, kPageSlots, out + i * (kPageSlots / 2));
    __builtin_memcpy(out + layout.key_ranges + i * 4, &range, 4);
  }
  for (std::int32_t t = 0; t < kPageSlots; ++t) {
    const std::uint32_t range = pack_row(values + t * layout.padded_dim, layout.head_dim, layout.padded_dim,
                                         out + layout.values + t * (layout.padded_dim / 2));
    __builtin_memcpy(out + layout.value_ranges + t * 4, &range, 4);
  }
}

static void unpack_int4(const Int4Layout& layout, const std::uint8_t* in, float* keys, float* values) {
  std::uint32_t range;
  for (std::int32_t i = 0; i < layout.head_dim; ++i) {
    __builtin_memcpy(&range, in + layout.key_ranges + i * 4, 4);
    unpack_row(in + i * (kPageSlots / 2), range, kPageSlots, keys + i * kPageSlots);
  }
  for (std::int32_t t = 0; t < kPageSlots; ++t) {
    __builtin_memcpy(&range, in + layout.value_ranges + t * 4, 4);
    unpack_row(in + layout.values + t * (layout.padded_dim / 2), range, layout.padded_dim,
               values + t * layout.padded_dim);
  }
}
