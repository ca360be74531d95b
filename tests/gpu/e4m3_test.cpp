// Products of E4M3 by E4M3: rows as they are rounded for them, both kernels against products in double precision, and
// plans that use them.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backends/gpu/plan.hpp"
#include "backends/gpu/weight.hpp"
#include "core/half.hpp"
#include "tests/cpu/model.hpp"
#include "tests/cpu/random_weight.hpp"
#include "tests/cpu/same_bits.hpp"
#include "tests/gpu/linear_support.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;
using gpu::Buffer;
using gpu::Device;

namespace {

constexpr auto kFp8 = InputQuantization::Kind::fp8;
constexpr InputQuantization kPerToken{.kind = kFp8}, kPer128{.kind = kFp8, .group = 128},
    kPer256{.kind = kFp8, .group = 256}, kStatic{.kind = kFp8, .dynamic = false, .scale = 0.02f},
    kBounded{.kind = kFp8, .limit = 1.5f}, kPowers{.kind = kFp8, .group = 128, .powers = true};

/// A weight whose every `scale_columns` columns have the same scale.
RandomWeight e4m3_weight(std::int64_t rows, std::int64_t cols, std::int64_t scale_columns,
                         const InputQuantization& how) {
  RandomWeight w = random_weight(WeightType::fp8, rows, cols, 5);
  // The last scale's columns may be fewer.
  const auto blocks = static_cast<std::size_t>(cols / 32), shared = static_cast<std::size_t>(scale_columns / 32);
  for (std::size_t i = 0; i < blocks * static_cast<std::size_t>(rows); ++i) {
    std::memcpy(&w.bytes[i * 36], &w.bytes[(i - i % blocks % shared) * 36], 4);
  }
  w.details.scale_columns = scale_columns;
  w.details.input = how;
  return w;
}

/// rounded in * weight^T + bias + residual, by Kernel::stages or Kernel::warpgroups.
std::vector<float> multiply(const std::shared_ptr<Device>& device, const RandomWeight& w, const Factors& f,
                            Kernel kind) {
  const auto width = static_cast<std::size_t>(w.cols);
  const int rows = static_cast<int>(f.in.size() / width);
  const auto weight = gpu::GpuWeight::make(w.view(), *gpu::Staging::make(device).value()).value();
  REQUIRE(weight->e4m3_group() == (w.details.scale_columns >= w.cols ? 0 : w.details.scale_columns));
  const InputQuantization& how = w.details.input;
  const ByteRows in = to_bytes(device, to_device(device, f.in), nullptr, rows, static_cast<int>(w.cols), how);
  LinearMemory layer(device, w, f, rows);
  gpu::LinearArgs& linear = layer.args;
  linear.weight = weight->matrix();
  linear.weight_group = weight->e4m3_group();
  linear.codes = in.codes.at<std::uint8_t>();
  linear.in_scales = in.scales.at<float>();
  const std::size_t group = group_of(how, width);
  linear.in_group = group < width ? static_cast<int>(group) : 0;
  const auto kernel =
      kind == Kernel::stages ? device->kernels().linear_e4m3_stages : device->kernels().linear_e4m3_warpgroups;
  device->check(kernel(device->stream(), linear), "linear_e4m3").value();
  return to_host(device, layer.out);
}

/// The largest normalized error of a row of in * weight^T + bias + residual. `positive`: so are all factors.
double error_of(const std::shared_ptr<Device>& device, RandomWeight w, int rows, Kernel kind, bool positive = false) {
  if (positive) {
    for (std::size_t i = 0; i < w.bytes.size(); ++i) {
      if (i % 36 >= 3) w.bytes[i] &= std::byte{0x7f};  // the scale's last byte, and the numbers
    }
  }
  const auto features = static_cast<std::size_t>(w.rows), width = static_cast<std::size_t>(w.cols),
             count = static_cast<std::size_t>(rows);
  Factors factors = random_factors(w.rows, w.cols, rows);
  if (positive) {
    factors.in = random_floats(count * width, 1);
    for (float& x : factors.in) x = std::abs(x);
  }
  auto& [in, bias, residual] = factors;
  const auto found = multiply(device, w, factors, kind);

  const InputQuantization& how = w.details.input;
  const std::size_t group = group_of(how, width);
  std::vector<float> exact(features * width);
  unpack_rows(w.view(), 0, w.rows, exact).value();
  double worst = 0;
  for (std::size_t r = 0; r < count; ++r) {
    float* const row = in.data() + r * width;
    for (std::size_t begin = 0; begin < width; begin += group) {
      const std::size_t end = std::min(begin + group, width);
      float most = 0;
      for (std::size_t k = begin; k < end; ++k) most = std::max(most, std::abs(row[k]));
      const float scale = e4m3_scale(how, most);
      for (std::size_t k = begin; k < end; ++k)
        row[k] = scale * core::e4m3_to_float(core::float_to_e4m3(row[k] / scale));
    }
    std::vector<double> expected(features);
    for (std::size_t n = 0; n < features; ++n) {
      expected[n] = bias[n] + residual[r * features + n];
      for (std::size_t k = 0; k < width; ++k) expected[n] += double{row[k]} * exact[n * width + k];
    }
    const auto first = found.begin() + static_cast<std::ptrdiff_t>(r * features);
    const double error = nmse({first, first + static_cast<std::ptrdiff_t>(features)}, expected);
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
  }
  return worst;
}

bool has_e4m3(const Device& device, Kernel kind) {
  return kind == Kernel::stages ? device.info().e4m3 : device.info().warpgroups;
}

/// Matrices of random E4M3 numbers under scales per `scale_columns`, all of which take inputs rounded.
Model e4m3_model(const Shape& shape, std::int64_t scale_columns, const InputQuantization& how) {
  Model model = make_model(make_program(shape), WeightType::f32);
  for (std::size_t i = 0; i < model.types.size(); ++i) {
    const WeightSpec& spec = model.program.weights[i];
    if (spec.rows == 1) continue;
    RandomWeight w = e4m3_weight(spec.rows, spec.cols, std::min(scale_columns, spec.cols), how);
    const float size = 1.0f / (150.0f * std::sqrt(static_cast<float>(spec.cols)));  // of numbers whose deviation is 150
    for (std::size_t at = 0; at < w.bytes.size(); at += 36) {
      float scale;
      std::memcpy(&scale, &w.bytes[at], 4);
      scale *= size / 0.01f;
      std::memcpy(&w.bytes[at], &scale, 4);
    }
    model.set_weight(i, std::move(w));
  }
  return model;
}

}  // namespace

