// BF16 and FP8 panels times rows of BF16 numbers, by the instruction that adds two products to a float: that of the odd
// column, then that of the even one, each rounded (linear_scalar-inl.hpp). Included inside a level's namespace.

/// Rows and vectors of 16 features of a tile: as many sums as there are registers for, less weights and a row.
constexpr int kMostRows = 6, kVectors = 4;
/// Two columns of a tile's features, a pair for each.
constexpr std::int64_t kTilePairs = kVectors * 64;
/// From so many rows on FP8 weights are unpacked into a slice; for fewer in registers, for so many of them at a time.
constexpr int kSliceRows = 9, kDirectRows = 4;
/// Rows and columns of activations that fit a second-level cache beside all else.
constexpr std::int32_t kCachedRows = 128;
constexpr std::int64_t kCachedCols = 1024;
/// Columns of FP8 that are prefetched beyond those that are multiplied.
constexpr std::int64_t kAhead = kBlockValues;
static_assert(kBlockValues / 2 * kTilePairs <= kSliceBytes);

/// Two columns of 16 features, [2][16], of BF16 numbers as pairs.
[[gnu::always_inline]] inline __m512i make_pairs(__m512i columns) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, columns);
}
/// The low and the high bytes of the BF16 numbers that E4M3's without a sign are: 4 places more, and an exponent that
/// is larger by 120, for what has no leading one in E4M3, too.
struct alignas(64) NumberBytes {
  std::uint8_t low[128] = {}, high[128] = {};
  constexpr NumberBytes() {
    constexpr int kSmall[8] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
    for (int i = 0; i < 128; ++i) {
      const int number = i < 8 ? kSmall[i] : (i << 4) + (120 << 7);
      low[i] = static_cast<std::uint8_t>(number);
      high[i] = static_cast<std::uint8_t>(number >> 8);
    }
  }
};
constexpr NumberBytes kNumberBytes;
/// Where the bytes of the pairs of columns 0 and 1 lie among 64 low bytes, and from 64 on 64 high ones, [4][16].
struct alignas(64) PairBytes {
  std::uint8_t at[64] = {};
  constexpr PairBytes() {
    for (int i = 0; i < 64; ++i) at[i] = static_cast<std::uint8_t>(i % 2 * 64 + i / 2 % 2 * 16 + i / 4);
  }
};
constexpr PairBytes kPairBytes;

/// Four columns of 16 features, [4][16], of E4M3 numbers as pairs: of the first two, and of the others.
[[gnu::always_inline]] inline void load_e4m3_pairs(const std::uint8_t* columns, __m512i& first, __m512i& second) {
  const __m512i numbers = _mm512_loadu_si512(columns);
  const auto look_up = [&](const std::uint8_t* table) __attribute__((always_inline)) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), numbers, _mm512_load_si512(table + 64));
  };
  const __m512i low = look_up(kNumberBytes.low), size = look_up(kNumberBytes.high);
  const __m512i high =
      _mm512_ternarylogic_epi32(size, numbers, _mm512_set1_epi8(-128), 0xf8);  // size | (numbers & sign)
  const __m512i at = _mm512_load_si512(kPairBytes.at);
  first = _mm512_permutex2var_epi8(low, at, high);
  second = _mm512_permutex2var_epi8(low, _mm512_or_si512(at, _mm512_set1_epi8(32)), high);
}
[[gnu::always_inline]] inline __m512 add_products(__m512 sum, __m512i weights, __m512i x) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(weights), reinterpret_cast<__m512bh>(x));
}
/// Two numbers again and again.
[[gnu::always_inline]] inline __m512i fill_pair(const std::uint8_t* x) {
  int two;
  __builtin_memcpy(&two, x, sizeof two);
  return _mm512_set1_epi32(two);
}
/// The features from the v-th vector on that exist.
[[gnu::always_inline]] inline __mmask16 lanes_of(std::int64_t features, int v) {
  const std::int64_t left = features - v * kPanelRows;
  return static_cast<__mmask16>(left >= kPanelRows ? 0xffff : left <= 0 ? 0 : (1 << left) - 1);
}

/// Weights of bf16 panels, of which load() gives kPairs pairs of columns from column k on.
struct PanelPairs {
  static constexpr int kPairs = 1;
  const std::uint8_t* panel[kVectors];

