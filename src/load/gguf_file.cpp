// Parses the GGUF container.
#include "load/gguf_file.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>
#include <utility>

#include "core/checked.hpp"
#include "core/error.hpp"
#include "core/utf8.hpp"
#include "quant/format.hpp"

namespace llminfer::load {
namespace {

using core::fail;

static_assert(std::endian::native == std::endian::little, "numbers are read as they lie in the file");

constexpr std::uint64_t kMaxHeaderBytes = std::uint64_t{1} << 30;  // real headers stay below 100 MB
constexpr std::uint64_t kMaxPiece = std::uint64_t{1} << 20;        // read at once from a source that is not in memory
constexpr std::uint64_t kMaxKeyBytes = 65535;
constexpr std::uint64_t kMaxTensorNameBytes = 64;
constexpr std::uint64_t kMaxAlignment = std::uint64_t{1} << 20;
constexpr std::uint32_t kMaxDimensions = 4;
// The smallest records: key length, one character, type, one byte; name length, one character, dimension count, one
// dimension, type, offset.
constexpr std::uint64_t kMinPairBytes = 8 + 1 + 4 + 1;
constexpr std::uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

/// Reads a source from its start to the end of the header, in bounded pieces where it is not in memory.
class Cursor {
 public:
  explicit Cursor(const core::ByteSource& source) : source_(source) {}

  std::uint64_t position() const noexcept { return position_; }
  std::uint64_t remaining() const noexcept { return source_.size() - position_; }

  /// The next `count` <= kMaxPiece bytes, valid until the next call.
  Result<std::span<const std::byte>> take(std::uint64_t count) {
    if (count > remaining()) {
      return fail(ErrorCode::truncated, "the file ends at byte ", source_.size(),
                  ", inside a record that starts at byte ", position_);
    }
    if (position_ + count > kMaxHeaderBytes) return fail(ErrorCode::limit_exceeded, "the header is larger than 1 GiB");
    const std::uint64_t held = window_start_ + window_.data.size();
    if (position_ + count > held) {
      const std::uint64_t want = source_.resident() ? remaining() : std::min(std::max(count, piece_), remaining());
      window_ = LLMINFER_TRY(source_.read(position_, want));
      window_start_ = position_;
      piece_ = std::min(piece_ * 2, kMaxPiece);
    }
    const auto bytes = window_.data.subspan(position_ - window_start_, count);
    position_ += count;
    return bytes;
  }

  template <class T>
  Result<T> number() {
    const auto bytes = LLMINFER_TRY(take(sizeof(T)));
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }

  /// A count of records of at least `smallest` bytes each that can still follow.
  Result<std::uint64_t> count(std::uint64_t smallest, std::string_view what) {
    const std::uint64_t count = LLMINFER_TRY(number<std::uint64_t>());
    if (count > kMaxHeaderBytes / smallest) {
      return fail(ErrorCode::limit_exceeded, what, " of ", count, "; no header holds so many");
    }
    if (count > remaining() / smallest) {
      return fail(ErrorCode::truncated, what, " of ", count, ", but only ", remaining(), " bytes follow");
    }
    return count;
  }

  /// Appends `count` bytes to a string or a vector of bytes; it grows only as the bytes arrive.
  template <class Container>
  Result<void> append(std::uint64_t count, Container& to) {
    while (count > 0) {
      const std::uint64_t piece = std::min(count, kMaxPiece);
      const auto bytes = LLMINFER_TRY(take(piece));
      const auto* begin = reinterpret_cast<const typename Container::value_type*>(bytes.data());
      to.insert(to.end(), begin, begin + piece);
      count -= piece;
    }
    return {};
  }

  Result<std::string> string(std::string_view what) {
    const std::uint64_t length = LLMINFER_TRY(count(1, what));
    std::string text;
    LLMINFER_TRY(append(length, text));
    return text;
  }

