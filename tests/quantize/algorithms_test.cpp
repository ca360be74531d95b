// The numerics: products, the run of a Program, GPTQ, pruning and the encoders of blocks, against plain definitions.
#include <Eigen/Dense>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <numeric>
#include <random>
#include <vector>

#include "quant/format.hpp"
#include "quantize/blocks.hpp"
#include "quantize/gemm.hpp"
#include "quantize/gptq.hpp"
#include "quantize/prune.hpp"
#include "quantize/scales.hpp"
#include "quantize/writer.hpp"
#include "tests/arch/interpreter.hpp"
#include "tests/quantize/models.hpp"

namespace {

using namespace llminfer;
using namespace llminfer::quantize;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

std::vector<float> noise(std::size_t count, unsigned seed, float deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

Matrix to_double(const std::vector<float>& values, Eigen::Index rows, Eigen::Index cols) {
  return Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(values.data(), rows,
                                                                                                 cols)
      .cast<double>();
}

/// Inputs of which some go together and some are large.
std::vector<float> inputs(std::int64_t tokens, std::int64_t width) {
  std::vector<float> x = noise(static_cast<std::size_t>(tokens * width), 7);
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* row = x.data() + t * width;
    for (std::int64_t k = 1; k < width; ++k) row[k] = 0.7f * row[k - 1] + 0.5f * row[k];
    for (std::int64_t k = 0; k < width; k += 9) row[k] *= 6;
  }
  return x;
}

double output_error(const AffineWeight& rounded, const std::vector<float>& weights, const std::vector<float>& x) {
  const Eigen::Index rows = rounded.rows, cols = rounded.cols;
  std::vector<float> values(weights.size());
  for (Eigen::Index r = 0; r < rows; ++r) rounded.unpack_row(r, values.data() + r * cols);
  const Matrix difference = to_double(values, rows, cols) - to_double(weights, rows, cols);
  return (difference * to_double(x, static_cast<Eigen::Index>(x.size()) / cols, cols).transpose()).squaredNorm();
}

}  // namespace

TEST_CASE("products of matrices of any shape") {
  const auto team = core::Team::make(2, {}).value();
  for (const auto& [m, k, n] :
       {std::array<std::int64_t, 3>{1, 1, 1}, {5, 7, 3}, {48, 256, 32}, {97, 300, 65}, {130, 513, 70}}) {
    CAPTURE(m, k, n);
    const auto a = noise(static_cast<std::size_t>(m * k), 1), b = noise(static_cast<std::size_t>(n * k), 2);
    std::vector<float> c(static_cast<std::size_t>(m * n), 3.0f);
    const Matrix wanted = to_double(a, m, k) * to_double(b, n, k).transpose();
    multiply(*team, matrix(a.data(), m, k), matrix(b.data(), n, k).transposed(), c.data(), n).value();
    CHECK((to_double(c, m, n) - wanted).norm() < 1e-5 * wanted.norm());
    multiply_here(matrix(a.data(), m, k), matrix(b.data(), n, k).transposed(), c.data(), n, true, -1);
    CHECK(to_double(c, m, n).norm() < 1e-5 * wanted.norm());
  }
  const auto x = noise(5000 * 70, 3);
  const auto sums = gram(*team, x, 70).value();
  const Matrix wanted = to_double(x, 5000, 70).transpose() * to_double(x, 5000, 70);
  CHECK((to_double(sums, 70, 70) - wanted).norm() < 1e-5 * wanted.norm());
}

TEST_CASE("a run in floats gives what the interpreter gives in doubles") {
  for (const char* name : {"tiny-bf16", "llama-biases", "mistral-window", "qwen2-window", "yarn-rope", "mixtral",
                           "qwen2-moe", "qwen3-moe", "olmoe", "gpt-oss"}) {
    CAPTURE(name);
    test::LoadedModel model(test::kModels + name);
    std::vector<std::vector<Token>> pieces;
    for (int p = 0; p < 2; ++p) {
      pieces.emplace_back();
      for (int i = 0; i < 24; ++i)
        pieces.back().push_back((i * 37 + p * 11 + 5) % static_cast<int>(model.program.vocab_size));
    }
    const auto team = core::Team::make(2, {}).value();
    LayerRun run(model.program, model.checkpoint, pieces, *team);
    const OpRange all{0, model.program.ops.size()};
    FloatWeights weights = run.load_weights(all).value();
    run.run(all, weights, {}).value();
    const auto& found = run.values()[static_cast<std::size_t>(model.program.logits)];
    test::Interpreter interpreter(model.program, model.checkpoint);
    std::vector<float> wanted;
    for (const auto& piece : pieces) {
      for (const double logit : interpreter.run(piece)) wanted.push_back(static_cast<float>(logit));
    }
    REQUIRE(found.size() == wanted.size());
    CHECK(test::relative_error(found, wanted) < 1e-9);
    const LayerRanges ranges = split_layers(model.program);
    CHECK(static_cast<std::int64_t>(ranges.layers.size()) == model.checkpoint.config.layers);
    CHECK(ranges.before.end == ranges.layers.front().begin);
  }
}

