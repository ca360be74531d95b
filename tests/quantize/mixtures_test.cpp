// Mixtures of experts and output matrices: what is written holds each expert in the form that other tools give it, is
// the source's model, and each expert's numbers come from the tokens that the router sends to it.
#include <catch2/catch.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>

#include <llminfer/quantize.hpp>

#include "arch/decoder.hpp"
#include "load/gguf_file.hpp"
#include "quantize/gguf_output.hpp"
#include "tests/load/packed_layer.hpp"
#include "tests/load/temp_dir.hpp"
#include "tests/quantize/models.hpp"

using namespace llminfer;

namespace {

const std::string kDense = test::kModels + "tiny-bf16";
constexpr int kHidden = 128, kFfn = 64, kExperts = 4, kLayers = 2;

enum class Kind { mixtral, qwen2, qwen3 };

std::vector<float> values_of(const load::Checkpoint& checkpoint, const std::string& name) {
  const load::TensorInfo* tensor = checkpoint.find(name);
  INFO(name);
  REQUIRE(tensor);
  return quantize::read_floats(checkpoint, *tensor).value();
}

/// A mixture made of a dense model: each expert has some of the features of its feed-forward blocks, so that weights
/// and inputs are those of a trained model. With `idle`, no token chooses the last expert, whose scores are those of
/// the first, since one expert is used and the first of equals.
class Mixture {
 public:
  explicit Mixture(Kind kind, bool idle = false) {
    const auto source = load::open_checkpoint(kDense, true).value();
    const auto put = [&](const std::string& name, std::vector<std::int64_t> shape, const std::vector<float>& values) {
      files_.tensors[name] = {"F32", std::move(shape), test::bytes_of(values)};
    };
    const auto copy = [&](const std::string& name) {
      const load::TensorInfo& tensor = *source.find(name);
      put(name, tensor.shape, values_of(source, name));
    };
    for (const char* name : {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}) copy(name);
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0, 1);  // so that rounding seldom turns a choice
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      for (const char* name : {"input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
                               "self_attn.v_proj", "self_attn.o_proj"}) {
        copy(prefix + name + ".weight");
      }
      if (kind == Kind::qwen3) {
        put(prefix + "self_attn.q_norm.weight", {32}, std::vector<float>(32, 1.0f));
        put(prefix + "self_attn.k_norm.weight", {32}, std::vector<float>(32, 1.0f));
      }
      const auto gate = values_of(source, prefix + "mlp.gate_proj.weight"),
                 up = values_of(source, prefix + "mlp.up_proj.weight"),
                 down = values_of(source, prefix + "mlp.down_proj.weight");
      const auto gated = [&](const std::string& name, std::array<const char*, 3> parts, int first, int count) {
        const auto rows = [&](const std::vector<float>& of) {
          return std::vector<float>(of.begin() + first * kHidden, of.begin() + (first + count) * kHidden);
        };
        std::vector<float> columns;
        for (int n = 0; n < kHidden; ++n) {
          columns.insert(columns.end(), down.begin() + n * 384 + first, down.begin() + n * 384 + first + count);
        }
        put(name + parts[0] + ".weight", {count, kHidden}, rows(gate));
        put(name + parts[1] + ".weight", {count, kHidden}, rows(up));
        put(name + parts[2] + ".weight", {kHidden, count}, columns);
      };
      const bool mixtral = kind == Kind::mixtral;
      const std::array<const char*, 3> parts = {"gate_proj", "up_proj", "down_proj"};
      const std::string block = prefix + (mixtral ? "block_sparse_moe." : "mlp.");
      for (int e = 0; e < kExperts; ++e) {
        gated(block + "experts." + std::to_string(e) + ".", mixtral ? std::array{"w1", "w3", "w2"} : parts, e * kFfn,
              kFfn);
      }
      std::vector<float> router(kExperts * kHidden);
      for (float& value : router) value = normal(random);
      if (idle) std::copy_n(router.begin(), kHidden, router.end() - kHidden);
      put(block + "gate.weight", {kExperts, kHidden}, router);
      if (kind != Kind::qwen2) continue;
      gated(block + "shared_expert.", parts, 256, 128);
      put(block + "shared_expert_gate.weight", {1, kHidden}, std::vector<float>(kHidden, 0.05f));
    }
    const std::string experts = std::to_string(kExperts), used = idle ? "1" : "2";
    const std::string family =
        kind == Kind::mixtral ? R"("model_type": "mixtral", "num_local_experts": )" + experts
                              : R"("model_type": ")" + std::string(kind == Kind::qwen2 ? "qwen2_moe" : "qwen3_moe") +
                                    R"(", "moe_intermediate_size": 64, "num_experts": )" + experts;
    files_.model = family + R"(, "shared_expert_intermediate_size": 128, "norm_topk_prob": false, "vocab_size": 1024,
      "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": null,
      "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0, "num_experts_per_tok": )" +
                   used;
    files_.write();
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
      std::filesystem::copy_file(kDense + "/" + name, files_.dir / name);
    }
  }
  const std::string& path() const { return files_.dir.path(); }

 private:
  test::Layer files_;
};

