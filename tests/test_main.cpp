#define CATCH_CONFIG_MAIN
// Wider than any line of the sources: Catch2 indents continued lines of a test's name by what is before its ": ", and
// prints for ever where that leaves no column.
#define CATCH_CONFIG_CONSOLE_WIDTH 120
#include <catch2/catch.hpp>
