// A backend whose plans give rows of logits alone: what one was before there were candidates.
#pragma once

#include "tests/forwarding.hpp"

namespace llminfer::test {

inline std::shared_ptr<Backend> without_candidates(std::shared_ptr<Backend> backend) {
  struct Plain final : ForwardingBackend {
    using ForwardingBackend::ForwardingBackend;
    Result<std::unique_ptr<Plan>> compile(const Program& program,
                                          std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                          const PlanOptions& options) override {
      auto plan = ForwardingBackend::compile(program, std::move(weights), options);
      if (!plan) return plan;
      return std::unique_ptr<Plan>(new ForwardingPlan(std::move(*plan)));
    }
  };
  return std::make_shared<Plain>(std::move(backend));
}

}  // namespace llminfer::test
