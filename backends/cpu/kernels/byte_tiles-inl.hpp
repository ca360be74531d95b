// W8A8 on tile registers (AMX), for many rows: sums over all of K stay in the tiles. Included inside the level's
// namespace after linear_tiles-inl.hpp's constants, grouped-inl.hpp, byte_result-inl.hpp and a `Tiles`.

namespace {

constexpr int kTileValues = 64;  ///< of K: 16 quads of a panel
constexpr int kSumPanels = 2;    ///< panels multiplied at a time
constexpr int kRowTiles = 2;     ///< tiles of rows multiplied at a time

// Tile registers: sums [kRowTiles][kSumPanels], then rows [kRowTiles], then codes [kSumPanels].
constexpr int kRowTile = kRowTiles * kSumPanels, kCodeTile = kRowTile + kRowTiles;

/// What the tiles add up: [row][output].
struct alignas(64) ByteTileSums {
  std::int32_t sum[kRowTiles][kSumPanels][kTokens][kPanelRows];
};

/// For tiles of 16 rows, the last of which has `last_rows`.
template <int R>
TileConfig byte_tile_config(int last_rows) {
  TileConfig config{};
  config.palette = 1;
  const auto set = [&](int tile, int rows) {
    config.rows[tile] = static_cast<std::uint8_t>(rows);
    config.row_bytes[tile] = 64;
  };
  for (int r = 0; r < R; ++r) {
    const int rows = r + 1 == R ? last_rows : kTokens;
    set(kRowTile + r, rows);
    for (int p = 0; p < kSumPanels; ++p) set(r * kSumPanels + p, rows);
  }
  for (int p = 0; p < kSumPanels; ++p) set(kCodeTile + p, kTileValues / 4);
  return config;
}

/// sums = rows' codes at `x` [rows, x_stride bytes] times those of the panels. `rows` of R tiles.
template <int R>
[[gnu::noinline]] void multiply_bytes(const std::uint8_t* const (&panels)[kSumPanels], const std::uint8_t* x,
                                      std::int64_t x_stride, int rows, std::int64_t cols, ByteTileSums& sums) {
  unroll<R * kSumPanels>([&](auto t) __attribute__((always_inline)) { Tiles::zero<t.value>(); });
  const auto add = [](const std::uint8_t* in, std::int64_t stride, const std::uint8_t* first,
                      const std::uint8_t* second) __attribute__((always_inline)) {
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      Tiles::load<kRowTile + r.value>(in + r.value * kTokens * stride, stride);
    });
    Tiles::load<kCodeTile>(first, kPanelRows * 4);
    Tiles::load<kCodeTile + 1>(second, kPanelRows * 4);
    unroll<R * kSumPanels>([&](auto t) __attribute__((always_inline)) {
      Tiles::add_mixed_products<t.value, kRowTile + t.value / kSumPanels, kCodeTile + t.value % kSumPanels>();
    });
  };
  std::int64_t k = 0;
  for (; k + kTileValues <= cols; k += kTileValues) {
    add(x + k, x_stride, panels[0] + k * kPanelRows, panels[1] + k * kPanelRows);
  }
  if (k < cols) {  // 32 values, filled up with zeros
    constexpr std::int64_t kRest = kGroupValues;
    alignas(64) std::uint8_t in[R * kTokens][kTileValues] = {}, codes[kSumPanels][kTileValues * kPanelRows] = {};
    for (int r = 0; r < rows; ++r) __builtin_memcpy(in[r], x + r * x_stride + k, kRest);
    for (int p = 0; p < kSumPanels; ++p) __builtin_memcpy(codes[p], panels[p] + k * kPanelRows, kRest * kPanelRows);
    add(in[0], kTileValues, codes[0], codes[1]);
  }
  unroll<R * kSumPanels>([&](auto t) __attribute__((always_inline)) {
    Tiles::store<t.value>(sums.sum[t.value / kSumPanels][t.value % kSumPanels], kPanelRows * 4);
  });
}

/// Rows [begin, end) of the block times all panels of the call; `end - begin` is a multiple of 16 R, or they are the
/// last rows and fill R tiles but for a part of the last one.
template <int R>
void byte_tile_rows(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end, const std::uint8_t* x,
                    std::int64_t x_stride, std::int32_t begin, std::int32_t end, float* out, std::int64_t out_stride) {
  constexpr int kRows = R * kTokens;
  const int rows = end - begin < kRows ? end - begin : kRows;
  alignas(64) const TileConfig config = byte_tile_config<R>(rows - (R - 1) * kTokens);
  Tiles::configure(config);
  ByteTileSums sums;
  for (std::int32_t p = panel_begin; p < panel_end; p += kSumPanels) {
    const int panels = panel_end - p < kSumPanels ? panel_end - p : kSumPanels;
    const std::uint8_t* const first = w.data + p * w.layout.bytes;
    const std::uint8_t* const data[kSumPanels] = {first, first + (panels - 1) * w.layout.bytes};
    for (std::int32_t row = begin; row < end; row += kRows) {
      const std::uint8_t* const in = x + row * x_stride;
      multiply_bytes<R>(data, in + sizeof(ByteRow), x_stride, rows, w.cols, sums);
      for (int i = 0; i < panels; ++i) {
        unroll<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
          const ByteScales scales(data[i], v.value * kLanes, w.layout);
          const Output to{out + row * out_stride, out_stride, std::int64_t{p + i} * kPanelRows, w.rows};
          const std::int64_t lanes = to.lanes(v.value);
          for (int m = 0; m < rows && lanes > 0; ++m) {
            const auto& x_row = *reinterpret_cast<const ByteRow*>(in + m * x_stride);
            const Ints sum = load_ints(sums.sum[m / kTokens][i][m % kTokens] + v.value * kLanes);
            const Floats result = scales.result(add_ints(sum, shift_ints<7>(fill_quad(&x_row.minus_sum))), x_row);
            if (lanes >= kLanes) {
              store_floats(to.at(m, v.value), result);
            } else {
              store_some(to.at(m, v.value), result, static_cast<int>(lanes));
            }
          }
        });
      }
    }
  }
  Tiles::release();
}

void byte_tiles_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                       const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                       std::int64_t out_stride) {
  constexpr int kRows = kRowTiles * kTokens;
  const std::int64_t x_stride = x.group_stride * static_cast<std::int64_t>(sizeof(QuantizedGroup));
  const auto* const in = reinterpret_cast<const std::uint8_t*>(x.groups);
  const auto fit = static_cast<std::int32_t>(kRowBlockBytes / w.cols);
  const std::int32_t block = fit < kRows ? kRows : fit / kRows * kRows;
  const std::int32_t whole = row_begin + (row_end - row_begin) / kRows * kRows;
  for (std::int32_t begin = row_begin; begin < whole; begin += block) {
    const std::int32_t end = whole - begin < block ? whole : begin + block;
    byte_tile_rows<kRowTiles>(w, panel_begin, panel_end, in, x_stride, begin, end, out, out_stride);
  }
  const auto rest = row_end - whole > kTokens ? byte_tile_rows<2> : byte_tile_rows<1>;
  if (whole < row_end) rest(w, panel_begin, panel_end, in, x_stride, whole, row_end, out, out_stride);
}

}  // namespace
