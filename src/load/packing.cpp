#include "load/packing.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include "core/error.hpp"
#include "core/half.hpp"
#include "quant/format.hpp"

namespace llminfer::load {

using core::fail;

namespace {

struct ElementRow {
  std::string_view name;
  std::uint64_t bytes;
};
constexpr ElementRow kElements[] = {{"F32", 4}, {"F16", 2},     {"BF16", 2},    {"I8", 1},   {"U8", 1}, {"I32", 4},
                                    {"I64", 8}, {"F8_E4M3", 1}, {"F8_E8M0", 1}, {"BOOL", 1}, {"I16", 2}};

bool fits(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& expected) {
  if (shape.size() != expected.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (expected[i] >= 0 && shape[i] != expected[i]) return false;
  }
  return true;
}

template <class T>
T load(const std::byte* bytes) noexcept {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

float float_at(ElementType element, const std::byte* p) noexcept {
  switch (element) {
    case ElementType::f16:
      return core::half_to_float(load<std::uint16_t>(p));
    case ElementType::bf16:
      return core::bfloat_to_float(load<std::uint16_t>(p));
    case ElementType::f8_e4m3:
      return core::e4m3_to_float(load<std::uint8_t>(p));
    case ElementType::u8:
    case ElementType::f8_e8m0:
      return std::ldexp(1.0f, load<std::uint8_t>(p) - 127);
    default:
      return load<float>(p);
  }
}

std::int64_t integer_at(ElementType element, const std::byte* p) noexcept {
  switch (element) {
    case ElementType::i8:
      return load<std::int8_t>(p);
    case ElementType::i32:
      return load<std::int32_t>(p);
    case ElementType::i64:
      return load<std::int64_t>(p);
    default:
      return load<std::uint8_t>(p);
  }
}

/// A weight whose columns are multiplied by factors, as floats.
class FactorPacking final : public Packing {
 public:
  FactorPacking(TensorInfo weight, std::vector<float> factors)
      : weight_(std::move(weight)), factors_(std::move(factors)) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const WeightView view = LLMINFER_TRY(checkpoint.read(weight_, team));
    BlockBuffer out(WeightType::f32, view.rows, view.cols);
    std::vector<float> row(static_cast<std::size_t>(view.cols));
    for (std::int64_t n = 0; n < view.rows; ++n) {
      LLMINFER_TRY(unpack_rows(view, n, 1, row));
      for (std::size_t k = 0; k < row.size(); ++k) {
        const float value = row[k] * factors_[k];
        if (!std::isfinite(value)) {
          return fail(ErrorCode::corrupt, "tensor ", tensor.name, ": row ", n, ", column ", k,
                      " is not finite by its factor ", factors_[k]);
        }
        write_float(value, out.row(n) + 4 * k);
      }
    }
    return out.view(tensor);
  }

 private:
  const TensorInfo weight_;
  const std::vector<float> factors_;
};

}  // namespace

std::string_view name_of(ElementType element) noexcept { return kElements[static_cast<std::size_t>(element)].name; }
std::uint64_t bytes_of(ElementType element) noexcept { return kElements[static_cast<std::size_t>(element)].bytes; }

std::vector<std::string> Layers::with(std::string_view suffix) const {
  std::vector<std::string> prefixes;
  for (const TensorInfo& tensor : checkpoint_.tensors) {
    const std::string_view name = tensor.name;
    if (name.size() > suffix.size() && name.ends_with(suffix) && !taken_.contains(tensor.name)) {
      prefixes.emplace_back(name.substr(0, name.size() - suffix.size()));
    }
  }
  return prefixes;
}

const TensorInfo* Layers::find(const std::string& name) const { return checkpoint_.find(name); }

Result<TensorInfo> Layers::need(const std::string& name, std::initializer_list<ElementType> elements,
                                const std::vector<std::int64_t>& shape) const {
  const TensorInfo* tensor = find(name);
  if (!tensor) return fail(ErrorCode::missing_tensor, "no tensor ", name, ", expected ", shape_text(shape));
  std::string known;
  bool found = false;
  for (const ElementType element : elements) {
    found = found || tensor->element == element;
    known += (known.empty() ? "" : ", ") + std::string(name_of(element));
  }
  if (!found) {
    return fail(ErrorCode::unsupported_type, "tensor ", name, " is of type ", name_of(tensor->element), ", expected ",
                known);
  }
  if (!fits(tensor->shape, shape)) {
    return fail(ErrorCode::shape_mismatch, "tensor ", name, " is ", shape_text(tensor->shape), ", expected ",
                shape_text(shape));
  }
  return *tensor;
}

void Layers::add(const std::string& prefix, WeightType type, std::int64_t rows, std::int64_t cols,
                 const TensorInfo& largest, std::shared_ptr<const Packing> packing, WeightDetails details) {
  add_tensor(prefix + ".weight", type, {rows, cols}, largest, std::move(packing), std::move(details));
}

void Layers::add_tensor(std::string name, WeightType type, std::vector<std::int64_t> shape, const TensorInfo& largest,
                        std::shared_ptr<const Packing> packing, WeightDetails details) {
  TensorInfo tensor = largest;
  tensor.name = std::move(name);
  tensor.type = type;
  tensor.element = ElementType::f32;
  tensor.rows = shape.size() < 2 ? 1 : shape[0];
  tensor.cols = shape.back();
  tensor.shape = std::move(shape);
  tensor.packing = std::move(packing);
  tensor.details = std::move(details);
  added_.push_back(std::move(tensor));
}

void Layers::drop_cache_scales() {
  for (const TensorInfo& tensor : checkpoint_.tensors) {
    for (const std::string_view kind : {"scale", "global_scale", "zero_point"}) {
      for (const std::string_view whose : {".k_", ".v_", ".kv_", ".q_", ".prob_", ".output_"}) {
        if (tensor.cols == 1 && tensor.name.ends_with(std::string(whose).append(kind))) take(tensor.name);
      }
    }
  }
}

void Layers::multiply_columns(const std::string& prefix, std::vector<float> factors) {
  for (TensorInfo& tensor : added_) {
    if (tensor.name != prefix + ".weight") continue;
    tensor.packing = std::make_shared<FactorPacking>(tensor, std::move(factors));
    tensor.type = WeightType::f32;
    tensor.details = {};
    return;
  }
}

Result<void> Layers::finish() {
  std::vector<TensorInfo> tensors;
  for (TensorInfo& tensor : checkpoint_.tensors) {
    if (!taken_.contains(tensor.name)) tensors.push_back(std::move(tensor));
  }
  for (TensorInfo& tensor : added_) tensors.push_back(std::move(tensor));
  const auto twice = checkpoint_.replace_tensors(std::move(tensors));
  if (!twice) return {};
  return fail(ErrorCode::corrupt, "tensor ", *twice, " is there both packed and as it is");
}

Result<core::Bytes> read_bytes(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  return checkpoint.sources[tensor.source]->read(tensor.offset, tensor.bytes);
}

Result<std::vector<float>> read_floats(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  const core::Bytes bytes = LLMINFER_TRY(read_bytes(checkpoint, tensor));
  const std::uint64_t step = bytes_of(tensor.element);
  std::vector<float> values(tensor.bytes / step);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = float_at(tensor.element, bytes.data.data() + i * step);
    if (!std::isfinite(values[i])) {
      return fail(ErrorCode::corrupt, "tensor ", tensor.name, ": element ", i, " is not finite");
    }
  }
  return values;
}

