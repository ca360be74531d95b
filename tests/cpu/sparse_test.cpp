// Weights of which two of four neighbours are zero: packed without them, with the bits of the dense kernels.
#include <catch2/catch.hpp>

#include "core/half.hpp"
#include "tests/cpu/linear_support.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

struct SparseWeight {
  std::vector<std::uint16_t> values;
  WeightView view;

  SparseWeight(WeightType type, std::int64_t rows, std::int64_t cols, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    values.assign(static_cast<std::size_t>(rows * cols), 0);
    for (std::size_t quad = 0; quad < values.size(); quad += 4) {
      for (unsigned count = random() % 8 ? 2 : random() % 2; count > 0;) {  // some have one value or none
        std::uint16_t& value = values[quad + random() % 4];
        if (value != 0) continue;
        const float x = normal(random);
        value = type == WeightType::f16 ? core::float_to_half(x) : core::float_to_bfloat(x);
        --count;
      }
    }
    values[0] = 0x8000;  // a zero, too
    view = {"sparse", type, rows, cols, std::as_bytes(std::span(values)), nullptr};
  }
};

/// Codes of 8 bits, two or more zeros among each four of a row.
RandomWeight sparse_codes(WeightType type, std::int64_t rows, std::int64_t cols, unsigned seed) {
  RandomWeight w = random_weight(type, rows, cols, seed);
  std::mt19937 random(seed);
  const std::size_t head = type == WeightType::q8_0 ? 2 : 4;
  for (std::size_t block = 0; block < w.bytes.size(); block += head + 32) {
    for (std::size_t quad = block + head; quad < block + head + 32; quad += 4) {
      const std::size_t first = random() % 4, second = (first + 1 + random() % 3) % 4;
      w.bytes[quad + first] = w.bytes[quad + second] = std::byte{0};
      if (random() % 8 == 0) w.bytes[quad + random() % 4] = std::byte{0};
    }
  }
  return w;
}

std::unique_ptr<cpu::PackedWeight> pack_dense(const WeightView& view) {
  auto packed = cpu::PackedWeight::allocate(view.type, view.rows, view.cols, view.details).value();
  packed->pack_panels(view, 0, packed->panels());
  return packed;
}

}  // namespace

TEST_CASE("sparse weights of so few columns that nothing is saved are packed as dense ones") {
  const SparseWeight w(WeightType::f16, 5, 4, 1);
  CHECK(cpu::pack_weight(w.view).value()->kind() == cpu::PanelKind::f16);
}

TEST_CASE("sparse weights: less memory, the same bits as dense ones on all levels") {
  for (const WeightType type : {WeightType::f16, WeightType::bf16}) {
    for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{5, 8}, {16, 36}, {33, 132}, {100, 256}}) {
      INFO("[" << rows << ", " << cols << "]");
      const SparseWeight w(type, rows, cols, static_cast<unsigned>(rows));
      const auto sparse = cpu::pack_weight(w.view).value(), dense = pack_dense(w.view);
      REQUIRE(sparse->kind() == (type == WeightType::f16 ? cpu::PanelKind::f16_sparse : cpu::PanelKind::bf16_sparse));
      if (cols == 256) CHECK(sparse->bytes() * 16 == dense->bytes() * 9);
      std::vector<float> a(static_cast<std::size_t>(cols)), b(a.size());
      for (std::int64_t n = 0; n < rows; ++n) {
        sparse->read_row(n, a.data());
        dense->read_row(n, b.data());
        REQUIRE(a == b);
      }
      for (const cpu::LinearKernels* kernels : levels()) {
        for (const std::int32_t m : {1, 2, 3, 7}) {
          INFO(kernels->level << ", " << m << " rows");
          const Rows x = random_rows(m, cols, 7, *kernels);
          REQUIRE(multiply(*kernels, *sparse, x, m) == multiply(*kernels, *dense, x, m));
        }
      }
    }
  }
}

TEST_CASE("sparse weights are those without an exception, and are restored as what they are") {
  SparseWeight w(WeightType::f16, 20, 64, 3);
  const auto packed = cpu::pack_weight(w.view).value();
  const auto restored = cpu::PackedWeight::adopt(w.view, packed->stored(), nullptr).value();
  CHECK(restored->kind() == packed->kind());
  const auto dense = pack_dense(w.view);
  CHECK(cpu::PackedWeight::adopt(w.view, dense->stored(), nullptr).value()->kind() == cpu::PanelKind::f16);
  CHECK(cpu::PackedWeight::adopt(w.view, packed->stored().first(64), nullptr).error().code == ErrorCode::corrupt);
  for (std::size_t i = w.values.size() - 4; i < w.values.size(); ++i) w.values[i] = 1;  // the smallest number
  w.values.back() = 0;
  CHECK_FALSE(cpu::two_of_four(w.view));
  CHECK(cpu::pack_weight(w.view).value()->kind() == cpu::PanelKind::f16);
}

