// What llminfer-bench prints: llama-bench's JSON, table and CSV with some fields more. Measures nothing.
#pragma once

#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include "measure.hpp"

namespace bench {

/// A test's outcome and the circumstances.
struct Record {
  std::string model_filename;
  llminfer::ModelInfo info;
  llminfer::EngineStats stats;
  std::int64_t model_bytes = 0;
  int threads = 0;  ///< as asked for; 0: chosen by the engine
  std::int32_t batch_tokens = 0;
  std::string cache_type;
  std::string cpu_level;  ///< forced level, or empty
  bool exact = false;
  int activation_bits = 16;
  int output_bits = 16;
  double load_ms = 0;
  double first_token_ms = 0;
  std::int64_t peak_rss_bytes = 0;
  std::string test_time;  ///< UTC, ISO 8601
  Test test;
  std::vector<Sample> samples;
};

/// Prints records as they come. One format each.
class Printer {
 public:
  virtual ~Printer() = default;
  virtual void begin() {}
  virtual void record(const Record& record) = 0;
  virtual void end() {}
};

/// `format` is "md", "json", "jsonl" or "csv"; null for any other. `show_load` adds a table of loads to "md".
std::unique_ptr<Printer> make_printer(const std::string& format, std::ostream& out, bool show_load);

/// Now, as `Record::test_time`.
std::string utc_now();

}  // namespace bench
