// Broken GGUF containers: each rule of header, metadata and tensor directory has a file that breaks it.
#include <catch2/catch.hpp>

#include "load/gguf_file.hpp"
#include "tests/load/gguf_writer.hpp"

using namespace llminfer;
using namespace llminfer::test;
using load::GgufType;

namespace {

/// The code with which a file is refused; the message names the source and, if given, `part`.
ErrorCode refused(const std::string& bytes, const std::string& part = "") {
  const auto file = load::parse_gguf(*source_of(bytes));
  REQUIRE_FALSE(file.has_value());
  INFO(file.error().message);
  CHECK(file.error().message.rfind("test.gguf: ", 0) == 0);
  CHECK(file.error().message.find(part) != std::string::npos);
  return file.error().code;
}

ErrorCode refused(const GgufWriter& file, const std::string& part = "") { return refused(file.bytes(), part); }

GgufWriter with_pair(std::uint32_t type, const std::string& value) { return GgufWriter().pair("k", type, value); }

GgufWriter with_record(const std::vector<std::uint64_t>& dimensions, std::uint32_t type, std::uint64_t offset = 0) {
  return GgufWriter().record("t", dimensions, type, offset);
}

}  // namespace

TEST_CASE("versions 2 and 3 are read") {
  for (const std::uint32_t version : {2u, 3u}) {
    const auto file = load::parse_gguf(*source_of(tiny_file(version).bytes())).value();
    CHECK(file.version == version);
    REQUIRE(file.tensors.size() == 2);
    CHECK(file.tensors[0].name == "token_embd.weight");
    CHECK(file.tensors[0].shape == std::vector<std::int64_t>{3, 4});
    CHECK(file.tensors[0].rows == 3);
    CHECK(file.tensors[0].cols == 4);
    CHECK(file.tensors[1].offset == file.tensors[0].offset + 64);
    CHECK(file.tensors[1].bytes == 16);
  }
}

TEST_CASE("a file that is cut at any byte is truncated") {
  const std::string whole = tiny_file().bytes();
  REQUIRE(load::parse_gguf(*source_of(whole)));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    INFO("cut at byte " << size);
    CHECK(refused(whole.substr(0, size)) == ErrorCode::truncated);
  }
}

TEST_CASE("magic and version") {
  GgufWriter file = tiny_file();
  file.magic = "GGML";
  CHECK(refused(file) == ErrorCode::bad_magic);
  CHECK(refused(std::string("PK")) == ErrorCode::bad_magic);
  file.magic = "FUGG";
  CHECK(refused(file) == ErrorCode::wrong_endianness);
  file.magic = "GGUF";
  file.version = 0x03000000;
  CHECK(refused(file) == ErrorCode::wrong_endianness);
  for (const std::uint32_t version : {0u, 1u, 4u, 0xffffffffu}) {
    file.version = version;
    CHECK(refused(file, "version " + std::to_string(version)) == ErrorCode::unsupported_version);
  }
}

TEST_CASE("counts and lengths that lie") {
  const auto lying = [](std::int64_t tensors, std::int64_t pairs) {
    GgufWriter file = tiny_file();
    file.extra_tensors = tensors;
    file.extra_pairs = pairs;
    return file;
  };
  CHECK(refused(lying(INT64_MIN, 0), "tensor count") == ErrorCode::limit_exceeded);
  CHECK(refused(lying(0, INT64_MIN), "metadata count") == ErrorCode::limit_exceeded);
  CHECK(refused(lying(-3, 0), "tensor count") == ErrorCode::limit_exceeded);
  CHECK(refused(lying(1000, 0), "tensor count") == ErrorCode::truncated);
  CHECK(refused(lying(0, 1000), "metadata count") == ErrorCode::truncated);

  CHECK(refused(with_pair(8, raw(std::uint64_t{1} << 63)), "'k'") == ErrorCode::limit_exceeded);
  CHECK(refused(with_pair(8, raw<std::uint64_t>(1000)), "'k'") == ErrorCode::truncated);
  for (const std::uint32_t element : {0u, 5u, 8u, 12u}) {
    CHECK(refused(with_pair(9, raw(element) + raw(std::uint64_t{1} << 63)), "'k'") == ErrorCode::limit_exceeded);
    CHECK(refused(with_pair(9, raw(element) + raw<std::uint64_t>(1000)), "'k'") == ErrorCode::truncated);
  }
  // 43 bytes that ask for an array of 2^63, and 160 that ask for a GiB of strings.
  const std::string small = with_pair(9, raw<std::uint32_t>(0) + raw(std::uint64_t{1} << 63)).bytes();
  CHECK(small.size() <= 49);
  CHECK(refused(small) == ErrorCode::limit_exceeded);
  CHECK(refused(with_pair(9, raw<std::uint32_t>(8) + raw<std::uint64_t>(1 << 27) + std::string(100, '\0'))) ==
        ErrorCode::truncated);
}

