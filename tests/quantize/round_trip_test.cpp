// Round-to-nearest: what is written, llminfer's own loader reads back, with the values that the formulas give.
#include <sys/resource.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <llminfer/engine.hpp>
#include <llminfer/quantize.hpp>

#include "arch/arch.hpp"
#include "core/half.hpp"
#include "load/checkpoint.hpp"
#include "tests/load/temp_dir.hpp"

namespace {

using namespace llminfer;

const std::string kModels = LLMINFER_TEST_DATA "/models/";

std::vector<float> values_of(const load::Checkpoint& checkpoint, const std::string& name) {
  const load::TensorInfo* tensor = checkpoint.find(name);
  REQUIRE(tensor);
  std::vector<float> values(static_cast<std::size_t>(tensor->rows * tensor->cols));
  unpack_rows(checkpoint.read(*tensor).value(), 0, tensor->rows, values).value();
  return values;
}

/// ||a - b|| / ||b||
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

QuantizeOptions gguf(const char* type) {
  QuantizeOptions options;
  options.format = QuantizeFormat::gguf;
  options.type = type;
  options.threads = 2;
  return options;
}

QuantizeOptions directory(QuantizeFormat format, int bits, int group_size, bool symmetric) {
  QuantizeOptions options;
  options.format = format;
  options.bits = bits;
  options.group_size = group_size;
  options.symmetric = symmetric;
  options.threads = 2;
  return options;
}

std::vector<Token> greedy(const std::string& path, const std::string& prompt) {
  EngineOptions options;
  options.threads = 2;
  const Engine engine = Engine::load(path, options).value();
  CompletionRequest request;
  request.prompt = prompt;
  request.options.max_tokens = 12;
  request.options.ignore_end = true;
  return engine.complete(request).value().tokens;
}

}  // namespace

TEST_CASE("round to nearest: GGUF types come back within half a step") {
  const test::TempDir temp;
  const auto original = load::open_checkpoint(kModels + "tiny-bf16", true).value();
  const auto wanted = values_of(original, "model.layers.1.mlp.down_proj.weight");
  // A half step of a block's range is at most this share of the norm for weights that are near to normal.
  const std::map<std::string, double> bounds = {{"F32", 0},     {"F16", 1e-5},  {"BF16", 0},      {"Q8_0", 8e-3},
                                                {"Q5_0", 6e-2}, {"Q5_1", 5e-2}, {"Q4_0", 1.2e-1}, {"Q4_1", 1e-1}};
  for (const auto& [type, bound] : bounds) {
    CAPTURE(type);
    const std::string path = (temp / type + ".gguf");
    const auto report = quantize_model(kModels + "tiny-bf16", path, gguf(type.c_str())).value();
    CHECK(report.tensors == static_cast<std::int64_t>(original.tensors.size()));
    CHECK_FALSE(std::filesystem::exists(path + ".partial"));
    CHECK_FALSE(std::filesystem::exists(path + ".journal"));
    const auto read = load::open_checkpoint(path, true).value();
    const double error = distance(values_of(read, "blk.1.ffn_down.weight"), wanted);
    CHECK(error <= bound);
    if (type[0] == 'Q') CHECK(error > bound / 8);
  }
}

TEST_CASE("a directory as GGUF: the same model") {
  const test::TempDir temp;
  for (const char* model :
       {"tiny-bf16", "llama-biases", "llama3-rope", "linear-rope", "yarn-rope", "qwen2", "qwen2-window", "qwen3"}) {
    CAPTURE(model);
    const std::string there = (temp / std::string(model) + ".gguf"), back = (temp / std::string(model) + "-back");
    quantize_model(kModels + model, there, gguf("F32")).value();
    const auto original = load::open_checkpoint(kModels + model, true).value();
    const auto gguf_file = load::open_checkpoint(there, true).value();
    REQUIRE(arch::build_program(gguf_file));
    CHECK(gguf_file.tensors.size() >= original.tensors.size());

    if (std::string_view(model) == "llama3-rope") {  // its rule became factors, which only 8192 tokens would undo
      const Program a = arch::build_program(original).value(), b = arch::build_program(gguf_file).value();
      for (std::size_t i = 0; i < a.rope_tables[0].inverse_frequency.size(); ++i) {
        CHECK(b.rope_tables[0].inverse_frequency[i] == Approx(a.rope_tables[0].inverse_frequency[i]).epsilon(1e-6));
      }
      const auto refused = quantize_model(there, back, directory(QuantizeFormat::dense, 4, 128, true));
      REQUIRE_FALSE(refused);
      CHECK(refused.error().code == ErrorCode::unsupported);
      continue;
    }
    QuantizeOptions options = directory(QuantizeFormat::dense, 4, 128, true);
    options.type = "F32";
    quantize_model(there, back, options).value();
    const auto again = load::open_checkpoint(back, true).value();
    CHECK(again.config.vocab_size == original.config.vocab_size);
    CHECK(again.config.sliding_window == original.config.sliding_window);
    CHECK(again.config.rope_base == original.config.rope_base);
    for (const auto& tensor : arch::build_program(again).value().weights) {
      CAPTURE(tensor.name);
      CHECK(values_of(again, tensor.name) == values_of(original, tensor.name));
    }
  }
  // The rows of Q and K are in another order, and the model is the same.
  const std::string text = "The program is";
  CHECK(greedy((temp / "tiny-bf16.gguf"), text) == greedy(kModels + "tiny-bf16", text));
  CHECK(greedy((temp / "tiny-bf16-back"), text) == greedy(kModels + "tiny-bf16", text));
}