  [[gnu::always_inline]] void load(int v, std::int64_t k, __m512i (&pairs)[kPairs][kVectors]) const {
    pairs[0][v] = make_pairs(_mm512_loadu_si512(panel[v] + k * kPanelRows * 2));
  }
  /// The last column, of which there are an odd number, and zeros.
  [[gnu::always_inline]] void load_last(int v, std::int64_t k, __m512i (&pairs)[kPairs][kVectors]) const {
    const auto* const last = reinterpret_cast<const __m256i*>(panel[v] + k * kPanelRows * 2);
    pairs[0][v] = _mm512_cvtepu16_epi32(_mm256_loadu_si256(last));
  }
};
/// Weights of fp8 panels from a column on. What lies `ahead` bytes further is prefetched.
struct BytePairs {
  static constexpr int kPairs = 2;
  const std::uint8_t* panel[kVectors];
  std::int64_t ahead;

  [[gnu::always_inline]] void load(int v, std::int64_t k, __m512i (&pairs)[kPairs][kVectors]) const {
    const std::uint8_t* const columns = panel[v] + k * kPanelRows;
    __builtin_prefetch(columns + ahead, 0, 2);
    load_e4m3_pairs(columns, pairs[0][v], pairs[1][v]);
  }
};
/// The same in a slice, [column / 2][kVectors][16].
struct SlicePairs {
  static constexpr int kPairs = 1;
  const std::uint8_t* slice;

  [[gnu::always_inline]] void load(int v, std::int64_t k, __m512i (&pairs)[kPairs][kVectors]) const {
    pairs[0][v] = _mm512_load_si512(slice + k / 2 * kTilePairs + v * 64);
  }
};

/// sum[m][v] += rows x // (M, cols, stride x_stride) times the weights.
template <int M, class Weights>
[[gnu::always_inline]] inline void add_rows(const Weights& w, std::int64_t cols, const QuantizedGroup* x,
                                            std::int64_t x_stride, __m512 (&sum)[M][kVectors]) {
  constexpr int kPairs = Weights::kPairs;
  __m512i pairs[kPairs][kVectors];
  const auto add = [&](const std::uint8_t* numbers) __attribute__((always_inline)) {
    LLMINFER_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      LLMINFER_UNROLL
      for (int m = 0; m < M; ++m) {
        const __m512i two = fill_pair(numbers + m * x_stride * std::int64_t{sizeof(QuantizedGroup)} + p * 4);
        LLMINFER_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[m][v] = add_products(sum[m][v], pairs[p][v], two);
      }
    }
  };
  for (std::int64_t begin = 0; begin < cols; begin += kGroupValues, ++x) {
    const std::int64_t some = cols - begin < kGroupValues ? cols - begin : kGroupValues;
    std::int64_t i = 0;
    for (; i + 1 < some; i += 2 * kPairs) {
      LLMINFER_UNROLL
      for (int v = 0; v < kVectors; ++v) w.load(v, begin + i, pairs);
      add(x->codes + i * 2);
    }
    if constexpr (requires { w.load_last(0, i, pairs); }) {
      if (i == some) continue;
      LLMINFER_UNROLL
      for (int v = 0; v < kVectors; ++v) w.load_last(v, begin + i, pairs);
      add(x->codes + i * 2);
    }
  }
}

template <int M>
[[gnu::always_inline]] inline void clear(__m512 (&sum)[M][kVectors]) {
  LLMINFER_UNROLL
  for (int m = 0; m < M; ++m) {
    LLMINFER_UNROLL
    for (int v = 0; v < kVectors; ++v) sum[m][v] = _mm512_setzero_ps();
  }
}
template <int M>
[[gnu::always_inline]] inline void store(const __m512 (&sum)[M][kVectors], std::int64_t features, float* out,
                                         std::int64_t out_stride) {
  LLMINFER_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    LLMINFER_UNROLL
    for (int m = 0; m < M; ++m) {
      _mm512_mask_storeu_ps(out + m * out_stride + v * kPanelRows, lanes_of(features, v), sum[m][v]);
    }
  }
}

