// Routing on the emulated GPU: the experts and factors of backend::choose_experts, and places and tiles that have each
// pair of a row and one of its experts once.
#include <catch2/catch.hpp>

#include <limits>
#include <random>

#include "backends/common/experts.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;
using gpu::Buffer;

namespace {

struct Case {
  int rows, experts, used, tile_rows;
  Scoring scoring = Scoring::softmax;
  bool normalize = false;
  std::vector<int> none = {};  ///< rows that are none
};

void check(const std::shared_ptr<gpu::Device>& device, const Case& c, unsigned seed) {
  CAPTURE(c.rows, c.experts, c.used, c.tile_rows);
  const auto rows = static_cast<std::size_t>(c.rows), experts = static_cast<std::size_t>(c.experts),
             used = static_cast<std::size_t>(c.used), pairs = rows * used;
  std::mt19937 random(seed);
  std::vector<float> logits(rows * experts);
  for (float& x : logits) x = static_cast<float>(random() % 13) * 0.5f - 3.0f;  // many are equal
  if (experts > used) logits[random() % logits.size()] = -std::numeric_limits<float>::infinity();
  std::vector<std::int32_t> positions(rows, 3);
  for (const int row : c.none) positions[static_cast<std::size_t>(row)] = -1;

  std::vector<Buffer> buffers;
  const auto room = [&]<class T>(std::size_t count, const T* from) {
    buffers.push_back(Buffer::make(device, static_cast<std::int64_t>(count * sizeof(T))).value());
    const Buffer& buffer = buffers.back();
    if (from) device->copy(buffer.at(), from, buffer.bytes()).value();
    device->wait().value();
    return buffer.at<T>();
  };
  constexpr const std::int32_t* kNew = nullptr;
  gpu::RouteArgs args{};
  args.logits = {room(logits.size(), logits.data()), c.experts};
  args.positions = room(rows, positions.data());
  args.rows = c.rows;
  args.experts = c.experts;
  args.used = c.used;
  args.scoring = static_cast<int>(c.scoring);
  args.normalize = c.normalize;
  args.scale = 1.5f;
  args.ranked = room(pairs, kNew);
  args.chosen = room(pairs, kNew);
  args.factors = room(pairs, static_cast<const float*>(nullptr));
  gpu::SortArgs& sort = args.sort;
  sort.chosen = args.chosen;
  sort.pairs = c.rows * c.used;
  sort.experts = c.experts;
  sort.used = c.used;
  sort.places = room(pairs, kNew);
  sort.rows = room(pairs, kNew);
  sort.expert_of = room(pairs, kNew);
  sort.tile_rows = c.tile_rows;
  sort.tile_count = std::min(sort.pairs, sort.pairs / c.tile_rows + c.experts + 1);
  const auto tile_count = static_cast<std::size_t>(sort.tile_count);
  sort.tiles = room(tile_count, static_cast<const gpu::ExpertTile*>(nullptr));
  device->check(device->kernels().route(device->stream(), args), "route").value();
  if (c.rows > 1) device->check(device->kernels().sort_pairs(device->stream(), sort), "sort_pairs").value();
  const auto fetch = [&]<class T>(const T* from, std::size_t count) {
    std::vector<T> to(count);
    device->copy(to.data(), from, static_cast<std::int64_t>(count * sizeof(T))).value();
    device->wait().value();
    return to;
  };
  const auto chosen = fetch(args.chosen, pairs), places = fetch(sort.places, pairs), of = fetch(sort.rows, pairs),
             expert_of = fetch(sort.expert_of, pairs);
  const auto factors = fetch(args.factors, pairs);
  const auto tiles = fetch(sort.tiles, tile_count);

  op::Moe op;
  op.gate.resize(experts);
  op.used = c.used;
  op.scoring = c.scoring;
  op.normalize = c.normalize;
  op.scale = args.scale;
  std::vector<std::int32_t> expected(used), seen(pairs, 0);
  std::vector<float> expected_factors(used);
  for (std::size_t r = 0; r < rows; ++r) {
    backend::choose_experts(op, &logits[r * experts], expected.data(), expected_factors.data());
    for (std::size_t j = 0; j < used; ++j) {
      const std::size_t pair = r * used + j, place = static_cast<std::size_t>(places[pair]);
      REQUIRE(place < pairs);
      ++seen[place];
      CHECK(of[place] == static_cast<int>(r));
      const bool none = positions[r] < 0;
      CHECK(chosen[pair] == (none ? c.experts : expected[j]));
      CHECK(expert_of[place] == (none ? -1 : expected[j]));
      CHECK(factors[pair] == Approx(none ? 0.0f : expected_factors[j]).epsilon(1e-6));
    }
  }
  CHECK(seen == std::vector<std::int32_t>(pairs, 1));
  std::size_t in_tiles = 0;
  std::int32_t least_tiles = 0, some = 0;
  for (const gpu::ExpertTile& tile : tiles) {
    REQUIRE(tile.count >= 0);
    REQUIRE(tile.count <= c.tile_rows);
    some += tile.count > 0;
    in_tiles += static_cast<std::size_t>(tile.count);
    for (std::int32_t i = 0; i < tile.count; ++i) {
      CHECK(--seen.at(static_cast<std::size_t>(tile.first + i)) == 0);
      CHECK(expert_of[static_cast<std::size_t>(tile.first + i)] == tile.expert);
    }
  }
  CHECK(in_tiles == pairs - c.none.size() * used);
  for (std::int32_t e = 0; e < c.experts; ++e) {
    least_tiles +=
        static_cast<std::int32_t>((std::count(chosen.begin(), chosen.end(), e) + c.tile_rows - 1) / c.tile_rows);
  }
  CHECK(some == least_tiles);
}

}  // namespace

