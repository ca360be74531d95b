#include "backends/gpu/emulator/emulator.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "backends/gpu/emulator/asynchronous.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define LLMINFER_FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LLMINFER_FIBER_ASAN 1
#endif
#endif
#ifdef LLMINFER_FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the registers that a call preserves on the stack, keeps the stack pointer in *save, and goes on where `to` was
// kept.
extern "C" void llminfer_emulator_switch(void** save, void* to);
asm(R"(
.text
.hidden llminfer_emulator_switch
.globl llminfer_emulator_switch
.type llminfer_emulator_switch, @function
llminfer_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size llminfer_emulator_switch, .-llminfer_emulator_switch
)");

namespace llminfer::gpu::emulator {
namespace {

constexpr std::size_t kStackBytes = 192 << 10;
constexpr std::size_t kStackPlaces = 61, kStackPlaceBytes = 9 * 64;  ///< where stacks begin
constexpr int kMaxThreads = 1024;
constexpr std::size_t kMaxSharedBytes = 227 << 10;

enum class State : std::uint8_t { ready, polling, waiting, after_former, ended };

struct Fiber {
  void* stack_pointer = nullptr;
  std::byte* stack = nullptr;
  State state = State::ended;
  bool ordered = false;  ///< has called after_former()
#ifdef LLMINFER_FIBER_ASAN
  void* fake_stack = nullptr;
#endif
};

/// 32 or 64 threads that meet in collectives.
struct Meeting {
  int arrived = 0;
  std::array<void*, 64> brought{};
};

/// The stacks of a host thread's fibers, kept for later launches.
class Stacks {
 public:
  ~Stacks() {
    for (std::byte* stack : stacks_) ::munmap(stack, kStackBytes);
  }
  std::byte* at(std::size_t i) {
    while (stacks_.size() <= i) {
      void* memory = ::mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      stacks_.push_back(static_cast<std::byte*>(memory));
    }
    return stacks_[i];
  }