Result<void> check_scales(const std::vector<float>& scales, const std::string& tensor,
                          const std::vector<float>& factors) {
  constexpr float kLargest = std::numeric_limits<float>::max() / 1024;  // codes are 448 at most
  float most = factors.empty() ? 1.0f : 0.0f;
  for (const float factor : factors) most = std::max(most, std::abs(factor));
  for (const float scale : scales) {
    if (std::abs(scale) <= kLargest && std::abs(scale * most) <= kLargest) continue;
    return fail(ErrorCode::corrupt, "tensor ", tensor, ": a scale is ", scale, " (by a factor of ", most,
                "), expected at most ", kLargest);
  }
  return {};
}

Result<std::vector<std::int64_t>> read_integers(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  const core::Bytes bytes = LLMINFER_TRY(read_bytes(checkpoint, tensor));
  const std::uint64_t step = bytes_of(tensor.element);
  std::vector<std::int64_t> values(tensor.bytes / step);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = integer_at(tensor.element, bytes.data.data() + i * step);
  }
  return values;
}

Result<std::vector<std::uint32_t>> read_words(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  const core::Bytes bytes = LLMINFER_TRY(read_bytes(checkpoint, tensor));
  std::vector<std::uint32_t> words(tensor.bytes / 4);
  std::memcpy(words.data(), bytes.data.data(), words.size() * 4);
  return words;
}

