// Byte sources: what release() gives back, and that it changes nothing.
#include "core/file.hpp"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

using llminfer::core::open_file;

namespace {

/// Bytes of mapped files in memory.
std::int64_t mapped_bytes() {
  std::int64_t total = 0, resident = 0, shared = 0;
  std::ifstream("/proc/self/statm") >> total >> resident >> shared;
  return shared * ::sysconf(_SC_PAGESIZE);
}

}  // namespace

TEST_CASE("release gives back a mapping's pages, whose bytes come back when they are read") {
  constexpr std::size_t kSize = (std::size_t{8} << 20) + 123;
  std::string path = "/tmp/llminfer-file-XXXXXX";
  const int fd = ::mkstemp(path.data());
  REQUIRE(fd >= 0);
  ::close(fd);
  std::vector<char> content(kSize);
  for (std::size_t i = 0; i < kSize; ++i) content[i] = static_cast<char>(i * 2654435761u >> 24);
  std::ofstream(path, std::ios::binary).write(content.data(), static_cast<std::streamsize>(kSize));
  for (const bool use_mmap : {true, false}) {
    const auto source = open_file(path, use_mmap).value();
    const auto bytes = source->read(0, kSize).value();
    CHECK(std::memcmp(bytes.data.data(), content.data(), kSize) == 0);
    const std::int64_t before = mapped_bytes();
    source->release(1000, kSize - 2000);
    if (use_mmap) CHECK(mapped_bytes() < before - (std::int64_t{7} << 20));
    source->release(kSize - 1, 1);  // less than a page: nothing to do
    CHECK(std::memcmp(bytes.data.data(), content.data(), kSize) == 0);
  }
  ::unlink(path.c_str());
}
