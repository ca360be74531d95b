// Communicator: how the ranks that hold a model's layers between them talk to each other. A host may write its own.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <llminfer/config.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0 {

/// One rank of a group of processes or threads. One engine, or one Engine::serve(), at a time uses it, from one thread
/// at a time, but not always the same one. No function may throw.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const noexcept = 0;  ///< of this process or thread, from 0
  virtual int size() const noexcept = 0;
  /// Sends a message to another rank; `data` may be changed once it returns. Messages from one rank to another arrive
  /// in order. Errors: peer_lost, out_of_memory.
  virtual Result<void> send(int to, std::span<const std::byte> data) = 0;
  /// Waits for the next message from `from` and takes it. Errors: peer_lost; corrupt, if it has another size than
  /// `data`.
  virtual Result<void> receive(int from, std::span<std::byte> data) = 0;
  /// Whether receive() from that rank would return at once, with a message or an error. Empty: this Communicator cannot
  /// say, and ranks sum in host memory (EngineOptions::device_sums). One that can say does not wait for the receiver
  /// when it sends a message of up to 1 KiB.
  virtual std::optional<bool> ready([[maybe_unused]] int from) noexcept { return std::nullopt; }
};

/// Ranks 0 to size - 1 as threads of this process. A rank is lost to the others once its Communicator is destroyed.
/// Errors: invalid_argument.
LLMINFER_API Result<std::vector<std::shared_ptr<Communicator>>> make_thread_communicators(int size);

}  // namespace llminfer::inline v0
