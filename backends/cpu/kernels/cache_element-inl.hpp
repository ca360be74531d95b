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

/// The scale of a vector in integers, see AttentionKernels::write; 0 for a vector of (almost) zeros. A largest
/// magnitude that is a multiple of a scale but for the rounding of floats gives that scale.
template <class Integer>
static inline float scale_of(const float* x, std::int32_t n) {
  Vec lanes = broadcast(0.0f);
  std::int32_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) {
    const Vec lane = load(x + i);
    lanes = max(max(lane, broadcast(0.0f) - lane), lanes);  // of what is not a number nothing is taken
  }
  float most = reduce_max(lanes);
  for (; i < n; ++i) {
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

/// Elements [begin, begin + 64) of a vector; `room` is for those that zeros fill up.
static inline const float* run_of(const float* x, std::int32_t n, std::int32_t begin, float* room) {
  if (begin + kRunDims <= n) return x + begin;
  for (std::int32_t i = 0; i < kRunDims; ++i) room[i] = begin + i < n ? x[begin + i] : 0.0f;
  return room;
}

/// Elements [begin, begin + 64) of a vector in integers; what is not a number becomes the lowest of them.
template <class Integer>
static inline void round_elements(const float* x, std::int32_t n, std::int32_t begin, float inverse_scale,
                                  std::int16_t* words) {
  float room[kRunDims];
  const float* const run = run_of(x, n, begin, room);
  const Vec factor = broadcast(inverse_scale), most = broadcast(most_of<Integer>);
  const auto scaled = [&](std::int32_t i) { return min(max(load(run + i) * factor, broadcast(0.0f) - most), most); };
  for (std::int32_t i = 0; i < kRunDims; i += 2 * Vec::kWidth) {
    store_words(words + i, scaled(i), scaled(i + Vec::kWidth));
  }
}

template <class Integer>
static void write_token(const AttentionPages& pages, std::byte* key_bytes, std::byte* value_bytes, std::int32_t slot,
                        const float* k, const float* v) {
  constexpr CacheElement kElement = element_of<Integer>;
  auto* const keys = reinterpret_cast<Integer*>(key_bytes);
  auto* const values = reinterpret_cast<Integer*>(value_bytes);
  const std::int32_t dim = pages.head_dim;
  auto* const scales = reinterpret_cast<float*>(key_bytes + pages.scale_offset) + slot;
  scales[0] = scale_of<Integer>(k, dim);
  scales[kPageSlots] = scale_of<Integer>(v, dim);
  const float inverse_key = scales[0] > 0.0f ? 1.0f / scales[0] : 0.0f;
  const float inverse_value = scales[kPageSlots] > 0.0f ? 1.0f / scales[kPageSlots] : 0.0f;
  for (std::int32_t begin = 0; begin < pages.padded_dim; begin += kRunDims) {
    std::int16_t words[kRunDims];
    const auto end = [&](std::int32_t all) { return all - begin < kRunDims ? all - begin : kRunDims; };
    round_elements<Integer>(k, dim, begin, inverse_key, words);
    for (std::int32_t i = 0; i < end(even_dim(dim)); i += 2) {  // pairs lie together
      const Integer pair[] = {static_cast<Integer>(words[i]), static_cast<Integer>(words[i + 1])};
      __builtin_memcpy(keys + key_index(kElement, slot, begin + i), pair, sizeof pair);
    }
    round_elements<Integer>(v, dim, begin, inverse_value, words);
    for (std::int32_t i = 0; i < end(pages.padded_dim); ++i) {
      values[value_index(kElement, pages.padded_dim, slot, begin + i)] = static_cast<Integer>(words[i]);
    }
  }
}
template <>
void write_token<float>(const AttentionPages& pages, std::byte* key_bytes, std::byte* value_bytes, std::int32_t slot,
                        const float* k, const float* v) {
  constexpr CacheElement kElement = CacheElement::f32;
  auto* const keys = reinterpret_cast<float*>(key_bytes);
  auto* const values = reinterpret_cast<float*>(value_bytes) + value_index(kElement, pages.padded_dim, slot, 0);
  for (std::int32_t i = 0; i < pages.head_dim; ++i) keys[key_index(kElement, slot, i)] = k[i];
  for (std::int32_t i = 0; i < pages.padded_dim; ++i) values[i] = i < pages.head_dim ? v[i] : 0.0f;
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

static void round_queries(std::int32_t rows, std::int32_t head_dim, const float* q, std::int16_t* words,
                          float* scales) {
  for (std::int32_t r = 0; r < rows; ++r, q += head_dim, words += query_words(head_dim)) {
    for (std::int32_t run = 0; run < query_runs(head_dim); ++run) {
      const std::int32_t begin = run * kRunDims, left = query_words(head_dim) - begin;
      float room[kRunDims];
      const float* const x = run_of(q, head_dim, begin, room);
      Vec elements[kRunVecs];
      LLMINFER_UNROLL
      for (int i = 0; i < kRunVecs; ++i) elements[i] = load(x + i * Vec::kWidth);
      scales[run * rows + r] = round_run(elements, left < kRunDims ? left : kRunDims, words + begin);
    }
  }
}