TEST_CASE("Experts are chosen on the device as on the host, and their rows sorted") {
  unsigned seed = 0;
  for (const Machine& machine : machines(9)) {
    CAPTURE(machine.name);
    const auto device = make_machine(machine.options);
    for (const Case& c : {Case{1, 5, 2, 1}, Case{1, 1, 1, 1}, Case{3, 4, 4, 4, Scoring::sigmoid},
                          Case{9, 200, 8, 8, {}, true, {4, 8}}, Case{40, 7, 2, 8, Scoring::sigmoid, true, {0}},
                          Case{70, 3, 1, 64, {}, false, {}}, Case{3, 6, 3, 64, {}, true}}) {
      check(device, c, ++seed);
    }
  }
}

TEST_CASE("NaN is chosen last") {
  const auto device = make_machine();
  std::vector<float> logits = {std::numeric_limits<float>::quiet_NaN(), 1.0f, -5.0f};
  const Buffer memory = Buffer::make(device, 1024).value();
  device->copy(memory.at(), logits.data(), 12).value();
  const std::int32_t position = 0;
  device->copy(memory.at(64), &position, 4).value();
  const auto words = [&](std::int64_t i) { return memory.at<std::int32_t>(128 + 64 * i); };
  gpu::RouteArgs args{{memory.at<float>(), 3},
                      memory.at<std::int32_t>(64),
                      1,
                      3,
                      2,
                      0,
                      1,
                      1.0f,
                      words(0),
                      words(1),
                      memory.at<float>(512),
                      {}};
  args.sort.places = words(2);
  args.sort.rows = words(3);
  args.sort.expert_of = words(4);
  args.sort.tiles = memory.at<gpu::ExpertTile>(768);
  device->check(device->kernels().route(device->stream(), args), "route").value();
  std::vector<std::int32_t> chosen(2);
  device->copy(chosen.data(), args.chosen, 8).value();
  device->wait().value();
  CHECK(chosen == std::vector<std::int32_t>{1, 2});
}