QuantizeOptions options_of(QuantizeFormat format, QuantizeMethod method) {
  QuantizeOptions options;
  options.format = format;
  options.method = method;
  options.group_size = 32;
  options.calibration_length = 64;
  if (method != QuantizeMethod::round_to_nearest) options.calibration = test::kText;
  options.damping = 0.1;  // for so short a text
  options.threads = 2;
  return options;
}
QuantizeOptions gguf_of(const char* type) {
  QuantizeOptions options = options_of(QuantizeFormat::gguf, QuantizeMethod::round_to_nearest);
  options.type = type;
  return options;
}

/// Logits of some tokens, of a model that need not have a tokenizer.
std::vector<float> logits_of(const std::string& path) {
  test::LoadedModel model(path);
  std::vector<std::vector<Token>> pieces(2);
  for (int i = 0; i < 80; ++i) {
    pieces[static_cast<std::size_t>(i % 2)].push_back((i * 37 + 5) % static_cast<int>(model.program.vocab_size));
  }
  return model.logits(std::move(pieces));
}

/// How far the logits are from those of the source, on a text that the calibration has not.
double error_of(const std::string& path, const std::string& source) {
  QuantizeOptions text;
  text.calibration =
      "A small boat went out before the morning and came back in the evening with more fish than it could carry. What "
      "does the program print? It prints 12 lines, and after each of them the time that the line has taken.\n";
  text.calibration_length = 32;
  return test::relative_error(test::LoadedModel(path).logits(text), test::LoadedModel(source).logits(text));
}

/// The greatest over the least factor of columns, by which the written values are those of the original.
float spread(const std::vector<float>& written, const std::vector<float>& original, std::size_t cols) {
  std::vector<float> products(cols), squares(cols), factors;
  for (std::size_t i = 0; i < original.size(); ++i) {
    products[i % cols] += written[i] * original[i];
    squares[i % cols] += original[i] * original[i];
  }
  for (std::size_t k = 0; k < cols; ++k) factors.push_back(products[k] / squares[k]);
  return *std::max_element(factors.begin(), factors.end()) / *std::min_element(factors.begin(), factors.end());
}

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

/// A GGUF file as ggml writes shapes, without outermost sides of 1, and with one more flag if `flag` names it.
void rewrite_gguf(const std::string& path, const std::string& to, const std::string& flag = {}, bool value = false) {
  const auto source = core::open_file(path, true).value();
  const auto file = load::parse_gguf(*source).value();
  std::vector<quantize::GgufPair> metadata;
  for (const auto& [key, known] : file.metadata) metadata.push_back({key, known});
  if (!flag.empty()) metadata.push_back({flag, {load::GgufType::boolean, value}});
  std::vector<quantize::GgufTensor> tensors;
  for (const load::TensorInfo& tensor : file.tensors) {
    auto shape = tensor.shape;
    while (shape.size() > 1 && shape.front() == 1) shape.erase(shape.begin());
    tensors.push_back({tensor.name, tensor.type, shape, tensor.bytes});
  }
  std::uint64_t size = 0;
  std::string bytes = quantize::gguf_header(metadata, tensors, size);
  bytes.resize(size);
  const std::string before = text_of(path);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    std::copy_n(before.begin() + static_cast<std::ptrdiff_t>(file.tensors[i].offset), tensors[i].bytes,
                bytes.begin() + static_cast<std::ptrdiff_t>(tensors[i].offset));
  }
  std::ofstream(to, std::ios::binary) << bytes;
}

}  // namespace

