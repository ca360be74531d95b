// The tiny model, an engine with it, and what tests ask of it.
#pragma once

#include <llminfer/llminfer.hpp>

#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace llminfer::test::tiny {

inline const std::string kModel = std::string(LLMINFER_TEST_DATA) + "/models/tiny-bf16";

inline const nlohmann::json& reference() {
  static const nlohmann::json data = nlohmann::json::parse(std::ifstream(kModel + "/reference.json"));
  return data;
}

inline Engine load(EngineOptions options = {}) {
  if (options.threads == 0) options.threads = 2;
  return Engine::load(kModel, options).value();
}

inline std::vector<Token> prompt() { return reference()["prompt_ids"]; }

/// Of any of the tests' models: all have at least 256.
inline std::vector<Token> some_tokens(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Token> tokens(count);
  for (Token& token : tokens) token = static_cast<Token>(random() % 256);
  return tokens;
}

inline GenerateOptions sampled(std::int32_t tokens, std::uint64_t seed) {
  GenerateOptions options;
  options.max_tokens = tokens;
  options.ignore_end = true;
  options.sampling.temperature = 1.0f;
  options.sampling.top_p = 0.95f;
  options.sampling.seed = seed;
  return options;
}

template <class T>
void check_error(const Result<T>& result, ErrorCode code, const std::string& named) {
  REQUIRE_FALSE(result);
  CHECK(to_string(result.error().code) == to_string(code));
  CHECK_THAT(result.error().message, Catch::Contains(named));
}

}  // namespace llminfer::test::tiny
