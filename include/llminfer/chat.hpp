// Chat: a conversation in the model's own chat format, its KV cache kept from turn to turn.
#pragma once

#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/completion.hpp>
#include <llminfer/config.hpp>
#include <llminfer/options.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0 {

namespace engine {
struct ChatState;
struct StreamState;
}  // namespace engine

struct Message {
  std::string role;  ///< "system", "user", "assistant", "tool", …
  std::string content;
};

struct ChatOptions {
  std::string system{};            ///< system message; empty: none, and the template's default applies
  std::vector<Message> history{};  ///< turns to begin with
  std::string tools_json{};        ///< a JSON array of tool schemas for the template; empty: none
  std::string chat_template{};     ///< a Jinja template instead of the model's own
  /// Whether text in messages that spells a control token ("<|im_end|>") is that token. Else it is text
  /// (Tokenizer::escape), so that neither what users write nor an answer that repeats it ends a turn.
  bool parse_special = false;
  std::string cache_salt{};  ///< as SessionOptions::cache_salt
};

/// The text of an answer, piece by piece as it is generated. Iterate once. Leaving the loop early does not end the
/// answer: cancel(), the next Chat::send() and dropping the stream do, the last two after they have waited for its
/// step. The stream and its Chat are used by one thread at a time.
class LLMINFER_API ChatStream {
 public:
  explicit ChatStream(std::shared_ptr<engine::StreamState> state);
  ~ChatStream();
  ChatStream(ChatStream&&) noexcept;
  ChatStream& operator=(ChatStream&&) noexcept;

  /// Waits for the next piece, whole UTF-8 characters; false at the end. `piece` is valid until the next call.
  bool next(std::string_view& piece);
  /// Waits for the end (the rest of the answer goes unread, not lost: it is part of the conversation).
  Result<FinishReason> finish();
  /// Ends the answer at the next step; finish() then gives FinishReason::cancelled. From any thread.
  void cancel() noexcept;
  /// After the end: the whole answer, its tokens and timings.
  const CompletionResult& result() const noexcept;

  class iterator {
   public:
    using value_type = std::string_view;
    using difference_type = std::ptrdiff_t;
    iterator() = default;
    explicit iterator(ChatStream* stream) : stream_(stream) { ++*this; }
    std::string_view operator*() const noexcept { return piece_; }
    iterator& operator++() {
      if (stream_ && !stream_->next(piece_)) stream_ = nullptr;
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const iterator& it, std::default_sentinel_t) noexcept { return !it.stream_; }

   private:
    ChatStream* stream_ = nullptr;
    std::string_view piece_;
  };
  iterator begin() { return iterator(this); }
  std::default_sentinel_t end() const noexcept { return {}; }

 private:
  std::shared_ptr<engine::StreamState> state_;
  bool failed_ = false;  ///< there was no memory for the state
};

/// Move-only; one thread at a time. Keeps the engine alive.
class LLMINFER_API Chat {
 public:
  explicit Chat(std::shared_ptr<engine::ChatState> state);
  ~Chat();
  Chat(Chat&&) noexcept;
  Chat& operator=(Chat&&) noexcept;

  /// Streams the answer to the user's message; both join the history when the stream ends, an answer that was cancelled
  /// or is late as far as it came. One that fails leaves the history as it was. An answer that is still open is ended
  /// first. Never fails itself: errors come from ChatStream::finish(), out_of_memory too.
  ChatStream send(std::string_view user_message, const GenerateOptions& options = {});
  ChatStream send(Message message, const GenerateOptions& options = {});
  const std::vector<Message>& history() const noexcept;
  /// Ends an answer that is still open, and takes back the last `messages` messages. Errors: invalid_argument if there
  /// are fewer; that of an answer which ends with one, whose turn is then no part of the history.
  Result<void> rewind(std::size_t messages);
  /// The text that the model would be given: the history, rendered by the template, and the beginning of an answer.
  /// Names of control tokens in messages are escaped.
  Result<std::string> render() const;

 private:
  std::shared_ptr<engine::ChatState> state_;
};

}  // namespace llminfer::inline v0
