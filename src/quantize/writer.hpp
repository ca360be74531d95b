// Writer: turns the values of a weight into the form that the layout gives it, and puts them into the output file.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include <llminfer/quantize.hpp>
#include <llminfer/result.hpp>

#include "core/parallel.hpp"
#include "quantize/layout.hpp"
#include "quantize/output_file.hpp"

namespace llminfer::quantize {

class Writer {
 public:
  /// All outlive the writer.
  Writer(const load::Checkpoint& checkpoint, const QuantizeOptions& options, OutputFile& file, core::Team& team)
      : checkpoint_(checkpoint), options_(options), file_(file), team_(team) {}

  /// The weight as it is in the checkpoint, rounded to nearest, piece by piece.
  Result<void> write_stored(const Job& job);
  /// The same with its least important elements set to zero.
  Result<void> write_pruned(const Job& job);
  /// The weight with these values // (rows, cols). `importance` // (cols) or empty: see encode_row; blocks only.
  Result<void> write_values(const Job& job, std::span<const float> values, std::span<const float> importance = {});
  Result<void> write_affine(const Job& job, const AffineWeight& weight);

 private:
  Result<void> check_values(const Job& job, std::span<const float> values);
  Result<void> write_blocks(const Job& job, std::int64_t first_row, std::span<const float> values,
                            std::span<const float> importance);

  const load::Checkpoint& checkpoint_;
  const QuantizeOptions& options_;
  OutputFile& file_;
  core::Team& team_;
};

/// Rounds all rows of `values` // (rows, cols) to nearest.
Result<AffineWeight> round_all(const AffineScheme& scheme, std::int64_t rows, std::int64_t cols,
                               std::span<const float> values, core::Team& team);

/// Runs body(first, last) for runs of rows that together are [0, rows), on all threads; it must not throw.
Result<void> for_rows(core::Team& team, std::int64_t rows, core::FunctionRef<void(std::int64_t, std::int64_t)> body);

}  // namespace llminfer::quantize
