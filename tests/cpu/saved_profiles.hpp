// Profiles of passes, kept after the callback has had them.
#pragma once

#include <llminfer/profile.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace llminfer::test {

struct SavedProfile {
  std::int32_t rows;
  std::string level;
  int threads;
  std::vector<StepProfile> steps;  ///< but for the names, which were the callback's
  std::vector<std::string> names;
};

inline ProfileCallback save_to(std::vector<SavedProfile>& passes) {
  return [&passes](const PassProfile& pass) {
    SavedProfile& saved = passes.emplace_back(SavedProfile{pass.rows, std::string(pass.level), pass.threads, {}, {}});
    saved.steps.assign(pass.steps.begin(), pass.steps.end());
    for (const StepProfile& step : pass.steps) saved.names.emplace_back(step.name);
  };
}

}  // namespace llminfer::test
