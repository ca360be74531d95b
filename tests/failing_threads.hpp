// Thread starts that fail on purpose, in the whole test program, its shared libraries too.
#pragma once

namespace llminfer::test {

/// Lets so many more threads start and then none; negative: any number. Gives the number of threads that failed to
/// start since the last call.
int allow_threads(int count);

}  // namespace llminfer::test
