// The public view of weights: weight_type_info and the argument checks of unpack_rows.
#include <llminfer/weight.hpp>

#include <cstdint>
#include <cstring>
#include <vector>

#include <catch2/catch.hpp>

using namespace llminfer;

namespace {

struct Rows {  // 3 rows of 64 values of Q8_0: row r holds r + 1, -(r + 1), r + 1, …
  std::vector<std::byte> bytes = std::vector<std::byte>(3 * 2 * 34);
  WeightView view;
  Rows() {
    for (int block = 0; block < 6; ++block) {
      std::byte* at = bytes.data() + block * 34;
      at[1] = std::byte{0x3c};  // the half 1.0
      for (int i = 0; i < 32; ++i) {
        const auto value = static_cast<std::int8_t>((block / 2 + 1) * (i % 2 ? -1 : 1));
        std::memcpy(at + 2 + i, &value, 1);
      }
    }
    view = {.name = "w", .type = WeightType::q8_0, .rows = 3, .cols = 64, .data = bytes, .keep = nullptr};
  }
};

ErrorCode refused(const WeightView& view, std::int64_t first, std::int64_t rows, std::size_t room) {
  std::vector<float> out(room, 7.0f);
  const auto result = unpack_rows(view, first, rows, out);
  REQUIRE_FALSE(result.has_value());
  CHECK(result.error().message.find("'w'") != std::string::npos);
  for (const float f : out) CHECK(f == 7.0f);
  return result.error().code;
}

}  // namespace

TEST_CASE("weight_type_info names every type") {
  CHECK(weight_type_info(WeightType::f32).name == "F32");
  CHECK(weight_type_info(WeightType::q4_k).name == "Q4_K");
  CHECK(weight_type_info(WeightType::q4_k).block_values == 256);
  CHECK(weight_type_info(WeightType::q4_k).block_bytes == 144);
  CHECK(weight_type_info(WeightType::nvfp4).name == "NVFP4");
  CHECK(weight_type_info(static_cast<WeightType>(200)).name == "unknown");
}

TEST_CASE("unpack_rows gives the rows asked for") {
  const Rows w;
  std::vector<float> out(2 * 64);
  REQUIRE(unpack_rows(w.view, 1, 2, out));
  for (int i = 0; i < 128; ++i) CHECK(out[static_cast<std::size_t>(i)] == (i / 64 + 2) * (i % 2 ? -1.0f : 1.0f));
  REQUIRE(unpack_rows(w.view, 3, 0, {}));  // an empty range at the end is a range
}

TEST_CASE("unpack_rows refuses what does not fit") {
  const Rows w;
  CHECK(refused(w.view, 0, 4, 256) == ErrorCode::invalid_argument);
  CHECK(refused(w.view, -1, 1, 64) == ErrorCode::invalid_argument);
  CHECK(refused(w.view, 3, 1, 64) == ErrorCode::invalid_argument);
  CHECK(refused(w.view, INT64_MAX, 1, 64) == ErrorCode::invalid_argument);
  CHECK(refused(w.view, 1, INT64_MAX, 64) == ErrorCode::invalid_argument);
  CHECK(refused(w.view, 0, -1, 0) == ErrorCode::invalid_argument);
  CHECK(refused(w.view, 0, 1, 63) == ErrorCode::invalid_argument);
  CHECK(refused(w.view, 0, 1, 65) == ErrorCode::invalid_argument);

  WeightView bad = w.view;
  bad.cols = 48;
  CHECK(refused(bad, 0, 1, 48) == ErrorCode::invalid_argument);
  bad = w.view;
  bad.rows = 4;
  CHECK(refused(bad, 0, 1, 64) == ErrorCode::invalid_argument);
  bad.rows = INT64_MAX;
  CHECK(refused(bad, 0, 1, 64) == ErrorCode::invalid_argument);
  bad.rows = -1;
  CHECK(refused(bad, 0, 0, 0) == ErrorCode::invalid_argument);
  bad = w.view;
  bad.cols = INT64_MAX / 32 * 32;
  CHECK(refused(bad, 0, 1, 64) == ErrorCode::invalid_argument);
  bad = w.view;
  bad.data = bad.data.first(1);
  CHECK(refused(bad, 0, 1, 64) == ErrorCode::invalid_argument);
  bad = w.view;
  bad.type = static_cast<WeightType>(99);
  CHECK(refused(bad, 0, 1, 64) == ErrorCode::invalid_argument);
}
