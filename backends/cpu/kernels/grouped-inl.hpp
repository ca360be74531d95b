// Grouped weights times quantized rows, once for all SIMD levels: register tiles of rows x vectors, where a vector
// holds one output per lane. Few rows unpack codes in registers, for each tile again; many rows take them from a slice,
// which is unpacked once. Included inside the level's namespace after unpack-inl.hpp. The arithmetic is that of
// linear_scalar-inl.hpp, bit for bit: integer dots are exact, and each output has one accumulator that takes its groups
// in ascending order, in a register or, between slices, where it is stored.

namespace {

/// V vectors of weights: where their lanes lie in which panel.
template <int V>
struct Columns {
  const std::uint8_t* panel[V];
  int lane[V];  ///< first lane of the vector in its panel, a multiple of kLanes
};

constexpr int kTilePanels = kTileVectors * kLanes / kPanelRows;
static_assert(kTilePanels >= 1);
/// Vectors of a panel. Tiles of few rows, which wait for memory, have no more, since a thread reads one sequence of
/// lines faster than several (docs/adr/0041).
constexpr int kPanelVectors = kPanelRows / kLanes;

/// Vectors of the panels from `first` on, `stride` bytes apart. Where there are fewer panels than V vectors need, the
/// last one stands in for the missing ones, and its results are not stored.
template <int V>
[[gnu::always_inline]] inline Columns<V> columns_of(const std::uint8_t* first, std::int64_t stride,
                                                    std::int32_t panels) {
  Columns<V> c;
  for (int v = 0; v < V; ++v) {
    const int panel = v * kLanes / kPanelRows;
    c.panel[v] = first + (panel < panels ? panel : panels - 1) * stride;
    c.lane[v] = v * kLanes % kPanelRows;
  }
  return c;
}

/// Into the second-level cache. A first-level cache waits for so few lines at a time that a thread would read slower
/// than memory gives; the lines come from the second level soon enough.
[[gnu::always_inline]] inline void prefetch(const std::uint8_t* line) { __builtin_prefetch(line, 0, 2); }

/// What is prefetched meanwhile: bytes from a code to another, and from a scale or minimum to another; or, where `line`
/// is not null, what lies there, `step` bytes for each group.
struct Ahead {
  std::int64_t codes, scales;
  const std::uint8_t* line = nullptr;
  std::int64_t step = 0;
};

/// The weights of a tile, read group by group from panels: enter(), then what the group has, then leave().
template <PanelShape s, int kVectors = kTileVectors>
struct PanelReader {
  static constexpr int V = kVectors;
  const PanelLayout& layout;
  const Columns<V> columns;
  Ahead ahead;
  std::int64_t group;
  Bytes table;
  const std::uint8_t* codes[V];
  Floats super_scale[V], super_minimum[V];

  [[gnu::always_inline]] PanelReader(const PackedWeightView& w, const Columns<V>& from, std::int64_t first_group,
                                     Ahead next)
      : layout(w.layout), columns(from), ahead(next), group(first_group) {
    if constexpr (s.table) table = load_table(w.table);
    for (int v = 0; v < V; ++v) {
      codes[v] = columns.panel[v] + group * layout.code_bytes + (s.sparse ? 0 : columns.lane[v] * 4);
    }
  }

