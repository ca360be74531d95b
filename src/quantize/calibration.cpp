#include "quantize/calibration.hpp"

#include <cstdio>
#include <fstream>
#include <utility>

#include "core/error.hpp"
#include "tok/tokenizer_model.hpp"

namespace llminfer::quantize {
namespace {

using core::fail;

constexpr std::uint64_t kMagic = 0x6c61766d6e696c6cu;

template <class T>
void put(std::ostream& out, const T& value) {
  out.write(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class T>
T get(std::istream& in) {
  T value{};
  in.read(reinterpret_cast<char*>(&value), sizeof value);
  return value;
}

}  // namespace

Result<std::vector<std::vector<Token>>> calibration_pieces(const load::Checkpoint& checkpoint,
                                                           const QuantizeOptions& o) {
  if (o.calibration_length > checkpoint.config.context_length) {
    return fail(ErrorCode::invalid_argument, "QuantizeOptions::calibration_length is ", o.calibration_length,
                ", expected 8 to the model's context length, ", checkpoint.config.context_length);
  }
  const auto tokenizer =
      LLMINFER_TRY(tok::make_tokenizer(checkpoint.vocabulary, checkpoint.config.vocab_size, checkpoint.generation));
  const auto with = LLMINFER_TRY(tokenizer->encode(o.calibration, {.add_special = true, .parse_special = false}));
  const auto text = LLMINFER_TRY(tokenizer->encode(o.calibration, {.add_special = false, .parse_special = false}));
  const bool bos = tokenizer->bos() && !with.empty() && with.size() > text.size() && with.front() == *tokenizer->bos();
  const auto length = static_cast<std::size_t>(o.calibration_length);
  const std::size_t whole = text.size() / length;
  if (whole == 0) {
    return fail(ErrorCode::invalid_argument, "QuantizeOptions::calibration has ", text.size(),
                " tokens, expected at least calibration_length, ", length);
  }
  const std::size_t count = std::min(whole, static_cast<std::size_t>(o.calibration_sequences));
  std::vector<std::vector<Token>> pieces;
  for (std::size_t i = 0; i < count; ++i) {
    const auto begin = text.begin() + static_cast<std::ptrdiff_t>(i * whole / count * length);
    pieces.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(length));
    if (bos) pieces.back().front() = *tokenizer->bos();
  }
  return pieces;
}

Result<void> save_values(const std::string& path, std::size_t layer, const LayerRun::Values& values) {
  const std::string partial = path + ".partial";
  {
    std::ofstream out(partial, std::ios::binary | std::ios::trunc);
    std::uint64_t alive = 0;
    for (const auto& value : values) alive += !value.empty();
    put(out, kMagic);
    put(out, static_cast<std::uint64_t>(layer));
    put(out, alive);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i].empty()) continue;
      put(out, static_cast<std::uint64_t>(i));
      out.write(reinterpret_cast<const char*>(values[i].data()),
                static_cast<std::streamsize>(values[i].size() * sizeof(float)));
    }
    if (!out.flush()) return fail(ErrorCode::io_error, partial, ": writing failed");
  }
  if (std::rename(partial.c_str(), path.c_str()) != 0) return fail(ErrorCode::io_error, path, ": renaming failed");
  return {};
}

std::optional<SavedValues> load_values(const std::string& path, const Program& program, std::int64_t tokens) {
  std::ifstream in(path, std::ios::binary);
  if (!in || get<std::uint64_t>(in) != kMagic) return std::nullopt;
  SavedValues saved;
  saved.layer = static_cast<std::size_t>(get<std::uint64_t>(in));
  saved.values.resize(program.values.size());
  for (auto alive = get<std::uint64_t>(in); alive > 0; --alive) {
    const auto id = static_cast<std::size_t>(get<std::uint64_t>(in));
    if (!in || id >= program.values.size()) return std::nullopt;
    auto& value = saved.values[id];
    value.resize(static_cast<std::size_t>(tokens * program.values[id].width));
    in.read(reinterpret_cast<char*>(value.data()), static_cast<std::streamsize>(value.size() * sizeof(float)));
  }
  if (!in || in.peek() != std::ifstream::traits_type::eof()) return std::nullopt;
  return saved;
}

}  // namespace llminfer::quantize
