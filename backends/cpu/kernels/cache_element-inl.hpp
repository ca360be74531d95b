// The elements of cached keys and values: how each type is read into a Vec and how a token is stored. Included inside
// namespace isa_<level>, after math-inl.hpp.

struct Half {
  std::uint16_t bits;
};
struct Bfloat {
  std::uint16_t bits;
};

template <class Element>
inline constexpr bool is_int8 = false;
template <>
inline constexpr bool is_int8<std::int8_t> = true;

static inline Vec load(const Half* p) { return load_half(&p->bits); }
static inline Vec load(const Bfloat* p) { return load_bfloat(&p->bits); }
static inline Vec load(const std::int8_t* p) { return load_int8(p); }

static inline void put(float x, float, float& out) { out = x; }
static inline void put(float x, float, Half& out) {
  out.bits = float_to_half(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}
/// To nearest, ties to even.
static inline void put(float x, float, Bfloat& out) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
static inline void put(float x, float inverse_scale, std::int8_t& out) {
  const float scaled = x * inverse_scale;
  const float clamped = scaled > 127.0f ? 127.0f : scaled > -127.0f ? scaled : -127.0f;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  out = static_cast<std::int8_t>((clamped + kMagic) - kMagic);
}

/// The scale of a vector in int8, see AttentionKernels::write; 0 for a vector of (almost) zeros.
static inline float scale_of(const float* x, std::int32_t n) {
  float most = 0.0f;
  for (std::int32_t i = 0; i < n; ++i) {
    const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
    most = magnitude > most ? magnitude : most;
  }
  if (most < 1e-30f) return 0.0f;
  const float exact = (most < 1e38f ? most : 1e38f) / 127.0f;
  std::uint32_t bits;
  __builtin_memcpy(&bits, &exact, 4);
  bits = (bits + 0x7fu) & ~0x7fu;
  float scale;
  __builtin_memcpy(&scale, &bits, 4);
  return scale;
}

template <class Element>
static void write_token(const AttentionPages& pages, std::byte* key_bytes, std::byte* value_bytes, std::int32_t slot,
                        const float* k, const float* v) {
  auto* const keys = reinterpret_cast<Element*>(key_bytes) + slot;
  auto* const values = reinterpret_cast<Element*>(value_bytes) + static_cast<std::int64_t>(slot) * pages.padded_dim;
  float inverse_key = 1.0f, inverse_value = 1.0f;
  if constexpr (is_int8<Element>) {
    auto* const scales = reinterpret_cast<float*>(key_bytes + pages.scale_offset) + slot;
    scales[0] = scale_of(k, pages.head_dim);
    scales[kPageSlots] = scale_of(v, pages.head_dim);
    inverse_key = scales[0] > 0.0f ? 1.0f / scales[0] : 0.0f;
    inverse_value = scales[kPageSlots] > 0.0f ? 1.0f / scales[kPageSlots] : 0.0f;
  }
  for (std::int32_t i = 0; i < pages.head_dim; ++i)
    put(k[i], inverse_key, keys[static_cast<std::int64_t>(i) * kPageSlots]);
  for (std::int32_t i = 0; i < pages.head_dim; ++i) put(v[i], inverse_value, values[i]);
  for (std::int32_t i = pages.head_dim; i < pages.padded_dim; ++i) put(0.0f, 1.0f, values[i]);
}
