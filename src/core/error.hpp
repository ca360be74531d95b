// Making and passing on errors.
#pragma once

#include <sstream>
#include <string>
#include <system_error>
#include <utility>

#include <llminfer/result.hpp>

namespace llminfer::core {

/// Error{code, all the parts one after the other}.
template <class... Parts>
Error fail(ErrorCode code, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  return Error{code, std::move(message).str()};
}

/// Puts a place in front of an error's message: "model.gguf: …". Callers further out that know the place too add
/// nothing.
inline Error at(std::string_view place, Error error) {
  const std::string prefix = std::string(place) + ": ";
  if (!error.message.starts_with(prefix)) error.message.insert(0, prefix);
  return error;
}

/// A copy, without the message where there is no memory for it.
inline Error copy_of(const Error& error) noexcept {
  try {
    return error;
  } catch (...) {
    return Error{error.code, {}};
  }
}

/// Runs `body`, which returns a Result, and turns an exception into an Error. Every public entry point goes through it.
template <class Body>
auto guarded(Body&& body) noexcept -> decltype(body()) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::out_of_memory, {}};
  } catch (const std::exception& e) {
    try {
      const auto* system = dynamic_cast<const std::system_error*>(&e);
      const bool refused = system && system->code() == std::errc::resource_unavailable_try_again;  // a thread
      return Error{refused ? ErrorCode::out_of_memory : ErrorCode::internal, e.what()};
    } catch (...) {
      return Error{ErrorCode::out_of_memory, {}};
    }
  } catch (...) {
    return Error{ErrorCode::internal, {}};
  }
}

}  // namespace llminfer::core

/// The value of a Result expression, or returns its error from the enclosing function.
#define LLMINFER_TRY(...)                                       \
  __extension__({                                               \
    auto llminfer_try_result = (__VA_ARGS__);                   \
    if (!llminfer_try_result) return std::move(llminfer_try_result).error(); \
    std::move(llminfer_try_result).value();                     \
  })
