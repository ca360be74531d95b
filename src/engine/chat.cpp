// Chat: renders the history with the template, keeps what the KV cache has of it, and streams the answer.
#include <llminfer/chat.hpp>

#include <algorithm>
#include <optional>
#include <utility>

#include "chat/template.hpp"
#include "core/error.hpp"
#include "core/json.hpp"
#include "engine/core.hpp"

namespace llminfer::inline v0 {

using core::fail;

namespace engine {

struct ChatState {
  std::shared_ptr<EngineCore> core;
  std::shared_ptr<Sequence> sequence;
  std::optional<chat::Template> chat_template;
  chat::Value tools;  ///< null: none
  bool parse_special = false;
  std::vector<Message> history;
  std::weak_ptr<StreamState> open_stream;

  ~ChatState() {
    if (sequence) core->close(sequence);
  }

  Result<std::string> render(std::span<const Message> messages, bool add_generation_prompt) const {
    // Member by member: gcc 12 destroys what it has not made when an exception leaves a nested initializer list.
    chat::Value::Array list;
    for (const Message& message : messages) {
      chat::Value::Object object;
      object.emplace_back("role", message.role);
      std::string content = message.content;
      if (!parse_special) content = LLMINFER_TRY(core->model().tokenizer.escape(content));
      object.emplace_back("content", std::move(content));
      list.push_back(std::move(object));
    }
    chat::Value::Object context;
    context.emplace_back("messages", std::move(list));
    context.emplace_back("add_generation_prompt", add_generation_prompt);
    context.emplace_back("bos_token", core->model().bos_text);
    context.emplace_back("eos_token", core->model().eos_text);
    if (!tools.is_null()) context.emplace_back("tools", tools);
    return chat_template->render(std::move(context));
  }
};

/// An answer in progress. Keeps the chat's state, so the Chat may be dropped first.
struct StreamState {
  std::shared_ptr<ChatState> chat;
  std::vector<Message> history;  ///< with the user's message
  std::shared_ptr<Request> request;
  Result<void> early;  ///< an error before there was a request
  std::string piece;
  bool ended = false;
  CompletionResult result;
  Result<FinishReason> outcome = FinishReason::end_token;

  ~StreamState() { abandon(); }

  void abandon() noexcept {
    if (!request || ended) return;
    request->cancel_requested.store(true, std::memory_order_relaxed);
    end();
  }