  /// A key or a name: not empty, at most `limit` bytes, UTF-8.
  Result<std::string> name(std::uint64_t limit, std::string_view what) {
    const std::uint64_t length = LLMINFER_TRY(count(1, what));
    if (length == 0) return fail(ErrorCode::corrupt, what, " of 0");
    if (length > limit) return fail(ErrorCode::limit_exceeded, what, " of ", length, ", the limit is ", limit);
    std::string text;
    LLMINFER_TRY(append(length, text));
    if (!core::valid_utf8(text)) return fail(ErrorCode::invalid_encoding, what, ": the text is not UTF-8");
    return text;
  }

 private:
  const core::ByteSource& source_;
  core::Bytes window_;
  std::uint64_t window_start_ = 0;
  std::uint64_t position_ = 0;
  std::uint64_t piece_ = std::uint64_t{1} << 16;
};

Result<bool> read_bool(Cursor& in) {
  const auto byte = LLMINFER_TRY(in.number<std::uint8_t>());
  if (byte > 1) return fail(ErrorCode::corrupt, "a boolean of value ", int{byte});
  return byte == 1;
}

Result<GgufValue> read_array(Cursor& in) {
  const auto element = LLMINFER_TRY(in.number<std::uint32_t>());
  GgufValue value{GgufType::array, {}};
  if (element == static_cast<std::uint32_t>(GgufType::array)) {
    return fail(ErrorCode::unsupported_type, "an array of arrays");
  }
  if (element == static_cast<std::uint32_t>(GgufType::string)) {
    const std::uint64_t count = LLMINFER_TRY(in.count(8, "array length"));
    std::vector<std::string> strings;
    strings.reserve(std::min<std::uint64_t>(count, 1 << 18));  // as many as vocabularies have
    for (std::uint64_t i = 0; i < count; ++i) strings.push_back(LLMINFER_TRY(in.string("string length")));
    value.value = std::move(strings);
    return value;
  }
  const std::uint64_t size = gguf_type_bytes(static_cast<GgufType>(element));
  if (size == 0) return fail(ErrorCode::unsupported_type, "array elements of unknown type ", element);
  const std::uint64_t count = LLMINFER_TRY(in.count(size, "array length"));
  GgufNumbers numbers{static_cast<GgufType>(element), {}};
  LLMINFER_TRY(in.append(count * size, numbers.bytes));  // count <= kMaxHeaderBytes / size
  if (numbers.element == GgufType::boolean) {
    const bool valid =
        std::all_of(numbers.bytes.begin(), numbers.bytes.end(), [](std::byte b) { return b <= std::byte{1}; });
    if (!valid) return fail(ErrorCode::corrupt, "a boolean that is neither 0 nor 1");
  }
  value.value = std::move(numbers);
  return value;
}

Result<GgufValue> read_value(Cursor& in) {
  const auto number = LLMINFER_TRY(in.number<std::uint32_t>());
  GgufValue value{static_cast<GgufType>(number), {}};
  switch (value.type) {
    case GgufType::u8:
      value.value = std::uint64_t{LLMINFER_TRY(in.number<std::uint8_t>())};
      return value;
    case GgufType::i8:
      value.value = std::int64_t{LLMINFER_TRY(in.number<std::int8_t>())};
      return value;
    case GgufType::u16:
      value.value = std::uint64_t{LLMINFER_TRY(in.number<std::uint16_t>())};
      return value;
    case GgufType::i16:
      value.value = std::int64_t{LLMINFER_TRY(in.number<std::int16_t>())};
      return value;
    case GgufType::u32:
      value.value = std::uint64_t{LLMINFER_TRY(in.number<std::uint32_t>())};
      return value;
    case GgufType::i32:
      value.value = std::int64_t{LLMINFER_TRY(in.number<std::int32_t>())};
      return value;
    case GgufType::u64:
      value.value = std::uint64_t{LLMINFER_TRY(in.number<std::uint64_t>())};
      return value;
    case GgufType::i64:
      value.value = std::int64_t{LLMINFER_TRY(in.number<std::int64_t>())};
      return value;
    case GgufType::f32:
      value.value = double{LLMINFER_TRY(in.number<float>())};
      return value;
    case GgufType::f64:
      value.value = double{LLMINFER_TRY(in.number<double>())};
      return value;
    case GgufType::boolean:
      value.value = bool{LLMINFER_TRY(read_bool(in))};
      return value;
    case GgufType::string:
      value.value = LLMINFER_TRY(in.string("string length"));
      return value;
    case GgufType::array:
      return read_array(in);
  }
  return fail(ErrorCode::unsupported_type, "a value of unknown type ", number);
}

Result<std::uint32_t> read_version(Cursor& in) {
  constexpr std::string_view kMagic = "GGUF";
  constexpr std::string_view kSwapped = "FUGG";
  const auto have = LLMINFER_TRY(in.take(std::min<std::uint64_t>(in.remaining(), 4)));
  const std::string_view magic(reinterpret_cast<const char*>(have.data()), have.size());
  if (magic == kSwapped) return fail(ErrorCode::wrong_endianness, "a byte-swapped GGUF file; expected little-endian");
  if (magic != kMagic.substr(0, magic.size()))
    return fail(ErrorCode::bad_magic, "not a GGUF file; expected it to begin with \"GGUF\"");
  if (magic.size() < kMagic.size()) return fail(ErrorCode::truncated, "the file ends inside the magic number");
  const auto version = LLMINFER_TRY(in.number<std::uint32_t>());
  // Big-endian files have the same magic; their small version number shows up in the high bytes.
  if (version != 0 && (version & 0xffffu) == 0) {
    return fail(ErrorCode::wrong_endianness, "a big-endian GGUF file; expected little-endian");
  }
  if (version != 2 && version != 3) {
    return fail(ErrorCode::unsupported_version, "GGUF version ", version, "; expected 2 or 3");
  }
  return version;
}

Result<std::uint64_t> alignment_of(const GgufFile& file) {
  const auto found = file.metadata.find("general.alignment");
  if (found == file.metadata.end()) return file.alignment;
  const GgufValue& value = found->second;
  if (value.type != GgufType::u32) return fail(ErrorCode::corrupt, "general.alignment: expected a value of type u32");
  const std::uint64_t alignment = std::get<std::uint64_t>(value.value);
  if (!std::has_single_bit(alignment)) {
    return fail(ErrorCode::corrupt, "general.alignment: ", alignment, " is not a power of two");
  }
  if (alignment > kMaxAlignment) {
    return fail(ErrorCode::limit_exceeded, "general.alignment: ", alignment, ", the limit is ", kMaxAlignment);
  }
  return alignment;
}

/// Everything of a tensor record that follows its name. `offset` is still that from the start of the data section.
Result<TensorInfo> read_tensor(Cursor& in, std::string name) {
  TensorInfo tensor;
  tensor.name = std::move(name);
  const auto dimensions = LLMINFER_TRY(in.number<std::uint32_t>());
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    return fail(ErrorCode::corrupt, dimensions, " dimensions; expected 1 to ", kMaxDimensions);
  }
  std::uint64_t elements = 1;
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto size = LLMINFER_TRY(in.number<std::uint64_t>());
    if (size == 0) return fail(ErrorCode::corrupt, "dimension ", i, " is 0");
    const auto product = core::checked_mul(elements, size);
    if (!product || *product > INT64_MAX) return fail(ErrorCode::corrupt, "the number of elements is above 2^63");
    elements = *product;
    tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(size));  // the file has the innermost first
  }
  tensor.cols = tensor.shape.back();
  tensor.rows = static_cast<std::int64_t>(elements) / tensor.cols;

  const auto type = LLMINFER_TRY(in.number<std::uint32_t>());
  const quant::Format* format = quant::format_by_ggml_type(type);
  if (!format)
    return fail(ErrorCode::unsupported_type, "ggml type ", type, " is not a weight type that llminfer reads");
  tensor.type = format->type;
  if (tensor.cols % format->block_values != 0) {
    return fail(ErrorCode::corrupt, "rows of ", tensor.cols, " elements are no whole number of blocks of ",
                format->block_values, " (", format->name, ")");
  }
  const auto bytes = core::checked_mul(elements / static_cast<std::uint64_t>(format->block_values),
                                       static_cast<std::uint64_t>(format->block_bytes));
  if (!bytes) return fail(ErrorCode::corrupt, "the size in bytes is above 2^64");
  tensor.bytes = *bytes;
  tensor.offset = LLMINFER_TRY(in.number<std::uint64_t>());
  return tensor;
}