/// kVectors panels of type fp8.
struct Fp8Tile {
  const PackedWeightView& w;
  const std::uint8_t* panel[kVectors];

  [[gnu::always_inline]] std::int64_t block() const { return block_of(w.layout); }
  /// The weights from column k on; what is prefetched are columns further on, or of the next tile.
  [[gnu::always_inline]] BytePairs from(std::int64_t k) const {
    BytePairs pairs;
    LLMINFER_UNROLL
    for (int v = 0; v < kVectors; ++v) pairs.panel[v] = panel[v] + k * kPanelRows;
    pairs.ahead = kAhead * kPanelRows;
    if (k + kAhead >= w.cols) pairs.ahead += kVectors * w.layout.bytes - w.cols * kPanelRows;
    return pairs;
  }
  /// Those of vector v in the block from column k on.
  [[gnu::always_inline]] __m512 scales(int v, std::int64_t k) const {
    const std::int64_t at = (k / kGroupValues >> w.layout.scale_shift) * kPanelRows;
    return _mm512_loadu_ps(panel[v] + w.layout.scale + at * 4);
  }
};

/// The products of M rows with bf16 panels; of their features `features` are stored.
template <int M>
[[gnu::noinline]] void multiply_rows(const PanelPairs& w, std::int64_t cols, const QuantizedGroup* x,
                                     std::int64_t x_stride, std::int64_t features, float* out,
                                     std::int64_t out_stride) {
  __m512 sum[M][kVectors];
  clear(sum);
  add_rows<M>(w, cols, x, x_stride, sum);
  store(sum, features, out, out_stride);
}

/// And with fp8 panels.
template <int M>
[[gnu::noinline]] void multiply_rows(const Fp8Tile& tile, const QuantizedGroup* x, std::int64_t x_stride,
                                     std::int64_t features, float* out, std::int64_t out_stride) {
  const std::int64_t cols = tile.w.cols, block = tile.block();
  __m512 sum[M][kVectors];
  clear(sum);
  for (std::int64_t k = 0; k < cols; k += block, x += block / kGroupValues) {
    __m512 some[M][kVectors];
    clear(some);
    add_rows<M>(tile.from(k), cols - k < block ? cols - k : block, x, x_stride, some);
    LLMINFER_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512 scales = tile.scales(v, k);
      LLMINFER_UNROLL
      for (int m = 0; m < M; ++m) {
        const __m512 input_scale = _mm512_set1_ps(x[m * x_stride].scale);
        sum[m][v] = _mm512_fmadd_ps(_mm512_mul_ps(some[m][v], scales), input_scale, sum[m][v]);
      }
    }
  }
  store(sum, features, out, out_stride);
}

/// Adds the products of M rows with a block of fp8 panels, from column `k` on, or of the first block stores them.
template <int M>
[[gnu::noinline]] void add_block(const Fp8Tile& tile, const SlicePairs& slice, std::int64_t k, std::int64_t cols,
                                 const QuantizedGroup* x, std::int64_t x_stride, std::int64_t features, float* out,
                                 std::int64_t out_stride) {
  __m512 sum[M][kVectors];
  clear(sum);
  add_rows<M>(slice, cols, x, x_stride, sum);
  LLMINFER_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const __mmask16 before = k == 0 ? __mmask16{0} : lanes_of(features, v);
    const __m512 scales = tile.scales(v, k);
    LLMINFER_UNROLL
    for (int m = 0; m < M; ++m) {
      const __m512 input_scale = _mm512_set1_ps(x[m * x_stride].scale);
      const __m512 to = _mm512_maskz_loadu_ps(before, out + m * out_stride + v * kPanelRows);
      sum[m][v] = _mm512_fmadd_ps(_mm512_mul_ps(sum[m][v], scales), input_scale, to);
    }
  }
  store(sum, features, out, out_stride);
}

/// f(Index of at most kRows rows, first row) for all rows.
template <int kRows, class F>
[[gnu::always_inline]] inline void for_rows(std::int32_t begin, std::int32_t end, const F& f) {
  for (; end - begin >= kRows; begin += kRows) f(Index<kRows>{}, begin);
  unroll<kRows - 1>([&](auto less) __attribute__((always_inline)) {
    constexpr int kLeft = less.value + 1;
    if (end - begin == kLeft) f(Index<kLeft>{}, begin);
  });
}

