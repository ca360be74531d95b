// Linear kernels: every weight type at every instruction set level that this machine runs.
#include "backends/cpu/linear.hpp"

#include <Eigen/Core>
#include <bit>
#include <catch2/catch.hpp>
#include <cstring>
#include <iostream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "backends/cpu/level.hpp"
#include "core/file.hpp"
#include "quant/format.hpp"
#include "tests/cpu/random_weight.hpp"

namespace llminfer::cpu {
namespace emulated_tiles_avx2 {
const LinearKernels& linear_kernels();
}
namespace emulated_tiles_avx512 {
const LinearKernels& linear_kernels();
}
}  // namespace llminfer::cpu

namespace cpu = llminfer::cpu;
using llminfer::ErrorCode;
using llminfer::WeightType;
using llminfer::test::random_weight;
using llminfer::test::RandomWeight;

namespace {

constexpr auto kTypes = static_cast<int>(WeightType::fp8) + 1;

/// The levels that this machine can run, scalar first; names the others once. Then the kernels of level "amx" on
/// emulated tiles, whether or not the machine has them.
const std::vector<const cpu::LinearKernels*>& levels() {
  static const auto found = [] {
    std::vector<const cpu::LinearKernels*> list;
    for (const cpu::Level& level : cpu::runnable_levels()) {
      if (cpu::choose_level(level.name, "test").has_value()) list.push_back(level.linear);
    }
    for (const std::string_view name : cpu::missing_levels()) {
      std::cout << "skipped, not on this machine: level " << name << '\n';
    }
#ifdef LLMINFER_TEST_EMULATED_TILES
    for (const cpu::Level& level : cpu::runnable_levels()) {
      const std::string_view name = level.name;
      if (name == "avx2") list.push_back(&cpu::emulated_tiles_avx2::linear_kernels());
      if (name == "avx512") list.push_back(&cpu::emulated_tiles_avx512::linear_kernels());
    }
#endif
    return list;
  }();
  return found;
}

/// Memory as linear wants it: on a cache line.
std::shared_ptr<void> aligned(std::size_t bytes) { return {std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free}; }

/// Rows of activations in both forms.
struct Rows {
  std::vector<float> f32;
  std::vector<cpu::QuantizedGroup> groups;
  cpu::ActivationView view;
};

Rows random_rows(std::int32_t rows, std::int64_t cols, unsigned seed, const cpu::LinearKernels& kernels) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Rows r;
  const std::int64_t stride = cols + 3, group_stride = cpu::quantized_row_groups(cols);
  r.f32.resize(static_cast<std::size_t>(rows * stride));
  for (float& f : r.f32) f = normal(random);
  r.groups.resize(static_cast<std::size_t>(rows * group_stride));
  for (std::int32_t i = 0; i < rows; ++i) {
    kernels.quantize_row(r.f32.data() + i * stride, cols, r.groups.data() + i * group_stride);
  }
  r.view = {r.f32.data(), stride, r.groups.data(), group_stride};
  return r;
}

/// The i-th code of a group that was quantized for kernels that want this form.
std::int32_t code_of(const cpu::QuantizedGroup& group, cpu::ActivationForm form, std::size_t i) {
  if (form == cpu::ActivationForm::words) {
    constexpr std::size_t kPlace[4] = {0, 2, 1, 3};
    std::int16_t code = 0;
    std::memcpy(&code, group.codes + (i / 4 * 4 + kPlace[i % 4]) * sizeof code, sizeof code);
    return code;
  }
  const bool pairs = form == cpu::ActivationForm::pairs;
  const std::size_t high = pairs ? i / 8 * 16 + i % 8 : i, low = pairs ? high + 8 : 32 + i;
  return 256 * static_cast<std::int8_t>(group.codes[high]) + static_cast<std::int8_t>(group.codes[low]);
}

constexpr float kUntouched = 12345.0f;