 private:
  std::vector<std::byte*> stacks_;
};

struct alignas(16) Sixteen {
  std::byte bytes[16];
};

struct Block {
  Index index;
  std::vector<Fiber> fibers;
  std::array<Meeting, kMaxThreads / 32> meetings{};
  int at_barrier = 0;
  bool early = false;             ///< what former kernels wrote is hidden
  std::vector<Sixteen> memory{};  ///< block_memory()
};

/// One round of a warp: each thread that can runs until it waits, from a random lane on. A thread that waits hands over
/// to the next one itself.
struct Round {
  int first = 0, lanes = 0;  ///< the warp's threads
  int lane = 0, left = 0;    ///< the next one, and how many have not had their turn
  bool polls = false;        ///< the running thread looks again
  bool ran = false;          ///< a thread did more than to look again in vain
  int ended = 0;
};

/// What the blocks of a launch share.
struct Running {
  const std::function<void()>* body = nullptr;
  int warp_width = 32;
  Block* block = nullptr;  ///< whose thread runs
  int thread = 0;          ///< that runs
  Round round{};
  void* scheduler = nullptr;  ///< its stack pointer
#ifdef LLMINFER_FIBER_ASAN
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  std::size_t size = 0;
#endif
};

thread_local Running now;
thread_local Block lone_block;  ///< of blocks that run one after the other
thread_local Stacks stacks;

Fiber& running() { return now.block->fibers[static_cast<std::size_t>(now.thread)]; }

/// Makes the round's next thread that can run the running one. Null: there is none.
Fiber* next_of_round() {
  Round& round = now.round;
  while (round.left > 0) {
    const int thread = round.first + round.lane;
    round.lane = round.lane + 1 < round.lanes ? round.lane + 1 : 0;
    --round.left;
    Fiber& fiber = now.block->fibers[static_cast<std::size_t>(thread)];
    round.polls = fiber.state == State::polling;
    if (!round.polls && fiber.state != State::ready) continue;
    fiber.state = State::ready;
    now.thread = thread;
    place.thread = {static_cast<unsigned>(thread), 0, 0};
    return &fiber;
  }
  return nullptr;
}

/// Ends the running thread's turn; comes back in its next one.
void hand_over(State state) {
  Fiber& fiber = running();
  fiber.state = state;
  now.round.ran |= !now.round.polls || state != State::polling;
  now.round.ended += state == State::ended;
  Fiber* const next = next_of_round();
#ifdef LLMINFER_FIBER_ASAN
  __sanitizer_start_switch_fiber(state == State::ended ? nullptr : &fiber.fake_stack, next ? next->stack : now.bottom,
                                 next ? kStackBytes : now.size);
#endif
  llminfer_emulator_switch(&fiber.stack_pointer, next ? next->stack_pointer : now.scheduler);
#ifdef LLMINFER_FIBER_ASAN
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

void enter() {
#ifdef LLMINFER_FIBER_ASAN
  // The first one of all comes from the scheduler, later ones from others as well.
  const bool first = !now.bottom;
  __sanitizer_finish_switch_fiber(nullptr, first ? &now.bottom : nullptr, first ? &now.size : nullptr);
#endif
  (*now.body)();
  hand_over(State::ended);
}

/// Leaves `unused` bytes at the stack's top alone.
void prepare(Fiber& fiber, std::byte* stack, std::size_t unused) {
  fiber.stack = stack;
  fiber.state = State::ready;
  fiber.ordered = false;
  // The address that the first switch returns to lies on a multiple of 16, as after a call.
  auto* top = reinterpret_cast<void**>(stack + kStackBytes - unused) - 4;
  *top = reinterpret_cast<void*>(&enter);
  top[1] = nullptr;
  for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
  fiber.stack_pointer = top - 6;
}

/// Before others use the stacks of a block some of whose fibers have not ended.
void abandon([[maybe_unused]] const Block& block) {
#ifdef LLMINFER_FIBER_ASAN
  for (const Fiber& fiber : block.fibers) __asan_unpoison_memory_region(fiber.stack, kStackBytes);
#endif
}

struct Random {
  std::uint64_t state;
  std::uint32_t operator()() noexcept {  // splitmix64
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<std::uint32_t>((z ^ (z >> 31)) >> 32);
  }
};

void prepare(Block& block, Index index, int threads, std::size_t first_stack) {
  block.index = index;
  block.fibers.resize(static_cast<std::size_t>(threads));
  // What fibers use of their stacks would lie in the same few sets of the processor's caches if all began at the top.
  for (std::size_t i = 0; i < block.fibers.size(); ++i) {
    prepare(block.fibers[i], stacks.at(first_stack + i), (first_stack + i) % kStackPlaces * kStackPlaceBytes);
  }
  for (Meeting& meeting : block.meetings) meeting.arrived = 0;
  block.at_barrier = 0;
  now.block = &block;
}

Round run_warp(Block& block, int warp, Random& random) {
  Round& round = now.round;
  round = {};
  round.first = warp * now.warp_width;
  round.lanes = round.left = std::min(now.warp_width, static_cast<int>(block.fibers.size()) - round.first);
  round.lane = static_cast<int>(random() % static_cast<unsigned>(round.lanes));
  now.block = &block;
  place.block = block.index;
  if (Fiber* const fiber = next_of_round()) {
#ifdef LLMINFER_FIBER_ASAN
    __sanitizer_start_switch_fiber(&now.fake_stack, fiber->stack, kStackBytes);
#endif
    llminfer_emulator_switch(&now.scheduler, fiber->stack_pointer);
#ifdef LLMINFER_FIBER_ASAN
    __sanitizer_finish_switch_fiber(now.fake_stack, nullptr, nullptr);
#endif
  }
  return round;
}

int warps_of(int threads) { return (threads + now.warp_width - 1) / now.warp_width; }

/// What was hidden of former kernels' is there; all that wait for it go on.
bool end_early_part(Block& block, Written& written, bool first_block) {
  block.early = false;
  for (Fiber& fiber : block.fibers) {
    if (fiber.state == State::after_former) fiber.state = State::ready;
  }
  return written.show(first_block);
}

/// Runs the fibers of a block until all have ended, or none can go on. `early`: those before after_former() go first,
/// and see nothing that former kernels wrote.
int run_block(Block& block, Random& random, Written* early, bool first_block) {
  const int threads = static_cast<int>(block.fibers.size()), warps = warps_of(threads);
  block.early = early != nullptr;
  if (early) early->hide();
  int ended = 0, idle_warps = 0, warp = static_cast<int>(random() % static_cast<unsigned>(warps));
  while (ended < threads) {
    if (maybe_run_asynchronous()) idle_warps = 0;  // it may have woken any of them
    if (asynchronous_misused()) break;
    const Round round = run_warp(block, warp, random);
    ended += round.ended;
    if (round.ran) {
      idle_warps = 0;
      if (random() % 8 != 0) continue;  // greedy
      warp = static_cast<int>(random() % static_cast<unsigned>(warps));
    } else if (++idle_warps <= warps) {
      warp = (warp + 1) % warps;
    } else if (run_asynchronous()) {
      idle_warps = 0;
    } else if (block.early) {
      if (!end_early_part(block, *early, first_block)) return early_write;
      idle_warps = 0;
    } else {
      return deadlock;
    }
  }
  const bool unwritten = !block.early || end_early_part(block, *early, first_block);
  if (asynchronous_misused() || asynchronous_pending()) return misused;
  return unwritten ? ok : early_write;
}

/// The same for all blocks of a launch at once.
int run_together(Machine& machine, unsigned count, int threads, const std::function<void()>& body) {
  Random random{machine.seed * 0x2545f4914f6cdd1du + ++machine.launches};
  now.body = &body;
  now.warp_width = machine.warp_width;
  place.grid = {count, 1, 1};
  place.block_size = {static_cast<unsigned>(threads), 1, 1};
  if (machine.written) machine.written->begin();
  std::vector<Block> blocks(count);
  for (unsigned i = 0; i < count; ++i)
    prepare(blocks[i], {i, 0, 0}, threads, std::size_t{i} * static_cast<std::size_t>(threads));
  begin_asynchronous(random.state, 0, threads);
  const int warps = warps_of(threads), all = warps * static_cast<int>(count);
  int left = threads * static_cast<int>(count), idle_warps = 0, warp = 0;
  const auto block_of = [&](int w) -> Block& { return blocks[static_cast<std::size_t>(w / warps)]; };
  while (left > 0) {
    const Round round = run_warp(block_of(warp), warp % warps, random);
    left -= round.ended;
    if (round.ran) {
      idle_warps = 0;
      // Greedy by warps, and by blocks: some are far ahead of others.
      const bool other_block = random() % 64 == 0;
      if (!other_block && random() % 8 != 0) continue;
      const int from = other_block ? 0 : warp / warps * warps, among = other_block ? all : warps;
      warp = from + static_cast<int>(random() % static_cast<unsigned>(among));
    } else if (++idle_warps <= all) {
      warp = (warp + 1) % all;
    } else {
      for (const Block& block : blocks) abandon(block);
      return deadlock;
    }
  }
  if (asynchronous_misused() || asynchronous_pending()) return misused;
  const auto ordered = [](const Fiber& fiber) { return fiber.ordered; };
  const auto all_ordered = [&](const Block& block) {
    return std::all_of(block.fibers.begin(), block.fibers.end(), ordered);
  };
  return !machine.written || std::all_of(blocks.begin(), blocks.end(), all_ordered) ? ok : unordered;
}

bool fits(Index grid, int threads, std::size_t shared_bytes) {
  return threads >= 1 && threads <= kMaxThreads && grid.y <= 65535 && grid.z <= 65535 && grid.x <= 0x7fffffffu &&
         shared_bytes <= kMaxSharedBytes;
}

}  // namespace

thread_local Place place;

int launch(Machine& machine, Index grid, int threads, std::function<void()> body, std::size_t shared_bytes) {
  if (!machine.later || !fits(grid, threads, shared_bytes)) {
    return run(machine, grid, threads, body, Start::alone, shared_bytes);
  }
  const Start start = !machine.written ? Start::alone : machine.after_kernel ? Start::early : Start::in_turn;
  machine.later([&machine, grid, threads, body = std::move(body), start, shared_bytes] {
    return run(machine, grid, threads, body, start, shared_bytes);
  });
  machine.after_kernel = true;
  return ok;
}

int run(Machine& machine, Index grid, int threads, const std::function<void()>& body, Start start,
        std::size_t shared_bytes) {
  if (!fits(grid, threads, shared_bytes)) return bad_launch;
  Random random{machine.seed * 0x2545f4914f6cdd1du + ++machine.launches};
  now.body = &body;
  now.warp_width = machine.warp_width;
  place.grid = grid;
  place.block_size = {static_cast<unsigned>(threads), 1, 1};
  if (start == Start::in_turn) machine.written->begin();
  // Kernels that may begin early need not; and then nothing but barriers keeps their threads together.
  Written* const early = start == Start::early && random() % 2 == 0 ? machine.written : nullptr;
  if (early) early->update();
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z, first = random() % blocks;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t index = (first + i) % blocks;
    const Index at = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                      static_cast<unsigned>(index / grid.x / grid.y)};
    Block& block = lone_block;
    prepare(block, at, threads, 0);
    begin_asynchronous(random.state, shared_bytes, threads);
    if (const int error = run_block(block, random, early, i == 0)) {
      abandon(block);
      return error;
    }
    const auto ordered = [](const Fiber& fiber) { return fiber.ordered; };
    if (start != Start::alone && !std::all_of(block.fibers.begin(), block.fibers.end(), ordered)) return unordered;
  }
  return ok;
}

