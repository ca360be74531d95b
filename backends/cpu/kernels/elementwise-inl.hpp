// Norm, rotary embedding, gated activations and sums on rows of floats. Included inside namespace isa_<level>, after
// math-inl.hpp. A tail shorter than a Vec goes through a padded copy, so that it takes the same operations.

static inline Vec load_part(const float* p, int n) {
  float lanes[Vec::kWidth] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
static inline void store_part(float* p, Vec a, int n) {
  float lanes[Vec::kWidth];
  store(lanes, a);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

/// out[i] = f(a[i], b[i])
template <class F>
static inline void map2(const float* a, const float* b, std::int64_t n, float* out, F f) {
  std::int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) store(out + i, f(load(a + i), load(b + i)));
  const int rest = static_cast<int>(n - i);
  if (rest) store_part(out + i, f(load_part(a + i, rest), load_part(b + i, rest)), rest);
}

static void rms_norm(const float* in, const float* weight, float epsilon, std::int64_t n, float* out) {
  constexpr int kSums = 4, kStep = kSums * 16;
  Vec sums[kSums][kLaneVecs];
  for (auto& sum : sums) {
    for (Vec& lanes : sum) lanes = broadcast(0.0f);
  }
  std::int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    for (int j = 0; j < kSums; ++j) {
      for (int l = 0; l < kLaneVecs; ++l) {
        const Vec x = load(in + i + j * 16 + l * Vec::kWidth);
        sums[j][l] = fma(x, x, sums[j][l]);
      }
    }
  }
  for (int l = 0; i < n; i += Vec::kWidth, l = (l + 1) % kLaneVecs) {
    const Vec x = i + Vec::kWidth <= n ? load(in + i) : load_part(in + i, static_cast<int>(n - i));
    sums[0][l] = fma(x, x, sums[0][l]);
  }
  for (int l = 0; l < kLaneVecs; ++l) sums[0][l] = (sums[0][l] + sums[1][l]) + (sums[2][l] + sums[3][l]);
  const float sum = reduce_lanes(sums[0]);
  const Vec factor = broadcast(1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + epsilon));
  map2(in, weight, n, out, [&](Vec x, Vec w) { return x * factor * w; });
}

static void rope(const float* in, const float* cosine, const float* sine, std::int32_t pairs, bool interleaved,
                 std::int32_t head_dim, float scale, float* out) {
  std::int32_t i = 0;
  const Vec factor = broadcast(scale);
  if (interleaved) {
    const float signs[] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
    const Vec minus_first = load(signs);
    const auto turn = [&](std::int32_t at, Vec c, Vec s) {
      const Vec x = load(in + at);
      store(out + at, (x * c + swap_pairs(x) * (s * minus_first)) * factor);
    };
    for (; i + Vec::kWidth <= pairs; i += Vec::kWidth) {
      const Vec c = load(cosine + i), s = load(sine + i);
      turn(2 * i, double_low(c), double_low(s));
      turn(2 * i + Vec::kWidth, double_high(c), double_high(s));
    }
    for (; i < pairs; ++i) {
      const float a = in[2 * i], b = in[2 * i + 1];
      out[2 * i] = (a * cosine[i] - b * sine[i]) * scale;
      out[2 * i + 1] = (a * sine[i] + b * cosine[i]) * scale;
    }
  } else {
    for (; i + Vec::kWidth <= pairs; i += Vec::kWidth) {
      const Vec a = load(in + i), b = load(in + pairs + i), c = load(cosine + i), s = load(sine + i);
      store(out + i, (a * c - b * s) * factor);
      store(out + pairs + i, (a * s + b * c) * factor);
    }
    for (; i < pairs; ++i) {
      const float a = in[i], b = in[pairs + i];
      out[i] = (a * cosine[i] - b * sine[i]) * scale;
      out[pairs + i] = (a * sine[i] + b * cosine[i]) * scale;
    }
  }
  for (i = 2 * pairs; i < head_dim; ++i) out[i] = in[i] * scale;
}

static void glu_silu(const float* gate, const float* up, std::int64_t n, float* out) {
  map2(gate, up, n, out, [](Vec g, Vec u) { return silu(g) * u; });
}
static void glu_gelu(const float* gate, const float* up, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    out[i] = 0.5f * gate[i] * (1.0f + __builtin_erff(gate[i] * 0.70710678f)) * up[i];
  }
}
static void glu_gelu_tanh(const float* gate, const float* up, std::int64_t n, float* out) {
  map2(gate, up, n, out, [](Vec g, Vec u) { return gelu_tanh(g) * u; });
}
static void glu_clamped_swiglu(const float* gate, const float* up, std::int64_t n, float* out) {
  const Vec limit = broadcast(7.0f), one = broadcast(1.0f);
  map2(gate, up, n, out, [&](Vec gate_lanes, Vec up_lanes) {
    // Where one is not a number, the second operand counts.
    const Vec g = min(limit, gate_lanes), u = min(limit, max(broadcast(-7.0f), up_lanes));
    return g / (one + exp(g * broadcast(-1.702f))) * (u + one);
  });
}
static void add(const float* a, const float* b, std::int64_t n, float* out) {
  map2(a, b, n, out, [](Vec x, Vec y) { return x + y; });
}
static void add_scaled(const float* a, float factor, const float* b, std::int64_t n, float* out) {
  const Vec f = broadcast(factor);
  map2(a, b, n, out, [&](Vec x, Vec y) { return fma(f, y, x); });
}

const ElementwiseKernels& elementwise_kernels() {
  static constexpr ElementwiseKernels kKernels{
      rms_norm, rope, {glu_silu, glu_gelu, glu_gelu_tanh, glu_clamped_swiglu}, add, add_scaled, pack_int4};
  return kKernels;
}
