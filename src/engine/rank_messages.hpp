// The messages that ranks send each other, as bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <llminfer/communicator.hpp>

#include "core/error.hpp"

namespace llminfer::inline v0::engine {

template <class T>
Result<void> send_message(Communicator& communicator, int to, const T& message) {
  return communicator.send(to, std::as_bytes(std::span(&message, 1)));
}
template <class T>
Result<T> receive_message(Communicator& communicator, int from) {
  T message;
  LLMINFER_TRY(communicator.receive(from, std::as_writable_bytes(std::span(&message, 1))));
  return message;
}

/// Success, or an error; its text may be cut.
struct OutcomeMessage {
  std::int64_t code = -1;   ///< -1: success
  std::int64_t floats = 0;  ///< that follow, where the receiver cannot know
  std::array<char, 496> text{};

  OutcomeMessage() = default;
  explicit OutcomeMessage(const Error& error) noexcept : code(static_cast<std::int64_t>(error.code)) {
    set_text(error.message);
  }
  void set_text(std::string_view from) noexcept { from.copy(text.data(), text.size() - 1); }
  std::string text_of() const { return std::string(text.begin(), std::find(text.begin(), text.end(), '\0')); }
  Result<void> outcome() const {
    if (code == -1) return {};
    const bool known = code >= 0 && code <= static_cast<std::int64_t>(ErrorCode::internal);
    auto words = core::guarded([&]() -> Result<std::string> { return text_of(); });  // others wait for what comes next
    return Error{known ? static_cast<ErrorCode>(code) : ErrorCode::internal,
                 words ? std::move(*words) : std::string()};
  }
};

}  // namespace llminfer::inline v0::engine
