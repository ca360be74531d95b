#include "quantize/output_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.hpp"
#include "core/file.hpp"

namespace llminfer::quantize {
namespace {

using core::fail;

constexpr std::uint64_t kMaxJournal = std::uint64_t{64} << 20;

Error system_error(const std::string& path, const char* what) {
  const int reason = errno;
  const ErrorCode code = reason == EACCES || reason == EPERM || reason == EROFS ? ErrorCode::permission_denied
                         : reason == EISDIR || reason == ENOTDIR                ? ErrorCode::not_a_file
                         : reason == ENOENT                                     ? ErrorCode::not_found
                                                                                : ErrorCode::io_error;
  return fail(code, path, ": ", what, " failed: ", std::strerror(reason));
}

Result<void> write_all(int file, const std::string& path, std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return system_error(path, "writing");
    offset += static_cast<std::uint64_t>(count);
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return {};
}

std::uint64_t hash_of(std::uint64_t hash, std::span<const std::byte> bytes) {  // FNV-1a
  for (const std::byte b : bytes) hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3u;
  return hash;
}

}  // namespace

Result<std::string> output_path(const std::string& path) {
  constexpr int kMostLinks = 40;
  std::filesystem::path file = path;
  std::error_code error;
  for (int links = 0; std::filesystem::is_symlink(file, error); ++links) {
    const auto target = std::filesystem::read_symlink(file, error);
    if (error || links == kMostLinks) return fail(ErrorCode::not_a_file, path, ": a link that leads nowhere");
    file = file.parent_path() / target;
  }
  const auto status = std::filesystem::status(file, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    return fail(ErrorCode::not_a_file, path, ": not a regular file");
  }
  return file.string();
}

Result<std::unique_ptr<OutputFile>> OutputFile::open(const std::string& path, std::span<const std::byte> header,
                                                     std::uint64_t size, const std::string& identity) {
  if (core::over_limit(size)) {
    errno = EFBIG;
    return system_error(path, "writing");
  }
  std::unique_ptr<OutputFile> out(new OutputFile(path));
  LLMINFER_TRY(out->lock());
  std::uint64_t hash = hash_of(0xcbf29ce484222325u, header);
  hash = hash_of(hash, std::as_bytes(std::span(identity)));
  const std::string first_line = "llminfer-quantize " + std::to_string(hash) + " " + std::to_string(size) + "\n";
  out->resumed_ = LLMINFER_TRY(out->resume(size, first_line));
  if (!out->resumed_) LLMINFER_TRY(out->start(header, size, first_line));
  return out;
}

OutputFile::~OutputFile() {
  (void)core::guarded([&] { return write_journal(); });  // what is not written is done again
  if (file_ >= 0) ::close(file_);
  if (journal_ >= 0) ::close(journal_);
}

/// Opens PATH.partial, or makes it, for this run alone.
Result<void> OutputFile::lock() {
  const std::string partial = path_ + ".partial";
  for (;;) {
    file_ = ::open(partial.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    if (file_ < 0) return system_error(partial, "creating");
    struct stat opened {
    }, named{};
    if (::fstat(file_, &opened) != 0) return system_error(partial, "opening");
    if (!S_ISREG(opened.st_mode)) return fail(ErrorCode::not_a_file, partial, ": not a regular file");
    if (::flock(file_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {  // other errors: a file system without locks
      return fail(ErrorCode::invalid_state, path_, ": another run is writing it");
    }
    // Another run may have finished it, and so renamed it, before this one had the lock.
    if (::stat(partial.c_str(), &named) == 0 && named.st_ino == opened.st_ino && named.st_dev == opened.st_dev) {
      return {};
    }
    ::close(std::exchange(file_, -1));
  }
}

/// Whether there is something to go on with.
Result<bool> OutputFile::resume(std::uint64_t size, const std::string& first_line) {
  const std::string journal = path_ + ".journal";
  auto text = core::read_text_file(journal, kMaxJournal);
  if (!text || !text->starts_with(first_line)) return false;
  struct stat status {};
  if (::fstat(file_, &status) != 0 || static_cast<std::uint64_t>(status.st_size) != size) return false;
  std::string_view lines = std::string_view(*text).substr(first_line.size());
  for (std::size_t end; (end = lines.find('\n')) != std::string_view::npos; lines.remove_prefix(end + 1)) {
    done_.emplace(lines.substr(0, end));
  }
  journal_ = ::open(journal.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (journal_ < 0) return system_error(journal, "opening");
  // A line that was cut off would run into the next one.
  if (!lines.empty() && ::ftruncate(journal_, static_cast<off_t>(text->size() - lines.size())) != 0) {
    return system_error(journal, "shortening");
  }
  return true;
}

Result<void> OutputFile::start(std::span<const std::byte> header, std::uint64_t size, const std::string& first_line) {
  const std::string journal = path_ + ".journal", partial = path_ + ".partial";
  if (::unlink(journal.c_str()) != 0 && errno != ENOENT) return system_error(journal, "removing");
  if (::ftruncate(file_, 0) != 0 || ::ftruncate(file_, static_cast<off_t>(size)) != 0) {
    return system_error(partial, "growing");
  }
  LLMINFER_TRY(write_all(file_, partial, 0, header));
  journal_ = ::open(journal.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
  if (journal_ < 0) return system_error(journal, "creating");
  return write_all(journal_, journal, 0, std::as_bytes(std::span(first_line)));
}

Result<void> OutputFile::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  return write_all(file_, path_ + ".partial", offset, bytes);
}

Result<void> OutputFile::mark_done(const std::string& part) {
  done_.insert(part);
  unwritten_.append(part).append("\n");
  if (std::chrono::steady_clock::now() - last_written_ < std::chrono::seconds(1)) return {};
  return write_journal();
}

Result<void> OutputFile::write_journal() {
  if (journal_ < 0 || unwritten_.empty()) return {};
  if (::fdatasync(file_) != 0) return system_error(path_ + ".partial", "writing");
  LLMINFER_TRY(
      write_all(journal_, path_ + ".journal", 0, std::as_bytes(std::span(unwritten_))));  // O_APPEND: at the end
  unwritten_.clear();
  last_written_ = std::chrono::steady_clock::now();
  return {};
}

Result<void> OutputFile::finish() {
  const std::string partial = path_ + ".partial", journal = path_ + ".journal";
  if (::fsync(file_) != 0) return system_error(partial, "writing");
  if (std::rename(partial.c_str(), path_.c_str()) != 0) return system_error(path_, "renaming");
  ::close(std::exchange(journal_, -1));
  if (::unlink(journal.c_str()) != 0) return system_error(journal, "removing");
  return {};
}

Result<void> write_file(const std::string& path, std::span<const std::byte> contents) {
  const core::FilePart whole{0, contents};
  return core::write_file(path, std::span(&whole, 1));
}

Result<void> write_file(const std::string& path, std::string_view contents) {
  return write_file(path, std::as_bytes(std::span(contents)));
}

}  // namespace llminfer::quantize
