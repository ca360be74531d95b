// The public function of llminfer/quantize.hpp: from options to a written checkpoint.
#include <llminfer/quantize.hpp>

#include <chrono>
#include <filesystem>
#include <sstream>
#include <system_error>
#include <utility>

#include "core/cpu_count.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "quantize/check.hpp"
#include "quantize/hf_output.hpp"
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
       << o.bits << ' ' << o.group_size << ' ' << o.symmetric << ' ' << o.damping << ' ' << o.activation_order << ' '
       << o.smoothing << ' ' << static_cast<int>(o.prune) << ' ' << o.sparsity << ' ' << o.prune_n << ' ' << o.prune_m
       << ' ' << o.calibration_sequences << ' ' << o.calibration_length << ' ' << o.calibration;
  for (const auto& file : source.checkpoint.sources) {
    std::error_code ignored;
    const auto changed = std::filesystem::last_write_time(file->name(), ignored);
    text << ' ' << file->name() << ' ' << file->size() << ' ' << changed.time_since_epoch().count();
  }
  return text.str();
}

/// Calls the host's callback. Errors: cancelled, callback_failed.
Result<void> report(const QuantizeOptions& options, std::string_view part, float fraction) {
  if (!options.on_progress) return {};
  try {
    if (options.on_progress(part, fraction)) return {};
  } catch (...) {
    return fail(ErrorCode::callback_failed, "QuantizeOptions::on_progress threw");
  }
  return fail(ErrorCode::cancelled, "abandoned by QuantizeOptions::on_progress at ", part);
}

Result<void> make_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return {};
  return fail(error == std::errc::permission_denied ? ErrorCode::permission_denied : ErrorCode::io_error, path,
              ": cannot make this directory: ", error.message());
}

Result<QuantizeReport> run(const std::string& input, const std::string& output, const QuantizeOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  LLMINFER_TRY(q::check_options(options));
  const bool directory = options.format != QuantizeFormat::gguf;
  q::Source source = LLMINFER_TRY(q::open_source(input, directory));
  const q::Layout layout = LLMINFER_TRY(q::lay_out(source, options));
  const int threads = options.threads > 0 ? options.threads : core::usable_cpus();
  const auto team = LLMINFER_TRY(core::Team::make(threads, options.executor));

  std::error_code ignored;
  if (std::filesystem::equivalent(input, output, ignored)) {
    return fail(ErrorCode::invalid_argument, output, ": the output is the input itself");
  }
  if (directory) LLMINFER_TRY(make_directory(output));
  const std::string path = directory ? output + "/model.safetensors" : output;
  const auto file = LLMINFER_TRY(
      q::OutputFile::open(path, std::as_bytes(std::span(layout.header)), layout.size, identity_of(source, options)));

  QuantizeReport result;
  result.output_bytes = static_cast<std::int64_t>(layout.tensor_bytes);
  result.tensors = layout.tensors;
  result.parameters = source.program.parameter_count();
  q::Writer writer(source.checkpoint, options, *file, *team);
  float done = 0;
  for (const q::Job& job : layout.jobs) {
    result.input_bytes += static_cast<std::int64_t>(job.tensor->bytes);
    done += static_cast<float>(job.tensor->rows * job.tensor->cols);
    if (file->is_done(job.tensor->name)) {
      result.tensors_resumed += static_cast<std::int64_t>(job.places.size());
      continue;
    }
    LLMINFER_TRY(writer.write_stored(job));
    LLMINFER_TRY(file->mark_done(job.tensor->name));
    LLMINFER_TRY(report(options, job.tensor->name, std::min(done / static_cast<float>(result.parameters), 1.0f)));
  }
  if (directory) LLMINFER_TRY(q::write_hf_texts(source, input, output, options, layout.dense));
  LLMINFER_TRY(file->finish());
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace

Result<QuantizeReport> quantize_model(const std::string& input, const std::string& output,
                                      const QuantizeOptions& options) {
  return core::guarded([&] { return run(input, output, options); });
}

}  // namespace llminfer::inline v0
