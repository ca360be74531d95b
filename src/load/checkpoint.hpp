// Checkpoint: what the engine sees of a model file or directory, whatever its format.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <llminfer/result.hpp>
#include <llminfer/weight.hpp>

#include "core/file.hpp"

namespace llminfer::core {
class Team;
}

namespace llminfer::load {

/// The types of safetensors elements that llminfer reads. Only the first three are weights as they are; the others
/// occur in tensors that make up a packed weight.
enum class ElementType : std::uint8_t { f32, f16, bf16, i8, u8, i32, i64, f8_e4m3, f8_e8m0, boolean, i16 };

struct Checkpoint;
struct TensorInfo;

inline constexpr std::int64_t kMaxExperts = 1 << 12;  ///< of a mixture; far above any model

/// How a weight is made of what a checkpoint stores otherwise: of several tensors (GPTQ's qweight, qzeros, scales, …), or
/// of a part of one whose elements do not lie together. read() gives it in blocks of its type. Immutable.
class Packing {
 public:
  virtual ~Packing() = default;
  /// Errors: corrupt (contents that break the rules of the packing; the tensor is named), those of the source.
  /// `team`: threads to convert with, or null.
  virtual Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const = 0;
};

/// Where the bytes of one tensor lie. Shape in the order of WeightView: a matrix is [rows, cols], a vector [1, n];
/// tensors of more dimensions have their leading ones folded into rows.
struct TensorInfo {
  std::string name;
  WeightType type = WeightType::f32;
  std::vector<std::int64_t> shape;  ///< as stored, outermost first
  std::int64_t rows = 1;
  std::int64_t cols = 0;
  std::uint32_t source = 0;  ///< index into Checkpoint::sources
  std::uint64_t offset = 0;  ///< from the start of the source
  std::uint64_t bytes = 0;
  ElementType element = ElementType::f32;  ///< safetensors only; others than f32, f16, bf16 have no `type`
  /// Not null: a weight that is not stored as it is; `source`, `offset` and `bytes` tell the largest part of what it is
  /// made of.
  std::shared_ptr<const Packing> packing;
  WeightDetails details;  ///< of a packed weight
};

/// "[4, 64]"; sides below 0 are "any".
std::string shape_text(const std::vector<std::int64_t>& shape);

/// Piece `index` of the `count` equal ones that a tensor's bytes make up, such as one expert of a stack. Its shape is
/// still the whole's.
TensorInfo piece_of(TensorInfo tensor, std::int64_t index, std::int64_t count);

/// How RoPE frequencies are scaled; the fields that a kind does not use are ignored.
struct RopeScaling {
  enum class Kind : std::uint8_t { none, linear, llama3, yarn, factors } kind = Kind::none;
  double factor = 1.0;
  double original_context = 0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  ///< llama3
  double beta_fast = 32.0, beta_slow = 1.0;              ///< yarn
  double attention_factor = 0;                           ///< yarn; 0: the default, 0.1 ln(factor) + 1
  bool truncate = true;                                  ///< yarn: the ramp begins and ends at whole dimensions
  std::vector<float> factors;  ///< a divisor per frequency (GGUF rope_freqs.weight); empty: none. Applies with any kind
};

/// The hyperparameters of a decoder, in one vocabulary for GGUF metadata and config.json.
struct ModelConfig {
  std::string architecture;  ///< "llama", "qwen2", …: the key of the table in src/arch
  std::string name;          ///< for people
  bool hf_names =
      false;  ///< tensors are named and rotary pairs ordered as in Hugging Face checkpoints, else as in GGUF
  std::int64_t vocab_size = 0;
  std::int64_t context_length = 0;
  std::int64_t layers = 0;
  std::int64_t hidden_size = 0;
  std::int64_t ffn_size = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t rotary_dim = 0;
  double rope_base = 10000.0;
  RopeScaling rope_scaling;
  double norm_epsilon = 1e-5;
  std::int64_t sliding_window = 0;  ///< 0: none
  std::vector<std::uint8_t>
      sliding_layers;  ///< one per layer: 1 where the sliding window applies; empty: in all layers
  std::int64_t experts = 0;                 ///< of each mixture; 0: the model has none
  std::int64_t experts_used = 0;            ///< by a token
  std::int64_t expert_ffn_size = 0;         ///< inner width of an expert
  std::int64_t shared_ffn_size = 0;         ///< of the expert that all tokens have; 0: there is none
  std::optional<bool> normalize_experts;    ///< the factors of a token's experts are made to add up to 1; empty: as the
                                            ///< architecture has it
  std::vector<std::uint8_t> expert_layers;  ///< one per layer: 1 where it has a mixture; empty: all have
  bool tied_embeddings = false;
  std::string activation = "silu";
};

/// What the checkpoint's makers recommend (generation_config.json); absent fields are empty.
struct GenerationDefaults {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::int32_t> top_k;
  std::optional<bool> do_sample;
  std::vector<std::int32_t> eos_tokens;
};

/// The raw vocabulary, before src/tok makes a tokenizer of it: either the arrays of a GGUF file or tokenizer.json.
struct VocabularyData {
  // GGUF
  std::string model;  ///< tokenizer.ggml.model: "gpt2", "llama", "bert", …; empty for tokenizer.json
  std::string pre;    ///< tokenizer.ggml.pre
  std::vector<std::string> tokens;
  std::vector<float> scores;  ///< empty or one per token
  std::vector<std::int32_t>
      types;  ///< empty or one per token: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
  std::vector<std::string> merges;
  bool has_merges = false;  ///< there is a list, maybe without any
  std::optional<bool> add_space_prefix, add_bos, add_eos, remove_extra_whitespaces;
  // Hugging Face
  std::string tokenizer_json;         ///< the text of tokenizer.json
  std::string tokenizer_config_json;  ///< the text of tokenizer_config.json, or empty
  // both
  std::optional<std::int64_t> bos, eos, eot, unk, pad;  ///< ids (eot: end of turn); not yet checked
};

/// An opened checkpoint. Immutable; thread-safe once made.
struct Checkpoint {
  std::string path;  ///< for messages
  ModelConfig config;
  GenerationDefaults generation;
  VocabularyData vocabulary;
  std::string chat_template;  ///< Jinja source, or empty
  std::vector<TensorInfo> tensors;
  std::unordered_map<std::string, std::size_t> by_name;  ///< index into tensors
  std::vector<std::shared_ptr<const core::ByteSource>> sources;

  const TensorInfo* find(const std::string& name) const;
  /// Takes these tensors in place of its own. Gives a name that two of them have, or nothing.
  [[nodiscard]] std::optional<std::string> replace_tensors(std::vector<TensorInfo> replacement);
  /// The tensor's bytes: a view of the mapping where the source is resident, else a copy. Packed weights are converted,
  /// by all threads of `team` if there is one.
  Result<WeightView> read(const TensorInfo& tensor, core::Team* team = nullptr) const;
  /// The tensor's bytes are not needed soon: its part of the mapping no longer counts as memory of the process.
  void release(const TensorInfo& tensor) const noexcept {
    sources[tensor.source]->release(tensor.offset, tensor.bytes);
  }
};

/// Opens a GGUF file (also the first of a split set) or a Hugging Face directory. Reads headers and metadata only.
Result<Checkpoint> open_checkpoint(const std::string& path, bool use_mmap);

/// A GGUF checkpoint from a source of the host (memory or reader); split files can't be reached this way.
Result<Checkpoint> open_gguf(std::shared_ptr<const core::ByteSource> source);

}  // namespace llminfer::load
