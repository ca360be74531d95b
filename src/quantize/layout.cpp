#include "quantize/layout.hpp"

#include <cstring>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "core/error.hpp"
#include "quant/format.hpp"
#include "quantize/blocks.hpp"
#include "quantize/gguf_output.hpp"
#include "quantize/hf_output.hpp"

namespace llminfer::quantize {
namespace {

using core::fail;
using load::TensorInfo;

/// A tensor whose values are known without any file.
class Constant final : public load::Packing {
 public:
  explicit Constant(std::vector<float> values) : values_(std::make_shared<std::vector<float>>(std::move(values))) {}
  Result<WeightView> read(const load::Checkpoint&, const TensorInfo& tensor, core::Team*) const override {
    WeightView view;
    view.name = tensor.name;
    view.rows = 1;
    view.cols = tensor.cols;
    view.data = std::as_bytes(std::span(*values_));
    view.keep = values_;
    return view;
  }

 private:
  std::shared_ptr<std::vector<float>> values_;
};

Result<void> add_rope_factors(Source& source) {
  std::vector<float> factors = LLMINFER_TRY(gguf_rope_factors(source));
  if (factors.empty()) return {};
  TensorInfo tensor;
  tensor.name = "rope_freqs.weight";
  tensor.cols = static_cast<std::int64_t>(factors.size());
  tensor.shape.push_back(tensor.cols);
  tensor.packing = std::make_shared<Constant>(std::move(factors));
  source.checkpoint.by_name.emplace(tensor.name, source.checkpoint.tensors.size());
  source.checkpoint.tensors.push_back(std::move(tensor));
  return {};
}

/// The matrices of linear operations, and whether they are quantized: all but routers, whose choice a small error may
/// turn, and the one that gives logits unless the options say so.
std::unordered_map<std::string, bool> linear_weights(const Program& program, const QuantizeOptions& options) {
  std::unordered_map<std::string, bool> names;
  const auto name_of = [&](WeightId id) -> const std::string& {
    return program.weights[static_cast<std::size_t>(id)].name;
  };
  std::unordered_set<ValueId> kept;
  if (!options.output_matrix) kept.insert(program.logits);
  for (const Op& op : program.ops) {
    const auto* moe = std::get_if<op::Moe>(&op);
    if (!moe) continue;
    kept.insert(moe->router);
    kept.insert(moe->shared_gate);
    for (const auto* matrices : {&moe->gate, &moe->up, &moe->down}) {
      for (const WeightId id : *matrices) names.emplace(name_of(id), true);
    }
  }
  for (const Op& op : program.ops) {
    const auto* linear = std::get_if<op::Linear>(&op);
    if (linear) names.emplace(name_of(linear->weight), !kept.contains(linear->out));
  }
  return names;
}

/// "blk.3.ffn_up.7.weight" is part 7 of "blk.3.ffn_up_exps.weight", as GGUF files have experts (docs/adr/0019).
struct StackPart {
  std::string stack;
  std::int64_t expert = 0;
};
std::optional<StackPart> stack_part(const std::string& name) {
  const std::size_t last = name.rfind('.');
  if (last == std::string::npos || last == 0) return std::nullopt;
  const std::size_t before = name.rfind('.', last - 1);
  if (before == std::string::npos || !name.starts_with("blk.") || before == 3) return std::nullopt;
  const std::string number = name.substr(before + 1, last - before - 1);
  if (number.empty() || number.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  return StackPart{name.substr(0, before) + "_exps" + name.substr(last), std::stoll(number)};
}

std::uint64_t block_bytes(WeightType type, const TensorInfo& tensor) {
  const quant::Format& format = quant::format(type);
  return static_cast<std::uint64_t>(tensor.rows * (tensor.cols / format.block_values) * format.block_bytes);
}

Result<Layout> gguf_layout(Source& source, const QuantizeOptions& options) {
  LLMINFER_TRY(add_rope_factors(source));
  const GgufKind& kind = *find_gguf_kind(options.type);
  const load::ModelConfig& config = source.checkpoint.config;
  std::vector<GgufPair> metadata = LLMINFER_TRY(gguf_metadata(source));
  metadata.push_back({"general.file_type", {load::GgufType::u32, std::uint64_t{kind.file_type}}});
  Layout layout;
  std::vector<GgufTensor> tensors;
  std::unordered_map<std::string, std::size_t> stacks;       // index into tensors
  std::vector<std::pair<std::size_t, std::int64_t>> places;  // of each job: its tensor, and which expert's part
  const auto linear = linear_weights(source.program, options);
  for (const TensorInfo& tensor : source.checkpoint.tensors) {
    const auto part = config.experts > 0 ? stack_part(tensor.name) : std::nullopt;
    TensorInfo whole = tensor;
    if (part) {
      whole.name = part->stack;
      whole.shape.insert(whole.shape.begin(), config.experts);
    }
    Job job;
    job.tensor = &tensor;
    const auto found = linear.find(tensor.name);
    job.linear = found != linear.end() && found->second;
    job.type = gguf_type(kind, whole, config, !options.calibration.empty());
    if (whole.name.size() > 63) {
      return fail(ErrorCode::unsupported, "tensor ", whole.name, ": GGUF names have at most 63 characters");
    }
    std::size_t index = tensors.size();
    if (part) index = stacks.emplace(whole.name, index).first->second;
    if (index == tensors.size()) {
      const std::uint64_t parts = part ? static_cast<std::uint64_t>(config.experts) : 1;
      tensors.push_back({whole.name, job.type, whole.shape, parts * block_bytes(job.type, tensor)});
    }
    places.emplace_back(index, part ? part->expert : 0);
    layout.jobs.push_back(std::move(job));
  }
  layout.header = gguf_header(metadata, tensors, layout.size);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto& [tensor, expert] = places[i];
    const std::uint64_t bytes = block_bytes(layout.jobs[i].type, *layout.jobs[i].tensor);
    const std::uint64_t offset = tensors[tensor].offset + static_cast<std::uint64_t>(expert) * bytes;
    layout.jobs[i].places.push_back({offset, bytes, expert == 0});
  }
  return layout;
}

WeightType dense_type(const load::Checkpoint& checkpoint, const std::string& wanted) {
  if (!wanted.empty()) return find_gguf_kind(wanted)->type;
  for (const TensorInfo& tensor : checkpoint.tensors) {
    if (tensor.rows > 1) return tensor.type <= WeightType::bf16 ? tensor.type : WeightType::f16;
  }
  return WeightType::f16;
}

constexpr std::string_view element_of(WeightType type) {
  return type == WeightType::f32 ? "F32" : type == WeightType::f16 ? "F16" : "BF16";
}

std::uint64_t tensor_bytes(std::string_view element, const std::vector<std::int64_t>& shape) {
  std::uint64_t bytes = element == "I64" ? 8 : element == "I32" || element == "F32" ? 4 : element == "I8" ? 1 : 2;
  for (const std::int64_t side : shape) bytes *= static_cast<std::uint64_t>(side);
  return bytes;
}

/// "model.layers.0.mlp.up_proj" of its weight.
std::string module_of(const TensorInfo& tensor) {
  return tensor.name.substr(0, tensor.name.size() - std::strlen(".weight"));
}

/// The tensors of an affine weight, as pack() writes them.
std::vector<HfTensor> affine_tensors(const TensorInfo& tensor, const AffineScheme& s, const QuantizeOptions& o) {
  const std::string prefix = module_of(tensor);
  const std::int64_t n = tensor.rows, k = tensor.cols, groups = k / s.group_size;
  const std::string_view scales = s.scales == AffineScheme::Scales::f16 ? "F16" : "BF16";
  const auto words = [&](std::int64_t count) { return (count * s.bits + 31) / 32; };
  std::vector<HfTensor> list;
  const auto add = [&](const char* name, std::string_view element, std::int64_t a, std::int64_t b = 0) {
    HfTensor out{prefix + name, element, {}};
    out.shape.push_back(a);
    if (b > 0) out.shape.push_back(b);
    out.bytes = tensor_bytes(element, out.shape);
    list.push_back(std::move(out));
  };
  if (o.format == QuantizeFormat::gptq) {
    add(".qweight", "I32", words(k), n);
    add(".qzeros", "I32", groups, words(n));
    add(".scales", scales, groups, n);
    add(".g_idx", "I32", k);
  } else if (o.format == QuantizeFormat::awq) {
    add(".qweight", "I32", k, n / 8);
    add(".qzeros", "I32", groups, n / 8);
    add(".scales", scales, groups, n);
  } else if (o.int8_inputs) {
    add(".weight", "I8", n, k);
    add(".weight_scale", scales, n, 1);
  } else {
    add(".weight_packed", "I32", n, words(k));
    add(".weight_scale", scales, n, groups);
    add(".weight_shape", "I64", 2);
    if (!s.symmetric) add(".weight_zero_point", "I32", words(n), groups);
  }
  return list;
}

Result<AffineScheme> scheme_of(const TensorInfo& tensor, const QuantizeOptions& o, WeightType dense) {
  AffineScheme scheme;
  scheme.bits = o.bits;
  scheme.symmetric = o.symmetric && o.format != QuantizeFormat::awq;
  scheme.group_size = o.group_size == -1 || o.int8_inputs ? tensor.cols : o.group_size;
  const bool llm_compressor = o.format == QuantizeFormat::compressed_tensors;
  if (llm_compressor && dense == WeightType::bf16) scheme.scales = AffineScheme::Scales::bf16;
  if (tensor.cols % scheme.group_size != 0) {
    return fail(ErrorCode::invalid_argument, "QuantizeOptions::group_size is ", o.group_size, ", but ", tensor.name,
                " has ", tensor.cols, " columns; expected a divisor of that, or -1");
  }
  const std::int64_t whole = 32 / std::gcd(32, scheme.bits);  // numbers that fill words
  if (!llm_compressor && (tensor.cols % whole != 0 || tensor.rows % whole != 0)) {
    return fail(ErrorCode::unsupported, "tensor ", tensor.name, " is [", tensor.rows, ", ", tensor.cols,
                "]; the format needs multiples of ", whole, " for ", scheme.bits, " bits");
  }
  return scheme;
}

Result<Layout> hf_layout(Source& source, const QuantizeOptions& options) {
  if (source.checkpoint.config.architecture == "gpt-oss" && options.format == QuantizeFormat::dense) {
    return fail(ErrorCode::unsupported, source.checkpoint.path,
                ": gpt-oss's directories hold all experts in one transposed tensor, which is not written here; "
                "expected another format than dense");
  }
  Layout layout;
  std::vector<HfTensor> tensors;
  std::vector<std::size_t> ends;  // of each job's tensors
  const WeightType dense = dense_type(source.checkpoint, options.type);
  const auto linear = linear_weights(source.program, options);
  layout.dense = element_of(dense);
  for (const WeightSpec& weight : source.program.weights) {
    const TensorInfo& tensor = *source.checkpoint.find(weight.name);
    Job job;
    job.tensor = &tensor;
    job.type = dense;
    const auto found = linear.find(tensor.name);
    job.linear = found != linear.end() && found->second;
    const bool router = found != linear.end() && !found->second && tensor.name.starts_with("model.layers.");
    if (router) layout.routers.push_back(module_of(tensor));
    job.affine = job.linear && options.format != QuantizeFormat::dense;
    if (job.affine) {
      job.scheme = LLMINFER_TRY(scheme_of(tensor, options, dense));
      for (HfTensor& out : affine_tensors(tensor, job.scheme, options)) tensors.push_back(std::move(out));
    } else {
      // GGUF files name a matrix of one row as a vector.
      std::vector<std::int64_t> shape = tensor.shape;
      if (found != linear.end()) shape = {tensor.rows, tensor.cols};
      const std::uint64_t bytes = tensor_bytes(layout.dense, shape);
      tensors.push_back({tensor.name, layout.dense, std::move(shape), bytes});
    }
    ends.push_back(tensors.size());
    layout.jobs.push_back(std::move(job));
  }
  layout.header = safetensors_header(tensors, layout.size);
  for (std::size_t i = 0, at = 0; i < ends.size(); ++i) {
    for (; at < ends[i]; ++at) layout.jobs[i].places.push_back({tensors[at].offset, tensors[at].bytes, true});
  }
  return layout;
}

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

Result<Layout> lay_out(Source& source, const QuantizeOptions& options) {
  const bool gguf = options.format == QuantizeFormat::gguf;
  Layout layout = LLMINFER_TRY(gguf ? gguf_layout(source, options) : hf_layout(source, options));
  for (const Job& job : layout.jobs) {
    layout.tensors += job.tensors();
    for (const Place& place : job.places) layout.tensor_bytes += place.bytes;
  }
  return layout;
}

std::vector<std::vector<std::byte>> pack(const AffineWeight& w, const QuantizeOptions& o) {
  std::vector<std::vector<std::byte>> parts;
  if (o.format == QuantizeFormat::gptq) {
    std::vector<std::int32_t> index = w.group_of;
    for (std::int64_t k = static_cast<std::int64_t>(index.size()); k < w.cols; ++k) {
      index.push_back(static_cast<std::int32_t>(k / w.scheme.group_size));
    }
    parts.push_back(bytes_of(gptq_qweight(w)));
    parts.push_back(bytes_of(gptq_qzeros(w, w.scheme.symmetric)));
    parts.push_back(bytes_of(gptq_scales(w)));
    parts.push_back(bytes_of(index));
  } else if (o.format == QuantizeFormat::awq) {
    parts.push_back(bytes_of(awq_qweight(w)));
    parts.push_back(bytes_of(awq_qzeros(w)));
    parts.push_back(bytes_of(gptq_scales(w)));
  } else if (o.int8_inputs) {
    parts.push_back(bytes_of(ct_int8(w)));
    parts.push_back(bytes_of(ct_scales(w)));
  } else {
    std::vector<std::int64_t> shape;
    shape.push_back(w.rows);
    shape.push_back(w.cols);
    parts.push_back(bytes_of(ct_packed(w)));
    parts.push_back(bytes_of(ct_scales(w)));
    parts.push_back(bytes_of(shape));
    if (!w.scheme.symmetric) parts.push_back(bytes_of(ct_zero_points(w)));
  }
  return parts;
}

}  // namespace llminfer::quantize
