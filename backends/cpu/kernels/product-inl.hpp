// Small matrix products of rows with a page's keys or values. Included inside namespace isa_<level>, after
// cache_element-inl.hpp. Of floats, every output is one accumulator that takes its products in order with fused
// multiply-adds; products of words are exact. So bits depend neither on the level nor on how rows and columns are cut
// into blocks.

/// block.run<R, C>(row, col) for all rows and columns, in blocks of at most `kRows` rows and `kCols` vectors; `cols` is
/// a multiple of 16.
template <int kRows, int kCols, class Block>
static void in_blocks(std::int32_t rows, std::int32_t cols, const Block& block) {
  const auto strip = [&](auto height, std::int32_t row) __attribute__((always_inline)) {
    std::int32_t col = 0;
    const auto columns = [&](auto vectors) __attribute__((always_inline)) {
      constexpr std::int32_t kStep = vectors.value * Vec::kWidth;
      for (; col + kStep <= cols; col += kStep) block.template run<height.value, vectors.value>(row, col);
    };
    columns(Index<kCols>{});
    if constexpr (kCols * Vec::kWidth > 32) columns(Index<kCols / 2>{});
    if constexpr (kCols * Vec::kWidth > 16) columns(Index<16 / Vec::kWidth>{});
  };
  std::int32_t row = 0;
  for (; row + kRows <= rows; row += kRows) strip(Index<kRows>{}, row);
  unroll<kRows>([&](auto r) __attribute__((always_inline)) {
    if constexpr (r.value > 0) {
      if (rows - row == r.value) strip(Index<r.value>{}, row);
    }
  });
}

/// Touches a part of the matrix that is read next, as wide as C vectors of what is read now: a page's keys and values
/// are too short for the hardware to find out. Into the second-level cache, as prefetch() of grouped-inl.hpp.
template <int kBytes>
[[gnu::always_inline]] static inline void touch(const std::byte* ahead) {
  LLMINFER_UNROLL
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(ahead + i, 0, 2);
}

/// c[rows, cols] (+)= a[rows, k] * b[k, cols] in floats
template <bool kAdd>
struct FloatProduct {
  const float* a;
  std::int64_t lda;
  const float* b;
  std::int64_t ldb;
  std::int32_t k;
  float* c;
  std::int64_t ldc;
  const std::byte* ahead;  ///< what is read next, of the same size

  template <int R, int C>
  [[gnu::always_inline]] void run(std::int32_t row, std::int32_t col) const {
    float* const to = c + row * ldc + col;
    const float* left = a + row * lda;
    const float* from = b + col;
    const std::byte* next = row == 0 ? ahead + col * static_cast<std::int64_t>(sizeof(float)) : nullptr;
    Vec sum[R][C];
    LLMINFER_UNROLL
    for (int r = 0; r < R; ++r) {
      LLMINFER_UNROLL
      for (int j = 0; j < C; ++j) sum[r][j] = kAdd ? load(to + r * ldc + j * Vec::kWidth) : broadcast(0.0f);
    }
    for (std::int32_t i = 0; i < k; ++i, from += ldb, ++left) {
      Vec right[C];
      LLMINFER_UNROLL
      for (int j = 0; j < C; ++j) right[j] = load(from + j * Vec::kWidth);
      if (next != nullptr) {
        touch<C * Vec::kWidth * 4>(next);
        next += ldb * static_cast<std::int64_t>(sizeof(float));
      }
      LLMINFER_UNROLL
      for (int r = 0; r < R; ++r) {
        const Vec factor = broadcast(left[r * lda]);
        LLMINFER_UNROLL
        for (int j = 0; j < C; ++j) sum[r][j] = fma(factor, right[j], sum[r][j]);
      }
    }
    LLMINFER_UNROLL
    for (int r = 0; r < R; ++r) {
      LLMINFER_UNROLL
      for (int j = 0; j < C; ++j) store(to + r * ldc + j * Vec::kWidth, sum[r][j]);
    }
  }
};

/// Of four pairs: see int4.hpp.
struct Codes {
  std::int16_t words;
};
static inline Words load_words(const Codes* p) { return load_words(&p->words); }
/// Pairs of factors that lie in one place.
template <class Element>
inline constexpr int pairs_of = 1;
template <>
inline constexpr int pairs_of<Codes> = 4;
/// Pairs n of what was loaded.
template <class Element>
[[gnu::always_inline]] static inline Words words_of(Words loaded, [[maybe_unused]] int n) {
  if constexpr (pairs_of<Element> == 1) return loaded;
  if constexpr (pairs_of<Element> == 4) return codes_of(loaded, n);
}

