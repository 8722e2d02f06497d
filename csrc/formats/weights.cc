#include "formats/weights.h"

namespace si {

namespace {

// "float32 and bfloat16", of a set of value types.
Message names_of(uint32_t types) {
  Message names;
  for (int type = SI_F32; type <= SI_U8; ++type) {
    if ((types & type_bit(static_cast<si_value_type>(type))) == 0) continue;
    types &= ~type_bit(static_cast<si_value_type>(type));
    if (*names.text() != '\0') names.add(types != 0 ? ", " : " and ");
    names.add(type_name(static_cast<si_value_type>(type)));
  }
  return names;
}

// The bytes of the dense weight: more than this machine can address are no weight of its.
si_status check_dense(const WeightShape& shape) {
  const auto elements = static_cast<uint64_t>(shape.M() * shape.K());
  SI_REQUIRE(elements <= SIZE_MAX / 2 / sizeof(float), SI_ERR_ARGUMENT, "expected a weight that fits this machine's ",
             8 * sizeof(size_t), "-bit addresses, got ", elements, " elements; try a larger machine");
  return SI_OK;
}

}  // namespace

si_status pack_weights([[maybe_unused]] const float* weight, const si_weight_desc& desc, const si_pack_options& options,
                       [[maybe_unused]] OwnedBlob* out) {
  WeightShape shape;
  SI_TRY(check_desc(desc, &shape));
  SI_TRY(check_dense(shape));
  const Format* format = format_of(options.format);
  SI_REQUIRE(format != nullptr, SI_ERR_ARGUMENT, "unknown format ", options.format);
  SI_REQUIRE((format->value_types & type_bit(options.value_type)) != 0, SI_ERR_ARGUMENT,
             "expected values of a type that the format stores: ", format->name, " ",
             names_of(format->value_types).text(), ", got ", type_name(options.value_type));
  if (format->open == nullptr) return left_out("the format", format->name, "SPARSEINFER_FORMATS");
  if (!has_type(options.value_type)) return left_out("values of", type_name(options.value_type), "SPARSEINFER_TYPES");
  // Not by the table: a program that packs nothing is linked without this function, and what it calls.
  switch (options.format) {
#define SI_FORMAT(name, NAME, View, types, params, sections) \
  case SI_FORMAT_##NAME:                                     \
    return SI_CHOSEN(name, name##_pack(weight, shape, options, out), SI_ERR_UNSUPPORTED);
#include "formats/formats.inc"
#undef SI_FORMAT
  }
  return SI_ERR_UNSUPPORTED;
}

si_status open_weights(const void* blob, size_t bytes, si_weights* out, bool is_summed) {
  SI_TRY(check_header(blob, bytes, is_summed));
  const auto& header = *static_cast<const BlobHeader*>(blob);
  const Format* format = format_of(header.format);
  if (format == nullptr) return corrupt("unknown format ", header.format);
  if (format->open == nullptr) return left_out("the format", format->name, "SPARSEINFER_FORMATS");
  const auto type = static_cast<si_value_type>(header.value_type);
  if ((format->value_types & type_bit(type)) != 0 && !has_type(type))
    return left_out("values of", type_name(type), "SPARSEINFER_TYPES");
  *out = {};
  out->format = format->id;
  out->value_type = type;
  out->shape = shape_of(header);
  out->bytes = bytes;
  out->nnz = static_cast<int64_t>(header.nnz);
  out->blob = blob;
  return format->open(header, blob, bytes, out);
}

void describe(const si_weights& weights, si_weight_info* info) {
  info->format = weights.format;
  info->value_type = weights.value_type;
  info->desc.ndim = weights.shape.ndim;
  for (int i = 0; i < 4; ++i) info->desc.shape[i] = weights.shape.dims[i];
  info->desc.groups = weights.shape.groups;
  info->nnz = weights.nnz;
  info->bytes = weights.bytes;
  const auto& header = *static_cast<const BlobHeader*>(weights.blob);
  for (int i = 0; i < 4; ++i) info->params[i] = static_cast<int32_t>(header.params[i]);
  switch (weights.format) {
#define SI_FORMAT(name, NAME, View, types, params, sections) \
  case SI_FORMAT_##NAME:                                     \
    SI_CHOSEN(name, return name##_describe(weights.name, weights.blob, info), return);
#include "formats/formats.inc"
#undef SI_FORMAT
  }
}

si_status unpack_weights(const si_weights& weights, [[maybe_unused]] float* weight) {
  SI_TRY(check_dense(weights.shape));
  switch (weights.format) {
#define SI_FORMAT(name, NAME, View, types, params, sections) \
  case SI_FORMAT_##NAME:                                     \
    SI_CHOSEN(name, name##_unpack(weights.name, weight), ;); \
    break;
#include "formats/formats.inc"
#undef SI_FORMAT
  }
  return SI_OK;
}

}  // namespace si