  [[gnu::always_inline]] void enter() {
    if constexpr (s.scale == PanelScale::two_level) {
      if (group % kSuperGroups != 0) return;
      LLMINFER_UNROLL
      for (int v = 0; v < V; ++v) {
        const std::uint8_t* const at = columns.panel[v] + (group / kSuperGroups * kPanelRows + columns.lane[v]) * 2;
        super_scale[v] = load_halves(at + layout.super_scale);
        if constexpr (s.minimum) super_minimum[v] = load_halves(at + layout.super_minimum);
        if (ahead.line) continue;
        prefetch(at + layout.super_scale + ahead.scales);
        if constexpr (s.minimum) prefetch(at + layout.super_minimum + ahead.scales);
      }
    }
  }
  /// columns.lane[v], which is constant once loops are unrolled.
  [[gnu::always_inline]] static constexpr int lane_of(int v) { return v * kLanes % kPanelRows; }
  [[gnu::always_inline]] Bytes code(int v, int i, int p) const {
    return step_codes<s>(codes[v], i, p, lane_of(v), table);
  }
  [[gnu::always_inline]] Floats scale(int v, int half) const {
    const std::uint8_t* const base = columns.panel[v] + layout.scale;
    const std::int64_t at = scale_at(v, half);
    if constexpr (s.scale == PanelScale::f32) return load_floats(base + at * 4);
    if constexpr (s.scale == PanelScale::f16) return load_halves(base + at * 2);
    if constexpr (s.scale == PanelScale::two_level) return multiply(super_scale[v], load_int8(base + at));
  }
  [[gnu::always_inline]] Floats minimum(int v, int half) const {
    const std::uint8_t* const base = columns.panel[v] + layout.minimum;
    const std::int64_t at = scale_at(v, half);
    if constexpr (s.scale == PanelScale::f32) {
      if (layout.float_minimums) return load_floats(base + at * 4);
      return multiply(scale(v, half), load_int8(base + at));
    }
    if constexpr (s.scale == PanelScale::f16) return load_halves(base + at * 2);
    if constexpr (s.scale == PanelScale::two_level) return multiply(super_minimum[v], load_uint8(base + at));
  }
  [[gnu::always_inline]] void leave() {
    if (ahead.line) {
      LLMINFER_UNROLL
      for (int i = 0; i < kStepLines; ++i) prefetch(ahead.line + i * 64);
      ahead.line += ahead.step;
    }
    LLMINFER_UNROLL
    for (int v = 0; v < V; ++v) {
      if (!ahead.line) prefetch_group(v);
      codes[v] += layout.code_bytes;
    }
    ++group;
  }

 private:
  static constexpr int kScaleBytes = s.scale == PanelScale::f32 ? 4 : s.scale == PanelScale::f16 ? 2 : 1;
  static constexpr int kGroupLines = s.sparse ? kPairMasks / 64 + 1 : s.bits;  ///< codes of a panel's group
  /// Bytes that a row has for the scales of a group, those for minimums, as many, left out; rounded up.
  static constexpr int kRowScales = halves(s) * kScaleBytes + (s.scale == PanelScale::two_level ? 1 : 0);
  /// Lines of a panel for each of its groups, rounded up.
  static constexpr int kStepLines = kGroupLines + (kPanelRows * kRowScales * (s.minimum ? 2 : 1) + 63) / 64;

  /// The same places of vector v's part of another group, and of its scales.
  [[gnu::always_inline]] void prefetch_group(int v) const {
    constexpr int kLines = (kGroupLines * kLanes + kPanelRows - 1) / kPanelRows;
    const int first = lane_of(v) / kLanes * kLines;
    const std::uint8_t* const line = codes[v] + ahead.codes;
    for (int i = first; i < first + kLines; ++i) prefetch(line + i * 64);
    const std::uint8_t* const scales = columns.panel[v] + scale_at(v, 0) * kScaleBytes + ahead.scales;
    prefetch(scales + layout.scale);
    if constexpr (s.minimum && s.scale != PanelScale::f32) prefetch(scales + layout.minimum);
  }

