// Calls of grouped weights: blocks of rows times panels, from registers or from slices. Included inside the level's
// namespace after grouped-inl.hpp.

namespace {

/// From so many rows of 8-bit activations on, weights of all shapes are unpacked into slices (docs/adr/0022).
constexpr int kHighSliceRows = 6;

/// No tile's weights are prefetched from further away.
constexpr std::int64_t kPrefetchBytes = 128 << 10;

/// Of levels of ActivationForm::bytes (dot_bytes-inl.hpp).
struct HighProducts;

/// Rows of kBytes8 times some groups of the columns' weights, through a slice, on levels of ActivationForm::words that
/// have kByteRows (byte_pairs-inl.hpp).
template <PanelShape s>
void multiply_byte_pairs(PanelReader<s> weights, int groups, const QuantizedGroup* x, std::int64_t x_stride,
                         std::int32_t rows, const Output& out, bool resume, std::uint8_t* slice);

/// The same of other rows. `high`: the low bytes of all activations are 0.
template <PanelShape s>
void multiply_slice(PanelReader<s> weights, int groups, const QuantizedGroup* x, std::int64_t x_stride,
                    std::int32_t rows, bool high, const Output& out, bool resume, std::uint8_t* slice) {
  constexpr PanelShape kShape = slice_shape(s);
  fill_slice<s>(weights, groups, slice);
  const SliceReader<kShape> reader{slice};
  if constexpr (kForm == ActivationForm::bytes) {
    if (high) return grouped_all_rows<kShape, HighProducts>(reader, groups, x, x_stride, rows, out, resume);
  }
  grouped_all_rows<kShape, Products>(reader, groups, x, x_stride, rows, out, resume);
}

/// No more rows than a tile has, which wait for memory: panel after panel, and the next one prefetched from end to end.
template <PanelShape s>
void few_rows_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                     const QuantizedGroup* x, std::int64_t x_stride, std::int32_t rows, float* out,
                     std::int64_t out_stride) {
  const std::int64_t groups = w.cols / kGroupValues, bytes = w.layout.bytes;
  for (std::int32_t p = panel_begin; p < panel_end; ++p) {
    const std::uint8_t* const panel = w.data + p * bytes;
    // If a second-level cache does not hold both, what is further down in this one.
    const Ahead ahead = bytes <= kPrefetchBytes ? Ahead{0, 0, panel + bytes, bytes / groups}
                                                : Ahead{0, 0, panel + 4096, w.layout.code_bytes};
    const std::int64_t end = (std::int64_t{p} + 1) * kPanelRows;
    const PanelReader<s, kPanelVectors> weights(w, columns_of<kPanelVectors>(panel, bytes, 1), 0, ahead);
    grouped_all_rows<s, Products>(weights, groups, x, x_stride, rows,
                                  {out, out_stride, std::int64_t{p} * kPanelRows, end < w.rows ? end : w.rows}, false);
  }
}

template <PanelShape s>
[[gnu::noinline]] void grouped_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                                      const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                                      std::int64_t out_stride, std::uint8_t* slice) {
  constexpr bool kPairs = kForm == ActivationForm::words && kByteRows != kNever && !wide_codes(s);
  const std::int64_t groups = w.cols / kGroupValues;
  const std::int32_t rows = row_end - row_begin;
  const bool high = kForm == ActivationForm::bytes && x.high_only, pairs = kPairs && x.high_only;
  const bool slices = pairs || rows >= (w.slice_rows > 0 ? w.slice_rows : high ? kHighSliceRows : slice_rows(s));
  if (!slices && rows <= Products::kRows<s>) {
    return few_rows_linear<s>(w, panel_begin, panel_end, x.groups + row_begin * x.group_stride, x.group_stride, rows,
                              out + row_begin * out_stride, out_stride);
  }
  // Unpacked in registers, codes are read again for each tile, and rows from end to end.
  const auto fit = static_cast<std::int32_t>(kRowBlockBytes / (x.group_stride * std::int64_t{sizeof(QuantizedGroup)}));
  SliceBlock block(rows);
  if (!slices) block.rows = fit < 32 ? 32 : fit, block.groups = groups;
  // Prefetch the same place of the next tile's panels if a second-level cache holds what lies between, which it always
  // does from slice to slice; else what is further down in these, of which scales are then so many that the processor
  // finds them by itself.
  const std::int64_t next = kTilePanels * w.layout.bytes;
  const Ahead ahead = next <= kPrefetchBytes ? Ahead{next, next} : Ahead{4096, 0};
  for (std::int32_t begin = 0; begin < rows; begin += block.rows) {
    const std::int32_t count = rows - begin < block.rows ? rows - begin : block.rows;
    const QuantizedGroup* const in = x.groups + (row_begin + begin) * x.group_stride;
    for (std::int64_t first = 0; first < groups; first += block.groups) {
      const std::int64_t last = groups - first < block.groups ? groups : first + block.groups;
      for (std::int32_t p = panel_begin; p < panel_end; p += kTilePanels) {
        const std::int32_t panels = panel_end - p < kTilePanels ? panel_end - p : kTilePanels;
        const std::int64_t end = (std::int64_t{p} + panels) * kPanelRows;
        const auto columns = columns_of<kTileVectors>(w.data + p * w.layout.bytes, w.layout.bytes, panels);
        const Output to{out + (row_begin + begin) * out_stride, out_stride, std::int64_t{p} * kPanelRows,
                        end < w.rows ? end : w.rows};
        if (!slices) {
          grouped_all_rows<s, Products>(PanelReader<s>(w, columns, 0, ahead), groups, in, x.group_stride, count, to,
                                        false);
          continue;
        }
        for (std::int64_t g = first; g < last; g += kSliceGroups) {
          const int some = static_cast<int>(last - g < kSliceGroups ? last - g : kSliceGroups);
          const PanelReader<s> weights(w, columns, g, {next, next});
          if constexpr (kPairs) {
            if (pairs) {
              multiply_byte_pairs<s>(weights, some, in + g, x.group_stride, count, to, g > 0, slice);
              continue;
            }
          }
          multiply_slice<s>(weights, some, in + g, x.group_stride, count, high, to, g > 0, slice);
        }
      }
    }
  }
}

}  // namespace
