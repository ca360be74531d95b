// The shape rules of Builder: every mistake has its code and names the value.
#include <catch2/catch.hpp>

#include <limits>
#include <llminfer/program.hpp>

using namespace llminfer;
using Catch::Contains;

namespace {

/// A description of one attention layer in which a test makes one mistake.
struct Fixture {
  Builder b{"test"};
  WeightId table = b.weight("table", 10, 8);
  std::int32_t rope = b.rope_table({{1.0f, 0.5f}, 1.0f, false});
  std::int32_t cache = b.cache_group({1, 1, 4, 0});
  ValueId x = b.embed(table, "x");
  ValueId q = b.linear(x, b.weight("q", 8, 8), "q");
  ValueId k = b.linear(x, b.weight("k", 4, 8), "k");
  ValueId v = b.linear(x, b.weight("v", 4, 8), "v");

  ValueId attend() { return b.attention(b.rope(q, 4, rope, "q_rope"), k, v, cache, 0, 2, 0.5f, "attention"); }
  Result<Program> finish() {
    const ValueId hidden = b.add(x, attend(), "sum");
    const ValueId logits = b.linear(hidden, table, "logits");
    return std::move(b).finish(hidden, logits);
  }
  void expect(ErrorCode code, const std::string& named) {
    const Result<Program> program = finish();
    REQUIRE_FALSE(program);
    CHECK(program.error().code == code);
    CHECK_THAT(program.error().message, Contains(named));
  }
};

}  // namespace

TEST_CASE("Builder: a correct description") {
  Fixture f;
  const Result<Program> program = f.finish();
  REQUIRE(program);
  CHECK(program->architecture == "test");
  CHECK(program->hidden_size == 8);
  CHECK(program->vocab_size == 10);
  CHECK(program->ops.size() == 8);
  CHECK(program->values.size() == 8);
  CHECK(program->weights.size() == 4);  // the table is tied
  CHECK(program->parameter_count() == 10 * 8 + 8 * 8 + 2 * 4 * 8);
  CHECK(program->values[static_cast<std::size_t>(program->logits)].name == "logits");
}

TEST_CASE("Builder: mixtures of experts") {
  Fixture f;
  op::Moe moe;
  moe.in = f.x;
  moe.router = f.b.linear(f.x, f.b.weight("router", 2, 8), "router");
  moe.gate = {f.b.weight("gate0", 6, 8), f.b.weight("gate1", 6, 8)};
  moe.up = {f.b.weight("up0", 6, 8), f.b.weight("up1", 6, 8)};
  moe.down = {f.b.weight("down0", 8, 6), f.b.weight("down1", 8, 6)};
  const auto refused = [&](ErrorCode code, const std::string& named) {
    CHECK(f.b.moe(moe, "mixture") == ValueId::none);
    f.expect(code, named);
  };
  SECTION("a correct one") {
    CHECK(f.b.width(f.b.moe(moe, "mixture")) == 8);
    CHECK(f.finish());
  }
  SECTION("more used than there are") {
    moe.used = 3;
    refused(ErrorCode::invalid_argument, "3 experts used, expected 1 to 2");
  }
  SECTION("none used") {
    moe.used = 0;
    refused(ErrorCode::invalid_argument, "0 experts used");
  }
  SECTION("a matrix too few") {
    moe.down.pop_back();
    refused(ErrorCode::invalid_argument, "1 down matrices");
  }
  SECTION("no experts") {
    moe.gate.clear(), moe.up.clear(), moe.down.clear();
    refused(ErrorCode::invalid_argument, "0 gate");
  }
  SECTION("a router of another width") {
    moe.router = f.x;
    refused(ErrorCode::shape_mismatch, "the router has width 8, expected 2");
  }
  SECTION("an expert of another shape") {
    moe.up[1] = moe.down[1];
    refused(ErrorCode::shape_mismatch, "down1 is [8, 6], expected [6, 8]");
  }
  SECTION("a shared expert without its gate") {
    moe.shared = f.x;
    refused(ErrorCode::invalid_argument, "needs its gate");
  }
  SECTION("a gate of another width") {
    moe.shared = moe.shared_gate = f.x;
    refused(ErrorCode::shape_mismatch, "gate has width 8, expected 1");
  }
  SECTION("a scale that is no number") {
    moe.scale = std::numeric_limits<float>::quiet_NaN();
    refused(ErrorCode::invalid_argument, "scale");
  }
}

TEST_CASE("Builder: width of a value") {
  Fixture f;
  CHECK(f.b.width(f.k) == 4);
  CHECK(f.b.width(ValueId::none) == 0);
  CHECK(f.b.width(ValueId{1000}) == 0);
}

