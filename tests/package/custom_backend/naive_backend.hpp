// NaiveBackend: every operation as a loop over floats that sums in double. Made for reading, not for speed: an example
// of what a backend has to provide. It knows nothing of llminfer but the installed headers.
#pragma once

#include <llminfer/backend.hpp>

namespace naive {

/// A weight, unpacked. [rows, cols]
class Weight : public llminfer::PreparedWeight {
 public:
  std::int64_t bytes() const noexcept override { return static_cast<std::int64_t>(values.size() * sizeof(float)); }
  std::int64_t cols = 0;
  std::vector<float> values;
};

/// The pages of a group, all float whatever type was asked for: page, layer, K or V, token, then [kv_heads * head_dim].
/// That is the canonical layout, except that a page always has room for kPageTokens tokens.
class Cache : public llminfer::CacheStorage {
 public:
  Cache(const llminfer::CacheGroup& group, std::int32_t pages);
  std::int64_t bytes() const noexcept override { return static_cast<std::int64_t>(values_.size() * sizeof(float)); }
  llminfer::Result<void> copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) override;
  std::int64_t canonical_page_bytes() const noexcept override;
  llminfer::Result<void> export_page(std::int32_t page, std::span<std::byte> out) override;
  llminfer::Result<void> import_page(std::int32_t page, std::span<const std::byte> in) override;

  /// Key (which = 0) or value (1) of a token: [kv_heads * head_dim].
  float* row(std::int32_t page, std::int32_t layer, int which, std::int32_t token) noexcept;

 private:
  std::size_t page_values() const noexcept;

  llminfer::CacheGroup group_;
  std::int32_t pages_;
  std::vector<float> values_;
};

class Backend : public llminfer::Backend {
 public:
  std::string_view name() const noexcept override { return "naive"; }
  std::string description() const override { return "naive: loops over floats"; }
  llminfer::Result<void> supports(const llminfer::Program& program,
                                  std::span<const llminfer::WeightType> types) override;
  std::int64_t prepared_bytes(llminfer::WeightType type, std::int64_t rows, std::int64_t cols,
                              const llminfer::WeightDetails& details) override;
  std::int64_t plan_bytes(const llminfer::Program& program, std::span<const llminfer::WeightView> weights,
                          const llminfer::PlanOptions& options) override;
  std::int64_t page_bytes(const llminfer::CacheGroup& group, llminfer::CacheType type) override;
  llminfer::Result<std::unique_ptr<llminfer::PreparedWeight>> prepare(const llminfer::WeightView& weight) override;
  llminfer::Result<std::unique_ptr<llminfer::Plan>> compile(
      const llminfer::Program& program, std::vector<std::shared_ptr<const llminfer::PreparedWeight>> weights,
      const llminfer::PlanOptions& options) override;
  llminfer::Result<std::unique_ptr<llminfer::CacheStorage>> make_cache(const llminfer::CacheGroup& group,
                                                                       llminfer::CacheType type,
                                                                       std::int32_t pages) override;
};

/// The plan: the operations one after the other, each over all rows of the batch.
llminfer::Result<std::unique_ptr<llminfer::Plan>> make_plan(
    const llminfer::Program& program, std::vector<std::shared_ptr<const llminfer::PreparedWeight>> weights,
    const llminfer::PlanOptions& options);

}  // namespace naive
