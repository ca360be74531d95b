// What the names in GGUF's tokenizer.ggml.pre stand for.
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "tok/unicode.hpp"

namespace llminfer::inline v0 {
namespace tok {

struct PreType {
  std::string_view name;
  std::span<const std::string_view> patterns;  ///< applied one after the other; every match is a piece of its own
  bool ignore_merges = false;                  ///< a piece that is a token is that token
  bool add_bos = false;                        ///< where the file does not say
  bool nfc = false;                            ///< the text is normalized first
};

/// Nothing if the name is not known.
const PreType* find_pre_type(std::string_view name) noexcept;

}  // namespace tok
}  // namespace llminfer::inline v0
