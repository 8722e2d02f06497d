// Runs a libFuzzer target where the compiler has no libFuzzer: seeded mutations of the files given, for a time.
//
//   packed_fuzz SECONDS SEED FILE...        an input that the target dies of is left as crash-SEED
//   packed_fuzz 0 0 FILE...                 runs each file once, as it is
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

Bytes g_input;
std::string g_crash;

void keep_input() {
  std::FILE* file = std::fopen(g_crash.c_str(), "wb");
  if (file == nullptr) return;
  std::fwrite(g_input.data(), 1, g_input.size(), file);
  std::fclose(file);
  std::fprintf(stderr, "the input is in %s\n", g_crash.c_str());
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : engine_(seed) {}
  size_t below(size_t limit) { return static_cast<size_t>(engine_() % limit); }

  Bytes mutated(const std::vector<Bytes>& seeds) {
    Bytes bytes = seeds[below(seeds.size())];
    for (size_t left = 1 + below(6); left > 0; --left) change(bytes, seeds);
    // The last bytes of a header choose what the target does.
    for (size_t i = 112; i < 128 && i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(engine_());
    return bytes;
  }

 private:
  void change(Bytes& bytes, const std::vector<Bytes>& seeds) {
    static constexpr uint64_t kHostile[] = {0,       1,       2,          3,          7,           16,    64,
                                            127,     255,     256,        32767,      65535,       65536, 0x7fffffff,
                                            1 << 20, 1 << 30, 0x80000000, 0xffffffff, 0x100000000, ~0ULL};
    if (bytes.empty()) bytes.push_back(0);
    // Fields of the header decide most.
    const size_t reach = below(2) == 0 && bytes.size() > 128 ? 128 : bytes.size();
    const size_t at = below(reach);
    switch (below(7)) {
      case 0:
        bytes[at] ^= static_cast<uint8_t>(1 << below(8));
        return;
      case 1:
        bytes[at] = static_cast<uint8_t>(engine_());
        return;
      case 2:
      case 3: {
        const size_t width = size_t{1} << below(4), aligned = at / width * width;
        if (aligned + width > bytes.size()) return;
        uint64_t word = kHostile[below(std::size(kHostile))];
        if (below(2) == 0) {
          std::memcpy(&word, &bytes[aligned], width);
          word += below(2) == 0 ? 1 : ~0ULL;
        }
        std::memcpy(&bytes[aligned], &word, width);
        return;
      }
      case 4: {
        const Bytes& other = seeds[below(seeds.size())];
        const size_t count = below(64);
        for (size_t i = at; i < at + count && i < bytes.size() && i < other.size(); ++i) bytes[i] = other[i];
        return;
      }
      case 5:
        bytes.resize(bytes.size() + 64 * below(3));
        return;
      default:
        if (below(4) == 0) bytes.resize(bytes.size() - below(std::min<size_t>(bytes.size(), 129)));
    }
  }

  std::mt19937_64 engine_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "expected SECONDS SEED FILE..., got %d arguments\n", argc - 1);
    return 2;
  }
  const std::chrono::seconds limit(std::strtol(argv[1], nullptr, 10));
  std::vector<Bytes> seeds;
  for (int i = 3; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (!file || seeds.back().empty()) {
      std::fprintf(stderr, "expected a file of bytes, got %s\n", argv[i]);
      return 2;
    }
  }
  g_crash = std::string("crash-") + argv[2];
  __sanitizer_set_death_callback(keep_input);
  for (const Bytes& seed : seeds) {
    g_input = seed;
    LLVMFuzzerTestOneInput(g_input.data(), g_input.size());
  }
  Mutator mutator(std::strtoull(argv[2], nullptr, 10));
  const auto end = std::chrono::steady_clock::now() + limit;
  long runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) {
    g_input = mutator.mutated(seeds);
    LLVMFuzzerTestOneInput(g_input.data(), g_input.size());
  }
  std::printf("%zu seeds, %ld mutations\n", seeds.size(), runs);
  return 0;
}