TEST_CASE("Rows are rounded to E4M3 as inputs of other products are") {
  const int rows = 4, width = 352;
  const std::vector<float> in = rows_to_round(width);
  const auto norms = random_floats(width, 4);
  for (const Machine& machine : machines(2)) {
    const auto device = make_machine(machine.options);
    const Buffer device_in = to_device(device, in), norm = to_device(device, norms);
    for (const InputQuantization& how :
         {kPerToken, kPer128, kPer256, kStatic, kBounded, kPowers, InputQuantization{.kind = kFp8, .group = 1000}}) {
      for (const bool normed : {false, true}) {
        CAPTURE(machine.name, how.group, how.dynamic, normed);
        const float* const weights = normed ? norm.at<float>() : nullptr;
        auto [expected, expected_scales] = round_rows(device, device_in, weights, rows, width, how);
        for (std::size_t i = 0; i < expected.size(); ++i) expected[i] *= expected_scales[i / width];
        const ByteRows found = to_bytes(device, device_in, weights, rows, width, how);
        const auto codes = to_host<std::uint8_t>(device, found.codes);
        const auto scales = to_host(device, found.scales);
        const std::size_t group = group_of(how, width);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < in.size(); ++i) {
          const float x = scales[i % width / group * rows + i / width] * core::e4m3_to_float(codes[i]);
          wrong += x != expected[i] && !(std::isnan(x) && std::isnan(expected[i]));
        }
        CHECK(wrong == 0);
        CHECK(std::isnan(expected[2 * width + 5]));
        for (std::size_t i = 0; i < width && !normed; i += group) {
          float most = 0;
          for (std::size_t k = i; k < std::min(i + group, std::size_t{width}); ++k)
            most = std::max(most, std::abs(in[k]));
          CHECK(scales[i / group * rows] == e4m3_scale(how, most));
        }
      }
    }
  }
}

TEST_CASE("E4M3 by E4M3, with scales of every kind and odd shapes") {
  struct Case {
    InputQuantization how;
    std::int64_t scale_columns, features, width;
    int rows;
  };
  // Of three blocks: fewer tiles than these, and more, so that stages go around; a last group that is not whole.
  const Case cases[] = {{kPerToken, 448, 257, 448, 130}, {kStatic, 160, 24, 160, 65},  {kPer128, 128, 129, 416, 129},
                        {kPerToken, 128, 40, 256, 66},   {kPer256, 544, 67, 544, 70},  {kPer128, 256, 20, 1056, 1},
                        {kPerToken, 32, 3, 32, 3},       {kBounded, 128, 40, 256, 66}, {kPowers, 128, 40, 416, 66}};
  for (std::uint64_t seed = 1; seed <= 2; ++seed) {
    gpu::EmulatorOptions options;
    options.seed = seed;
    const auto device = make_machine(options);
    for (const Kernel kernel : {Kernel::stages, Kernel::warpgroups}) {
      if (!has_e4m3(*device, kernel)) continue;
      for (const Case& c : cases) {
        if (seed == 2 && c.how.group != 128) continue;
        CAPTURE(seed, static_cast<int>(kernel), c.features, c.width, c.rows);
        CHECK(error_of(device, e4m3_weight(c.features, c.width, c.scale_columns, c.how), c.rows, kernel) < 1e-6);
      }
    }
  }
}

