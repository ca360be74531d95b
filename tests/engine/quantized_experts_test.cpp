// Mixtures of experts as the tools that quantize Hugging Face directories write them: each expert's matrices packed by
// itself. Against the same model with dense experts of the same values, and errors of experts that do not fit.
#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <random>

#include "core/half.hpp"
#include "tests/engine/program_runner.hpp"
#include "tests/load/packed_layer.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

constexpr int kHidden = 64, kFfn = 32, kExperts = 3, kVocab = 40;

struct Family {
  std::string config, router, experts;
  std::array<std::string, 3> names;  ///< of gate, up and down
  bool qwen2 = false, qwen3 = false;
};

const std::string kShape = R"("vocab_size": 40, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1,
  "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "num_experts_per_tok": 2,
  "moe_intermediate_size": 32, )";

const Family kFamilies[] = {
    {R"("model_type": "mixtral", "num_local_experts": 3, "sliding_window": null)",
     "block_sparse_moe.gate",
     "block_sparse_moe.experts.",
     {"w1", "w3", "w2"}},
    {R"("model_type": "qwen2_moe", "num_experts": 3, "shared_expert_intermediate_size": 32)",
     "mlp.gate",
     "mlp.experts.",
     {"gate_proj", "up_proj", "down_proj"},
     true},
    {R"("model_type": "qwen3_moe", "num_experts": 3, "norm_topk_prob": true)",
     "mlp.gate",
     "mlp.experts.",
     {"gate_proj", "up_proj", "down_proj"},
     false,
     true},
};

struct Method {
  const char* name;
  const char* settings;
};
constexpr Method kMethods[] = {
    {"gptq", R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": true, "desc_act": false})"},
    {"awq", R"({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true, "version": "gemm"})"},
    {"packed", R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {
       "targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group",
       "group_size": 32}}}, "ignore": ["lm_head", "re:.*mlp.gate$"]})"},
    {"fp8", R"({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"})"},
};

class Writer {
 public:
  std::mt19937 random{7};

  Tensor noise(std::vector<std::int64_t> shape, float size) {
    std::normal_distribution<float> normal(0, size);
    Tensor tensor = floats(std::move(shape), 0);
    std::vector<float> values(tensor.data.size() / sizeof(float));
    for (float& value : values) value = normal(random);
    return {tensor.dtype, tensor.shape, bytes_of(values)};
  }

