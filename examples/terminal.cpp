// The terminal of llminfer-chat. POSIX.
#include "terminal.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <iostream>

#include <unistd.h>

namespace terminal {
namespace {

volatile std::sig_atomic_t interrupts = 0;

llminfer::CancelToken& token() {
  static llminfer::CancelToken instance;
  return instance;
}

extern "C" void on_interrupt(int) {
  interrupts = 1;
  token().cancel();  // made already by catch_interrupts(): one lock-free store
}

}  // namespace

const llminfer::CancelToken& interrupt_token() { return token(); }

void catch_interrupts() {
  token();
  struct sigaction action = {};
  action.sa_handler = on_interrupt;  // without SA_RESTART: read() below must return
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
}

bool interrupted() noexcept { return interrupts != 0; }

void clear_interrupt() noexcept {
  interrupts = 0;
  token().reset();
}

Input read_line(std::string_view prompt, std::string& line) {
  static std::string pending;  // bytes that were read beyond the last line
  if (isatty(STDIN_FILENO)) std::cout << prompt << std::flush;
  for (;;) {
    if (const auto end = pending.find('\n'); end != std::string::npos) {
      line = pending.substr(0, end);
      pending.erase(0, end + 1);
      return Input::line;
    }
    char buffer[4096];
    const ssize_t count = interrupted() ? (errno = EINTR, -1) : read(STDIN_FILENO, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) {
      if (!interrupted()) continue;  // another signal: a window that changed its size, say
      pending.clear();
      return Input::interrupted;
    }
    if (count <= 0) {
      line.swap(pending);
      pending.clear();
      return line.empty() ? Input::end : Input::line;
    }
    pending.append(buffer, static_cast<std::size_t>(count));
  }
}

bool shows_progress() { return isatty(STDERR_FILENO) != 0; }

void draw_progress(std::string_view label, float fraction) {
  constexpr int kWidth = 40;
  const float part = std::clamp(fraction, 0.0f, 1.0f);
  const auto filled = static_cast<std::size_t>(part * kWidth);
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  std::fprintf(stderr, "\r%.*s [%s] %3d %%", static_cast<int>(label.size()), label.data(), bar.c_str(),
               static_cast<int>(part * 100.0f));
}

void clear_progress() { std::fputs("\r\033[K", stderr); }

}  // namespace terminal
