// Typed access to GGUF metadata, and what llminfer makes of the keys: hyperparameters, vocabulary, end tokens,
// template.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "load/gguf_file.hpp"

namespace llminfer::load {

/// Reads values by key. An absent key gives nothing; a value of another type or out of range is `corrupt`, naming the
/// key.
class GgufMetadata {
 public:
  explicit GgufMetadata(const GgufFile& file) : file_(file) {}

  Result<std::optional<std::int64_t>> integer(const std::string& key, std::int64_t min, std::int64_t max) const;
  /// Also takes an array, if it holds the same number for every layer. Errors: unsupported if the numbers differ.
  Result<std::optional<std::int64_t>> per_layer(const std::string& key, std::int64_t min, std::int64_t max) const;
  Result<std::optional<double>> number(const std::string& key) const;  ///< finite
  Result<std::optional<bool>> boolean(const std::string& key) const;
  Result<std::optional<std::string>> string(const std::string& key) const;
  Result<std::vector<float>> floats(const std::string& key) const;           ///< empty if absent
  Result<std::vector<std::int32_t>> integers(const std::string& key) const;  ///< of any integer type; empty if absent
  Result<std::vector<std::uint8_t>> booleans(const std::string& key) const;  ///< empty if absent or a single number

  /// As integer() and per_layer(), for keys that must be there.
  Result<std::int64_t> required(const std::string& key, std::int64_t min, std::int64_t max) const;
  Result<std::int64_t> required_per_layer(const std::string& key, std::int64_t min, std::int64_t max) const;

 private:
  const GgufValue* find(const std::string& key) const;
  const GgufFile& file_;
};

/// An array of strings, moved out of the file, since vocabularies are large. Empty if absent.
Result<std::vector<std::string>> take_strings(GgufFile& file, const std::string& key);

/// Fills config, generation, vocabulary and chat_template of a checkpoint whose tensors are already listed. Takes the
/// vocabulary out of `file`.
/// Errors: corrupt (a required key is missing or a value makes no sense; the key is named), unsupported (a known
/// form that llminfer does not run), bad_vocabulary, shape_mismatch (rope_freqs.weight).
Result<void> apply_gguf_metadata(GgufFile& file, Checkpoint& checkpoint);

}  // namespace llminfer::load