int launch_together(Machine& machine, unsigned blocks, int threads, std::function<void()> body) {
  if (blocks < 1 || blocks > machine.resident_blocks || !fits({blocks}, threads, 0)) return bad_launch;
  auto work = [&machine, blocks, threads, body = std::move(body)] {
    return run_together(machine, blocks, threads, body);
  };
  if (!machine.later) return work();
  machine.later(std::move(work));
  machine.after_kernel = false;
  return ok;
}

void sync_block() {
  Block& block = *now.block;
  if (++block.at_barrier < static_cast<int>(block.fibers.size())) return hand_over(State::waiting);
  block.at_barrier = 0;
  for (Fiber& fiber : block.fibers) fiber.state = State::ready;
}

void after_former() {
  running().ordered = true;
  if (now.block->early) hand_over(State::after_former);
}

void poll() { hand_over(State::polling); }

std::byte* block_memory(std::size_t bytes) {
  std::vector<Sixteen>& memory = now.block->memory;
  if (memory.empty()) {
    memory.resize((bytes + sizeof(Sixteen) - 1) / sizeof(Sixteen));
    std::memset(memory.data(), 0xff, memory.size() * sizeof(Sixteen));
  }
  return memory.data()->bytes;
}

void collective(void* mine, int lanes, void (*act)(void* const* all)) {
  Block& block = *now.block;
  const int thread = now.thread, first = thread & -lanes;
  Meeting& meeting = block.meetings[static_cast<std::size_t>(first / 32)];
  meeting.brought[static_cast<std::size_t>(thread - first)] = mine;
  if (++meeting.arrived < lanes) return hand_over(State::waiting);
  meeting.arrived = 0;
  act(meeting.brought.data());
  for (int i = 0; i < lanes; ++i) block.fibers[static_cast<std::size_t>(first + i)].state = State::ready;
}

void sleep() { hand_over(State::waiting); }
void wake(int thread) { now.block->fibers[static_cast<std::size_t>(thread)].state = State::ready; }

}  // namespace llminfer::gpu::emulator
