// Linear kernels of the SIMD levels, once for all of them: register tiles of rows x vectors, where a vector holds one
// output per lane. Codes are unpacked in registers, again for every tile of rows: unpacking a slice into scratch for
// all rows measured no faster but for 5 and 6 bits on AVX2. Included inside the level's namespace after its vector
// operations. The arithmetic is that of linear_scalar-inl.hpp, bit for bit: integer dots are exact, and each output has
// one accumulator that takes its groups in ascending order.

namespace {

template <int... I, class Body>
[[gnu::always_inline]] inline void unroll_each(std::integer_sequence<int, I...>, const Body& body) {
  (body(std::integral_constant<int, I>{}), ...);
}
/// body(0), …, body(N - 1) with constants: loops over registers must not survive as loops.
template <int N, class Body>
[[gnu::always_inline]] inline void unroll(const Body& body) {
  unroll_each(std::make_integer_sequence<int, N>{}, body);
}

/// Bits of the codes that are multiplied. 8 means signed codes on levels without VNNI, which need no correction for
/// zero.
constexpr int code_range(PanelShape shape) { return shape.table ? 8 : shape.bits; }
constexpr bool signed_dot(PanelShape shape) { return !kVnni && code_range(shape) == 8; }
constexpr int halves(PanelShape shape) { return kGroupValues / shape.group; }
constexpr int log2_of(int power) { return power <= 1 ? 0 : 1 + log2_of(power / 2); }

/// Quads in an order that takes each plane of a panel once.
constexpr int quad_at(int bits, int i) { return bits == 8 ? i : bits >= 4 ? i / 2 + i % 2 * 4 : i / 4 + i % 4 * 2; }

/// Codes of quad `Q` as the dot product wants them; `codes` points at this vector's lanes in the group.
template <PanelShape s, int Q>
[[gnu::always_inline]] inline Bytes unpack_quad(const std::uint8_t* codes, Bytes table) {
  Bytes c;
  if constexpr (s.bits == 8) {
    c = load_bytes(codes + Q * 64);
  } else if constexpr (s.bits >= 4) {
    c = and_bytes(shift_bits<-(Q & 4)>(load_bytes(codes + (Q & 3) * 64)), fill_bytes(15));
    if constexpr (s.bits == 5) c = or_masked(c, shift_bits<4 - Q>(load_bytes(codes + 256)), fill_bytes(16));
    if constexpr (s.bits == 6) {
      c = or_masked(c, shift_bits<4 - (Q & 6)>(load_bytes(codes + 256 + (Q & 1) * 64)), fill_bytes(48));
    }
  } else {
    c = and_bytes(shift_bits<-(Q & 6)>(load_bytes(codes + (Q & 1) * 64)), fill_bytes(3));
    if constexpr (s.bits == 3) c = or_masked(c, shift_bits<2 - Q>(load_bytes(codes + 128)), fill_bytes(4));
  }
  if constexpr (s.table) c = look_up(table, c);
  if constexpr (signed_dot(s)) c = xor_bytes(c, fill_bytes(128));
  return c;
}

/// An exact integer dot product in progress: one per row, vector and group of 16 or 32.
template <PanelShape s>
struct Dot {
  Ints sum;
#ifdef __AVX512VNNI__
  template <int I>
  [[gnu::always_inline]] inline void add(Bytes codes, Ints x) {
    sum = dot_bytes(sum, codes, x);
  }
#else
  Ints pairs;
  /// Takes the I-th quad of the group. So many products of codes of kRange bits fit an int16 that pairs are widened
  /// only after every kChunk of them.
  template <int I>
  [[gnu::always_inline]] inline void add(Bytes codes, Ints x) {
    constexpr int kQuads = s.group / 4;
    constexpr int kRange = code_range(s);
    constexpr int kFit = kRange <= 4 ? 8 : kRange == 5 ? 4 : kRange == 6 ? 2 : 1;
    constexpr int kChunk = kFit < kQuads ? kFit : kQuads;
    Ints product;
    if constexpr (kRange == 8) {
      product = dot_signed_pairs(codes, x);
    } else {
      product = dot_pairs(codes, x);
    }
    if constexpr (I % kChunk == 0) {
      pairs = product;
    } else {
      pairs = add_pairs(pairs, product);
    }
    if constexpr (I % kChunk == kChunk - 1) sum = add_ints(sum, widen_pairs(pairs));
  }
#endif
};

/// V vectors of weights: where their lanes lie in which panel.
template <int V>
struct Columns {
  const std::uint8_t* panel[V];
  int lane[V];  ///< first lane of the vector in its panel, a multiple of kLanes
};

/// What a tile of grouped weights needs beside its rows.
template <int V>
struct GroupedColumns {
  Columns<V> columns;
  PanelLayout layout;
  const std::uint8_t* table;
  std::int64_t groups;
  std::int64_t ahead;  ///< bytes from a code to the one to be prefetched meanwhile
};

/// Loads of the super-scales that hold for kSuperGroups groups.
template <PanelShape S>
[[gnu::always_inline]] inline Floats load_super(const std::uint8_t* base, std::int64_t group, int lane) {
  return load_halves(base + (group / kSuperGroups * kPanelRows + lane) * 2);
}
/// 16 or 8 scales or minimums; `index` counts groups of 16 or 32.
template <PanelShape S, bool Signed>
[[gnu::always_inline]] inline Floats load_scale(const std::uint8_t* base, std::int64_t index, int lane, Floats super) {
  const std::int64_t at = index * kPanelRows + lane;
  if constexpr (S.scale == PanelScale::f32) return load_floats(base + at * 4);
  if constexpr (S.scale == PanelScale::f16) return load_halves(base + at * 2);
  if constexpr (S.scale == PanelScale::two_level) {
    return multiply(super, Signed ? load_int8(base + at) : load_uint8(base + at));
  }
}

/// acc[m][v] = rows x // (M, groups, stride x_stride) times the weights of V vectors.
template <PanelShape s, int M, int V>
[[gnu::always_inline]] inline void grouped_tile(const GroupedColumns<V>& weights, const QuantizedGroup* x,
                                                std::int64_t x_stride, Floats (&acc)[M][V]) {
  const Columns<V>& w = weights.columns;
  const PanelLayout& layout = weights.layout;
  constexpr int H = halves(s);
  constexpr bool two_level = s.scale == PanelScale::two_level;
  Bytes table{};
  if constexpr (s.table) table = load_table(weights.table);
  Floats super[V]{}, super_minimum[V]{};
  unroll<M>([&](auto m) __attribute__((always_inline)) {
    unroll<V>([&](auto v) __attribute__((always_inline)) { acc[m.value][v.value] = zero_floats(); });
  });
  const std::uint8_t* codes[V];
  unroll<V>([&](auto v) __attribute__((always_inline)) { codes[v.value] = w.panel[v.value] + w.lane[v.value] * 4; });

  for (std::int64_t g = 0; g < weights.groups; ++g, ++x) {
    if constexpr (two_level) {
      if (g % kSuperGroups == 0) {
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          super[v.value] = load_super<s>(w.panel[v.value] + layout.super_scale, g, w.lane[v.value]);
          if constexpr (s.minimum) {
            super_minimum[v.value] = load_super<s>(w.panel[v.value] + layout.super_minimum, g, w.lane[v.value]);
          }
        });
      }
    }
    Dot<s> dot[M][V][H];
    unroll<M>([&](auto m) __attribute__((always_inline)) {
      const QuantizedGroup& row = x[m.value * x_stride];
      unroll<H>([&](auto h) __attribute__((always_inline)) {
        Ints start = zero_ints();
        if constexpr (s.zero != 0 && !signed_dot(s)) {
          start = shift_ints<log2_of(s.zero)>(fill_quad(H == 1 ? &row.minus_sum : &row.minus_half_sum[h.value]));
        }
        unroll<V>([&](auto v) __attribute__((always_inline)) { dot[m.value][v.value][h.value].sum = start; });
      });
    });
    unroll<8>([&](auto i) __attribute__((always_inline)) {
      constexpr int kQuad = quad_at(s.bits, i.value);
      constexpr int kHalf = H == 1 ? 0 : kQuad / 4;
      // The how manieth quad of its half this is.
      constexpr int kTurn = H == 1        ? i.value
                            : s.bits == 8 ? i.value % 4
                            : s.bits >= 4 ? i.value / 2
                                          : i.value / 4 * 2 + i.value % 2;
      Bytes c[V];
      unroll<V>([&](auto v)
                    __attribute__((always_inline)) { c[v.value] = unpack_quad<s, kQuad>(codes[v.value], table); });
      unroll<M>([&](auto m) __attribute__((always_inline)) {
        const Ints quad = fill_quad(x[m.value * x_stride].code + kQuad * 4);
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          dot[m.value][v.value][kHalf].template add<kTurn>(c[v.value], quad);
        });
      });
    });
    Floats scale[V][H], minimum[V][H];
    unroll<V>([&](auto v) __attribute__((always_inline)) {
      unroll<H>([&](auto h) __attribute__((always_inline)) {
        scale[v.value][h.value] =
            load_scale<s, true>(w.panel[v.value] + layout.scale, g * H + h.value, w.lane[v.value], super[v.value]);
        if constexpr (s.minimum) {
          minimum[v.value][h.value] = load_scale<s, false>(w.panel[v.value] + layout.minimum, g * H + h.value,
                                                           w.lane[v.value], super_minimum[v.value]);
        }
      });
      // Hardware prefetching alone keeps up with nothing but the wide stream of 8-bit codes.
      if constexpr (M > 1 || s.bits < 8) {
        constexpr int kLines = (s.bits * kLanes + kPanelRows - 1) / kPanelRows;  // this vector's part of the group
        const std::uint8_t* const line =
            codes[v.value] + weights.ahead + v.value * kLanes % kPanelRows / kLanes * (kLines * 64);
        for (int i = 0; i < kLines; ++i) __builtin_prefetch(line + i * 64);
      }
      codes[v.value] += layout.code_bytes;
    });
    unroll<M>([&](auto m) __attribute__((always_inline)) {
      const QuantizedGroup& row = x[m.value * x_stride];
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        Floats t = multiply(scale[v.value][0], to_floats(dot[m.value][v.value][0].sum));
        if constexpr (H == 2) t = fma(scale[v.value][1], to_floats(dot[m.value][v.value][1].sum), t);
        Floats& a = acc[m.value][v.value];
        a = fma(t, fill_float(row.scale), a);
        if constexpr (s.minimum) {
          unroll<H>([&](auto h) __attribute__((always_inline)) {
            a = fnma(minimum[v.value][h.value], fill_float(H == 1 ? row.scaled_sum : row.scaled_half_sum[h.value]), a);
          });
        }
      });
    });
  }
}