TEST_CASE("sparse weights of 8 bits: less memory, the same bits as dense ones on all levels") {
  constexpr std::int32_t kRows = 40;
  for (const auto& [type, scale_columns] :
       {std::pair<WeightType, std::int64_t>{WeightType::q8_0, 0}, {WeightType::w8_sym, 0}, {WeightType::w8_sym, 64}}) {
    for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{5, 64}, {33, 320}, {100, 192}, {16, 1088}}) {
      INFO(llminfer::weight_type_info(type).name << " [" << rows << ", " << cols << "]");
      RandomWeight w = sparse_codes(type, rows, cols, static_cast<unsigned>(rows));
      if (scale_columns > 0) share_scales(w, scale_columns, 4);
      const auto sparse = pack(w), dense = pack_dense(w.view());
      REQUIRE(sparse->kind() ==
              (type == WeightType::q8_0 ? cpu::PanelKind::q8_0_sparse : cpu::PanelKind::grid32_sparse));
      CHECK(sparse->view().layout.scale * 8 == dense->view().layout.scale * 5);
      REQUIRE(read_back(*sparse) == unpacked(w));
      for (const cpu::LinearKernels* kernels : levels()) {
        for (const cpu::ActivationCodes codes : {cpu::kCodes16, cpu::kCodes8, cpu::kBytes8}) {
          if (!can_multiply(*kernels, *sparse, codes)) continue;
          const Rows x = random_rows(kRows, cols, 7, *kernels, codes);
          const std::vector<float> expected = multiply(*kernels, *dense, x, kRows);
          for (std::int32_t m = 1; m <= kRows; m += m < 20 ? 1 : 20) {
            INFO(kernels->level << ", " << m << " rows");
            REQUIRE(
                same_bits(multiply(*kernels, *sparse, x, m), {expected.begin(), expected.begin() + m * (rows + 5)}));
          }
        }
      }
    }
  }
}

TEST_CASE("W8A8 weights with two of four zeros are packed as dense ones") {
  RandomWeight w = sparse_codes(WeightType::w8_sym, 20, 96, 4);
  share_scales(w, 96, 4);
  w.details.input = {llminfer::InputQuantization::Kind::int8, true, 0, 0.0f, 0};
  CHECK(pack(w)->kind() == cpu::PanelKind::w8a8);
}

TEST_CASE("slices and splits of sparse weights of 8 bits change no bit") {
  const RandomWeight w = sparse_codes(WeightType::q8_0, 90, 288, 9);
  const auto sparse = pack(w);
  for (const cpu::LinearKernels* kernels : levels()) {
    const Rows x = random_rows(19, 288, 6, *kernels);
    const std::vector<float> expected = multiply(*kernels, *sparse, x, 19);
    for (const std::int32_t slice_rows : {1, cpu::kNever}) {
      INFO(kernels->level << ", slices from " << slice_rows << " rows on");
      cpu::PackedWeightView view = sparse->view();
      view.slice_rows = slice_rows;
      std::vector<float> out(expected.size(), kUntouched);
      const auto scratch = aligned(cpu::linear_scratch_bytes(w.cols));
      for (const auto& [panel_begin, panel_end] : {std::pair{0, 1}, {1, 4}, {4, 6}}) {
        for (const auto& [row_begin, row_end] : {std::pair{0, 1}, {1, 4}, {4, 17}, {17, 19}}) {
          kernels->linear(view, panel_begin, panel_end, x.view, row_begin, row_end, out.data(), w.rows + 5,
                          scratch.get());
        }
      }
      REQUIRE(same_bits(out, expected));
    }
  }
}

TEST_CASE("one code too many makes a weight of 8 bits dense; both are restored as what they are") {
  for (const WeightType type : {WeightType::q8_0, WeightType::w8_sym}) {
    RandomWeight w = sparse_codes(type, 20, 96, 3);
    const auto packed = pack(w), dense = pack_dense(w.view());
    CHECK(cpu::PackedWeight::adopt(w.view(), packed->stored(), nullptr).value()->kind() == packed->kind());
    CHECK(cpu::PackedWeight::adopt(w.view(), dense->stored(), nullptr).value()->kind() == dense->kind());
    CHECK(cpu::PackedWeight::adopt(w.view(), packed->stored().first(64), nullptr).error().code == ErrorCode::corrupt);
    for (std::size_t i = w.bytes.size() - 4; i < w.bytes.size(); ++i) w.bytes[i] = std::byte{1};
    w.bytes.back() = std::byte{0};
    CHECK_FALSE(cpu::two_of_four(w.view()));
    CHECK(pack(w)->kind() == dense->kind());
  }
}
