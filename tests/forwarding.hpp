// Backends, plans and caches that pass on what they are asked, so that a test overrides the little that it changes.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <llminfer/backend.hpp>

namespace llminfer::test {

/// What a plan of before candidates has, too.
class ForwardingPlan : public Plan {
 public:
  explicit ForwardingPlan(std::unique_ptr<Plan> inner) : inner_(std::move(inner)) {}
  std::int64_t bytes() const noexcept override { return inner_->bytes(); }
  Result<void> submit(const Batch& batch, std::span<CacheStorage* const> caches) override {
    return inner_->submit(batch, caches);
  }
  Result<void> wait() override { return inner_->wait(); }

 private:
  const std::unique_ptr<Plan> inner_;
};

class ForwardingCache : public CacheStorage {
 public:
  explicit ForwardingCache(std::unique_ptr<CacheStorage> inner) : inner_(std::move(inner)) {}
  CacheStorage* inner() const noexcept { return inner_.get(); }
  std::int64_t bytes() const noexcept override { return inner_->bytes(); }
  Result<void> copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) override {
    return inner_->copy_page(from, to, tokens);
  }
  std::int64_t canonical_page_bytes() const noexcept override { return inner_->canonical_page_bytes(); }
  Result<void> export_page(std::int32_t page, std::span<std::byte> out) override {
    return inner_->export_page(page, out);
  }
  Result<void> import_page(std::int32_t page, std::span<const std::byte> in) override {
    return inner_->import_page(page, in);
  }

 private:
  const std::unique_ptr<CacheStorage> inner_;
};

/// Of a backend whose caches are ForwardingCaches.
class UnwrappingPlan final : public ForwardingPlan {
 public:
  using ForwardingPlan::ForwardingPlan;
  Result<void> submit(const Batch& batch, std::span<CacheStorage* const> caches) override {
    std::vector<CacheStorage*> inner;
    for (CacheStorage* cache : caches) inner.push_back(static_cast<ForwardingCache*>(cache)->inner());
    return ForwardingPlan::submit(batch, inner);
  }
};

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::shared_ptr<Backend> inner) : inner_(std::move(inner)) {}
  std::string_view name() const noexcept override { return inner_->name(); }
  std::string description() const override { return inner_->description(); }
  Result<void> supports(const Program& program, std::span<const WeightType> types) override {
    return inner_->supports(program, types);
  }
  std::int64_t prepared_bytes(WeightType type, std::int64_t rows, std::int64_t cols,
                              const WeightDetails& details) override {
    return inner_->prepared_bytes(type, rows, cols, details);
  }
  std::int64_t plan_bytes(const Program& program, std::span<const WeightView> weights,
                          const PlanOptions& options) override {
    return inner_->plan_bytes(program, weights, options);
  }
  std::int64_t page_bytes(const CacheGroup& group, CacheType type) override { return inner_->page_bytes(group, type); }
  Result<std::unique_ptr<PreparedWeight>> prepare(const WeightView& weight) override { return inner_->prepare(weight); }
  Result<std::unique_ptr<Plan>> compile(const Program& program,
                                        std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                        const PlanOptions& options) override {
    return inner_->compile(program, std::move(weights), options);
  }
  Result<std::unique_ptr<CacheStorage>> make_cache(const CacheGroup& group, CacheType type,
                                                   std::int32_t pages) override {
    return inner_->make_cache(group, type, pages);
  }

 private:
  const std::shared_ptr<Backend> inner_;
};

}  // namespace llminfer::test