enum class Dense { f32, f16, bf16 };
template <Dense D>
[[gnu::always_inline]] inline Floats load_dense(const std::uint8_t* panel, std::int64_t at) {
  if constexpr (D == Dense::f32) return load_floats(panel + at * 4);
  if constexpr (D == Dense::f16) return load_halves(panel + at * 2);
  if constexpr (D == Dense::bf16) return load_bfloats(panel + at * 2);
}

/// The same for dense panels and float rows.
template <Dense D, int M, int V>
[[gnu::always_inline]] inline void dense_tile(const Columns<V>& w, const float* x, std::int64_t x_stride,
                                              std::int64_t cols, Floats (&acc)[M][V]) {
  unroll<M>([&](auto m) __attribute__((always_inline)) {
    unroll<V>([&](auto v) __attribute__((always_inline)) { acc[m.value][v.value] = zero_floats(); });
  });
  for (std::int64_t k = 0; k < cols; ++k, ++x) {
    Floats c[V];
    unroll<V>([&](auto v) __attribute__((always_inline)) {
      c[v.value] = load_dense<D>(w.panel[v.value], k * kPanelRows + w.lane[v.value]);
    });
    unroll<M>([&](auto m) __attribute__((always_inline)) {
      const Floats value = fill_float(x[m.value * x_stride]);
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        acc[m.value][v.value] = fma(c[v.value], value, acc[m.value][v.value]);
      });
    });
  }
}

