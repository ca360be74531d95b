// Dense and sparse weights times float rows, once for all SIMD levels: register tiles of rows x vectors. Included
// inside the level's namespace after grouped-inl.hpp.

namespace {

enum class Dense { f32, f16, bf16, fp8, f16_sparse, bf16_sparse };
constexpr bool sparse(Dense d) { return d == Dense::f16_sparse || d == Dense::bf16_sparse; }

template <Dense D>
[[gnu::always_inline]] inline Floats load_dense(const std::uint8_t* panel, std::int64_t at) {
  if constexpr (D == Dense::f32) return load_floats(panel + at * 4);
  if constexpr (D == Dense::f16 || D == Dense::f16_sparse) return load_halves(panel + at * 2);
  if constexpr (D == Dense::bf16 || D == Dense::bf16_sparse) return load_bfloats(panel + at * 2);
  if constexpr (D == Dense::fp8) return load_e4m3(panel + at);
}

/// dense_tile for sparse kinds: each lane takes the inputs of its own columns.
template <Dense D, int M, int V>
[[gnu::always_inline]] inline void sparse_tile(const Columns<V>& w, const PanelLayout& layout, const float* x,
                                               std::int64_t x_stride, std::int64_t cols, Floats (&acc)[M][V]) {
  for (std::int64_t i = 0; i < cols / 2; ++i) {
    const float* const quad = x + i / 2 * 4;
    Floats c[V];
    Choice choice[V];
    LLMINFER_UNROLL
    for (int v = 0; v < V; ++v) {
      c[v] = load_dense<D>(w.panel[v], i * kPanelRows + w.lane[v]);
      choice[v] = load_choice(w.panel[v] + layout.scale + i * 4, w.lane[v]);
    }
    LLMINFER_UNROLL
    for (int m = 0; m < M; ++m) {
      const Floats values = fill_four(quad + m * x_stride);
      LLMINFER_UNROLL
      for (int v = 0; v < V; ++v) acc[m][v] = fma(c[v], choose(values, choice[v]), acc[m][v]);
    }
  }
}

/// Of the fp8 weights of vector v in column k, which load_dense gives divided by 2^8.
template <int V>
[[gnu::always_inline]] inline Floats dense_scale(const Columns<V>& w, const PanelLayout& layout, std::int64_t k,
                                                 int v) {
  const std::int64_t at = (k / kGroupValues >> layout.scale_shift) * kPanelRows + w.lane[v];
  return multiply(load_floats(w.panel[v] + layout.scale + at * 4), fill_float(256.0f));
}

/// acc[m][v] += rows x // (M, cols, stride x_stride) times the weights.
template <Dense D, int M, int V>
[[gnu::always_inline]] inline void dense_tile(const Columns<V>& w, const PanelLayout& layout, const float* x,
                                              std::int64_t x_stride, std::int64_t cols, Floats (&acc)[M][V]) {
  if constexpr (sparse(D)) return sparse_tile<D, M, V>(w, layout, x, x_stride, cols, acc);
  [[maybe_unused]] Floats scale[V];
  for (std::int64_t k = 0; k < cols; ++k, ++x) {
    if constexpr (D == Dense::fp8) {
      if (k % kGroupValues == 0) {
        LLMINFER_UNROLL
        for (int v = 0; v < V; ++v) scale[v] = dense_scale(w, layout, k, v);
      }
    }
    Floats c[V];
    LLMINFER_UNROLL
    for (int v = 0; v < V; ++v) {
      c[v] = load_dense<D>(w.panel[v], k * kPanelRows + w.lane[v]);
      if constexpr (D == Dense::fp8) c[v] = multiply(c[v], scale[v]);
    }
    LLMINFER_UNROLL
    for (int m = 0; m < M; ++m) {
      const Floats value = fill_float(x[m * x_stride]);
      LLMINFER_UNROLL
      for (int v = 0; v < V; ++v) acc[m][v] = fma(c[v], value, acc[m][v]);
    }
  }
}

/// Vectors of a dense tile: enough independent sums to hide the latency of fma with a single row.
constexpr int kDenseVectors = 4;

/// Rows of a dense tile.
constexpr int kDenseRows = kLanes == 16 ? 4 : 2;
/// From so many rows on, weights that a load alone does not turn into floats are turned once, in slices.
constexpr int kDenseSliceRows = 4 * kDenseRows;
constexpr int kDensePanels = kDenseVectors * kLanes / kPanelRows;
constexpr std::int64_t kDenseSliceBytes = kLanes == 16 ? 32768 : 20480;
/// Columns of a slice, which is [kDensePanels][kDenseSliceCols][16 rows] floats: panels of type f32.
constexpr std::int64_t kDenseSliceCols =
    kDenseSliceBytes / (kDensePanels * kPanelRows * 4) / kGroupValues * kGroupValues;
static_assert(kDenseSliceCols > 0 && kDenseSliceBytes <= kSliceBytes);

/// With `resume` the output holds the sums of the columns before.
template <Dense D, int M>
[[gnu::noinline]] void dense_rows(const Columns<kDenseVectors>& columns, const PanelLayout& layout, const float* x,
                                  std::int64_t x_stride, std::int64_t cols, const Output& out, bool resume) {
  Floats acc[M][kDenseVectors];
  if (resume) {
    load_tile(acc, out);
  } else {
    clear_tile(acc);
  }
  dense_tile<D, M, kDenseVectors>(columns, layout, x, x_stride, cols, acc);
  store_tile(acc, out);
}

/// f(Index of a tile's rows, first row) for all rows.
template <class F>
[[gnu::always_inline]] inline void for_dense_rows(std::int32_t rows, const F& f) {
  std::int32_t row = 0;
  for (; row + kDenseRows <= rows; row += kDenseRows) f(Index<kDenseRows>{}, row);
  if (row + 2 <= rows) f(Index<2>{}, row), row += 2;
  if (row < rows) f(Index<1>{}, row);
}

template <Dense D>
void dense_all_rows(const Columns<kDenseVectors>& columns, const PanelLayout& layout, const float* x,
                    std::int64_t x_stride, std::int64_t cols, std::int32_t rows, const Output& out, bool resume) {
  for_dense_rows(rows, [&](auto m, std::int32_t row) {
    dense_rows<D, m.value>(columns, layout, x + row * x_stride, x_stride, cols, out.from(row), resume);
  });
}

/// Columns [begin, begin + cols) of the weights as floats; `begin` is a multiple of 32. Of fp8 those that load_dense
/// gives, or `kScaled`.
template <Dense D, bool kScaled = D == Dense::fp8>
[[gnu::noinline]] void fill_dense_slice(const Columns<kDenseVectors>& w, const PanelLayout& layout, std::int64_t begin,
                                        std::int64_t cols, std::uint8_t* to) {
  unroll<kDenseVectors>([&](auto v) __attribute__((always_inline)) {
    auto* out = reinterpret_cast<float*>(to) + v.value * kLanes / kPanelRows * kDenseSliceCols * kPanelRows +
                v.value * kLanes % kPanelRows;
    [[maybe_unused]] Floats scale = zero_floats();
    for (std::int64_t k = begin; k < begin + cols; ++k, out += kPanelRows) {
      if constexpr (kScaled) {
        if (k % kGroupValues == 0) scale = dense_scale(w, layout, k, v.value);
      }
      Floats c = load_dense<D>(w.panel[v.value], k * kPanelRows + w.lane[v.value]);
      if constexpr (kScaled) c = multiply(c, scale);
      store_floats(out, c);
    }
  });
}

/// kDensePanels panels, or those that are left before panel_end, and where their outputs go.
struct DenseTile {
  Columns<kDenseVectors> columns;
  Output out;
};
[[gnu::always_inline]] inline DenseTile dense_tile_of(const PackedWeightView& w, std::int32_t first,
                                                      std::int32_t panel_end, float* out, std::int64_t out_stride) {
  const std::int32_t panels = panel_end - first < kDensePanels ? panel_end - first : kDensePanels;
  const std::int64_t end = (std::int64_t{first} + panels) * kPanelRows;
  return {columns_of<kDenseVectors>(w.data + first * w.layout.bytes, w.layout.bytes, panels),
          {out, out_stride, std::int64_t{first} * kPanelRows, end < w.rows ? end : w.rows}};
}

template <Dense D>
[[gnu::noinline]] void dense_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                                    const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                                    std::int64_t out_stride, std::uint8_t* slice) {
  const std::int32_t rows = row_end - row_begin;
  const float* const in = x.f32 + row_begin * x.stride;
  constexpr bool kSlices = D != Dense::f32 && !sparse(D);
  const bool slices = kSlices && rows >= (w.slice_rows > 0 ? w.slice_rows : kDenseSliceRows);
  const std::int64_t step = slices ? kDenseSliceCols : w.cols;
  const auto sliced = columns_of<kDenseVectors>(slice, kDenseSliceCols * kPanelRows * 4, kDensePanels);
  // Panels go by while the rows' part of a slice stays in a second-level cache.
  for (std::int64_t k = 0; k < w.cols; k += step) {
    for (std::int32_t p = panel_begin; p < panel_end; p += kDensePanels) {
      const auto [columns, to] = dense_tile_of(w, p, panel_end, out + row_begin * out_stride, out_stride);
      if (!slices) {
        dense_all_rows<D>(columns, w.layout, in, x.stride, w.cols, rows, to, false);
        continue;
      }
      if constexpr (kSlices) {
        const std::int64_t some = w.cols - k < step ? w.cols - k : step;
        fill_dense_slice<D>(columns, w.layout, k, some, slice);
        dense_all_rows<Dense::f32>(sliced, w.layout, in + k, x.stride, some, rows, to, k > 0);
      }
    }
  }
}

}  // namespace
