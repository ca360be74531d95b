// Linear kernels on tile registers (AMX), for many rows of grouped and W8A8 weights; few_rows_kernels() do the rest.
// Included inside the level's namespace after grouped-inl.hpp, byte_result-inl.hpp, a `Tiles` and few_rows_kernels().
// The arithmetic is that of linear_scalar-inl.hpp, bit for bit; see docs/adr/0011.
//
// A tile of sums holds 16 rows times the 16 outputs of a panel. The 32 values of a group are half of what a
// multiplication can add up, since each group has scales of its own: high and low bytes of the activations are
// multiplied one after the other, stored, and taken up by vectors, while tiles go on with the next group.

namespace {

constexpr int kTokens = 16;    ///< rows of a tile
constexpr int kFewTokens = 9;  ///< fewer rows than this, or in a last tile, are left to the other kernels

/// The groups of a slice as tiles want them: codes [8 quads][kTilePanels][16 rows][4], signed; then scales and minimums
/// as in SliceReader.
template <PanelShape s>
struct TileSlice {
  static constexpr std::int64_t kQuad = kTilePanels * kPanelRows * 4;
  static constexpr std::int64_t kScales = 8 * kQuad;
  static constexpr std::int64_t kMinimums = kScales + halves(s) * kQuad;
  static constexpr std::int64_t kGroup = kMinimums + (s.minimum ? halves(s) * kQuad : 0);
  static_assert(kSliceGroups * kGroup <= kSliceBytes);
};

template <PanelShape s>
[[gnu::noinline]] void fill_tiles(PanelReader<s> from, int groups, std::uint8_t* to) {
  using Slice = TileSlice<slice_shape(s)>;
  constexpr int V = kTileVectors, kScales = halves(s) * V;
  for (; groups > 0; --groups, to += Slice::kGroup) {
    from.enter();
    LLMINFER_UNROLL
    for (int q = 0; q < 8; ++q) {
      LLMINFER_UNROLL
      for (int v = 0; v < V; ++v) {
        Bytes codes = unpack_quad<s>(from.codes[v], q, from.lane_of(v), from.table);
        if constexpr (s.zero != 0 && !made_signed(s)) codes = add_bytes(codes, fill_bytes(-s.zero));
        store_bytes(to + q * Slice::kQuad + v * sizeof(Bytes), codes);
      }
    }
    LLMINFER_UNROLL
    for (int n = 0; n < kScales; ++n) {
      std::uint8_t* const at = to + n * sizeof(Floats);
      store_floats(reinterpret_cast<float*>(at + Slice::kScales), from.scale(n % V, n / V));
      if constexpr (s.minimum) {
        store_floats(reinterpret_cast<float*>(at + Slice::kMinimums), from.minimum(n % V, n / V));
      }
    }
    from.leave();
  }
}

/// Exact sums of one group, and whether of high or of low bytes: code = 256 * high + low.
struct alignas(64) TileSums {
  std::int32_t high[2][kTokens][kPanelRows];  ///< of each half, where halves have scales of their own
  std::int32_t low[2][kTokens][kPanelRows];
};

// Tile registers: sums in two sets, so that one fills while the other is stored; a tile of codes for each.
constexpr int kHighSums = 0, kLowSums = 2, kHighBytes = 4, kLowBytes = 5, kCodes = 6;

template <PanelShape s>
constexpr TileConfig tile_config() {
  TileConfig config{};
  config.palette = 1;
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = static_cast<std::uint8_t>(t < kCodes ? kTokens : s.group / 4);
    config.row_bytes[t] = static_cast<std::uint16_t>(t < kHighBytes || t >= kCodes ? kPanelRows * 4 : s.group);
  }
  return config;
}

/// `sums` = group *x of 16 rows, stride bytes apart, times `codes` [8 quads, Slice::kQuad apart][16][4]. kHigh: low
/// bytes of activations are 0, and are not multiplied.
template <PanelShape s, int Turn, bool kHigh>
[[gnu::always_inline]] inline void multiply_group(const QuantizedGroup* x, std::int64_t stride,
                                                  const std::uint8_t* codes, TileSums& sums) {
  unroll<halves(s)>([&](auto half) __attribute__((always_inline)) {
    constexpr int h = half.value, kSet = halves(s) == 2 ? h : Turn;
    constexpr int kHighSum = kHighSums + kSet, kLow = kLowSums + kSet, kRight = kCodes + kSet;
    constexpr std::int64_t kSumRow = sizeof sums.high[0][0], kQuad = TileSlice<s>::kQuad;
    Tiles::load<kRight>(codes + h * (s.group / 4) * kQuad, kQuad);
    Tiles::load<kHighBytes>(x->codes + h * s.group, stride);
    Tiles::zero<kHighSum>();
    Tiles::add_products<kHighSum, kHighBytes, kRight>();
    if constexpr (!kHigh) {
      Tiles::load<kLowBytes>(x->codes + kGroupValues + h * s.group, stride);
      Tiles::zero<kLow>();
      Tiles::add_products<kLow, kLowBytes, kRight>();
    }
    Tiles::store<kHighSum>(sums.high[h], kSumRow);
    if constexpr (!kHigh) Tiles::store<kLow>(sums.low[h], kSumRow);
  });
}

