#include "load/hf.hpp"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "core/json.hpp"
#include "load/hf_config.hpp"
#include "load/quantization.hpp"
#include "load/safetensors.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using core::Json;

constexpr std::uint64_t kMaxConfigBytes = 16ull << 20;
constexpr std::uint64_t kMaxIndexBytes = 128ull << 20;
constexpr std::uint64_t kMaxTokenizerBytes = 512ull << 20;
constexpr std::size_t kMaxShards = 10'000;
constexpr std::size_t kMaxNamedFiles = 8;  // in messages

/// The text of a file that may be absent.
Result<std::optional<std::string>> read_optional(const std::string& path, std::uint64_t limit) {
  Result<std::string> text = core::read_text_file(path, limit);
  if (text) return std::optional(std::move(*text));
  if (text.error().code == ErrorCode::not_found) return std::optional<std::string>();
  return std::move(text).error();
}

/// Whether a path stays below the directory that it is relative to. Links are followed: caches are made of them.
bool stays_inside(const std::string& relative) {
  if (relative.empty() || relative.front() == '/' || relative.find('\0') != std::string::npos) return false;
  const std::filesystem::path path(relative);
  return std::none_of(path.begin(), path.end(), [](const std::filesystem::path& part) { return part == ".."; });
}

Result<void> add_file(const std::string& path, bool use_mmap, Checkpoint& checkpoint) {
  auto source = LLMINFER_TRY(core::open_file(path, use_mmap));
  auto tensors = LLMINFER_TRY(read_safetensors_header(*source, static_cast<std::uint32_t>(checkpoint.sources.size())));
  checkpoint.sources.push_back(std::move(source));
  for (TensorInfo& tensor : tensors) {
    if (!checkpoint.by_name.emplace(tensor.name, checkpoint.tensors.size()).second) {
      return fail(ErrorCode::corrupt, path, ": tensor ", tensor.name, " is in two files");
    }
    checkpoint.tensors.push_back(std::move(tensor));
  }
  return {};
}

/// The shards of an index: {"weight_map": {tensor: file}}, files beside it.
Result<void> add_shards(const std::string& index_path, std::string_view text, bool use_mmap, Checkpoint& checkpoint) {
  const std::string directory = std::filesystem::path(index_path).parent_path().string();
  const Json index = LLMINFER_TRY(core::parse_json(text, index_path));
  const Json* map = index.find("weight_map");
  if (!map || !map->is_object() || map->size() == 0) {
    return fail(ErrorCode::corrupt, index_path, ": expected an object \"weight_map\" of tensors and files");
  }
  std::map<std::string, std::uint32_t> shards;  // file to index of its source
  for (const auto& [tensor, file] : map->object()) {
    if (!file.is_string())
      return fail(ErrorCode::corrupt, index_path, ": tensor ", tensor, ": the file is not a string");
    const auto& shard = file.string();
    if (!stays_inside(shard)) {
      return fail(ErrorCode::corrupt, index_path, ": tensor ", tensor, ": the file \"", shard,
                  "\" is not inside the model's directory");
    }
    shards.emplace(shard, 0);
  }
  if (shards.size() > kMaxShards) {
    return fail(ErrorCode::limit_exceeded, index_path, ": ", shards.size(), " files, the limit is ", kMaxShards);
  }
  for (auto& [shard, source] : shards) {
    source = static_cast<std::uint32_t>(checkpoint.sources.size());
    LLMINFER_TRY(add_file(directory + "/" + shard, use_mmap, checkpoint));
  }
  for (const auto& [name, file] : map->object()) {
    const TensorInfo* tensor = checkpoint.find(name);
    const auto& shard = file.string();
    if (tensor && tensor->source == shards.at(shard)) continue;
    return fail(ErrorCode::missing_tensor, index_path, ": tensor ", name, " is not in ", shard);
  }
  return {};
}

/// The file, or, if there is none, the shards that its index names. False if there is neither.
Result<bool> add_file_or_shards(const std::string& path, bool use_mmap, Checkpoint& checkpoint) {
  Result<void> added = add_file(path, use_mmap, checkpoint);
  if (added) return true;
  if (added.error().code != ErrorCode::not_found) return std::move(added).error();
  const std::string index = path + ".index.json";
  const auto text = LLMINFER_TRY(read_optional(index, kMaxIndexBytes));
  if (!text) return false;
  LLMINFER_TRY(add_shards(index, *text, use_mmap, checkpoint));
  return true;
}