TEST_CASE("round to nearest: packed directories hold the nearest codes") {
  const test::TempDir temp;
  const std::string input = kModels + "tiny-bf16", name = "model.layers.2.mlp.gate_proj.weight";
  const auto original = load::open_checkpoint(input, true).value();
  const auto wanted = values_of(original, name);
  const std::size_t cols = 128;
  using enum QuantizeFormat;
  struct Case {
    QuantizeFormat format;
    int bits, group;
    bool symmetric, int8;
  };
  for (const Case c : {Case{gptq, 4, 64, true, false}, Case{gptq, 4, 32, false, false}, Case{gptq, 8, -1, true, false},
                       Case{gptq, 2, 32, false, false}, Case{gptq, 3, 32, false, false}, Case{gptq, 3, 64, true, false},
                       Case{awq, 4, 64, false, false}, Case{compressed_tensors, 4, 64, true, false},
                       Case{compressed_tensors, 4, 32, false, false}, Case{compressed_tensors, 8, 64, true, false},
                       Case{compressed_tensors, 8, -1, true, true}}) {
    const std::string output = temp / "m" + std::to_string(static_cast<int>(c.format)) + "-" + std::to_string(c.bits) +
                               "-" + std::to_string(c.group) + (c.symmetric ? "s" : "a") + (c.int8 ? "i" : "");
    CAPTURE(output);
    QuantizeOptions options = directory(c.format, c.bits, c.group, c.symmetric);
    options.int8_inputs = c.int8;
    quantize_model(input, output, options).value();
    const auto read = load::open_checkpoint(output, true).value();
    const auto found = values_of(read, name);
    const load::TensorInfo& tensor = *read.find(name);
    CHECK((tensor.details.input.kind == InputQuantization::Kind::int8) == c.int8);
    // No value is further from its own than half a step, but for what rounding the scale adds at the ends.
    const std::size_t group = c.group == -1 ? cols : static_cast<std::size_t>(c.group);
    const auto steps = static_cast<float>((1 << c.bits) - 1);
    for (std::size_t begin = 0; begin < wanted.size(); begin += group) {
      float min = 0, max = 0, worst = 0;
      for (std::size_t i = begin; i < begin + group; ++i) {
        min = std::min(min, wanted[i]);
        max = std::max(max, wanted[i]);
        worst = std::max(worst, std::fabs(found[i] - wanted[i]));
      }
      const float range = c.symmetric ? 2 * std::max(-min, max) : max - min;
      REQUIRE(worst <= range / steps * 0.5f + range * 0.005f);
      // A symmetric range ends half a step beyond the last code.
      REQUIRE(worst > 0);
    }
    for (const char* kept : {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}) {
      CHECK(values_of(read, kept) == values_of(original, kept));
    }
    if (c.bits >= 4) CHECK(greedy(output, "The program is").size() == 12);
  }
}