/// acc [16 rows][one panel] += the sums of group *x of each row, with all scales. `scales` of this panel.
template <PanelShape s, bool kHigh>
[[gnu::always_inline]] inline void add_group(const TileSums& sums, const std::uint8_t* scales, const QuantizedGroup* x,
                                             std::int64_t x_stride, Floats (&acc)[kTokens][kPanelVectors]) {
  using Slice = TileSlice<s>;
  constexpr int H = halves(s);
  unroll<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
    const std::uint8_t* const at = scales + v.value * sizeof(Floats);
    Floats scale[H], minimum[H];
    unroll<H>([&](auto h) __attribute__((always_inline)) {
      scale[h.value] = load_floats(at + h.value * Slice::kQuad);
      if constexpr (s.minimum) {
        minimum[h.value] = load_floats(at + Slice::kMinimums - Slice::kScales + h.value * Slice::kQuad);
      }
    });
    unroll<kTokens>([&](auto m) __attribute__((always_inline)) {
      const QuantizedGroup& row = x[m.value * x_stride];
      Floats t, &sum = acc[m.value][v.value];
      unroll<H>([&](auto h) __attribute__((always_inline)) {
        Ints dot = shift_ints<8>(load_ints(sums.high[h.value][m.value] + v.value * kLanes));
        if constexpr (!kHigh) dot = add_ints(dot, load_ints(sums.low[h.value][m.value] + v.value * kLanes));
        const Floats d = to_floats(dot);
        t = h.value == 0 ? multiply(scale[h.value], d) : fma(scale[h.value], d, t);
      });
      sum = fma(t, fill_float(row.scale), sum);
      if constexpr (s.minimum) {
        unroll<H>([&](auto h) __attribute__((always_inline)) {
          const float xsum = H == 1 ? row.scaled_sum : row.scaled_half_sum[h.value];
          sum = fnma(minimum[h.value], fill_float(xsum), sum);
        });
      }
    });
  });
}

/// 16 rows, of which `rows` are stored, times one panel of a slice; with `resume` the output holds the sums of the
/// groups before. `slice` points at the panel's codes.
template <PanelShape s, bool kHigh>
[[gnu::noinline]] void multiply_panel(const std::uint8_t* slice, int groups, const QuantizedGroup* x,
                                      std::int64_t x_stride, int rows, const Output& out, bool resume) {
  using Slice = TileSlice<s>;
  TileSums sums[2];
  Floats acc[kTokens][kPanelVectors];
  unroll<kTokens * kPanelVectors>([&](auto i) __attribute__((always_inline)) {
    constexpr int m = i.value / kPanelVectors, v = i.value % kPanelVectors;
    const std::int64_t lanes = resume && m < rows ? out.lanes(v) : 0;
    acc[m][v] = lanes >= kLanes ? load_floats(out.at(m, v))
                : lanes > 0     ? load_some(out.at(m, v), static_cast<int>(lanes))
                                : zero_floats();
  });
  const std::int64_t stride = x_stride * std::int64_t{sizeof(QuantizedGroup)};
  multiply_group<s, 0, kHigh>(x, stride, slice, sums[0]);
  for (int g = 0; g < groups; ++g, ++x, slice += Slice::kGroup) {
    if (g + 1 < groups) {
      if (g % 2 == 0) multiply_group<s, 1, kHigh>(x + 1, stride, slice + Slice::kGroup, sums[1]);
      if (g % 2 == 1) multiply_group<s, 0, kHigh>(x + 1, stride, slice + Slice::kGroup, sums[0]);
    }
    add_group<s, kHigh>(sums[g % 2], slice + Slice::kScales, x, x_stride, acc);
  }
  unroll<kTokens * kPanelVectors>([&](auto i) __attribute__((always_inline)) {
    constexpr int m = i.value / kPanelVectors, v = i.value % kPanelVectors;
    const std::int64_t lanes = m < rows ? out.lanes(v) : 0;
    if (lanes >= kLanes) {
      store_floats(out.at(m, v), acc[m][v]);
    } else if (lanes > 0) {
      store_some(out.at(m, v), acc[m][v], static_cast<int>(lanes));
    }
  });
}

/// The groups of a last tile of fewer than 16 rows, filled up with zeros. The stride keeps rows off each other's cache
/// sets.
struct LastRows {
  static constexpr std::int64_t kStride = kSliceGroups + 1;
  QuantizedGroup groups[kTokens * kStride];

  void copy(const QuantizedGroup* x, std::int64_t x_stride, int count, int rows) {
    for (int m = 0; m < kTokens; ++m) {
      QuantizedGroup* const to = groups + m * kStride;
      if (m < rows) {
        __builtin_memcpy(to, x + m * x_stride, static_cast<std::size_t>(count) * sizeof *to);
      } else {
        __builtin_memset(to, 0, static_cast<std::size_t>(count) * sizeof *to);
      }
    }
  }
};