/// "a.safetensors, b.safetensors", those of a directory.
std::string safetensors_in(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (name.ends_with(".safetensors")) names.push_back(std::move(name));
  }
  if (names.empty()) return "there is no file *.safetensors";
  std::sort(names.begin(), names.end());
  std::string text = "there are ";
  for (std::size_t i = 0; i < names.size() && i < kMaxNamedFiles; ++i) text += (i == 0 ? "" : ", ") + names[i];
  if (names.size() > kMaxNamedFiles) text += " and " + std::to_string(names.size() - kMaxNamedFiles) + " more";
  return text;
}

/// Adds the file that settings, which `place` names, state, to `names`.
Result<void> add_stated_name(const Json& settings, const std::string& place, std::vector<std::string>& names) {
  if (!settings.is_object()) return {};
  const std::string base = LLMINFER_TRY(core::json_string(settings, "model_file_base_name", place)).value_or("");
  if (base.empty()) return {};
  std::string name = base + ".safetensors";
  if (!stays_inside(name)) {
    return fail(ErrorCode::corrupt, place, ": \"model_file_base_name\" is \"", base,
                "\", which is not inside the model's directory");
  }
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(std::move(name));
  return {};
}

/// What AutoGPTQ and GPTQModel call the file: as the settings state, which either file may have, else by their numbers.
Result<std::vector<std::vector<std::string>>> gptq_names(const std::string& directory, const Json& settings) {
  std::vector<std::string> stated, usual;
  LLMINFER_TRY(add_stated_name(settings, directory + ": quantization settings", stated));
  const std::string path = directory + "/quantize_config.json";
  if (const auto text = LLMINFER_TRY(read_optional(path, kMaxConfigBytes))) {
    LLMINFER_TRY(add_stated_name(LLMINFER_TRY(core::parse_json(*text, path)), path, stated));
  }
  const Json* bits = settings.is_object() ? settings.find("bits") : nullptr;
  const Json* group = settings.is_object() ? settings.find("group_size") : nullptr;
  if (bits && group && bits->integer() && group->integer()) {
    usual.push_back("gptq_model-" + std::to_string(*bits->integer()) + "bit-" + std::to_string(*group->integer()) +
                    "g.safetensors");
  }
  return std::vector{std::move(stated), std::move(usual)};
}

/// model.safetensors or its shards; where there are none, those that GPTQ's tools name otherwise.
Result<void> add_weights(const std::string& directory, const Json& settings, bool use_mmap, Checkpoint& checkpoint) {
  std::string tried = "model.safetensors, model.safetensors.index.json";
  if (LLMINFER_TRY(add_file_or_shards(directory + "/model.safetensors", use_mmap, checkpoint))) return {};
  for (const std::vector<std::string>& names : LLMINFER_TRY(gptq_names(directory, settings))) {
    std::vector<std::string> found;
    for (const std::string& name : names) {
      tried += ", " + name + ", " + name + ".index.json";
      for (const char* const ending : {"", ".index.json"}) {
        std::error_code ignored;  // a file that can't be examined is opened below, if it is the only one
        if (std::filesystem::exists(directory + "/" + name + ending, ignored)) found.push_back(name + ending);
      }
    }
    if (found.size() > 1) {
      return fail(ErrorCode::corrupt, directory, ": both ", found[0], " and ", found[1],
                  " may have the weights by \"model_file_base_name\", \"bits\" and \"group_size\"; ",
                  safetensors_in(directory));
    }
    for (const std::string& name : names) {
      if (LLMINFER_TRY(add_file_or_shards(directory + "/" + name, use_mmap, checkpoint))) return {};
    }
  }
  return fail(ErrorCode::not_found, directory, ": no weights, expected one of ", tried, "; ",
              safetensors_in(directory));
}