  /// Random codes of a matrix: its tensors in `packed`, its values in `dense`.
  void matrix(const std::string& method, const std::string& name, int rows, int cols, Layer& packed, Layer& dense) {
    const auto at = [&](int n, int k) { return static_cast<std::size_t>(n * cols + k); };
    const int groups = cols / 32;
    std::vector<int> codes(static_cast<std::size_t>(rows * cols));
    std::vector<float> values(codes.size()), scales(static_cast<std::size_t>(rows * groups));
    for (float& scale : scales) scale = std::ldexp(static_cast<float>(16 + random() % 16), -10);
    std::vector<std::uint32_t> words(codes.size() / 8);
    auto& tensors = packed.tensors;
    const auto fill = [&](int zero, const auto& word_of) {  // word_of(row, column) -> word and nibble
      for (int n = 0; n < rows; ++n) {
        for (int k = 0; k < cols; ++k) {
          const auto code = static_cast<std::uint32_t>(random() % 16);
          const auto [word, nibble] = word_of(n, k);
          words[static_cast<std::size_t>(word)] |= code << (4 * nibble);
          values[at(n, k)] =
              scales[static_cast<std::size_t>(n * groups + k / 32)] * static_cast<float>(static_cast<int>(code) - zero);
        }
      }
    };
    const auto turned = [&] {  // [groups, rows]
      std::vector<float> out(scales.size());
      for (int n = 0; n < rows; ++n) {
        for (int g = 0; g < groups; ++g) {
          out[static_cast<std::size_t>(g * rows + n)] = scales[static_cast<std::size_t>(n * groups + g)];
        }
      }
      return bytes_of(out);
    };
    if (method == "gptq") {
      fill(8, [&](int n, int k) { return std::pair(k / 8 * rows + n, k % 8); });
      tensors[name + ".qweight"] = {"I32", {cols / 8, rows}, bytes_of(words)};
      tensors[name + ".qzeros"] = test::words({groups, rows / 8}, 0x77777777);
      tensors[name + ".scales"] = {"F32", {groups, rows}, turned()};
      std::vector<std::int32_t> order(static_cast<std::size_t>(cols));
      for (int k = 0; k < cols; ++k) order[static_cast<std::size_t>(k)] = k / 32;
      tensors[name + ".g_idx"] = {"I32", {cols}, bytes_of(order)};
    } else if (method == "awq") {
      constexpr int kPlace[] = {0, 4, 1, 5, 2, 6, 3, 7};  // of the n-th of eight columns
      fill(6, [&](int n, int k) { return std::pair(k * (rows / 8) + n / 8, kPlace[n % 8]); });
      tensors[name + ".qweight"] = {"I32", {cols, rows / 8}, bytes_of(words)};
      tensors[name + ".qzeros"] = test::words({groups, rows / 8}, 0x66666666);
      tensors[name + ".scales"] = {"F32", {groups, rows}, turned()};
    } else if (method == "packed") {
      fill(8, [&](int n, int k) { return std::pair(n * (cols / 8) + k / 8, k % 8); });
      tensors[name + ".weight_packed"] = {"I32", {rows, cols / 8}, bytes_of(words)};
      tensors[name + ".weight_scale"] = {"F32", {rows, groups}, bytes_of(scales)};
      tensors[name + ".weight_shape"] = {"I64", {2}, bytes_of(std::vector<std::int64_t>{rows, cols})};
    } else {
      std::string bytes(codes.size(), '\0');
      for (std::size_t i = 0; i < codes.size(); ++i) {
        const auto byte = static_cast<std::uint8_t>(random() % 0x50 | (random() % 2) << 7);
        bytes[i] = static_cast<char>(byte);
        values[i] = 0.0625f * core::e4m3_to_float(byte);
      }
      tensors[name + ".weight"] = {"F8_E4M3", {rows, cols}, bytes};
      tensors[name + ".weight_scale_inv"] = floats({1, 1}, 0.0625f);
    }
    dense.tensors[name + ".weight"] = {"F32", {rows, cols}, bytes_of(values)};
  }
};

/// The same model twice: with packed experts, and with dense ones.
void make(const Family& family, const Method& method, Layer& packed, Layer& dense) {
  Writer writer;
  const auto both = [&](const std::string& name, std::vector<std::int64_t> shape, float size) {
    packed.tensors[name] = dense.tensors[name] = writer.noise(std::move(shape), size);
  };
  const std::string layer = "model.layers.0.", attention = layer + "self_attn.";
  both("model.embed_tokens.weight", {kVocab, kHidden}, 1);
  both("lm_head.weight", {kVocab, kHidden}, 0.2f);
  for (const std::string& name :
       {std::string("model.norm"), layer + "input_layernorm", layer + "post_attention_layernorm"}) {
    both(name + ".weight", {kHidden}, 1);
  }
  for (const auto& [name, rows] : {std::pair{"q_proj", 64}, {"k_proj", 32}, {"v_proj", 32}, {"o_proj", 64}}) {
    both(attention + name + ".weight", {rows, 64}, 0.1f);
  }
  if (family.qwen3) both(attention + "q_norm.weight", {32}, 1), both(attention + "k_norm.weight", {32}, 1);
  both(layer + family.router + ".weight", {kExperts, kHidden}, 0.2f);
  const auto gated = [&](const std::string& prefix, const std::array<std::string, 3>& names) {
    writer.matrix(method.name, prefix + names[0], kFfn, kHidden, packed, dense);
    writer.matrix(method.name, prefix + names[1], kFfn, kHidden, packed, dense);
    writer.matrix(method.name, prefix + names[2], kHidden, kFfn, packed, dense);
  };
  for (int e = 0; e < kExperts; ++e) gated(layer + family.experts + std::to_string(e) + ".", family.names);
  if (family.qwen2) {
    gated(layer + "mlp.shared_expert.", family.names);
    both(layer + "mlp.shared_expert_gate.weight", {1, kHidden}, 0.2f);
  }
  packed.model = dense.model = kShape + family.config;
  packed.settings = method.settings;
}

