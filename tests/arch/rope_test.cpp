// Rotary tables against inverse frequencies that transformers 5.23 computed (see golden/models/make_models.py).
#include <catch2/catch.hpp>

#include <limits>
#include <vector>

#include "arch/rope.hpp"

using namespace llminfer;
using Kind = load::RopeScaling::Kind;

namespace {

load::ModelConfig config_of(double base, Kind kind, double factor) {
  load::ModelConfig config;
  config.head_dim = config.rotary_dim = 16;
  config.rope_base = base;
  config.rope_scaling.kind = kind;
  config.rope_scaling.factor = factor;
  config.rope_scaling.original_context = 64;
  return config;
}

void check_frequencies(const load::ModelConfig& config, const std::vector<double>& expected, double magnitude = 1) {
  const RopeTable table = arch::make_rope_table(config, false).value();
  REQUIRE(table.inverse_frequency.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CHECK(table.inverse_frequency[i] == Approx(expected[i]).epsilon(2e-7));
  }
  CHECK(table.magnitude == Approx(magnitude).epsilon(1e-7));
}

}  // namespace

TEST_CASE("Rotary table: no scaling") {
  check_frequencies(config_of(10000, Kind::none, 8),
                    {1.0, 0.3162277638912201, 0.10000000149011612, 0.03162277862429619, 0.009999999776482582,
                     0.003162277862429619, 0.0010000000474974513, 0.0003162277862429619});
}

TEST_CASE("Rotary table: linear") {
  check_frequencies(config_of(10000, Kind::linear, 4),
                    {0.25, 0.07905694097280502, 0.02500000037252903, 0.007905694656074047, 0.0024999999441206455,
                     0.0007905694656074047, 0.0002500000118743628, 7.905694656074047e-05});
}

TEST_CASE("Rotary table: llama3") {
  check_frequencies(config_of(500, Kind::llama3, 8),
                    {1.0, 0.4598632752895355, 0.09761662781238556, 0.01215615589171648, 0.005590170156210661,
                     0.0025707141030579805, 0.0011821769876405597, 0.0005436398205347359});
}

TEST_CASE("Rotary table: yarn") {
  load::ModelConfig config = config_of(500, Kind::yarn, 4);
  config.rope_scaling.beta_fast = 8;
  const std::vector<double> expected = {1.0,
                                        0.34489744901657104,
                                        0.1057371199131012,
                                        0.02431231178343296,
                                        0.011180340312421322,
                                        0.005141428206115961,
                                        0.0023643539752811193,
                                        0.0010872796410694718};
  check_frequencies(config, expected, 1.138629436111989);
  SECTION("an attention factor of the checkpoint") {
    config.rope_scaling.attention_factor = 1.5;
    check_frequencies(config, expected, 1.5);
  }
}

// The ramp of gpt-oss lies between dimensions 8.09 and 17.40; llama.cpp, and "truncate": true, have 8 and 18. These are
// the dimensions where the two differ, with others around them, of transformers' own GptOssConfig.
TEST_CASE("Rotary table: gpt-oss does not round the ramp of yarn") {
  load::ModelConfig config = config_of(150000, Kind::yarn, 32);
  config.head_dim = config.rotary_dim = 64;
  config.rope_scaling.original_context = 4096;
  config.rope_scaling.truncate = GENERATE(false, true);
  const RopeTable table = arch::make_rope_table(config, false).value();
  CHECK(table.magnitude == Approx(1.3465735902799727).epsilon(1e-7));
  const std::vector<double> exact = {0.0508132726,   0.0317056961,   0.0193349998,   0.0115920492,
                                     0.00679495931,  0.00386035908,  0.00209379266,  0.00105260219,
                                     0.000456483918, 0.000129318694, 3.83088118e-05, 2.63964685e-05};
  const std::vector<double> rounded = {0.0508132726,   0.0316207521,   0.0194509663,   0.0117921913,
                                       0.00701571396,  0.00406955462,  0.00227727205,  0.00120613095,
                                       0.000580947497, 0.000227947836, 3.83088118e-05, 2.63964685e-05};
  const std::vector<double>& expected = config.rope_scaling.truncate ? rounded : exact;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CHECK(table.inverse_frequency[8 + i] == Approx(expected[i]).epsilon(2e-7));
  }
  CHECK(table.inverse_frequency[1] == Approx(0.689044297).epsilon(2e-7));
  CHECK(table.inverse_frequency[31] == Approx(3.0235114e-07).epsilon(2e-7));
}

TEST_CASE("Rotary table: factors divide") {
  load::ModelConfig config = config_of(10000, Kind::factors, 1);
  config.rope_scaling.factors = {1, 2, 4, 8, 1, 1, 1, 1};
  const RopeTable plain = arch::make_rope_table(config_of(10000, Kind::none, 1), false).value();
  const RopeTable table = arch::make_rope_table(config, true).value();
  CHECK(table.interleaved);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(table.inverse_frequency[i] == plain.inverse_frequency[i] / config.rope_scaling.factors[i]);
  }
}

TEST_CASE("Rotary table: impossible parameters") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto code = [](const load::ModelConfig& config) {
    const Result<RopeTable> table = arch::make_rope_table(config, false);
    REQUIRE_FALSE(table);
    return table.error().code;
  };
  for (const Kind kind : {Kind::linear, Kind::llama3, Kind::yarn}) {
    for (const double factor : {0.0, -2.0, nan, 1e300})
      CHECK(code(config_of(10000, kind, factor)) == ErrorCode::corrupt);
  }
  load::ModelConfig config = config_of(10000, Kind::llama3, 8);
  SECTION("low above high") {
    config.rope_scaling.low_freq_factor = 4;
    CHECK(code(config) == ErrorCode::corrupt);
  }
  SECTION("original context") {
    config.rope_scaling.original_context = 0;
    CHECK(code(config) == ErrorCode::corrupt);
  }
  SECTION("slow above fast") {
    config.rope_scaling.kind = Kind::yarn;
    config.rope_scaling.beta_slow = 100;
    CHECK(code(config) == ErrorCode::corrupt);
  }
  SECTION("attention factor") {
    config.rope_scaling.kind = Kind::yarn;
    config.rope_scaling.attention_factor = nan;
    CHECK(code(config) == ErrorCode::corrupt);
  }
  SECTION("number of factors") {
    config.rope_scaling.factors = {1, 2};
    CHECK(code(config) == ErrorCode::shape_mismatch);
  }
  SECTION("a factor of zero") {
    config.rope_scaling.factors.assign(8, 0.0f);
    CHECK(code(config) == ErrorCode::corrupt);
  }
}
