#include "formats/formats.h"

namespace si {

namespace {

#define SI_NAMES(...) {__VA_ARGS__}
// One that is left out has a line for its name, which a failure tells.
#define SI_LINE(...) __VA_ARGS__,
#if SI_MESSAGES
#define SI_NAMED SI_LINE
#else
#define SI_NAMED(...)
#endif
constexpr Format kFormats[] = {
#define SI_FORMAT(name, NAME, View, types, params, sections)                                     \
  SI_CHOSEN(name, SI_LINE, SI_NAMED)(                                                            \
      {SI_FORMAT_##NAME, #name, types, params, sections,                                         \
       SI_CHOSEN(                                                                                \
           name,                                                                                 \
           [](const BlobHeader& header, const void* blob, size_t bytes, si_weights* out) {       \
             return name##_validate(header, blob, bytes, &out->name);                            \
           },                                                                                    \
           nullptr),                                                                             \
       SI_CHOSEN(                                                                                \
           name, [](const si_weights& weights) { return name##_units(weights.name); }, nullptr), \
       SI_CHOSEN(                                                                                \
           name, [](const si_weights& weights, int64_t unit) { return name##_work(weights.name, unit); }, nullptr)})
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
