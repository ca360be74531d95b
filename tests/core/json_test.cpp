// JSON of untrusted origin: what is read, and what is refused.
#include <catch2/catch.hpp>

#include "core/json.hpp"

using namespace llminfer;
using core::Json;

namespace {

Json parse(std::string_view text) { return core::parse_json(text, "test").value(); }

ErrorCode refused(std::string_view text) {
  const auto json = core::parse_json(text, "test");
  REQUIRE_FALSE(json);
  CHECK_THAT(json.error().message, Catch::StartsWith("test: "));
  return json.error().code;
}

std::string nested(std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

}  // namespace

TEST_CASE("JSON values keep their types and order") {
  const Json json = parse(R"({"b": [1, -2, 18446744073709551615, 0.5, "x\u00e9\n", true, null], "a": {}, "": [[]]})");
  CHECK(json.dump() == R"({"b":[1,-2,18446744073709551615,0.5,"xé\u000a",true,null],"a":{},"":[[]]})");
  const Json::Array& list = json.find("b")->array();
  CHECK(list[0].integer() == 1);
  CHECK(list[1].integer() == -2);
  CHECK(list[2].is_integer());
  CHECK_FALSE(list[2].integer());  // does not fit 64 bits with a sign
  CHECK(list[2].number() == 18446744073709551616.0);
  CHECK(list[3].number() == 0.5);
  CHECK_FALSE(list[3].is_integer());
  CHECK(list[4].string() == "xé\n");
  CHECK(list[5].boolean() == true);
  CHECK(list[6].is_null());
  CHECK_FALSE(list[6].number());
  CHECK(json.find("a")->size() == 0);
  CHECK(json.find("none") == nullptr);
  CHECK(json.find("b")->find("b") == nullptr);
  CHECK(Json(std::uint64_t{7}).integer() == 7);
  CHECK(parse("5").integer() == 5);
  CHECK(parse("\"\\\"\\\\\"").dump() == "\"\\\"\\\\\"");
}

TEST_CASE("JSON that is refused") {
  for (const char* text : {"", "{", "[1,]", "{\"a\":1,}", "{a:1}", "01", "1 2", "nul", "\"\\u12\"", "[1e999]", "// x"}) {
    CAPTURE(text);
    CHECK(refused(text) == ErrorCode::corrupt);
  }
  CHECK(refused("{\"a\": 1, \"b\": {\"c\": 2, \"c\": 3}}") == ErrorCode::corrupt);
  CHECK(refused("\"\xff\"") == ErrorCode::invalid_encoding);
  CHECK(parse(nested(64)).is_array());
  CHECK(refused(nested(65)) == ErrorCode::limit_exceeded);
  CHECK(refused(std::string(1'000'000, '[')) == ErrorCode::limit_exceeded);
  CHECK(refused(std::string(1'000'000, '{')) == ErrorCode::corrupt);
}

TEST_CASE("numbers that are no integers are written so that nobody takes them for such") {
  CHECK(parse("[0.0, -3.0, 1e300, 10000.0, 0.5, 7]").dump() == "[0.0,-3.0,1e+300,10000.0,0.5,7]");
}

TEST_CASE("members of a type") {
  const Json json = parse(R"({"i": 3, "big": 9223372036854775808, "f": 1.5, "b": false, "s": "x", "n": null})");
  CHECK(core::json_int(json, "i", "test").value() == 3);
  CHECK(core::json_number(json, "i", "test").value() == 3.0);
  CHECK(core::json_number(json, "f", "test").value() == 1.5);
  CHECK(core::json_bool(json, "b", "test").value() == false);
  CHECK(core::json_string(json, "s", "test").value() == "x");
  for (const char* key : {"n", "none"}) {
    CHECK_FALSE(core::json_int(json, key, "test").value());
    CHECK_FALSE(core::json_string(json, key, "test").value());
  }
  for (const char* key : {"f", "big", "s", "b"}) {
    CHECK(core::json_int(json, key, "test").error().code == ErrorCode::corrupt);
  }
  CHECK(core::json_number(json, "s", "test").error().code == ErrorCode::corrupt);
  CHECK(core::json_bool(json, "i", "test").error().code == ErrorCode::corrupt);
  CHECK(core::json_string(json, "i", "test").error().code == ErrorCode::corrupt);
}