TEST_CASE("GPTQ is the column by column compensation of the paper") {
  const auto team = core::Team::make(2, {}).value();
  const std::int64_t rows = 24, cols = 192, tokens = 600;
  const auto weights = noise(static_cast<std::size_t>(rows * cols), 5, 0.05f);
  const auto x = inputs(tokens, cols);
  const auto moments = gram(*team, x, cols).value();
  const Matrix h0 = to_double(moments, cols, cols);
  for (const bool ordered : {false, true}) {
    for (const bool symmetric : {true, false}) {
      CAPTURE(ordered, symmetric);
      AffineScheme scheme;
      scheme.group_size = 64;
      scheme.symmetric = symmetric;
      auto scratch = weights;
      const auto found = gptq(*team, scheme, rows, cols, scratch, moments, {0.01, ordered}).value();
      const double error = output_error(found, weights, x);
      const double plain = output_error(round_all(scheme, rows, cols, weights, *team).value(), weights, x);
      CHECK(error < 0.6 * plain);

      // Optimal brain surgeon: after column j, the rest moves by -(w_j - q_j) / [H_F^-1]_jj [H_F^-1]_j,rest, where F
      // are the columns from j on.
      std::vector<Eigen::Index> order(static_cast<std::size_t>(cols));
      std::iota(order.begin(), order.end(), 0);
      if (ordered) std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return h0(a, a) > h0(b, b); });
      Matrix h(cols, cols), w(rows, cols);
      for (Eigen::Index i = 0; i < cols; ++i) {
        for (Eigen::Index j = 0; j < cols; ++j)
          h(i, j) = h0(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(j)]);
        w.col(i) = to_double(weights, rows, cols).col(order[static_cast<std::size_t>(i)]);
      }
      h.diagonal().array() += 0.01 * h0.diagonal().mean();
      Matrix inverse = h.inverse();
      int different = 0;
      for (Eigen::Index j = 0; j < cols; ++j) {
        const auto column = static_cast<std::size_t>(order[static_cast<std::size_t>(j)]);
        for (Eigen::Index r = 0; r < rows; ++r) {
          const AffineGroup& group = found.group(r, j / 64);
          const std::uint8_t code = found.codes[static_cast<std::size_t>(r * cols) + column];
          different += code != group.code(static_cast<float>(w(r, j)), 15);
          const double off = (w(r, j) - static_cast<double>(group.value(code))) / inverse(0, 0);
          for (Eigen::Index k = j + 1; k < cols; ++k) w(r, k) -= off * inverse(0, k - j);
        }
        // The inverse without its first row and column (the paper's equation 3).
        const Eigen::Index left = cols - j - 1;
        const Matrix rest = inverse.bottomRightCorner(left, left) -
                            inverse.bottomLeftCorner(left, 1) * inverse.topRightCorner(1, left) / inverse(0, 0);
        inverse = rest;
      }
      CHECK(different < rows * cols / 500);  // ties between float and double
    }
  }
}

