// Every architecture and rotary scaling end to end on the CPU backend: the tiny models of golden/models in exact mode
// give the logits and the greedy tokens of Hugging Face transformers.
#include <catch2/catch.hpp>
#include <llminfer/engine.hpp>
#include <llminfer/session.hpp>

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file.hpp"
#include "tests/engine/program_runner.hpp"
#include "tests/load/gguf_writer.hpp"
#include "tests/load/temp_dir.hpp"

using namespace llminfer;
using test::relative_error;
using test::ProgramRunner;

namespace {

constexpr float kDecidedMargin = 0.05f;  // logits; below it two computations may choose different tokens

struct Reference {
  std::vector<std::int32_t> prompt, greedy;
  std::vector<float> last_logits, margins;
};

Reference read_reference(const std::string& model) {
  const nlohmann::json json = nlohmann::json::parse(core::read_text_file(model + "/reference.json", 1 << 24).value());
  return {json["prompt_ids"].get<std::vector<std::int32_t>>(), json["greedy"].get<std::vector<std::int32_t>>(),
          json["last_logits"].get<std::vector<float>>(), json["margins"].get<std::vector<float>>()};
}

std::string replaced(std::string text, std::initializer_list<std::pair<std::string_view, std::string_view>> names) {
  for (const auto& [from, to] : names) {
    if (const std::size_t at = text.find(from); at != std::string::npos) text.replace(at, from.size(), to);
  }
  return text;
}

/// A tiny model as a GGUF file, the matrices and biases of its experts in stacks.
std::string as_gguf(const load::Checkpoint& model) {
  const load::ModelConfig& c = model.config;
  test::GgufWriter file;
  const auto u32 = [&](const char* key, std::int64_t value) {
    file.u32(c.architecture + "." + key, static_cast<std::uint32_t>(value));
  };
  file.string("general.architecture", c.architecture);
  u32("block_count", c.layers);
  u32("context_length", c.context_length);
  u32("embedding_length", c.hidden_size);
  u32("feed_forward_length", c.ffn_size);
  u32("attention.head_count", c.heads);
  u32("attention.head_count_kv", c.kv_heads);
  u32("attention.key_length", c.head_dim);
  u32("expert_count", c.experts);
  u32("expert_used_count", c.experts_used);
  u32("expert_feed_forward_length", c.expert_ffn_size);
  const bool gpt_oss = c.architecture == "gpt-oss";
  if (gpt_oss) {
    const auto f32 = [&](const char* key, double value) {
      file.f32(c.architecture + "." + key, static_cast<float>(value));
    };
    u32("attention.sliding_window", c.sliding_window);
    file.string("gpt-oss.rope.scaling.type", "yarn");
    f32("rope.freq_base", c.rope_base);
    f32("rope.scaling.factor", c.rope_scaling.factor);
    u32("rope.scaling.original_context_length", static_cast<std::int64_t>(c.rope_scaling.original_context));
    f32("rope.scaling.yarn_beta_fast", c.rope_scaling.beta_fast);
  }
  file.f32(c.architecture + ".attention.layer_norm_rms_epsilon", static_cast<float>(c.norm_epsilon));
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  for (std::int64_t i = 3; i < c.vocab_size; ++i) tokens.push_back(std::string("t").append(std::to_string(i)));
  file.string("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", tokens);
  file.array<float>("tokenizer.ggml.scores", load::GgufType::f32, std::vector<float>(tokens.size()));
  struct Stack {
    std::vector<std::uint64_t> sides;
    std::uint32_t type = 0;
    std::string bytes;
  };
  std::map<std::string, Stack> stacks;
  for (const load::TensorInfo& tensor : model.tensors) {
    const WeightView view = model.read(tensor).value();
    const std::string bytes(reinterpret_cast<const char*>(view.data.data()), view.data.size());
    std::string name =
        replaced(tensor.name, {{"model.layers.", "blk."},
                               {"model.embed_tokens", "token_embd"},
                               {"model.norm", "output_norm"},
                               {"lm_head", "output"},
                               {"input_layernorm", "attn_norm"},
                               {"post_attention_layernorm", gpt_oss ? "post_attention_norm" : "ffn_norm"},
                               {"self_attn.sinks", "attn_sinks.weight"},
                               {"self_attn.o_proj", "attn_output"},
                               {"self_attn.", "attn_"},
                               {"_proj.", "."},
                               {"mlp.gate.", "ffn_gate_inp."},
                               {"mlp.router.", "ffn_gate_inp."},
                               {"mlp.experts.", "ffn_"}});
    std::vector<std::uint64_t> sides(tensor.shape.rbegin(), tensor.shape.rend());
    const std::size_t number = name.find("ffn_") + 4;
    const std::uint32_t type = view.type == WeightType::mxfp4 ? 39 : 30;  // 30: BF16
    if (tensor.name.find("experts") == std::string::npos) {
      file.tensor(name, sides, type, bytes);
      continue;
    }
    // ffn_3.up.weight is part 3 of ffn_up_exps.weight; fewer than ten, so their order is that of the names.
    name = name.substr(0, number) + name.substr(number + 2);
    Stack& stack = stacks[name.replace(name.rfind('.'), 0, "_exps")];
    sides.push_back(static_cast<std::uint64_t>(c.experts));
    stack.sides = sides;
    stack.type = type;
    stack.bytes += bytes;
  }
  for (const auto& [name, stack] : stacks) file.tensor(name, stack.sides, stack.type, stack.bytes);
  return file.bytes();
}

}  // namespace

