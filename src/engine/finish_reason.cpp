#include <llminfer/options.hpp>

namespace llminfer::inline v0 {

std::string_view to_string(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::end_token: return "end_token";
    case FinishReason::stop: return "stop";
    case FinishReason::length: return "length";
    case FinishReason::cancelled: return "cancelled";
    case FinishReason::deadline: return "deadline";
  }
  return "unknown";
}

}  // namespace llminfer::inline v0
