// Byte sources: what release() gives back, and that it changes nothing. Memory that is a file.
#include "core/file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

#include "tests/load/temp_dir.hpp"

using llminfer::ErrorCode;
using llminfer::core::file_memory;
using llminfer::core::make_storage_file;
using llminfer::core::open_file;
using llminfer::core::write_file;

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

TEST_CASE("what is no file is refused, and a pipe that nobody writes to does not keep the host waiting") {
  const llminfer::test::TempDir folder;
  const std::string pipe = folder.path() + "/pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  for (const std::string& path : {pipe, folder.path(), std::string("/dev/null")}) {
    for (const bool use_mmap : {true, false}) CHECK(open_file(path, use_mmap).error().code == ErrorCode::not_a_file);
  }
}

TEST_CASE("Memory in a file is zeros, keeps what is written, and leaves no name") {
  const llminfer::test::TempDir folder;
  constexpr std::size_t kBytes = (std::size_t{1} << 20) + 5;
  const auto one = file_memory(folder.path(), kBytes).value(), other = file_memory(folder.path(), kBytes).value();
  CHECK(std::filesystem::is_empty(folder.path()));
  CHECK(std::all_of(one.get(), one.get() + kBytes, [](std::byte b) { return b == std::byte{0}; }));
  std::memset(one.get(), 7, kBytes);
  CHECK(std::all_of(one.get(), one.get() + kBytes, [](std::byte b) { return b == std::byte{7}; }));
  CHECK(other.get()[kBytes - 1] == std::byte{0});
}

TEST_CASE("A file for weights gives what was written, and leaves no name") {
  const llminfer::test::TempDir folder;
  constexpr std::int64_t kBytes = (std::int64_t{1} << 20) + 5;
  const auto file = make_storage_file(folder.path(), kBytes).value();
  CHECK(std::filesystem::is_empty(folder.path()));
  std::vector<std::byte> out(kBytes), in(kBytes);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(i * 2654435761u >> 24);
  file->write(5000, std::span(out).subspan(5000)).value();
  file->write(0, std::span(out).first(5000)).value();
  for (int turn = 0; turn < 2; ++turn) {
    std::fill(in.begin(), in.end(), std::byte{0});
    file->read(77, std::span(in).subspan(77, 600000)).value();
    CHECK(std::equal(in.begin() + 77, in.begin() + 600077, out.begin() + 77));
    CHECK(in[76] == std::byte{0});
    CHECK(in[600077] == std::byte{0});
    CHECK(file->flush());
  }
  const auto beyond = file->read(kBytes - 1, std::span(in).first(2));
  REQUIRE_FALSE(beyond);
  CHECK(beyond.error().code == ErrorCode::truncated);
}

TEST_CASE("Files have their room on the disk before they are written to") {
  const std::string disk = "/dev/shm";  // where nobody else takes or gives much meanwhile
  const auto free_bytes = [&] {
    struct statvfs info {};
    return ::statvfs(disk.c_str(), &info) == 0 ? static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize)
                                               : 0;
  };
  constexpr std::size_t kBytes = std::size_t{16} << 20;
  const double before = free_bytes();
  if (before < 2.0 * kBytes || ::access(disk.c_str(), W_OK) != 0) return;
  {
    const auto memory = file_memory(disk, kBytes).value();
    CHECK(free_bytes() < before - 0.5 * kBytes);
  }
  CHECK(free_bytes() > before - 0.5 * kBytes);
  {
    const auto file = make_storage_file(disk, kBytes).value();
    CHECK(free_bytes() < before - 0.5 * kBytes);
  }
  CHECK(free_bytes() > before - 0.5 * kBytes);
}