/// Output features [first, …) of a call: those of V vectors that exist.
struct Output {
  float* data;  ///< of the tile's first row
  std::int64_t stride;
  std::int64_t first;  ///< feature of vector 0, lane 0
  std::int64_t end;    ///< features from here on are not to be written
};

template <int M, int V>
[[gnu::always_inline]] inline void store_tile(const Floats (&acc)[M][V], const Output& out) {
  unroll<V>([&](auto v) __attribute__((always_inline)) {
    const std::int64_t first = out.first + v.value * kLanes;
    const std::int64_t count = out.end - first;
    if (count <= 0) return;
    unroll<M>([&](auto m) __attribute__((always_inline)) {
      float* const to = out.data + m.value * out.stride + first;
      if (count >= kLanes) {
        store_floats(to, acc[m.value][v.value]);
      } else {
        store_some(to, acc[m.value][v.value], static_cast<int>(count));
      }
    });
  });
}

template <PanelShape s, int M>
[[gnu::noinline]] void grouped_rows(const GroupedColumns<kTileVectors>& w, const QuantizedGroup* x,
                                    std::int64_t x_stride, const Output& out) {
  Floats acc[M][kTileVectors];
  grouped_tile<s, M, kTileVectors>(w, x, x_stride, acc);
  store_tile<M, kTileVectors>(acc, out);
}

