// Linear kernels of level "scalar".
#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_scalar {
#include "backends/cpu/kernels/linear_scalar-inl.hpp"
}  // namespace llminfer::cpu::isa_scalar
