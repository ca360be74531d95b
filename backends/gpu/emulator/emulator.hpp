// Runs kernels on the host: every GPU thread is a fiber, and a random schedule decides who goes on. What holds for all
// schedules holds for a GPU's; what a GPU would hang on is reported. x86-64 only. Tests use it; no library links it.
//
// A schedule is greedy: a warp that was chosen mostly stays chosen, so that some warps are far ahead of others, which
// is what a forgotten barrier cannot bear.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace llminfer::gpu::emulator {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

/// What kernels have written since one that began when all before it had ended. Kernels after that one may begin before
/// those between have ended, and then see none of it.
class Written {
 public:
  virtual ~Written() = default;
  /// Before a kernel that begins when all before it have ended: there is nothing yet.
  virtual void begin() = 0;
  /// Before any other one.
  virtual void update() = 0;
  virtual void hide() = 0;
  /// Brings it back. False: memory was written meanwhile, where it was hidden or, if asked, anywhere.
  virtual bool show(bool anywhere) = 0;
};

/// A machine and its seed, which moves on with every launch. Used by one thread at a time.
struct Machine {
  int warp_width = 32;  ///< 32 or 64
  std::uint64_t seed = 1;
  std::uint64_t launches = 0;
  /// Gets what launch() is to run, later; empty: it runs at once.
  std::function<void(std::function<int()>)> later{};
  /// Null: each kernel begins when all before it have ended. Otherwise what launch() gets must call after_former(), and
  /// what follows another kernel may begin early.
  Written* written = nullptr;
  bool after_kernel = false;     ///< whether the last that later() got was a kernel
  unsigned resident_blocks = 3;  ///< that launch_together() takes
};

enum Error : int {
  ok = 0,
  bad_launch = 1,   ///< more threads or blocks than a GPU allows
  deadlock = 2,     ///< some threads wait for others that have ended or wait elsewhere
  again = 3,        ///< of work that is to run later: it waits for another device, and stays first in its stream
  unordered = 4,    ///< a thread has ended without after_former()
  early_write = 5,  ///< memory was written before after_former()
  misused = 6,      ///< an instruction was used in a way that leaves undefined what it does (asynchronous.hpp)
};

enum class Start { alone, in_turn, early };
/// Runs `body` once per thread of the grid, block after block, each of which has `shared_bytes` of dynamic shared
/// memory. `alone`: after_former() is not needed; `early`: some
/// schedules begin it before what the machine's `written` has.
int run(Machine& machine, Index grid, int threads, const std::function<void()>& body, Start start = Start::alone,
        std::size_t shared_bytes = 0);

/// The same when the machine gets to it. Errors of the body come then; bad_launch at once.
int launch(Machine& machine, Index grid, int threads, std::function<void()> body, std::size_t shared_bytes = 0);

/// The same for blocks that are all on the machine at once: a schedule changes between the threads of all of them, so
/// that they may wait for each other (poll). Their shared memory is block_memory() alone. Begins in turn.
int launch_together(Machine& machine, unsigned blocks, int threads, std::function<void()> body);

/// The running thread's place. Valid inside of `body`.
struct Place {
  Index thread, block, block_size, grid;
};
extern thread_local Place place;

/// __syncthreads()
void sync_block();

/// Comes back when the kernels before this one have ended.
void after_former();

/// Lets others run: the running thread has looked at memory that another is to change, and will look again. Where all
/// threads wait or look, that is a deadlock.
void poll();
/// Memory of the running thread's block, which launch_together() has launched: the same `bytes` for all its threads,
/// filled with 0xff at first, on a multiple of 16.
std::byte* block_memory(std::size_t bytes);

/// Waits until `lanes` consecutive threads (32 or 64) are here; the last of them calls `act` with what each of them
/// brought, lane by lane. This is how shuffles and matrix instructions are emulated.
void collective(void* mine, int lanes, void (*act)(void* const* all));

/// The running thread waits until another, or what runs beside threads, wakes it.
void sleep();
void wake(int thread);

}  // namespace llminfer::gpu::emulator