TEST_CASE("AWQ and SmoothQuant: scales leave the product alone and help to round it") {
  const auto team = core::Team::make(2, {}).value();
  test::LoadedModel model(test::kModels + "tiny-bf16");
  QuantizeOptions options;
  options.calibration = test::kText;
  options.calibration_length = 64;
  LayerRun run(model.program, model.checkpoint, calibration_pieces(model.checkpoint, options).value(), *team);
  const LayerRanges ranges = split_layers(model.program);
  FloatWeights none;
  run.run(ranges.before, none, {}).value();
  auto weights = run.load_weights(ranges.layers[0]).value();
  auto untouched = weights;
  int folds = 0;
  LayerRun::Hooks hooks;
  hooks.on_group = [&](const LinearGroup& group, std::span<float> input, FloatWeights&) -> Result<void> {
    const auto fold = find_fold(model.program, ranges.layers[0], group);
    const bool attention = group.linears.size() == 1 && static_cast<std::int64_t>(input.size()) / run.tokens() == 128;
    CHECK(fold.has_value() != attention);  // two KV heads cannot take up the scales of four
    if (!fold) return {};
    ++folds;
    const std::int64_t width = static_cast<std::int64_t>(input.size()) / run.tokens();
    AffineScheme scheme;
    scheme.group_size = 64;
    scheme.symmetric = false;
    const auto moments = gram(*team, input, width).value();
    const auto magnitude = mean_magnitude(input, width);
    const auto error = [&] {
      double sum = 0;
      const std::vector<float> x(input.begin(), input.end());
      for (const auto* linear : group.linears) {
        const auto& w = weights.at(static_cast<std::int32_t>(linear->weight));
        sum +=
            output_error(round_all(scheme, static_cast<std::int64_t>(w.size()) / width, width, w, *team).value(), w, x);
      }
      return sum;
    };
    const double before = error();
    AwqSearch search(*team, magnitude, moments, scheme);
    const auto values_of = [&](const op::Linear* linear) -> const std::vector<float>& {
      return weights.at(static_cast<std::int32_t>(linear->weight));
    };
    for (const auto* linear : group.linears) search.measure(values_of(linear));
    search.choose();
    for (const auto* linear : group.linears) search.try_on(values_of(linear)).value();
    const auto scales = search.best();
    apply_scales(*fold, group, scales, weights, input);
    CHECK(error() < 1.0001 * before);
    std::vector<float> rows;
    for (const auto* linear : group.linears) {
      const auto& w = weights.at(static_cast<std::int32_t>(linear->weight));
      rows.insert(rows.end(), w.begin(), w.end());
    }
    const auto smooth = smoothquant_scales(greatest_magnitude(input, width), greatest_magnitude(rows, width), 0.5);
    for (const float scale : smooth) CHECK(scale > 0);
    apply_scales(*fold, group, smooth, weights, input);
    const auto balanced = greatest_magnitude(input, width);
    for (std::size_t k = 0; k < balanced.size(); ++k) {  // at one half, inputs and weights have the same range
      float most = 0;
      for (const auto* linear : group.linears) {
        const auto& w = weights.at(static_cast<std::int32_t>(linear->weight));
        for (std::size_t i = k; i < w.size(); i += balanced.size()) most = std::max(most, std::fabs(w[i]));
      }
      CHECK(balanced[k] == Approx(most).epsilon(1e-3));
    }
    return {};
  };
  run.run(ranges.layers[0], weights, hooks).value();
  CHECK(folds == 3);
  const auto scaled = run.values();
  LayerRun again(model.program, model.checkpoint, calibration_pieces(model.checkpoint, options).value(), *team);
  again.run(ranges.before, none, {}).value();
  again.run(ranges.layers[0], untouched, {}).value();
  for (std::size_t i = 0; i < scaled.size(); ++i) {
    REQUIRE(scaled[i].size() == again.values()[i].size());
    if (!scaled[i].empty()) CHECK(test::relative_error(scaled[i], again.values()[i]) < 1e-9);
  }
}

TEST_CASE("clipping makes no group worse") {
  const auto team = core::Team::make(2, {}).value();
  const std::int64_t rows = 16, cols = 128;
  auto weights = noise(static_cast<std::size_t>(rows * cols), 9, 0.05f);
  for (std::size_t i = 0; i < weights.size(); i += 61) weights[i] *= 5;
  const auto x = noise(static_cast<std::size_t>(400 * cols), 10);
  AffineScheme scheme;
  scheme.group_size = 32;
  scheme.symmetric = false;
  const auto shares = awq_clipping(*team, scheme, rows, cols, weights, gram(*team, x, cols).value()).value();
  AffineWeight clipped(scheme, rows, cols);
  for (std::int64_t r = 0; r < rows; ++r)
    round_row(clipped, r, weights.data() + r * cols, std::span(shares).subspan(static_cast<std::size_t>(r) * 4, 4));
  CHECK(output_error(clipped, weights, x) <
        0.95 * output_error(round_all(scheme, rows, cols, weights, *team).value(), weights, x));
}