  /// Which of the panel's scales is vector v's first one.
  [[gnu::always_inline]] std::int64_t scale_at(int v, int half) const {
    const std::int64_t index = s.group < kGroupValues || s.scale == PanelScale::two_level ? group * halves(s) + half
                                                                                          : group >> layout.scale_shift;
    return index * kPanelRows + columns.lane[v];
  }
};

/// Groups of a slice, which with its scales fits a first-level cache: those of one super-scale, or with AVX512-VNNI of
/// two, since sums are loaded and stored once for each slice (docs/adr/0022).
constexpr int kSliceGroups = (kForm == ActivationForm::bytes && kLanes == kPanelRows ? 2 : 1) * kSuperGroups;

/// What the weights of all shapes are in a slice: codes without a zero point, or where they must be unsigned bytes with
/// one of 128, and float scales. So few kernels serve all shapes.
constexpr PanelShape slice_shape(PanelShape s) {
  const bool zero = kForm != ActivationForm::words && !kSignedCodes;
  return {8, s.group, zero ? 128 : 0, false, s.minimum, PanelScale::f32};
}

/// Weights from a slice that fill_slice has unpacked: per group the codes quad by quad, then scales, then minimums.
/// `s` is a slice_shape, whose quads are taken in order.
template <PanelShape s, int kParts = kCodeParts>
struct SliceReader {
  static constexpr int V = kTileVectors;
  static constexpr std::int64_t kVector = sizeof(Bytes);
  static constexpr std::int64_t kCodes = kSteps * kParts * V * kVector;
  static constexpr std::int64_t kScales = halves(s) * V * kVector;
  static constexpr std::int64_t kGroup = kCodes + kScales * (s.minimum ? 2 : 1);
  static_assert(kSliceGroups * kGroup <= kSliceBytes);

  std::uint8_t* at;

