#include "engine/streaming.hpp"

#include <algorithm>
#include <cstdio>
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
      const auto quota = [&](std::int64_t layers) { return layers * count / borders.layers; };
      if (of_weight >= 0 && quota(of_weight + 1) == quota(of_weight)) of_weight = -1;
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

}  // namespace llminfer::inline v0::engine
