#include "quantize/source.hpp"

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "arch/arch.hpp"
#include "arch/decoder.hpp"
#include "core/error.hpp"
#include "quant/format.hpp"

namespace llminfer::quantize {
namespace {

using core::fail;
using load::Checkpoint;
using load::TensorInfo;

/// A tensor of the input under another name, its rows perhaps in another order.
class Renamed final : public load::Packing {
 public:
  explicit Renamed(TensorInfo original) : original_(std::move(original)) {}

  /// Row r of the new tensor is row order[r] of the old one, for each of a vector's elements too.
  std::vector<std::int32_t> order;

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    WeightView view = LLMINFER_TRY(checkpoint.read(original_, team));
    view.name = tensor.name;
    if (order.empty()) return view;
    const auto count = order.size();
    if (count == 0 || view.data.size() % count != 0 ||
        (view.rows != 1 && static_cast<std::size_t>(view.rows) != count)) {
      return fail(ErrorCode::unsupported, "tensor ", original_.name, ": its rows cannot be put in another order");
    }
    const std::size_t bytes = view.data.size() / count;
    const auto ordered = std::make_shared<std::vector<std::byte>>(view.data.size());
    for (std::size_t r = 0; r < count; ++r) {
      std::memcpy(ordered->data() + r * bytes, view.data.data() + static_cast<std::size_t>(order[r]) * bytes, bytes);
    }
    view.data = *ordered;
    view.keep = ordered;
    return view;
  }

 private:
  const TensorInfo original_;
};

/// Rows of heads whose rotary pairs are (i, i + pairs) at `to_halves`, (2i, 2i + 1) otherwise, from the other order.
std::vector<std::int32_t> rotary_order(std::int64_t rows, std::int32_t head_dim, std::size_t pairs, bool to_halves) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(rows));
  const auto half = static_cast<std::int32_t>(pairs);
  for (std::int32_t r = 0; r < static_cast<std::int32_t>(rows); ++r) {
    const std::int32_t head = r - r % head_dim, i = r % head_dim;
    std::int32_t from = i;
    if (i < 2 * half) from = to_halves ? (i < half ? 2 * i : 2 * (i - half) + 1) : (i % 2 == 0 ? i / 2 : i / 2 + half);
    order[static_cast<std::size_t>(r)] = head + from;
  }
  return order;
}

using Rows = std::unordered_map<std::string, Renamed*>;

/// Orders the rows of the weights whose product is rotated, where the two programs rotate other pairs.
Result<void> order_rotary_rows(const Program& from, const Program& to, const Rows& renamed) {
  std::vector<const op::Linear*> producer(to.values.size(), nullptr);
  for (std::size_t i = 0; i < to.ops.size(); ++i) {
    if (const auto* linear = std::get_if<op::Linear>(&to.ops[i]))
      producer[static_cast<std::size_t>(linear->out)] = linear;
    const auto* rope = std::get_if<op::Rope>(&to.ops[i]);
    if (!rope) continue;
    const RopeTable& table = to.rope_tables[static_cast<std::size_t>(rope->table)];
    const auto& before = std::get<op::Rope>(from.ops[i]);
    if (from.rope_tables[static_cast<std::size_t>(before.table)].interleaved == table.interleaved) continue;
    const op::Linear* linear = producer[static_cast<std::size_t>(rope->in)];
    if (!linear) return fail(ErrorCode::unsupported, "the rotation of a value that is no linear layer's");
    for (const WeightId id : {linear->weight, linear->bias}) {
      if (id == WeightId::none) continue;
      Renamed& tensor = *renamed.at(to.weights[static_cast<std::size_t>(id)].name);
      tensor.order = rotary_order(to.values[static_cast<std::size_t>(rope->in)].width, rope->head_dim,
                                  table.inverse_frequency.size(), !table.interleaved);
    }
  }
  return {};
}

/// A tensor's name in the output. Between two directories it stays, but where one model has two sets of names
/// (Mixtral), it becomes that which is published.
Result<std::string> name_in(const std::string& name, const Source& source, bool hf_names) {
  if (!source.from_hf && !hf_names) return name;
  const std::string& architecture = source.checkpoint.config.architecture;
  auto translated = source.from_hf ? arch::translated_name(name, false, architecture) : std::optional(name);
  if (translated && hf_names) translated = arch::translated_name(*translated, true, architecture);
  if (translated) return *std::move(translated);
  return fail(ErrorCode::unsupported, source.checkpoint.path, ": tensor ", name, " has no name in ",
              hf_names ? "Hugging Face checkpoints" : "GGUF files");
}

}  // namespace

Result<Source> open_source(const std::string& path, bool hf_names, bool untie) {
  Source source;
  source.checkpoint = LLMINFER_TRY(load::open_checkpoint(path, true));
  source.program = LLMINFER_TRY(arch::build_program(source.checkpoint));
  Checkpoint& checkpoint = source.checkpoint;
  source.from_hf = checkpoint.config.hf_names;
  const bool tied = source.from_hf ? checkpoint.config.tied_embeddings : !checkpoint.find("output.weight");
  bool changed = untie && tied;
  std::vector<TensorInfo> tensors;
  Rows renamed;
  for (const WeightSpec& weight : source.program.weights) {
    TensorInfo tensor = *checkpoint.find(weight.name);
    std::string name = LLMINFER_TRY(name_in(weight.name, source, hf_names));
    if (name != weight.name) {
      changed = true;
      const auto packing = std::make_shared<Renamed>(tensor);
      renamed.emplace(name, packing.get());
      tensor.name = std::move(name);
      tensor.packing = packing;
    }
    tensors.push_back(std::move(tensor));
  }
  if (!changed) return source;
  if (untie && tied) {
    const char* const from = hf_names ? "model.embed_tokens.weight" : "token_embd.weight";
    TensorInfo output = *std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == from; });
    output.packing = std::make_shared<Renamed>(output);
    output.name = hf_names ? "lm_head.weight" : "output.weight";
    tensors.push_back(std::move(output));
  }
  checkpoint.config.hf_names = hf_names;
  checkpoint.config.tied_embeddings = tied && !untie;
  if (const auto twice = checkpoint.replace_tensors(std::move(tensors))) {
    return fail(ErrorCode::unsupported, path, ": two tensors would have the name ", *twice);
  }
  Program program = LLMINFER_TRY(arch::build_program(checkpoint));
  LLMINFER_TRY(order_rotary_rows(source.program, program, renamed));
  source.program = std::move(program);
  return source;
}

Result<std::vector<float>> read_floats(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.rows * tensor.cols));
  const WeightView view = LLMINFER_TRY(checkpoint.read(tensor));
  LLMINFER_TRY(unpack_rows(view, 0, tensor.rows, values));
  return values;
}

}  // namespace llminfer::quantize
