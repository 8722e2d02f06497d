#include "formats/formats.h"

namespace si {

namespace {

#define SI_NAMES(...) {__VA_ARGS__}
constexpr Format kFormats[] = {
#define SI_FORMAT(name, NAME, View, types, params, sections)                                                   \
  {SI_FORMAT_##NAME,                                                                                           \
   #name,                                                                                                      \
   types,                                                                                                      \
   params,                                                                                                     \
   sections,                                                                                                   \
   name##_pack,                                                                                                \
   [](const BlobHeader& header, const void* blob, size_t bytes, si_weights* out) {                             \
     return name##_validate(header, blob, bytes, &out->name);                                                  \
   },                                                                                                          \
   [](const si_weights& weights, float* weight) { name##_unpack(weights.name, weight); },                      \
   [](const si_weights& weights, si_weight_info* info) { name##_describe(weights.name, weights.blob, info); }, \
   [](const si_weights& weights) { return name##_units(weights.name); },                                       \
   [](const si_weights& weights, int64_t unit) { return name##_work(weights.name, unit); }},
#include "formats/formats.inc"
#undef SI_FORMAT
};

}  // namespace

size_t format_count() { return sizeof kFormats / sizeof kFormats[0]; }

const Format& format_at(size_t index) { return kFormats[index]; }

const Format* format_of(int64_t id) {
  for (const Format& format : kFormats)
    if (format.id == id) return &format;
  return nullptr;
}

}  // namespace si
