// What linear kernels multiply: rows quantized to 16 and to 8 bits, rounded as checkpoints declare, at every
// instruction set level.
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "backends/common/w8a8.hpp"
#include "core/file.hpp"
#include "tests/cpu/linear_support.hpp"

namespace cpu = llminfer::cpu;
using namespace llminfer::test;
using llminfer::WeightType;

TEST_CASE("activations are quantized alike on all levels") {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::mt19937 random(11);
  std::vector<float> x(32 * 12 + 7);
  std::normal_distribution<float> normal;
  for (float& f : x) f = normal(random) * std::exp(3.0f * normal(random));
  for (std::size_t i = 0; i < 32; ++i) {
    x[i] = 0.0f;                                // group 0: zeros
    x[32 + i] = static_cast<float>(i) - 15.5f;  // ties below
    x[64 + i] *= 1e-36f;                        // too small for a scale
    x[96 + i] *= 1e36f;
  }
  x[32] = static_cast<float>(cpu::kCodes16.limit);
  x[128 + 5] = kInf;
  x[160 + 31] = -kInf;
  x[192] = kNan;
  x[224] = std::numeric_limits<float>::max();
  x[256 + 17] = -std::numeric_limits<float>::max();
  for (const cpu::ActivationCodes codes : {cpu::kCodes16, cpu::kCodes8, cpu::kBytes8}) {
    std::vector<cpu::QuantizedGroup> expected(13);
    levels()[0]->quantize_row(x.data(), static_cast<std::int64_t>(x.size()), codes, expected.data());

    for (std::size_t g = 0; g < expected.size(); ++g) {
      INFO("group " << g);
      const cpu::QuantizedGroup& q = expected[g];
      int sum[2] = {0, 0};
      float absmax = 0.0f;
      for (std::size_t i = 0; i < 32; ++i) {
        sum[i / 16] += code_of(q, *levels()[0], codes, i);
        const float value = g * 32 + i < x.size() ? x[g * 32 + i] : 0.0f;
        absmax = std::isfinite(value) ? std::max(absmax, std::abs(value)) : kInf;
        if (absmax == kInf) break;
      }
      if (absmax == kInf) {
        REQUIRE(std::isnan(q.scale));
        continue;
      }
      REQUIRE(q.scale == (absmax < 1e-30f ? 0.0f : absmax / static_cast<float>(codes.limit << codes.shift)));
      for (std::size_t i = 0; i < 32; ++i) REQUIRE(code_of(q, *levels()[0], codes, i) % (1 << codes.shift) == 0);
      for (std::size_t i = 0; i < 32 && g * 32 + i < x.size(); ++i) {
        REQUIRE(std::abs(static_cast<double>(code_of(q, *levels()[0], codes, i)) * q.scale - x[g * 32 + i]) <=
                (0.51 * (1 << codes.shift)) * q.scale + 1e-30);
      }
      REQUIRE(q.minus_half_sum[0] == -sum[0]);
      REQUIRE(q.minus_half_sum[1] == -sum[1]);
      REQUIRE(q.minus_sum == -sum[0] - sum[1]);
      REQUIRE(q.scaled_sum == q.scale * static_cast<float>(sum[0] + sum[1]));
      REQUIRE(q.scaled_half_sum[0] == q.scale * static_cast<float>(sum[0]));
      REQUIRE(q.scaled_half_sum[1] == q.scale * static_cast<float>(sum[1]));
    }
    for (const auto* level : levels()) {
      INFO(level->level);
      std::vector<cpu::QuantizedGroup> got(13);
      level->quantize_row(x.data(), static_cast<std::int64_t>(x.size()), codes, got.data());
      for (std::size_t g = 0; g < got.size(); ++g) {
        INFO("group " << g);
        for (std::size_t i = 0; i < 32; ++i) {
          REQUIRE(code_of(got[g], *level, codes, i) == code_of(expected[g], *levels()[0], codes, i));
        }
        if (std::isnan(expected[g].scale)) {
          REQUIRE(std::isnan(got[g].scale));
        } else {  // what follows the codes
          REQUIRE(std::memcmp(&got[g].scale, &expected[g].scale, sizeof got[g] - sizeof got[g].codes) == 0);
        }
      }
    }
  }
}

