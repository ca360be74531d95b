// Flash attention over cache pages (Milakov and Gimelshein 2018; Dao et al. 2022): pages in order, a running maximum
// and sum per row, all arithmetic in floats. Included inside namespace isa_<level>, after cache_element-inl.hpp and
// product-inl.hpp.

inline constexpr int kPageVecs = kPageSlots / Vec::kWidth;

/// A page's scales of int8 keys and values // (64) each; unused for other elements.
struct PageScales {
  const float* keys;
  const float* values;
};

/// One row's scores // (64) become weights; slots outside [begin, end) weigh nothing. What the row has gathered so far
/// fades where the page brings a new maximum. With scales, keys' multiply the scores, and values' are folded into the
/// weights, after these were summed.
template <bool kScaled>
static inline void weigh(float* scores, std::int32_t begin, std::int32_t end, PageScales scales, float& row_max,
                         float& row_sum, float* out, std::int32_t dim) {
  Vec s[kPageVecs];
  unroll<kPageVecs>([&](auto i) __attribute__((always_inline)) {
    constexpr int kAt = i.value * Vec::kWidth;
    s[i.value] = load(scores + kAt);
    if constexpr (kScaled) s[i.value] = s[i.value] * load(scales.keys + kAt);
  });
  if (begin > 0 || end < kPageSlots) {
    const Vec none = broadcast(-__builtin_inff());
    unroll<kPageVecs>([&](auto i) __attribute__((always_inline)) {
      constexpr int kAt = i.value * Vec::kWidth;
      s[i.value] = select_lanes(s[i.value], begin - kAt, end - kAt, none);
    });
  }
  Vec highest = s[0];
  unroll<kPageVecs>([&](auto i) __attribute__((always_inline)) { highest = max(highest, s[i.value]); });
  const float page_max = reduce_max(highest);
  const float new_max = page_max > row_max ? page_max : row_max;
  const Vec center = broadcast(new_max);
  Vec total[kLaneVecs];
  unroll<kPageVecs>([&](auto i) __attribute__((always_inline)) {
    constexpr int kAt = i.value * Vec::kWidth;
    Vec weight = exp(s[i.value] - center);
    Vec& sum = total[i.value % kLaneVecs];
    sum = i.value < kLaneVecs ? weight : sum + weight;
    if constexpr (kScaled) weight = weight * load(scales.values + kAt);
    store(scores + kAt, weight);
  });
  if (new_max != row_max) {
    const Vec fade = exp(broadcast(row_max - new_max));
    row_sum *= first_lane(fade);
    for (std::int32_t i = 0; i < dim; i += Vec::kWidth) store(out + i, load(out + i) * fade);
    row_max = new_max;
  }
  row_sum += reduce_lanes(total);
}

