// One choice among 151,936 tokens: as Sampler::sample() makes it, and by the chain over all of them.
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "engine/sampler.hpp"
#include "tests/engine/letters.hpp"

using namespace llminfer;

namespace {

constexpr std::int32_t kTokens = 151936;

void choose(benchmark::State& state, const SamplingOptions& options, bool whole) {
  static const Tokenizer tokenizer = test::letters(kTokens);
  Sampler sampler = Sampler::create(options, tokenizer).value();
  std::mt19937 random(1);
  std::vector<Token> history(64);
  for (Token& token : history) token = static_cast<Token>(random() % 26);
  sampler.accept(history);
  // A few dozen likely tokens above noise.
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> logits(kTokens);
  for (float& x : logits) x = normal(random);
  for (int i = 0; i < 30; ++i) logits[random() % logits.size()] = static_cast<float>(10 + i % 7);
  for (auto _ : state) {
    const auto sample = whole ? engine::CandidateSampler::sample_whole(sampler, logits) : sampler.sample(logits);
    benchmark::DoNotOptimize(sample->token);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const auto add = [](const std::string& name, auto set) {
    SamplingOptions options;
    options.temperature = 0.8f;
    set(options);
    for (const bool whole : {false, true}) {
      const std::string full = name + (whole ? "/whole" : "/sample");
      benchmark::RegisterBenchmark(full.c_str(), choose, options, whole)->Unit(benchmark::kMicrosecond);
    }
  };
  using O = SamplingOptions;
  add("greedy", [](O& o) { o.temperature = 0; });
  add("temperature", [](O&) {});
  add("top_k=40", [](O& o) { o.top_k = 40; });
  add("top_p=0.95", [](O& o) { o.top_p = 0.95f; });
  add("min_p=0.05", [](O& o) { o.min_p = 0.05f; });
  add("usual", [](O& o) { o.top_k = 40, o.top_p = 0.95f, o.min_p = 0.05f, o.repetition_penalty = 1.1f; });
  add("logprobs=5", [](O& o) { o.logprobs = 5; });
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