/// out [rows, N + 5]; what the kernel may not write is kUntouched.
std::vector<float> multiply(const cpu::LinearKernels& kernels, const cpu::PackedWeight& w, const Rows& x,
                            std::int32_t rows) {
  const std::int64_t stride = w.rows() + 5;
  std::vector<float> out(static_cast<std::size_t>(rows * stride), kUntouched);
  const auto scratch = aligned(cpu::linear_scratch_bytes(w.cols()));
  kernels.linear(w.view(), 0, w.panels(), x.view, 0, rows, out.data(), stride, scratch.get());
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::int64_t at_least_a_block(WeightType type, std::int64_t cols) {
  const std::int64_t block = llminfer::weight_type_info(type).block_values;
  return (cols + block - 1) / block * block;
}

std::unique_ptr<cpu::PackedWeight> pack(const RandomWeight& w) { return cpu::pack_weight(w.view()).value(); }

std::vector<float> unpacked(const RandomWeight& w) {
  std::vector<float> out(static_cast<std::size_t>(w.rows * w.cols));
  llminfer::unpack_rows(w.view(), 0, w.rows, out).value();
  return out;
}

/// What the panels hold: for all types but NF4 and FP4 the same.
std::vector<float> read_back(const cpu::PackedWeight& w) {
  std::vector<float> out(static_cast<std::size_t>(w.rows() * w.cols()));
  for (std::int64_t n = 0; n < w.rows(); ++n) w.read_row(n, out.data() + n * w.cols());
  return out;
}

/// How far panels may be from their weight, in units of a group's scale: tables of floats become tables of integers.
float packing_error(WeightType type) { return llminfer::quant::format(type).shape.exact ? 0.0f : 0.501f / 127.0f; }

}  // namespace

TEST_CASE("every weight type is packed, and its rows read back exactly") {
  for (int t = 0; t < kTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    INFO(llminfer::weight_type_info(type).name);
    for (const std::int64_t cols : {at_least_a_block(type, 1), at_least_a_block(type, 544)}) {
      const RandomWeight w = random_weight(type, 37, cols, 1);
      const auto packed = pack(w);
      REQUIRE(packed->bytes() == cpu::packed_bytes(type, w.rows, w.cols));
      REQUIRE(packed->panels() == 3);
      const std::vector<float> expected = unpacked(w);
      std::vector<float> row(static_cast<std::size_t>(cols));
      const auto exact = cpu::ExactWeight::make(w.view()).value();
      for (std::int64_t n = 0; n < w.rows; ++n) {
        const float* const want = expected.data() + n * cols;
        cpu::read_row(packed->view(), n, row.data());
        const float bound = packing_error(type) * 0.02f;  // the largest scale of random_weight
        REQUIRE(std::equal(row.begin(), row.end(), want,
                           [&](float a, float b) { return a == b || std::abs(a - b) <= bound; }));
        exact->read_row(n, row.data());
        REQUIRE(std::equal(row.begin(), row.end(), want));
      }
    }
  }
}

TEST_CASE("packing a range of panels touches nothing else") {
  const RandomWeight w = random_weight(WeightType::q4_k, 70, 512, 2);
  const auto whole = pack(w);
  auto parts = cpu::PackedWeight::allocate(w.type, w.rows, w.cols).value();
  parts->pack_panels(w.view(), 2, 5);
  parts->pack_panels(w.view(), 0, 2);
  REQUIRE(std::memcmp(parts->view().data, whole->view().data, static_cast<std::size_t>(whole->bytes())) == 0);
}

TEST_CASE("packed weights keep close to the size of their checkpoint") {
  for (const WeightType type :
       {WeightType::q4_0, WeightType::q4_1, WeightType::q5_0, WeightType::q8_0, WeightType::q4_k, WeightType::q5_k,
        WeightType::q6_k, WeightType::q2_k, WeightType::q3_k}) {
    const auto info = llminfer::weight_type_info(type);
    const std::int64_t source = 1024 * 1536 / info.block_values * info.block_bytes;
    INFO(info.name);
    // Q2_K holds its sub-scales and sub-minimums in nibbles; panels in bytes.
    REQUIRE(cpu::packed_bytes(type, 1024, 1536) <= source * (type == WeightType::q2_k ? 120 : 104) / 100);
  }
}