TEST_CASE("a run that was ended goes on") {
  const test::TempDir temp;
  const std::string input = kModels + "tiny-bf16";
  QuantizeOptions options = directory(QuantizeFormat::gptq, 4, 64, true);
  quantize_model(input, temp / "whole", options).value();

  int calls = 0;
  float reached = 0;
  options.on_progress = [&](std::string_view, float fraction) {
    reached = fraction;
    return ++calls < 10;
  };
  const auto ended = quantize_model(input, temp / "pieces", options);
  REQUIRE_FALSE(ended);
  CHECK(ended.error().code == ErrorCode::cancelled);
  CHECK(std::filesystem::exists(temp / "pieces/model.safetensors.partial"));
  CHECK_FALSE(std::filesystem::exists(temp / "pieces/model.safetensors"));

  std::ofstream(temp / "pieces/model.safetensors.journal", std::ios::app) << "model.layers.2.mlp.down_pr";  // cut off
  std::vector<float> fractions;
  options.on_progress = [&](std::string_view, float fraction) {
    fractions.push_back(fraction);
    return true;
  };
  const auto resumed = quantize_model(input, temp / "pieces", options).value();
  REQUIRE_FALSE(fractions.empty());
  CHECK(fractions.front() >= reached);
  CHECK(fractions.back() == Approx(1.0f));
  CHECK(resumed.tensors_resumed >= 10);
  CHECK(resumed.tensors_resumed < resumed.tensors);
  const auto bytes = [&](const std::string& path) {
    std::ifstream file(temp / path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  CHECK(bytes("pieces/model.safetensors") == bytes("whole/model.safetensors"));
  CHECK(bytes("pieces/config.json") == bytes("whole/config.json"));

  // Other options begin anew.
  calls = 0;
  options.on_progress = [&](std::string_view, float) { return ++calls < 10; };
  REQUIRE_FALSE(quantize_model(input, temp / "other", options));
  options.on_progress = {};
  options.symmetric = false;
  CHECK(quantize_model(input, temp / "other", options).value().tensors_resumed == 0);
}

TEST_CASE("where the output cannot be is told before any work, and leaves nothing") {
  const test::TempDir temp;
  const std::string input = kModels + "tiny-bf16", folder = temp / "folder", file = temp / "file";
  std::filesystem::create_directory(folder);
  std::ofstream(file) << "x";
  QuantizeOptions options = gguf("Q8_0");
  const auto refusal = [&](const std::string& output) {
    bool worked = false;
    options.on_progress = [&](std::string_view, float) { return worked = true; };
    const auto result = quantize_model(input, output, options);
    REQUIRE_FALSE(result);
    CHECK_FALSE(worked);
    CHECK(std::distance(std::filesystem::directory_iterator(temp.path()), {}) == 2);
    CHECK(result.error().message.find(output) == 0);
    return result.error().code;
  };
  REQUIRE(::mkfifo((temp / "folder/pipe").c_str(), 0600) == 0);
  std::filesystem::create_symlink("pipe", temp / "folder/link");
  std::filesystem::create_symlink("round", temp / "folder/round");
  for (const char* name : {"folder", "folder/pipe", "folder/link", "folder/round"}) {
    CHECK(refusal(temp / name) == ErrorCode::not_a_file);
  }
  CHECK(refusal("/dev/null") == ErrorCode::not_a_file);
  struct rlimit before {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  struct rlimit less = before;
  less.rlim_cur = 100000;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &less) == 0);
  const ErrorCode over = refusal(temp / "large");
  ::setrlimit(RLIMIT_FSIZE, &before);
  CHECK(over == ErrorCode::io_error);
  CHECK(refusal(temp / "missing/out.gguf") == ErrorCode::not_found);
  options = directory(QuantizeFormat::dense, 4, 64, true);
  CHECK(refusal(file) == ErrorCode::io_error);
}

TEST_CASE("an output that is a link is written where that leads") {
  const test::TempDir temp;
  std::filesystem::create_directory(temp / "disk");
  std::filesystem::create_symlink("disk/model.gguf", temp / "link.gguf");
  quantize_model(kModels + "tiny-bf16", temp / "link.gguf", gguf("Q8_0")).value();
  CHECK(std::filesystem::is_symlink(temp / "link.gguf"));
  CHECK(std::filesystem::file_size(temp / "disk/model.gguf") > 100000);
  CHECK(std::distance(std::filesystem::directory_iterator(temp / "disk"), {}) == 1);
}

TEST_CASE("no file of the input is written to, and one run at a time has an output") {
  const test::TempDir temp;
  const std::string input = temp / "input", weights = temp / "input/model.safetensors";
  std::filesystem::copy(kModels + "tiny-bf16", input);
  const auto size = std::filesystem::file_size(weights);
  const auto refusal = [&](const std::string& from, const std::string& to, ErrorCode code) {
    const auto result = quantize_model(from, to, gguf("Q8_0"));
    REQUIRE_FALSE(result);
    INFO(result.error().message);
    CHECK(result.error().code == code);
  };
  refusal(input, weights, ErrorCode::invalid_argument);
  CHECK(std::filesystem::file_size(weights) == size);
  const std::string file = temp / "a.gguf.partial";
  quantize_model(input, file, gguf("F16")).value();
  refusal(file, temp / "a.gguf", ErrorCode::invalid_argument);
  CHECK(quantize_model(file, temp / "b.gguf", gguf("Q8_0")));

  QuantizeOptions options = gguf("Q8_0");
  int calls = 0;
  options.on_progress = [&](std::string_view, float) {
    if (++calls == 3) refusal(input, temp / "c.gguf", ErrorCode::invalid_state);
    return true;
  };
  CHECK(quantize_model(input, temp / "c.gguf", options));
  CHECK(calls > 3);
  CHECK(quantize_model(input, temp / "c.gguf", options).value().tensors_resumed == 0);
}

TEST_CASE("a directory that had another model has nothing of it afterwards") {
  const test::TempDir temp;
  const std::string output = temp / "out";
  quantize_model(kModels + "tiny-bf16", output, directory(QuantizeFormat::gptq, 4, 64, true)).value();
  REQUIRE(std::filesystem::exists(output + "/quantize_config.json"));
  std::ofstream(output + "/model.safetensors.index.json") << "{}";
  std::ofstream(output + "/chat_template.jinja") << "of another model";
  std::ofstream(output + "/notes.txt") << "the user's";
  quantize_model(kModels + "llama-biases", output, directory(QuantizeFormat::dense, 4, 64, true)).value();
  for (const char* name : {"/quantize_config.json", "/model.safetensors.index.json", "/chat_template.jinja"}) {
    CHECK_FALSE(std::filesystem::exists(output + name));
  }
  CHECK(std::filesystem::exists(output + "/notes.txt"));
  CHECK(load::open_checkpoint(output, true));
}

TEST_CASE("bad options of quantize_model are refused") {
  const test::TempDir temp;
  const std::string input = kModels + "tiny-bf16";
  const auto refusal = [&](const QuantizeOptions& options) {
    const auto result = quantize_model(input, temp / "out", options);
    REQUIRE_FALSE(result);
    CHECK_FALSE(std::filesystem::exists(temp / "out"));
    return result.error();
  };
  const auto names = [&](const QuantizeOptions& options, const char* option) {
    const Error error = refusal(options);
    CAPTURE(error.message);
    CHECK(error.code == ErrorCode::invalid_argument);
    CHECK(error.message.find(option) != std::string::npos);
  };
  names(gguf("Q9_9"), "type");
  names(gguf(""), "type");
  QuantizeOptions options = gguf("Q8_0");
  options.method = QuantizeMethod::gptq;
  names(options, "method");
  options = directory(QuantizeFormat::gptq, 5, 64, true);
  names(options, "bits");
  options.bits = 4;
  options.group_size = 0;
  names(options, "group_size");
  options.group_size = 100;
  names(options, "model.layers.0.self_attn.q_proj.weight");
  options.group_size = 64;
  options.method = QuantizeMethod::gptq;
  names(options, "calibration");
  options.calibration = "text";
  options.damping = 0;
  names(options, "damping");
  options = directory(QuantizeFormat::compressed_tensors, 4, 64, true);
  options.int8_inputs = true;
  names(options, "int8_inputs");
  names(directory(static_cast<QuantizeFormat>(5), 4, 64, true), "QuantizeOptions::format is 5");
  options = directory(QuantizeFormat::gptq, 4, 64, true);
  options.method = static_cast<QuantizeMethod>(4);
  names(options, "QuantizeOptions::method is 4");
  options = directory(QuantizeFormat::dense, 4, 64, true);
  options.prune = static_cast<PruneMethod>(3);
  names(options, "QuantizeOptions::prune is 3");
  options.prune = PruneMethod::magnitude;
  options.sparsity = 1;
  names(options, "sparsity");
  options.sparsity = 0.5;
  options.prune_n = 4;
  options.prune_m = 4;
  names(options, "prune_n");
  CHECK(quantize_model(temp / "nothing", temp / "out", gguf("Q8_0")).error().code == ErrorCode::not_found);
  const auto nowhere = quantize_model(input, "", gguf("Q8_0"));
  REQUIRE_FALSE(nowhere);
  CHECK(nowhere.error().code == ErrorCode::invalid_argument);
  CHECK(nowhere.error().message.find("`output` is empty") != std::string::npos);
  std::ofstream(temp / "file") << "x";
  CHECK_FALSE(quantize_model(input, temp / "file/out.gguf", gguf("Q8_0")));
}
