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
/// are too short for the hardware to find out.
template <int kBytes>
[[gnu::always_inline]] static inline void touch(const std::byte* ahead) {
  unroll<(kBytes + 63) / 64>([&](auto l) __attribute__((always_inline)) { __builtin_prefetch(ahead + l.value * 64); });
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
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<C>([&](auto j) __attribute__((always_inline)) {
        sum[r.value][j.value] = kAdd ? load(to + r.value * ldc + j.value * Vec::kWidth) : broadcast(0.0f);
      });
    });
    for (std::int32_t i = 0; i < k; ++i, from += ldb, ++left) {
      Vec right[C];
      unroll<C>([&](auto j) __attribute__((always_inline)) { right[j.value] = load(from + j.value * Vec::kWidth); });
      if (next != nullptr) {
        touch<C * Vec::kWidth * 4>(next);
        next += ldb * static_cast<std::int64_t>(sizeof(float));
      }
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const Vec factor = broadcast(left[r.value * lda]);
        unroll<C>([&](auto j) __attribute__((always_inline)) {
          sum[r.value][j.value] = fma(factor, right[j.value], sum[r.value][j.value]);
        });
      });
    }
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<C>([&](auto j) __attribute__((always_inline)) {
        store(to + r.value * ldc + j.value * Vec::kWidth, sum[r.value][j.value]);
      });
    });
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
template <class Element, int n>
static inline Words words_of(Words loaded) {
  if constexpr (pairs_of<Element> == 1) return loaded;
  if constexpr (pairs_of<Element> == 4) return codes_of<n>(loaded);
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
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<C>([&](auto j) __attribute__((always_inline)) { sum[r.value][j.value] = no_products(); });
    });
    for (std::int32_t i = 0; i < pairs; i += kPairs, from += ldb, left += 2 * kPairs) {
      Words loaded[C];
      unroll<C>([&](auto j) __attribute__((always_inline)) { loaded[j.value] = load_words(from + j.value * kStep); });
      if (next != nullptr) {
        touch<C * kStep * kBytes>(next);
        next += ldb * kBytes;
      }
      unroll<kPairs>([&](auto n) __attribute__((always_inline)) {
        Words right[C];
        unroll<C>([&](auto j)
                      __attribute__((always_inline)) { right[j.value] = words_of<Element, n.value>(loaded[j.value]); });
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          const Words factor = broadcast_pair(left + r.value * lda + 2 * n.value);
          unroll<C>([&](auto j) __attribute__((always_inline)) {
            sum[r.value][j.value] = multiply_add(sum[r.value][j.value], right[j.value], factor);
          });
        });
      });
    }
    float* const to = c + row * ldc + col;
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      const Vec scale = broadcast(scales[row + r.value]);
      unroll<C>([&](auto j) __attribute__((always_inline)) {
        float* const at = to + r.value * ldc + j.value * Vec::kWidth;
        const Vec product = to_floats(sum[r.value][j.value]);
        store(at, kAdd ? fma(product, scale, load(at)) : product * scale);
      });
    });
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
          unroll<kPairs>([&](auto n) __attribute__((always_inline)) {
            store_words(to + n.value * ldb + i, words_of<Element, n.value>(loaded));
          });
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
