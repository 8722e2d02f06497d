#include "kernels/registry.h"

namespace si {

namespace {

// What the words of a line of registry.inc stand for; lines that are left out use none.
namespace formats {
#define SI_FORMAT(name, NAME, View, types, params, sections) \
  [[maybe_unused]] constexpr si_format name = SI_FORMAT_##NAME;
#include "formats/formats.inc"
#undef SI_FORMAT
}  // namespace formats
namespace operations {
[[maybe_unused]] constexpr si_op linear = SI_OP_LINEAR, conv = SI_OP_CONV;
}
[[maybe_unused]] constexpr uint32_t f32 = kTypeF32, f16 = kTypeF16, bf16 = kTypeBF16, i8 = kTypeI8, u8 = kTypeU8;

[[maybe_unused]] constexpr char kFloat32[] = "float32", kInt8[] = "int8", kBFloat16[] = "bfloat16";

// Rows of a format, an operation or a type that is left out are left out, and in a small library those of instruction
// sets that are not built. A row that is none ends the table, which may have no other.
#define SI_A_ROW(...) __VA_ARGS__,
#define SI_NO_ROW(...)
#if SI_SMALL
#define SI_ROW_OF_SET(needs) SI_CHOSEN(needs, SI_A_ROW, SI_NO_ROW)
#else
#define SI_ROW_OF_SET(needs) SI_A_ROW
#endif
#define SI_ROW_OF(format, operation, needs) \
  SI_CHOSEN(format, SI_CHOSEN(operation, SI_ROW_OF_SET(needs), SI_NO_ROW), SI_NO_ROW)
constexpr Row kRows[] = {
#define SI_ROW(format, operation, needs, x, weight, y) \
  SI_ROW_OF(format, operation, needs)                  \
  ({#format "." #operation "." #needs, formats::format, operations::operation, Isa::needs, kFloat32, x, weight, y})
#define SI_INT8_ROW(format, operation, needs, x, weight, y)       \
  SI_CHOSEN(int8, SI_ROW_OF(format, operation, needs), SI_NO_ROW) \
  ({#format "." #operation ".int8." #needs, formats::format, operations::operation, Isa::needs, kInt8, x, weight, y})
#define SI_BF16_ROW(format, operation, needs, x, weight, y)                                                           \
  SI_CHOSEN(bfloat16, SI_ROW_OF(format, operation, needs), SI_NO_ROW)                                                 \
  ({#format "." #operation ".bf16." #needs, formats::format, operations::operation, Isa::needs, kBFloat16, x, weight, \
    y})
#include "kernels/registry.inc"
#undef SI_BF16_ROW
#undef SI_INT8_ROW
#undef SI_ROW
    {},
};
constexpr size_t kRowCount = sizeof kRows / sizeof kRows[0] - 1;

// The scalar kernels have no tiles.
using Tiles = const TileKernels* (*)();
constexpr Tiles kTiles[] = {
#define SI_ISA(name, family, features, words) \
  SI_FAMILY_##family(SI_CHOSEN(name, name##_tile_kernels, nullptr), nullptr),
#include "core/isas.inc"
#undef SI_ISA
};

bool takes(uint32_t types, si_value_type type) { return (types & type_bit(type)) != 0; }

}  // namespace

const TileKernels* scalar_tile_kernels() { return nullptr; }

const Row& row_at(size_t index) { return kRows[index]; }
size_t row_count() { return kRowCount; }

const TileKernels* tile_kernels(Isa isa) {
  const Tiles tiles = kTiles[static_cast<size_t>(isa)];
  return tiles == nullptr ? nullptr : tiles();
}

namespace {

// The best instruction set is the last one.
template <class Fits>
const TileKernels* widest_of(const Fits& fits) {
  for (size_t i = kIsaCount; i-- > 0;) {
    const TileKernels* const kernels = tile_kernels(static_cast<Isa>(i));
    if (kernels != nullptr && fits(*kernels) && *isa_state(static_cast<Isa>(i)).reason == '\0') return kernels;
  }
  return nullptr;
}

}  // namespace

const TileKernels* widest_tile_kernels() {
  return widest_of([](const TileKernels& kernels) { return kernels.floats; });
}
const TileKernels* widest_byte_kernels() {
  return widest_of([](const TileKernels& kernels) { return kernels.bytes != nullptr; });
}
const TileKernels* widest_pair_kernels() {
  return widest_of([](const TileKernels& kernels) { return kernels.pairs != nullptr; });
}

const char* row_reason(const Row& row) { return isa_state(row.isa).reason; }

si_status select_row(si_format format, si_op op, size_t* index) {
  if (op == SI_OP_LINEAR && !SI_HAS(linear)) return left_out("the operator", "linear", "SPARSEINFER_OPERATORS");
  if (op == SI_OP_CONV && !SI_HAS(conv)) return left_out("the operator", "conv", "SPARSEINFER_OPERATORS");
  Message reasons;
  for (size_t i = 0; i < row_count(); ++i) {
    const Row& row = kRows[i];
    if (row.format != format || row.op != op || row.dtype != kFloat32) continue;
    if (*row_reason(row) == '\0') {
      *index = i;
      return SI_OK;
    }
    if (!kMessages) continue;
    reasons.add("\n  ");
    reasons.add(row.name);
    reasons.add(": ");
    reasons.add(row_reason(row));
  }
  return fail(SI_ERR_UNSUPPORTED, "no kernel can run this format and operation here:", reasons.text());
}

si_status row_for_call(const si_weights& weights, si_op op, const CallTypes& types, int32_t asked, const Row** out) {
  SI_REQUIRE(asked == SI_ROW_BEST || (asked >= 0 && static_cast<size_t>(asked) < row_count()), SI_ERR_ARGUMENT,
             "expected a registry row from 0 to ", row_count() - 1, ", got ", asked);
  const Row* best = nullptr;
  bool weight_taken = false;
  for (size_t i = 0; i < row_count() && best == nullptr; ++i) {
    const Row& row = kRows[i];
    if (asked != SI_ROW_BEST && i != static_cast<size_t>(asked)) continue;
    const bool runs = row.format == weights.format && row.op == op;
    SI_REQUIRE(runs || asked == SI_ROW_BEST, SI_ERR_ARGUMENT, "row ", row.name,
               " does not run this weight's format and operation");
    if (!runs) continue;
    if (*row_reason(row) != '\0') {
      SI_REQUIRE(asked == SI_ROW_BEST, SI_ERR_UNSUPPORTED, "row ", row.name, " cannot run: ", row_reason(row));
      continue;
    }
    if (!takes(row.weight_types, weights.value_type) || (row.dtype == kBFloat16) != weights.panel.pairs()) continue;
    weight_taken = true;
    if (takes(row.x_types, types.x) && takes(row.y_types, types.y)) best = &row;
  }
  *out = best;
  if (best != nullptr) return SI_OK;
  if (size_t any = 0; asked == SI_ROW_BEST) SI_TRY(select_row(weights.format, op, &any));
  SI_REQUIRE(weight_taken, SI_ERR_UNSUPPORTED, "no CPU kernel computes in the value type of this ",
             format_of(weights.format)->name, " weight; expected float32 values");
  const char* expected = weights.value_type == SI_I8 ? "float32 or uint8"
                         : weights.panel.pairs()     ? "float32 or bfloat16"
                                                     : "float32";
  return fail(SI_ERR_UNSUPPORTED, "no CPU kernel reads x of ", type_name(types.x), " and writes y of ",
              type_name(types.y), "; expected ", expected, "; try converting them");
}

}  // namespace si