TEST_CASE("all levels give the bits of the scalar kernels") {
  const auto& scalar = *levels()[0];
  for (int t = 0; t < kTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    for (const std::int64_t want_cols : {32, 96, 576, 1536}) {
      const std::int64_t cols = at_least_a_block(type, want_cols);
      const std::int64_t rows = want_cols == 1536 ? 16 : want_cols == 576 ? 50 : 67;
      const RandomWeight w = random_weight(type, rows, cols, 3);
      const auto packed = pack(w);
      const std::vector<float> expected = multiply(scalar, *packed, random_rows(33, cols, 4, scalar), 33);
      for (const auto* level : levels()) {
        const Rows x = random_rows(33, cols, 4, *level);
        for (const std::int32_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 16, 33}) {
          INFO(llminfer::weight_type_info(type).name << " [" << rows << ", " << cols << "] on " << level->level
                                                     << ", M = " << m);
          const std::vector<float> first(expected.begin(), expected.begin() + m * (rows + 5));
          REQUIRE(same_bits(multiply(*level, *packed, x, m), first));
        }
      }
    }
  }
}

TEST_CASE("the split of a call into panels and rows changes no bit") {
  for (int t = 0; t < kTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    const std::int64_t cols = at_least_a_block(type, 256);
    const RandomWeight w = random_weight(type, 90, cols, 5);  // 6 panels
    const auto packed = pack(w);
    for (const auto* level : levels()) {
      INFO(llminfer::weight_type_info(type).name << " on " << level->level);
      const Rows x = random_rows(19, cols, 6, *level);
      const std::vector<float> expected = multiply(*level, *packed, x, 19);
      std::vector<float> out(expected.size(), kUntouched);
      const auto scratch = aligned(cpu::linear_scratch_bytes(cols));
      for (const auto& [panel_begin, panel_end] : {std::pair{0, 1}, {1, 4}, {4, 6}}) {
        for (const auto& [row_begin, row_end] : {std::pair{0, 1}, {1, 4}, {4, 17}, {17, 19}}) {
          level->linear(packed->view(), panel_begin, panel_end, x.view, row_begin, row_end, out.data(), w.rows + 5,
                        scratch.get());
        }
      }
      REQUIRE(same_bits(out, expected));
    }
  }
}

TEST_CASE("kernels compute the product that the quantized operands define") {
  const auto& scalar = *levels()[0];
  for (int t = 0; t < kTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    for (const std::int64_t want_cols : {32, 64, 256, 640, 896, 960}) {
      const std::int64_t cols = at_least_a_block(type, want_cols);
      const std::int32_t rows = 9;
      const RandomWeight w = random_weight(type, 33, cols, 7);
      const auto packed = pack(w);
      const Rows x = random_rows(rows, cols, 8, scalar);
      using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
      Eigen::MatrixXd in(rows, cols);
      for (std::int32_t m = 0; m < rows; ++m) {
        for (std::int64_t k = 0; k < cols; ++k) {
          const cpu::QuantizedGroup& g = x.groups[static_cast<std::size_t>(m * x.view.group_stride + k / 32)];
          in(m, k) = packed->form() == cpu::InputForm::groups
                         ? static_cast<double>(g.scale) * code_of(g, scalar.form, static_cast<std::size_t>(k % 32))
                         : static_cast<double>(x.f32[static_cast<std::size_t>(m * x.view.stride + k)]);
        }
      }
      const std::vector<float> weights = read_back(*packed);
      const Eigen::MatrixXd expected =
          in * Eigen::Map<const Matrix>(weights.data(), w.rows, cols).cast<double>().transpose();
      const std::vector<float> out = multiply(scalar, *packed, x, rows);
      const Eigen::MatrixXd got =
          Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>(out.data(), rows, w.rows, Eigen::OuterStride<>(w.rows + 5))
              .cast<double>();
      INFO(llminfer::weight_type_info(type).name << " K = " << cols);
      REQUIRE((got - expected).squaredNorm() <= 1e-10 * expected.squaredNorm());
      for (std::int32_t m = 0; m < rows; ++m) {
        for (int i = 0; i < 5; ++i) REQUIRE(out[static_cast<std::size_t>(m * (w.rows + 5) + w.rows + i)] == kUntouched);
      }
    }
  }
}