TEST_CASE("weights and activations of 8 bits: sums of whole rows in integers, the same on all levels") {
  const auto& scalar = *levels()[0];
  for (const auto& shape : {std::pair<std::int64_t, std::int64_t>{67, 32}, {50, 96}, {33, 576}, {16, 8960}}) {
    const std::int64_t rows = shape.first, cols = shape.second;
    RandomWeight w = random_weight(WeightType::w8_sym, rows, cols, 24);
    share_scales(w, cols, 4);
    for (const bool dynamic : {true, false}) {
      w.details.input = {llminfer::InputQuantization::Kind::int8, dynamic, 0, 0.02f, -11};
      const auto packed = pack(w);
      REQUIRE(packed->form() == cpu::InputForm::bytes);
      REQUIRE(packed->bytes() == cpu::packed_bytes(w.type, rows, cols, w.details));
      REQUIRE(read_back(*packed) == unpacked(w));
      constexpr std::int32_t kRows = 83;
      const auto quantized = [&](const cpu::LinearKernels& level) {
        Rows x = random_rows(kRows, cols, 25, level);
        for (std::int32_t m = 0; m < kRows; ++m) {
          level.quantize_bytes(cpu::rounding_of(w.details.input), x.f32.data() + m * x.view.stride, cols,
                               x.groups.data() + m * x.view.group_stride);
        }
        return x;
      };
      const Rows x = quantized(scalar);
      const std::vector<float> expected = multiply(scalar, *packed, x, kRows), weights = unpacked(w);
      std::vector<float> rounded(static_cast<std::size_t>(cols));
      double error = 0, norm = 0;
      for (std::int32_t m = 0; m < kRows; ++m) {
        scalar.round_row(cpu::rounding_of(w.details.input), x.f32.data() + m * x.view.stride, cols, rounded.data());
        for (std::int64_t n = 0; n < rows; ++n) {
          double sum = 0;
          for (std::int64_t k = 0; k < cols; ++k) {
            sum +=
                double{weights[static_cast<std::size_t>(n * cols + k)]} * double{rounded[static_cast<std::size_t>(k)]};
          }
          const double difference = sum - double{expected[static_cast<std::size_t>(m * (rows + 5) + n)]};
          error += difference * difference;
          norm += sum * sum;
        }
      }
      CHECK(error <= 1e-12 * norm);
      for (const auto* level : levels()) {
        const Rows in = quantized(*level);
        for (const std::int32_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 27, 32, 57, 83}) {
          INFO(level->level << " [" << rows << ", " << cols << "], M = " << m << (dynamic ? ", dynamic" : ", static"));
          REQUIRE(same_bits(multiply(*level, *packed, in, m), {expected.begin(), expected.begin() + m * (rows + 5)}));
        }
      }
    }
  }
}

TEST_CASE("the largest codes do not overflow the sums of W8A8") {
  const std::int64_t cols = llminfer::backend::kMaxByteCols / 32 * 32;
  RandomWeight w = random_weight(WeightType::w8_sym, 16, cols, 26);
  for (std::size_t i = 0; i < w.bytes.size(); ++i) {
    if (i % 36 >= 4) w.bytes[i] = std::byte{0x80};
  }
  share_scales(w, cols, 4);
  w.details.input = {llminfer::InputQuantization::Kind::int8, false, 0, 1.0f, 127};
  const auto packed = pack(w);
  const std::vector<float> weights = unpacked(w);
  for (const auto* level : levels()) {
    Rows x = random_rows(1, cols, 27, *level);
    std::fill(x.f32.begin(), x.f32.end(), -1000.0f);
    level->quantize_bytes(cpu::rounding_of(w.details.input), x.f32.data(), cols, x.groups.data());
    const std::vector<float> out = multiply(*level, *packed, x, 1);
    INFO(level->level);
    CHECK(out[3] == Approx(-255.0 * double{weights[static_cast<std::size_t>(3 * cols)]} * static_cast<double>(cols)));
  }
}

TEST_CASE("inputs are rounded as compressed-tensors, FBGEMM and DeepSeek round them, on all levels") {
  const auto golden = nlohmann::json::parse(
      llminfer::core::read_text_file(LLMINFER_TEST_DATA "/quantized/inputs.json", 1 << 20).value());
  const auto floats = [](const nlohmann::json& bits) {
    std::vector<float> values;
    for (const auto& value : bits) values.push_back(std::bit_cast<float>(value.get<std::int32_t>()));
    return values;
  };
  const std::vector<float> x = floats(golden["x"]);
  for (const auto& [name, expected] : golden["cases"].items()) {
    cpu::InputRounding how{
        name.starts_with("fp8"), expected["dynamic"].get<bool>(), expected["group"].get<std::int64_t>(),
        std::bit_cast<float>(expected["scale"].get<std::int32_t>()), expected["zero"].get<std::int32_t>()};
    if (expected.contains("limit")) how.limit = std::bit_cast<float>(expected["limit"].get<std::int32_t>());
    how.powers = expected.value("powers", false);
    const std::vector<float> want = floats(expected["rounded"]);
    for (const auto* level : levels()) {
      INFO(name << " on " << level->level);
      std::vector<float> got(x.size());
      for (std::size_t row = 0; row < x.size(); row += 128)
        level->round_row(how, x.data() + row, 128, got.data() + row);
      CHECK(got == want);
    }
  }
}

