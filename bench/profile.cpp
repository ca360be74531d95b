#include "profile.hpp"

#include <iomanip>
#include <ostream>
#include <sstream>

namespace bench {
namespace {

std::string fixed(double value, int digits) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value;
  return text.str();
}

std::string percent(double part, double whole) { return whole > 0 ? fixed(100 * part / whole, 1) + " %" : "-"; }

}  // namespace

void Profile::add(const llminfer::PassProfile& pass) {
  const std::lock_guard lock(mutex_);
  if (wanted_rows_ > 0 && pass.rows != wanted_rows_) return;
  ++passes_;
  rows_ += pass.rows;
  level_ = pass.level;
  threads_ = pass.threads;
  for (const llminfer::StepProfile& step : pass.steps) {
    const auto [it, is_new] = sums_.try_emplace(std::string(step.name));
    if (is_new) order_.emplace_back(step.name);
    Sum& sum = it->second;
    sum.kind = step.kind;
    ++sum.count;
    sum.seconds += step.seconds;
    sum.bytes += step.weight_bytes + step.cache_bytes + step.activation_bytes;
    sum.operations += step.operations;
  }
}

void Profile::reset(std::int32_t rows) {
  const std::lock_guard lock(mutex_);
  wanted_rows_ = rows;
  order_.clear();
  sums_.clear();
  passes_ = 0;
  rows_ = 0;
}

void Profile::print(std::ostream& out, const std::string& title) {
  const std::lock_guard lock(mutex_);
  if (passes_ == 0) {
    out << '\n' << title << ": the backend reported no passes\n";
    return;
  }
  const auto [it, is_new] = peaks_.try_emplace(level_ + " " + std::to_string(threads_));
  if (is_new && threads_ > 0) it->second = measure_peaks(level_, threads_);
  const Peaks& peaks = it->second;

  out << '\n'
      << title << ": " << passes_ << " passes of " << fixed(double(rows_) / double(passes_), 1) << " tokens, level "
      << level_;
  if (threads_ > 0) {  // else a GPU, whose peaks gpu_bench measures
    out << ", " << threads_ << (threads_ == 1 ? " thread" : " threads") << ". Measured peaks: read "
        << fixed(peaks.read_bytes * 1e-9, 1) << " GB/s, int8 " << fixed(peaks.int8_ops * 1e-9, 0) << ", 16-bit words "
        << fixed(peaks.word_ops * 1e-9, 0) << " GOP/s, float "
        << fixed(peaks.float_ops * 1e-9, 0) << " GFLOP/s";
  }
  if (peaks.bf16_ops > 0) out << ", bf16 " << fixed(peaks.bf16_ops * 1e-9, 0) << " GFLOP/s";
  out << "\n\n"
      << "| step (bits per weight) | times | ms | share | MB | GB/s | of read peak | GOP | GOP/s | of peak |\n"
      << "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  double total_seconds = 0;
  for (const auto& [name, sum] : sums_) total_seconds += sum.seconds;
  const auto passes = static_cast<double>(passes_);
  const auto row = [&](const std::string& name, const Sum& sum, double op_peak) {
    const double bytes = static_cast<double>(sum.bytes) / passes, seconds = sum.seconds / passes;
    const double operations = static_cast<double>(sum.operations) / passes;
    const auto rate = [&](double amount) { return seconds > 0 ? amount / seconds : 0.0; };
    out << "| " << name << " | " << fixed(static_cast<double>(sum.count) / passes, sum.count % passes_ == 0 ? 0 : 1) << " | "
        << fixed(seconds * 1e3, 3) << " | " << percent(sum.seconds, total_seconds) << " | " << fixed(bytes * 1e-6, 2)
        << " | " << fixed(rate(bytes) * 1e-9, 1) << " | " << percent(rate(bytes), peaks.read_bytes) << " | "
        << fixed(operations * 1e-9, 3) << " | " << fixed(rate(operations) * 1e-9, 1) << " | "
        << percent(rate(operations), op_peak) << " |\n";
  };
  Sum total;
  for (const std::string& name : order_) {
    const Sum& sum = sums_.at(name);
    row(name, sum,
        sum.kind == llminfer::StepKind::linear      ? peaks.int8_ops
        : sum.kind == llminfer::StepKind::attention ? peaks.word_ops
                                                    : peaks.float_ops);
    total.count += sum.count;
    total.seconds += sum.seconds;
    total.bytes += sum.bytes;
    total.operations += sum.operations;
  }
  row("a pass", total, peaks.int8_ops);
  out << "\nMilliseconds, bytes and operations are those of a pass. Bytes are what must be moved at least, though "
         "caches may "
         "hold some of it; the peak of operations is int8 for linear layers and the sum (also where their weights are "
         "floats), that of words for attention (also over an f32 cache), float for the others.\n";
}

}  // namespace bench