/// Turns offsets into places in the file and checks that the tensors lie there, each in its own bytes.
Result<void> place_tensors(GgufFile& file, std::uint64_t header_end, std::uint64_t file_size) {
  if (file.tensors.empty()) return {};
  const auto data_start = core::checked_align(header_end, file.alignment);
  for (TensorInfo& tensor : file.tensors) {
    if (tensor.offset % file.alignment != 0) {
      return fail(ErrorCode::corrupt, "tensor '", tensor.name, "': offset ", tensor.offset,
                  " is not a multiple of the alignment, ", file.alignment);
    }
    const auto begin = data_start ? core::checked_add(*data_start, tensor.offset) : std::nullopt;
    const auto end = begin ? core::checked_add(*begin, tensor.bytes) : std::nullopt;
    if (!end) return fail(ErrorCode::corrupt, "tensor '", tensor.name, "': its end is above 2^64");
    if (*end > file_size) {
      return fail(ErrorCode::truncated, "tensor '", tensor.name, "' ends at byte ", *end, ", the file at byte ",
                  file_size);
    }
    tensor.offset = *begin;
  }
  std::vector<const TensorInfo*> order;
  for (const TensorInfo& tensor : file.tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->offset < b->offset; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (order[i]->offset < order[i - 1]->offset + order[i - 1]->bytes) {
      return fail(ErrorCode::corrupt, "tensors '", order[i - 1]->name, "' and '", order[i]->name, "' overlap");
    }
  }
  return {};
}

