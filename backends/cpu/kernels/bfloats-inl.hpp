// BF16 and FP8 weights times rows of BF16 numbers, once for all SIMD levels: the sums of linear_scalar-inl.hpp, which
// take columns in the order 1, 0, 3, 2, …. Included inside the level's namespace after dense-inl.hpp.

namespace {

/// acc[m][v] += rows x // (M, cols, stride x_stride) times columns [begin, begin + cols) of the weights, those of fp8
/// without their scales; `begin` is a multiple of 32, and so x begins with a group.
template <Dense D, int M, int V>
[[gnu::always_inline]] inline void bfloat_tile(const Columns<V>& w, std::int64_t begin, std::int64_t cols,
                                               const QuantizedGroup* x, std::int64_t x_stride, Floats (&acc)[M][V]) {
  const auto add_column = [&](std::int64_t k, const Floats(&values)[M]) __attribute__((always_inline)) {
    LLMINFER_UNROLL
    for (int v = 0; v < V; ++v) {
      const Floats c = load_dense<D>(w.panel[v], k * kPanelRows + w.lane[v]);
      LLMINFER_UNROLL
      for (int m = 0; m < M; ++m) acc[m][v] = fma(c, values[m], acc[m][v]);
    }
  };
  // Where vectors are multiplied and shifted at the same two ports a group's numbers are widened at once.
  constexpr bool kWiden = kLanes == 16;
  [[maybe_unused]] alignas(64) float wide[M][kGroupValues];
  for (; cols > 0; cols -= kGroupValues, begin += kGroupValues, ++x) {
    LLMINFER_UNROLL
    for (int m = 0; kWiden && m < M; ++m) {
      LLMINFER_UNROLL
      for (int i = 0; i < kGroupValues; i += kLanes) {
        store_floats(wide[m] + i, load_bfloats(x[m * x_stride].codes + i * 2));
      }
    }
    const std::int64_t some = cols < kGroupValues ? cols : kGroupValues;
    for (std::int64_t i = 0; i < some; i += 2) {
      Floats even[M], odd[M];
      LLMINFER_UNROLL
      for (int m = 0; m < M; ++m) {
        if constexpr (kWiden) {
          even[m] = fill_float(wide[m][i]);
          odd[m] = fill_float(wide[m][i + 1]);
        } else {
          float two;
          __builtin_memcpy(&two, x[m * x_stride].codes + i * 2, sizeof two);
          const Floats pair = fill_float(two);
          even[m] = low_bfloats(pair);
          odd[m] = floats_of(and_bytes(bits_of(pair), fill_bits(static_cast<int>(0xffff0000u))));
        }
      }
      if (i + 1 < some) add_column(begin + i + 1, odd);
      add_column(begin + i, even);
    }
  }
}

/// The columns of one step of bfloat_linear.
struct Step {
  std::int64_t begin, cols;
  Columns<kDenseVectors> scales;  ///< panels that have the scales
  const PanelLayout& layout;
};

/// The output holds the sums of the columns before. `columns`: the step's, from column `first` on.
template <Dense D, bool kScaled, int M>
[[gnu::noinline]] void bfloat_rows(const Columns<kDenseVectors>& columns, std::int64_t first, const Step& step,
                                   const QuantizedGroup* x, std::int64_t x_stride, const Output& out) {
  constexpr int V = kDenseVectors;
  const auto load_before = [&](Floats(&before)[M][V]) __attribute__((always_inline)) {
    if (step.begin > 0) {
      load_tile(before, out);
    } else {
      clear_tile(before);
    }
  };
  Floats acc[M][V];
  if constexpr (!kScaled) {
    load_before(acc);
    bfloat_tile<D, M, V>(columns, first, step.cols, x, x_stride, acc);
    return store_tile(acc, out);
  }
  clear_tile(acc);
  bfloat_tile<D, M, V>(columns, first, step.cols, x, x_stride, acc);
  Floats before[M][V];
  load_before(before);
  LLMINFER_UNROLL
  for (int v = 0; v < V; ++v) {
    const Floats scale = dense_scale(step.scales, step.layout, step.begin, v);
    LLMINFER_UNROLL
    for (int m = 0; m < M; ++m) {
      acc[m][v] = fma(multiply(acc[m][v], scale), fill_float(x[m * x_stride].scale), before[m][v]);
    }
  }
  store_tile(acc, out);
}

template <Dense D, bool kScaled>
void bfloat_all_rows(const Columns<kDenseVectors>& columns, std::int64_t first, const Step& step,
                     const QuantizedGroup* x, std::int64_t x_stride, std::int32_t rows, const Output& out) {
  for_dense_rows(rows, [&](auto m, std::int32_t row) {
    bfloat_rows<D, kScaled, m.value>(columns, first, step, x + row * x_stride, x_stride, out.from(row));
  });
}

template <Dense D>
[[gnu::noinline]] void bfloat_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                                     const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                                     std::int64_t out_stride, std::uint8_t* slice) {
  constexpr bool kScaled = D == Dense::fp8;
  static_assert(kBlockValues <= kDenseSliceCols);
  const std::int32_t rows = row_end - row_begin;
  const QuantizedGroup* const in = x.groups + row_begin * x.group_stride;
  const bool slices = rows >= (w.slice_rows > 0 ? w.slice_rows : kDenseSliceRows);
  const std::int64_t step = kScaled ? block_of(w.layout) : slices ? kDenseSliceCols : w.cols;
  const auto sliced = columns_of<kDenseVectors>(slice, kDenseSliceCols * kPanelRows * 4, kDensePanels);
  for (std::int32_t p = panel_begin; p < panel_end; p += kDensePanels) {
    const auto [columns, to] = dense_tile_of(w, p, panel_end, out + row_begin * out_stride, out_stride);
    for (std::int64_t k = 0; k < w.cols; k += step) {
      const Step some{k, w.cols - k < step ? w.cols - k : step, columns, w.layout};
      const QuantizedGroup* const groups = in + k / kGroupValues;
      if (slices) {
        fill_dense_slice<D, false>(columns, w.layout, k, some.cols, slice);
        bfloat_all_rows<Dense::f32, kScaled>(sliced, 0, some, groups, x.group_stride, rows, to);
      } else {
        bfloat_all_rows<D, kScaled>(columns, k, some, groups, x.group_stride, rows, to);
      }
    }
  }
}

}  // namespace
