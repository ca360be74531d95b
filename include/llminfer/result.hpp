// Result<T>: a value or an Error. Every call that the world can make fail returns one.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <llminfer/config.hpp>

namespace llminfer::inline v0 {

enum class ErrorCode : std::uint8_t {
  invalid_argument,          ///< an option or argument is out of its range; the message names both
  invalid_state,             ///< the call is legal, but not now (a second Completion::wait(), say)
  not_found,                 ///< a file, tensor, backend or token that was named does not exist
  permission_denied,         ///< the operating system refused to open a file
  io_error,                  ///< reading failed, or a reader returned fewer bytes than it promised
  not_a_file,                ///< a directory or device where a file was expected, or the reverse
  truncated,                 ///< the input ends inside a record
  bad_magic,                 ///< the first bytes are not those of the format
  wrong_endianness,          ///< a byte-swapped file
  unsupported_version,       ///< a version of the format that this library does not read
  corrupt,                   ///< a rule of the format is broken
  limit_exceeded,            ///< a size, depth, fuel or count limit against hostile input was reached
  unsupported_type,          ///< a weight or metadata type that this library does not know
  unsupported_architecture,  ///< a model architecture that this library does not know
  unsupported,               ///< known, but not available in this build or on this backend
  missing_tensor,
  unexpected_tensor,
  shape_mismatch,
  bad_vocabulary,    ///< the tokenizer's data contradicts itself
  invalid_encoding,  ///< text that is not UTF-8 where UTF-8 is required
  template_error,    ///< a chat template failed to parse or to run, or raised an exception itself
  context_overflow,  ///< the tokens do not fit the context and the policy is to fail
  queue_full,        ///< the engine's bounded queue is full; try again later
  cancelled,
  out_of_memory,
  callback_failed,  ///< a host callback threw
  no_device,        ///< the GPU that was asked for, or its driver, is not there
  device_error,     ///< a GPU or its runtime failed; the process's other uses of that GPU may be affected
  peer_lost,        ///< another rank of a Communicator is gone, or the connection to it
  internal,         ///< a bug in llminfer
};

/// The enumerator's own name, e.g. "invalid_argument".
LLMINFER_API std::string_view to_string(ErrorCode code) noexcept;

/// What went wrong: a code to branch on and a message for people, which names the file, tensor or option.
struct Error {
  ErrorCode code = ErrorCode::internal;
  std::string message;
};

/// Thrown by Result::value() in hosts that are compiled with exceptions. The library itself never lets one out.
class Exception : public std::exception {
 public:
  explicit Exception(Error error) : error_(std::move(error)) {}
  const char* what() const noexcept override {
    return error_.message.empty() ? to_string(error_.code).data() : error_.message.c_str();
  }
  ErrorCode code() const noexcept { return error_.code; }
  const Error& error() const noexcept { return error_; }

 private:
  Error error_;
};

namespace detail {
/// Runs in the host's translation unit: throws where the host has exceptions, ends the program where it has not.
[[noreturn]] inline void bad_result_access(const Error& error) {
#if defined(__cpp_exceptions)
  throw Exception(error);
#else
  (void)error;
  std::abort();
#endif
}
}  // namespace detail

/// A T or an Error. Test it, or call value(), which throws Exception (or aborts in hosts without exceptions).
template <class T>
class [[nodiscard]] Result {
  static_assert(!std::is_reference_v<T> && !std::is_same_v<std::remove_cv_t<T>, Error>);

 public:
  using value_type = T;

  Result(T value) noexcept(std::is_nothrow_move_constructible_v<T>) : ok_(true) { ::new (&value_) T(std::move(value)); }
  Result(Error error) noexcept : ok_(false) { ::new (&error_) Error(std::move(error)); }
  Result(Result&& other) noexcept(std::is_nothrow_move_constructible_v<T>) : ok_(other.ok_) { take(std::move(other)); }
  Result& operator=(Result&& other) noexcept(std::is_nothrow_move_constructible_v<T>) {
    if (this != &other) {
      destroy();
      ok_ = other.ok_;
      take(std::move(other));
    }
    return *this;
  }
  ~Result() { destroy(); }

  bool has_value() const noexcept { return ok_; }
  explicit operator bool() const noexcept { return ok_; }

  T& value() & {
    require();
    return value_;
  }
  const T& value() const& {
    require();
    return value_;
  }
  T value() && {
    require();
    return std::move(value_);
  }
  /// Requires has_value().
  T& operator*() & noexcept { return value_; }
  const T& operator*() const& noexcept { return value_; }
  T&& operator*() && noexcept { return std::move(value_); }
  T* operator->() noexcept { return &value_; }
  const T* operator->() const noexcept { return &value_; }
  /// Requires !has_value().
  const Error& error() const& noexcept { return error_; }
  Error&& error() && noexcept { return std::move(error_); }

 private:
  void require() const {
    if (!ok_) detail::bad_result_access(error_);
  }
  void destroy() noexcept {
    if (ok_) {
      value_.~T();
    } else {
      error_.~Error();
    }
  }
  void take(Result&& other) {
    if (ok_) {
      ::new (&value_) T(std::move(other.value_));
    } else {
      ::new (&error_) Error(std::move(other.error_));
    }
  }

  union {
    T value_;
    Error error_;
  };
  bool ok_;
};

/// Success, or an Error.
template <>
class [[nodiscard]] Result<void> {
 public:
  using value_type = void;

  Result() noexcept = default;
  Result(Error error) noexcept : error_(std::move(error)), ok_(false) {}

  bool has_value() const noexcept { return ok_; }
  explicit operator bool() const noexcept { return ok_; }
  void value() const {
    if (!ok_) detail::bad_result_access(error_);
  }
  const Error& error() const& noexcept { return error_; }
  Error&& error() && noexcept { return std::move(error_); }

 private:
  Error error_;
  bool ok_ = true;
};

}  // namespace llminfer::inline v0