TEST_CASE("keys") {
  CHECK(refused(GgufWriter().u32("", 1), "key") == ErrorCode::corrupt);
  CHECK(refused(GgufWriter().u32("k", 1).u32("k", 1), "'k' occurs twice") == ErrorCode::corrupt);
  CHECK(refused(GgufWriter().u32(std::string(65536, 'k'), 1), "key") == ErrorCode::limit_exceeded);
  CHECK(refused(GgufWriter().u32("\xff", 1), "key") == ErrorCode::invalid_encoding);
  CHECK(load::parse_gguf(*source_of(GgufWriter().u32(std::string(65535, 'k'), 1).bytes())));
}

TEST_CASE("values") {
  for (const std::uint32_t type : {13u, 100u, 0xffffffffu}) {
    CHECK(refused(with_pair(type, std::string(16, '\0')), "'k'") == ErrorCode::unsupported_type);
    CHECK(refused(with_pair(9, raw(type) + std::string(16, '\0')), "'k'") == ErrorCode::unsupported_type);
  }
  CHECK(refused(with_pair(9, raw<std::uint32_t>(9) + std::string(16, '\0')), "array of arrays") ==
        ErrorCode::unsupported_type);
  CHECK(refused(with_pair(7, "\x02"), "'k'") == ErrorCode::corrupt);
  CHECK(refused(with_pair(9, raw<std::uint32_t>(7) + raw<std::uint64_t>(1) + "\x02"), "'k'") == ErrorCode::corrupt);

  GgufWriter all;
  all.number<std::uint8_t>("u8", GgufType::u8, 200).number<std::int8_t>("i8", GgufType::i8, -3);
  all.number<std::uint16_t>("u16", GgufType::u16, 60000).number<std::int16_t>("i16", GgufType::i16, -300);
  all.number<std::uint32_t>("u32", GgufType::u32, 1u << 31).number<std::int32_t>("i32", GgufType::i32, -70000);
  all.number<std::uint64_t>("u64", GgufType::u64, 1ull << 63).number<std::int64_t>("i64", GgufType::i64, -5);
  all.number<float>("f32", GgufType::f32, 0.5f).number<double>("f64", GgufType::f64, 0.25);
  all.boolean("bool", true).string("string", "text").strings("strings", {"", "b"});
  all.array<std::int16_t>("numbers", GgufType::i16, {-1, 2});
  const auto file = load::parse_gguf(*source_of(all.bytes())).value();
  const auto at = [&](const char* key) { return file.metadata.at(key).value; };
  CHECK(std::get<std::uint64_t>(at("u8")) == 200);
  CHECK(std::get<std::int64_t>(at("i8")) == -3);
  CHECK(std::get<std::uint64_t>(at("u16")) == 60000);
  CHECK(std::get<std::int64_t>(at("i16")) == -300);
  CHECK(std::get<std::uint64_t>(at("u32")) == 1u << 31);
  CHECK(std::get<std::int64_t>(at("i32")) == -70000);
  CHECK(std::get<std::uint64_t>(at("u64")) == 1ull << 63);
  CHECK(std::get<std::int64_t>(at("i64")) == -5);
  CHECK(std::get<double>(at("f32")) == 0.5);
  CHECK(std::get<double>(at("f64")) == 0.25);
  CHECK(std::get<bool>(at("bool")));
  CHECK(std::get<std::string>(at("string")) == "text");
  CHECK(std::get<std::vector<std::string>>(at("strings")) == std::vector<std::string>{"", "b"});
  CHECK(std::get<load::GgufNumbers>(at("numbers")).bytes.size() == 4);
}