  [[gnu::always_inline]] void enter() {}
  [[gnu::always_inline]] Bytes code(int v, int i, int p) const {
    return load_bytes(at + ((i * kParts + p % kParts) * V + v) * kVector);
  }
  [[gnu::always_inline]] Floats scale(int v, int half) const {
    return load_floats(at + kCodes + (half * V + v) * kVector);
  }
  [[gnu::always_inline]] Floats minimum(int v, int half) const {
    return load_floats(at + kCodes + kScales + (half * V + v) * kVector);
  }
  [[gnu::always_inline]] void leave() { at += kGroup; }
};

/// The scales and minimums of the group that `from` is in.
template <class Slice, PanelShape s>
[[gnu::always_inline]] inline void fill_scales(const PanelReader<s>& from, std::uint8_t* to) {
  constexpr int V = kTileVectors, kScales = halves(s) * V;
  LLMINFER_UNROLL
  for (int n = 0; n < kScales; ++n) {
    std::uint8_t* const scale = to + Slice::kCodes + n * Slice::kVector;
    store_floats(reinterpret_cast<float*>(scale), from.scale(n % V, n / V));
    if constexpr (s.minimum) {
      store_floats(reinterpret_cast<float*>(scale + Slice::kScales), from.minimum(n % V, n / V));
    }
  }
}

template <PanelShape s>
[[gnu::noinline]] void fill_slice(PanelReader<s> from, int groups, std::uint8_t* to) {
  using Slice = SliceReader<slice_shape(s)>;
  constexpr int V = kTileVectors;
  for (; groups > 0; --groups, to += Slice::kGroup) {
    from.enter();
    LLMINFER_UNROLL
    for (int i = 0; i < kSteps; ++i) {
      LLMINFER_UNROLL
      for (int p = 0; p < kCodeParts; ++p) {
        LLMINFER_UNROLL
        for (int v = 0; v < V; ++v) {
          store_bytes(to + ((quad_at(s, i) * kCodeParts + p) * V + v) * Slice::kVector,
                      slice_codes<s>(from.code(v, i, p)));
        }
      }
    }
    fill_scales<Slice>(from, to);
    from.leave();
  }
}

/// What a step multiplies of activations in the level's form.
struct Products {
  static constexpr int kParts = 2;
  template <PanelShape>
  static constexpr int kRows = kTileRows;
  template <PanelShape s>
  using Sum = Dot;
  /// What a sum starts from: the sum of the activations' codes times -2^shift.
  template <int shift>
  [[gnu::always_inline]] static Ints zero(Ints minus_sum) {
    return shift_ints<shift>(minus_sum);
  }
  [[gnu::always_inline]] static Floats scale(const QuantizedGroup& x) { return fill_float(x.scale); }
  template <PanelShape s>
  [[gnu::always_inline]] static Ints activations(const QuantizedGroup& x, int i, int p) {
    return step_activations<s>(x, i, p);
  }
};

/// acc[m][v] += rows x // (M, groups, stride x_stride) times the weights of `w`, group by group.
template <PanelShape s, int M, class Way, class Reader>
[[gnu::always_inline]] inline void grouped_tile(Reader& w, std::int64_t groups, const QuantizedGroup* x,
                                                std::int64_t x_stride, Floats (&acc)[M][Reader::V]) {
  constexpr int V = Reader::V, H = halves(s), kHalfSteps = kSteps / H;
  for (; groups > 0; --groups, ++x) {
    w.enter();
    typename Way::template Sum<s> dot[M][V];
    Floats sum[M][V];
    LLMINFER_UNROLL
    for (int i = 0; i < kSteps; ++i) {
      const int half = i / kHalfSteps;
      if (i % kHalfSteps == 0) {
        LLMINFER_UNROLL
        for (int m = 0; m < M; ++m) {
          const QuantizedGroup& row = x[m * x_stride];
          Ints start = zero_ints();
          if constexpr (s.zero != 0 && !made_signed(s)) {
            start = Way::template zero<log2_of(s.zero)>(fill_quad(H == 1 ? &row.minus_sum : &row.minus_half_sum[half]));
          }
          LLMINFER_UNROLL
          for (int v = 0; v < V; ++v) dot[m][v].start(start);
        }
      }
      Bytes c[V];
      LLMINFER_UNROLL
      for (int p = 0; p < Way::kParts; ++p) {
        if (p < kCodeParts) {
          LLMINFER_UNROLL
          for (int v = 0; v < V; ++v) c[v] = w.code(v, i, p);
        }
        LLMINFER_UNROLL
        for (int m = 0; m < M; ++m) {
          const Ints part = Way::template activations<s>(x[m * x_stride], i, p);
          LLMINFER_UNROLL
          for (int v = 0; v < V; ++v) dot[m][v].add(c[v], part, i, p);
        }
      }
      if (i % kHalfSteps == kHalfSteps - 1) {
        LLMINFER_UNROLL
        for (int v = 0; v < V; ++v) {
          const Floats scale = w.scale(v, half);
          LLMINFER_UNROLL
          for (int m = 0; m < M; ++m) {
            const Floats d = to_floats(dot[m][v].result());
            sum[m][v] = half == 0 ? multiply(scale, d) : fma(scale, d, sum[m][v]);
          }
        }
      }
    }
    LLMINFER_UNROLL
    for (int m = 0; m < M; ++m) {
      const Floats scale = Way::scale(x[m * x_stride]);
      LLMINFER_UNROLL
      for (int v = 0; v < V; ++v) acc[m][v] = fma(sum[m][v], scale, acc[m][v]);
    }
    if constexpr (s.minimum) {
      LLMINFER_UNROLL
      for (int h = 0; h < H; ++h) {
        LLMINFER_UNROLL
        for (int v = 0; v < V; ++v) {
          const Floats minimum = w.minimum(v, h);
          LLMINFER_UNROLL
          for (int m = 0; m < M; ++m) {
            const QuantizedGroup& row = x[m * x_stride];
            const Floats xsum = fill_float(H == 1 ? row.scaled_sum : row.scaled_half_sum[h]);
            acc[m][v] = fnma(minimum, xsum, acc[m][v]);
          }
        }
      }
    }
    w.leave();
  }
}

/// Output features [first, …) of a call: those of V vectors that exist.
struct Output {
  float* data;  ///< of the tile's first row
  std::int64_t stride;
  std::int64_t first;  ///< feature of vector 0, lane 0
  std::int64_t end;    ///< features from here on are not to be touched