Result<void> add_texts(const std::string& directory, Checkpoint& checkpoint) {
  VocabularyData& vocabulary = checkpoint.vocabulary;
  vocabulary.tokenizer_json =
      LLMINFER_TRY(read_optional(directory + "/tokenizer.json", kMaxTokenizerBytes)).value_or("");
  const std::string config_path = directory + "/tokenizer_config.json";
  vocabulary.tokenizer_config_json = LLMINFER_TRY(read_optional(config_path, kMaxConfigBytes)).value_or("");
  auto chat_template = LLMINFER_TRY(read_optional(directory + "/chat_template.jinja", kMaxConfigBytes));
  if (!chat_template && !vocabulary.tokenizer_config_json.empty()) {
    chat_template = LLMINFER_TRY(parse_chat_template(vocabulary.tokenizer_config_json, config_path));
  }
  checkpoint.chat_template = std::move(chat_template).value_or("");
  return {};
}

/// Settings that older tools write beside config.json instead of into it.
Result<core::Json> quantization_settings(const std::string& directory, core::Json settings) {
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    if (!settings.is_null()) break;
    const std::string path = directory + "/" + name;
    const auto text = LLMINFER_TRY(read_optional(path, kMaxConfigBytes));
    if (!text) continue;
    settings = LLMINFER_TRY(core::parse_json(*text, path));
    if (!settings.is_object()) return fail(ErrorCode::corrupt, path, ": not a JSON object");
  }
  if (!settings.is_null()) return settings;
  // ModelOpt: {"producer": …, "quantization": settings}
  const std::string path = directory + "/hf_quant_config.json";
  const auto text = LLMINFER_TRY(read_optional(path, kMaxConfigBytes));
  if (!text) return settings;
  const core::Json file = LLMINFER_TRY(core::parse_json(*text, path));
  const core::Json* inner = file.is_object() ? file.find("quantization") : nullptr;
  if (!inner || !inner->is_object()) return fail(ErrorCode::corrupt, path, ": no object \"quantization\"");
  return *inner;
}

Result<void> unpack_quantized(const std::string& directory, const core::Json& settings, Checkpoint& checkpoint) {
  if (!settings.is_null()) {
    auto applied = apply_quantization(settings, checkpoint);
    if (!applied) return core::at(directory, std::move(applied).error());
  }
  for (const TensorInfo& tensor : checkpoint.tensors) {
    if (tensor.packing || tensor.element <= ElementType::bf16) continue;
    return fail(ErrorCode::unsupported_type, directory, ": tensor ", tensor.name,
                ": not F32, F16 or BF16, and no part of a packing that the quantization settings describe");
  }
  return {};
}

}  // namespace

Result<Checkpoint> open_hf_directory(const std::string& path, bool use_mmap) {
  Checkpoint checkpoint;
  checkpoint.path = path;
  const std::string config_path = path + "/config.json";
  HfConfig config =
      LLMINFER_TRY(parse_hf_config(LLMINFER_TRY(core::read_text_file(config_path, kMaxConfigBytes)), config_path));
  checkpoint.config = std::move(config.model);
  checkpoint.config.name = (std::filesystem::path(path) / "").parent_path().filename().string();
  checkpoint.vocabulary.bos = config.bos;
  checkpoint.vocabulary.eos = config.eos;
  checkpoint.vocabulary.pad = config.pad;

  const std::string generation_path = path + "/generation_config.json";
  if (const auto text = LLMINFER_TRY(read_optional(generation_path, kMaxConfigBytes))) {
    checkpoint.generation = LLMINFER_TRY(parse_generation_config(*text, generation_path, checkpoint.config.vocab_size));
  }
  if (checkpoint.generation.eos_tokens.empty()) checkpoint.generation.eos_tokens = std::move(config.eos_tokens);

  LLMINFER_TRY(add_texts(path, checkpoint));
  const Json settings = LLMINFER_TRY(quantization_settings(path, std::move(config.quantization)));
  LLMINFER_TRY(add_weights(path, settings, use_mmap, checkpoint));
  LLMINFER_TRY(unpack_quantized(path, settings, checkpoint));
  auto split = split_expert_stacks(checkpoint);
  if (!split) return core::at(path, std::move(split).error());
  return checkpoint;
}

}  // namespace llminfer::load
