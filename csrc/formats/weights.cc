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

si_status pack_weights(const float* weight, const si_weight_desc& desc, const si_pack_options& options,
                       OwnedBlob* out) {
  WeightShape shape;
  SI_TRY(check_desc(desc, &shape));
  SI_TRY(check_dense(shape));
  const Format* format = format_of(options.format);
  SI_REQUIRE(format != nullptr, SI_ERR_ARGUMENT, "unknown format ", options.format);
  SI_REQUIRE((format->value_types & type_bit(options.value_type)) != 0, SI_ERR_ARGUMENT,
             "expected values of a type that the format stores: ", format->name, " ",
             names_of(format->value_types).text(), ", got ", type_name(options.value_type));
  return format->pack(weight, shape, options, out);
}

si_status open_weights(const void* blob, size_t bytes, si_weights* out, bool is_summed) {
  SI_TRY(check_header(blob, bytes, is_summed));
  const auto& header = *static_cast<const BlobHeader*>(blob);
  const Format* format = format_of(header.format);
  if (format == nullptr) return corrupt("unknown format ", header.format);
  *out = {};
  out->format = format->id;
  out->value_type = static_cast<si_value_type>(header.value_type);
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
  format_of(weights.format)->describe(weights, info);
}

si_status unpack_weights(const si_weights& weights, float* weight) {
  SI_TRY(check_dense(weights.shape));
  format_of(weights.format)->unpack(weights, weight);
  return SI_OK;
}

}  // namespace si