void refused(const Layer& model, std::initializer_list<ErrorCode> codes, const std::string& named) {
  model.write();
  auto checkpoint = load::open_checkpoint(model.dir.path(), true);
  Result<void> error;
  if (!checkpoint) {
    error = std::move(checkpoint).error();
  } else if (auto program = arch::build_program(*checkpoint); !program) {
    error = std::move(program).error();
  }
  INFO(named);
  REQUIRE_FALSE(error);
  INFO(error.error().message);
  CHECK(std::find(codes.begin(), codes.end(), error.error().code) != codes.end());
  CHECK_THAT(error.error().message, Catch::Contains(named));
}

}  // namespace

TEST_CASE("Quantized experts equal dense ones of the same values") {
  const std::vector<std::int32_t> tokens = {3, 17, 5, 39, 8, 8, 21, 0, 14};
  for (const Family& family : kFamilies) {
    for (const Method& method : kMethods) {
      INFO(family.config << ", " << method.name);
      Layer packed, dense;
      make(family, method, packed, dense);
      if (std::string(method.name) == "fp8") packed.settings.replace(packed.settings.find("dynamic"), 7, "none");
      packed.write();
      dense.write();
      const auto expected = ProgramRunner(dense.dir.path()).forward(tokens);
      CHECK(relative_error(ProgramRunner(packed.dir.path()).forward(tokens), expected) < 1e-10);
      CHECK(relative_error(ProgramRunner(packed.dir.path(), false).forward(tokens), expected) < 1e-5);
      if (std::string(method.name) != "fp8" || family.qwen2)
        continue;                         // whose shared expert reads what the router does
      packed.settings = method.settings;  // inputs are rounded to 8 bits
      packed.write();
      const double error = relative_error(ProgramRunner(packed.dir.path(), false).forward(tokens), expected);
      CHECK(error > 1e-7);
      CHECK(error < 1e-2);
    }
  }
}

TEST_CASE("Experts that do not fit are named") {
  for (const Method& method : kMethods) {
    Layer packed, dense;
    make(kFamilies[2], method, packed, dense);
    const std::string expert = "model.layers.0.mlp.experts.1.up_proj";
    const std::string fp8 = method.name;
    const char* const codes = fp8 == "packed" ? ".weight_packed" : fp8 == "fp8" ? ".weight" : ".qweight";
    const char* const scales = fp8 == "packed" ? ".weight_scale" : fp8 == "fp8" ? ".weight_scale_inv" : ".scales";
    INFO(method.name);
    SECTION(std::string(method.name) + ": an expert that is missing") {
      for (auto it = packed.tensors.begin(); it != packed.tensors.end();) {
        it = it->first.starts_with(expert) ? packed.tensors.erase(it) : std::next(it);
      }
      refused(packed, {ErrorCode::missing_tensor}, expert + ".weight");
    }
    SECTION(std::string(method.name) + ": scales that are missing") {
      packed.tensors.erase(expert + scales);
      refused(packed, {ErrorCode::missing_tensor, ErrorCode::unsupported_type}, expert);
    }
    SECTION(std::string(method.name) + ": scales of another shape") {
      packed.tensors[expert + scales] = floats({3, 3}, 1);
      refused(packed, {ErrorCode::shape_mismatch, ErrorCode::corrupt}, expert);
    }
    SECTION(std::string(method.name) + ": one of another size") {
      Writer writer;
      writer.matrix(method.name, expert, 2 * kFfn, kHidden, packed, dense);
      refused(packed, {ErrorCode::shape_mismatch}, expert + ".weight is [64, 64], expected [32, 64]");
    }
    SECTION(std::string(method.name) + ": one that is not quantized is no mistake") {
      for (auto it = packed.tensors.begin(); it != packed.tensors.end();) {
        it = it->first.starts_with(expert) ? packed.tensors.erase(it) : std::next(it);
      }
      packed.tensors[expert + ".weight"] = dense.tensors[expert + ".weight"];
      packed.write();
      dense.write();
      CHECK(relative_error(ProgramRunner(packed.dir.path()).forward({3, 4, 5}),
                           ProgramRunner(dense.dir.path()).forward({3, 4, 5})) < (fp8 == "fp8" ? 1e-2 : 1e-10));
    }
    SECTION(std::string(method.name) + ": packed, and there as it is") {
      if (fp8 == "fp8") continue;
      packed.tensors[expert + ".weight"] = dense.tensors[expert + ".weight"];
      refused(packed, {ErrorCode::corrupt}, expert + ".weight");
    }
    CHECK(packed.tensors.contains("model.layers.0.mlp.experts.0.up_proj" + std::string(codes)));
  }
}
