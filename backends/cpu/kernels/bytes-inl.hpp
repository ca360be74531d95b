// Weights of 8 bits times activations of 8 bits (W8A8), once for all SIMD levels: register tiles of rows x vectors
// whose sums go over all of K in integers, and are scaled once. Included inside the level's namespace after
// grouped-inl.hpp and byte_result-inl.hpp.

namespace {

constexpr bool kWordRows = kForm == ActivationForm::words;
/// So many times kTileVectors sums fit the registers.
constexpr int kByteTileRows = kLanes == 16 ? 8 : kLanes == 8 ? (kWordRows ? 4 : 6) : kWordRows ? 2 : 4;

/// M rows, `x_stride` bytes apart, times the panels' vectors.
template <int M>
[[gnu::noinline]] void byte_rows(const Columns<kTileVectors>& columns, const PanelLayout& layout, const std::uint8_t* x,
                                 std::int64_t x_stride, std::int64_t quads, const Output& out) {
  constexpr int V = kTileVectors, kParts = kWordRows ? 2 : 1;
  const auto row = [&](int m) __attribute__((always_inline)) {
    return reinterpret_cast<const ByteRow*>(x + m * x_stride);
  };
  ByteSums sum[M][V];
  LLMINFER_UNROLL
  for (int m = 0; m < M; ++m) {
    const Ints start = kSignedCodes ? zero_ints() : shift_ints<7>(fill_quad(&row(m)->minus_sum));
    LLMINFER_UNROLL
    for (int v = 0; v < V; ++v) sum[m][v] = start_sums(start);
  }
  const std::uint8_t* codes[V];
  for (int v = 0; v < V; ++v) codes[v] = columns.panel[v] + columns.lane[v] * 4;
  const std::uint8_t* at = x + sizeof(ByteRow);
  for (std::int64_t q = 0; q < quads; ++q, at += kWordRows ? 8 : 4) {
    Bytes quad[V];
    LLMINFER_UNROLL
    for (int v = 0; v < V; ++v) {
      quad[v] = load_bytes(codes[v] + q * 64);
      if constexpr (kSignedCodes) quad[v] = xor_bytes(quad[v], fill_bytes(128));
    }
    LLMINFER_UNROLL
    for (int p = 0; p < kParts; ++p) {
      LLMINFER_UNROLL
      for (int m = 0; m < M; ++m) {
        const Ints part = fill_quad(at + m * x_stride + p * 4);
        LLMINFER_UNROLL
        for (int v = 0; v < V; ++v) sum[m][v] = add_products(sum[m][v], quad[v], part, p);
      }
    }
  }
  Floats result[M][V];
  LLMINFER_UNROLL
  for (int v = 0; v < V; ++v) {
    const ByteScales scales(columns.panel[v], columns.lane[v], layout);
    LLMINFER_UNROLL
    for (int m = 0; m < M; ++m) result[m][v] = scales.result(total_sums(sum[m][v]), *row(m));
  }
  store_tile(result, out);
}

[[gnu::noinline]] void byte_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                                   const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                                   std::int64_t out_stride) {
  const std::int64_t x_stride = x.group_stride * static_cast<std::int64_t>(sizeof(QuantizedGroup));
  const auto* const first = reinterpret_cast<const std::uint8_t*>(x.groups);
  const auto fit = static_cast<std::int32_t>(kRowBlockBytes / (w.cols * (kWordRows ? 2 : 1)));
  const std::int32_t block = fit < 32 ? 32 : fit;
  for (std::int32_t begin = row_begin; begin < row_end; begin += block) {
    const std::int32_t end = row_end - begin < block ? row_end : begin + block;
    for (std::int32_t p = panel_begin; p < panel_end; p += kTilePanels) {
      const std::int32_t panels = panel_end - p < kTilePanels ? panel_end - p : kTilePanels;
      const std::int64_t last = (std::int64_t{p} + panels) * kPanelRows;
      const auto columns = columns_of<kTileVectors>(w.data + p * w.layout.bytes, w.layout.bytes, panels);
      Output to{out + begin * out_stride, out_stride, std::int64_t{p} * kPanelRows, last < w.rows ? last : w.rows};
      std::int32_t row = begin;
      for (std::int32_t tiles = (end - begin + kByteTileRows - 1) / kByteTileRows; tiles > 0; --tiles) {
        const std::int32_t height = (end - row + tiles - 1) / tiles;
        unroll<kByteTileRows>([&](auto m) __attribute__((always_inline)) {
          constexpr int M = m.value + 1;
          if (height == M) byte_rows<M>(columns, w.layout, first + row * x_stride, x_stride, w.cols / 4, to);
        });
        row += height;
        to.data += height * out_stride;
      }
    }
  }
}

}  // namespace