Result<GgufFile> parse(const core::ByteSource& source) {
  Cursor in(source);
  GgufFile file;
  file.version = LLMINFER_TRY(read_version(in));
  const std::uint64_t tensors = LLMINFER_TRY(in.count(kMinTensorBytes, "tensor count"));
  const std::uint64_t pairs = LLMINFER_TRY(in.count(kMinPairBytes, "metadata count"));

  for (std::uint64_t i = 0; i < pairs; ++i) {
    std::string key = LLMINFER_TRY(in.name(kMaxKeyBytes, "metadata key length"));
    auto value = read_value(in);
    if (!value) return core::at("metadata '" + key + "'", std::move(value).error());
    const auto [place, inserted] = file.metadata.try_emplace(std::move(key), *std::move(value));
    if (!inserted) return fail(ErrorCode::corrupt, "metadata key '", place->first, "' occurs twice");
  }
  file.alignment = LLMINFER_TRY(alignment_of(file));

  std::unordered_map<std::string, std::size_t> names;
  for (std::uint64_t i = 0; i < tensors; ++i) {
    std::string name = LLMINFER_TRY(in.name(kMaxTensorNameBytes, "tensor name length"));
    if (!names.emplace(name, i).second) return fail(ErrorCode::corrupt, "tensor '", name, "' occurs twice");
    auto tensor = read_tensor(in, name);
    if (!tensor) return core::at("tensor '" + name + "'", std::move(tensor).error());
    file.tensors.push_back(*std::move(tensor));
  }
  LLMINFER_TRY(place_tensors(file, in.position(), source.size()));
  return file;
}

}  // namespace

std::uint64_t gguf_type_bytes(GgufType type) noexcept {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    case GgufType::string:
    case GgufType::array:
      return 0;
  }
  return 0;
}

Result<GgufFile> parse_gguf(const core::ByteSource& source) {
  auto file = parse(source);
  // What the source itself reports (io_error, callback_failed) names it already.
  if (!file && file.error().message.rfind(source.name(), 0) != 0)
    return core::at(source.name(), std::move(file).error());
  return file;
}

}  // namespace llminfer::load