TEST_CASE("Memory in a file that cannot be, and files for weights") {
  const llminfer::test::TempDir folder;
  const auto code = [](const std::string& path, std::uint64_t bytes) {
    const auto memory = file_memory(path, bytes);
    REQUIRE_FALSE(memory);
    CHECK_THAT(memory.error().message, Catch::Contains(path));
    CHECK(make_storage_file(path, bytes).error().message == memory.error().message);
    return memory.error().code;
  };
  CHECK(code(folder / "none", 100) == ErrorCode::not_found);
  folder.write("file", "");
  CHECK(code(folder / "file", 100) == ErrorCode::not_found);
  CHECK(code(folder.path(), std::uint64_t{1} << 60) == ErrorCode::io_error);  // no disk has that
  struct rlimit before {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  struct rlimit less = before;
  less.rlim_cur = 4096;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &less) == 0);
  const auto at_limit = file_memory(folder.path(), 4096);
  const auto over = file_memory(folder.path(), 4097);
  ::setrlimit(RLIMIT_FSIZE, &before);
  CHECK(at_limit);
  REQUIRE_FALSE(over);
  CHECK(over.error().code == ErrorCode::io_error);
  std::filesystem::remove(folder / "file");
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("what a process that was killed has left of a file is removed by the next that writes it") {
  const llminfer::test::TempDir folder;
  const std::string path = folder.path() + "/file";
  const auto left = [&](const char* name, int minutes) {
    folder.write(name, "x");
    const auto then = std::filesystem::file_time_type::clock::now() - std::chrono::minutes(minutes);
    std::filesystem::last_write_time(folder / name, then);
    return folder / name;
  };
  const std::string stale = left("file.123-0.partial", 11), fresh = left("file.123-1.partial", 5);
  const std::string other = left("files.123-0.partial", 11), named = left("file.mine.partial", 11);
  const std::string held = left("file.123-2.partial", 11);
  const int fd = ::open(held.c_str(), O_RDONLY);
  REQUIRE(::flock(fd, LOCK_EX) == 0);
  const std::byte content[1] = {};
  const llminfer::core::FilePart part{0, content};
  REQUIRE(write_file(path, {&part, 1}));
  CHECK_FALSE(std::filesystem::exists(stale));
  for (const std::string& kept : {fresh, other, named, held}) CHECK(std::filesystem::exists(kept));
  ::close(fd);
}

TEST_CASE("A file that many write at once is whole whenever it is there") {
  const llminfer::test::TempDir folder;
  const std::string path = folder.path() + "/file";
  const std::vector<std::byte> content(std::size_t{1} << 20, std::byte{0x5a});
  const llminfer::core::FilePart parts[] = {{0, std::span(content).first(100)}, {4096, content}};
  std::atomic<bool> done{false};
  std::atomic<int> failed{0}, broken{0}, seen{0};
  std::thread reader([&] {
    while (!done) {
      const auto source = open_file(path, false);
      if (!source) continue;
      ++seen;
      const auto bytes = (*source)->read(4096, content.size());
      if (!bytes || std::memcmp(bytes->data.data(), content.data(), content.size()) != 0) ++broken;
    }
  });
  std::vector<std::thread> writers;
  for (int i = 0; i < 4; ++i) {
    writers.emplace_back([&] {
      for (int n = 0; n < 10; ++n) failed += !write_file(path, parts);
    });
  }
  for (std::thread& writer : writers) writer.join();
  done = true;
  reader.join();
  CHECK(failed == 0);
  CHECK(broken == 0);
  CHECK(seen > 0);
  const auto names = std::filesystem::directory_iterator(folder.path());
  CHECK(std::distance(begin(names), end(names)) == 1);  // nothing that is partial is left
}

TEST_CASE("A file that cannot be written leaves what was there") {
  const llminfer::test::TempDir folder;
  const std::string path = folder.path() + "/file";
  const std::vector<std::byte> content(100000);
  const llminfer::core::FilePart few{0, std::span(content).first(10)}, many{0, content};
  REQUIRE(write_file(path, {&few, 1}));
  // A process that is allowed files of 50000 bytes would be ended by writing more.
  struct rlimit before {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  struct rlimit less = before;
  less.rlim_cur = 50000;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &less) == 0);
  const auto result = write_file(path, {&many, 1});
  ::setrlimit(RLIMIT_FSIZE, &before);
  REQUIRE_FALSE(result);
  CHECK(result.error().code == ErrorCode::io_error);
  CHECK(result.error().message.find(path) != std::string::npos);
  CHECK(std::filesystem::file_size(path) == 10);
  const auto names = std::filesystem::directory_iterator(folder.path());
  CHECK(std::distance(begin(names), end(names)) == 1);

  CHECK(write_file(folder.path() + "/none/file", {&few, 1}).error().code == ErrorCode::not_found);
  CHECK(write_file(path + "/file", {&few, 1}).error().code == ErrorCode::not_found);
}