TEST_CASE("a mixture as GGUF: experts in stacks, the same model, and back") {
  const test::TempDir temp;
  const Mixture qwen2(Kind::qwen2);
  for (const std::string& model : {test::kModels + "mixtral", test::kModels + "olmoe", test::kModels + "qwen3-moe",
                                   test::kModels + "gpt-oss", qwen2.path()}) {
    CAPTURE(model);
    const std::string name = std::filesystem::path(model).filename(), there = temp / name + ".gguf",
                      back = temp / name + "-back";
    const auto report = quantize_model(model, there, gguf_of("F32")).value();
    const auto original = load::open_checkpoint(model, true).value();
    const auto source = core::open_file(there, true).value();
    const auto file = load::parse_gguf(*source).value();
    CHECK(report.tensors == static_cast<std::int64_t>(file.tensors.size()));
    const auto& config = original.config;
    int stacks = 0, routers = 0;
    for (const load::TensorInfo& tensor : file.tensors) {
      CHECK(tensor.name.find("ffn_up.") == std::string::npos);
      if (tensor.name.ends_with("ffn_up_exps.weight")) {
        ++stacks;
        CHECK(tensor.shape == std::vector{config.experts, config.expert_ffn_size, config.hidden_size});
      }
      routers += tensor.name.ends_with("ffn_gate_inp.weight");
    }
    CHECK(stacks == config.layers);
    CHECK(routers == config.layers);
    const std::vector<float> wanted = logits_of(model);
    CHECK(test::relative_error(logits_of(there), wanted) < 1e-9);

    QuantizeOptions options = options_of(QuantizeFormat::dense, QuantizeMethod::round_to_nearest);
    options.type = "F32";
    const auto returned = quantize_model(there, back, options);
    if (name == "gpt-oss") {
      REQUIRE_FALSE(returned);
      CHECK(returned.error().code == ErrorCode::unsupported);
      // What is in MXFP4 stays as it is, and what was unpacked on the way becomes the same again.
      for (const std::string& input : {model, there}) {
        quantize_model(input, temp / "fp4.gguf", gguf_of("MXFP4_MOE")).value();
        const auto fp4 = load::open_checkpoint(temp / "fp4.gguf", true).value();
        for (const char* matrix : {"gate", "up", "down"}) {
          const std::string hf = "model.layers.1.mlp.experts.3." + std::string(matrix) + "_proj.weight",
                            in_gguf = "blk.1.ffn_" + std::string(matrix) + ".3.weight";
          CHECK(fp4.find(in_gguf)->type == WeightType::mxfp4);
          CHECK(values_of(fp4, in_gguf) == values_of(original, hf));
        }
        CHECK(fp4.find("blk.1.attn_q.weight")->type == WeightType::q8_0);
      }
      options = options_of(QuantizeFormat::gptq, QuantizeMethod::round_to_nearest);
      options.bits = 8;
      quantize_model(there, back, options).value();
      const auto packed = load::open_checkpoint(back, true).value();
      for (const auto& weight : arch::build_program(packed).value().weights) {
        CAPTURE(weight.name);
        const double error = test::relative_error(values_of(packed, weight.name), values_of(original, weight.name));
        CHECK(error < 1e-4);
        CHECK((error > 0) == (weight.rows > 1 && weight.name.find("layers.") != std::string::npos &&
                              weight.name.find("router") == std::string::npos));
      }
      CHECK(test::relative_error(logits_of(back), wanted) < 0.1);  // a token may go to another expert
      continue;
    }
    REQUIRE(returned);
    const auto again = load::open_checkpoint(back, true).value();
    CHECK(again.config.experts_used == config.experts_used);
    for (const auto& weight : arch::build_program(again).value().weights) {
      CAPTURE(weight.name);
      CHECK(values_of(again, weight.name) == values_of(original, weight.name));
    }
    CHECK(test::relative_error(logits_of(back), wanted) < 1e-9);
  }
  // GGUF has no word for layers without experts among others.
  const auto refused = quantize_model(test::kModels + "qwen2-moe", temp / "refused.gguf", gguf_of("Q8_0"));
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::unsupported);
  CHECK_THAT(refused.error().message, Catch::Contains("without experts"));
  quantize_model(test::kModels + "qwen2-moe", temp / "dense", options_of(QuantizeFormat::dense, {})).value();
  CHECK(test::relative_error(logits_of(temp / "dense"), logits_of(test::kModels + "qwen2-moe")) < 1e-9);
}