TEST_CASE("extreme codes do not overflow the integer dots") {
  for (int t = static_cast<int>(WeightType::q4_0); t < kTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    if (type == WeightType::fp8) continue;  // no integers, and bytes of 0xff are NaN
    const std::int64_t cols = at_least_a_block(type, 256);
    for (const int fill : {0x00, 0x7f, 0x80, 0xff}) {
      RandomWeight w = random_weight(type, 16, cols, 9);
      const RandomWeight scales = w;
      const auto info = llminfer::weight_type_info(type);
      for (std::byte& b : w.bytes) b = static_cast<std::byte>(fill);
      // Keep what random_weight chose where a scale of NaN or infinity would hide the codes.
      std::vector<float> row(static_cast<std::size_t>(cols));
      llminfer::unpack_rows(w.view(), 0, 1, std::span(row)).value();
      if (!std::isfinite(row[0]) || row[0] == 0.0f) {
        for (std::size_t i = 0; i < w.bytes.size(); ++i) {
          if (i % info.block_bytes < 4 || i % info.block_bytes + 4 >= info.block_bytes) w.bytes[i] = scales.bytes[i];
        }
      }
      const auto packed = pack(w);
      for (const float sign : {1.0f, -1.0f}) {
        std::vector<float> expected;
        for (const auto* level : levels()) {
          Rows x = random_rows(5, cols, 10, *level);
          for (float& f : x.f32) f = sign;
          for (int m = 0; m < 5; ++m) {
            level->quantize_row(x.f32.data() + m * x.view.stride, cols, x.groups.data() + m * x.view.group_stride);
          }
          if (expected.empty()) expected = multiply(*level, *packed, x, 5);
          for (const std::int32_t m : {1, 5}) {
            INFO(info.name << " of " << fill << " on " << level->level);
            const std::vector<float> first(expected.begin(), expected.begin() + m * (w.rows + 5));
            REQUIRE(same_bits(multiply(*level, *packed, x, m), first));
          }
        }
      }
    }
  }
}

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
  x[32] = static_cast<float>(cpu::kCodeLimit);
  x[128 + 5] = kInf;
  x[160 + 31] = -kInf;
  x[192] = kNan;
  x[224] = std::numeric_limits<float>::max();
  x[256 + 17] = -std::numeric_limits<float>::max();
  std::vector<cpu::QuantizedGroup> expected(13);
  levels()[0]->quantize_row(x.data(), static_cast<std::int64_t>(x.size()), expected.data());

  for (std::size_t g = 0; g < expected.size(); ++g) {
    INFO("group " << g);
    const cpu::QuantizedGroup& q = expected[g];
    int sum[2] = {0, 0};
    float absmax = 0.0f;
    for (std::size_t i = 0; i < 32; ++i) {
      sum[i / 16] += code_of(q, levels()[0]->form, i);
      const float value = g * 32 + i < x.size() ? x[g * 32 + i] : 0.0f;
      absmax = std::isfinite(value) ? std::max(absmax, std::abs(value)) : kInf;
      if (absmax == kInf) break;
    }
    if (absmax == kInf) {
      REQUIRE(std::isnan(q.scale));
      continue;
    }
    REQUIRE(q.scale == (absmax < 1e-30f ? 0.0f : absmax / static_cast<float>(cpu::kCodeLimit)));
    for (std::size_t i = 0; i < 32 && g * 32 + i < x.size(); ++i) {
      REQUIRE(std::abs(static_cast<double>(code_of(q, levels()[0]->form, i)) * q.scale - x[g * 32 + i]) <=
              0.51 * q.scale + 1e-30);
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
    level->quantize_row(x.data(), static_cast<std::int64_t>(x.size()), got.data());
    for (std::size_t g = 0; g < got.size(); ++g) {
      INFO("group " << g);
      for (std::size_t i = 0; i < 32; ++i) {
        REQUIRE(code_of(got[g], level->form, i) == code_of(expected[g], levels()[0]->form, i));
      }
      if (std::isnan(expected[g].scale)) {
        REQUIRE(std::isnan(got[g].scale));
      } else {  // what follows the codes
        REQUIRE(std::memcmp(&got[g].scale, &expected[g].scale, sizeof got[g] - sizeof got[g].codes) == 0);
      }
    }
  }
}