/// All rows [0, rows) in tiles of at most kTileRows.
template <PanelShape s>
void grouped_all_rows(const GroupedColumns<kTileVectors>& w, const QuantizedGroup* x, std::int64_t x_stride,
                      std::int32_t rows, Output out) {
  for (; rows >= kTileRows; rows -= kTileRows, x += kTileRows * x_stride, out.data += kTileRows * out.stride) {
    grouped_rows<s, kTileRows>(w, x, x_stride, out);
  }
  unroll<kTileRows>([&](auto m) __attribute__((always_inline)) {
    if constexpr (m.value > 0) {
      if (rows == m.value) grouped_rows<s, m.value>(w, x, x_stride, out);
    }
  });
}

constexpr int kTilePanels = kTileVectors * kLanes / kPanelRows;

/// Vectors of the panels from `first` on, `stride` bytes apart. Where fewer than kTilePanels are left, the last one
/// stands in for the missing ones, and its results are not stored.
[[gnu::always_inline]] inline Columns<kTileVectors> columns_of(const std::uint8_t* first, std::int64_t stride,
                                                               std::int32_t panels) {
  Columns<kTileVectors> c;
  for (int v = 0; v < kTileVectors; ++v) {
    const int panel = v * kLanes / kPanelRows;
    c.panel[v] = first + (panel < panels ? panel : panels - 1) * stride;
    c.lane[v] = v * kLanes % kPanelRows;
  }
  return c;
}

template <PanelShape s>
[[gnu::noinline]] void grouped_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                                      const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                                      std::int64_t out_stride) {
  GroupedColumns<kTileVectors> columns;
  columns.layout = w.layout;
  columns.table = w.table;
  columns.groups = w.cols / kGroupValues;
  // The same place of the next tile's panels where that is near, else further down in these.
  const std::int64_t next = kTilePanels * w.layout.bytes;
  columns.ahead = next <= 16384 ? next : 4096;
  for (std::int32_t p = panel_begin; p < panel_end; p += kTilePanels) {
    const std::int32_t panels = panel_end - p < kTilePanels ? panel_end - p : kTilePanels;
    const std::int64_t end = (std::int64_t{p} + panels) * kPanelRows;
    columns.columns = columns_of(w.data + p * w.layout.bytes, w.layout.bytes, panels);
    grouped_all_rows<s>(
        columns, x.groups + row_begin * x.group_stride, x.group_stride, row_end - row_begin,
        {out + row_begin * out_stride, out_stride, std::int64_t{p} * kPanelRows, end < w.rows ? end : w.rows});
  }
}

