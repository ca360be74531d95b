// Checks of what a host hands to the backend: programs that no Builder made, and batches.
#pragma once

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
  };
  std::visit(Visitor{f}, op);
}

inline ValueId output_of(const Op& op) {
  return std::visit([](const auto& o) { return o.out; }, op);
}

/// Every index in range, every value written once and before it is read, widths that fit.
/// Errors: invalid_argument, shape_mismatch.
Result<void> check_program(const Program& program);

/// What a plan knows that a batch must fit.
struct BatchLimits {
  std::int32_t max_rows = 0;
  std::int64_t vocab_rows = 0;  ///< rows of the embedding table
  std::int64_t hidden_size = 0;
  std::int64_t vocab_size = 0;
  std::span<const CacheGroup> groups;
  std::span<const std::int32_t> pages;  ///< per group: pages of the storage
};

/// Errors: invalid_argument, naming the field and row.
Result<void> check_batch(const Batch& batch, const BatchLimits& limits);

}  // namespace llminfer::backend
