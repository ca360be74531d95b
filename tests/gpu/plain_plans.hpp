// A backend whose plans give rows of logits alone: what one was before there were candidates.
#pragma once

#include <memory>
#include <utility>

#include <llminfer/backend.hpp>

namespace llminfer::test {

class PlainPlan final : public Plan {
 public:
  explicit PlainPlan(std::unique_ptr<Plan> plan) : plan_(std::move(plan)) {}
  std::int64_t bytes() const noexcept override { return plan_->bytes(); }
  Result<void> submit(const Batch& batch, std::span<CacheStorage* const> caches) override {
    return plan_->submit(batch, caches);
  }
  Result<void> wait() override { return plan_->wait(); }

 private:
  const std::unique_ptr<Plan> plan_;
};

class PlainBackend final : public Backend {
 public:
  explicit PlainBackend(std::shared_ptr<Backend> backend) : backend_(std::move(backend)) {}
  std::string_view name() const noexcept override { return backend_->name(); }
  std::string description() const override { return backend_->description(); }
  Result<void> supports(const Program& program, std::span<const WeightType> types) override {
    return backend_->supports(program, types);
  }
  std::int64_t prepared_bytes(WeightType type, std::int64_t rows, std::int64_t cols,
                              const WeightDetails& details) override {
    return backend_->prepared_bytes(type, rows, cols, details);
  }
  std::int64_t plan_bytes(const Program& program, std::span<const WeightView> weights,
                          const PlanOptions& options) override {
    return backend_->plan_bytes(program, weights, options);
  }
  std::int64_t page_bytes(const CacheGroup& group, CacheType type) override {
    return backend_->page_bytes(group, type);
  }
  Result<std::unique_ptr<PreparedWeight>> prepare(const WeightView& weight) override {
    return backend_->prepare(weight);
  }
  Result<std::unique_ptr<Plan>> compile(const Program& program,
                                        std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                        const PlanOptions& options) override {
    auto plan = backend_->compile(program, std::move(weights), options);
    if (!plan) return std::move(plan).error();
    return std::unique_ptr<Plan>(new PlainPlan(std::move(*plan)));
  }
  Result<std::unique_ptr<CacheStorage>> make_cache(const CacheGroup& group, CacheType type,
                                                   std::int32_t pages) override {
    return backend_->make_cache(group, type, pages);
  }

 private:
  const std::shared_ptr<Backend> backend_;
};

inline std::shared_ptr<Backend> without_candidates(std::shared_ptr<Backend> backend) {
  return std::make_shared<PlainBackend>(std::move(backend));
}

}  // namespace llminfer::test