TEST_CASE("alignment") {
  const auto aligned = [](std::uint32_t value) { return GgufWriter().u32("general.alignment", value); };
  for (const std::uint32_t value : {0u, 3u, 48u, 0xffffffffu}) {
    CHECK(refused(aligned(value), "general.alignment") == ErrorCode::corrupt);
  }
  CHECK(refused(aligned(1u << 21), "general.alignment") == ErrorCode::limit_exceeded);
  CHECK(refused(GgufWriter().number<std::uint64_t>("general.alignment", GgufType::u64, 32), "u32") ==
        ErrorCode::corrupt);
  CHECK(refused(GgufWriter().string("general.alignment", "32"), "u32") == ErrorCode::corrupt);
  for (const std::uint32_t value : {1u, 8u, 64u, 1u << 20}) {
    GgufWriter file = aligned(value);
    file.alignment = value;
    file.f32_tensor("a", {1}, {1}).f32_tensor("b", {1}, {2});
    const auto parsed = load::parse_gguf(*source_of(file.bytes())).value();
    CHECK(parsed.tensors[1].offset % value == 0);
  }
}

TEST_CASE("tensor shapes and types") {
  constexpr std::uint64_t kBig = std::uint64_t{1} << 62;
  CHECK(refused(with_record({1, 1, 1, 1, 1}, 0), "'t'") == ErrorCode::corrupt);
  CHECK(refused(with_record({4, 0}, 0), "'t'") == ErrorCode::corrupt);
  CHECK(refused(with_record({0}, 0), "'t'") == ErrorCode::corrupt);
  CHECK(refused(with_record({kBig, 4}, 0), "'t'") == ErrorCode::corrupt);                 // 2^64 wraps to 0
  CHECK(refused(with_record({std::uint64_t{1} << 63}, 0), "'t'") == ErrorCode::corrupt);  // above int64_t
  CHECK(refused(with_record({kBig}, 0), "'t'") == ErrorCode::corrupt);                    // 2^64 bytes
  CHECK(refused(with_record({kBig / 2}, 0), "'t'") == ErrorCode::truncated);
  CHECK(refused(with_record({33}, 2), "Q4_0") == ErrorCode::corrupt);
  CHECK(refused(with_record({32, 3}, 12), "Q4_K") == ErrorCode::corrupt);
  for (const std::uint32_t type : {4u, 9u, 15u, 24u, 26u, 31u, 42u, 0xffffffffu}) {
    CHECK(refused(with_record({32}, type), "'t': ggml type " + std::to_string(type)) == ErrorCode::unsupported_type);
  }
  // No dimensions at all; four bytes of padding keep the record as long as the shortest legal one.
  CHECK(refused(GgufWriter().record("name", {}, 0, 0).bytes() + std::string(32, '\0'), "'name'") == ErrorCode::corrupt);
}

TEST_CASE("tensor names") {
  CHECK(refused(GgufWriter().tensor("", {1}, 0, "abcd"), "tensor name") == ErrorCode::corrupt);
  CHECK(refused(GgufWriter().tensor(std::string(65, 't'), {1}, 0, "abcd"), "tensor name") == ErrorCode::limit_exceeded);
  CHECK(refused(GgufWriter().tensor("\xc0\x80", {1}, 0, "abcd"), "tensor name") == ErrorCode::invalid_encoding);
  CHECK(refused(tiny_file().tensor("output_norm.weight", {1}, 0, "abcd"), "'output_norm.weight' occurs twice") ==
        ErrorCode::corrupt);
  CHECK(load::parse_gguf(*source_of(GgufWriter().tensor(std::string(64, 't'), {1}, 0, "abcd").bytes())));
}

TEST_CASE("tensor places") {
  CHECK(refused(with_record({1}, 0, 0), "'t'") == ErrorCode::truncated);
  CHECK(refused(with_record({1}, 0, 4), "alignment") == ErrorCode::corrupt);
  CHECK(refused(with_record({1}, 0, ~std::uint64_t{31}), "'t'") == ErrorCode::corrupt);  // offset + start wraps
  CHECK(refused(with_record({1}, 0, std::uint64_t{1} << 40), "'t'") == ErrorCode::truncated);
  GgufWriter overlap;
  overlap.tensor("a", {16}, 0, std::string(64, 'a')).record("b", {1}, 0, 32);
  CHECK(refused(overlap, "overlap") == ErrorCode::corrupt);
  GgufWriter alias;
  alias.tensor("a", {1}, 0, "abcd").record("b", {1}, 0, 0);
  CHECK(refused(alias, "overlap") == ErrorCode::corrupt);
  GgufWriter swapped;  // the order of the records is free
  swapped.record("b", {1}, 0, 32).tensor("a", {1}, 0, std::string(64, 'a'));
  CHECK(load::parse_gguf(*source_of(swapped.bytes())));
}
