#include "backends/gpu/amd_gpus.hpp"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <string_view>

#include "core/error.hpp"

namespace llminfer::gpu {
namespace {

std::optional<int> number(std::string_view text) {
  int value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  if (read.ec != std::errc() || read.ptr != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

/// "gfx90a" of 9, 0 and 10.
std::string name_of(int major, int minor, int step) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  return "gfx" + std::to_string(major) + kDigits[minor % 16] + kDigits[step % 16];
}

/// The GPUs in the driver's order; empty where it says nothing of them.
std::vector<std::string> listed(const std::filesystem::path& nodes) {
  std::map<int, std::string> found;
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(nodes, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const auto index = number(entry->path().filename().string());
    std::ifstream properties(entry->path() / "properties");
    std::string key;
    std::uint64_t value = 0;
    while (index && properties >> key >> value) {
      if (key != "gfx_target_version" || value == 0 || value > 1000000) continue;  // 0: a CPU
      const int version = static_cast<int>(value);
      found[*index] = name_of(version / 10000, version / 100 % 100, version % 100);
    }
  }
  std::vector<std::string> names;
  for (auto& [index, name] : found) names.push_back(std::move(name));
  return names;
}

/// Those that a list of numbers chooses, up to the first that there is not; by no list, and one of other names, all.
std::vector<std::string> chosen(const std::vector<std::string>& gpus, const char* list) {
  if (!list || !*list) return gpus;
  std::vector<std::string> some;
  std::istringstream items(list);
  for (std::string item; std::getline(items, item, ',');) {
    const auto index = number(item);
    if (!index) return item.rfind("GPU-", 0) == 0 ? gpus : some;
    if (static_cast<std::size_t>(*index) >= gpus.size()) break;
    some.push_back(gpus[static_cast<std::size_t>(*index)]);
  }
  return some;
}

}  // namespace

Result<void> check_amd_gpus(const AmdGpus& gpus, std::span<const std::string> architectures) {
  return core::guarded([&]() -> Result<void> {
    std::vector<std::string> seen = chosen(chosen(listed(gpus.nodes), gpus.rocr_visible), gpus.hip_visible);
    if (gpus.gfx_version) {
      int parts[3] = {};
      char dot = 0;
      std::istringstream text(gpus.gfx_version);
      if (text >> parts[0] >> dot >> parts[1] >> dot >> parts[2] && parts[1] >= 0 && parts[2] >= 0) {
        std::fill(seen.begin(), seen.end(), name_of(parts[0], parts[1], parts[2]));
      }
    }
    for (std::size_t i = 0; i < seen.size(); ++i) {
      // Without the features that may follow the name after a colon.
      const auto is = [&](const std::string& known) { return known.substr(0, known.find(':')) == seen[i]; };
      if (std::any_of(architectures.begin(), architectures.end(), is)) continue;
      return core::fail(ErrorCode::unsupported, "AMD GPU ", i, " is a ", seen[i],
                        ", for which this build has no code; HIP before 5.7 cannot be used then. "
                        "HIP_VISIBLE_DEVICES may leave it out");
    }
    return {};
  });
}

}  // namespace llminfer::gpu
