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

/// dense_tile of a sparse kind: each lane takes the inputs of its own columns.
template <Dense D, int M, int V>
[[gnu::always_inline]] inline void sparse_tile(const Columns<V>& w, const PanelLayout& layout, const float* x,
                                               std::int64_t x_stride, std::int64_t cols, Floats (&acc)[M][V]) {
  for (std::int64_t i = 0; i < cols / 2; ++i) {
    const float* const quad = x + i / 2 * 4;
    Floats c[V];
    Choice choice[V];
    unroll<V>([&](auto v) __attribute__((always_inline)) {
      c[v.value] = load_dense<D>(w.panel[v.value], i * kPanelRows + w.lane[v.value]);
      choice[v.value] = load_choice(w.panel[v.value] + layout.scale + i * 4, w.lane[v.value]);
    });
    unroll<M>([&](auto m) __attribute__((always_inline)) {
      const Floats values = fill_four(quad + m.value * x_stride);
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        acc[m.value][v.value] = fma(c[v.value], choose(values, choice[v.value]), acc[m.value][v.value]);
      });
    });
  }
}

/// acc[m][v] = rows x // (M, cols, stride x_stride) times the weights.
template <Dense D, int M, int V>
[[gnu::always_inline]] inline void dense_tile(const Columns<V>& w, const PanelLayout& layout, const float* x,
                                              std::int64_t x_stride, std::int64_t cols, Floats (&acc)[M][V]) {
  unroll<M>([&](auto m) __attribute__((always_inline)) {
    unroll<V>([&](auto v) __attribute__((always_inline)) { acc[m.value][v.value] = zero_floats(); });
  });
  if constexpr (sparse(D)) return sparse_tile<D, M, V>(w, layout, x, x_stride, cols, acc);
  [[maybe_unused]] Floats scale[V];
  for (std::int64_t k = 0; k < cols; ++k, ++x) {
    if constexpr (D == Dense::fp8) {
      if (k % kGroupValues == 0) {
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          const std::int64_t at = (k / kGroupValues >> layout.scale_shift) * kPanelRows + w.lane[v.value];
          scale[v.value] = multiply(load_floats(w.panel[v.value] + layout.scale + at * 4), fill_float(256.0f));
        });
      }
    }
    Floats c[V];
    unroll<V>([&](auto v) __attribute__((always_inline)) {
      c[v.value] = load_dense<D>(w.panel[v.value], k * kPanelRows + w.lane[v.value]);
      if constexpr (D == Dense::fp8) c[v.value] = multiply(c[v.value], scale[v.value]);
    });
    unroll<M>([&](auto m) __attribute__((always_inline)) {
      const Floats value = fill_float(x[m.value * x_stride]);
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        acc[m.value][v.value] = fma(c[v.value], value, acc[m.value][v.value]);
      });
    });
  }
}

/// Vectors of a dense tile: enough independent sums to hide the latency of fma with a single row.
constexpr int kDenseVectors = 4;

template <Dense D, int M>
[[gnu::noinline]] void dense_rows(const Columns<kDenseVectors>& columns, const PanelLayout& layout, const float* x,
                                  std::int64_t x_stride, std::int64_t cols, const Output& out) {
  Floats acc[M][kDenseVectors];
  dense_tile<D, M, kDenseVectors>(columns, layout, x, x_stride, cols, acc);
  store_tile<M, kDenseVectors>(acc, out);
}

template <Dense D>
[[gnu::noinline]] void dense_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                                    const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                                    std::int64_t out_stride) {
  constexpr int kPanels = kDenseVectors * kLanes / kPanelRows;
  for (std::int32_t p = panel_begin; p < panel_end; p += kPanels) {
    const std::int32_t panels = panel_end - p < kPanels ? panel_end - p : kPanels;
    const auto columns = columns_of<kDenseVectors>(w.data + p * w.layout.bytes, w.layout.bytes, panels);
    const std::int64_t end = (std::int64_t{p} + panels) * kPanelRows;
    Output to{out + row_begin * out_stride, out_stride, std::int64_t{p} * kPanelRows, end < w.rows ? end : w.rows};
    for (std::int32_t row = row_begin; row < row_end;) {
      const std::int32_t left = row_end - row;
      const float* const in = x.f32 + row * x.stride;
      const std::int32_t taken = kLanes == 16 && left >= 4 ? 4 : left >= 2 ? 2 : 1;
      if (taken == 4) {
        if constexpr (kLanes == 16) dense_rows<D, 4>(columns, w.layout, in, x.stride, w.cols, to);
      } else if (taken == 2) {
        dense_rows<D, 2>(columns, w.layout, in, x.stride, w.cols, to);
      } else {
        dense_rows<D, 1>(columns, w.layout, in, x.stride, w.cols, to);
      }
      row += taken;
      to.data += taken * out_stride;
    }
  }
}

}  // namespace