TEST_CASE("scales that neighbours share are stored once") {
  for (const auto& [type, head] : {std::pair<WeightType, std::size_t>{WeightType::w4, 5},
                                   {WeightType::w8, 5},
                                   {WeightType::w4_sym, 4},
                                   {WeightType::nf4, 4},
                                   {WeightType::q4_0, 2},
                                   {WeightType::q8_0, 2},
                                   {WeightType::fp8, 4}}) {
    // 96 = 3 * 32: no power of two, so that it is stored per 32.
    for (const std::int64_t scale_columns : {32, 64, 96, 128, 576}) {
      RandomWeight w = random_weight(type, 37, 576, 21);
      share_scales(w, scale_columns, head);
      const auto packed = pack(w);
      INFO(llminfer::weight_type_info(type).name << ", " << scale_columns);
      const std::int64_t plain = cpu::packed_bytes(type, w.rows, w.cols);
      CHECK(packed->bytes() == cpu::packed_bytes(type, w.rows, w.cols, w.details));
      CHECK((scale_columns % 64 == 0 ? packed->bytes() < plain : packed->bytes() == plain));
      RandomWeight alone = w;
      alone.details.scale_columns = 0;
      const auto unshared = pack(alone);
      CHECK(same_bits(read_back(*packed), read_back(*unshared)));
      for (const auto* level : levels()) {
        const Rows x = random_rows(9, 576, 22, *level);
        CHECK(same_bits(multiply(*level, *packed, x, 9), multiply(*level, *unshared, x, 9)));
      }
    }
  }
}

TEST_CASE("columns in another order are read back in their own") {
  RandomWeight w = random_weight(WeightType::w4, 5, 64, 23);
  const auto plain = read_back(*pack(w));
  auto order = std::make_shared<std::vector<std::int32_t>>(64);
  for (int i = 0; i < 64; ++i) (*order)[static_cast<std::size_t>(i)] = i * 5 % 64;
  w.details.permutation = order;
  const auto ordered = read_back(*pack(w));
  for (std::size_t n = 0; n < 5; ++n) {
    for (std::size_t k = 0; k < 64; ++k) {
      REQUIRE(ordered[n * 64 + static_cast<std::size_t>((*order)[k])] == plain[n * 64 + k]);
    }
  }
}

TEST_CASE("weights and activations of 8 bits: sums of whole rows in integers, the same on all levels") {
  const auto& scalar = *levels()[0];
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{67, 32}, {50, 96}, {33, 576}, {16, 8960}}) {
    RandomWeight w = random_weight(WeightType::w8_sym, rows, cols, 24);
    share_scales(w, cols, 4);
    for (const bool dynamic : {true, false}) {
      w.details.input = {llminfer::InputQuantization::Kind::int8, dynamic, 0, 0.02f, -11};
      const auto packed = pack(w);
      REQUIRE(packed->form() == cpu::InputForm::bytes);
      REQUIRE(packed->bytes() == cpu::packed_bytes(w.type, rows, cols, w.details));
      REQUIRE(read_back(*packed) == unpacked(w));
      constexpr std::int32_t kRows = 19;
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
        for (const std::int32_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 19}) {
          INFO(level->level << " [" << rows << ", " << cols << "], M = " << m << (dynamic ? ", dynamic" : ", static"));
          REQUIRE(same_bits(multiply(*level, *packed, in, m), {expected.begin(), expected.begin() + m * (rows + 5)}));
        }
      }
    }
  }
}