TEST_CASE("pruning takes the least important weights") {
  const auto team = core::Team::make(2, {}).value();
  const std::int64_t cols = 100;
  const auto weights = noise(static_cast<std::size_t>(10 * cols), 3);
  std::vector<float> norms(static_cast<std::size_t>(cols));
  for (std::size_t k = 0; k < norms.size(); ++k) norms[k] = 0.1f + static_cast<float>(k % 7);
  for (const bool wanda : {false, true}) {
    for (const int m : {0, 4}) {
      QuantizeOptions options;
      options.sparsity = 0.3;
      options.prune_m = m;
      options.prune_n = m / 2;
      auto pruned = weights;
      prune(*team, options, cols, pruned, wanda ? std::span<const float>(norms) : std::span<const float>()).value();
      const std::size_t size = m ? 4 : 100, zeros = m ? 2 : 30;
      for (std::size_t at = 0; at < pruned.size(); at += size) {
        float most_lost = 0, least_kept = 1e9f;
        std::size_t count = 0;
        for (std::size_t i = at; i < at + size; ++i) {
          const float score = std::fabs(weights[i]) * (wanda ? norms[i % 100] : 1);
          if (pruned[i] == 0) {
            ++count;
            most_lost = std::max(most_lost, score);
          } else {
            CHECK(pruned[i] == weights[i]);
            least_kept = std::min(least_kept, score);
          }
        }
        CHECK(count == zeros);
        CHECK(most_lost <= least_kept);
      }
    }
  }
}

TEST_CASE("encoders of blocks: errors of a step, smaller where importance says") {
  struct Case {
    WeightType type;
    double most;  ///< relative error of normal weights: what ggml's encoders reach, and a little
  };
  const std::int64_t cols = 1024;
  const auto values = noise(static_cast<std::size_t>(cols), 21, 0.04f);
  std::vector<float> importance(static_cast<std::size_t>(cols));
  for (std::size_t k = 0; k < importance.size(); ++k) importance[k] = k % 5 == 0 ? 30.0f : 1.0f;
  for (const Case c : {Case{WeightType::q2_k, 0.32}, Case{WeightType::q3_k, 0.17}, Case{WeightType::q4_k, 0.08},
                       Case{WeightType::q5_k, 0.04}, Case{WeightType::q6_k, 0.021}, Case{WeightType::iq4_nl, 0.09},
                       Case{WeightType::q4_0, 0.095}, Case{WeightType::q4_1, 0.085}, Case{WeightType::q5_0, 0.047},
                       Case{WeightType::q5_1, 0.042}, Case{WeightType::q8_0, 0.006}}) {
    const quant::Format& format = quant::format(c.type);
    CAPTURE(format.name);
    const auto error_of = [&](const float* weighted, bool important_only) {
      std::vector<std::uint8_t> blocks(static_cast<std::size_t>(cols / format.block_values * format.block_bytes));
      std::vector<float> back(values.size());
      encode_row(c.type, values.data(), cols, weighted, blocks.data());
      double error = 0, norm = 0;
      for (std::int64_t b = 0; b < cols / format.block_values; ++b) {
        format.unpack(blocks.data() + b * format.block_bytes, back.data() + b * format.block_values);
      }
      for (std::size_t k = 0; k < values.size(); ++k) {
        if (important_only && importance[k] == 1) continue;
        error += std::pow(static_cast<double>(back[k] - values[k]), 2);
        norm += std::pow(static_cast<double>(values[k]), 2);
      }
      return std::sqrt(error / norm);
    };
    CHECK(error_of(nullptr, false) < c.most);
    CHECK(error_of(nullptr, false) > c.most / 3);
    const bool searched = c.type != WeightType::q8_0;
    if (searched) CHECK(error_of(importance.data(), true) < 0.97 * error_of(nullptr, true));
    for (const float constant : {0.0f, 0.5f, -0.25f}) {
      const std::vector<float> same(256, constant);
      std::vector<std::uint8_t> block(static_cast<std::size_t>(256 / format.block_values * format.block_bytes));
      std::vector<float> back(static_cast<std::size_t>(format.block_values));
      for (const float* weighted : {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
        encode_row(c.type, same.data(), 256, weighted, block.data());
        format.unpack(block.data(), back.data());
        for (const float value : back) CHECK(value == Approx(constant).epsilon(0.08).margin(1e-9));
      }
    }
  }
}

TEST_CASE("MXFP4 blocks have the bytes of ggml's encoder") {
  std::ifstream file(LLMINFER_TEST_DATA "/quant/mxfp4_encoded.bin", std::ios::binary);
  std::array<float, 32> values;
  std::array<std::uint8_t, 17> wanted, found;
  int blocks = 0;
  while (file.read(reinterpret_cast<char*>(values.data()), sizeof values) &&
         file.read(reinterpret_cast<char*>(wanted.data()), sizeof wanted)) {
    CAPTURE(blocks);
    ++blocks;
    encode_row(WeightType::mxfp4, values.data(), 32, nullptr, found.data());
    CHECK(found == wanted);
  }
  CHECK(blocks == 13);
}
