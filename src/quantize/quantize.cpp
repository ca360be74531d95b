// The public function of llminfer/quantize.hpp: from options to a written checkpoint.
#include <llminfer/quantize.hpp>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <sstream>
#include <system_error>
#include <utility>

#include "core/cpu_count.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "quantize/check.hpp"
#include "quantize/hf_output.hpp"
#include "quantize/layers.hpp"
#include "quantize/layout.hpp"
#include "quantize/output_file.hpp"
#include "quantize/source.hpp"
#include "quantize/writer.hpp"

namespace llminfer::inline v0 {
namespace {

using core::fail;
namespace q = llminfer::quantize;

/// What the contents of the output depend on, beside its header.
std::string identity_of(const q::Source& source, const QuantizeOptions& o) {
  std::ostringstream text;
  text << version() << ' ' << static_cast<int>(o.format) << ' ' << static_cast<int>(o.method) << ' ' << o.type << ' '
       << o.bits << ' ' << o.group_size << ' ' << o.symmetric << ' ' << o.output_matrix << ' ' << o.damping << ' '
       << o.activation_order << ' ' << o.smoothing << ' ' << static_cast<int>(o.prune) << ' ' << o.sparsity << ' '
       << o.prune_n << ' ' << o.prune_m << ' ' << o.calibration_sequences << ' ' << o.calibration_length << ' '
       << o.calibration;
  for (const auto& file : source.checkpoint.sources) {
    std::error_code ignored;
    const auto changed = std::filesystem::last_write_time(file->name(), ignored);
    text << ' ' << file->name() << ' ' << file->size() << ' ' << changed.time_since_epoch().count();
  }
  return text.str();
}

class Progress {
 public:
  Progress(const QuantizeOptions& options, std::int64_t all) : options_(options), all_(static_cast<double>(all)) {}

  void add(std::int64_t parameters) { done_ += static_cast<double>(parameters); }
  /// Calls the host's callback. Errors: cancelled, callback_failed.
  Result<void> report(const std::string& part) const {
    if (!options_.on_progress) return {};
    try {
      if (options_.on_progress(part, static_cast<float>(std::min(done_ / all_, 1.0)))) return {};
    } catch (...) {
      return fail(ErrorCode::callback_failed, "QuantizeOptions::on_progress threw");
    }
    return fail(ErrorCode::cancelled, "abandoned by QuantizeOptions::on_progress at ", part);
  }

 private:
  const QuantizeOptions& options_;
  const double all_;
  double done_ = 0;
};

Result<void> make_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return {};
  return fail(error == std::errc::permission_denied ? ErrorCode::permission_denied : ErrorCode::io_error, path,
              ": cannot make this directory: ", error.message());
}

/// That no file which is written is one that is read.
Result<void> check_apart(const load::Checkpoint& checkpoint, const std::string& path) {
  std::error_code ignored;
  for (const char* suffix : {"", ".partial", ".journal", ".calibration"}) {
    for (const auto& source : checkpoint.sources) {
      if (!std::filesystem::equivalent(source->name(), path + suffix, ignored)) continue;
      return fail(ErrorCode::invalid_argument, path, suffix, ": the output would replace a file of the input");
    }
  }
  return {};
}

Result<QuantizeReport> run(const std::string& input, const std::string& output, const QuantizeOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  LLMINFER_TRY(q::check_options(options));
  if (output.empty()) return fail(ErrorCode::invalid_argument, "quantize_model: `output` is empty, expected a path");
  const bool directory = options.format != QuantizeFormat::gguf;
  q::Source source = LLMINFER_TRY(q::open_source(input, directory, options.output_matrix));
  const q::Layout layout = LLMINFER_TRY(q::lay_out(source, options));
  const int threads = options.threads > 0 ? options.threads : core::usable_cpus();
  const auto team = LLMINFER_TRY(core::Team::make(threads, options.executor));

  std::error_code ignored;
  if (std::filesystem::equivalent(input, output, ignored)) {
    return fail(ErrorCode::invalid_argument, output, ": the output is the input itself");
  }
  std::vector<q::TextFile> texts;  // what cannot be said in them is told before any work
  if (directory) {
    texts = LLMINFER_TRY(q::make_hf_texts(source, input, options, layout));
    LLMINFER_TRY(make_directory(output));
  }
  const std::string path = LLMINFER_TRY(q::output_path(directory ? output + "/model.safetensors" : output));
  LLMINFER_TRY(check_apart(source.checkpoint, path));
  const auto file = LLMINFER_TRY(
      q::OutputFile::open(path, std::as_bytes(std::span(layout.header)), layout.size, identity_of(source, options)));

  QuantizeReport result;
  result.output_bytes = static_cast<std::int64_t>(layout.tensor_bytes);
  result.tensors = layout.tensors;
  result.parameters = source.program.parameter_count();
  Progress progress(options, result.parameters);
  std::set<std::pair<std::uint32_t, std::uint64_t>> read;
  for (const q::Job& job : layout.jobs) {
    const bool first =
        read.emplace(job.tensor->source, job.tensor->offset).second;  // two may be made of the same bytes
    if (first) result.input_bytes += static_cast<std::int64_t>(job.tensor->bytes);
    if (!file->is_done(job.tensor->name)) continue;
    result.tensors_resumed += job.tensors();
    progress.add(job.tensor->rows * job.tensor->cols);
  }
  q::Writer writer(source.checkpoint, options, *file, *team);
  const std::string state = path + ".calibration";
  const auto mark = [&](const q::Job& job) -> Result<void> {
    progress.add(job.tensor->rows * job.tensor->cols);
    return file->mark_done(job.tensor->name);
  };
  if (q::needs_calibration(options)) {
    LLMINFER_TRY(q::LayerByLayer(source, layout, options, writer, *team)
                     .run(state, file->resumed(), [&](const std::vector<const q::Job*>& written) -> Result<void> {
                       for (const q::Job* job : written) LLMINFER_TRY(mark(*job));
                       LLMINFER_TRY(file->write_journal());
                       const std::string& name = written.front()->tensor->name;
                       return progress.report(name.substr(0, name.find('.', name.find_first_of("0123456789"))));
                     }));
  }
  for (const q::Job& job : layout.jobs) {
    if (file->is_done(job.tensor->name)) continue;
    LLMINFER_TRY(job.linear && options.prune != PruneMethod::none ? writer.write_pruned(job)
                                                                  : writer.write_stored(job));
    LLMINFER_TRY(mark(job));
    LLMINFER_TRY(progress.report(job.tensor->name));
  }
  if (directory) LLMINFER_TRY(q::write_hf_texts(texts, output));
  LLMINFER_TRY(file->finish());
  std::filesystem::remove(state, ignored);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace

Result<QuantizeReport> quantize_model(const std::string& input, const std::string& output,
                                      const QuantizeOptions& options) {
  return core::guarded([&] { return run(input, output, options); });
}

}  // namespace llminfer::inline v0
