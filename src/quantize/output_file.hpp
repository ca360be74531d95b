// OutputFile: a file of known layout that is written in any order, and that a later run can go on with. Knows no
// models.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>

#include <llminfer/result.hpp>

namespace llminfer::quantize {

/// The file that is written where the host says `path`: what a link leads to. Errors: not_a_file (there is something
/// that is no regular file).
Result<std::string> output_path(const std::string& path);

/// One thread at a time, but for write(). One at a time has the file, in any process.
class OutputFile {
 public:
  /// Opens PATH.partial with a PATH.journal of what is done. Both begin anew unless they are there from a run with the
  /// same header, size and `identity` (any line that tells what the contents depend on). Errors: invalid_state (another
  /// run has it), io_error (the size, too), permission_denied, not_found, not_a_file.
  static Result<std::unique_ptr<OutputFile>> open(const std::string& path, std::span<const std::byte> header,
                                                  std::uint64_t size, const std::string& identity);
  ~OutputFile();

  bool is_done(const std::string& part) const { return done_.contains(part); }
  bool resumed() const { return resumed_; }
  /// Thread-safe. Errors: io_error, with the system's reason.
  Result<void> write(std::uint64_t offset, std::span<const std::byte> bytes);
  /// What was written for `part` is complete. The journal says so once the bytes are on the disk, within a second or
  /// when the object dies. Names have no line breaks.
  Result<void> mark_done(const std::string& part);
  /// Has the journal say now what is done.
  Result<void> write_journal();
  /// Renames the file to PATH and removes the journal.
  Result<void> finish();

 private:
  OutputFile(std::string path) : path_(std::move(path)) {}
  Result<void> lock();
  Result<bool> resume(std::uint64_t size, const std::string& first_line);
  Result<void> start(std::span<const std::byte> header, std::uint64_t size, const std::string& first_line);

  const std::string path_;
  int file_ = -1, journal_ = -1;
  bool resumed_ = false;
  std::unordered_set<std::string> done_;
  std::string unwritten_;  ///< lines of the journal
  std::chrono::steady_clock::time_point last_written_ = std::chrono::steady_clock::now();
};

/// Replaces a file by one with these contents, whole or not at all.
Result<void> write_file(const std::string& path, std::span<const std::byte> contents);
Result<void> write_file(const std::string& path, std::string_view contents);

}  // namespace llminfer::quantize