template <PanelShape s>
[[gnu::noinline]] void tiles_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                                    const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                                    std::int64_t out_stride, std::uint8_t* slice) {
  const std::int64_t groups = w.cols / kGroupValues;
  const SliceBlock block(row_end - row_begin);
  alignas(64) static constexpr TileConfig kConfig = tile_config<s>();
  LastRows last;
  Tiles::configure(kConfig);
  for (std::int32_t begin = row_begin; begin < row_end; begin += block.rows) {
    const std::int32_t end = row_end - begin < block.rows ? row_end : begin + block.rows;
    for (std::int64_t first = 0; first < groups; first += block.groups) {
      const std::int64_t stop = groups - first < block.groups ? groups : first + block.groups;
      for (std::int32_t p = panel_begin; p < panel_end; p += kTilePanels) {
        const std::int32_t panels = panel_end - p < kTilePanels ? panel_end - p : kTilePanels;
        const auto columns = columns_of<kTileVectors>(w.data + p * w.layout.bytes, w.layout.bytes, panels);
        for (std::int64_t g = first; g < stop; g += kSliceGroups) {
          const int some = static_cast<int>(stop - g < kSliceGroups ? stop - g : kSliceGroups);
          fill_tiles<s>(PanelReader<s>(w, columns, g, {kSliceGroups * w.layout.code_bytes, 0}), some, slice);
          for (std::int32_t row = begin; row < end; row += kTokens) {
            const int rows = end - row < kTokens ? end - row : kTokens;
            const QuantizedGroup* in = x.groups + row * x.group_stride + g;
            std::int64_t stride = x.group_stride;
            if (rows < kTokens) {
              last.copy(in, stride, some, rows);
              in = last.groups, stride = LastRows::kStride;
            }
            for (std::int32_t i = 0; i < panels; ++i) {
              const Output to{out + row * out_stride, out_stride, std::int64_t{p + i} * kPanelRows, w.rows};
              const auto multiply =
                  x.high_only ? multiply_panel<slice_shape(s), true> : multiply_panel<slice_shape(s), false>;
              multiply(slice + i * kPanelRows * 4, some, in, stride, rows, to, g > 0);
            }
          }
        }
      }
    }
  }
  Tiles::release();
}

}  // namespace

#include "byte_tiles-inl.hpp"

namespace {

void linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end, const ActivationView& x,
            std::int32_t row_begin, std::int32_t row_end, float* out, std::int64_t out_stride, void* scratch) {
  const std::int32_t last = (row_end - row_begin) % kTokens;
  const std::int32_t split = panel_shape(w.kind).bits == 0 ? row_begin : last < kFewTokens ? row_end - last : row_end;
  if (split > row_begin) {
    unroll<kPanelKinds>([&](auto i) __attribute__((always_inline)) {
      constexpr PanelKind kind = static_cast<PanelKind>(i.value);
      if constexpr (kind == PanelKind::w8a8) {
        if (w.kind == kind) byte_tiles_linear(w, panel_begin, panel_end, x, row_begin, split, out, out_stride);
      } else if constexpr (panel_shape(kind).bits != 0) {
        if (w.kind == kind) {
          tiles_linear<panel_shape(kind)>(w, panel_begin, panel_end, x, row_begin, split, out, out_stride,
                                          static_cast<std::uint8_t*>(scratch));
        }
      }
    });
  }
  if (split < row_end) {
    few_rows_kernels().linear(w, panel_begin, panel_end, x, split, row_end, out, out_stride, scratch);
  }
}

void quantize_row(const float* x, std::int64_t k, ActivationCodes codes, QuantizedGroup* out) {
  few_rows_kernels().quantize_row(x, k, codes, out);
}

void round_row(const InputRounding& how, const float* x, std::int64_t k, float* out) {
  few_rows_kernels().round_row(how, x, k, out);
}

void quantize_bytes(const InputRounding& how, const float* x, std::int64_t k, QuantizedGroup* out) {
  few_rows_kernels().quantize_bytes(how, x, k, out);
}

void quantize_bfloats(const InputRounding* how, const float* x, std::int64_t k, QuantizedGroup* out) {
  few_rows_kernels().quantize_bfloats(how, x, k, out);
}

void dot_rows(const float* w, std::int64_t k, const float* x, std::int64_t stride, std::int32_t rows, float* out,
              std::int64_t out_stride) {
  few_rows_kernels().dot_rows(w, k, x, stride, rows, out, out_stride);
}

constexpr LinearKernels kLinearKernels{.level = kLevelName,
                                       .form = ActivationForm::bytes,
                                       .byte_rows = 0,
                                       .quantize_row = quantize_row,
                                       .round_row = round_row,
                                       .quantize_bytes = quantize_bytes,
                                       .quantize_bfloats = quantize_bfloats,
                                       .linear = linear,
                                       .dot_rows = dot_rows};

}  // namespace