TEST_CASE("Stacks of experts in GGUF files give the bits of single matrices") {
  const test::TempDir folder;
  for (const char* name : {"olmoe", "qwen3-moe", "gpt-oss"}) {
    INFO(name);
    const std::string model = std::string(LLMINFER_TEST_DATA "/models/") + name, gguf = folder / name;
    folder.write(name, as_gguf(load::open_checkpoint(model, true).value()));
    const Reference reference = read_reference(model);
    for (const bool exact : {false, true}) {
      ProgramRunner of_model(model, exact), of_gguf(gguf, exact);
      CHECK(of_gguf.checkpoint().find("blk.0.ffn_down.3.weight"));
      CHECK(of_gguf.forward(reference.prompt) == of_model.forward(reference.prompt));
    }
  }
}

TEST_CASE("Experts in an engine: memory as planned, and files of prepared weights") {
  const test::TempDir folder;
  folder.write("model.gguf", as_gguf(load::open_checkpoint(LLMINFER_TEST_DATA "/models/olmoe", true).value()));
  const std::string model = folder / "model.gguf";
  EngineOptions options{.threads = 2};
  const auto logits = [&] {
    const Engine engine = Engine::load(model, options).value();
    CHECK(engine.info().parameters == Engine::plan(model, options).value().parameters);
    Session session = engine.new_session().value();
    session.prefill(std::vector<Token>{5, 6, 7, 8, 9}).value();
    return std::vector<float>(session.logits().begin(), session.logits().end());
  };
  const std::vector<float> expected = logits();
  options.weight_cache = folder.path();
  CHECK(logits() == expected);  // writes the file
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) files += entry.path() != model;
  REQUIRE(files == 1);
  CHECK(logits() == expected);  // maps it
}

TEST_CASE("The tiny models on the CPU backend equal transformers") {
  for (const char* name : {"tiny-bf16", "llama3-rope", "linear-rope", "yarn-rope", "llama-biases", "mistral-window",
                           "qwen2", "qwen2-window", "mixtral", "qwen2-moe", "olmoe", "qwen3", "qwen3-moe", "gpt-oss"}) {
    INFO(name);
    const std::string model = std::string(LLMINFER_TEST_DATA "/models/") + name;
    const Reference reference = read_reference(model);
    REQUIRE(reference.greedy.size() == reference.margins.size());

    ProgramRunner whole(model);
    std::vector<float> logits = whole.forward(reference.prompt);
    REQUIRE(logits.size() == reference.last_logits.size());
    CHECK(relative_error(logits, reference.last_logits) < 1e-6);

    // Teacher-forced: the model is given the reference's tokens, so that one close call does not spoil the rest.
    std::size_t decided = 0;
    for (std::size_t step = 0; step < reference.greedy.size(); ++step) {
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      if (reference.margins[step] >= kDecidedMargin) {
        CHECK(best == reference.greedy[step]);
        ++decided;
      }
      logits = whole.forward({reference.greedy[step]});
    }
    CHECK(decided * 2 > reference.greedy.size());

    ProgramRunner pieces(model);
    for (std::size_t begin = 0; begin < reference.prompt.size(); begin += 7) {
      const std::size_t end = std::min(begin + 7, reference.prompt.size());
      logits = pieces.forward({reference.prompt.begin() + static_cast<std::ptrdiff_t>(begin),
                               reference.prompt.begin() + static_cast<std::ptrdiff_t>(end)});
    }
    CHECK(relative_error(logits, reference.last_logits) < 1e-6);
  }
}