TEST_CASE("the gate of a shared expert is a matrix in directories, though a vector in GGUF files") {
  const test::TempDir temp;
  const Mixture model(Kind::qwen2);
  quantize_model(model.path(), temp / "matrix.gguf", gguf_of("F32")).value();
  rewrite_gguf(temp / "matrix.gguf", temp / "vector.gguf");
  const auto vector = load::open_checkpoint(temp / "vector.gguf", true).value();
  CHECK(vector.find("blk.1.ffn_gate_inp_shexp.weight")->shape == std::vector<std::int64_t>{kHidden});
  for (const auto format : {QuantizeFormat::dense, QuantizeFormat::gptq}) {
    const std::string output = temp / std::to_string(static_cast<int>(format));
    QuantizeOptions options = options_of(format, {});
    options.type = "F32";
    quantize_model(temp / "vector.gguf", output, options).value();
    const auto written = load::open_checkpoint(output, true).value(),
               original = load::open_checkpoint(model.path(), true).value();
    const std::string gate = "model.layers.1.mlp.shared_expert_gate.weight";
    CHECK(written.find(gate)->shape == std::vector<std::int64_t>{1, kHidden});
    CHECK(values_of(written, gate) == values_of(original, gate));
    CHECK(written.find("model.norm.weight")->shape == std::vector<std::int64_t>{kHidden});
  }
}

TEST_CASE("factors of experts that a directory's config.json cannot say are refused") {
  const test::TempDir temp;
  for (const std::string& model : {test::kModels + "mixtral", test::kModels + "gpt-oss"}) {
    const std::string family = model.ends_with("mixtral") ? "llama" : "gpt-oss", key = family + ".expert_weights_norm";
    CAPTURE(key);
    const std::string plain = temp / family + ".gguf", input = temp / family + "-flag.gguf";
    quantize_model(model, plain, gguf_of("F32")).value();
    QuantizeOptions options = options_of(QuantizeFormat::gptq, {});
    options.bits = 8;
    options.group_size = 8;
    for (const bool normalized : {true, false}) {
      rewrite_gguf(plain, input, key, normalized);
      const auto report = quantize_model(input, temp / family + (normalized ? "-true" : "-false"), options);
      REQUIRE(report.has_value() == normalized);
      if (normalized) continue;
      CHECK(report.error().code == ErrorCode::unsupported);
      CHECK_THAT(report.error().message, Catch::Contains("'" + key + "'"));
    }
  }
}

TEST_CASE("packed mixtures have the names of the tools, and routers stay") {
  const test::TempDir temp;
  const Mixture mixtral(Kind::mixtral), qwen2(Kind::qwen2);
  using enum QuantizeFormat;
  struct Case {
    const Mixture* model;
    QuantizeFormat format;
    std::string block;
    std::vector<std::string> packed, kept;
  };
  const std::vector<Case> cases = {
      {&mixtral,
       gptq,
       "block_sparse_moe.",
       {"experts.3.w1.qweight", "experts.0.w2.g_idx", "experts.1.w3.scales"},
       {"gate"}},
      {&mixtral, awq, "block_sparse_moe.", {"experts.3.w1.qweight", "experts.0.w2.qzeros"}, {"gate"}},
      {&qwen2,
       compressed_tensors,
       "mlp.",
       {"experts.3.gate_proj.weight_packed", "experts.0.down_proj.weight_scale", "shared_expert.up_proj.weight_shape"},
       {"gate", "shared_expert_gate"}}};
  for (const Case& c : cases) {
    const std::string output = temp / std::to_string(static_cast<int>(c.format));
    CAPTURE(output);
    quantize_model(c.model->path(), output, options_of(c.format, {})).value();
    const std::string header = text_of(output + "/model.safetensors"), config = text_of(output + "/config.json");
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + "." + c.block;
      for (const std::string& name : c.packed) CHECK(header.find("\"" + prefix + name + "\"") != std::string::npos);
      for (const std::string& name : c.kept) {
        CHECK(header.find("\"" + prefix + name + ".weight\"") != std::string::npos);
        if (c.format != gptq) CHECK(config.find("\"" + prefix + name + "\"") != std::string::npos);
      }
    }
    const double error = error_of(output, c.model->path());
    CHECK(error > 1e-4);
    CHECK(error < 8e-2);
  }
}