/// c[rows, cols] (+)= scales[rows] * a[rows, 2 pairs] * b[pairs / pairs_of, cols, 2] in words
template <bool kAdd, class Element>
struct WordProduct {
  const std::int16_t* a;
  std::int64_t lda;
  const Element* b;
  std::int64_t ldb;    ///< of elements, from pairs_of pairs to the next
  std::int32_t pairs;  ///< a multiple of pairs_of
  float* c;
  std::int64_t ldc;
  const float* scales;
  const std::byte* ahead;  ///< what is read next, of the same size, or null

  template <int R, int C>
  [[gnu::always_inline]] void run(std::int32_t row, std::int32_t col) const {
    constexpr int kStep = 2 * Vec::kWidth, kBytes = sizeof(Element), kPairs = pairs_of<Element>;
    const std::int16_t* left = a + row * lda;
    const Element* from = b + 2 * col;
    const std::byte* next = row == 0 && ahead != nullptr ? ahead + std::int64_t{2} * col * kBytes : nullptr;
    Ints sum[R][C];
    LLMINFER_UNROLL
    for (int r = 0; r < R; ++r) {
      LLMINFER_UNROLL
      for (int j = 0; j < C; ++j) sum[r][j] = no_products();
    }
    for (std::int32_t i = 0; i < pairs; i += kPairs, from += ldb, left += 2 * kPairs) {
      Words loaded[C];
      LLMINFER_UNROLL
      for (int j = 0; j < C; ++j) loaded[j] = load_words(from + j * kStep);
      if (next != nullptr) {
        touch<C * kStep * kBytes>(next);
        next += ldb * kBytes;
      }
      LLMINFER_UNROLL
      for (int n = 0; n < kPairs; ++n) {
        Words right[C];
        LLMINFER_UNROLL
        for (int j = 0; j < C; ++j) right[j] = words_of<Element>(loaded[j], n);
        LLMINFER_UNROLL
        for (int r = 0; r < R; ++r) {
          const Words factor = broadcast_pair(left + r * lda + 2 * n);
          LLMINFER_UNROLL
          for (int j = 0; j < C; ++j) sum[r][j] = multiply_add(sum[r][j], right[j], factor);
        }
      }
    }
    float* const to = c + row * ldc + col;
    LLMINFER_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec scale = broadcast(scales[row + r]);
      LLMINFER_UNROLL
      for (int j = 0; j < C; ++j) {
        float* const at = to + r * ldc + j * Vec::kWidth;
        const Vec product = to_floats(sum[r][j]);
        store(at, kAdd ? fma(product, scale, load(at)) : product * scale);
      }
    }
  }
};

/// The product with a page's keys or values; `next` is read after them. Words of elements that are none are made once
/// if more than one block of rows meets them.
template <bool kAdd, class Element>
static void multiply_page(std::int32_t rows, const std::int16_t* a, std::int64_t lda, const Element* b,
                          std::int32_t pairs, std::int32_t cols, float* c, std::int64_t ldc, const float* scales,
                          std::int16_t* widened, const std::byte* next) {
  const std::int64_t ldb = 2 * cols;
  constexpr int kPairs = pairs_of<Element>, kStep = 2 * Vec::kWidth;
  if constexpr (kPairs > 1 || sizeof(Element) < sizeof(std::int16_t)) {
    if (rows > kWordRows) {
      std::int16_t* to = widened;
      for (std::int32_t p = 0; p < pairs; p += kPairs, b += ldb, to += kPairs * ldb) {
        for (std::int64_t i = 0; i < ldb; i += kStep) {
          const Words loaded = load_words(b + i);
          LLMINFER_UNROLL
          for (int n = 0; n < kPairs; ++n) store_words(to + n * ldb + i, words_of<Element>(loaded, n));
        }
        for (std::int64_t i = 0; i < ldb * static_cast<std::int64_t>(sizeof(Element)); i += 64) {
          touch<64>(next + i);
        }
        next += ldb * static_cast<std::int64_t>(sizeof(Element));
      }
      return in_blocks<kWordRows, kWordCols>(
          rows, cols, WordProduct<kAdd, std::int16_t>{a, lda, widened, ldb, pairs, c, ldc, scales, nullptr});
    }
  }
  in_blocks<kWordRows, kWordCols>(rows, cols, WordProduct<kAdd, Element>{a, lda, b, ldb, pairs, c, ldc, scales, next});
}