  /// Waits for the end and takes the answer over into the chat's history.
  void end() noexcept {
    if (ended) return;
    ended = true;
    if (!request) {
      outcome = std::move(early).error();
      return;
    }
    request->wait_done();
    result = std::move(request->result);
    outcome = core::guarded([&]() -> Result<FinishReason> {
      LLMINFER_TRY(std::move(request->outcome));
      history.push_back({"assistant", result.text});
      chat->history.swap(history);
      return result.reason;
    });
  }
};

namespace {

/// Puts the rendered history into the sequence, keeping the tokens that are there already, and submits the request.
Result<void> begin(StreamState& stream, const GenerateOptions& options) {
  ChatState& state = *stream.chat;
  Sequence& sequence = *state.sequence;
  const std::string text = LLMINFER_TRY(state.render(stream.history, true));
  auto tokens = LLMINFER_TRY(state.core->model().tokenizer.encode(text, {.add_special = false}));
  if (tokens.empty()) return fail(ErrorCode::template_error, "the chat template rendered nothing");
  auto request = std::make_shared<Request>();
  request->sequence = state.sequence;
  request->options = options;
  request->keep_sequence = true;
  request->stream = true;

  const auto same = std::mismatch(sequence.tokens.begin(), sequence.tokens.end(), tokens.begin(), tokens.end());
  auto common = static_cast<std::size_t>(same.first - sequence.tokens.begin());
  common = std::min(common, tokens.size() - 1);  // at least one token is computed, for its logits
  state.core->truncate(sequence, static_cast<std::int32_t>(common));
  request->tokens_before = sequence.tokens;
  sequence.tokens = std::move(tokens);
  LLMINFER_TRY(state.core->submit(request));
  stream.request = std::move(request);
  return {};
}

}  // namespace
}  // namespace engine

Result<Chat> Engine::new_chat(const ChatOptions& options) const {
  return core::guarded([&]() -> Result<Chat> {
    if (!core_) return fail(ErrorCode::invalid_state, "the engine was moved from");
    auto state = std::make_shared<engine::ChatState>();
    state->core = core_;
    state->sequence = core_->new_sequence(options.cache_salt);
    const std::string& source = options.chat_template.empty() ? core_->model().chat_template : options.chat_template;
    if (source.empty()) {
      return fail(ErrorCode::template_error, "the model has no chat template, and ChatOptions::chat_template is empty");
    }
    state->chat_template = LLMINFER_TRY(chat::Template::parse(source));
    state->parse_special = options.parse_special;
    if (!options.tools_json.empty()) {
      state->tools = LLMINFER_TRY(core::parse_json(options.tools_json, "ChatOptions::tools_json"));
      if (!state->tools.is_array()) return fail(ErrorCode::invalid_argument, "ChatOptions::tools_json is not an array");
    }
    if (!options.system.empty()) state->history.push_back({"system", options.system});
    state->history.insert(state->history.end(), options.history.begin(), options.history.end());
    return Chat(std::move(state));
  });
}

Chat::Chat(std::shared_ptr<engine::ChatState> state) : state_(std::move(state)) {}
Chat::~Chat() = default;
Chat::Chat(Chat&&) noexcept = default;
Chat& Chat::operator=(Chat&&) noexcept = default;

ChatStream Chat::send(std::string_view user_message, const GenerateOptions& options) {
  auto message = core::guarded([&]() -> Result<Message> { return Message{"user", std::string(user_message)}; });
  return message ? send(std::move(*message), options) : ChatStream(nullptr);
}

ChatStream Chat::send(Message message, const GenerateOptions& options) {
  if (state_) {
    if (const auto open = state_->open_stream.lock()) open->abandon();  // the last answer was not read to its end
  }
  auto stream = core::guarded([&]() -> Result<std::shared_ptr<engine::StreamState>> {
    auto made = std::make_shared<engine::StreamState>();
    made->chat = state_;
    return made;
  });
  if (!stream) return ChatStream(nullptr);
  (*stream)->early = core::guarded([&]() -> Result<void> {
    if (!state_) return fail(ErrorCode::invalid_state, "the chat was moved from");
    (*stream)->history = state_->history;
    (*stream)->history.push_back(std::move(message));
    return engine::begin(**stream, options);
  });
  if (state_) state_->open_stream = *stream;
  return ChatStream(std::move(*stream));
}

const std::vector<Message>& Chat::history() const noexcept {
  static const std::vector<Message> kNone;
  return state_ ? state_->history : kNone;
}

Result<void> Chat::rewind(std::size_t messages) {
  return core::guarded([&]() -> Result<void> {
    const auto open = state_ ? state_->open_stream.lock() : nullptr;
    if (open && open->request && !open->ended) {
      open->abandon();
      if (!open->outcome) return core::copy_of(open->outcome.error());
    }
    if (messages > history().size()) {
      return fail(ErrorCode::invalid_argument, "rewind: ", messages, " messages, the history has ", history().size());
    }
    if (state_) state_->history.resize(state_->history.size() - messages);
    return {};
  });
}

Result<std::string> Chat::render() const {
  return core::guarded([&]() -> Result<std::string> {
    if (!state_) return fail(ErrorCode::invalid_state, "the chat was moved from");
    return state_->render(state_->history, true);
  });
}

ChatStream::ChatStream(std::shared_ptr<engine::StreamState> state) : state_(std::move(state)), failed_(!state_) {}
ChatStream::~ChatStream() = default;
ChatStream::ChatStream(ChatStream&&) noexcept = default;
ChatStream& ChatStream::operator=(ChatStream&&) noexcept = default;

bool ChatStream::next(std::string_view& piece) {
  piece = {};
  if (!state_) return false;
  engine::StreamState& state = *state_;
  state.piece.clear();
  if (state.request) {
    std::unique_lock lock(state.request->mutex);
    state.request->changed.wait(lock, [&] { return state.request->done || !state.request->stream_text.empty(); });
    std::swap(state.piece, state.request->stream_text);
  }
  piece = state.piece;
  if (!state.piece.empty()) return true;
  state.end();
  return false;
}

void ChatStream::cancel() noexcept {
  if (state_ && state_->request) state_->request->cancel_requested.store(true, std::memory_order_relaxed);
}

Result<FinishReason> ChatStream::finish() {
  if (failed_) return Error{ErrorCode::out_of_memory, {}};
  if (!state_) {
    return core::guarded(
        []() -> Result<FinishReason> { return fail(ErrorCode::invalid_state, "the stream was moved from"); });
  }
  state_->end();
  if (!state_->outcome) return core::copy_of(state_->outcome.error());
  return *state_->outcome;
}

const CompletionResult& ChatStream::result() const noexcept {
  static const CompletionResult kNone;
  return state_ ? state_->result : kNone;
}

}  // namespace llminfer::inline v0
