// The safetensors header: what is read, and the error code of each way in which it can be wrong.
#include <catch2/catch.hpp>

#include <memory>
#include <span>

#include "load/safetensors.hpp"
#include "tests/load/safetensors_file.hpp"

using namespace llminfer;
using Catch::Contains;
using test::entry;
using test::safetensors_file;

namespace {

Result<std::vector<load::TensorInfo>> read(const std::string& file) {
  const auto keep = std::make_shared<const std::string>(file);
  const auto source = core::memory_source("model.safetensors", std::as_bytes(std::span(*keep)), keep);
  return load::read_safetensors_header(*source, 3);
}

void expect(const std::string& file, ErrorCode code, const std::string& named = "model.safetensors") {
  const auto tensors = read(file);
  REQUIRE_FALSE(tensors);
  INFO(tensors.error().message);
  CHECK(tensors.error().code == code);
  CHECK_THAT(tensors.error().message, Contains(named));
}

void expect_header(const std::string& header, std::size_t data_bytes, ErrorCode code, const std::string& named) {
  expect(safetensors_file(header, std::string(data_bytes, 'x')), code, named);
}

}  // namespace

TEST_CASE("safetensors: order, shapes and types") {
  const std::string header = "{\"__metadata__\":{\"format\":\"pt\"}," + entry("c", "BF16", "2,3,1", "24", "36") + "," +
                             entry("a", "F32", "2,2", "0", "16") + "," + entry("b", "F16", "4", "16", "24") + "," +
                             entry("s", "F32", "", "36", "40") + "}   ";
  const auto tensors = read(safetensors_file(header, std::string(40, 'x'))).value();
  REQUIRE(tensors.size() == 4);
  CHECK(tensors[0].name == "a");
  CHECK(tensors[0].type == WeightType::f32);
  CHECK(tensors[0].rows == 2);
  CHECK(tensors[0].cols == 2);
  CHECK(tensors[0].source == 3);
  CHECK(tensors[0].offset == 8 + header.size());
  CHECK(tensors[0].bytes == 16);
  CHECK(tensors[1].type == WeightType::f16);
  CHECK(tensors[1].rows == 1);
  CHECK(tensors[1].cols == 4);
  CHECK(tensors[1].offset == 8 + header.size() + 16);
  CHECK(tensors[2].type == WeightType::bf16);
  CHECK(tensors[2].shape == std::vector<std::int64_t>{2, 3, 1});
  CHECK(tensors[2].rows == 6);
  CHECK(tensors[2].cols == 1);
  CHECK(tensors[3].rows == 1);
  CHECK(tensors[3].cols == 1);
}

TEST_CASE("safetensors: a file without tensors") {
  CHECK(read(safetensors_file("{}", "")).value().empty());
  expect(safetensors_file("{}", "x"), ErrorCode::corrupt);
}

TEST_CASE("safetensors: truncated at every byte") {
  const std::string file = safetensors_file("{" + entry("a", "F32", "2", "0", "8") + "}", "12345678");
  REQUIRE(read(file));
  for (std::size_t size = 0; size < file.size(); ++size) {
    INFO(size << " bytes");
    expect(file.substr(0, size), ErrorCode::truncated);
  }
  expect(file + "x", ErrorCode::corrupt);
}

TEST_CASE("safetensors: length of the header") {
  std::string file = safetensors_file("{}", "");
  SECTION("beyond the limit") {
    file[3] = 6;  // 6 * 2^24 = 100,663,296 and more
    expect(file, ErrorCode::limit_exceeded);
  }
  SECTION("2^64 - 1") {
    for (std::size_t i = 0; i < 8; ++i) file[i] = '\xff';
    expect(file, ErrorCode::limit_exceeded);
  }
  SECTION("beyond the file") {
    file[2] = 1;
    expect(file, ErrorCode::truncated);
  }
  SECTION("zero") { expect(std::string(16, '\0'), ErrorCode::corrupt); }
}

TEST_CASE("safetensors: a header that is not one") {
  expect(safetensors_file("[]", ""), ErrorCode::bad_magic);
  expect(safetensors_file("{\"a\":", ""), ErrorCode::corrupt);
  expect(safetensors_file("{} {}", ""), ErrorCode::corrupt);
  expect(safetensors_file("{\"\xff\":{}}", ""), ErrorCode::invalid_encoding);
  std::string deep = "{\"a\":";
  for (int i = 0; i < 1'000'000; ++i) deep += '[';
  expect(safetensors_file(deep, ""), ErrorCode::limit_exceeded);
}

