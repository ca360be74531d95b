// What tests see of fake_nccl.cpp, a library with NCCL's functions that sums over emulated devices of this process.
#pragma once

#include <atomic>

namespace llminfer::test {

struct FakeNccl {
  std::atomic<int> communicators{0};  ///< that live
  std::atomic<int> sums{0};           ///< that ranks have enqueued
  std::atomic<bool> abort_waits{false};  ///< to abort takes until all ranks do, as between processes
  // Errors to come. -1: none. Those of one sum happen once.
  std::atomic<int> fail_init{-1};  ///< the rank whose communicator cannot be made
  std::atomic<int> fail_sum{-1};   ///< the sum of that number, counted over all ranks from 0, is refused
  std::atomic<int> break_sum{-1};  ///< likewise: it is accepted, then its communicator is broken
};

}  // namespace llminfer::test

extern "C" llminfer::test::FakeNccl* fake_nccl();
