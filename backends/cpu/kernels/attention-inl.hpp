// Flash attention over cache pages (Milakov and Gimelshein 2018; Dao et al. 2022): pages in order, a running maximum
// and sum per row; for pages of integers both products are of 16-bit words. Included inside namespace isa_<level>,
// after cache_element-inl.hpp and product-inl.hpp.

inline constexpr int kPageVecs = kPageSlots / Vec::kWidth;

/// The slots of a page that a row sees: [begin, end), as many as none.
struct Visible {
  std::int32_t begin, end;
};
static inline Visible visible_slots(const AttentionTile& tile, std::int32_t row, std::int32_t base) {
  const std::int32_t first = tile.first[row] - base, end = tile.last[row] - base + 1;
  return {first > 0 ? first : 0, end < kPageSlots ? end : kPageSlots};
}

/// A row's state.
struct RowState {
  float& max;
  float& sum;
  float* out;
  std::int32_t dim;
  float* shift = nullptr;  ///< for codes: what all elements of `out` get at the end
  /// What has been gathered fades where a page brings a new maximum.
  void raise(float new_max, Vec fade) const {
    sum *= first_lane(fade);
    for (std::int32_t i = 0; i < dim; i += Vec::kWidth) store(out + i, load(out + i) * fade);
    max = new_max;
  }
};

/// A row's scores // (64), of which those that it does not see become -infinity. Returns the highest.
static inline float mask_scores(Vec* s, Visible visible) {
  if (visible.begin > 0 || visible.end < kPageSlots) {
    const Vec none = broadcast(-__builtin_inff());
    LLMINFER_UNROLL
    for (int i = 0; i < kPageVecs; ++i) {
      const int at = i * Vec::kWidth;
      s[i] = select_lanes(s[i], visible.begin - at, visible.end - at, none);
    }
  }
  Vec highest = s[0];
  LLMINFER_UNROLL
  for (int i = 0; i < kPageVecs; ++i) highest = max(highest, s[i]);
  return reduce_max(highest);
}

/// One row's scores // (64) become weights; slots that it does not see weigh nothing.
static inline void weigh(float* scores, Visible visible, const RowState& row) {
  Vec s[kPageVecs];
  LLMINFER_UNROLL
  for (int i = 0; i < kPageVecs; ++i) s[i] = load(scores + i * Vec::kWidth);
  const float page_max = mask_scores(s, visible);
  const float new_max = page_max > row.max ? page_max : row.max;
  const Vec center = broadcast(new_max);
  Vec total[kLaneVecs];
  LLMINFER_UNROLL
  for (int i = 0; i < kPageVecs; ++i) {
    const Vec weight = exp(s[i] - center);
    Vec& sum = total[i % kLaneVecs];
    sum = i < kLaneVecs ? weight : sum + weight;
    store(scores + i * Vec::kWidth, weight);
  }
  if (new_max != row.max) row.raise(new_max, exp(broadcast(row.max - new_max)));
  row.sum += reduce_lanes(total);
}

/// 2^x for x <= 0 within 3e-6 of itself, which is less than the rounding of weights to words; 2^-125 below that.
static inline Vec power_of_two(Vec x) {
  const Vec clamped = max(x, broadcast(-125.0f)), n = round(clamped), r = clamped - n;
  Vec p = broadcast(0.009570101276f);
  p = fma(p, r, broadcast(0.055917859077f));
  p = fma(p, r, broadcast(0.240247443318f));
  p = fma(p, r, broadcast(0.693121790886f));
  p = fma(p, r, broadcast(0.999999284744f));
  return scale_exponent(p, n);
}

/// A page's scales of integer keys and values // (64) each; of codes only the values', and their minima.
struct PageScales {
  const float* keys;
  const float* values;
  const float* minima;
};

