// Linear kernels: every weight type at every instruction set level that this machine runs.
#include <Eigen/Core>
#include <bit>
#include <catch2/catch.hpp>
#include <limits>
#include <vector>

#include "tests/cpu/linear_support.hpp"

namespace cpu = llminfer::cpu;
using namespace llminfer::test;
using llminfer::ErrorCode;
using llminfer::WeightType;

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
    for (const std::int64_t want_cols : {32, 77, 96, 576, 640, 896, 960, 1536}) {
      if (want_cols % 32 != 0 && llminfer::weight_type_info(type).block_values > 1) continue;
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

TEST_CASE("activations of 8 bits: the bits of the scalar kernels on all levels, in both forms") {
  const auto& scalar = *levels()[0];
  for (int t = 0; t < kTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    const bool odd = type == WeightType::bf16;  // which is multiplied in pairs
    const std::int64_t cols = odd ? 577 : at_least_a_block(type, 576);
    const auto packed = pack(random_weight(type, 50, cols, 25));
    const auto expected = multiply(scalar, *packed, random_rows(33, cols, 26, scalar, cpu::kCodes8), 33);
    for (const auto* level : levels()) {
      for (const cpu::ActivationCodes codes : {cpu::kCodes8, cpu::kBytes8}) {
        if (!can_multiply(*level, *packed, codes)) continue;
        const Rows x = random_rows(33, cols, 26, *level, codes);
        for (const std::int32_t m : {1, 7, 8, 9, 33}) {
          INFO(llminfer::weight_type_info(type).name << " on " << level->level << ", M = " << m
                                                     << (codes.bytes ? ", bytes" : ""));
          const std::vector<float> first(expected.begin(), expected.begin() + m * (50 + 5));
          REQUIRE(same_bits(multiply(*level, *packed, x, m), first));
        }
      }
    }
  }
}

/// Multiplies the weight with rows of BF16 numbers, on all levels, and in double.
void check_bfloats(const RandomWeight& w, const cpu::InputRounding* how) {
  const auto& scalar = *levels()[0];
  const auto packed = pack(w);
  REQUIRE(packed->form(cpu::kCodes8) == cpu::InputForm::bfloats);
  const Rows x = random_rows(29, w.cols, 6, scalar, cpu::kCodes8, how);
  const std::vector<float> values = unpacked(w);
  const auto expected = multiply(scalar, *packed, x, 29);
  const Eigen::Map<const Eigen::Matrix<float, -1, -1, Eigen::RowMajor>> weights(values.data(), w.rows, w.cols);
  const std::int64_t stride = w.rows + 5;
  for (std::int32_t m = 0; m < 29; ++m) {
    Eigen::VectorXd in(w.cols);
    for (std::int64_t k = 0; k < w.cols; ++k) in[k] = bfloat_of(x.bfloats.data() + m * x.view.group_stride, k);
    const Eigen::VectorXd exact = weights.cast<double>() * in;
    const double size = (weights.cast<double>().cwiseAbs() * in.cwiseAbs()).maxCoeff();
    for (std::int64_t n = 0; n < w.rows; ++n) {
      CHECK(std::abs(expected[static_cast<std::size_t>(m * stride + n)] - exact[n]) <= 1e-6 * size);
    }
  }
  for (const auto* level : levels()) {
    const Rows same = random_rows(29, w.cols, 6, *level, cpu::kCodes8, how);
    for (const std::int32_t rows : {1, 2, 3, 4, 5, 6, 7, 16, 29}) {
      INFO(level->level << ", " << w.cols << " columns, scales of " << w.details.scale_columns << ", M = " << rows);
      const std::vector<float> first(expected.begin(), expected.begin() + rows * stride);
      CHECK(same_bits(multiply(*level, *packed, same, rows), first));
    }
  }
}

TEST_CASE("BF16 weights times rows of BF16 numbers, of all widths and in parts") {
  for (const std::int64_t cols : {1, 2, 31, 96, 640}) {
    check_bfloats(random_weight(WeightType::bf16, 150, cols, 5), nullptr);
  }
}

TEST_CASE("FP8 weights times rows of BF16 and of E4M3 numbers, whichever columns share a scale") {
  for (const std::int64_t cols : {32, 96, 128, 640}) {
    for (const std::int64_t scale_columns : {32, 64, 128, 1 << 20}) {
      RandomWeight w = random_weight(WeightType::fp8, 83, cols, 7);
      if (scale_columns > 32) share_scales(w, scale_columns, 4);
      check_bfloats(w, nullptr);
      for (const cpu::InputRounding how : {cpu::InputRounding{true, true, 128, 0.0f, 0},
                                           {true, true, 256, 0.0f, 0, 1.5f, true},
                                           {true, true, 0, 0.0f, 0},
                                           {true, false, 0, 0.01f, 0}}) {
        check_bfloats(w, &how);
      }
    }
  }
}

TEST_CASE("which FP8 weights multiply BF16 numbers") {
  using Kind = llminfer::InputQuantization::Kind;
  const auto form = [](llminfer::InputQuantization input, cpu::ActivationCodes wanted) {
    return cpu::form_of(cpu::PanelKind::fp8, input, wanted);
  };
  using enum cpu::InputForm;
  CHECK(form({Kind::fp8, true, 128}, cpu::kCodes16) == bfloats);
  CHECK(form({Kind::fp8, true, 0}, cpu::kCodes8) == bfloats);
  CHECK(form({Kind::fp8, true, 64}, cpu::kCodes8) == floats);
  CHECK(form({Kind::int8, true, 0}, cpu::kCodes8) == floats);
  CHECK(form({}, cpu::kCodes8) == bfloats);
  CHECK(form({}, cpu::kCodes16) == floats);
}

TEST_CASE("where slices begin changes no bit") {
  const auto& scalar = *levels()[0];
  for (int t = 0; t < kTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    const std::int64_t cols = at_least_a_block(type, 288);
    const auto packed = pack(random_weight(type, 35, cols, 27));
    for (const cpu::ActivationCodes codes : {cpu::kCodes16, cpu::kBytes8}) {
      const auto expected = multiply(scalar, *packed, random_rows(17, cols, 28, scalar, codes), 17);
      for (const auto* level : levels()) {
        if (!can_multiply(*level, *packed, codes)) continue;
        const Rows x = random_rows(17, cols, 28, *level, codes);
        for (const std::int32_t slice_rows : {1, cpu::kNever}) {
          cpu::PackedWeightView view = packed->view();
          view.slice_rows = slice_rows;
          for (const std::int32_t m : {1, 3, 8, 17}) {
            INFO(llminfer::weight_type_info(type).name << " on " << level->level << ", M = " << m);
            std::vector<float> out(static_cast<std::size_t>(m * 40), kUntouched);
            const auto scratch = aligned(cpu::linear_scratch_bytes(cols));
            level->linear(view, 0, packed->panels(), x.view_for(*packed), 0, m, out.data(), 40, scratch.get());
            REQUIRE(same_bits(out, std::vector<float>(expected.begin(), expected.begin() + m * 40)));
          }
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
          in(m, k) =
              packed->form() == cpu::InputForm::groups
                  ? static_cast<double>(g.scale) * code_of(g, scalar, cpu::kCodes16, static_cast<std::size_t>(k % 32))
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
          const std::size_t head = type >= WeightType::w2_min ? 8 : 4;  // scale, and a float minimum
          if (i % info.block_bytes < head || i % info.block_bytes + 4 >= info.block_bytes) w.bytes[i] = scales.bytes[i];
        }
      }
      const auto packed = pack(w);
      for (const auto& [sign, codes] :
           {std::pair{1.0f, cpu::kCodes16}, {-1.0f, cpu::kCodes16}, {-1.0f, cpu::kBytes8}}) {
        std::vector<float> expected;
        for (const auto* level : levels()) {
          if (!can_multiply(*level, *packed, codes)) continue;
          Rows x = random_rows(9, cols, 10, *level, codes);
          for (float& f : x.f32) f = sign;
          for (int m = 0; m < 9; ++m) {
            level->quantize_row(x.f32.data() + m * x.view.stride, cols, codes,
                                x.groups.data() + m * x.view.group_stride);
          }
          if (expected.empty()) expected = multiply(*level, *packed, x, 9);
          for (const std::int32_t m : {1, 9}) {
            INFO(info.name << " of " << fill << " on " << level->level);
            const std::vector<float> first(expected.begin(), expected.begin() + m * (w.rows + 5));
            REQUIRE(same_bits(multiply(*level, *packed, x, m), first));
          }
        }
      }
    }
  }
}

TEST_CASE("scales that neighbours share are stored once") {
  for (const auto& [type, head] : {std::pair<WeightType, std::size_t>{WeightType::w4, 5},
                                   {WeightType::w8, 5},
                                   {WeightType::w4_min, 8},
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

TEST_CASE("a value that is not finite reaches the result") {
  const RandomWeight w = random_weight(WeightType::q4_1, 16, 64, 12);
  const auto packed = pack(w);
  for (const auto* level : levels()) {
    Rows x = random_rows(2, 64, 13, *level);
    x.f32[40] = std::numeric_limits<float>::quiet_NaN();
    level->quantize_row(x.f32.data(), 64, cpu::kCodes16, x.groups.data());
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