TEST_CASE("the largest codes do not overflow the sums of W8A8") {
  const std::int64_t cols = cpu::kMaxByteCols / 32 * 32;
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

TEST_CASE("inputs are rounded as compressed-tensors rounds them, on all levels") {
  const auto golden = nlohmann::json::parse(
      llminfer::core::read_text_file(LLMINFER_TEST_DATA "/quantized/inputs.json", 1 << 20).value());
  const auto floats = [](const nlohmann::json& bits) {
    std::vector<float> values;
    for (const auto& value : bits) values.push_back(std::bit_cast<float>(value.get<std::int32_t>()));
    return values;
  };
  const std::vector<float> x = floats(golden["x"]);
  for (const auto& [name, expected] : golden["cases"].items()) {
    const cpu::InputRounding how{
        name.starts_with("fp8"), expected["dynamic"].get<bool>(), expected["group"].get<std::int64_t>(),
        std::bit_cast<float>(expected["scale"].get<std::int32_t>()), expected["zero"].get<std::int32_t>()};
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

TEST_CASE("a value that is not finite reaches the result") {
  const RandomWeight w = random_weight(WeightType::q4_1, 16, 64, 12);
  const auto packed = pack(w);
  for (const auto* level : levels()) {
    Rows x = random_rows(2, 64, 13, *level);
    x.f32[40] = std::numeric_limits<float>::quiet_NaN();
    level->quantize_row(x.f32.data(), 64, x.groups.data());
    const std::vector<float> out = multiply(*level, *packed, x, 2);
    REQUIRE(std::isnan(out[3]));
    REQUIRE(std::isfinite(out[16 + 5 + 3]));
  }
}

TEST_CASE("exact mode: float products of exactly unpacked weights, with the same bits on all levels and splits") {
  for (const WeightType type : {WeightType::f32, WeightType::bf16, WeightType::q8_0, WeightType::q4_k}) {
    const std::int64_t cols = type == WeightType::f32 ? 77 : at_least_a_block(type, 576);
    const RandomWeight w = random_weight(type, 21, cols, 14);
    const auto exact = cpu::ExactWeight::make(w.view()).value();
    const Rows x = random_rows(6, cols, 15, *levels()[0]);
    const std::vector<float> weights = unpacked(w);
    std::vector<float> scratch(static_cast<std::size_t>(cols)), first;
    for (const auto* level : levels()) {
      std::vector<float> out(6 * 21), split(6 * 21);
      cpu::linear_exact(*level, *exact, 0, 21, x.view.f32, x.view.stride, 0, 6, out.data(), 21, scratch.data());
      cpu::linear_exact(*level, *exact, 4, 21, x.view.f32, x.view.stride, 0, 6, split.data(), 21, scratch.data());
      cpu::linear_exact(*level, *exact, 0, 4, x.view.f32, x.view.stride, 0, 5, split.data(), 21, scratch.data());
      cpu::linear_exact(*level, *exact, 0, 4, x.view.f32, x.view.stride, 5, 6, split.data(), 21, scratch.data());
      INFO(llminfer::weight_type_info(type).name << " on " << level->level);
      REQUIRE(same_bits(out, split));
      if (first.empty()) {
        first = out;
        double error = 0.0, norm = 0.0;
        for (std::int64_t m = 0; m < 6; ++m) {
          for (std::int64_t n = 0; n < 21; ++n) {
            double sum = 0.0;
            for (std::int64_t k = 0; k < cols; ++k) {
              sum += static_cast<double>(weights[static_cast<std::size_t>(n * cols + k)]) *
                     x.view.f32[m * x.view.stride + k];
            }
            const double difference = sum - out[static_cast<std::size_t>(m * 21 + n)];
            error += difference * difference;
            norm += sum * sum;
          }
        }
        REQUIRE(error <= 1e-12 * norm);
      }
      REQUIRE(same_bits(out, first));
    }
  }
}

TEST_CASE("shapes that do not fit their data or type are refused") {
  RandomWeight w = random_weight(WeightType::q4_0, 4, 64, 16);
  w.bytes.pop_back();
  REQUIRE(cpu::pack_weight(w.view()).error().code == ErrorCode::invalid_argument);
  REQUIRE(cpu::ExactWeight::make(w.view()).error().code == ErrorCode::invalid_argument);
  w.cols = 48;
  REQUIRE(cpu::pack_weight(w.view()).error().code == ErrorCode::invalid_argument);
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{0, 32},
                                   {-1, 32},
                                   {4, 0},
                                   {4, 33},
                                   {std::numeric_limits<std::int64_t>::max(), 64}}) {
    const auto result = cpu::PackedWeight::allocate(WeightType::q4_0, rows, cols);
    REQUIRE_FALSE(result.has_value());
    REQUIRE(result.error().code == ErrorCode::invalid_argument);
  }
  REQUIRE(cpu::packed_bytes(WeightType::q4_0, 0, 32) == 0);
}
