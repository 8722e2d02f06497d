// The table of packed formats (formats.inc), and what of a format others call through it.
#pragma once

#include "formats/bsr/bsr.h"
#include "formats/csr/csr.h"
#include "formats/nm/nm.h"
#include "formats/panel/panel.h"
#include "formats/units.h"
#include "formats/values.h"

// A validated packed weight: what a handle holds.
struct si_weights {
  si_format format;
  si_value_type value_type;
  si::WeightShape shape;
  uint64_t bytes;
  int64_t nnz;
  const void* blob;
  // The view that `format` names is filled in: panel, csr, nm, bsr.
#define SI_FORMAT(name, NAME, View, types, params, sections) si::View name;
#include "formats/formats.inc"
#undef SI_FORMAT
};

namespace si {

struct Format {
  si_format id;
  const char* name;
  uint32_t value_types;
  const char* params[4];
  const char* sections[4];
  // What follows is null of a format that is left out; no weight of it is opened.
  si_status (*open)(const BlobHeader& header, const void* blob, size_t bytes, si_weights* out);
  Units (*units)(const si_weights& weights);
  // Non-zeros before a unit; -1 where every unit has as many.
  int64_t (*work)(const si_weights& weights, int64_t unit);
};

// One past the largest number of a format.
constexpr int kFormatIds = [] {
  int most = 0;
  for (const int id : {
#define SI_FORMAT(name, NAME, View, types, params, sections) static_cast<int>(SI_FORMAT_##NAME),
#include "formats/formats.inc"
#undef SI_FORMAT
       })
    most = id > most ? id : most;
  return most + 1;
}();

size_t format_count();
const Format& format_at(size_t index);  // index < format_count()
// Null for a number that no format has.
const Format* format_of(int64_t id);

// Calls visit(m, k, value) for every stored value.
template <class Visit>
void visit_weights(const si_weights& weights, [[maybe_unused]] Visit&& visit) {
  switch (weights.format) {
#define SI_FORMAT(name, NAME, View, types, params, sections) \
  case SI_FORMAT_##NAME:                                     \
    SI_CHOSEN(name, return name##_visit_all(weights.name, visit), return);
#include "formats/formats.inc"
#undef SI_FORMAT
  }
}

}  // namespace si
