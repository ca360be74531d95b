// BF16 panels times rows of BF16 numbers, by the instruction that adds two products to a float: that of the odd column,
// then that of the even one, each rounded (linear_scalar-inl.hpp). Included inside a level's namespace.

/// Rows and vectors of 16 features of a tile: as many sums as there are registers for, less weights and a row.
constexpr int kMostRows = 6, kVectors = 4;

/// Two columns of 16 features, [2][16], as pairs.
[[gnu::always_inline]] inline __m512i load_pairs(const std::uint8_t* panel) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, _mm512_loadu_si512(panel));
}
/// The last column, of which there are an odd number, and zeros.
[[gnu::always_inline]] inline __m512i load_last(const std::uint8_t* panel) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel)));
}
/// The high halves of two floats again and again.
[[gnu::always_inline]] inline __m512i fill_pair(const float* x) {
  long long two;
  __builtin_memcpy(&two, x, sizeof two);
  const __m512i high = _mm512_set4_epi32(0x07060302, 0x07060302, 0x07060302, 0x07060302);
  return _mm512_shuffle_epi8(_mm512_set1_epi64(two), high);
}
[[gnu::always_inline]] inline __m512i fill_last(float x) {
  return _mm512_set1_epi32(static_cast<int>(__builtin_bit_cast(std::uint32_t, x) >> 16));
}
[[gnu::always_inline]] inline __m512 add_products(__m512 sum, __m512i weights, __m512i x) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(weights), reinterpret_cast<__m512bh>(x));
}

/// M rows x // (M, cols, stride x_stride) times the features of kVectors panels; of those that are `features` are
/// stored.
template <int M>
[[gnu::noinline]] void multiply_rows(const std::uint8_t* const (&panel)[kVectors], const float* x,
                                     std::int64_t x_stride, std::int64_t cols, std::int64_t features, float* out,
                                     std::int64_t out_stride) {
  __m512 sum[M][kVectors];
  for (auto& row : sum) {
    for (__m512& s : row) s = _mm512_setzero_ps();
  }
  __m512i weights[kVectors];
  std::int64_t k = 0;
  for (; k + 1 < cols; k += 2) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weights[v] = load_pairs(panel[v] + k * kPanelRows * 2);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const __m512i pair = fill_pair(x + m * x_stride + k);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[m][v] = add_products(sum[m][v], weights[v], pair);
    }
  }
  if (k < cols) {
    for (int v = 0; v < kVectors; ++v) weights[v] = load_last(panel[v] + k * kPanelRows * 2);
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < kVectors; ++v) {
        sum[m][v] = add_products(sum[m][v], weights[v], fill_last(x[m * x_stride + k]));
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    const std::int64_t left = features - v * kPanelRows;
    if (left <= 0) continue;
    const auto mask = static_cast<__mmask16>(left >= kPanelRows ? 0xffff : (1 << left) - 1);
    for (int m = 0; m < M; ++m) _mm512_mask_storeu_ps(out + m * out_stride + v * kPanelRows, mask, sum[m][v]);
  }
}

void bfloat_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end, const ActivationView& x,
                   std::int32_t row_begin, std::int32_t row_end, float* out, std::int64_t out_stride) {
  using Multiply = decltype(&multiply_rows<1>);
  constexpr Multiply kMultiply[kMostRows] = {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                             multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
  for (std::int32_t p = panel_begin; p < panel_end; p += kVectors) {
    const std::uint8_t* panel[kVectors];
    for (int v = 0; v < kVectors; ++v) {  // the last one stands in for those that are missing
      panel[v] = w.data + (p + v < panel_end ? p + v : panel_end - 1) * w.layout.bytes;
    }
    const std::int64_t first = std::int64_t{p} * kPanelRows, end = std::int64_t{panel_end} * kPanelRows;
    const std::int64_t features = (end < w.rows ? end : w.rows) - first;
    for (std::int32_t row = row_begin; row < row_end; row += kMostRows) {
      const std::int32_t rows = row_end - row < kMostRows ? row_end - row : kMostRows;
      kMultiply[rows - 1](panel, x.f32 + row * x.stride, x.stride, w.cols, features, out + row * out_stride + first,
                          out_stride);
    }
  }
}
