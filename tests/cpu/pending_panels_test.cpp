// Weights whose panels are packed when they are needed.
#include <catch2/catch.hpp>

#include <atomic>
#include <thread>

#include "quant/format.hpp"
#include "tests/cpu/linear_support.hpp"
#include "tests/cpu/mixture.hpp"
#include "tests/cpu/model.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// Room for a unit, full of what was there before.
struct Room {
  explicit Room(const cpu::PendingPanels& panels, bool keep)
      : bytes(static_cast<std::size_t>(panels.unit_bytes()) + 64, 0xa5) {
    room.scratch = bytes.data() + (64 - reinterpret_cast<std::uintptr_t>(bytes.data()) % 64) % 64;
    room.keep = keep;
  }
  std::vector<std::uint8_t> bytes;
  cpu::PanelRoom room;
};

/// The unit's panels are those of the whole weight.
void check_unit(const cpu::PackedWeightView& part, const cpu::PackedWeight& whole, std::int32_t unit) {
  const std::int64_t first = std::int64_t{unit} * cpu::kUnitFeatures;
  REQUIRE(part.rows == std::min<std::int64_t>(cpu::kUnitFeatures, whole.rows() - first));
  const std::int64_t bytes = (part.rows + cpu::kPanelRows - 1) / cpu::kPanelRows * part.layout.bytes;
  CHECK(std::memcmp(part.data, whole.view().data + 2 * unit * part.layout.bytes, static_cast<std::size_t>(bytes)) == 0);
}

}  // namespace

TEST_CASE("panels that are packed when they are needed are those that are packed at once, for each type") {
  for (std::size_t t = 0; t < quant::formats().size(); ++t) {
    const auto type = static_cast<WeightType>(t);
    if (!cpu::panel_kind(type)) continue;
    for (const std::int64_t rows : {5, 32, 83}) {
      const std::int64_t cols = 3 * std::max(32, quant::format(type).block_values);
      INFO(quant::format(type).name << ", " << rows << " rows");
      const RandomWeight w = random_weight(type, rows, cols, static_cast<unsigned>(rows));
      const auto whole = cpu::pack_weight(w.view()).value();
      std::size_t released = 0;
      const auto release = [&](std::size_t, std::size_t count) { released += count; };
      const auto lazy = cpu::PackedWeight::pack_later(w.view(), nullptr, false, release).value();
      REQUIRE(lazy->pending());
      CHECK(lazy->stored().empty());
      Room scratch(*lazy->pending(), false), kept(*lazy->pending(), true);
      const std::int32_t units = lazy->pending()->units();
      std::vector<float> row(static_cast<std::size_t>(cols)), expected(row);
      for (std::int32_t unit = units; unit-- > 0;) {
        check_unit(lazy->pending()->unit(unit, scratch.room), *whole, unit);
        const std::int64_t last = std::min<std::int64_t>((unit + 1) * cpu::kUnitFeatures, rows) - 1;
        lazy->read_row(last, row.data(), scratch.room);
        whole->read_row(last, expected.data());
        CHECK(same_bits(row, expected));
      }
      CHECK(!lazy->complete());
      for (std::int32_t unit = units; unit-- > 0;) {
        REQUIRE(released == 0);
        const cpu::PackedWeightView part = lazy->pending()->unit(unit, kept.room);
        check_unit(part, *whole, unit);
        CHECK(part.data == lazy->view().data + 2 * unit * part.layout.bytes);  // it stays
      }
      CHECK(lazy->complete());
      CHECK(released == w.bytes.size());
      CHECK(!lazy->pending());
      CHECK(std::ranges::equal(lazy->stored(), whole->stored()));
      lazy->finish();
      CHECK(std::ranges::equal(lazy->stored(), whole->stored()));
    }
  }
}

TEST_CASE("units of a weight are taken in their order, whole and once") {
  const RandomWeight w = random_weight(WeightType::q8_0, 200, 64, 1);
  const auto lazy = cpu::PackedWeight::pack_later(w.view(), nullptr, false, {}).value();
  cpu::PendingPanels& panels = *lazy->pending();
  CHECK(panels.take(1) == std::pair(0, 1));
  CHECK(panels.take(3 * panels.unit_bytes()) == std::pair(1, 4));
  CHECK(panels.take(std::int64_t{1} << 40) == std::pair(4, 7));
  CHECK(panels.take(1 << 20) == std::pair(7, 7));
}