/// The same for integers: scores, but for the keys' scales, become weights in words. The weights take in the scales of
/// the values, after they were summed, and are rounded by a scale of their own, which is returned. Scores of codes lack
/// `offset`, their queries' products with the keys' minima.
template <bool kCodes>
static inline float weigh_words(const float* scores, PageScales scales, Visible visible, const RowState& row,
                                float offset, std::int16_t* words) {
  Vec s[kPageVecs];
  LLMINFER_UNROLL
  for (int i = 0; i < kPageVecs; ++i) {
    const int at = i * Vec::kWidth;
    const Vec score = load(scores + at);
    s[i] = kCodes ? score + broadcast(offset) : score * load(scales.keys + at);
  }
  const float page_max = mask_scores(s, visible);
  const float new_max = page_max > row.max ? page_max : row.max;
  const Vec center = broadcast(new_max);
  const bool masked = visible.begin > 0 || visible.end < kPageSlots;
  Vec total[kLaneVecs], scaled[kLaneVecs], minima[kLaneVecs];
  LLMINFER_UNROLL
  for (int i = 0; i < kPageVecs; ++i) {
    const int at = i * Vec::kWidth, lane = i % kLaneVecs;
    Vec weight = power_of_two(s[i] - center);
    if (masked) weight = select_lanes(weight, visible.begin - at, visible.end - at, broadcast(0.0f));
    s[i] = weight * load(scales.values + at);
    total[lane] = i < kLaneVecs ? weight : total[lane] + weight;
    scaled[lane] = i < kLaneVecs ? s[i] : scaled[lane] + s[i];
    if constexpr (kCodes) {
      const Vec minimum = load(scales.minima + at);
      minima[lane] = i < kLaneVecs ? weight * minimum : fma(weight, minimum, minima[lane]);
    }
  }
  if (new_max != row.max) {
    const Vec fade = power_of_two(broadcast(row.max - new_max));
    row.raise(new_max, fade);
    if constexpr (kCodes) *row.shift *= first_lane(fade);
  }
  row.sum += reduce_lanes(total);
  if constexpr (kCodes) *row.shift += reduce_lanes(minima);
  const Rounding rounding = rounding_of(scaled);
  const Vec factor = broadcast(rounding.factor);
  LLMINFER_UNROLL
  for (int i = 0; i < kPageVecs / 2; ++i) {
    const int first = 2 * i;
    store_words(words + first * Vec::kWidth, s[first] * factor, s[first + 1] * factor);
  }
  return rounding.scale;
}

/// Calls page(keys, values, what is read after them, position of slot 0, slots that any row of the tile sees) for each
/// page of the range that the tile's rows may see, after the state was cleared.
template <class Page>
static inline void for_each_page(const AttentionPages& pages, const AttentionTile& tile, const PageRange& range,
                                 const AttentionState& state, const Page& page) {
  std::int32_t last = -1;
  for (std::int32_t r = 0; r < tile.rows; ++r) {
    state.max[r] = -__builtin_inff();
    state.sum[r] = 0.0f;
    if (tile.last[r] > last) last = tile.last[r];
    float* const out = state.out + r * pages.padded_dim;
    for (std::int32_t i = 0; i < pages.padded_dim; i += Vec::kWidth) store(out + i, broadcast(0.0f));
  }
  const auto page_at = [&](std::int32_t p) { return keys_of_page(pages, range.table[p]); };
  for (std::int32_t p = range.begin; p < range.end; ++p) {
    const std::int32_t base = p * kPageSlots;
    if (base > last) break;
    const std::byte* const keys = page_at(p);
    const std::byte* const next = p + 1 < range.end ? page_at(p + 1) : range.after != nullptr ? range.after : keys;
    // Slots after `last` may never have been written; those before it that a row does not see have weight zero.
    page(keys, keys + pages.value_offset, next, base, last - base + 1 < kPageSlots ? last - base + 1 : kPageSlots);
  }
}

static void attend_floats(const AttentionPages& pages, const AttentionTile& tile, const PageRange& range,
                          const AttentionState& state, float* scores) {
  const std::int32_t dim = pages.padded_dim;
  for_each_page(pages, tile, range, state,
                [&](const std::byte* keys, const std::byte* values, const std::byte* next, std::int32_t base,
                    std::int32_t slots) {
                  in_blocks<kBlockRows, kBlockCols>(
                      tile.rows, kPageSlots,
                      FloatProduct<false>{tile.q, pages.head_dim, reinterpret_cast<const float*>(keys), kPageSlots,
                                          pages.head_dim, scores, kPageSlots, values});
                  for (std::int32_t r = 0; r < tile.rows; ++r) {
                    float* const s = scores + r * kPageSlots;
                    const Visible visible = visible_slots(tile, r, base);
                    if (visible.begin < visible.end) {
                      weigh(s, visible, {state.max[r], state.sum[r], state.out + r * dim, dim});
                    } else {
                      for (std::int32_t i = 0; i < kPageSlots; i += Vec::kWidth) store(s + i, broadcast(0.0f));
                    }
                  }
                  in_blocks<kBlockRows, kBlockCols>(
                      tile.rows, dim,
                      FloatProduct<true>{scores, kPageSlots, reinterpret_cast<const float*>(values), dim, slots,
                                         state.out, dim, next});
                });
}

