// Sequences that decode together, for tests of graphs: passes of many shapes, on any plan.
#pragma once

#include <utility>
#include <vector>

#include "tests/cpu/model.hpp"
#include "tests/gpu/machines.hpp"

namespace llminfer::test {

/// A small model; `window` may be 0.
inline Model decoded_model(int layers = 1, int window = 0) {
  return make_model(make_program({.layers = layers,
                                  .heads = 2,
                                  .kv_heads = 1,
                                  .head_dim = 16,
                                  .ffn = 32,
                                  .vocab = 33,
                                  .hidden = 32,
                                  .window = window,
                                  .sinks = window > 0}),
                    WeightType::q4_0);
}

/// A machine, of a seed, and a backend on it.
struct Decoder {
  std::shared_ptr<gpu::Device> device;
  Driver driver;

  Decoder(const Model& model, const GpuOptions& options, CacheType cache = CacheType::f16,
          const gpu::EmulatorOptions& machine = {}, std::int32_t max_rows = 128)
      : Decoder(model, options, cache, make_machine(machine), max_rows) {}
  /// Shares the machine with others.
  Decoder(const Model& model, const GpuOptions& options, CacheType cache, std::shared_ptr<gpu::Device> shared,
          std::int32_t max_rows = 128)
      : device(shared), driver(model, gpu::make_backend(std::move(shared), options), cache, max_rows, 40, 3) {}

  /// The sequences' next tokens, so many of each; random ones. Only the last of each gives logits if `last_only`.
  std::vector<float> pass(const std::vector<std::pair<Sequence*, int>>& parts, bool last_only = false) {
    std::vector<std::int32_t> tokens, positions, wanted;
    std::vector<Run> runs;
    for (const auto& [sequence, count] : parts) {
      driver.grow(*sequence, count);
      Run run{static_cast<std::int32_t>(tokens.size()), count, sequence->position, {}};
      for (const auto& table : sequence->tables) run.block_tables.emplace_back(table);
      runs.push_back(run);
      for (int i = 0; i < count; ++i) {
        if (!last_only || i + 1 == count) wanted.push_back(static_cast<std::int32_t>(tokens.size()));
        tokens.push_back(
            static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(driver.model.program.vocab_size)));
        positions.push_back(sequence->position++);
      }
    }
    const std::vector<std::int32_t> last = {wanted.back()};
    std::vector<float> logits(wanted.size() * static_cast<std::size_t>(driver.model.program.vocab_size));
    std::vector<float> hidden(static_cast<std::size_t>(driver.model.program.hidden_size));
    Batch batch;
    batch.tokens = tokens;
    batch.positions = positions;
    batch.runs = runs;
    batch.logit_rows = wanted;
    batch.hidden_rows = last;
    batch.logits = logits;
    batch.hidden = hidden;
    ++passes;
    test::pass(driver, batch).value();
    logits.insert(logits.end(), hidden.begin(), hidden.end());
    return logits;
  }

  /// Another sequence with the same tokens so far: it shares full pages.
  Sequence fork(const Sequence& from) {
    Sequence to = from;
    const std::int32_t tokens = from.position % kPageTokens;
    for (std::size_t g = 0; tokens > 0 && g < to.tables.size(); ++g) {
      to.tables[g].back() = driver.free_pages.back();
      driver.caches[g]->copy_page(from.tables[g].back(), to.tables[g].back(), tokens).value();
    }
    if (tokens > 0) driver.free_pages.pop_back();
    return to;
  }

  std::mt19937 random{11};
  int passes = 0;
};

/// Prompts and decoding of one to four sequences that cross pages, the `longer` ones also the length where attention
/// gets more splits; a fork; runs of several rows, as speculation has them. Everything that the passes give.
inline std::vector<float> decode_all(Decoder& d, bool longer = false) {
  std::vector<float> all;
  const auto run = [&](const std::vector<std::pair<Sequence*, int>>& parts, int times, bool last_only = false) {
    for (int i = 0; i < times; ++i) {
      const std::vector<float> some = d.pass(parts, last_only);
      all.insert(all.end(), some.begin(), some.end());
    }
  };
  Sequence a, b, c;
  run({{&a, 62}}, 1);
  run({{&a, 1}}, 4);  // into the second page
  run({{&b, 3}, {&a, 1}}, 1);
  run({{&a, 1}, {&b, 1}}, 3);
  Sequence forked = d.fork(a);
  run({{&forked, 1}, {&a, 1}, {&b, 1}}, 3);
  run({{&c, longer ? 126 : 20}}, 2);
  run({{&a, 1}, {&c, 1}, {&b, 1}}, longer ? 6 : 3);  // beyond four pages
  run({{&c, 1}}, 3);
  run({{&a, 4}, {&b, 1}, {&c, 3}}, 3, true);
  run({{&a, 4}, {&b, 1}, {&c, 3}}, 2);
  run({{&a, 1}, {&b, 1}, {&forked, 1}, {&c, 1}}, 2);
  return all;
}

}  // namespace llminfer::test