/// Vectors of a dense tile: enough independent sums to hide the latency of fma with a single row.
constexpr int kDenseVectors = 4;

template <Dense D, int M>
[[gnu::noinline]] void dense_rows(const Columns<kDenseVectors>& columns, const float* x, std::int64_t x_stride,
                                  std::int64_t cols, const Output& out) {
  Floats acc[M][kDenseVectors];
  dense_tile<D, M, kDenseVectors>(columns, x, x_stride, cols, acc);
  store_tile<M, kDenseVectors>(acc, out);
}

template <Dense D>
[[gnu::noinline]] void dense_linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                                    const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                                    std::int64_t out_stride) {
  constexpr int kPanels = kDenseVectors * kLanes / kPanelRows;
  for (std::int32_t p = panel_begin; p < panel_end; p += kPanels) {
    const std::int32_t panels = panel_end - p < kPanels ? panel_end - p : kPanels;
    Columns<kDenseVectors> columns;
    for (int v = 0; v < kDenseVectors; ++v) {
      const int panel = v * kLanes / kPanelRows;
      columns.panel[v] = w.data + (p + (panel < panels ? panel : panels - 1)) * w.layout.bytes;
      columns.lane[v] = v * kLanes % kPanelRows;
    }
    const std::int64_t end = (std::int64_t{p} + panels) * kPanelRows;
    Output to{out + row_begin * out_stride, out_stride, std::int64_t{p} * kPanelRows, end < w.rows ? end : w.rows};
    for (std::int32_t row = row_begin; row < row_end;) {
      const std::int32_t left = row_end - row;
      const float* const in = x.f32 + row * x.stride;
      const std::int32_t taken = kLanes == 16 && left >= 4 ? 4 : left >= 2 ? 2 : 1;
      if (taken == 4) {
        if constexpr (kLanes == 16) dense_rows<D, 4>(columns, in, x.stride, w.cols, to);
      } else if (taken == 2) {
        dense_rows<D, 2>(columns, in, x.stride, w.cols, to);
      } else {
        dense_rows<D, 1>(columns, in, x.stride, w.cols, to);
      }
      row += taken;
      to.data += taken * out_stride;
    }
  }
}

template <PanelKind kind>
void linear_of_kind(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end,
                    const ActivationView& x, std::int32_t row_begin, std::int32_t row_end, float* out,
                    std::int64_t out_stride) {
  if constexpr (kind == PanelKind::f32) {
    dense_linear<Dense::f32>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride);
  } else if constexpr (kind == PanelKind::f16) {
    dense_linear<Dense::f16>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride);
  } else if constexpr (kind == PanelKind::bf16) {
    dense_linear<Dense::bf16>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride);
  } else {
    grouped_linear<panel_shape(kind)>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride);
  }
}

void linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end, const ActivationView& x,
            std::int32_t row_begin, std::int32_t row_end, float* out, std::int64_t out_stride, void* /*scratch*/) {
  unroll<kPanelKinds>([&](auto i) __attribute__((always_inline)) {
    constexpr PanelKind kind = static_cast<PanelKind>(i.value);
    if (w.kind == kind) linear_of_kind<kind>(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride);
  });
}

void quantize_row(const float* x, std::int64_t k, QuantizedGroup* out) {
  for (; k >= kGroupValues; k -= kGroupValues, x += kGroupValues) quantize_group(x, out++);
  if (k > 0) {
    float tail[kGroupValues] = {};
    for (int i = 0; i < k; ++i) tail[i] = x[i];
    quantize_group(tail, out);
  }
}

void dot_rows(const float* w, std::int64_t k, const float* x, std::int64_t stride, std::int32_t rows, float* out,
              std::int64_t out_stride) {
  for (std::int32_t row = 0; row < rows; ++row, x += stride) out[row * out_stride] = dot_row(w, x, k);
}

}  // namespace
