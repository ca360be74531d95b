// What scripts/check-symbols must complain about.
#include <cstdio>

inline void shared_function(const char* text) { std::puts(text); }

void use(const char* text) { shared_function(text); }
