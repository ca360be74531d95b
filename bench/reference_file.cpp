#include "reference_file.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace bench {
namespace {

struct Header {
  char magic[8];
  std::uint64_t vocab, ctx, tokens;
};
constexpr char kMagic[8] = {'l', 'l', 'm', 'p', 'p', 'l', '0', '1'};
constexpr double kSteps = 65535;

template <class T>
void put(std::ofstream& file, const T* values, std::size_t count) {
  file.write(reinterpret_cast<const char*>(values), static_cast<std::streamsize>(count * sizeof(T)));
}
template <class T>
void get(std::ifstream& file, T* values, std::size_t count) {
  file.read(reinterpret_cast<char*>(values), static_cast<std::streamsize>(count * sizeof(T)));
}

}  // namespace

ReferenceWriter::ReferenceWriter(const std::string& path, std::size_t vocab, std::int32_t ctx,
                                 std::span<const std::int32_t> tokens)
    : path_(path), file_(path, std::ios::binary), row_(vocab) {
  Header header{{}, vocab, static_cast<std::uint64_t>(ctx), tokens.size()};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  put(file_, &header, 1);
  put(file_, tokens.data(), tokens.size());
}

void ReferenceWriter::write(std::span<const double> logprobs) {
  const auto lowest = static_cast<float>(*std::min_element(logprobs.begin(), logprobs.end()));
  for (std::size_t i = 0; i < row_.size(); ++i) {
    row_[i] = lowest < 0 ? static_cast<std::uint16_t>(std::lround(std::min(1.0, logprobs[i] / lowest) * kSteps)) : 0;
  }
  put(file_, &lowest, 1);
  put(file_, row_.data(), row_.size());
}

void ReferenceWriter::finish() {
  file_.close();
  if (!file_) throw std::runtime_error(path_ + ": cannot be written");
}

ReferenceReader::ReferenceReader(const std::string& path, std::size_t vocab, std::int32_t ctx,
                                 std::span<const std::int32_t> tokens)
    : path_(path), file_(path, std::ios::binary), row_(vocab) {
  if (!file_) throw std::runtime_error(path_ + ": cannot be opened");
  Header header{};
  get(file_, &header, 1);
  if (!file_ || std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    throw std::runtime_error(path_ + ": not a file that --save wrote");
  }
  if (header.vocab != vocab || header.ctx != static_cast<std::uint64_t>(ctx)) {
    throw std::runtime_error(path_ + ": of a vocabulary of " + std::to_string(header.vocab) + " and chunks of " +
                             std::to_string(header.ctx) + ", expected " + std::to_string(vocab) + " and " +
                             std::to_string(ctx));
  }
  if (header.tokens < tokens.size()) {
    throw std::runtime_error(path_ + ": has " + std::to_string(header.tokens) + " tokens, expected at least " +
                             std::to_string(tokens.size()) + "; see --chunks");
  }
  std::vector<std::int32_t> own(tokens.size());
  get(file_, own.data(), own.size());
  if (!file_ || !std::equal(own.begin(), own.end(), tokens.begin())) {
    throw std::runtime_error(path_ + ": of another text or tokenizer");
  }
  file_.seekg(static_cast<std::streamoff>((header.tokens - tokens.size()) * sizeof(std::int32_t)), std::ios::cur);
}

void ReferenceReader::read(std::span<double> logprobs) {
  float lowest = 0;
  get(file_, &lowest, 1);
  get(file_, row_.data(), row_.size());
  if (!file_) throw std::runtime_error(path_ + ": ends too early");
  double sum = 0;
  for (std::size_t i = 0; i < row_.size(); ++i) sum += std::exp(logprobs[i] = row_[i] / kSteps * lowest);
  const double norm = std::log(sum);  // without it the rounding would be a first-order term of the divergence
  for (double& value : logprobs) value -= norm;
}

}  // namespace bench
