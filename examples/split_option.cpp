#include "split_option.hpp"

#include <charconv>
#include <cmath>
#include <optional>
#include <sstream>
#include <string_view>
#include <utility>

#ifdef LLMINFER_HAS_CUDA
#include <llminfer/cuda.hpp>
#endif
#ifdef LLMINFER_HAS_HIP
#include <llminfer/hip.hpp>
#endif

namespace li = llminfer;

namespace {

li::Error bad(const std::string& item, const std::string& what) {
  return {li::ErrorCode::invalid_argument, "--split: \"" + item + "\": " + what};
}

/// "1.5GiB" to bytes; none if it is no such text.
std::optional<std::int64_t> parse_size(const std::string& text) {
  double size = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), size);
  const std::string unit(read.ptr, text.data() + text.size());
  const double scale = unit == "GiB" ? 0x1p30 : unit == "MiB" ? 0x1p20 : 0;
  if (read.ec != std::errc() || scale == 0 || !(size > 0 && size * scale < 0x1p62)) return std::nullopt;
  return std::llround(size * scale);
}

/// "20" to layers, "1.5GiB" to bytes, "stream" and "stream=20GiB" to LayerShare::stream and host_memory.
li::Result<void> parse_amount(const std::string& item, const std::string& amount, li::LayerShare& share) {
  constexpr std::string_view kStream = "stream", kStreamLimit = "stream=";
  if (amount == kStream) {
    share.stream = true;
    return {};
  }
  const char* const end = amount.data() + amount.size();
  int layers = 0;
  if (const auto read = std::from_chars(amount.data(), end, layers);
      read.ptr == end && read.ec == std::errc() && layers >= 0) {
    share.layers = layers;
    return {};
  }
  const bool limits_stream = amount.starts_with(kStreamLimit);
  const auto size = parse_size(limits_stream ? amount.substr(kStreamLimit.size()) : amount);
  if (!size) {
    return bad(item,
               "expected a number of layers, a limit such as 8GiB or 500MiB, \"stream\" or \"stream=20GiB\" after a "
               "colon");
  }
  share.stream = share.stream || limits_stream;
  (limits_stream ? share.host_memory : share.memory) = *size;
  return {};
}

}  // namespace

std::vector<std::string> backend_names() {
  return {
      "cpu",
#ifdef LLMINFER_HAS_CUDA
      "cuda",
#endif
#ifdef LLMINFER_HAS_HIP
      "hip",
#endif
  };
}

li::Result<std::shared_ptr<li::Backend>> backend_by_name(const std::string& name,
                                                         [[maybe_unused]] const li::GpuOptions& options) {
  if (name == "cpu") return std::shared_ptr<li::Backend>();
#ifdef LLMINFER_HAS_CUDA
  if (name == "cuda") return li::make_cuda_backend(options);
#endif
#ifdef LLMINFER_HAS_HIP
  if (name == "hip") return li::make_hip_backend(options);
#endif
  std::string names;
  for (const std::string& known : backend_names()) names += (names.empty() ? "" : ", ") + known;
  return li::Error{li::ErrorCode::not_found, "the backend \"" + name + "\" is none of this build's: " + names};
}

li::Result<std::vector<li::LayerShare>> parse_split(const std::string& text) {
  std::vector<li::LayerShare> split;
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    li::LayerShare share;
    std::size_t colon = item.find(':');
    std::string name = item.substr(0, colon);
    while (colon != std::string::npos) {
      const std::size_t begin = colon + 1;
      colon = item.find(':', begin);
      const std::string amount = item.substr(begin, colon == std::string::npos ? colon : colon - begin);
      if (auto parsed = parse_amount(item, amount, share); !parsed) return std::move(parsed).error();
    }
    int device = 0;
    const std::size_t letters = name.find_last_not_of("0123456789") + 1;
    if (letters < name.size() && name.substr(0, letters) != "cpu") {
      const char* const end = name.data() + name.size();
      if (std::from_chars(name.data() + letters, end, device).ec != std::errc()) return bad(item, "no such device");
      name.resize(letters);
    }
    auto backend = backend_by_name(name, {.device = device});
    if (!backend) return std::move(backend).error();
    share.backend = std::move(*backend);
    split.push_back(std::move(share));
  }
  return split;
}