TEST_CASE("calibrated methods serve experts, too") {
  const test::TempDir temp;
  const Mixture model(Kind::qwen2);
  const auto write = [&](const char* name, const QuantizeOptions& options) {
    quantize_model(model.path(), temp / name, options).value();
    return error_of(temp / name, model.path());
  };
  using enum QuantizeFormat;
  const double rounded = write("rtn", options_of(gptq, QuantizeMethod::round_to_nearest));
  CHECK(write("gptq", options_of(gptq, QuantizeMethod::gptq)) < 0.95 * rounded);
  const double asymmetric = write("awq-rtn", options_of(awq, QuantizeMethod::round_to_nearest));
  CHECK(write("awq", options_of(awq, QuantizeMethod::awq)) < 0.98 * asymmetric);
  const auto open = [&](const std::string& path) { return load::open_checkpoint(path, true).value(); };
  const auto original = open(model.path()), scaled = open(temp / "awq"), unscaled = open(temp / "awq-rtn");
  for (int expert = 0; expert < kExperts; ++expert) {  // its inner scales, which are more than clipping does
    CAPTURE(expert);
    const std::string down = "model.layers.1.mlp.experts." + std::to_string(expert) + ".down_proj.weight";
    const auto wanted = values_of(original, down);
    CHECK(spread(values_of(scaled, down), wanted, kFfn) > 1.2f);
    CHECK(spread(values_of(unscaled, down), wanted, kFfn) < 1.1f);
  }
  QuantizeOptions w8a8 = options_of(compressed_tensors, QuantizeMethod::round_to_nearest);
  w8a8.bits = 8;
  w8a8.int8_inputs = true;
  write("w8a8", w8a8);
  w8a8.method = QuantizeMethod::smoothquant;
  w8a8.calibration = test::kText;
  CHECK(write("smooth", w8a8) < 1e-3);
  CHECK(test::relative_error(logits_of(temp / "smooth"), logits_of(model.path())) < 0.05);
  // The mixture's norm takes up the scales of its input, and so do all of its experts.
  const auto smooth = open(temp / "smooth"), rough = open(temp / "w8a8");
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const std::string norm = prefix + "post_attention_layernorm.weight";
    CHECK(values_of(rough, norm) == values_of(original, norm));
    CHECK(values_of(smooth, norm) != values_of(rough, norm));
    for (int expert = 0; expert < kExperts; ++expert) {
      const std::string up = prefix + "mlp.experts." + std::to_string(expert) + ".up_proj.weight";
      const auto wanted = values_of(original, up);
      CHECK(spread(values_of(smooth, up), wanted, kHidden) > 1.2f);
      CHECK(spread(values_of(rough, up), wanted, kHidden) < 1.1f);
    }
  }
  QuantizeOptions blocks = gguf_of("Q4_0");
  const double plain = write("plain.gguf", blocks);
  blocks.calibration = test::kText;
  CHECK(write("guided.gguf", blocks) < 0.98 * plain);
}

TEST_CASE("an expert that no token chooses is rounded to nearest") {
  const test::TempDir temp;
  const Mixture model(Kind::qwen3, true);
  const auto written = [&](const char* name, const QuantizeOptions& options) {
    quantize_model(model.path(), temp / name, options).value();
    return load::open_checkpoint(temp / name, true).value();
  };
  using enum QuantizeFormat;
  const auto rounded = written("rtn", options_of(gptq, {})),
             chosen = written("gptq", options_of(gptq, QuantizeMethod::gptq));
  QuantizeOptions blocks = gguf_of("Q4_0");
  const auto plain = written("plain.gguf", blocks);
  blocks.calibration = test::kText;
  const auto guided = written("guided.gguf", blocks);
  for (const int expert : {0, kExperts - 1}) {
    const std::string number = "." + std::to_string(expert) + ".";
    const std::string hf = "model.layers.1.mlp.experts" + number + "down_proj.weight",
                      in_gguf = "blk.1.ffn_down" + number + "weight";
    CHECK((values_of(chosen, hf) == values_of(rounded, hf)) == (expert != 0));
    CHECK((values_of(guided, in_gguf) == values_of(plain, in_gguf)) == (expert != 0));
  }
  // The scales that AWQ finds for the others go into the weights of this one, too.
  const auto scaled = written("awq", options_of(awq, QuantizeMethod::awq)),
             same = written("awq-rtn", options_of(awq, {}));
  const std::string up = "model.layers.0.mlp.experts.3.up_proj.weight";
  CHECK(values_of(scaled, up) != values_of(same, up));
  QuantizeOptions sparse = options_of(dense, {});
  sparse.prune = PruneMethod::wanda;
  sparse.calibration = test::kText;
  const auto pruned = written("wanda", sparse);
  sparse.prune = PruneMethod::magnitude;
  const auto by_size = written("magnitude", sparse);
  CHECK(values_of(pruned, up) == values_of(by_size, up));
}

