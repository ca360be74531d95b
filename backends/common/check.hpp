// Checks of what a host hands to a backend: programs that no Builder made, batches, calls of caches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>

#include <llminfer/backend.hpp>

namespace llminfer::backend {

/// Calls f(value) for each operand of an operation (an operand that occurs twice, twice).
template <class F>
void for_each_input(const Op& op, F f) {
  struct Visitor {
    F& f;
    void operator()(const op::Embed&) {}
    void operator()(const op::Linear& o) { f(o.in); }
    void operator()(const op::RmsNorm& o) { f(o.in); }
    void operator()(const op::Rope& o) { f(o.in); }
    void operator()(const op::Attention& o) { f(o.q), f(o.k), f(o.v); }
    void operator()(const op::Glu& o) { f(o.gate), f(o.up); }
    void operator()(const op::Add& o) { f(o.a), f(o.b); }
    void operator()(const op::Reduce& o) { f(o.in); }
    void operator()(const op::Moe& o) {
      f(o.in), f(o.router);
      if (o.shared != ValueId::none) f(o.shared), f(o.shared_gate);
    }
  };
  std::visit(Visitor{f}, op);
}

inline ValueId output_of(const Op& op) {
  return std::visit([](const auto& o) { return o.out; }, op);
}

/// Every index in range, every value written once and before it is read, widths that fit.
/// Errors: invalid_argument, shape_mismatch.
Result<void> check_program(const Program& program);

/// That PlanOptions::reduce is there if the program needs it. Errors: invalid_argument.
Result<void> check_reduction(const Program& program, const PlanOptions& options);

/// What a batch must fit beside the program.
struct BatchLimits {
  std::int32_t max_rows = 0;
  std::int64_t vocab_rows = 0;          ///< rows of the embedding table
  std::span<const std::int32_t> pages;  ///< per cache group: pages of the storage
  std::int32_t max_candidates = 0;      ///< Plan::max_candidates()
};

/// Errors: invalid_argument, naming the field and row.
Result<void> check_batch(const Batch& batch, const Program& program, const BatchLimits& limits);

/// What a batch's rows are given.
struct WantedLogits {
  std::size_t rows = 0;        ///< whose logits are wanted whole
  std::size_t candidates = 0;  ///< of all others
  bool sums = false;
  bool draws = false;
};
WantedLogits wanted_logits(const Batch& batch) noexcept;

/// Of a cache that is to be made. Errors: invalid_argument.
Result<void> check_cache(const CacheGroup& group, CacheType type, std::int32_t pages, std::int32_t max_head_dim);

/// Of the calls of a CacheStorage of so many pages. Errors: invalid_argument.
Result<void> check_copy(std::int32_t from, std::int32_t to, std::int32_t tokens, std::int32_t pages);
/// Of export_page and import_page, the `call`: `bytes` are given, `expected` make up a page.
Result<void> check_transfer(std::int32_t page, std::int32_t pages, std::size_t bytes, std::int64_t expected,
                            const char* call);

}  // namespace llminfer::backend