TEST_CASE("many threads that need the same panels at once get all of them, and pack each once") {
  const RandomWeight w = random_weight(WeightType::q4_k, 16 * 50 + 3, 512, 7);
  const auto whole = cpu::pack_weight(w.view()).value();
  for (int round = 0; round < 20; ++round) {
    std::atomic<std::size_t> released{0};
    std::atomic<int> wrong{0};
    const auto release = [&](std::size_t, std::size_t count) { released += count; };
    const auto lazy = cpu::PackedWeight::pack_later(w.view(), nullptr, false, release).value();
    cpu::PendingPanels& panels = *lazy->pending();
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        Room room(panels, t < 2);
        for (std::int32_t unit = 0; unit < panels.units(); ++unit) {
          const cpu::PackedWeightView part = panels.unit(unit, room.room);
          const auto bytes = static_cast<std::size_t>(part.layout.bytes);
          wrong += std::memcmp(part.data, whole->view().data + 2 * unit * part.layout.bytes, bytes) != 0;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(released == w.bytes.size());
    CHECK(lazy->complete());
  }
}

TEST_CASE("the source of a large weight is released part by part, each byte once, when it is packed") {
  const RandomWeight w = random_weight(WeightType::q8_0, 3000, 1024, 1);  // 3 MiB
  std::vector<int> released(w.bytes.size(), 0);
  std::size_t parts = 0;
  const auto release = [&](std::size_t offset, std::size_t count) {
    ++parts;
    REQUIRE(offset + count <= released.size());
    for (std::size_t i = offset; i < offset + count; ++i) ++released[i];
  };
  const auto lazy = cpu::PackedWeight::pack_later(w.view(), nullptr, false, release).value();
  cpu::PendingPanels& panels = *lazy->pending();
  for (std::int32_t unit = 0; unit < panels.units() / 2; ++unit) CHECK(panels.pack(unit));
  CHECK(parts == 1);
  CHECK(released.back() == 0);
  for (std::int32_t unit = 0; unit < panels.units(); ++unit) CHECK(panels.pack(unit));
  CHECK(parts == 4);
  CHECK(std::ranges::count(released, 1) == std::ssize(released));
}

TEST_CASE("a weight that cannot be packed later is an error at once") {
  RandomWeight w = random_weight(WeightType::q8_0, 32, 64, 1);
  w.bytes.pop_back();
  CHECK(cpu::PackedWeight::pack_later(w.view(), nullptr, false, {}).error().code == ErrorCode::invalid_argument);
}

TEST_CASE(
    "passes with weights that are prepared later have the same bits, and from the second on keep what they pack") {
  Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 32, .ffn = 160, .vocab = 150};
  for (const WeightType type : {WeightType::f32, WeightType::q8_0, WeightType::q4_1}) {
    const Model model = make_model(make_program(shape), type);
    const auto matrices = std::count_if(model.program.weights.begin(), model.program.weights.end(),
                                        [](const WeightSpec& spec) { return spec.rows > 1; });
    const auto tokens = random_tokens(60, shape.vocab);
    for (const std::string& level : cpu_levels()) {
      for (const int threads : {1, 3}) {
        CAPTURE(level, threads, weight_type_info(type).name);
        BackendOptions options;
        options.threads = threads;
        options.cpu_level = level;
        Driver eager(model, options, CacheType::f16);
        Driver lazy(model, make_cpu_backend(options).value(), CacheType::f16, 256, 40, 0, true);
        const auto pending = [&] {
          return std::count_if(lazy.weights.begin(), lazy.weights.end(), [](const auto& w) { return !w->complete(); });
        };
        CHECK(pending() == matrices);
        const auto expected = eager.feed(tokens, {30, 1, 29});
        CHECK(same_bits(lazy.feed({tokens.begin(), tokens.begin() + 30}, {30}),
                        {expected.begin(), expected.begin() + 30 * shape.vocab}));
        CHECK(pending() == matrices);
        CHECK(same_bits(lazy.feed(tokens, {30, 1, 29}), expected));
        CHECK(pending() <= 1);  // of the embedding table the tokens' rows
        for (const auto& weight : lazy.weights) {
          while (lazy.backend->prepare_more(*weight).value()) continue;
        }
        CHECK(pending() == 0);
        CHECK(same_bits(lazy.feed(tokens, {60}), expected));
      }
    }
  }
}

TEST_CASE("passes leave experts unprepared that no token chooses") {
  const Model model = make_model(make_mixture({.experts = 20, .used = 1, .layers = 1}), WeightType::q8_0);
  BackendOptions options;
  options.threads = 2;
  Driver eager(model, options, CacheType::f16);
  Driver lazy(model, make_cpu_backend(options).value(), CacheType::f16, 256, 40, 0, true);
  const std::vector<std::int32_t> tokens = {1, 2, 3};
  CHECK(same_bits(lazy.feed(tokens, {1}), eager.feed(tokens, {1})));
  std::ptrdiff_t experts = 0;
  for (std::size_t i = 0; i < lazy.weights.size(); ++i) {
    experts += lazy.weights[i]->complete() && model.program.weights[i].name.ends_with("gate");
  }
  CHECK(experts >= 1);
  CHECK(experts <= 2);  // of the second and the third token
}