template <class Element>
static void attend_pages(const AttentionPages& pages, const AttentionTile& tile, const PageRange& range,
                         const AttentionState& state, float* scratch) {
  constexpr bool kScaled = is_int8<Element>;
  float* const scores = scratch;  // [rows, 64]
  float* const widened = scratch + static_cast<std::int64_t>(tile.rows) * kPageSlots;
  const std::int32_t dim = pages.padded_dim;
  std::int32_t last = -1;
  for (std::int32_t r = 0; r < tile.rows; ++r) {
    state.max[r] = -__builtin_inff();
    state.sum[r] = 0.0f;
    if (tile.last[r] > last) last = tile.last[r];
    for (std::int32_t i = 0; i < dim; i += Vec::kWidth) store(state.out + r * dim + i, broadcast(0.0f));
  }
  const auto page_at = [&](std::int32_t p) { return pages.data + range.table[p] * pages.page_stride; };
  for (std::int32_t p = range.begin; p < range.end; ++p) {
    const std::int32_t base = p * kPageSlots;
    if (base > last) break;
    const std::byte* const keys = page_at(p);
    const std::byte* const values = keys + pages.value_offset;
    const std::byte* const next = p + 1 < range.known && range.table[p + 1] >= 0 ? page_at(p + 1) : keys;
    const auto* const scale = reinterpret_cast<const float*>(keys + pages.scale_offset);
    const PageScales scales{scale, scale + kPageSlots};
    multiply_page<false>(tile.rows, tile.q, pages.head_dim, reinterpret_cast<const Element*>(keys), kPageSlots,
                         pages.head_dim, scores, kPageSlots, kPageSlots, widened, values);
    for (std::int32_t r = 0; r < tile.rows; ++r) {
      float* const s = scores + r * kPageSlots;
      const std::int32_t begin = tile.first[r] > base ? tile.first[r] - base : 0;
      const std::int32_t end = tile.last[r] - base + 1 < kPageSlots ? tile.last[r] - base + 1 : kPageSlots;
      if (begin >= end) {
        for (std::int32_t i = 0; i < kPageSlots; i += Vec::kWidth) store(s + i, broadcast(0.0f));
        continue;
      }
      weigh<kScaled>(s, begin, end, scales, state.max[r], state.sum[r], state.out + r * dim, dim);
    }
    // Slots after `last` may never have been written; those before it that a row does not see have weight zero.
    const std::int32_t slots = last - base + 1 < kPageSlots ? last - base + 1 : kPageSlots;
    multiply_page<true>(tile.rows, scores, kPageSlots, reinterpret_cast<const Element*>(values), dim, slots, state.out,
                        dim, dim, widened, next);
  }
}

static void attend(const AttentionPages& pages, const AttentionTile& tile, const PageRange& range,
                   const AttentionState& state, float* scratch) {
  switch (pages.element) {
    case CacheElement::f32:
      return attend_pages<float>(pages, tile, range, state, scratch);
    case CacheElement::f16:
      return attend_pages<Half>(pages, tile, range, state, scratch);
    case CacheElement::bf16:
      return attend_pages<Bfloat>(pages, tile, range, state, scratch);
    case CacheElement::int8:
      return attend_pages<std::int8_t>(pages, tile, range, state, scratch);
  }
}

static void merge(std::int32_t rows, std::int32_t padded_dim, const AttentionState& into, const AttentionState& from) {
  for (std::int32_t r = 0; r < rows; ++r) {
    if (from.max[r] == -__builtin_inff()) continue;
    const float new_max = into.max[r] > from.max[r] ? into.max[r] : from.max[r];
    const Vec keep = exp(broadcast(into.max[r] - new_max)), take = exp(broadcast(from.max[r] - new_max));
    into.sum[r] = into.sum[r] * first_lane(keep) + from.sum[r] * first_lane(take);
    into.max[r] = new_max;
    float* const a = into.out + r * padded_dim;
    const float* const b = from.out + r * padded_dim;
    for (std::int32_t i = 0; i < padded_dim; i += Vec::kWidth) {
      store(a + i, load(a + i) * keep + load(b + i) * take);
    }
  }
}

static void finish(const float* accumulated, float sum, std::int32_t head_dim, float* out) {
  const float factor = 1.0f / sum;
  std::int32_t i = 0;
  for (; i + Vec::kWidth <= head_dim; i += Vec::kWidth) store(out + i, load(accumulated + i) * broadcast(factor));
  for (; i < head_dim; ++i) out[i] = accumulated[i] * factor;
}

static void write(const AttentionPages& pages, std::int32_t page, std::int32_t slot, const float* k, const float* v) {
  std::byte* const keys = pages.data + page * pages.page_stride;
  std::byte* const values = keys + pages.value_offset;
  switch (pages.element) {
    case CacheElement::f32:
      return write_token<float>(pages, keys, values, slot, k, v);
    case CacheElement::f16:
      return write_token<Half>(pages, keys, values, slot, k, v);
    case CacheElement::bf16:
      return write_token<Bfloat>(pages, keys, values, slot, k, v);
    case CacheElement::int8:
      return write_token<std::int8_t>(pages, keys, values, slot, k, v);
  }
}

const AttentionKernels& attention_kernels() {
  static constexpr AttentionKernels kKernels{write, attend, merge, finish};
  return kKernels;
}
