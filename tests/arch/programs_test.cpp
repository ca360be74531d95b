// Architectures: published parameter counts, and what build_program answers to configs and checkpoints that are wrong.
#include <catch2/catch.hpp>

#include <algorithm>
#include <limits>
#include <optional>
#include <stdexcept>

#include "arch/arch.hpp"
#include "tests/arch/synthetic.hpp"

using namespace llminfer;
using Catch::Contains;
using test::Biases;
using test::decoder_config;
using test::mixture_config;
using test::small_llama;
using test::synthetic_checkpoint;

namespace {

void expect_error(const load::Checkpoint& checkpoint, ErrorCode code, const std::string& named) {
  const Result<Program> program = arch::build_program(checkpoint);
  REQUIRE_FALSE(program);
  INFO(program.error().message);
  CHECK(program.error().code == code);
  CHECK_THAT(program.error().message, Contains(named));
  CHECK_THAT(program.error().message, Contains(checkpoint.path));
}

void expect_config_error(const load::ModelConfig& config, const std::string& named) {
  load::Checkpoint checkpoint = synthetic_checkpoint(small_llama());
  checkpoint.config = config;
  expect_error(checkpoint, ErrorCode::corrupt, named);
}

}  // namespace

TEST_CASE("Parameter counts are the published ones") {
  struct Published {
    const char* name;
    load::ModelConfig config;
    std::int64_t parameters;
  };
  const Published models[] = {
      {"SmolLM2-135M", decoder_config("llama", 49152, 576, 1536, 30, 9, 3, true), 134'515'008},
      {"SmolLM2-360M", decoder_config("llama", 49152, 960, 2560, 32, 15, 5, true), 361'821'120},
      {"SmolLM2-1.7B", decoder_config("llama", 49152, 2048, 8192, 24, 32, 32, true), 1'711'376'384},
      {"Llama-2-7B", decoder_config("llama", 32000, 4096, 11008, 32, 32, 32, false), 6'738'415'616},
      {"Llama-2-70B", decoder_config("llama", 32000, 8192, 28672, 80, 64, 8, false), 68'976'648'192},
      {"Llama-3.1-8B", decoder_config("llama", 128256, 4096, 14336, 32, 32, 8, false), 8'030'261'248},
      {"Llama-3.2-1B", decoder_config("llama", 128256, 2048, 8192, 16, 32, 8, true), 1'235'814'400},
      {"Llama-3.2-3B", decoder_config("llama", 128256, 3072, 8192, 28, 24, 8, true), 3'212'749'824},
      {"Mistral-7B", decoder_config("llama", 32000, 4096, 14336, 32, 32, 8, false), 7'241'732'096},
      {"Qwen2.5-0.5B", decoder_config("qwen2", 151936, 896, 4864, 24, 14, 2, true), 494'032'768},
      {"Qwen2.5-1.5B", decoder_config("qwen2", 151936, 1536, 8960, 28, 12, 2, true), 1'543'714'304},
      {"Qwen2.5-7B", decoder_config("qwen2", 152064, 3584, 18944, 28, 28, 4, false), 7'615'616'512},
      {"Qwen3-0.6B", mixture_config(decoder_config("qwen3", 151936, 1024, 3072, 28, 16, 8, true), 128, 0, 0, 0),
       596'049'920},
      {"Qwen3-8B", decoder_config("qwen3", 151936, 4096, 12288, 36, 32, 8, false), 8'190'735'360},
      {"Mixtral-8x7B", mixture_config(decoder_config("llama", 32000, 4096, 14336, 32, 32, 8, false), 128, 8, 2, 14336),
       46'702'792'704},
      {"Mixtral-8x22B", mixture_config(decoder_config("llama", 32000, 6144, 16384, 56, 48, 8, false), 128, 8, 2, 16384),
       140'620'634'112},
      {"Qwen1.5-MoE-A2.7B",
       mixture_config(decoder_config("qwen2moe", 151936, 2048, 5632, 24, 16, 16, false), 128, 60, 4, 1408, 5632),
       14'315'784'192},
      {"Qwen3-30B-A3B",
       mixture_config(decoder_config("qwen3moe", 151936, 2048, 6144, 48, 32, 4, false), 128, 128, 8, 768),
       30'532'122'624},
      {"OLMoE-1B-7B", mixture_config(decoder_config("olmoe", 50304, 2048, 1024, 16, 16, 16, false), 128, 64, 8, 1024),
       6'919'161'856},
  };
  for (Published model : models) {
    for (const bool hf_names : {false, true}) {
      model.config.hf_names = hf_names;
      const load::Checkpoint checkpoint =
          synthetic_checkpoint(model.config, {.qkv = model.config.architecture.starts_with("qwen2")});
      const Result<Program> program = arch::build_program(checkpoint);
      INFO(model.name << (hf_names ? ", Hugging Face names" : ", GGUF names"));
      REQUIRE(program);
      CHECK(program->parameter_count() == model.parameters);
      CHECK(program->weights.size() == checkpoint.tensors.size());
      CHECK(program->vocab_size == model.config.vocab_size);
      CHECK(program->hidden_size == model.config.hidden_size);
      REQUIRE(program->cache_groups.size() == 1);
      CHECK(program->cache_groups[0].layers == model.config.layers);
      CHECK(program->cache_groups[0].window == 0);
    }
  }
}

TEST_CASE("Rotary pairs are neighbours in Llama's GGUF files only") {
  const auto interleaved = [](const char* architecture, bool hf_names) {
    load::ModelConfig config = decoder_config(architecture, 32, 16, 24, 2, 4, 2, false);
    config.hf_names = hf_names;
    return arch::build_program(synthetic_checkpoint(config, {.qkv = true})).value().rope_tables.at(0).interleaved;
  };
  CHECK(interleaved("llama", false));
  CHECK_FALSE(interleaved("llama", true));
  CHECK_FALSE(interleaved("qwen2", false));
  CHECK_FALSE(interleaved("qwen2", true));
}

TEST_CASE("Sliding windows make cache groups") {
  load::ModelConfig config = decoder_config("qwen2", 32, 16, 24, 5, 4, 2, false);
  config.sliding_window = 8;
  SECTION("all layers") {
    const Program program = arch::build_program(synthetic_checkpoint(config, {.qkv = true})).value();
    REQUIRE(program.cache_groups.size() == 1);
    CHECK(program.cache_groups[0].layers == 5);
    CHECK(program.cache_groups[0].window == 8);
  }
  SECTION("some layers") {
    config.sliding_layers = {0, 1, 0, 1, 1};
    const Program program = arch::build_program(synthetic_checkpoint(config, {.qkv = true})).value();
    REQUIRE(program.cache_groups.size() == 2);
    CHECK(program.cache_groups[0].layers == 2);
    CHECK(program.cache_groups[0].window == 0);
    CHECK(program.cache_groups[1].layers == 3);
    CHECK(program.cache_groups[1].window == 8);
    std::vector<std::pair<int, int>> slots;
    for (const Op& op : program.ops) {
      if (const auto* attention = std::get_if<op::Attention>(&op))
        slots.emplace_back(attention->group, attention->layer);
    }
    CHECK(slots == std::vector<std::pair<int, int>>{{0, 0}, {1, 0}, {0, 1}, {1, 1}, {1, 2}});
  }
}

TEST_CASE("Llama takes the biases that are stored") {
  for (const Biases biases : {Biases{true, false, false}, Biases{true, true, true}, Biases{false, false, true}}) {
    const load::Checkpoint checkpoint = synthetic_checkpoint(small_llama(), biases);
    const Result<Program> program = arch::build_program(checkpoint);
    REQUIRE(program);
    CHECK(program->weights.size() == checkpoint.tensors.size());
  }
  SECTION("but not in some layers only") {
    load::Checkpoint checkpoint = synthetic_checkpoint(small_llama());
    test::add_tensor(checkpoint, "blk.0.attn_q.bias", 1, 16);
    expect_error(checkpoint, ErrorCode::missing_tensor, "blk.1.attn_q.bias");
  }
}

TEST_CASE("Head size independent of the hidden size") {
  load::ModelConfig config = small_llama();
  config.head_dim = config.rotary_dim = 10;
  const Program program = arch::build_program(synthetic_checkpoint(config)).value();
  CHECK(program.cache_groups.at(0).head_dim == 10);
  CHECK(program.rope_tables.at(0).inverse_frequency.size() == 5);
}

TEST_CASE("Tensors that do not fit the architecture") {
  load::Checkpoint checkpoint = synthetic_checkpoint(small_llama());
  REQUIRE(arch::build_program(checkpoint));
  SECTION("missing") {
    test::remove_tensor(checkpoint, "blk.1.ffn_up.weight");
    expect_error(checkpoint, ErrorCode::missing_tensor, "blk.1.ffn_up.weight");
  }
  SECTION("another shape") {
    load::TensorInfo& tensor = checkpoint.tensors[checkpoint.by_name.at("blk.1.ffn_up.weight")];
    tensor.rows = 23;
    tensor.shape = {23, 16};
    expect_error(checkpoint, ErrorCode::shape_mismatch, "blk.1.ffn_up.weight is [23, 16], expected [24, 16]");
  }
  SECTION("three dimensions that fold into the right rows") {
    checkpoint.tensors[checkpoint.by_name.at("blk.1.ffn_up.weight")].shape = {2, 12, 16};
    expect_error(checkpoint, ErrorCode::shape_mismatch, "[2, 12, 16]");
  }
  SECTION("unknown") {
    test::add_tensor(checkpoint, "blk.0.ffn_gate_inp.weight", 8, 16);
    expect_error(checkpoint, ErrorCode::unexpected_tensor, "blk.0.ffn_gate_inp.weight");
  }
  SECTION("known and ignored") {
    test::add_tensor(checkpoint, "rope_freqs.weight", 1, 2);
    CHECK(arch::build_program(checkpoint));
  }
}

TEST_CASE("Mixtures of experts that do not fit the architecture") {
  const load::ModelConfig config = mixture_config(small_llama(), 4, 3, 2, 8);
  load::Checkpoint checkpoint = synthetic_checkpoint(config);
  REQUIRE(arch::build_program(checkpoint));
  SECTION("a missing expert") {
    test::remove_tensor(checkpoint, "blk.1.ffn_down.2.weight");
    expect_error(checkpoint, ErrorCode::missing_tensor, "blk.1.ffn_down.2.weight");
  }
  SECTION("one expert more") {
    test::add_tensor(checkpoint, "blk.1.ffn_up.3.weight", 8, 16);
    expect_error(checkpoint, ErrorCode::unexpected_tensor, "blk.1.ffn_up.3.weight");
  }
  SECTION("more experts than the file can have") {
    checkpoint.config.experts = 4096;
    expect_error(checkpoint, ErrorCode::missing_tensor, "4096 experts in each of ");
  }
  SECTION("a router of another size") {
    checkpoint.tensors[checkpoint.by_name.at("blk.0.ffn_gate_inp.weight")].rows = 4;
    expect_error(checkpoint, ErrorCode::shape_mismatch, "blk.0.ffn_gate_inp.weight");
  }
  SECTION("an expert of another size") {
    checkpoint.tensors[checkpoint.by_name.at("blk.0.ffn_gate.1.weight")].cols = 17;
    expect_error(checkpoint, ErrorCode::shape_mismatch, "blk.0.ffn_gate.1.weight");
  }
  SECTION("a dense layer in its place") {
    checkpoint = synthetic_checkpoint(small_llama());
    checkpoint.config = config;
    expect_error(checkpoint, ErrorCode::missing_tensor, "blk.0.ffn_gate_inp.weight");
  }
  SECTION("a mixture in the place of a dense layer") {
    checkpoint.config.experts = 0;
    expect_error(checkpoint, ErrorCode::missing_tensor, "blk.0.ffn_gate.weight");
  }
}

TEST_CASE("Layers without a mixture") {
  load::ModelConfig config = mixture_config(decoder_config("qwen3moe", 32, 16, 24, 3, 4, 2, false), 4, 3, 2, 8);
  config.expert_layers = {0, 1, 0};
  config.hf_names = true;
  const Program program = arch::build_program(synthetic_checkpoint(config)).value();
  const auto mixtures = std::count_if(program.ops.begin(), program.ops.end(),
                                      [](const Op& op) { return std::holds_alternative<op::Moe>(op); });
  CHECK(mixtures == 1);
}

TEST_CASE("Factors of experts add up to 1 where the architecture or the checkpoint says so") {
  const auto normalizes = [](const char* architecture, std::optional<bool> said) {
    load::ModelConfig config = mixture_config(decoder_config(architecture, 32, 16, 24, 1, 4, 2, false), 4, 3, 2, 8);
    config.normalize_experts = said;
    const Program program = arch::build_program(synthetic_checkpoint(config, {.qkv = true})).value();
    for (const Op& op : program.ops) {
      if (const auto* moe = std::get_if<op::Moe>(&op)) return moe->normalize;
    }
    throw std::logic_error("no mixture");
  };
  CHECK(normalizes("llama", {}));
  CHECK(normalizes("qwen3moe", {}));
  CHECK_FALSE(normalizes("qwen2moe", {}));
  CHECK_FALSE(normalizes("olmoe", {}));
  CHECK(normalizes("olmoe", true));
  CHECK_FALSE(normalizes("qwen3moe", false));
}

TEST_CASE("Ignored and tied tensors of Hugging Face checkpoints") {
  load::ModelConfig config = small_llama();
  config.hf_names = true;
  SECTION("inverse frequencies that were saved") {
    load::Checkpoint checkpoint = synthetic_checkpoint(config);
    test::add_tensor(checkpoint, "model.layers.0.self_attn.rotary_emb.inv_freq", 1, 2);
    CHECK(arch::build_program(checkpoint));
  }
  SECTION("a tied output that was saved") {
    load::Checkpoint checkpoint = synthetic_checkpoint(config);
    checkpoint.config.tied_embeddings = true;
    const Program program = arch::build_program(checkpoint).value();
    CHECK(program.weights.size() == checkpoint.tensors.size() - 1);
  }
  SECTION("an untied output that was not") {
    load::Checkpoint checkpoint = synthetic_checkpoint(config);
    test::remove_tensor(checkpoint, "lm_head.weight");
    expect_error(checkpoint, ErrorCode::missing_tensor, "lm_head.weight");
  }
  SECTION("Qwen2 needs its biases") {
    config.architecture = "qwen2";
    expect_error(synthetic_checkpoint(config), ErrorCode::missing_tensor, "model.layers.0.self_attn.q_proj.bias");
  }
}

TEST_CASE("Architectures that are not known") {
  load::Checkpoint checkpoint = synthetic_checkpoint(small_llama());
  checkpoint.config.architecture = "mamba";
  expect_error(checkpoint, ErrorCode::unsupported_architecture, "mamba");
}

TEST_CASE("Activations") {
  load::Checkpoint checkpoint = synthetic_checkpoint(small_llama());
  const auto activation = [&](const char* name) {
    checkpoint.config.activation = name;
    const Program program = arch::build_program(checkpoint).value();
    for (const Op& op : program.ops) {
      if (const auto* glu = std::get_if<op::Glu>(&op)) return glu->activation;
    }
    FAIL("no glu");
    return Activation::silu;
  };
  CHECK(activation("silu") == Activation::silu);
  CHECK(activation("gelu") == Activation::gelu);
  CHECK(activation("gelu_pytorch_tanh") == Activation::gelu_tanh);
  checkpoint.config.activation = "relu6";
  expect_error(checkpoint, ErrorCode::unsupported, "relu6");
}

TEST_CASE("Hyperparameters out of range") {
  load::ModelConfig config = small_llama();
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  SECTION("zero, negative and enormous") {
    const auto [field, key] = GENERATE(table<std::int64_t load::ModelConfig::*, std::string>({
        {&load::ModelConfig::vocab_size, "llama.vocab_size"},
        {&load::ModelConfig::context_length, "llama.context_length"},
        {&load::ModelConfig::layers, "llama.block_count"},
        {&load::ModelConfig::hidden_size, "llama.embedding_length"},
        {&load::ModelConfig::ffn_size, "llama.feed_forward_length"},
        {&load::ModelConfig::heads, "llama.attention.head_count"},
        {&load::ModelConfig::kv_heads, "llama.attention.head_count_kv"},
        {&load::ModelConfig::head_dim, "llama.attention.key_length"},
        {&load::ModelConfig::rotary_dim, "llama.rope.dimension_count"},
    }));
    for (const std::int64_t value : {std::int64_t{0}, std::int64_t{-1}, kHuge}) {
      config.*field = value;
      expect_config_error(config, key);
    }
  }
  SECTION("named as in config.json") {
    config.hf_names = true;
    config.layers = 0;
    expect_config_error(config, "num_hidden_layers");
  }
  SECTION("heads and KV heads") {
    config.kv_heads = 3;
    expect_config_error(config, "llama.attention.head_count");
  }
  SECTION("experts") {
    config = mixture_config(config, 4, 3, 2, 8);
    for (const std::int64_t used : {std::int64_t{0}, std::int64_t{4}, std::int64_t{-1}, kHuge}) {
      config.experts_used = used;
      expect_config_error(config, "llama.expert_used_count");
    }
    config.experts_used = 2;
    for (const std::int64_t experts : {std::int64_t{-1}, std::int64_t{5000}, kHuge}) {
      config.experts = experts;
      expect_config_error(config, "llama.expert_count");
    }
    config.experts = 3;
    for (const std::int64_t size : {std::int64_t{0}, std::int64_t{-1}, kHuge}) {
      config.expert_ffn_size = size;
      expect_config_error(config, "llama.expert_feed_forward_length");
    }
  }
  SECTION("odd head size") {
    config.head_dim = 5;
    config.rotary_dim = 4;
    expect_config_error(config, "llama.attention.key_length");
  }
  SECTION("rotary dimensions") {
    config.rotary_dim = GENERATE(3, 6);
    expect_config_error(config, "llama.rope.dimension_count");
  }
  SECTION("epsilon") {
    config.norm_epsilon = GENERATE(-1e-5, 2.0, std::numeric_limits<double>::quiet_NaN());
    expect_config_error(config, "epsilon");
  }
  SECTION("rotary base") {
    config.rope_base = GENERATE(0.0, -1.0, std::numeric_limits<double>::infinity());
    expect_config_error(config, "freq_base");
  }
  SECTION("window") {
    config.sliding_window = -1;
    expect_config_error(config, "sliding_window");
  }
  SECTION("window pattern") {
    config.sliding_layers = {1};
    expect_config_error(config, "sliding_window_pattern");
  }
}