TEST_CASE("safetensors: entries") {
  expect_header("{\"a\":7}", 0, ErrorCode::corrupt, "tensor a");
  expect_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, ErrorCode::corrupt, "data_offsets");
  expect_header("{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, ErrorCode::corrupt, "dtype");
  expect_header("{" + entry("a", "F32", "-1", "0", "4") + "}", 4, ErrorCode::corrupt, "tensor a");
  expect_header("{" + entry("a", "F32", "1.0", "0", "4") + "}", 4, ErrorCode::corrupt, "tensor a");
  expect_header("{" + entry("a", "F32", "1", "0", "4,4") + "}", 4, ErrorCode::corrupt, "tensor a");
  expect_header("{" + entry("a", "F32", "1", "0", "18446744073709551615") + "}", 4, ErrorCode::corrupt, "tensor a");
  expect_header("{" + entry("a", "F32", "1", "0", "4") + "," + entry("a", "F32", "1", "4", "8") + "}", 8,
                ErrorCode::corrupt, "duplicate");
}

TEST_CASE("safetensors: types") {
  for (const char* type : {"F8_E5M2", "U16", "U32", "F64", "C64", "f32", "Q4", ""}) {
    expect_header("{" + entry("a", type, "4", "0", "4") + "}", 4, ErrorCode::unsupported_type, "tensor a");
  }
}

TEST_CASE("safetensors: types of packed weights") {
  for (const auto& [type, bytes] :
       {std::pair{"I8", 1}, {"U8", 1}, {"I32", 4}, {"I64", 8}, {"F8_E4M3", 1}, {"BOOL", 1}}) {
    const std::string end = std::to_string(3 * bytes);
    const std::string data(static_cast<std::size_t>(3 * bytes), 'x');
    const std::string file = safetensors_file("{" + entry("a", type, "3", "0", end) + "}", data);
    const auto source = core::memory_source("memory", std::as_bytes(std::span(file)), nullptr);
    const auto tensors = load::read_safetensors_header(*source, 0);
    REQUIRE(tensors);
    CHECK((*tensors)[0].element > load::ElementType::bf16);
    expect_header("{" + entry("a", type, "3", "0", "7") + "}", 7, ErrorCode::corrupt, "tensor a");
  }
}

TEST_CASE("safetensors: offsets") {
  SECTION("begin after end") {
    expect_header("{" + entry("a", "F32", "1", "4", "0") + "}", 4, ErrorCode::corrupt, "tensor a");
  }
  SECTION("not shape times type") {
    expect_header("{" + entry("a", "F32", "2", "0", "4") + "}", 4, ErrorCode::corrupt, "tensor a");
  }
  SECTION("a product that wraps to the right size") {
    expect_header("{" + entry("a", "F32", "4294967296,4294967296", "0", "0") + "}", 0, ErrorCode::corrupt, "tensor a");
    expect_header("{" + entry("a", "F32", "4611686018427387905", "0", "4") + "}", 4, ErrorCode::corrupt, "tensor a");
  }
  SECTION("no elements") {
    expect_header("{" + entry("a", "F32", "0,8", "0", "0") + "}", 0, ErrorCode::corrupt, "tensor a");
  }
  SECTION("a gap") {
    expect_header("{" + entry("a", "F32", "1", "0", "4") + "," + entry("b", "F32", "1", "8", "12") + "}", 12,
                  ErrorCode::corrupt, "tensor b");
  }
  SECTION("a gap at the beginning") {
    expect_header("{" + entry("a", "F32", "1", "4", "8") + "}", 8, ErrorCode::corrupt, "tensor a");
  }
  SECTION("an alias") {
    expect_header("{" + entry("a", "F32", "1", "0", "4") + "," + entry("b", "F32", "1", "0", "4") + "}", 4,
                  ErrorCode::corrupt, "expected 4");
  }
  SECTION("an overlap") {
    expect_header("{" + entry("a", "F32", "2", "0", "8") + "," + entry("b", "F32", "2", "4", "12") + "}", 12,
                  ErrorCode::corrupt, "tensor b");
  }
  SECTION("leftovers") {
    expect_header("{" + entry("a", "F32", "1", "0", "4") + "}", 5, ErrorCode::corrupt, "end at 4");
  }
  SECTION("past the end") {
    expect_header("{" + entry("a", "F32", "1099511627776", "0", "4398046511104") + "}", 4, ErrorCode::truncated,
                  "tensor a");
  }
}
