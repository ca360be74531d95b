// Runs the Program of a checkpoint on the CPU backend, without an engine.
#pragma once

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <llminfer/backend.hpp>

#include "arch/arch.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::test {

/// One sequence on a compiled Program.
class ProgramRunner {
 public:
  explicit ProgramRunner(const std::string& model, bool exact = true) : ProgramRunner(model, cpu_backend(exact)) {}
  ProgramRunner(const std::string& model, std::shared_ptr<Backend> backend) : backend_(std::move(backend)) {
    checkpoint_ = load::open_checkpoint(model, true).value();
    program_ = arch::build_program(checkpoint_).value();
    std::vector<std::shared_ptr<const PreparedWeight>> weights;
    for (const WeightSpec& spec : program_.weights) {
      weights.push_back(backend_->prepare(checkpoint_.read(*checkpoint_.find(spec.name)).value()).value());
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

  const load::Checkpoint& checkpoint() const { return checkpoint_; }
  std::int64_t plan_bytes() const { return plan_->bytes(); }
  /// As the backend foresees them before weights are read.
  std::int64_t foreseen_plan_bytes() const {
    std::vector<WeightView> views;
    for (const WeightSpec& spec : program_.weights) {
      const load::TensorInfo& tensor = *checkpoint_.find(spec.name);
      views.push_back({tensor.name, tensor.type, tensor.rows, tensor.cols, {}, nullptr, tensor.details});
    }
    return backend_->plan_bytes(program_, views, {});
  }

 private:
  static constexpr std::int32_t kPages = 4;

  static std::shared_ptr<Backend> cpu_backend(bool exact) {
    BackendOptions options;
    options.threads = 2;
    options.exact = exact;
    return make_cpu_backend(options).value();
  }

  load::Checkpoint checkpoint_;
  Program program_;
  std::shared_ptr<Backend> backend_;
  std::unique_ptr<Plan> plan_;
  std::vector<std::unique_ptr<CacheStorage>> caches_;
  std::vector<std::int32_t> pages_;
  std::int32_t length_ = 0;
};

/// Squared error relative to the squares of what is expected.
inline double relative_error(const std::vector<float>& found, const std::vector<float>& expected) {
  double squares = 0, energy = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double difference = static_cast<double>(found[i]) - static_cast<double>(expected[i]);
    squares += difference * difference;
    energy += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return squares / energy;
}

}  // namespace llminfer::test
