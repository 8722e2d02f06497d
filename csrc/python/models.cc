// Model files in Python, in memory of the caller's, and the plans that run them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sparseinfer.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
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

// A model file in memory of the caller's, which outlives it.
class Model {
 public:
  Model(uintptr_t address, size_t bytes, int32_t threads) {
    si_open_options options = sized<si_open_options>();
    options.threads = threads;
    check(without_gil(
        [&] { return si_model_open_with(reinterpret_cast<const void*>(address), bytes, &options, &handle_); }));
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

// A torch tensor's attributes, by names that are made once.
struct TensorNames {
  py::str dtype{"dtype"}, layout{"layout"}, shape{"shape"}, is_cpu{"is_cpu"};
  py::str is_contiguous{"is_contiguous"}, is_neg{"is_neg"}, data_ptr{"data_ptr"};
};

py::object owned(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

py::object attribute(py::handle object, const py::str& name) {
  return owned(PyObject_GetAttr(object.ptr(), name.ptr()));
}

py::object call_method(py::handle object, const py::str& name) {
  return owned(PyObject_CallMethodNoArgs(object.ptr(), name.ptr()));
}

// What torch has that a plan asks tensors for.
struct Torch {
  py::object tensor, parameter;  // classes
  py::object float32, strided;
  py::object empty_like;
};

// A model and the contexts that run it, one for each call at a time: they are made when there are too few, and kept.
// The interpreter's lock guards them.
class Plan {
 public:
  // `templates`: a tensor of the shape of each output.
  Plan(const Model& model, int32_t threads, py::tuple shapes, py::tuple templates, Torch torch)
      : handle_(model.handle()),
        info_(model.info()),
        threads_(threads),
        node_bytes_(model.node_bytes()),
        shapes_(std::move(shapes)),
        templates_(std::move(templates)),
        torch_(std::move(torch)) {}

  // The outputs of one call; None where a tensor is not one that can be read as it is, float32 of the plan's shape.
  py::object call(const py::tuple& tensors) {
    if (tensors.size() != shapes_.size()) return py::none();
    std::vector<const void*> inputs(info_.inputs);
    for (size_t i = 0; i < inputs.size(); ++i) {
      inputs[i] = data_of(tensors[i], shapes_[i]);
      if (inputs[i] == nullptr) return py::none();
    }
    py::list found(info_.outputs);
    std::vector<void*> outputs(info_.outputs);
    for (size_t i = 0; i < outputs.size(); ++i) {
      py::object y = owned(PyObject_CallOneArg(torch_.empty_like.ptr(), py::handle(templates_[i]).ptr()));
      outputs[i] = pointer_of(y);
      found[i] = std::move(y);
    }
    run_context(inputs.data(), outputs.data(), nullptr);
    return found;
  }

  // The seconds of each node where they are asked for, else none.
  std::vector<double> run(const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs, bool timed) {
    check_counts(inputs, outputs);
    std::vector<double> seconds(timed ? node_bytes_.size() : 0);
    run_context(reinterpret_cast<const void* const*>(inputs.data()), reinterpret_cast<void* const*>(outputs.data()),
                timed ? seconds.data() : nullptr);
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
    const Borrowed context(this);
    check(without_gil([&] {
      return si_context_watch(context.get(), reinterpret_cast<const void* const*>(inputs.data()),
                              reinterpret_cast<void* const*>(outputs.data()), keep, &seen);
    }));
    py::list out;
    for (const std::string& output : seen.outputs) out.append(py::bytes(output));
    return out;
  }

  double selftest() {
    double worst = 0.0;
    const Borrowed context(this);
    check(without_gil([&] { return si_context_selftest(context.get(), &worst); }));
    return worst;
  }

 private:
  struct Seen {
    const std::vector<size_t>& bytes;
    std::vector<std::string> outputs;
  };
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct Slot {
    std::unique_ptr<void, Free> memory;
    si_context* context = nullptr;
  };

  // A context for the time of one call.
  class Borrowed {
   public:
    explicit Borrowed(Plan* plan) : plan_(plan), slot_(plan->take()) {}
    ~Borrowed() { plan_->free_.push_back(std::move(slot_)); }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    si_context* get() const { return slot_.context; }

   private:
    Plan* plan_;
    Slot slot_;
  };

  Slot take() {
    if (!free_.empty()) {
      Slot slot = std::move(free_.back());
      free_.pop_back();
      return slot;
    }
    // There is room for each to come back without an allocation.
    free_.reserve(++made_);
    const size_t bytes = (static_cast<size_t>(info_.context_bytes) + 63) / 64 * 64;
    Slot slot{std::unique_ptr<void, Free>(std::aligned_alloc(64, bytes)), nullptr};
    if (slot.memory == nullptr) throw std::bad_alloc();
    si_context_options options{};
    options.struct_size = sizeof options;
    options.threads = threads_;
    // Contexts of many batches stand side by side.
    options.shared_scratch = 1;
    check(si_context_create_with(handle_, slot.memory.get(), bytes, &options, &slot.context));
    return slot;
  }

  void run_context(const void* const* inputs, void* const* outputs, double* seconds) {
    const Borrowed context(this);
    check(without_gil([&] { return si_context_run(context.get(), inputs, outputs, seconds); }));
  }

  void* pointer_of(py::handle tensor) const { return PyLong_AsVoidPtr(call_method(tensor, names_.data_ptr).ptr()); }

  // Null where a tensor's elements cannot be read as they lie.
  const void* data_of(py::handle tensor, py::handle shape) const {
    const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
    if (type != torch_.tensor.ptr() && type != torch_.parameter.ptr()) return nullptr;
    if (!attribute(tensor, names_.dtype).is(torch_.float32) || !attribute(tensor, names_.layout).is(torch_.strided))
      return nullptr;
    if (attribute(tensor, names_.is_cpu).ptr() != Py_True) return nullptr;
    if (!attribute(tensor, names_.shape).equal(shape)) return nullptr;
    if (call_method(tensor, names_.is_contiguous).ptr() != Py_True) return nullptr;
    if (call_method(tensor, names_.is_neg).ptr() != Py_False) return nullptr;
    return pointer_of(tensor);
  }

  void check_counts(const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs) const {
    if (inputs.size() != info_.inputs || outputs.size() != info_.outputs)
      throw py::value_error("expected " + std::to_string(info_.inputs) + " inputs and " +
                            std::to_string(info_.outputs) + " outputs, got " + std::to_string(inputs.size()) + " and " +
                            std::to_string(outputs.size()));
  }

  si_model* handle_;
  si_model_info info_;
  int32_t threads_;
  std::vector<size_t> node_bytes_;
  py::tuple shapes_, templates_;
  Torch torch_;
  TensorNames names_;
  std::vector<Slot> free_;
  size_t made_ = 0;
};

void seal_model(uintptr_t address, size_t bytes) {
  check(without_gil([&] { return si_model_seal(reinterpret_cast<void*>(address), bytes); }));
}

}  // namespace

void add_models(py::module_& m) {
  m.def("seal_model", &seal_model, py::arg("ptr"), py::arg("nbytes"), "Arena and checksum of a model file, in place.");
  py::class_<Model>(m, "Model")
      .def(py::init<uintptr_t, size_t, int32_t>(), py::arg("ptr"), py::arg("nbytes"), py::arg("threads") = 1)
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
  py::class_<Torch>(m, "Torch")
      .def(py::init<py::object, py::object, py::object, py::object, py::object>(), py::arg("tensor"),
           py::arg("parameter"), py::arg("float32"), py::arg("strided"), py::arg("empty_like"));
  py::class_<Plan>(m, "Plan")
      .def(py::init<const Model&, int32_t, py::tuple, py::tuple, Torch>(), py::arg("model"), py::arg("threads"),
           py::arg("shapes"), py::arg("templates"), py::arg("torch"), py::keep_alive<1, 2>())
      .def("call", &Plan::call, py::arg("tensors"))
      .def("run", &Plan::run, py::arg("inputs"), py::arg("outputs"), py::arg("timed") = false)
      .def("watch", &Plan::watch, py::arg("inputs"), py::arg("outputs"))
      .def("selftest", &Plan::selftest);
}

}  // namespace si::python
