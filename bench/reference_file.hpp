// The predictions of a run of llminfer-perplexity, in a file: a header, the tokens of the chunks, and for each scored
// token its log-probabilities in 16 bits, from 0 down to the row's lowest in equal steps (a step of 3e-4 where that is
// -20, hence an error of some 1e-8 in a KL divergence). Byte order is the machine's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace bench {

/// Both throw std::runtime_error, which names the file.
class ReferenceWriter {
 public:
  ReferenceWriter(const std::string& path, std::size_t vocab, std::int32_t ctx, std::span<const std::int32_t> tokens);
  void write(std::span<const double> logprobs);
  void finish();

 private:
  std::string path_;
  std::ofstream file_;
  std::vector<std::uint16_t> row_;
};

class ReferenceReader {
 public:
  /// Throws unless the file is of a run with this vocabulary, chunk length and, as far as it goes, these tokens.
  ReferenceReader(const std::string& path, std::size_t vocab, std::int32_t ctx, std::span<const std::int32_t> tokens);
  void read(std::span<double> logprobs);

 private:
  std::string path_;
  std::ifstream file_;
  std::vector<std::uint16_t> row_;
};

}  // namespace bench
