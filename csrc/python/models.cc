// Model files and their contexts in Python, all in memory of the caller's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sparseinfer.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "python/call.h"
#include "python/names.h"

namespace py = pybind11;

namespace si::python {

namespace {

py::dict tensor_of(const si_tensor_info& info) {
  py::dict tensor;
  py::tuple shape(info.ndim);
  for (int i = 0; i < info.ndim; ++i) shape[static_cast<size_t>(i)] = info.shape[i];
  tensor["name"] = info.name;
  tensor["dtype"] = name_of(info.type);
  tensor["shape"] = shape;
  tensor["kind"] = info.kind == SI_TENSOR_INPUT ? "input" : info.kind == SI_TENSOR_CONSTANT ? "constant" : "computed";
  tensor["bytes"] = info.bytes;
  tensor["format"] = info.format;
  tensor["nnz"] = info.nnz;
  tensor["per_batch"] = info.per_batch;
  return tensor;
}

// A model file in memory of the caller's, which outlives it, with one context in memory of its own.
class Model {
 public:
  Model(uintptr_t address, size_t bytes) {
    check(without_gil([&] { return si_model_open(reinterpret_cast<const void*>(address), bytes, &handle_); }));
    check(si_model_describe(handle_, &info_));
  }
  ~Model() { si_model_close(handle_); }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // The same file at another batch; `base` outlives it.
  Model(const Model& base, int64_t batch) {
    check(without_gil([&] { return si_model_at_batch(base.handle_, batch, &handle_); }));
    check(si_model_describe(handle_, &info_));
  }

  const si_model_info& info() const { return info_; }
  py::bytes metadata() const { return py::bytes(info_.metadata, info_.metadata_bytes); }

  py::list tensors(bool inputs) const {
    py::list out;
    for (size_t i = 0; i < (inputs ? info_.inputs : info_.outputs); ++i) {
      si_tensor_info tensor = sized<si_tensor_info>();
      check(inputs ? si_model_input(handle_, i, &tensor) : si_model_output(handle_, i, &tensor));
      out.append(tensor_of(tensor));
    }
    return out;
  }

  py::list all_tensors() const {
    py::list out;
    for (size_t i = 0; i < info_.tensors; ++i) {
      si_tensor_info tensor = sized<si_tensor_info>();
      check(si_model_tensor(handle_, i, &tensor));
      out.append(tensor_of(tensor));
    }
    return out;
  }

  py::list nodes() const {
    py::list out;
    for (size_t i = 0; i < info_.nodes; ++i) {
      si_node_info info = sized<si_node_info>();
      check(si_model_node(handle_, i, &info));
      py::dict node;
      node["name"] = info.name;
      node["op"] = info.op;
      node["format"] = info.format;
      node["nnz"] = info.nnz;
      node["weights"] = info.weights;
      node["multiply_adds"] = info.multiply_adds;
      node["runs"] = info.runs != 0;
      node["type"] = name_of(info.type);
      node["activation"] = name_of(info.activation);
      py::list operands;
      for (size_t k = 0; k < info.operands; ++k)
        operands.append(info.operand[k] == UINT32_MAX ? py::object(py::none()) : py::int_(info.operand[k]));
      node["operands"] = operands;
      node["output"] = info.output;
      out.append(node);
    }
    return out;
  }

  // Of the output of each node.
  std::vector<size_t> node_bytes() const {
    std::vector<size_t> out;
    for (size_t i = 0; i < info_.nodes; ++i) {
      si_node_info node = sized<si_node_info>();
      si_tensor_info tensor = sized<si_tensor_info>();
      check(si_model_node(handle_, i, &node));
      check(si_model_tensor(handle_, node.output, &tensor));
      out.push_back(static_cast<size_t>(tensor.bytes));
    }
    return out;
  }

  si_model* handle() const { return handle_; }

 private:
  si_model* handle_ = nullptr;
  si_model_info info_ = sized<si_model_info>();
};

// One caller's: `address` is memory of the model's context_bytes that outlives it, as the model does.
class Context {
 public:
  Context(const Model& model, uintptr_t address, size_t bytes, int32_t threads)
      : inputs_(model.info().inputs), outputs_(model.info().outputs), node_bytes_(model.node_bytes()) {
    check(si_context_create(model.handle(), reinterpret_cast<void*>(address), bytes, threads, &context_));
  }

