#include "core/error.hpp"

#define LLMINFER_STRING2(x) #x
#define LLMINFER_STRING(x) LLMINFER_STRING2(x)

namespace llminfer::inline v0 {

const char* version() noexcept {
  return LLMINFER_STRING(LLMINFER_VERSION_MAJOR) "." LLMINFER_STRING(LLMINFER_VERSION_MINOR) "." LLMINFER_STRING(
      LLMINFER_VERSION_PATCH);
}

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::invalid_argument: return "invalid_argument";
    case ErrorCode::invalid_state: return "invalid_state";
    case ErrorCode::not_found: return "not_found";
    case ErrorCode::permission_denied: return "permission_denied";
    case ErrorCode::io_error: return "io_error";
    case ErrorCode::not_a_file: return "not_a_file";
    case ErrorCode::truncated: return "truncated";
    case ErrorCode::bad_magic: return "bad_magic";
    case ErrorCode::wrong_endianness: return "wrong_endianness";
    case ErrorCode::unsupported_version: return "unsupported_version";
    case ErrorCode::corrupt: return "corrupt";
    case ErrorCode::limit_exceeded: return "limit_exceeded";
    case ErrorCode::unsupported_type: return "unsupported_type";
    case ErrorCode::unsupported_architecture: return "unsupported_architecture";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::missing_tensor: return "missing_tensor";
    case ErrorCode::unexpected_tensor: return "unexpected_tensor";
    case ErrorCode::shape_mismatch: return "shape_mismatch";
    case ErrorCode::bad_vocabulary: return "bad_vocabulary";
    case ErrorCode::invalid_encoding: return "invalid_encoding";
    case ErrorCode::template_error: return "template_error";
    case ErrorCode::context_overflow: return "context_overflow";
    case ErrorCode::queue_full: return "queue_full";
    case ErrorCode::cancelled:
      return "cancelled";
    case ErrorCode::out_of_memory: return "out_of_memory";
    case ErrorCode::callback_failed: return "callback_failed";
    case ErrorCode::no_device: return "no_device";
    case ErrorCode::device_error: return "device_error";
    case ErrorCode::peer_lost: return "peer_lost";
    case ErrorCode::internal: return "internal";
  }
  return "unknown";
}

}  // namespace llminfer::inline v0
