// The terminal of llminfer-chat: Ctrl-C, input lines and a progress bar. Knows nothing of models.
#pragma once

#include <string>
#include <string_view>

#include <llminfer/cancel.hpp>

namespace terminal {

/// From now on Ctrl-C cancels interrupt_token() instead of ending the program, and interrupts read_line().
void catch_interrupts();
/// Cancelled by Ctrl-C. The same token at each call.
const llminfer::CancelToken& interrupt_token();
/// Whether Ctrl-C was pressed since the last clear_interrupt().
bool interrupted() noexcept;
/// Forgets an interrupt and makes the token usable again.
void clear_interrupt() noexcept;

enum class Input { line, interrupted, end };
/// Reads a line from standard input, without its newline; `prompt` is shown if a person is typing.
Input read_line(std::string_view prompt, std::string& line);

/// Whether standard error is a terminal, so that a progress bar makes sense.
bool shows_progress();
/// Draws a bar on standard error. Call clear_progress() when done.
void draw_progress(std::string_view label, float fraction);
void clear_progress();

}  // namespace terminal
