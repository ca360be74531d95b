// llminfer-quantize: writes a model's checkpoint in a smaller form. Public API only.
#include <atomic>
#include <csignal>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>

#include <unistd.h>
#include <CLI/CLI.hpp>
#include <llminfer/quantize.hpp>

#include "names.hpp"

namespace {

using llminfer::PruneMethod;
using llminfer::QuantizeFormat;
using llminfer::QuantizeMethod;

const std::map<std::string, QuantizeFormat> kFormats = {{"gguf", QuantizeFormat::gguf},
                                                        {"dense", QuantizeFormat::dense},
                                                        {"gptq", QuantizeFormat::gptq},
                                                        {"awq", QuantizeFormat::awq},
                                                        {"compressed-tensors", QuantizeFormat::compressed_tensors}};
const std::map<std::string, QuantizeMethod> kMethods = {{"rtn", QuantizeMethod::round_to_nearest},
                                                        {"gptq", QuantizeMethod::gptq},
                                                        {"awq", QuantizeMethod::awq},
                                                        {"smoothquant", QuantizeMethod::smoothquant}};
const std::map<std::string, PruneMethod> kPruning = {
    {"none", PruneMethod::none}, {"magnitude", PruneMethod::magnitude}, {"wanda", PruneMethod::wanda}};

std::atomic<bool> stopped{false};

struct Command {
  std::string input, output, calibration;
  bool asymmetric = false;
  llminfer::QuantizeOptions options;
};

void declare(CLI::App& app, Command& c) {
  llminfer::QuantizeOptions& o = c.options;
  app.set_version_flag("--version", std::string(llminfer::version()));
  app.add_option("input", c.input, "GGUF file or Hugging Face directory")->required();
  app.add_option("output", c.output, "File (gguf) or directory (the other formats)")->required();
  app.add_option("-f,--format", o.format, "What is written")->transform(by_name(kFormats))->default_str("gguf");
  app.add_option(
      "--type", o.type,
      "gguf: the type of the file, such as Q8_0 or Q4_K_M; others: F32, F16 or BF16 for what is not quantized");
  app.add_option("-m,--method", o.method, "How the numbers are chosen")
      ->transform(by_name(kMethods))
      ->default_str("rtn");
  app.add_option("-b,--bits", o.bits, "Bits of a weight")->capture_default_str();
  app.add_option("-g,--group-size", o.group_size, "Input features that share a scale; -1: all")->capture_default_str();
  app.add_flag("--asymmetric", c.asymmetric, "Zero points");
  app.add_flag("--output-matrix", o.output_matrix, "Directories: lm_head, too");
  app.add_flag("--int8-inputs", o.int8_inputs, "compressed-tensors: W8A8, inputs rounded to int8 per token");
  app.add_option("-t,--threads", o.threads, "CPU threads; 0: as the machine allows")->capture_default_str();

  const std::string method = "Methods";
  app.add_option("-c,--calibration", c.calibration, "Text file like what the model will see")->group(method);
  app.add_option("--sequences", o.calibration_sequences, "Pieces of the text at most")
      ->capture_default_str()
      ->group(method);
  app.add_option("--length", o.calibration_length, "Tokens of a piece")->capture_default_str()->group(method);
  app.add_option("--damping", o.damping, "gptq: share of the mean diagonal")->capture_default_str()->group(method);
  app.add_flag("--activation-order", o.activation_order, "gptq: important columns first")->group(method);
  app.add_option("--smoothing", o.smoothing, "smoothquant: share of the range that goes to the weights")
      ->capture_default_str()
      ->group(method);
  app.add_option("--prune", o.prune, "Set weights to zero first")
      ->transform(by_name(kPruning))
      ->default_str("none")
      ->group(method);
  app.add_option("--sparsity", o.sparsity, "Share of the weights that becomes zero")
      ->capture_default_str()
      ->group(method);
  app.add_option("--prune-n", o.prune_n, "This many become zero ...")->group(method);
  app.add_option("--prune-m", o.prune_m, "... of so many neighbours")->group(method);
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.good() && !file.eof()) throw std::runtime_error(path + ": cannot be read");
  return text;
}

bool show(std::string_view part, float fraction) {
  constexpr int kWidth = 30;
  if (isatty(STDERR_FILENO)) {
    std::string bar(static_cast<std::size_t>(fraction * kWidth), '#');
    bar.resize(kWidth, '.');
    std::fprintf(stderr, "\r[%s] %3.0f%% %-40.*s", bar.c_str(), static_cast<double>(100 * fraction),
                 static_cast<int>(part.size()), part.data());
  }
  return !stopped;
}

double megabytes(std::int64_t bytes) { return static_cast<double>(bytes) / 1e6; }

}  // namespace

int main(int argc, char** argv) try {
  Command command;
  CLI::App app("Quantizes a model. A run that was ended goes on where it was when the same command is given again.",
               "llminfer-quantize");
  declare(app, command);
  CLI11_PARSE(app, argc, argv);
  llminfer::QuantizeOptions& options = command.options;
  options.symmetric = !command.asymmetric;
  if (!command.calibration.empty()) options.calibration = read_text(command.calibration);
  options.on_progress = show;
  std::signal(SIGINT, [](int) { stopped = true; });

  const auto report = llminfer::quantize_model(command.input, command.output, options);
  if (isatty(STDERR_FILENO)) std::fputc('\n', stderr);
  const llminfer::QuantizeReport& r = report.value();
  std::printf("%s: %lld tensors (%lld from an earlier run), %.1f MB of %.1f MB, %.2f bits per weight, %.1f s\n",
              command.output.c_str(), static_cast<long long>(r.tensors), static_cast<long long>(r.tensors_resumed),
              megabytes(r.output_bytes), megabytes(r.input_bytes),
              8 * static_cast<double>(r.output_bytes) / static_cast<double>(r.parameters), r.seconds);
  return 0;
} catch (const std::exception& error) {
  std::cerr << "llminfer-quantize: " << error.what() << '\n';
  return 1;
}