  // The seconds of each node where they are asked for, else none.
  std::vector<double> run(const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs, bool timed) {
    check_counts(inputs, outputs);
    std::vector<double> seconds(timed ? node_bytes_.size() : 0);
    check(without_gil([&] {
      return si_context_run(context_, reinterpret_cast<const void* const*>(inputs.data()),
                            reinterpret_cast<void* const*>(outputs.data()), timed ? seconds.data() : nullptr);
    }));
    return seconds;
  }

  // The bytes of what each node computes.
  py::list watch(const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs) {
    check_counts(inputs, outputs);
    Seen seen{node_bytes_, {}};
    const auto keep = [](void* user, size_t node, const void* output) {
      Seen& all = *static_cast<Seen*>(user);
      all.outputs.emplace_back(static_cast<const char*>(output), all.bytes[node]);
    };
    check(without_gil([&] {
      return si_context_watch(context_, reinterpret_cast<const void* const*>(inputs.data()),
                              reinterpret_cast<void* const*>(outputs.data()), keep, &seen);
    }));
    py::list out;
    for (const std::string& output : seen.outputs) out.append(py::bytes(output));
    return out;
  }

  double selftest() {
    double worst = 0.0;
    check(without_gil([&] { return si_context_selftest(context_, &worst); }));
    return worst;
  }

 private:
  struct Seen {
    const std::vector<size_t>& bytes;
    std::vector<std::string> outputs;
  };

  void check_counts(const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs) const {
    if (inputs.size() != inputs_ || outputs.size() != outputs_)
      throw py::value_error("expected " + std::to_string(inputs_) + " inputs and " + std::to_string(outputs_) +
                            " outputs, got " + std::to_string(inputs.size()) + " and " +
                            std::to_string(outputs.size()));
  }

  size_t inputs_, outputs_;
  std::vector<size_t> node_bytes_;
  si_context* context_ = nullptr;
};

void seal_model(uintptr_t address, size_t bytes) {
  check(without_gil([&] { return si_model_seal(reinterpret_cast<void*>(address), bytes); }));
}

}  // namespace

void add_models(py::module_& m) {
  m.def("seal_model", &seal_model, py::arg("ptr"), py::arg("nbytes"), "Arena and checksum of a model file, in place.");
  py::class_<Model>(m, "Model")
      .def(py::init<uintptr_t, size_t>(), py::arg("ptr"), py::arg("nbytes"))
      .def(
          "at_batch", [](const Model& model, int64_t batch) { return std::make_unique<Model>(model, batch); },
          py::arg("batch"), py::keep_alive<0, 1>())
      .def_property_readonly("batch", [](const Model& model) { return model.info().batch; })
      .def_property_readonly("most_batch", [](const Model& model) { return model.info().most_batch; })
      .def_property_readonly("inputs", [](const Model& model) { return model.tensors(true); })
      .def_property_readonly("outputs", [](const Model& model) { return model.tensors(false); })
      .def_property_readonly("nodes", &Model::nodes)
      .def_property_readonly("tensors", &Model::all_tensors)
      .def_property_readonly("golden_bytes", [](const Model& model) { return model.info().golden_bytes; })
      .def_property_readonly("version", [](const Model& model) { return model.info().version; })
      .def_property_readonly("metadata", &Model::metadata)
      .def_property_readonly("arena_bytes", [](const Model& model) { return model.info().arena_bytes; })
      .def_property_readonly("context_bytes", [](const Model& model) { return model.info().context_bytes; });
  py::class_<Context>(m, "Context")
      .def(py::init<const Model&, uintptr_t, size_t, int32_t>(), py::arg("model"), py::arg("ptr"), py::arg("nbytes"),
           py::arg("threads"), py::keep_alive<1, 2>())
      .def("run", &Context::run, py::arg("inputs"), py::arg("outputs"), py::arg("timed") = false)
      .def("watch", &Context::watch, py::arg("inputs"), py::arg("outputs"))
      .def("selftest", &Context::selftest);
}

}  // namespace si::python