template <class Element>
static void attend_words(const AttentionPages& pages, const AttentionTile& tile, const PageRange& range,
                         const AttentionState& state, float* scratch) {
  const std::int32_t dim = pages.padded_dim;
  const std::int64_t rows = tile.rows;
  float* const scores = scratch;                                                      // [rows, 64]
  auto* const weights = reinterpret_cast<std::int16_t*>(scores + rows * kPageSlots);  // [rows, 64]
  float* const factors = scores + rows * kPageSlots * 3 / 2;                          // [rows]
  auto* const widened = reinterpret_cast<std::int16_t*>(factors + (rows + 15) / 16 * 16);
  for_each_page(pages, tile, range, state,
                [&](const std::byte* keys, const std::byte* values, const std::byte* next, std::int32_t base,
                    std::int32_t slots) {
                  const auto* const scale = reinterpret_cast<const float*>(keys + pages.scale_offset);
                  touch<2 * kPageSlots * sizeof(float)>(keys + pages.scale_offset);  // read after the first product
                  for (std::int32_t run = 0, left = even_dim(pages.head_dim); left > 0; ++run, left -= kRunDims) {
                    const std::int64_t at = std::int64_t{run} * kRunDims * kPageSlots;
                    const auto product = run == 0 ? multiply_page<false, Element> : multiply_page<true, Element>;
                    product(tile.rows, tile.words + run * kRunDims, query_words(pages.head_dim),
                            reinterpret_cast<const Element*>(keys) + at, (left < kRunDims ? left : kRunDims) / 2,
                            kPageSlots, scores, kPageSlots, tile.scales + run * rows, widened,
                            values + at * static_cast<std::int64_t>(sizeof(Element)));
                  }
                  for (std::int32_t r = 0; r < tile.rows; ++r) {
                    std::int16_t* const w = weights + r * kPageSlots;
                    const Visible visible = visible_slots(tile, r, base);
                    if (visible.begin < visible.end) {
                      factors[r] =
                          weigh_words<false>(scores + r * kPageSlots, {scale, scale + kPageSlots, nullptr}, visible,
                                             {state.max[r], state.sum[r], state.out + r * dim, dim}, 0.0f, w);
                    } else {
                      factors[r] = 0.0f;
                      for (std::int32_t i = 0; i < kPageSlots; ++i) w[i] = 0;
                    }
                  }
                  multiply_page<true>(tile.rows, weights, kPageSlots, reinterpret_cast<const Element*>(values),
                                      (slots + 1) / 2, dim, state.out, dim, factors, widened, next);
                });
  // Back from powers of two, for `merge`.
  for (std::int32_t r = 0; r < tile.rows; ++r) state.max[r] *= 0.693147181f;
}

/// Ranges of up to 64 rows of codes.
struct Ranges {
  float scales[64], minima[64];

  Ranges(const std::byte* from, std::int32_t count) {
    std::uint32_t bits[64] = {};
    __builtin_memcpy(bits, from, static_cast<std::size_t>(count) * 4);
    for (int i = 0; i < 64; ++i) {
      scales[i] = __builtin_bit_cast(float, bits[i] & 0xffff0000u);
      minima[i] = __builtin_bit_cast(float, bits[i] << 16);
    }
  }
};

/// A key of codes c is scales * c + minima. So its product with a query is that of c with query * scales, which becomes
/// words // (rows, 64) with `factors`, and that of the query with the minima, which is added to `offsets`.
static void round_queries_for(const Ranges& ranges, const AttentionTile& tile, std::int32_t head_dim,
                              std::int32_t begin, std::int16_t* words, float* factors, float* offsets) {
  for (std::int32_t r = 0; r < tile.rows; ++r) {
    float room[kRunDims];
    const float* const q = run_of(tile.q + std::int64_t{r} * head_dim, head_dim, begin, room);
    Vec scaled[kRunVecs], product[kLaneVecs];
    LLMINFER_UNROLL
    for (int i = 0; i < kRunVecs; ++i) {
      const int at = i * Vec::kWidth;
      const Vec x = load(q + at), minimum = load(ranges.minima + at);
      Vec& sum = product[i % kLaneVecs];
      sum = i < kLaneVecs ? x * minimum : fma(x, minimum, sum);
      scaled[i] = x * load(ranges.scales + at);
    }
    factors[r] = round_run(scaled, kRunDims, words + std::int64_t{r} * kRunDims);
    offsets[r] = (begin > 0 ? offsets[r] : 0.0f) + reduce_lanes(product) * 1.44269504f;
  }
}