  [[gnu::always_inline]] float* at(int m, int v) const { return data + m * stride + first + v * kLanes; }
  /// The same of row `row` on.
  [[gnu::always_inline]] Output from(std::int64_t row) const { return {data + row * stride, stride, first, end}; }
  /// Lanes of vector v that exist.
  [[gnu::always_inline]] std::int64_t lanes(int v) const { return end - first - v * kLanes; }
};

template <int M, int V>
[[gnu::always_inline]] inline void store_tile(const Floats (&acc)[M][V], const Output& out) {
  LLMINFER_UNROLL
  for (int v = 0; v < V; ++v) {
    const std::int64_t lanes = out.lanes(v);
    if (lanes <= 0) continue;
    LLMINFER_UNROLL
    for (int m = 0; m < M; ++m) {
      if (lanes >= kLanes) {
        store_floats(out.at(m, v), acc[m][v]);
      } else {
        store_some(out.at(m, v), acc[m][v], static_cast<int>(lanes));
      }
    }
  }
}
template <int M, int V>
[[gnu::always_inline]] inline void load_tile(Floats (&acc)[M][V], const Output& out) {
  LLMINFER_UNROLL
  for (int v = 0; v < V; ++v) {
    const std::int64_t lanes = out.lanes(v);
    LLMINFER_UNROLL
    for (int m = 0; m < M; ++m) {
      acc[m][v] = lanes >= kLanes ? load_floats(out.at(m, v))
                  : lanes > 0     ? load_some(out.at(m, v), static_cast<int>(lanes))
                                  : zero_floats();
    }
  }
}
template <int M, int V>
[[gnu::always_inline]] inline void clear_tile(Floats (&acc)[M][V]) {
  LLMINFER_UNROLL
  for (int m = 0; m < M; ++m) {
    LLMINFER_UNROLL
    for (int v = 0; v < V; ++v) acc[m][v] = zero_floats();
  }
}

/// One tile over some groups; with `resume` the output holds the sums of the groups before.
template <PanelShape s, int M, class Way, class Reader>
[[gnu::noinline]] void grouped_rows(const Reader& from, std::int64_t groups, const QuantizedGroup* x,
                                    std::int64_t x_stride, const Output& out, bool resume) {
  Reader w = from;
  Floats acc[M][Reader::V];
  if (resume) {
    load_tile(acc, out);
  } else {
    clear_tile(acc);
  }
  grouped_tile<s, M, Way>(w, groups, x, x_stride, acc);
  store_tile(acc, out);
}

/// Vectors of a cache line, or less.
constexpr int kLineVectors = kLanes < 16 ? 16 / kLanes : 1;

/// All rows, in tiles of nearly equal height.
template <PanelShape s, class Way, class Reader>
void grouped_all_rows(const Reader& w, std::int64_t groups, const QuantizedGroup* x, std::int64_t x_stride,
                      std::int32_t rows, Output out, bool resume) {
  constexpr std::int32_t kRows = Way::template kRows<s>;
  for (std::int32_t tiles = (rows + kRows - 1) / kRows; tiles > 0; --tiles) {
    const std::int32_t height = (rows + tiles - 1) / tiles;
    if (tiles > 1) {  // the sums of the next tile lie too far apart for the processor to find them by itself
      for (std::int32_t m = height; m < 2 * height; ++m) {
        for (int v = 0; v < Reader::V; v += kLineVectors) __builtin_prefetch(out.at(m, v));
      }
    }
    unroll<kRows>([&](auto m) __attribute__((always_inline)) {
      constexpr int M = m.value + 1;
      if (height == M) grouped_rows<s, M, Way, Reader>(w, groups, x, x_stride, out, resume);
    });
    rows -= height;
    x += height * x_stride;
    out.data += height * out.stride;
  }
}

/// Activations that stay in a second-level cache while panel after panel passes by.
constexpr std::int64_t kRowBlockBytes = 512 << 10;

/// How many rows, and how many groups of theirs, are multiplied at a time through slices: enough rows to share the work
/// of filling one, and few enough for their sums to stay in that cache, too. `all_rows` is not 0.
struct SliceBlock {
  std::int32_t rows;
  std::int64_t groups;  ///< a multiple of kSliceGroups

  explicit SliceBlock(std::int32_t all_rows)
      : rows(all_rows < 256 ? all_rows : 256),
        groups(kRowBlockBytes / (rows * kSliceGroups * std::int64_t{sizeof(QuantizedGroup)}) * kSliceGroups) {}
};

}  // namespace