TEST_CASE("Builder: shapes that do not fit") {
  Fixture f;
  SECTION("input of a linear") {
    f.b.linear(f.k, f.table, "wrong");
    f.expect(ErrorCode::shape_mismatch, "wrong");
  }
  SECTION("bias") {
    f.b.linear(f.x, f.table, "wrong", f.b.vector("bias", 9));
    f.expect(ErrorCode::shape_mismatch, "bias");
  }
  SECTION("norm weight") {
    f.b.rms_norm(f.x, f.b.vector("norm", 7), 1e-5f, "wrong");
    f.expect(ErrorCode::shape_mismatch, "norm");
  }
  SECTION("rope head size") {
    f.b.rope(f.x, 3, f.rope, "wrong");
    f.expect(ErrorCode::shape_mismatch, "wrong");
  }
  SECTION("rope rotates more than a head") {
    f.b.rope(f.x, 2, f.rope, "wrong");
    f.expect(ErrorCode::shape_mismatch, "wrong");
  }
  SECTION("glu") {
    f.b.glu(f.x, f.k, Activation::silu, "wrong");
    f.expect(ErrorCode::shape_mismatch, "wrong");
  }
  SECTION("add") {
    f.b.add(f.x, f.k, "wrong");
    f.expect(ErrorCode::shape_mismatch, "wrong");
  }
  SECTION("attention") {
    f.b.attention(f.q, f.k, f.x, f.cache, 0, 2, 1.0f, "wrong");
    f.expect(ErrorCode::shape_mismatch, "wrong");
  }
  SECTION("a name with two shapes") {
    f.b.weight("table", 8, 10);
    f.expect(ErrorCode::shape_mismatch, "table");
  }
}

TEST_CASE("Builder: arguments out of range") {
  Fixture f;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  SECTION("value") {
    f.b.add(f.x, ValueId{99}, "wrong");
    f.expect(ErrorCode::invalid_argument, "99");
  }
  SECTION("weight") {
    f.b.embed(WeightId{99}, "wrong");
    f.expect(ErrorCode::invalid_argument, "99");
  }
  SECTION("empty weight") {
    f.b.weight("empty", 0, 4);
    f.expect(ErrorCode::invalid_argument, "empty");
  }
  SECTION("huge weight") {
    f.b.weight("huge", std::int64_t{1} << 40, std::int64_t{1} << 40);
    f.expect(ErrorCode::invalid_argument, "huge");
  }
  SECTION("epsilon") {
    f.b.rms_norm(f.x, f.b.vector("norm", 8), nan, "wrong");
    f.expect(ErrorCode::invalid_argument, "epsilon");
  }
  SECTION("rotary table") {
    f.b.rope(f.x, 4, 7, "wrong");
    f.expect(ErrorCode::invalid_argument, "wrong");
  }
  SECTION("infinite frequency") {
    f.b.rope_table({{nan}, 1.0f, false});
    f.expect(ErrorCode::invalid_argument, "rotary table");
  }
  SECTION("cache group") {
    f.b.cache_group({1, 0, 4, 0});
    f.expect(ErrorCode::invalid_argument, "cache group");
  }
  SECTION("group of an attention") {
    f.b.attention(f.q, f.k, f.v, 5, 0, 2, 1.0f, "wrong");
    f.expect(ErrorCode::invalid_argument, "wrong");
  }
  SECTION("layer of an attention") {
    f.b.attention(f.q, f.k, f.v, f.cache, 1, 2, 1.0f, "wrong");
    f.expect(ErrorCode::invalid_argument, "wrong");
  }
  SECTION("scale") {
    f.b.attention(f.q, f.k, f.v, f.cache, 0, 2, nan, "wrong");
    f.expect(ErrorCode::invalid_argument, "scale");
  }
}

TEST_CASE("Builder: a layer of a cache is written once") {
  SECTION("twice") {
    Fixture f;
    f.attend();
    f.expect(ErrorCode::invalid_argument, "layer 0 of cache group 0");
  }
  SECTION("never") {
    Fixture f;
    f.b.cache_group({2, 1, 4, 0});
    f.expect(ErrorCode::invalid_argument, "cache group 1");
  }
}

TEST_CASE("Builder: heads are a multiple of KV heads") {
  Builder b("test");
  const std::int32_t cache = b.cache_group({1, 2, 4, 0});
  const ValueId x = b.embed(b.weight("table", 10, 12), "x");
  b.attention(x, x, x, cache, 0, 3, 1.0f, "attention");
  const Result<Program> program = std::move(b).finish(x, x);
  REQUIRE_FALSE(program);
  CHECK(program.error().code == ErrorCode::invalid_argument);
  CHECK_THAT(program.error().message, Contains("KV heads"));
}

TEST_CASE("Builder: the first mistake is the one that is told") {
  Fixture f;
  const ValueId wrong = f.b.add(f.x, f.k, "first");
  CHECK(wrong == ValueId::none);
  f.b.add(wrong, f.x, "second");
  f.expect(ErrorCode::shape_mismatch, "first");
}

TEST_CASE("Builder: embeddings fit the vocabulary and the hidden size") {
  Builder b("test");
  const ValueId x = b.embed(b.weight("table", 10, 8), "x");
  const ValueId logits = b.linear(x, b.weight("output", 11, 8), "logits");
  const Result<Program> program = std::move(b).finish(x, logits);
  REQUIRE_FALSE(program);
  CHECK(program.error().code == ErrorCode::shape_mismatch);
  CHECK_THAT(program.error().message, Contains("table"));
}

TEST_CASE("Builder: without logits") {
  Builder b("test");
  const ValueId x = b.embed(b.weight("table", 10, 8), "x");
  const Result<Program> program = std::move(b).finish(x, ValueId::none);
  REQUIRE_FALSE(program);
  CHECK(program.error().code == ErrorCode::invalid_argument);
}
