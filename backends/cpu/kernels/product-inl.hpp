// Small matrix products of float rows with a page's keys or values. Included inside namespace isa_<level>, after
// cache_element-inl.hpp. Every output is one accumulator that takes its products in order with fused multiply-adds, so
// that its bits depend neither on the level nor on how rows and columns are cut into blocks.

template <int I>
struct Index {
  static constexpr int value = I;
};
/// body(Index<0>), …, body(Index<N - 1>): loops over registers must not survive as loops.
template <int N, int I = 0, class Body>
[[gnu::always_inline]] static inline void unroll(const Body& body) {
  if constexpr (I < N) {
    body(Index<I>{});
    unroll<N, I + 1>(body);
  }
}

/// c[R, C vectors] (+)= a[R, k] * b[k, C vectors]. With kAhead, touches the same part of the matrix at `ahead`, which
/// is read next: a page's keys and values are too short for the hardware to find out.
template <int R, int C, bool kAdd, bool kAhead, class Element>
static inline void product_block(const float* a, std::int64_t lda, const Element* b, std::int64_t ldb, std::int32_t k,
                                 float* c, std::int64_t ldc, const Element* ahead) {
  Vec sum[R][C];
  unroll<R>([&](auto r) __attribute__((always_inline)) {
    unroll<C>([&](auto j) __attribute__((always_inline)) {
      sum[r.value][j.value] = kAdd ? load(c + r.value * ldc + j.value * Vec::kWidth) : broadcast(0.0f);
    });
  });
  for (std::int32_t i = 0; i < k; ++i) {
    Vec right[C];
    unroll<C>([&](auto j) __attribute__((always_inline)) { right[j.value] = load(b + j.value * Vec::kWidth); });
    if constexpr (kAhead) {
      constexpr int kElements = 64 / static_cast<int>(sizeof(Element));
      constexpr int kLines = (C * Vec::kWidth + kElements - 1) / kElements;
      unroll<kLines>([&](auto l)
                         __attribute__((always_inline)) { __builtin_prefetch(ahead + l.value * kElements, 0, 3); });
      ahead += ldb;
    }
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      const Vec left = broadcast(a[r.value * lda + i]);
      unroll<C>([&](auto j) __attribute__((always_inline)) {
        sum[r.value][j.value] = fma(left, right[j.value], sum[r.value][j.value]);
      });
    });
    b += ldb;
  }
  unroll<R>([&](auto r) __attribute__((always_inline)) {
    unroll<C>([&](auto j) __attribute__((always_inline)) {
      store(c + r.value * ldc + j.value * Vec::kWidth, sum[r.value][j.value]);
    });
  });
}

template <int R, bool kAdd, bool kAhead, class Element>
static void product_rows(const float* a, std::int64_t lda, const Element* b, std::int64_t ldb, std::int32_t k, float* c,
                         std::int64_t ldc, std::int32_t cols, const Element* ahead) {
  std::int32_t col = 0;
  const auto columns = [&](auto vectors) __attribute__((always_inline)) {
    constexpr std::int32_t kStep = vectors.value * Vec::kWidth;
    for (; col + kStep <= cols; col += kStep) {
      product_block<R, vectors.value, kAdd, kAhead>(a, lda, b + col, ldb, k, c + col, ldc, ahead + col);
    }
  };
  columns(Index<kBlockCols>{});
  if constexpr (kBlockCols > 2) columns(Index<kBlockCols / 2>{});
  columns(Index<1>{});
}

/// c[rows, cols] (+)= a[rows, k] * b[k, cols]; cols is a multiple of 16.
template <bool kAdd, bool kAhead, class Element>
static void product(std::int32_t rows, const float* a, std::int64_t lda, const Element* b, std::int64_t ldb,
                    std::int32_t k, float* c, std::int64_t ldc, std::int32_t cols, const Element* ahead) {
  for (; rows >= kBlockRows; rows -= kBlockRows, a += kBlockRows * lda, c += kBlockRows * ldc) {
    product_rows<kBlockRows, kAdd, kAhead>(a, lda, b, ldb, k, c, ldc, cols, ahead);
  }
  unroll<kBlockRows>([&](auto r) __attribute__((always_inline)) {
    if constexpr (r.value > 0) {
      if (rows == r.value) product_rows<r.value, kAdd, kAhead>(a, lda, b, ldb, k, c, ldc, cols, ahead);
    }
  });
}

/// The same with a page's keys or values on the right, [k, cols], and the matrix of the same size that follows at
/// `ahead`. Elements are widened once if more than one block of rows meets them; that is exact.
template <bool kAdd, class Element>
static void multiply_page(std::int32_t rows, const float* a, std::int64_t lda, const Element* b, std::int64_t ldb,
                          std::int32_t k, float* c, std::int64_t ldc, std::int32_t cols, float* widened,
                          const std::byte* ahead_bytes) {
  const auto* const ahead = reinterpret_cast<const Element*>(ahead_bytes);
  if (rows <= kBlockRows) return product<kAdd, true>(rows, a, lda, b, ldb, k, c, ldc, cols, ahead);
  if constexpr (sizeof(Element) == sizeof(float)) {
    product<kAdd, false>(rows, a, lda, b, ldb, k, c, ldc, cols, b);
  } else {
    constexpr std::int64_t kLine = 64 / static_cast<int>(sizeof(Element));
    for (std::int64_t i = 0; i < k * ldb; i += 16) {
      if (i % kLine == 0) __builtin_prefetch(ahead + i, 0, 2);
      unroll<kLaneVecs>([&](auto l) __attribute__((always_inline)) {
        store(widened + i + l.value * Vec::kWidth, load(b + i + l.value * Vec::kWidth));
      });
    }
    product<kAdd, false>(rows, a, lda, static_cast<const float*>(widened), ldb, k, c, ldc, cols,
                         static_cast<const float*>(widened));
  }
}
