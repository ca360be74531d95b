// Reading a packed panel value by value: the scalar truth of the panel layout. Included inside a namespace by files
// that need it; internal linkage and no dependency but panel.hpp, so that it may be part of an ISA file.

static inline float panel_half(const std::uint8_t* p) {
  const std::uint32_t h = p[0] | p[1] << 8;
  const std::uint32_t sign = (h & 0x8000u) << 16;
  const std::uint32_t magnitude = h & 0x7fffu;
  if (magnitude < 0x400u) {
    const float f = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -f : f;
  }
  const std::uint32_t bits =
      magnitude >= 0x7c00u ? 0x7f800000u | (magnitude & 0x3ffu) << 13 : (magnitude << 13) + 0x38000000u;
  return __builtin_bit_cast(float, sign | bits);
}

static inline float panel_float(const std::uint8_t* p) {
  float f;
  __builtin_memcpy(&f, p, sizeof f);
  return f;
}

/// A finite E4M3 number divided by 2^8: the half of the same bits, whose exponent's bias is larger by that.
static inline float panel_e4m3(std::uint8_t u) {
  const unsigned half = (u & 0x80u) << 8 | (u & 0x7fu) << 7;
  const std::uint8_t bytes[2] = {static_cast<std::uint8_t>(half), static_cast<std::uint8_t>(half >> 8)};
  return panel_half(bytes);
}

/// The scale of an fp8 panel's row `lane` in column `k`.
static inline float panel_fp8_scale(const PackedWeightView& w, const std::uint8_t* panel, std::int64_t k, int lane) {
  const std::int64_t at = (k / kGroupValues >> w.layout.scale_shift) * kPanelRows + lane;
  return panel_float(panel + w.layout.scale + at * 4);
}

/// The 32 codes of row `lane` in group `group`; with a table, table[code] + 128.
static inline void panel_codes(const PackedWeightView& w, const PanelShape& shape, const std::uint8_t* panel,
                               std::int64_t group, int lane, std::uint8_t* out) {
  if (shape.sparse) {
    const std::uint8_t* const codes = panel + group * w.layout.code_bytes;
    for (int quad = 0; quad < 8; ++quad) {
      const std::uint8_t* code = codes + quad * 32 + pair_at(lane);
      const int mask = codes[kPairMasks + quad * 8 + lane / 2] >> (lane % 2 * 4);
      for (int j = 0; j < 4; ++j) {
        out[quad * 4 + j] = mask >> j & 1 ? *code++ : static_cast<std::uint8_t>(shape.zero);
      }
    }
    return;
  }
  const std::uint8_t* row = panel + group * w.layout.code_bytes + lane * 4;
  for (int quad = 0; quad < 8; ++quad) {
    for (int j = 0; j < 4; ++j) {
      const std::uint8_t* p = row + j;
      int code = 0;
      if (shape.bits == 8) {
        code = p[quad * 64];
      } else if (shape.bits >= 4) {
        code = p[(quad & 3) * 64] >> (quad & 4) & 15;
        if (shape.bits == 5) code |= (p[256] >> quad & 1) << 4;
        if (shape.bits == 6) code |= (p[256 + (quad & 1) * 64] >> (quad & 6) & 3) << 4;
      } else {
        code = p[(quad & 1) * 64] >> (quad & 6) & 3;
        if (shape.bits == 3) code |= (p[128] >> quad & 1) << 2;
      }
      out[quad * 4 + j] = shape.table ? w.table[code] : static_cast<std::uint8_t>(code);
    }
  }
}

/// Scale and minimum (0 where the kind has none) of row `lane`; `index` counts groups of 16 or 32 as the shape has
/// them.
static inline void panel_scale(const PackedWeightView& w, const PanelShape& shape, const std::uint8_t* panel,
                               std::int64_t index, int lane, float* scale, float* minimum) {
  const std::uint8_t* s = panel + w.layout.scale;
  const std::uint8_t* m = panel + w.layout.minimum;
  const std::int64_t at = (index >> w.layout.scale_shift) * kPanelRows + lane;
  *minimum = 0.0f;
  if (shape.scale == PanelScale::f32) {
    *scale = panel_float(s + at * 4);
    if (shape.minimum) {
      *minimum = w.layout.float_minimums ? panel_float(m + at * 4)
                                         : *scale * static_cast<float>(static_cast<std::int8_t>(m[at]));
    }
  } else if (shape.scale == PanelScale::f16) {
    *scale = panel_half(s + at * 2);
    if (shape.minimum) *minimum = panel_half(m + at * 2);
  } else {
    const std::int64_t super = (index * shape.group / (kGroupValues * kSuperGroups) * kPanelRows + lane) * 2;
    *scale = panel_half(panel + w.layout.super_scale + super) * static_cast<float>(static_cast<std::int8_t>(s[at]));
    if (shape.minimum) *minimum = panel_half(panel + w.layout.super_minimum + super) * static_cast<float>(m[at]);
  }
}

static inline float panel_bfloat(const std::uint8_t* p) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(p[0] | p[1] << 8) << 16);
}

/// Value `entry` of row `lane` in the four columns from `quad` * 4 on of a sparse panel, and which of them has it.
static inline float panel_sparse(const PackedWeightView& w, const std::uint8_t* panel, std::int64_t quad, int entry,
                                 int lane, int* column) {
  const std::int64_t at = quad * 2 + entry;
  std::uint32_t choices;
  __builtin_memcpy(&choices, panel + w.layout.scale + at * 4, sizeof choices);
  *column = static_cast<int>(choices >> 2 * lane & 3);
  const std::uint8_t* const value = panel + (at * kPanelRows + lane) * 2;
  return w.kind == PanelKind::f16_sparse ? panel_half(value) : panel_bfloat(value);
}

/// Element (k, lane) of a dense or sparse panel.
static inline float panel_dense(const PackedWeightView& w, const std::uint8_t* panel, std::int64_t k, int lane) {
  if (w.kind == PanelKind::f16_sparse || w.kind == PanelKind::bf16_sparse) {
    for (int entry = 0; entry < 2; ++entry) {
      int column = 0;
      const float value = panel_sparse(w, panel, k / 4, entry, lane, &column);
      if (column == k % 4 && value != 0.0f) return value;
    }
    return 0.0f;
  }
  const std::int64_t at = k * kPanelRows + lane;
  if (w.kind == PanelKind::f32) return panel_float(panel + at * 4);
  if (w.kind == PanelKind::f16) return panel_half(panel + at * 2);
  if (w.kind == PanelKind::fp8) return panel_e4m3(panel[at]) * (panel_fp8_scale(w, panel, k, lane) * 256.0f);
  return panel_bfloat(panel + at * 2);
}