TEST_CASE("an expert's few tokens do not choose its numbers") {
  const test::TempDir temp;
  const Mixture model(Kind::qwen3, true);
  const auto written = [&](const std::string& name, const QuantizeOptions& options) {
    quantize_model(model.path(), temp / name, options).value();
    return load::open_checkpoint(temp / name, true).value();
  };
  for (const auto& [format, method] :
       {std::pair{QuantizeFormat::awq, QuantizeMethod::awq}, std::pair{QuantizeFormat::gptq, QuantizeMethod::gptq}}) {
    const std::string kind = std::to_string(static_cast<int>(format));
    QuantizeOptions options = options_of(format, method);
    const auto many = written(kind + "-many", options);
    options.calibration_sequences = 1;
    options.calibration_length = 8;  // tokens of one sequence, for the experts that they choose
    const auto few = written(kind + "-few", options), rounded = written(kind + "-rtn", options_of(format, {}));
    int chosen = 0;
    for (int expert = 0; expert < kExperts; ++expert) {
      CAPTURE(kind, expert);
      const std::string down = "model.layers.0.mlp.experts." + std::to_string(expert) + ".down_proj.weight";
      CHECK(values_of(few, down) == values_of(rounded, down));
      chosen += values_of(many, down) != values_of(rounded, down);
    }
    CHECK(chosen >= 2);
  }
}

TEST_CASE("the output matrix is quantized where the options say so") {
  const test::TempDir temp;
  using enum QuantizeFormat;
  const auto write = [&](const std::string& input, const char* name, QuantizeFormat format, QuantizeMethod method) {
    QuantizeOptions options = options_of(format, method);
    options.output_matrix = true;
    quantize_model(input, temp / name, options).value();
    const auto checkpoint = load::open_checkpoint(temp / name, true).value();
    CHECK(checkpoint.find("lm_head.weight")->type > WeightType::bf16);
    CHECK(checkpoint.find("model.embed_tokens.weight")->type <= WeightType::bf16);
    return text_of(temp / name + "/config.json");
  };
  CHECK_THAT(write(kDense, "rtn", gptq, {}), Catch::Contains("\"lm_head\":true"));
  write(kDense, "gptq", gptq, QuantizeMethod::gptq);
  const double rounded = error_of(temp / "rtn", kDense);
  CHECK(error_of(temp / "gptq", kDense) < 0.9 * rounded);
  CHECK_THAT(write(kDense, "awq", awq, QuantizeMethod::awq), Catch::Contains("\"lm_head\":true"));
  CHECK_THAT(write(kDense, "ct", compressed_tensors, QuantizeMethod::gptq), Catch::Contains("\"ignore\":[]"));
  CHECK(error_of(temp / "ct", kDense) < rounded);

  const std::string tied = test::kModels + "qwen3-moe";
  QuantizeOptions options = options_of(gptq, {});
  options.bits = 8;
  options.group_size = 8;
  options.output_matrix = true;
  quantize_model(tied, temp / "untied", options).value();
  CHECK_FALSE(load::open_checkpoint(temp / "untied", true).value().config.tied_embeddings);
  CHECK(test::relative_error(logits_of(temp / "untied"), logits_of(tied)) < 1e-3);

  options = gguf_of("Q4_0");
  options.output_matrix = true;
  CHECK_THAT(quantize_model(kDense, temp / "no.gguf", options).error().message, Catch::Contains("output_matrix"));
}

