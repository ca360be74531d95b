// Every architecture and rotary scaling end to end on the CPU backend: the tiny models of golden/models in exact mode
// give the logits and the greedy tokens of Hugging Face transformers.
#include <catch2/catch.hpp>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <llminfer/backend.hpp>

#include "arch/arch.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "load/hf.hpp"

using namespace llminfer;

namespace {

constexpr float kDecidedMargin = 0.05f;  // logits; below it two computations may choose different tokens

struct Reference {
  std::vector<std::int32_t> prompt, greedy;
  std::vector<float> last_logits, margins;
};

Reference read_reference(const std::string& model) {
  const core::Json json =
      core::parse_json(core::read_text_file(model + "/reference.json", 1 << 20).value(), "reference.json").value();
  return {json["prompt_ids"].get<std::vector<std::int32_t>>(), json["greedy"].get<std::vector<std::int32_t>>(),
          json["last_logits"].get<std::vector<float>>(), json["margins"].get<std::vector<float>>()};
}

/// One sequence on a compiled Program.
class Sequence {
 public:
  explicit Sequence(const std::string& model) {
    const load::Checkpoint checkpoint = load::open_hf_directory(model, true).value();
    program_ = arch::build_program(checkpoint).value();
    BackendOptions options;
    options.threads = 2;
    options.exact = true;
    backend_ = make_cpu_backend(options).value();
    std::vector<std::shared_ptr<const PreparedWeight>> weights;
    for (const WeightSpec& spec : program_.weights) {
      weights.push_back(backend_->prepare(checkpoint.read(*checkpoint.find(spec.name)).value()).value());
    }
    plan_ = backend_->compile(program_, std::move(weights), {}).value();
    for (const CacheGroup& group : program_.cache_groups) {
      caches_.push_back(backend_->make_cache(group, CacheType::f32, kPages).value());
    }
    pages_.resize(kPages);
    std::iota(pages_.begin(), pages_.end(), 0);
  }

  /// The logits after `tokens`, which come after those of earlier calls.
  std::vector<float> forward(std::vector<std::int32_t> tokens) {
    std::vector<std::int32_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), length_);
    Run run;
    run.rows = static_cast<std::int32_t>(tokens.size());
    run.first_position = length_;
    run.block_tables.assign(caches_.size(), pages_);
    const std::int32_t last = run.rows - 1;
    std::vector<float> logits(static_cast<std::size_t>(program_.vocab_size));
    Batch batch;
    batch.tokens = tokens;
    batch.positions = positions;
    batch.runs = {&run, 1};
    batch.logit_rows = {&last, 1};
    batch.logits = logits;
    std::vector<CacheStorage*> caches;
    for (const auto& cache : caches_) caches.push_back(cache.get());
    plan_->submit(batch, caches).value();
    plan_->wait().value();
    length_ += run.rows;
    return logits;
  }

 private:
  static constexpr std::int32_t kPages = 4;

  Program program_;
  std::shared_ptr<Backend> backend_;
  std::unique_ptr<Plan> plan_;
  std::vector<std::unique_ptr<CacheStorage>> caches_;
  std::vector<std::int32_t> pages_;
  std::int32_t length_ = 0;
};

double relative_error(const std::vector<float>& found, const std::vector<float>& expected) {
  double squares = 0, energy = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double difference = static_cast<double>(found[i]) - static_cast<double>(expected[i]);
    squares += difference * difference;
    energy += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return squares / energy;
}

}  // namespace

TEST_CASE("The tiny models on the CPU backend equal transformers") {
  for (const char* name : {"tiny-bf16", "llama3-rope", "linear-rope", "yarn-rope", "llama-biases", "mistral-window",
                           "qwen2", "qwen2-window"}) {
    INFO(name);
    const std::string model = std::string(LLMINFER_TEST_DATA "/models/") + name;
    const Reference reference = read_reference(model);
    REQUIRE(reference.greedy.size() == reference.margins.size());

    Sequence whole(model);
    std::vector<float> logits = whole.forward(reference.prompt);
    REQUIRE(logits.size() == reference.last_logits.size());
    CHECK(relative_error(logits, reference.last_logits) < 1e-6);

    // Teacher-forced: the model is given the reference's tokens, so that one close call does not spoil the rest.
    std::size_t decided = 0;
    for (std::size_t step = 0; step < reference.greedy.size(); ++step) {
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      if (reference.margins[step] >= kDecidedMargin) {
        CHECK(best == reference.greedy[step]);
        ++decided;
      }
      logits = whole.forward({reference.greedy[step]});
    }
    CHECK(decided * 2 > reference.greedy.size());

    Sequence pieces(model);
    for (std::size_t begin = 0; begin < reference.prompt.size(); begin += 7) {
      const std::size_t end = std::min(begin + 7, reference.prompt.size());
      logits = pieces.forward({reference.prompt.begin() + static_cast<std::ptrdiff_t>(begin),
                               reference.prompt.begin() + static_cast<std::ptrdiff_t>(end)});
    }
    CHECK(relative_error(logits, reference.last_logits) < 1e-6);
  }
}
