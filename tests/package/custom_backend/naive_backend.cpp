// Weights and cache pages of the naive backend. No function throws: memory that runs out is an error like others.
#include "naive_backend.hpp"

#include <cstring>
#include <new>

using namespace llminfer;

namespace naive {
namespace {

Error out_of_memory(const char* what) {
  return Error{ErrorCode::out_of_memory, std::string("naive backend: no memory for ") + what};
}

}  // namespace

Cache::Cache(const CacheGroup& group, std::int32_t pages) : group_(group), pages_(pages) {
  values_.resize(static_cast<std::size_t>(pages) * page_values());
}

std::size_t Cache::page_values() const noexcept {
  return static_cast<std::size_t>(group_.layers) * 2 * kPageTokens * static_cast<std::size_t>(group_.kv_heads) *
         static_cast<std::size_t>(group_.head_dim);
}

float* Cache::row(std::int32_t page, std::int32_t layer, int which, std::int32_t token) noexcept {
  const std::size_t plane = static_cast<std::size_t>(page) * static_cast<std::size_t>(group_.layers) * 2 +
                            static_cast<std::size_t>(layer) * 2 + static_cast<std::size_t>(which);
  return values_.data() + (plane * kPageTokens + static_cast<std::size_t>(token)) *
                              static_cast<std::size_t>(group_.kv_heads) * static_cast<std::size_t>(group_.head_dim);
}

Result<void> Cache::copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) {
  if (from < 0 || from >= pages_ || to < 0 || to >= pages_ || tokens < 0 || tokens > kPageTokens) {
    return Error{ErrorCode::invalid_argument, "naive backend: copy_page outside of the cache"};
  }
  const std::size_t size = sizeof(float) * static_cast<std::size_t>(tokens) *
                           static_cast<std::size_t>(group_.kv_heads) * static_cast<std::size_t>(group_.head_dim);
  for (std::int32_t layer = 0; layer < group_.layers; ++layer) {
    for (int which = 0; which < 2; ++which) std::memcpy(row(to, layer, which, 0), row(from, layer, which, 0), size);
  }
  return {};
}

std::int64_t Cache::canonical_page_bytes() const noexcept {
  return static_cast<std::int64_t>(page_values() * sizeof(float));
}

Result<void> Cache::export_page(std::int32_t page, std::span<std::byte> out) {
  if (page < 0 || page >= pages_ || out.size() != page_values() * sizeof(float)) {
    return Error{ErrorCode::invalid_argument, "naive backend: export_page of a wrong page or size"};
  }
  std::memcpy(out.data(), row(page, 0, 0, 0), out.size());
  return {};
}

Result<void> Cache::import_page(std::int32_t page, std::span<const std::byte> in) {
  if (page < 0 || page >= pages_ || in.size() != page_values() * sizeof(float)) {
    return Error{ErrorCode::invalid_argument, "naive backend: import_page of a wrong page or size"};
  }
  std::memcpy(row(page, 0, 0, 0), in.data(), in.size());
  return {};
}

/// Every weight type that llminfer can unpack, every operation of program.hpp.
Result<void> Backend::supports(const Program&, std::span<const WeightType>) { return {}; }

std::int64_t Backend::prepared_bytes(WeightType, std::int64_t rows, std::int64_t cols, const WeightDetails&) {
  return rows * cols * static_cast<std::int64_t>(sizeof(float));
}

std::int64_t Backend::plan_bytes(const Program& program, std::span<const WeightView>, const PlanOptions& options) {
  std::int64_t width = 0;
  for (const ValueSpec& value : program.values) width += value.width;
  return width * options.max_batch_rows * static_cast<std::int64_t>(sizeof(float));
}

std::int64_t Backend::page_bytes(const CacheGroup& group, CacheType) {
  return std::int64_t{2} * group.layers * kPageTokens * group.kv_heads * group.head_dim *
         static_cast<std::int64_t>(sizeof(float));
}

Result<std::unique_ptr<PreparedWeight>> Backend::prepare(const WeightView& view) try {
  auto weight = std::make_unique<Weight>();
  weight->cols = view.cols;
  weight->values.resize(static_cast<std::size_t>(view.rows) * static_cast<std::size_t>(view.cols));
  Result<void> unpacked = unpack_rows(view, 0, view.rows, weight->values);
  if (!unpacked) return std::move(unpacked).error();
  return std::unique_ptr<PreparedWeight>(std::move(weight));
} catch (const std::bad_alloc&) {
  return out_of_memory("a weight");
}

Result<std::unique_ptr<Plan>> Backend::compile(const Program& program,
                                               std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                               const PlanOptions& options) try {
  return make_plan(program, std::move(weights), options);
} catch (const std::bad_alloc&) {
  return out_of_memory("activations");
}

Result<std::unique_ptr<CacheStorage>> Backend::make_cache(const CacheGroup& group, CacheType, std::int32_t pages) try {
  return std::unique_ptr<CacheStorage>(std::make_unique<Cache>(group, pages));
} catch (const std::bad_alloc&) {
  return out_of_memory("the KV cache");
}

}  // namespace naive
