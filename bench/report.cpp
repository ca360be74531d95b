// What llminfer-bench prints.
#include "report.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <map>
#include <ostream>
#include <sstream>
#include <thread>
#include <utility>

#include <nlohmann/json.hpp>

namespace bench {
namespace {

using Json = nlohmann::ordered_json;

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

/// Of a sample: divides by n - 1.
double standard_deviation(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  const double m = mean(values);
  double sum = 0;
  for (const double v : values) sum += (v - m) * (v - m);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

std::vector<double> tokens_per_second(const Record& record) {
  std::vector<double> rates;
  for (const Sample& s : record.samples)
    rates.push_back(static_cast<double>(s.tokens) * 1e9 / static_cast<double>(std::max<std::int64_t>(s.ns, 1)));
  return rates;
}

std::string fixed(double value, int digits) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value;
  return text.str();
}

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const auto colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return std::to_string(std::thread::hardware_concurrency()) + " CPUs";
}

std::string count(std::int64_t n) {
  const auto value = static_cast<double>(n);
  return n >= 1'000'000'000 ? fixed(value * 1e-9, 2) + " B" : fixed(value * 1e-6, 2) + " M";
}

std::string size(std::int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib >= 1024 ? fixed(mib / 1024, 2) + " GiB" : fixed(mib, 2) + " MiB";
}

std::string model_type(const Record& record) {
  std::string type = record.info.architecture;
  return record.info.name.empty() ? type : type + " " + record.info.name;
}

/// The file's or folder's name, which also tells the quantization.
std::string model_label(const Record& record) {
  const std::filesystem::path path = std::filesystem::path(record.model_filename).lexically_normal();
  if (path.extension() == ".gguf") return path.stem().string();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

Json to_json(const Record& record) {
  std::vector<double> ns;
  std::vector<std::int64_t> samples_ns;
  for (const Sample& s : record.samples) {
    ns.push_back(static_cast<double>(s.ns));
    samples_ns.push_back(s.ns);
  }
  const auto rates = tokens_per_second(record);
  static const std::string cpu = cpu_model();
  return {
      {"build_commit", llminfer::version()},
      {"build_number", 0},
      {"build_compiler", __VERSION__},
      {"cpu_info", cpu},
      {"gpu_info", ""},
      {"backends", "CPU"},
      {"backend", record.info.backend},
      {"cpu_level", record.cpu_level},
      {"exact", record.exact},
      {"activation_bits", record.activation_bits},
      {"output_bits", record.output_bits},
      {"model_filename", record.model_filename},
      {"model_type", model_type(record)},
      {"model_size", record.model_bytes},
      {"model_n_params", record.info.parameters},
      {"n_batch", record.batch_tokens},
      {"n_ubatch", record.batch_tokens},
      {"n_threads", record.threads},
      {"type_k", record.cache_type},
      {"type_v", record.cache_type},
      {"n_prompt", record.test.n_prompt},
      {"n_gen", record.test.n_gen},
      {"n_depth", record.test.n_depth},
      {"n_parallel", std::max(record.test.n_parallel, 1)},
      {"test_time", record.test_time},
      {"avg_ns", std::llround(mean(ns))},
      {"stddev_ns", std::llround(standard_deviation(ns))},
      {"avg_ts", mean(rates)},
      {"stddev_ts", standard_deviation(rates)},
      {"samples_ns", samples_ns},
      {"samples_ts", rates},
      {"load_ms", record.load_ms},
      {"first_token_ms", record.first_token_ms},
      {"weight_bytes", record.stats.weight_bytes},
      {"cache_bytes", record.stats.cache_bytes},
      {"peak_rss_bytes", record.peak_rss_bytes},
  };
}

class JsonPrinter : public Printer {
 public:
  explicit JsonPrinter(std::ostream& out) : out_(out) {}
  void begin() override { out_ << "["; }
  void record(const Record& record) override {
    out_ << (first_ ? "\n" : ",\n") << to_json(record).dump(2) << std::flush;
    first_ = false;
  }
  void end() override { out_ << "\n]\n"; }

 private:
  std::ostream& out_;
  bool first_ = true;
};

class JsonLinesPrinter : public Printer {
 public:
  explicit JsonLinesPrinter(std::ostream& out) : out_(out) {}
  void record(const Record& record) override { out_ << to_json(record).dump() << std::endl; }

 private:
  std::ostream& out_;
};

/// The samples are left out, as llama-bench does.
class CsvPrinter : public Printer {
 public:
  explicit CsvPrinter(std::ostream& out) : out_(out) {}
  void record(const Record& record) override {
    Json fields = to_json(record);
    fields.erase("samples_ns");
    fields.erase("samples_ts");
    std::string header, row;
    for (const auto& [key, value] : fields.items()) {
      if (!row.empty()) header += ',', row += ',';
      header += key;
      row += quoted(value.is_string() ? value.get<std::string>() : value.dump());
    }
    if (std::exchange(first_, false)) out_ << header << '\n';
    out_ << row << std::endl;
  }

 private:
  static std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) result += c == '"' ? "\"\"" : std::string(1, c);
    return result + '"';
  }

