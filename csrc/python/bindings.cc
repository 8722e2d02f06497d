// The extension module sparseinfer._C: the C API. Here are its tables; weights.cc and models.cc add the rest.
#include <pybind11/pybind11.h>
#include <sparseinfer.h>

#include <cstdint>
#include <string>

#include "python/call.h"
#include "python/names.h"

namespace py = pybind11;

namespace si {
extern const char* const source_hash;  // generated: cmake/source_hash.cmake
}

namespace {

using namespace si::python;

py::list names_of(uint32_t types) {
  py::list names;
  for (const si_value_type type : {SI_F32, SI_F16, SI_BF16, SI_I8, SI_U8})
    if ((types >> type & 1) != 0) names.append(name_of(type));
  return names;
}

py::list features_of(uint64_t bits) {
  py::list names;
  for (size_t bit = 0; si_feature_name(bit) != nullptr; ++bit)
    if ((bits >> bit & 1) != 0) names.append(si_feature_name(bit));
  return names;
}

py::list cpu_features() {
  si_target host = sized<si_target>();
  check(si_target_named("host", &host));
  return features_of(host.features);
}

py::list targets() {
  py::list out;
  for (size_t i = 0; i < si_target_count(); ++i) {
    si_target info = sized<si_target>();
    check(si_target_at(i, &info));
    py::dict target;
    target["name"] = info.name;
    target["features"] = features_of(info.features);
    target["l1"] = info.l1;
    target["l2"] = info.l2;
    target["threads"] = info.threads;
    out.append(target);
  }
  return out;
}

py::list format_table() {
  py::list out;
  for (const si_format_info& info : formats()) {
    py::list params, sections;
    for (const char* name : info.params)
      if (name != nullptr) params.append(name);
    for (const char* name : info.sections)
      if (name != nullptr) sections.append(name);
    py::dict format;
    format["name"] = info.name;
    format["id"] = static_cast<int>(info.format);
    format["value_types"] = names_of(info.value_types);
    format["params"] = params;
    format["sections"] = sections;
    out.append(format);
  }
  return out;
}

py::list isas() {
  py::list out;
  for (size_t i = 0; i < si_isa_count(); ++i) {
    si_isa_info info = sized<si_isa_info>();
    check(si_isa(i, &info));
    py::dict isa;
    isa["name"] = info.name;
    isa["compiled"] = info.compiled != 0;
    isa["supported"] = info.supported != 0;
    isa["reason"] = info.reason;
    isa["features"] = features_of(info.features);
    out.append(isa);
  }
  return out;
}

py::list rows() {
  py::list out;
  for (size_t i = 0; i < si_row_count(); ++i) {
    si_row_info info = sized<si_row_info>();
    check(si_row(i, &info));
    py::dict row;
    py::list reasons;
    if (*info.reason != '\0') reasons.append(info.reason);
    row["name"] = info.name;
    row["format"] = name_of(info.format);
    row["op"] = info.op == SI_OP_LINEAR ? "linear" : "conv";
    row["dtype"] = info.dtype;
    row["isa"] = info.isa;
    row["reasons"] = reasons;
    row["x_types"] = names_of(info.x_types);
    row["weight_types"] = names_of(info.weight_types);
    row["y_types"] = names_of(info.y_types);
    out.append(row);
  }
  return out;
}

size_t select_row(const std::string& format, const std::string& op) {
  size_t row = 0;
  check(si_select(format_of(format), op_of(op), &row));
  return row;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native core of sparseinfer.";
  m.def("version", &si_version);
  m.def("source_hash", [] { return si::source_hash; }, "Hash of the sources and the compiler of the kernels.");
  m.def("cpu_features", &cpu_features, "Features of this CPU that kernels may need.");
  m.def("targets", &targets, "The machines that weights are packed for; the first is the host.");
  m.def("formats", &format_table, "The packed formats: name, number, value types, parameters, sections.");
  m.def("isas", &isas, "Instruction sets: name, compiled, supported, reason, features.");
  m.def("rows", &rows, "The kernel registry, best first; a row's index is its id.");
  m.def("select", &select_row, py::arg("format"), py::arg("op"), "Id of the best row that runs here.");
  m.def("threads_backend", &si_threads_backend);
  m.def("release_scratch", [] {
    without_gil([] {
      si_release_scratch();
      return SI_OK;
    });
  });
  m.def("scratch_bytes", &si_scratch_bytes);
  add_weights(m);
  add_models(m);
}
