#include "engine/streaming.hpp"

#include <algorithm>
#include <cstdio>
#include <map>
#include <variant>

#include "core/error.hpp"
#include "engine/stages.hpp"

namespace llminfer::inline v0::engine {
namespace {

/// Calls f(weight) for each matrix that an operation multiplies with.
template <class F>
void for_each_matrix(const Op& op, F f) {
  if (const auto* linear = std::get_if<op::Linear>(&op)) f(linear->weight);
  if (const auto* moe = std::get_if<op::Moe>(&op)) {
    for (const auto* ids : {&moe->gate, &moe->up, &moe->down}) std::for_each(ids->begin(), ids->end(), f);
  }
}

/// Per weight the layer whose alone it is, or -1.
Streamed layers_of_weights(const Program& program, const Borders& borders) {
  constexpr std::int32_t kNone = -1, kSeveral = -2;
  Streamed layer(program.weights.size(), kNone);
  for (std::int32_t place = 0; place + 1 < borders.places(); ++place) {
    const bool inside = place >= 1 && place <= borders.layers;
    const std::size_t end = borders.ops[static_cast<std::size_t>(place) + 1];
    for (std::size_t i = borders.ops[static_cast<std::size_t>(place)]; i < end; ++i) {
      for_each_matrix(program.ops[i], [&](WeightId id) {
        const auto w = static_cast<std::size_t>(id);
        if (program.weights[w].rows == 1) return;
        const std::int32_t here = inside ? place - 1 : kSeveral;
        layer[w] = layer[w] == kNone || layer[w] == here ? here : kSeveral;
      });
    }
  }
  for (const Op& op : program.ops) {
    if (const auto* embed = std::get_if<op::Embed>(&op); embed && embed->table != WeightId::none) {
      layer[static_cast<std::size_t>(embed->table)] = kSeveral;
    }
  }
  for (std::int32_t& of_weight : layer) of_weight = std::max(of_weight, kNone);
  return layer;
}

/// Whether `index` of `all` things is among `count` of them that are spread evenly.
bool chosen(std::int64_t index, std::int64_t count, std::int64_t all) {
  return (index + 1) * count / all > index * count / all;
}

}  // namespace

Result<Streamed> choose_streamed(const Program& stage, std::int64_t limit, const StreamedBytes& bytes) {
  std::int64_t least = bytes({});
  if (least <= limit) return Streamed();
  const auto is_attention = [](const Op& op) { return std::holds_alternative<op::Attention>(op); };
  Borders borders;
  if (std::any_of(stage.ops.begin(), stage.ops.end(), is_attention)) borders = LLMINFER_TRY(find_borders(stage));
  const Streamed layer = layers_of_weights(stage, borders);
  for (std::int32_t count = 1; count <= borders.layers; ++count) {
    Streamed streamed = layer;
    for (std::int32_t& of_weight : streamed) {
      if (of_weight >= 0 && !chosen(of_weight, count, borders.layers)) of_weight = -1;
    }
    const std::int64_t needed = bytes(streamed);
    if (needed <= limit) return streamed;
    least = std::min(least, needed);
  }
  char text[96];
  std::snprintf(text, sizeof text, "%.1f MiB are needed even with all layers streamed, %.1f MiB more than its limit",
                static_cast<double>(least) / (1 << 20), static_cast<double>(least - limit) / (1 << 20));
  return core::fail(ErrorCode::out_of_memory, text);
}

Stored choose_stored(const Streamed& streamed, std::span<const std::int64_t> bytes, std::int64_t limit) {
  std::map<std::int32_t, std::int64_t> layers;  // bytes of each that is streamed
  for (std::size_t i = 0; i < streamed.size(); ++i) {
    if (streamed[i] >= 0) layers[streamed[i]] += bytes[i];
  }
  for (std::size_t count = 0;; ++count) {
    std::map<std::int32_t, std::int64_t> in_file;
    std::int64_t in_memory = 0, index = 0;
    for (const auto& [layer, size] : layers) {
      const bool file = chosen(index++, static_cast<std::int64_t>(count), std::ssize(layers));
      if (file) in_file[layer] = size;
      if (!file) in_memory += size;
    }
    if (in_memory > limit && count < layers.size()) continue;
    Stored stored;
    if (in_file.empty()) return stored;
    for (std::size_t i = 0; i < streamed.size(); ++i) {
      const bool file = in_file.contains(streamed[i]);
      stored.offset.push_back(file ? stored.bytes : -1);
      if (file) stored.bytes += bytes[i];
    }
    for (const auto& [layer, size] : in_file) stored.largest_layer = std::max(stored.largest_layer, size);
    return stored;
  }
}

}  // namespace llminfer::inline v0::engine