  std::ostream& out_;
  bool first_ = true;
};

class MarkdownPrinter : public Printer {
 public:
  MarkdownPrinter(std::ostream& out, bool show_load) : out_(out), show_load_(show_load) {}
  void record(const Record& r) override {
    const auto rates = tokens_per_second(r);
    const std::string threads = r.threads > 0 ? std::to_string(r.threads) : "auto";
    backend_ = r.info.backend;
    if (!r.test.empty()) {
      if (std::exchange(first_, false)) {
        row({"model", "size", "params", "backend", "threads", "test", "t/s"});
        rule({false, true, true, false, true, true, true});
      }
      row({model_label(r), size(r.model_bytes), count(r.info.parameters), "CPU", threads, r.test.label(),
           fixed(mean(rates), 2) + " ± " + fixed(standard_deviation(rates), 2)});
    }
    loads_[r.model_filename + ", " + threads + " threads"] = r;
  }
  void end() override {
    if (show_load_) {
      out_ << "\n| load | load ms | to first token ms | weights | KV cache | peak RSS |\n"
              "| --- | ---: | ---: | ---: | ---: | ---: |\n";
      for (const auto& [name, r] : loads_) {
        out_ << "| " << name << " | " << fixed(r.load_ms, 1) << " | " << fixed(r.first_token_ms, 1) << " | "
             << size(r.stats.weight_bytes) << " | " << size(r.stats.cache_bytes) << " | " << size(r.peak_rss_bytes)
             << " |\n";
      }
    }
    out_ << "\nllminfer " << llminfer::version() << (backend_.empty() ? "" : ", ") << backend_ << std::endl;
  }

 private:
  static constexpr int kWidths[] = {30, 10, 10, 10, 7, 16, 20};

  void row(const std::vector<std::string>& cells) {
    out_ << '|';
    for (std::size_t i = 0; i < cells.size(); ++i) {
      // Width in characters, not bytes: "±" is two bytes.
      const auto characters =
          std::count_if(cells[i].begin(), cells[i].end(), [](char c) { return (c & 0xc0) != 0x80; });
      const std::string pad(static_cast<std::size_t>(std::max<std::ptrdiff_t>(kWidths[i] - characters, 0)), ' ');
      const bool left = i == 0 || i == 3;
      out_ << ' ' << (left ? cells[i] + pad : pad + cells[i]) << " |";
    }
    out_ << std::endl;
  }

  void rule(const std::vector<bool>& right) {
    out_ << '|';
    for (std::size_t i = 0; i < right.size(); ++i)
      out_ << ' ' << std::string(static_cast<std::size_t>(kWidths[i] - right[i]), '-') << (right[i] ? ": |" : " |");
    out_ << std::endl;
  }

  std::ostream& out_;
  bool show_load_;
  bool first_ = true;
  std::string backend_;
  std::map<std::string, Record> loads_;  // the last test's record of each load: its peak is the highest
};

}  // namespace

std::unique_ptr<Printer> make_printer(const std::string& format, std::ostream& out, bool show_load) {
  if (format == "md") return std::make_unique<MarkdownPrinter>(out, show_load);
  if (format == "json") return std::make_unique<JsonPrinter>(out);
  if (format == "jsonl") return std::make_unique<JsonLinesPrinter>(out);
  if (format == "csv") return std::make_unique<CsvPrinter>(out);
  return nullptr;
}

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[sizeof "2000-01-01T00:00:00Z"];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

}  // namespace bench