Result<void> for_rows(core::Team* team, std::int64_t rows,
                      core::FunctionRef<void(std::int64_t first, std::int64_t last, std::size_t thread)> body) {
  if (!team) {
    body(0, rows, 0);
    return {};
  }
  const std::int64_t steps = (rows + kRowStep - 1) / kRowStep;
  const auto chunks = static_cast<int>(std::min<std::int64_t>(steps, std::int64_t{16} * team->threads()));
  const auto bound = [&](std::int64_t chunk) { return std::min(rows, steps * chunk / chunks * kRowStep); };
  return team->run(std::span(&chunks, 1), [&](int, int chunk, int thread) {
    body(bound(chunk), bound(chunk + 1), static_cast<std::size_t>(thread));
  });
}

BlockBuffer::BlockBuffer(WeightType type, std::int64_t rows, std::int64_t cols) : rows_(rows), cols_(cols) {
  const quant::Format& format = quant::format(type);
  row_bytes_ = cols / format.block_values * format.block_bytes;
  bytes_ = std::make_shared_for_overwrite<std::uint8_t[]>(static_cast<std::size_t>(rows * row_bytes_));
}

WeightView BlockBuffer::view(const TensorInfo& tensor) const {
  const auto* data = reinterpret_cast<const std::byte*>(bytes_.get());
  return WeightView{.name = tensor.name,
                    .type = tensor.type,
                    .rows = rows_,
                    .cols = cols_,
                    .data = {data, static_cast<std::size_t>(rows_ * row_bytes_)},
                    .keep = bytes_,
                    .details = tensor.details};
}

void write_nibbles(const std::uint8_t* codes, std::uint8_t* out) noexcept {
  for (int i = 0; i < 16; ++i) out[i] = static_cast<std::uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
}

void write_integer_block(WeightType type, float scale, int zero, const std::uint8_t* codes,
                         std::uint8_t* out) noexcept {
  if (type == WeightType::q4_0 || type == WeightType::q8_0) {
    const std::uint16_t half = core::float_to_half(scale);
    std::memcpy(out, &half, 2);
    for (int i = 0; i < 16 && type == WeightType::q4_0; ++i) {
      out[2 + i] = static_cast<std::uint8_t>(codes[i] | codes[i + 16] << 4);
    }
    for (int i = 0; i < 32 && type == WeightType::q8_0; ++i) out[2 + i] = codes[i] ^ 0x80;
    return;
  }
  write_float(scale, out);
  out += 4;
  const auto write_zero = [&](int value) { *out++ = static_cast<std::uint8_t>(value); };
  switch (type) {
    case WeightType::w2:
      write_zero(zero);
      for (int i = 0; i < 8; ++i) {
        out[i] = static_cast<std::uint8_t>(codes[4 * i] | codes[4 * i + 1] << 2 | codes[4 * i + 2] << 4 |
                                           codes[4 * i + 3] << 6);
      }
      break;
    case WeightType::w3:
      write_zero(zero);
      for (int i = 0; i < 4; ++i) {  // 8 codes are 3 bytes
        std::uint32_t bits = 0;
        for (int j = 0; j < 8; ++j) bits |= static_cast<std::uint32_t>(codes[8 * i + j]) << (3 * j);
        for (int j = 0; j < 3; ++j) out[3 * i + j] = static_cast<std::uint8_t>(bits >> (8 * j));
      }
      break;
    case WeightType::w4:
      write_zero(zero);
      write_nibbles(codes, out);
      break;
    case WeightType::w8:
      write_zero(zero - 128);
      std::memcpy(out, codes, 32);
      break;
    case WeightType::w4_sym:
      write_nibbles(codes, out);
      break;
    default:  // w8_sym
      for (int i = 0; i < 32; ++i) out[i] = codes[i] ^ 0x80;
      break;
  }
}

Result<std::int64_t> setting_int(const core::Json& settings, const char* key, std::int64_t fallback,
                                 std::string_view place) {
  return LLMINFER_TRY(core::json_int(settings, key, place)).value_or(fallback);
}
Result<bool> setting_flag(const core::Json& settings, const char* key, bool fallback, std::string_view place) {
  return LLMINFER_TRY(core::json_bool(settings, key, place)).value_or(fallback);
}
Result<std::string> setting_text(const core::Json& settings, const char* key, const char* fallback,
                                 std::string_view place) {
  return LLMINFER_TRY(core::json_string(settings, key, place)).value_or(fallback);
}

}  // namespace llminfer::load
