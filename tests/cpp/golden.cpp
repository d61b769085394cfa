// Opens an exported encoder as any libtorch program does, DJL's PyTorch engine among them, and compares its
// embedding of the golden input with the one that the spec inside the file certifies.
//
//   golden ENCODER.pt INPUTS.pt
//
// INPUTS.pt is what torch.save wrote of the list of tensors that the encoder takes for its golden input, one row
// each: pixel_values uint8 [1, 3, H, W], or input_ids and attention_mask int64 [1, L]. Resizing a picture and
// cutting a text into tokens are the caller's; everything after them is in the graph.
//
// Exit status: 0 within the certificate's bound, alone and in a batch; 1 beyond it; 2 cannot be read.

#include <torch/script.h>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace {

constexpr int64_t kBatch = 3;

std::vector<char> read_file(const char* path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) {
    throw std::runtime_error(std::string(path) + ": cannot be opened");
  }
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::string decode_base64(std::string_view text) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char letter : text.substr(0, text.find('='))) {
    const auto value = kAlphabet.find(letter);
    if (value == std::string_view::npos) {
      throw std::runtime_error("the golden embedding is not base64");
    }
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<char>(bits >> count & 0xff));
    }
  }
  return bytes;
}

// The certified embedding, float32 [D]; the spec holds it little-endian, as this program's processor does.
at::Tensor golden_embedding(const nlohmann::json& spec) {
  const auto bytes = decode_base64(spec.at("certificate").at("golden").at("embedding").get<std::string>());
  const auto dim = spec.at("embedding_dim").get<int64_t>();
  if (bytes.size() != dim * sizeof(float)) {
    throw std::runtime_error("the golden embedding has " + std::to_string(bytes.size()) + " bytes, embedding_dim is " +
                             std::to_string(dim));
  }
  auto embedding = torch::empty({dim}, torch::kFloat32);
  std::memcpy(embedding.data_ptr<float>(), bytes.data(), bytes.size());
  return embedding;
}

struct Difference {
  double max_abs;
  double min_cosine;
};

// Of float32 [N, D] from float32 [D], in units of the certified embedding's length.
Difference compare(const at::Tensor& found, const at::Tensor& expected) {
  const auto b = expected.to(torch::kFloat64);
  const auto length = b.norm();
  const auto a = found.to(torch::kFloat64);
  const auto cosines = a.matmul(b) / (a.norm(2, 1) * length);
  return {((a - b) / length).abs().max().item<double>(), cosines.min().item<double>()};
}

// A bound that the certificate leaves open is null. NaN compares false with everything, and must not pass.
bool holds(const Difference& difference, const nlohmann::json& bound) {
  const auto& max_abs = bound.at("max_abs_diff");
  const auto& min_cosine = bound.at("min_cosine");
  return std::isfinite(difference.max_abs) && (max_abs.is_null() || difference.max_abs <= max_abs.get<double>()) &&
         std::isfinite(difference.min_cosine) &&
         (min_cosine.is_null() || difference.min_cosine >= min_cosine.get<double>());
}

bool reproduces(const char* encoder_path, const char* inputs_path) {
  std::unordered_map<std::string, std::string> extra_files{{"spec.json", ""}, {"tokenizer.json", ""}};
  auto encoder = torch::jit::load(encoder_path, torch::kCPU, extra_files);
  encoder.eval();
  const auto spec = nlohmann::json::parse(extra_files.at("spec.json"));
  const auto is_text = spec.at("modality") == "text";
  if (is_text == extra_files.at("tokenizer.json").empty()) {
    throw std::runtime_error(is_text ? "a text encoder without tokenizer.json" : "an image encoder with a tokenizer");
  }

  std::vector<torch::IValue> alone;
  std::vector<torch::IValue> batch;
  const auto inputs = torch::jit::pickle_load(read_file(inputs_path));
  for (const torch::IValue& input : inputs.toListRef()) {
    alone.push_back(input);
    batch.emplace_back(input.toTensor().repeat_interleave(kBatch, 0));
  }
  const auto expected = golden_embedding(spec);
  const c10::InferenceMode guard;
  auto within = true;
  for (const auto* rows_of : {&alone, &batch}) {
    const auto found = encoder.forward(*rows_of).toTensor();
    const auto rows = rows_of->front().toTensor().size(0);
    if (found.scalar_type() != torch::kFloat32 || found.sizes() != at::IntArrayRef({rows, expected.size(0)})) {
      throw std::runtime_error("the encoder gives " + found.toString() + " " + c10::str(found.sizes()));
    }
    const auto difference = compare(found, expected);
    std::printf("%s %s batch %lld max-abs %.3g cosine %.8f\n", spec.at("modality").get<std::string>().c_str(),
                spec.at("precision").get<std::string>().c_str(), static_cast<long long>(rows), difference.max_abs,
                difference.min_cosine);
    within = within && holds(difference, spec.at("certificate").at("bound"));
  }
  return within;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: golden ENCODER.pt INPUTS.pt\n");
    return 2;
  }
  try {
    if (!reproduces(argv[1], argv[2])) {
      std::fprintf(stderr, "golden: %s: beyond the bound of its certificate\n", argv[1]);
      return 1;
    }
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "golden: %s: %s\n", argv[1], error.what_without_backtrace());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "golden: %s: %s\n", argv[1], error.what());
    return 2;
  }
  return 0;
}
