// What makes loops over registers vanish. Included inside a namespace of kernels.

/// Stands before such a loop. That the compiler unrolls it, and not a template with a function for each turn, makes
/// kernels compile in a third of the time. gcc 12 overlooks it where the loop's condition calls a function.
#ifdef __clang__
#define LLMINFER_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LLMINFER_UNROLL _Pragma("GCC unroll 32")
#endif

template <int I>
struct Index {
  static constexpr int value = I;
};
/// body(Index<0>), …, body(Index<N - 1>), where the body needs constants.
template <int N, int I = 0, class Body>
[[gnu::always_inline]] static inline void unroll(const Body& body) {
  if constexpr (I < N) {
    body(Index<I>{});
    unroll<N, I + 1>(body);
  }
}
