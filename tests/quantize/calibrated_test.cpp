// Quantizing with calibration text, end to end: what is written gives outputs nearer to the original's than rounding
// does, and a run that was ended goes on to the same bytes.
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include <llminfer/quantize.hpp>

#include "quantize/gguf_output.hpp"
#include "tests/load/temp_dir.hpp"
#include "tests/quantize/models.hpp"

namespace {

using namespace llminfer;

const std::string kInput = test::kModels + "tiny-bf16";

QuantizeOptions options_of(QuantizeFormat format, QuantizeMethod method) {
  QuantizeOptions options;
  options.format = format;
  options.method = method;
  options.group_size = 64;
  options.calibration = test::kText;
  options.calibration_length = 64;
  options.damping = 0.1;  // for so short a text
  options.threads = 2;
  return options;
}

/// How far the outputs are from the original's, on text that was not used to choose the numbers.
double error_of(const std::string& path) {
  static const QuantizeOptions text = [] {
    QuantizeOptions options;
    options.calibration =
        "A small boat went out before the morning and came back in the evening with more fish than it could carry. "
        "What does "
        "the program print? It prints 12 lines, and after each of them the time that the line has taken. The list has "
        "three "
        "names. They are sorted, and none of them occurs twice, so the search needs two steps and finds the last of "
        "them.\n";
    options.calibration_length = 48;
    return options;
  }();
  static const std::vector<float> wanted = test::LoadedModel(kInput).logits(text);
  return test::relative_error(test::LoadedModel(path).logits(text), wanted);
}

std::string bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

TEST_CASE("calibrated methods are better than rounding") {
  const test::TempDir temp;
  const auto write = [&](const char* name, const QuantizeOptions& options) {
    quantize_model(kInput, temp / name, options).value();
    CHECK_FALSE(std::filesystem::exists(temp / name + "/model.safetensors.calibration"));
    return error_of(temp / name);
  };
  using enum QuantizeFormat;
  const double rounded = write("rtn", options_of(gptq, QuantizeMethod::round_to_nearest));
  CHECK(rounded > 1e-3);
  QuantizeOptions ordered = options_of(QuantizeFormat::gptq, QuantizeMethod::gptq);
  CHECK(write("gptq", ordered) < 0.9 * rounded);
  ordered.activation_order = true;
  CHECK(write("gptq-ordered", ordered) < 0.9 * rounded);
  REQUIRE(test::LoadedModel(temp / "gptq-ordered")
              .checkpoint.find("model.layers.0.mlp.down_proj.weight")
              ->details.permutation);
  CHECK(write("ct-gptq", options_of(compressed_tensors, QuantizeMethod::gptq)) < 0.9 * rounded);

  QuantizeOptions plain = options_of(awq, QuantizeMethod::round_to_nearest);
  const double asymmetric = write("awq-rtn", plain);
  CHECK(write("awq", options_of(QuantizeFormat::awq, QuantizeMethod::awq)) < 0.98 * asymmetric);

  QuantizeOptions w8a8 = options_of(compressed_tensors, QuantizeMethod::smoothquant);
  w8a8.bits = 8;
  w8a8.int8_inputs = true;
  CHECK(write("smooth", w8a8) < 1e-3);
}

TEST_CASE("importance and pruning reach the output") {
  const test::TempDir temp;
  QuantizeOptions options = options_of(QuantizeFormat::gguf, QuantizeMethod::round_to_nearest);
  options.type = "Q4_1";
  quantize_model(kInput, temp / "guided.gguf", options).value();
  options.calibration.clear();
  quantize_model(kInput, temp / "plain.gguf", options).value();
  CHECK(error_of(temp / "guided.gguf") < 0.95 * error_of(temp / "plain.gguf"));
  options.type = "Q4_K_M";  // rows of 128: types with blocks of 32 instead
  quantize_model(kInput, temp / "k.gguf", options).value();
  const test::LoadedModel k(temp / "k.gguf");
  CHECK(k.checkpoint.find("blk.0.ffn_gate.weight")->type == WeightType::q5_0);
  CHECK(k.checkpoint.find("output.weight")->type == WeightType::q8_0);

  std::map<PruneMethod, double> errors;
  for (const PruneMethod method : {PruneMethod::magnitude, PruneMethod::wanda}) {
    QuantizeOptions sparse = options_of(QuantizeFormat::dense, QuantizeMethod::round_to_nearest);
    sparse.prune = method;
    sparse.prune_n = 2;
    sparse.prune_m = 4;
    const std::string output = temp / "sparse" + std::to_string(static_cast<int>(method));
    quantize_model(kInput, output, sparse).value();
    const auto checkpoint = load::open_checkpoint(output, true).value();
    const auto values =
        quantize::read_floats(checkpoint, *checkpoint.find("model.layers.1.mlp.up_proj.weight")).value();
    for (std::size_t i = 0; i < values.size(); i += 4) {
      REQUIRE(std::count(values.begin() + static_cast<std::ptrdiff_t>(i),
                         values.begin() + static_cast<std::ptrdiff_t>(i) + 4, 0.0f) >= 2);
    }
    errors[method] = error_of(output);
  }
  CHECK(errors[PruneMethod::wanda] < errors[PruneMethod::magnitude]);
}

TEST_CASE("a calibrated run that was ended goes on to the same bytes") {
  const test::TempDir temp;
  QuantizeOptions options = options_of(QuantizeFormat::gptq, QuantizeMethod::gptq);
  quantize_model(kInput, temp / "whole", options).value();
  for (const bool lost : {false, true}) {
    const std::string output = temp / (lost ? "lost" : "pieces");
    std::string last;
    options.on_progress = [&](std::string_view part, float) {
      last = part;
      return part != "model.layers.1";
    };
    const auto ended = quantize_model(kInput, output, options);
    REQUIRE_FALSE(ended);
    CHECK(ended.error().code == ErrorCode::cancelled);
    if (lost) std::filesystem::resize_file(output + "/model.safetensors.calibration", 1000);
    std::string first;
    options.on_progress = [&](std::string_view part, float) {
      if (first.empty()) first = part;
      return true;
    };
    CHECK(quantize_model(kInput, output, options).value().tensors_resumed > 0);
    CHECK(first == (lost ? "model.layers.0" : "model.layers.2"));
    CHECK(bytes(output + "/model.safetensors") == bytes(temp / "whole/model.safetensors"));
  }
}

TEST_CASE("types of a mixture are those of llama-quantize") {
  // llama-quantize's choices for a model of 24 layers, 14 heads and 2 KV heads, with rows of 896 and 4864
  // (Qwen2.5-0.5B), whose token embeddings are tied
  load::ModelConfig config;
  config.layers = 24;
  config.heads = 14;
  config.kv_heads = 2;
  config.tied_embeddings = true;
  const auto type = [&](const char* kind, const char* name, std::int64_t cols) {
    load::TensorInfo tensor;
    tensor.name = name;
    tensor.rows = 896;
    tensor.cols = cols;
    tensor.shape.assign(2, 896);
    return quantize::gguf_type(*quantize::find_gguf_kind(kind), tensor, config, false);
  };
  using enum WeightType;
  CHECK(type("Q4_K_M", "token_embd.weight", 896) == q8_0);
  CHECK(type("Q4_K_M", "token_embd.weight", 1024) == q6_k);
  CHECK(type("q4_k_m", "blk.0.attn_q.weight", 896) == q5_0);
  CHECK(type("Q4_K_M", "blk.0.ffn_down.weight", 4864) == q6_k);
  CHECK(type("Q4_K_M", "blk.3.ffn_down.weight", 4864) == q4_k);
  CHECK(type("Q4_K_M", "blk.5.ffn_down.weight", 4864) == q6_k);
  CHECK(type("Q4_K_S", "blk.2.ffn_down.weight", 4864) == q5_k);
  CHECK(type("Q2_K", "blk.9.attn_v.weight", 1024) == q4_k);
  CHECK(type("Q2_K", "blk.9.attn_q.weight", 896) == q4_0);
  CHECK(type("Q3_K_M", "blk.9.attn_output.weight", 1024) == q4_k);
  CHECK(type("Q6_K", "blk.9.attn_output.weight", 100) == f16);
  CHECK(quantize::find_gguf_kind("Q4_K") == nullptr);
}