TEST_CASE("Rows of zeros add nothing to E4M3 sums, and infinite ones spoil no others") {
  const auto device = make_machine();
  const Factors factors = spoiled_factors(5, 416);
  for (const Kernel kernel : {Kernel::stages, Kernel::warpgroups}) {
    if (!has_e4m3(*device, kernel)) continue;
    for (const bool groups : {false, true}) {
      CAPTURE(static_cast<int>(kernel), groups);
      const RandomWeight w = e4m3_weight(5, 416, groups ? 128 : 416, groups ? kPer128 : kPerToken);
      check_spoiled(factors, multiply(device, w, factors, kernel));
    }
  }
}

// Matrix units keep 14 bits of a sum, of which long rows would leave little.
TEST_CASE("Long rows of E4M3 are added in floats") {
  const auto device = make_machine();
  for (const Kernel kernel : {Kernel::stages, Kernel::warpgroups}) {
    if (!has_e4m3(*device, kernel)) continue;
    for (const bool groups : {false, true}) {
      CAPTURE(static_cast<int>(kernel), groups);
      const RandomWeight w = e4m3_weight(8, 2048, groups ? 128 : 2048, groups ? kPer128 : kPerToken);
      CHECK(error_of(device, w, 2, kernel, true) < 1e-4);
    }
  }
}

TEST_CASE("Weights that are multiplied as E4M3, and such as are not") {
  const auto device = make_machine();
  const auto staging = gpu::Staging::make(device).value();
  const auto group = [&](const RandomWeight& w) {
    return gpu::GpuWeight::make(w.view(), *staging).value()->e4m3_group();
  };
  CHECK(group(e4m3_weight(3, 256, 256, kPerToken)) == 0);
  CHECK(group(e4m3_weight(3, 256, 128, kPerToken)) == 128);
  CHECK(group(e4m3_weight(3, 256, 64, kPerToken)) == -1);
  CHECK(group(e4m3_weight(3, 256, 256, {})) == -1);  // weights alone are FP8
  RandomWeight unknown = e4m3_weight(3, 256, 256, kPerToken);
  unknown.details.scale_columns = 0;
  CHECK(group(unknown) == -1);
  RandomWeight w8 = random_weight(WeightType::w8_sym, 3, 256, 1);
  w8.details.input = kPerToken;
  w8.details.scale_columns = 256;
  CHECK(group(w8) == -1);
}

// A number that is rounded the other way moves a token's logits by some 1e-4 (the same products of halves, too).
TEST_CASE("Plans multiply E4M3 by E4M3 in long passes where the device can, and give the interpreter's logits") {
  const Shape shape{.layers = 1, .heads = 2, .kv_heads = 1, .ffn = 96, .vocab = 40, .hidden = 160, .bias = true};
  const auto tokens = random_tokens(66, shape.vocab);
  const auto logits = [&](const Model& model, const gpu::EmulatorOptions& machine, const GpuOptions& options) {
    Driver driver(model, gpu::make_backend(make_machine(machine), options), CacheType::f32, 256, 40, 5);
    return driver.feed(tokens, {66});
  };
  for (const auto& [how, scale_columns] : {std::pair(kPer128, 128), {kPerToken, 160}, {kStatic, 160}}) {
    CAPTURE(how.group, how.dynamic);
    const Model model = e4m3_model(shape, scale_columns, how);
    Model plain = model;
    plain.round_inputs("", {});
    const auto rounded = Oracle(model, tokens, false).logits(), unrounded = Oracle(plain, tokens, false).logits();
    for (const bool warpgroups : {true, false}) {
      const auto found = logits(model, {}, {.warpgroups = warpgroups});
      const auto error = [&](const std::vector<double>& expected) {
        return median_nmse(found, expected, static_cast<std::size_t>(shape.vocab));
      };
      CHECK(error(rounded) < 5e-4);
      CHECK(error(rounded) < error(unrounded) / 3);
    }
  }
}

#ifndef LLMINFER_TEST_GPU
TEST_CASE("Plans multiply E4M3 as halves in short passes, in batch-invariant ones, and where other things are needed") {
  const Shape shape{.layers = 1, .heads = 4, .kv_heads = 1, .ffn = 160, .vocab = 40};
  gpu::EmulatorOptions none;
  none.e4m3 = none.warpgroups = false;
  gpu::EmulatorOptions stages;
  stages.warpgroups = false;
  const auto same = [&](const Model& model, std::size_t count, bool invariant, const gpu::EmulatorOptions& machine) {
    const auto logits = [&](const gpu::EmulatorOptions& on) {
      Driver driver(model, make_machine_backend(on, invariant), CacheType::f16, 256, 40, 5);
      return driver.feed(random_tokens(count, shape.vocab), {static_cast<std::int32_t>(count)});
    };
    return same_bits(logits(machine), logits(none));
  };
  const Model model = e4m3_model(shape, 128, kPer128);
  CHECK_FALSE(same(model, 65, false, stages));
  CHECK(same(model, 64, false, {}));
  CHECK(same(model, 65, true, {}));
  CHECK(same(e4m3_model(shape, 128, {.kind = kFp8, .group = 32}), 65, false, stages));
  CHECK(same(e4m3_model(shape, 32, kPerToken), 65, false, stages));
  CHECK(same(e4m3_model(shape, 128, {}), 65, false, stages));
}
#endif