TEST_CASE("a mixture's run that was ended goes on to the same bytes") {
  const test::TempDir temp;
  const Mixture model(Kind::mixtral);
  QuantizeOptions options = options_of(QuantizeFormat::gptq, QuantizeMethod::gptq);
  options.output_matrix = true;
  quantize_model(model.path(), temp / "whole", options).value();
  for (const char* end : {"model.layers.0", "model.layers.1", "lm_head.weight"}) {
    CAPTURE(end);
    const std::string output = temp / end;
    options.on_progress = [&](std::string_view part, float) { return part != end; };
    REQUIRE_FALSE(quantize_model(model.path(), output, options));
    std::string first;
    options.on_progress = [&](std::string_view part, float) {
      if (first.empty()) first = part;
      return true;
    };
    CHECK(quantize_model(model.path(), output, options).value().tensors_resumed > 0);
    CHECK(first != "model.layers.0");
    CHECK(text_of(output + "/model.safetensors") == text_of(temp / "whole/model.safetensors"));
  }
}

TEST_CASE("tensors of mixtures have one name in each vocabulary") {
  const auto both = [](const char* architecture, const std::string& hf, const std::string& in_gguf) {
    CAPTURE(hf);
    CHECK(arch::translated_name(hf, false, architecture) == in_gguf);
    CHECK(arch::translated_name(in_gguf, true, architecture) == hf);
  };
  both("llama", "model.layers.2.block_sparse_moe.gate.weight", "blk.2.ffn_gate_inp.weight");
  both("llama", "model.layers.2.block_sparse_moe.experts.17.w2.weight", "blk.2.ffn_down.17.weight");
  both("qwen2moe", "model.layers.2.mlp.gate.weight", "blk.2.ffn_gate_inp.weight");
  both("qwen2moe", "model.layers.2.mlp.experts.0.up_proj.weight", "blk.2.ffn_up.0.weight");
  both("qwen2moe", "model.layers.2.mlp.shared_expert_gate.weight", "blk.2.ffn_gate_inp_shexp.weight");
  both("gpt-oss", "model.layers.2.mlp.router.bias", "blk.2.ffn_gate_inp.bias");
  both("gpt-oss", "model.layers.2.self_attn.sinks", "blk.2.attn_sinks.weight");
  both("gpt-oss", "model.layers.2.post_attention_layernorm.weight", "blk.2.post_attention_norm.weight");
  both("qwen3moe", "model.layers.2.post_attention_layernorm.weight", "blk.2.ffn_norm.weight");
  // Mixtral's experts as transformers stacks them
  CHECK(arch::translated_name("model.layers.2.mlp.experts.3.gate_proj.weight", false, "llama") ==
        "blk.2.ffn_gate.3.weight");
  CHECK_FALSE(arch::translated_name("blk.2.ffn_gate.x.weight", true, "llama"));
  CHECK_FALSE(arch::translated_name("blk.2.ffn_gate..weight", true, "llama"));
}

TEST_CASE("types of eight experts are those of llama-quantize") {
  load::ModelConfig config;
  config.layers = 32;
  config.heads = 32;
  config.kv_heads = 8;
  config.experts = 8;
  const auto type = [&](const char* kind, const char* name) {
    load::TensorInfo tensor;
    tensor.name = name;
    tensor.rows = tensor.cols = 4096;
    tensor.shape.assign(std::string_view(name).find("exps") == std::string_view::npos ? 2 : 3, 4096);
    return quantize::gguf_type(*quantize::find_gguf_kind(kind), tensor, config, false);
  };
  using enum WeightType;
  CHECK(type("Q4_K_M", "blk.9.ffn_gate_inp.weight") == f32);
  CHECK(type("Q4_K_M", "blk.9.attn_v.weight") == q8_0);
  CHECK(type("Q4_0", "blk.9.attn_k.weight") == q8_0);
  CHECK(type("Q4_K_M", "blk.9.attn_output.weight") == q5_k);
  CHECK(type("Q5_K_M", "blk.9.attn_output.weight") == q5_k);
  CHECK(type("Q6_K", "blk.9.attn_output.weight") == q6_k);
  CHECK(type("Q4_K_M", "blk.0.ffn_down_exps.weight") == q6_k);
  CHECK(type("Q4_K_M", "blk.9.ffn_down_exps.weight") == q6_k);
  CHECK(type("Q4_K_M", "blk.10.ffn_down_exps.weight") == q4_k);
  CHECK(type("Q4_K_M", "blk.10.ffn_up_exps.weight") == q4_k);
  CHECK(type("F16", "blk.0.ffn_up_exps.weight") == f16);
}
