// Rounding of inputs as checkpoints declare it, once for all SIMD levels; linear_scalar-inl.hpp says the same in plain
// C++. Included inside the level's namespace after unpack-inl.hpp.

namespace {

constexpr float kNearest = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even
constexpr int kSignBit = static_cast<int>(0x80000000u);

/// The last values of a row may be fewer than kLanes; zeros stand in for the others.
[[gnu::always_inline]] inline Floats load_values(const float* x, std::int64_t left) {
  if (left >= kLanes) return load_floats(x);
  return load_some(x, static_cast<int>(left));
}

/// The largest absolute value, or NaN where not all are finite.
inline float largest(const float* x, std::int64_t n) {
  Floats most = zero_floats(), invalid = zero_floats();
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Floats v = load_values(x + i, n - i);
    most = larger(most, floats_of(and_bytes(bits_of(v), fill_bits(0x7fffffff))));
    invalid = add_floats(invalid, multiply(v, zero_floats()));  // infinity and NaN make NaN
  }
  float lanes[2][kLanes];
  store_floats(lanes[0], most);
  store_floats(lanes[1], invalid);
  float found = 0.0f, bad = 0.0f;
  for (int i = 0; i < kLanes; ++i) {
    found = lanes[0][i] > found ? lanes[0][i] : found;
    bad += lanes[1][i];
  }
  return found + bad;
}

/// Integers -128 … 127: the nearest to v / scale, and `zero` more.
[[gnu::always_inline]] inline Floats to_code(Floats v, Floats scale, Floats zero) {
  const Floats ratio = smaller(larger(divide(v, scale), fill_float(-65536.0f)), fill_float(65536.0f));
  const Floats nearest = subtract(add_floats(ratio, fill_float(kNearest)), fill_float(kNearest));
  return smaller(larger(add_floats(nearest, zero), fill_float(-128.0f)), fill_float(127.0f));
}
/// The E4M3 number nearest to v / scale, ties to even.
[[gnu::always_inline]] inline Floats to_e4m3(Floats v, Floats scale) {
  const Floats ratio = divide(v, scale);
  const Bytes sign = and_bytes(bits_of(ratio), fill_bits(kSignBit));
  const Floats size = smaller(floats_of(xor_bytes(bits_of(ratio), sign)), fill_float(448.0f));
  // A number's last place is 2^-3 of its power of two, which is at least 2^-6: round as kNearest does, at that place.
  const Floats power = larger(floats_of(and_bytes(bits_of(size), fill_bits(0x7f800000))), fill_float(0x1p-6f));
  const Floats round = multiply(power, fill_float(kNearest * 0x1p-3f));
  return floats_of(xor_bytes(bits_of(subtract(add_floats(size, round), round)), sign));
}

void round_row(const InputRounding& how, const float* x, std::int64_t k, float* out) {
  const std::int64_t group = how.dynamic && how.group > 0 ? how.group : k;
  for (std::int64_t begin = 0; begin < k; begin += group) {
    const std::int64_t end = k - begin < group ? k : begin + group;
    const RowScale s = scale_of(how, largest(x + begin, end - begin));
    const Floats scale = fill_float(s.scale), zero = fill_float(static_cast<float>(s.zero));
    for (std::int64_t i = begin; i < end; i += kLanes) {
      const Floats v = load_values(x + i, end - i);
      Floats rounded = fill_float(s.value);
      if (s.live) {
        rounded = multiply(scale, how.floats ? to_e4m3(v, scale) : subtract(to_code(v, scale, zero), zero));
      }
      if (end - i >= kLanes) {
        store_floats(out + i, rounded);
      } else {
        store_some(out + i, rounded, static_cast<int>(end - i));
      }
    }
  }
}

void quantize_bfloats(const InputRounding* how, const float* x, std::int64_t k, QuantizedGroup* out) {
  const std::int64_t shared = how && how->dynamic && how->group > 0 ? how->group : k;
  RowScale s{true, 1.0f, 0, 0.0f};
  for (std::int64_t i = 0; i < k; i += kGroupValues, ++out) {
    if (how && i % shared == 0) s = scale_of(*how, largest(x + i, k - i < shared ? k - i : shared));
    const Floats scale = fill_float(s.scale);
    for (std::int64_t j = 0; j < kGroupValues; j += kLanes) {
      Floats number = zero_floats();
      if (s.live && i + j < k) {
        const Floats v = load_values(x + i + j, k - i - j);
        // Infinity and NaN make NaN.
        number = how ? to_e4m3(v, scale) : add_floats(to_bfloats(v), multiply(v, zero_floats()));
      }
      store_bfloats(out->codes + j * 2, number);
    }
    out->scale = s.live ? s.scale : s.value;
  }
}

void quantize_bytes(const InputRounding& how, const float* x, std::int64_t k, QuantizedGroup* out) {
  const RowScale s = scale_of(how, largest(x, k));
  const Floats scale = fill_float(s.live ? s.scale : 1.0f), zero = fill_float(static_cast<float>(s.zero));
  auto* const row = reinterpret_cast<ByteRow*>(out);
  auto* to = reinterpret_cast<std::uint8_t*>(row + 1);
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < k; i += kGroupValues) {
    std::int32_t codes[kGroupValues] = {};
    for (int j = 0; s.live && j < kGroupValues; j += kLanes) {
      store_ints(codes + j, to_ints(to_code(load_floats(x + i + j), scale, zero)));
    }
    for (int j = 0; j < kGroupValues; ++j) sum += codes[j];
    if constexpr (kForm == ActivationForm::words) {
      std::int16_t words[kGroupValues];
      for (int j = 0; j < kGroupValues; j += 4) {
        words[j] = static_cast<std::int16_t>(codes[j]);
        words[j + 1] = static_cast<std::int16_t>(codes[j + 2]);
        words[j + 2] = static_cast<std::int16_t>(codes[j + 1]);
        words[j + 3] = static_cast<std::int16_t>(codes[j + 3]);
      }
      __builtin_memcpy(to, words, sizeof words);
      to += sizeof words;
    } else {
      std::int8_t bytes[kGroupValues];
      for (int j = 0; j < kGroupValues; ++j) bytes[j] = static_cast<std::int8_t>(codes[j]);
      __builtin_memcpy(to, bytes, sizeof bytes);
      to += sizeof bytes;
    }
  }
  *row = {s.live ? s.scale : s.value, s.live ? s.zero : 0, -sum, {}};
}

}  // namespace
