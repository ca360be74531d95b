// Calls of grouped weights: blocks of rows times panels, from registers or from slices. Included inside the level's
// namespace after grouped-inl.hpp.

namespace {

/// From so many rows of 8-bit activations on, weights of all shapes are unpacked into slices (docs/adr/0022).
constexpr int kHighSliceRows = 6;

/// Rows of kBytes8 times the columns' weights, on levels of ActivationForm::words that have kByteRows
/// (byte_pairs-inl.hpp).
template <PanelShape s>
void multiply_byte_pairs(const PackedWeightView& w, const Columns<kTileVectors>& columns, const QuantizedGroup* x,
                         std::int64_t x_stride, std::int32_t rows, const Output& out, std::uint8_t* slice);

template <PanelShape s>
[[gnu::noinline]] void grouped_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                                      const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                                      std::int64_t out_stride, std::uint8_t* slice) {
  const std::int64_t groups = w.cols / kGroupValues;
  const std::int32_t rows = row_end - row_begin;
  const bool high = kForm == ActivationForm::bytes && x.high_only;
  const QuantizedGroup* const first_row = x.groups + row_begin * x.group_stride;
  const auto fit = static_cast<std::int32_t>(kRowBlockBytes / (x.group_stride * std::int64_t{sizeof(QuantizedGroup)}));
  const std::int32_t block = fit < 32 ? 32 : fit;
  // Prefetch the same place of the next tile's panels where that is near, else further down in these.
  const std::int64_t next = kTilePanels * w.layout.bytes;
  const std::int64_t ahead = next <= 16384 ? next : 4096;
  for (std::int32_t begin = 0; begin < rows; begin += block) {
    const std::int32_t count = rows - begin < block ? rows - begin : block;
    const QuantizedGroup* const in = first_row + begin * x.group_stride;
    for (std::int32_t p = panel_begin; p < panel_end; p += kTilePanels) {
      const std::int32_t panels = panel_end - p < kTilePanels ? panel_end - p : kTilePanels;
      const std::int64_t end = (std::int64_t{p} + panels) * kPanelRows;
      const auto columns = columns_of<kTileVectors>(w.data + p * w.layout.bytes, w.layout.bytes, panels);
      const Output to{out + (row_begin + begin) * out_stride, out_stride, std::int64_t{p} * kPanelRows,
                      end < w.rows ? end : w.rows};
      if constexpr (kForm == ActivationForm::words && kByteRows != kNever && !wide_codes(s)) {
        if (x.high_only) {
          multiply_byte_pairs<s>(w, columns, in, x.group_stride, count, to, slice);
          continue;
        }
      }
      if (rows < (w.slice_rows > 0 ? w.slice_rows : high ? kHighSliceRows : slice_rows(s))) {
        grouped_all_rows<s, Products>(PanelReader<s>(w, columns, 0, ahead), groups, in, x.group_stride, count, to,
                                      false);
        continue;
      }
      constexpr PanelShape kShape = slice_shape(s);
      const SliceReader<kShape> reader{slice};
      for (std::int64_t g = 0; g < groups; g += kSliceGroups) {
        const int some = static_cast<int>(groups - g < kSliceGroups ? groups - g : kSliceGroups);
        fill_slice<s>(PanelReader<s>(w, columns, g, kSliceGroups * w.layout.code_bytes), some, slice);
        if constexpr (kForm == ActivationForm::bytes) {
          if (high) {
            grouped_all_rows<kShape, HighProducts>(reader, some, in + g, x.group_stride, count, to, g > 0);
            continue;
          }
        }
        grouped_all_rows<kShape, Products>(reader, some, in + g, x.group_stride, count, to, g > 0);
      }
    }
  }
}

}  // namespace
