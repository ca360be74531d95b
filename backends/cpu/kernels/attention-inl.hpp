// Attention over cache pages. Included inside namespace isa_<level>, after math-inl.hpp.

/// c[R, C vectors] (+)= a[R, k] * b[k, C vectors], summed over k in order.
template <int R, int C, bool kAdd, class Element>
static inline void product_block(const float* a, std::int64_t lda, const Element* b, std::int64_t ldb, std::int32_t k,
                                 float* c, std::int64_t ldc) {
  Vec sum[R][C];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) sum[r][j] = kAdd ? load(c + r * ldc + j * Vec::kWidth) : broadcast(0.0f);
  }
  for (std::int32_t i = 0; i < k; ++i) {
    Vec right[C];
    for (int j = 0; j < C; ++j) right[j] = load(b + i * ldb + j * Vec::kWidth);
    for (int r = 0; r < R; ++r) {
      const Vec left = broadcast(a[r * lda + i]);
      for (int j = 0; j < C; ++j) sum[r][j] = fma(left, right[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) store(c + r * ldc + j * Vec::kWidth, sum[r][j]);
  }
}

template <int R, bool kAdd, class Element>
static inline void product_rows(const float* a, std::int64_t lda, const Element* b, std::int64_t ldb, std::int32_t k,
                                float* c, std::int64_t ldc, std::int32_t cols) {
  constexpr std::int32_t kCols = kBlockCols * Vec::kWidth;
  std::int32_t col = 0;
  for (; col + kCols <= cols; col += kCols) product_block<R, kBlockCols, kAdd>(a, lda, b + col, ldb, k, c + col, ldc);
  for (; col < cols; col += Vec::kWidth) product_block<R, 1, kAdd>(a, lda, b + col, ldb, k, c + col, ldc);
}

/// c[rows, cols] (+)= a[rows, k] * b[k, cols]; cols is a multiple of 16.
template <bool kAdd, class Element>
static void product(std::int32_t rows, const float* a, std::int64_t lda, const Element* b, std::int64_t ldb,
                    std::int32_t k, float* c, std::int64_t ldc, std::int32_t cols) {
  while (rows > 0) {
    const std::int32_t block = rows < kBlockRows ? rows : kBlockRows;
    switch (block) {
      case 1:
        product_rows<1, kAdd>(a, lda, b, ldb, k, c, ldc, cols);
        break;
      case 2:
        product_rows<2, kAdd>(a, lda, b, ldb, k, c, ldc, cols);
        break;
      case 3:
        product_rows<3, kAdd>(a, lda, b, ldb, k, c, ldc, cols);
        break;
      case 4:
        product_rows<4, kAdd>(a, lda, b, ldb, k, c, ldc, cols);
        break;
      case 5:
        product_rows<5, kAdd>(a, lda, b, ldb, k, c, ldc, cols);
        break;
      default:
        product_rows<6, kAdd>(a, lda, b, ldb, k, c, ldc, cols);
        break;
    }
    rows -= block;
    a += block * lda;
    c += block * ldc;
  }
}

/// The same with halves on the right. They are widened once if more than one block of rows meets them; that is exact.
template <bool kAdd>
static void product_with(const std::byte* b, bool half, float* widened, std::int32_t rows, const float* a,
                         std::int64_t lda, std::int64_t ldb, std::int32_t k, float* c, std::int64_t ldc,
                         std::int32_t cols) {
  if (!half) return product<kAdd>(rows, a, lda, reinterpret_cast<const float*>(b), ldb, k, c, ldc, cols);
  const auto* halves = reinterpret_cast<const std::uint16_t*>(b);
  if (rows <= kBlockRows) return product<kAdd>(rows, a, lda, halves, ldb, k, c, ldc, cols);
  for (std::int64_t i = 0; i < k * ldb; i += Vec::kWidth) store(widened + i, load(halves + i));
  product<kAdd>(rows, a, lda, static_cast<const float*>(widened), ldb, k, c, ldc, cols);
}

static void attend(const AttentionPages& pages, const AttentionTile& tile, const std::int32_t* table,
                   std::int32_t page_begin, std::int32_t page_end, const AttentionState& state, float* scratch) {
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
  for (std::int32_t p = page_begin; p < page_end; ++p) {
    const std::int32_t base = p * kPageSlots;
    if (base > last) break;
    const std::byte* const keys = pages.data + table[p] * pages.page_stride;
    product_with<false>(keys, pages.half, widened, tile.rows, tile.q, pages.head_dim, kPageSlots, pages.head_dim,
                        scores, kPageSlots, kPageSlots);
    for (std::int32_t r = 0; r < tile.rows; ++r) {
      float* const s = scores + r * kPageSlots;
      const std::int32_t begin = tile.first[r] > base ? tile.first[r] - base : 0;
      const std::int32_t end = tile.last[r] - base + 1 < kPageSlots ? tile.last[r] - base + 1 : kPageSlots;
      if (begin >= end) {
        for (std::int32_t i = 0; i < kPageSlots; i += Vec::kWidth) store(s + i, broadcast(0.0f));
        continue;
      }
      for (std::int32_t i = 0; i < begin; ++i) s[i] = -__builtin_inff();
      for (std::int32_t i = end; i < kPageSlots; ++i) s[i] = -__builtin_inff();
      Vec highest = load(s);
      for (std::int32_t i = Vec::kWidth; i < kPageSlots; i += Vec::kWidth) highest = max(highest, load(s + i));
      const float page_max = reduce_max(highest);
      const float new_max = page_max > state.max[r] ? page_max : state.max[r];
      Vec total = broadcast(0.0f);
      for (std::int32_t i = 0; i < kPageSlots; i += Vec::kWidth) {
        const Vec weight = exp(load(s + i) - broadcast(new_max));
        total = total + weight;
        store(s + i, weight);
      }
      if (new_max != state.max[r]) {
        const Vec fade = exp(broadcast(state.max[r] - new_max));
        float lanes[Vec::kWidth];
        store(lanes, fade);
        state.sum[r] *= lanes[0];
        float* const out = state.out + r * dim;
        for (std::int32_t i = 0; i < dim; i += Vec::kWidth) store(out + i, load(out + i) * fade);
        state.max[r] = new_max;
      }
      state.sum[r] += reduce_add(total);
    }
    // Slots after `last` may never have been written; those before it that a row does not see have weight zero.
    const std::int32_t slots = last - base + 1 < kPageSlots ? last - base + 1 : kPageSlots;
    product_with<true>(keys + pages.value_offset, pages.half, widened, tile.rows, scores, kPageSlots, dim, slots,
                       state.out, dim, dim);
  }
}

static void merge(std::int32_t rows, std::int32_t padded_dim, const AttentionState& into, const AttentionState& from) {
  for (std::int32_t r = 0; r < rows; ++r) {
    if (from.max[r] == -__builtin_inff()) continue;
    const float new_max = into.max[r] > from.max[r] ? into.max[r] : from.max[r];
    const Vec keep = exp(broadcast(into.max[r] - new_max)), take = exp(broadcast(from.max[r] - new_max));
    float keep_lanes[Vec::kWidth], take_lanes[Vec::kWidth];
    store(keep_lanes, keep);
    store(take_lanes, take);
    into.sum[r] = into.sum[r] * keep_lanes[0] + from.sum[r] * take_lanes[0];
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
  for (std::int32_t i = 0; i < head_dim; ++i) out[i] = accumulated[i] * factor;
}

static std::uint16_t saturated_half(float x) {
  return float_to_half(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}

static void write(const AttentionPages& pages, std::int32_t page, std::int32_t slot, const float* k, const float* v) {
  std::byte* const keys = pages.data + page * pages.page_stride;
  std::byte* const values = keys + pages.value_offset;
  if (pages.half) {
    auto* key = reinterpret_cast<std::uint16_t*>(keys) + slot;
    auto* value = reinterpret_cast<std::uint16_t*>(values) + static_cast<std::int64_t>(slot) * pages.padded_dim;
    for (std::int32_t i = 0; i < pages.head_dim; ++i)
      key[static_cast<std::int64_t>(i) * kPageSlots] = saturated_half(k[i]);
    for (std::int32_t i = 0; i < pages.head_dim; ++i) value[i] = saturated_half(v[i]);
    for (std::int32_t i = pages.head_dim; i < pages.padded_dim; ++i) value[i] = 0;
  } else {
    auto* key = reinterpret_cast<float*>(keys) + slot;
    auto* value = reinterpret_cast<float*>(values) + static_cast<std::int64_t>(slot) * pages.padded_dim;
    for (std::int32_t i = 0; i < pages.head_dim; ++i) key[static_cast<std::int64_t>(i) * kPageSlots] = k[i];
    for (std::int32_t i = 0; i < pages.head_dim; ++i) value[i] = v[i];
    for (std::int32_t i = pages.head_dim; i < pages.padded_dim; ++i) value[i] = 0.0f;
  }
}

const AttentionKernels& attention_kernels() {
  static constexpr AttentionKernels kKernels{write, attend, merge, finish};
  return kKernels;
}
