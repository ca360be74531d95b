// How a token's key and value are stored in a page, and how queries and weights are rounded to meet them. Included
// inside namespace isa_<level>, after math-inl.hpp and words_<level>-inl.hpp.

template <class Element>
inline constexpr CacheElement element_of = CacheElement::f32;
template <>
inline constexpr CacheElement element_of<std::int16_t> = CacheElement::int16;
template <>
inline constexpr CacheElement element_of<std::int8_t> = CacheElement::int8;

template <class Element>
inline constexpr float most_of = 0.0f;
template <>
inline constexpr float most_of<std::int16_t> = kMostWord;
template <>
inline constexpr float most_of<std::int8_t> = 127.0f;

static inline void put(float x, float, float& out) { out = x; }
template <class Integer>
static inline void put(float x, float inverse_scale, Integer& out) {
  constexpr float kMost = most_of<Integer>;
  const float scaled = x * inverse_scale;
  const float clamped = scaled > kMost ? kMost : scaled > -kMost ? scaled : -kMost;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  out = static_cast<Integer>((clamped + kMagic) - kMagic);
}

/// The scale of a vector in integers, see AttentionKernels::write; 0 for a vector of (almost) zeros. A largest
/// magnitude that is a multiple of a scale but for the rounding of floats gives that scale.
template <class Integer>
static inline float scale_of(const float* x, std::int32_t n) {
  float most = 0.0f;
  for (std::int32_t i = 0; i < n; ++i) {
    const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
    most = magnitude > most ? magnitude : most;
  }
  if (most < 1e-30f) return 0.0f;
  const float exact = (most < 1e38f ? most : 1e38f) / most_of<Integer>;
  std::uint32_t bits;
  __builtin_memcpy(&bits, &exact, 4);
  bits = (bits + 0x7bu) & ~0x7fu;
  float scale;
  __builtin_memcpy(&scale, &bits, 4);
  return scale;
}

template <class Element>
static void write_token(const AttentionPages& pages, std::byte* key_bytes, std::byte* value_bytes, std::int32_t slot,
                        const float* k, const float* v) {
  constexpr CacheElement kElement = element_of<Element>;
  auto* const keys = reinterpret_cast<Element*>(key_bytes);
  auto* const values = reinterpret_cast<Element*>(value_bytes);
  const std::int32_t dim = pages.head_dim;
  float inverse_key = 1.0f, inverse_value = 1.0f;
  if constexpr (kElement != CacheElement::f32) {
    auto* const scales = reinterpret_cast<float*>(key_bytes + pages.scale_offset) + slot;
    scales[0] = scale_of<Element>(k, dim);
    scales[kPageSlots] = scale_of<Element>(v, dim);
    inverse_key = scales[0] > 0.0f ? 1.0f / scales[0] : 0.0f;
    inverse_value = scales[kPageSlots] > 0.0f ? 1.0f / scales[kPageSlots] : 0.0f;
    for (std::int32_t i = dim; i < even_dim(dim); ++i) put(0.0f, 1.0f, keys[key_index(kElement, slot, i)]);
  }
  for (std::int32_t i = 0; i < dim; ++i) put(k[i], inverse_key, keys[key_index(kElement, slot, i)]);
  const auto value = [&](std::int32_t i) __attribute__((always_inline))->Element& {
    return values[value_index(kElement, pages.padded_dim, slot, i)];
  };
  for (std::int32_t i = 0; i < dim; ++i) put(v[i], inverse_value, value(i));
  for (std::int32_t i = dim; i < pages.padded_dim; ++i) put(0.0f, 1.0f, value(i));
}

/// How numbers are rounded together of which 16 lanes sum up the magnitudes (kMostSum). A lane's sum is at least its
/// largest, and a quarter of kMostSum is less than 32767.
struct Rounding {
  float factor;  ///< of what is rounded
  float scale;   ///< of the integers
};
static inline Rounding rounding_of(const Vec* lanes) {
  constexpr float kMost = kMostSum;
  Vec most = lanes[0];
  LLMINFER_UNROLL
  for (int l = 0; l < kLaneVecs; ++l) most = max(most, lanes[l]);
  const float sum = reduce_lanes(lanes), quarter = 4.0f * reduce_max(most);
  if (!(sum > 1e-30f)) return {0.0f, sum};  // next to nothing, or NaN, which the scale hands on
  const float bound = sum > quarter ? sum : quarter;
  return {kMost / bound, bound * (1.0f / kMost)};
}

/// Elements of a run of a query, which zeros fill up, become `count` words. Their scale, which is returned, makes
/// scores binary logarithms.
inline constexpr int kRunVecs = kRunDims / Vec::kWidth;
static inline float round_run(const Vec* x, std::int32_t count, std::int16_t* words) {
  Vec sum[kLaneVecs];
  LLMINFER_UNROLL
  for (int l = 0; l < kLaneVecs; ++l) sum[l] = broadcast(0.0f);
  LLMINFER_UNROLL
  for (int i = 0; i < kRunVecs; ++i) {
    Vec& lanes = sum[i % kLaneVecs];
    lanes = lanes + max(x[i], broadcast(0.0f) - x[i]);
  }
  const Rounding rounding = rounding_of(sum);
  const Vec factor = broadcast(rounding.factor);
  for (std::int32_t i = 0; i < count; i += 2 * Vec::kWidth) {
    const Vec* const pair = x + i / Vec::kWidth;
    store_words(words + i, pair[0] * factor, pair[1] * factor);
  }
  return rounding.scale * 1.44269504f;
}
/// Elements [begin, begin + 64) of a query as floats; `room` is for those that zeros fill up.
static inline const float* run_of_query(const float* q, std::int32_t head_dim, std::int32_t begin, float* room) {
  if (begin + kRunDims <= head_dim) return q + begin;
  for (std::int32_t i = 0; i < kRunDims; ++i) room[i] = begin + i < head_dim ? q[begin + i] : 0.0f;
  return room;
}

static void round_queries(std::int32_t rows, std::int32_t head_dim, const float* q, std::int16_t* words,
                          float* scales) {
  for (std::int32_t r = 0; r < rows; ++r, q += head_dim, words += query_words(head_dim)) {
    for (std::int32_t run = 0; run < query_runs(head_dim); ++run) {
      const std::int32_t begin = run * kRunDims, left = query_words(head_dim) - begin;
      float room[kRunDims];
      const float* const x = run_of_query(q, head_dim, begin, room);
      Vec elements[kRunVecs];
      LLMINFER_UNROLL
      for (int i = 0; i < kRunVecs; ++i) elements[i] = load(x + i * Vec::kWidth);
      scales[run * rows + r] = round_run(elements, left < kRunDims ? left : kRunDims, words + begin);
    }
  }
}