/// Pages of codes, which are full: both products are of words and codes as they lie, and what codes are short of comes
/// in per row: of a page's scores and of all that is gathered.
static void attend_codes(const AttentionPages& pages, const AttentionTile& tile, const PageRange& range,
                         const AttentionState& state, float* scratch) {
  const std::int32_t dim = pages.padded_dim;
  const std::int64_t rows = tile.rows;
  float* const scores = scratch;                                                      // [rows, 64]
  auto* const weights = reinterpret_cast<std::int16_t*>(scores + rows * kPageSlots);  // [rows, 64]
  auto* const words = weights + rows * kPageSlots;                                    // [rows, 64]
  float* const factors = reinterpret_cast<float*>(words + rows * kRunDims);           // [rows] each
  const std::int64_t stride = (rows + 15) / 16 * 16;
  float* const query_factors = factors + stride;
  float* const offsets = factors + 2 * stride;
  float* const shifts = factors + 3 * stride;
  auto* const widened = reinterpret_cast<std::int16_t*>(factors + 4 * stride);
  for (std::int64_t r = 0; r < rows; ++r) shifts[r] = 0.0f;
  for_each_page(
      pages, tile, range, state,
      [&](const std::byte* keys, const std::byte* values, const std::byte* next, std::int32_t base, std::int32_t)
          __attribute__((always_inline)) {
            const std::byte* const ranges = keys + pages.scale_offset;
            for (std::int32_t begin = 0; begin < pages.head_dim; begin += kRunDims) {
              const std::int32_t left = pages.head_dim - begin, count = left < kRunDims ? left : kRunDims;
              const std::int64_t at = std::int64_t{begin} * kPageSlots / 2;  // bytes
              round_queries_for(Ranges(ranges + begin * 4, count), tile, pages.head_dim, begin, words, query_factors,
                                offsets);
              const auto product = begin == 0 ? multiply_page<false, Codes> : multiply_page<true, Codes>;
              product(tile.rows, words, kRunDims, reinterpret_cast<const Codes*>(keys + at), (count + 7) / 8 * 4,
                      kPageSlots, scores, kPageSlots, query_factors, widened, values + at);
            }
            const Ranges value_ranges(ranges + std::int64_t{pages.head_dim} * 4, kPageSlots);
            for (std::int32_t r = 0; r < tile.rows; ++r) {
              std::int16_t* const w = weights + r * kPageSlots;
              const Visible visible = visible_slots(tile, r, base);
              if (visible.begin < visible.end) {
                factors[r] = weigh_words<true>(
                    scores + r * kPageSlots, {nullptr, value_ranges.scales, value_ranges.minima}, visible,
                    {state.max[r], state.sum[r], state.out + r * dim, dim, shifts + r}, offsets[r], w);
              } else {
                factors[r] = 0.0f;
                for (std::int32_t i = 0; i < kPageSlots; ++i) w[i] = 0;
              }
            }
            multiply_page<true>(tile.rows, weights, kPageSlots, reinterpret_cast<const Codes*>(values), kPageSlots / 2,
                                dim, state.out, dim, factors, widened, next);
          });
  for (std::int32_t r = 0; r < tile.rows; ++r) {
    float* const out = state.out + r * dim;
    for (std::int32_t i = 0; i < dim; i += Vec::kWidth) store(out + i, load(out + i) + broadcast(shifts[r]));
    state.max[r] *= 0.693147181f;  // back from powers of two, for `merge`
  }
}

static void attend(const AttentionPages& pages, const AttentionTile& tile, const PageRange& range,
                   const AttentionState& state, float* scratch) {
  switch (pages.element) {
    case CacheElement::f32:
      return attend_floats(pages, tile, range, state, scratch);
    case CacheElement::int16:
      return attend_words<std::int16_t>(pages, tile, range, state, scratch);
    case CacheElement::int8:
      return attend_words<std::int8_t>(pages, tile, range, state, scratch);
    case CacheElement::code4:
      return attend_codes(pages, tile, range, state, scratch);
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
  std::byte* const keys = keys_of_page(pages, page);
  std::byte* const values = keys + pages.value_offset;
  switch (pages.element) {
    case CacheElement::f32:
      return write_token<float>(pages, keys, values, slot, k, v);
    case CacheElement::int16:
      return write_token<std::int16_t>(pages, keys, values, slot, k, v);
    case CacheElement::int8:
      return write_token<std::int8_t>(pages, keys, values, slot, k, v);
    case CacheElement::code4:
      return;  // packed when they are full
  }
}

const AttentionKernels& attention_kernels() {
  static constexpr AttentionKernels kKernels{write, round_queries, attend, merge, finish};
  return kKernels;
}