/// The products of all rows with columns [begin, end) of a tile of fp8 panels, added to those of the columns before.
void add_columns(const Fp8Tile& tile, std::int64_t begin, std::int64_t end, const ActivationView& x,
                 std::int32_t row_begin, std::int32_t row_end, std::int64_t features, float* out,
                 std::int64_t out_stride, std::uint8_t* slice) {
  for (std::int64_t k = begin; k < end; k += tile.block()) {
    const std::int64_t cols = end - k < tile.block() ? end - k : tile.block();
    const BytePairs weights = tile.from(k);
    for (std::int64_t i = 0; i < cols; i += 4) {
      __m512i pairs[2][kVectors];
      LLMINFER_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        weights.load(v, i, pairs);
        LLMINFER_UNROLL
        for (int p = 0; p < 2; ++p) _mm512_store_si512(slice + (i / 2 + p) * kTilePairs + v * 64, pairs[p][v]);
      }
    }
    for_rows<kMostRows>(row_begin, row_end, [&](auto m, std::int32_t row) {
      add_block<m.value>(tile, {slice}, k, cols, x.groups + row * x.group_stride + k / kGroupValues, x.group_stride,
                         features, out + row * out_stride, out_stride);
    });
  }
}

/// f(tile's panels, its first feature, its features) for all tiles.
template <class F>
[[gnu::always_inline]] inline void for_tiles(const PackedWeightView& w, std::int32_t panel_begin,
                                             std::int32_t panel_end, const F& f) {
  for (std::int32_t p = panel_begin; p < panel_end; p += kVectors) {
    const std::uint8_t* panel[kVectors];
    LLMINFER_UNROLL
    for (int v = 0; v < kVectors; ++v) {  // the last one stands in for those that are missing
      panel[v] = w.data + (p + v < panel_end ? p + v : panel_end - 1) * w.layout.bytes;
    }
    const std::int64_t first = std::int64_t{p} * kPanelRows, end = std::int64_t{panel_end} * kPanelRows;
    f(panel, first, (end < w.rows ? end : w.rows) - first);
  }
}

void bfloat_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end, const ActivationView& x,
                   std::int32_t row_begin, std::int32_t row_end, float* out, std::int64_t out_stride,
                   std::uint8_t* slice) {
  const std::int64_t stride = x.group_stride;
  if (w.kind == PanelKind::bf16) {
    return for_tiles(w, panel_begin, panel_end, [&](const auto& panel, std::int64_t first, std::int64_t features) {
      const PanelPairs tile{{panel[0], panel[1], panel[2], panel[3]}};
      for_rows<kMostRows>(row_begin, row_end, [&](auto m, std::int32_t row) {
        multiply_rows<m.value>(tile, w.cols, x.groups + row * stride, stride, features, out + row * out_stride + first,
                               out_stride);
      });
    });
  }
  if (row_end - row_begin < kSliceRows) {
    return for_tiles(w, panel_begin, panel_end, [&](const auto& panel, std::int64_t first, std::int64_t features) {
      const Fp8Tile tile{w, {panel[0], panel[1], panel[2], panel[3]}};
      for_rows<kDirectRows>(row_begin, row_end, [&](auto m, std::int32_t row) {
        multiply_rows<m.value>(tile, x.groups + row * stride, stride, features, out + row * out_stride + first,
                               out_stride);
      });
    });
  }
  // Panels go by while some of the rows' columns stay in a second-level cache.
  for (std::int32_t row = row_begin; row < row_end; row += kCachedRows) {
    const std::int32_t last = row_end - row < kCachedRows ? row_end : row + kCachedRows;
    for (std::int64_t k = 0; k < w.cols; k += kCachedCols) {
      const std::int64_t end = w.cols - k < kCachedCols ? w.cols : k + kCachedCols;
      for_tiles(w, panel_begin, panel_end, [&](const auto& panel, std::int64_t first, std::int64_t features) {
        const Fp8Tile tile{w, {panel[0], panel[1], panel[2], panel[3]}};
        add_columns(tile, k, end, x, row, last, features, out + first, out_stride, slice);
      });
    }
  }
}
