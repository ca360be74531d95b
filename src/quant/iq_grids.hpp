// The vector code books of the IQ1, IQ2 and IQ3 formats, as the formats define them. An entry packs one vector, its
// first element in the lowest bits: 8 elements of 2 bits (IQ1, IQ2) or 4 of 4 bits (IQ3); what an element stands for is
// told in traits_iq.hpp.
#pragma once

#include <cstdint>

namespace llminfer::quant {

extern const std::uint16_t kIq1Grid[2048];
extern const std::uint16_t kIq2XxsGrid[256];
extern const std::uint16_t kIq2XsGrid[512];
extern const std::uint16_t kIq2SGrid[1024];
extern const std::uint16_t kIq3XxsGrid[256];
extern const std::uint16_t kIq3SGrid[512];

}  // namespace llminfer::quant
