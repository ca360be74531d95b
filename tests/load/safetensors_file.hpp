// Writes safetensors files, also broken ones.
#pragma once

#include <cstdint>
#include <string>

namespace llminfer::test {

/// A file of this header text and data.
inline std::string safetensors_file(const std::string& header, const std::string& data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(static_cast<std::uint64_t>(header.size()) >> (8 * i) & 0xff);
  return file + header + data;
}

/// The header's entry of one tensor.
inline std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                         const std::string& begin, const std::string& end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + shape + "],\"data_offsets\":[" + begin + "," +
         end + "]}";
}

}  // namespace llminfer::test
