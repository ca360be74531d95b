// Drivers whose cache lies in host memory, and sequences that take turns on it, for tests.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "tests/cpu/model.hpp"
#include "tests/gpu/machines.hpp"

namespace llminfer::test {

constexpr std::int32_t kSwapPages = 14;

inline Model swapped_model(int layers = 3, int window = 0) {
  return make_model(
      make_program(
          {.layers = layers, .heads = 2, .kv_heads = 1, .ffn = 32, .vocab = 48, .hidden = 32, .window = window}),
      WeightType::q4_0);
}

/// A driver with device memory for so many pages; 0: all.
inline Driver swapped_driver(const Model& model, std::shared_ptr<Backend> backend, std::int32_t resident,
                             CacheType type = CacheType::f16) {
  Driver driver(model, std::move(backend), type, 256, kSwapPages);
  if (resident == 0) return driver;
  for (std::size_t g = 0; g < driver.caches.size(); ++g) {
    driver.cache_pointers[g] = nullptr;
    driver.caches[g] =
        driver.backend->make_swapped_cache(model.program.cache_groups[g], type, kSwapPages, resident).value();
    driver.cache_pointers[g] = driver.caches[g].get();
  }
  return driver;
}

struct Turns {
  std::size_t sequences = 4, tokens = 1;
  std::size_t most = 3;      ///< pages of a pass
  std::size_t together = 1;  ///< passes of several sequences
};

/// Some sequences, alone and then several in a pass, forked, forgotten and begun anew.
inline std::vector<float> take_turns(Driver driver, const Turns& turns = {}) {
  std::uint32_t seed = 0;
  const auto some = [&](std::size_t count) { return random_tokens(count, driver.model.program.vocab_size, ++seed); };
  std::vector<float> all;
  const auto pass = [&](const std::vector<Feed>& feeds) {
    const std::vector<float> logits = driver.forward(feeds);
    all.insert(all.end(), logits.begin(), logits.end());
  };
  std::vector<Sequence> sequences(turns.sequences);
  for (Sequence& s : sequences) pass({{&s, some(turns.tokens)}});
  for (std::size_t i = 0; i < 2; ++i) pass({{&sequences[i], some(1)}});
  const std::size_t pages = sequences[0].tables[0].size();
  const auto together = [&](std::size_t first) {
    std::vector<Feed> feeds;
    for (std::size_t i = 0; i < sequences.size() && (i + 1) * pages <= turns.most; ++i) {
      feeds.push_back({&sequences[(first + i) % sequences.size()], some(1 + i % 2)});
    }
    pass(feeds);
  };
  for (std::size_t i = 0; i < turns.together; ++i) together(i + 1);
  pass({{&sequences.back(), some(1)}});

  Sequence fork = sequences[1];
  fork.tables[0].back() = driver.free_pages.back();
  driver.free_pages.pop_back();
  driver.caches[0]
      ->copy_page(sequences[1].tables[0].back(), fork.tables[0].back(), (fork.position - 1) % kPageTokens + 1)
      .value();
  pass({{&fork, some(1)}});
  pass({{&sequences[1], some(1)}});

  for (const std::int32_t page : sequences[2].tables[0]) {
    driver.caches[0]->forget_page(page);
    driver.free_pages.push_back(page);
  }
  sequences[2] = Sequence();
  for (const std::size_t i : {2, 0, 2}) pass({{&sequences[i], some(1)}});
  return all;
}

}  // namespace llminfer::test