TEST_CASE("E4M3 numbers apart from their scales are those of rounded rows, on all levels") {
  std::vector<float> x(157);
  std::mt19937 random(29);
  std::normal_distribution<float> normal;
  for (const float size : {1.0f, 1e-20f, 1e-37f, 0.0f, 1e30f, std::numeric_limits<float>::quiet_NaN()}) {
    for (float& f : x) f = normal(random) * (std::isnan(size) ? 1.0f : size);
    if (std::isnan(size)) x[70] = size;
    for (const cpu::InputRounding how : {cpu::InputRounding{true, true, 0, 0.0f, 0},
                                         {true, true, 32, 0.0f, 0},
                                         {true, true, 64, 0.0f, 0, 1.5f, false},
                                         {true, true, 128, 0.0f, 0, 1.5f, true},
                                         {true, false, 0, 0.01f, 0}}) {
      std::vector<float> expected(157);
      levels()[0]->round_row(how, x.data(), 157, expected.data());
      for (const auto* level : levels()) {
        std::vector<cpu::QuantizedGroup> got(5);
        level->quantize_bfloats(&how, x.data(), 157, got.data());
        INFO(level->level << ", values of " << size << ", groups of " << how.group);
        for (std::int64_t k = 0; k < 160; ++k) {
          const float last = 0.0f * expected.back(), value = bfloat_of(got.data(), k);
          const float want = k < 157 ? expected[static_cast<std::size_t>(k)] : last;
          CHECK((std::isnan(want) ? std::isnan(value) : value == want));
        }
      }
    }
  }
}

TEST_CASE("inputs become the nearest BF16 numbers, ties away from zero") {
  for (const auto* level : levels()) {
    for (const auto& [x, nearest] : {std::pair{1.0f, 1.0f},
                                     {1.0f + 0x1p-8f, 1.0f + 0x1p-7f},
                                     {-1.0f - 0x1p-8f, -1.0f - 0x1p-7f},
                                     {1.0f + 0x1p-9f, 1.0f},
                                     {0x1.ffp0f, 2.0f},
                                     {-0x1.fdp100f, -0x1.fep100f},
                                     {3e-38f, 0x1.46p-125f}}) {
      const std::vector<float> in(33, x);
      std::vector<cpu::QuantizedGroup> out(2);
      level->quantize_bfloats(nullptr, in.data(), 33, out.data());
      INFO(level->level);
      for (std::int64_t k = 0; k < 33; ++k) CHECK(bfloat_of(out.data(), k) == nearest);
      CHECK(bfloat_of(out.data(), 33) == 0.0f);
    }
    const float infinity = std::numeric_limits<float>::infinity();
    cpu::QuantizedGroup group;
    level->quantize_bfloats(nullptr, std::vector{1.0f, infinity, -infinity, std::nanf(""), 2.0f}.data(), 5, &group);
    for (std::int64_t k = 0; k < 5; ++k) CHECK(std::isnan(bfloat_of(&group, k)) == (k % 4 != 0));
  }
}

TEST_CASE("inputs of any length and size are rounded alike on all levels") {
  std::vector<float> x(77);
  std::mt19937 random(28);
  std::normal_distribution<float> normal;
  for (const float size : {1.0f, 1e-20f, 1e-37f, 0.0f, 1e30f, std::numeric_limits<float>::infinity()}) {
    for (float& f : x) f = normal(random);
    for (std::size_t i = 0; i < x.size(); i += size == std::numeric_limits<float>::infinity() ? 50 : 1) x[i] *= size;
    for (const bool e4m3 : {false, true}) {
      for (const cpu::InputRounding how : {cpu::InputRounding{e4m3, true, 0, 0.0f, 0},
                                           {e4m3, true, 32, 0.0f, 0},
                                           {e4m3, true, 7, 0.0f, 0},
                                           {e4m3, true, 16, 0.0f, 0, 1.5f, false},
                                           {e4m3, true, 0, 0.0f, 0, 1.5f, true},
                                           {e4m3, false, 0, 0.01f, e4m3 ? 0 : 5}}) {
        std::vector<float> expected(77);
        levels()[0]->round_row(how, x.data(), 77, expected.data());
        for (const auto* level : levels()) {
          std::vector<float> got(80, kUntouched);
          level->round_row(how, x.data(), 77, got.data());
          INFO(level->level << ", values of " << size << ", groups of " << how.group << ", E4M3 " << e4m3);
          for (std::size_t i = 0; i < 77; ++i) {
            CHECK((std::isnan(expected[i]) ? std::isnan(got[i])
                                           : std::memcmp(&got[i], &expected[i], sizeof(float)) == 0));
          }
          CHECK(got[77] == kUntouched);
        }
      }
    }
  }
}
