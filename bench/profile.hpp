// The roofline of a test: adds up what the backend reports of its steps, and sets it against the machine's peaks.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <llminfer/llminfer.hpp>

#include "peaks.hpp"

namespace bench {

/// Collects passes from the engine's thread; the others are for the thread that runs the tests.
class Profile {
 public:
  void add(const llminfer::PassProfile& pass);

  /// Forgets what was collected; from now on only passes of `rows` tokens count, or all if 0.
  void reset(std::int32_t rows);
  /// A Markdown table of the passes since reset(). Measures the peaks if it has not yet.
  void print(std::ostream& out, const std::string& title);

 private:
  struct Sum {
    llminfer::StepKind kind = llminfer::StepKind::other;
    std::int64_t count = 0;
    double seconds = 0;
    std::int64_t bytes = 0;
    std::int64_t operations = 0;
  };

  std::mutex mutex_;
  std::int32_t wanted_rows_ = 0;
  std::vector<std::string> order_;  ///< names of steps, as they came first
  std::map<std::string, Sum> sums_;
  std::int64_t passes_ = 0;
  std::int64_t rows_ = 0;
  std::string level_;
  int threads_ = 0;
  std::map<std::string, Peaks> peaks_;  ///< per level and number of threads
};

}  // namespace bench
