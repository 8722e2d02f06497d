// Packed weights in Python: numpy arrays for packing, addresses for the hot calls.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sparseinfer.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "python/call.h"
#include "python/names.h"

namespace py = pybind11;

namespace si::python {

namespace {

using Blob = py::array_t<uint8_t, py::array::c_style>;

py::tuple shape_of(const si_weight_desc& desc) {
  py::tuple shape(desc.ndim);
  for (int i = 0; i < desc.ndim; ++i) shape[static_cast<size_t>(i)] = desc.shape[i];
  return shape;
}

Blob pack(const std::string& format, const py::array_t<float, py::array::c_style>& weight, int64_t groups,
          int32_t kblock, int32_t n, int32_t m, int32_t block, const std::string& value_type,
          const std::optional<std::string>& target, const std::optional<py::array_t<float, py::array::c_style>>& scales,
          int32_t g) {
  si_weight_desc desc{};
  desc.ndim = static_cast<int32_t>(weight.ndim());
  if (desc.ndim < 2 || desc.ndim > 4)
    throw py::value_error("expected a weight of 2 to 4 dimensions, got " + std::to_string(desc.ndim));
  for (int i = 0; i < desc.ndim; ++i) desc.shape[i] = weight.shape(i);
  desc.groups = groups;
  if (scales && (scales->ndim() != 1 || scales->size() != weight.shape(0)))
    throw py::value_error("expected a scale for each of " + std::to_string(weight.shape(0)) + " rows, got " +
                          std::to_string(scales->size()));
  si_target machine = sized<si_target>();
  check(si_target_named(target.value_or("host").c_str(), &machine));
  const si_pack_options options{sizeof(si_pack_options),
                                format_of(format),
                                value_type_of(value_type),
                                kblock,
                                n,
                                m,
                                block,
                                &machine,
                                scales ? scales->data() : nullptr,
                                g};
  void* blob = nullptr;
  size_t bytes = 0;
  check(without_gil([&] { return si_pack(weight.data(), &desc, &options, &blob, &bytes); }));
  // numpy keeps the capsule, which frees the buffer; the buffer keeps its 64-byte alignment.
  py::capsule owner(blob, [](void* p) { si_free(p); });
  return Blob(static_cast<py::ssize_t>(bytes), static_cast<const uint8_t*>(blob), owner);
}

// In place: py::array_t would copy an array that is not contiguous, and seal the copy.
void seal(py::array_t<uint8_t> blob) {
  if (blob.ndim() != 1 || blob.strides(0) != 1) throw py::value_error("expected a contiguous 1-dimensional array");
  uint8_t* const bytes = blob.mutable_data();
  const auto count = static_cast<size_t>(blob.nbytes());
  check(without_gil([&] { return si_seal(bytes, count); }));
}

py::dict info_of(const si_weight_info& info) {
  py::dict out, params, sections;
  int64_t k = 1;
  for (int i = 1; i < info.desc.ndim; ++i) k *= info.desc.shape[i];
  out["format"] = name_of(info.format);
  out["value_type"] = name_of(info.value_type);
  out["shape"] = shape_of(info.desc);
  out["groups"] = info.desc.groups;
  out["nnz"] = info.nnz;
  out["nbytes"] = info.bytes;
  out["m"] = info.desc.shape[0];
  out["k"] = k;
  const si_format_info& format = format_info(info.format);
  for (size_t i = 0; i < 4 && format.params[i] != nullptr; ++i) params[format.params[i]] = info.params[i];
  for (size_t i = 0; i < 4 && format.sections[i] != nullptr; ++i) sections[format.sections[i]] = info.sections[i];
  out["params"] = params;
  out["sections"] = sections;
  return out;
}

class Weights {
 public:
  Weights(uintptr_t address, size_t bytes) {
    check(without_gil([&] { return si_weights_open(reinterpret_cast<const void*>(address), bytes, &handle_); }));
    const si_status status = si_weights_info(handle_, &info_);
    if (status != SI_OK) {
      si_weights_close(handle_);
      check(status);
    }
  }
  ~Weights() { si_weights_close(handle_); }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  const si_weight_info& info() const { return info_; }

  py::array_t<float> unpack() const {
    const std::vector<py::ssize_t> shape(info_.desc.shape, info_.desc.shape + info_.desc.ndim);
    py::array_t<float> weight(shape);
    float* const elements = weight.mutable_data();
    check(without_gil([&] { return si_weights_unpack(handle_, elements); }));
    return weight;
  }

  void linear(const si_linear_args& args) const {
    check(without_gil([&] { return si_linear(handle_, &args); }));
  }

  void conv(uintptr_t x, uintptr_t y, uintptr_t bias, int64_t batch, int64_t h, int64_t w,
            std::array<int64_t, 2> stride, std::array<int64_t, 4> padding, std::array<int64_t, 2> dilation,
            const std::string& padding_mode, const std::string& activation, int32_t row, int32_t threads) const {
    conv_typed(x, y, bias, batch, h, w, stride, padding, dilation, padding_mode, activation, row, threads, SI_F32,
               SI_F32, nullptr);
  }

  // Of int8 weights, by position; x_scales and x_zero_points are addresses, 0 for none.
  void linear_int8(uintptr_t x, uintptr_t y, uintptr_t bias, int64_t n, int64_t ldx, int64_t ldy, bool channel_major,
                   const std::string& activation, int32_t row, int32_t threads, const std::string& x_type,
                   const std::string& y_type, float x_scale, int32_t x_zero_point, uintptr_t x_scales,
                   uintptr_t x_zero_points, float y_scale, int32_t y_zero_point) const {
    const si_quantization quantization{sizeof(si_quantization),
                                       x_scale,
                                       x_zero_point,
                                       reinterpret_cast<const float*>(x_scales),
                                       reinterpret_cast<const int32_t*>(x_zero_points),
                                       y_scale,
                                       y_zero_point,
                                       0.0f,
                                       0};
    linear_typed(x, y, bias, n, ldx, ldy, channel_major, activation, row, threads, value_type_of(x_type),
                 value_type_of(y_type), &quantization);
  }

  void conv_int8(uintptr_t x, uintptr_t y, uintptr_t bias, int64_t batch, int64_t h, int64_t w,
                 std::array<int64_t, 2> stride, std::array<int64_t, 4> padding, std::array<int64_t, 2> dilation,
                 const std::string& padding_mode, const std::string& activation, int32_t row, int32_t threads,
                 const std::string& x_type, const std::string& y_type, float x_scale, int32_t x_zero_point,
                 float y_scale, int32_t y_zero_point) const {
    const si_quantization quantization{
        sizeof(si_quantization), x_scale, x_zero_point, nullptr, nullptr, y_scale, y_zero_point, 0.0f, 0};
    conv_typed(x, y, bias, batch, h, w, stride, padding, dilation, padding_mode, activation, row, threads,
               value_type_of(x_type), value_type_of(y_type), &quantization);
  }

  // Of pairs of bfloat16 weights, by position.
  void linear_bf16(uintptr_t x, uintptr_t y, uintptr_t bias, int64_t n, int64_t ldx, int64_t ldy, bool channel_major,
                   const std::string& activation, int32_t row, int32_t threads, const std::string& x_type,
                   const std::string& y_type) const {
    linear_typed(x, y, bias, n, ldx, ldy, channel_major, activation, row, threads, value_type_of(x_type),
                 value_type_of(y_type), nullptr);
  }

  void conv_bf16(uintptr_t x, uintptr_t y, uintptr_t bias, int64_t batch, int64_t h, int64_t w,
                 std::array<int64_t, 2> stride, std::array<int64_t, 4> padding, std::array<int64_t, 2> dilation,
                 const std::string& padding_mode, const std::string& activation, int32_t row, int32_t threads,
                 const std::string& x_type, const std::string& y_type) const {
    conv_typed(x, y, bias, batch, h, w, stride, padding, dilation, padding_mode, activation, row, threads,
               value_type_of(x_type), value_type_of(y_type), nullptr);
  }

  void recurrent(uintptr_t gates, uintptr_t bias, uintptr_t h, uintptr_t c, uintptr_t y, int64_t steps, int64_t batch,
                 int64_t step_rows, int64_t batch_rows, uintptr_t batch_sizes, const std::string& cell, bool reverse,
                 int32_t row, int32_t threads) const {
    const int64_t M = info_.desc.shape[0], H = info_.desc.shape[1];
    const si_recurrent_args args{sizeof(si_recurrent_args),
                                 reinterpret_cast<const float*>(gates),
                                 reinterpret_cast<const float*>(bias),
                                 reinterpret_cast<float*>(h),
                                 reinterpret_cast<float*>(c),
                                 reinterpret_cast<float*>(y),
                                 steps,
                                 batch,
                                 M,
                                 H,
                                 step_rows,
                                 batch_rows,
                                 reinterpret_cast<const int64_t*>(batch_sizes),
                                 cell_of(cell),
                                 reverse ? 1 : 0,
                                 row,
                                 threads};
    check(without_gil([&] { return si_recurrent(handle_, &args); }));
  }

 private:
  void linear_typed(uintptr_t x, uintptr_t y, uintptr_t bias, int64_t n, int64_t ldx, int64_t ldy, bool channel_major,
                    const std::string& activation, int32_t row, int32_t threads, si_value_type x_type,
                    si_value_type y_type, const si_quantization* quantization) const {
    si_linear_args args = sized<si_linear_args>();
    args.x = reinterpret_cast<const void*>(x);
    args.y = reinterpret_cast<void*>(y);
    args.bias = reinterpret_cast<const float*>(bias);
    args.n = n;
    args.ldx = ldx;
    args.ldy = ldy;
    args.layout = channel_major ? SI_CHANNEL_MAJOR : SI_TOKEN_MAJOR;
    args.activation = activation_of(activation);
    args.row = row;
    args.threads = threads;
    args.x_type = x_type;
    args.y_type = y_type;
    args.quantization = quantization;
    linear(args);
  }

  void conv_typed(uintptr_t x, uintptr_t y, uintptr_t bias, int64_t batch, int64_t h, int64_t w,
                  std::array<int64_t, 2> stride, std::array<int64_t, 4> padding, std::array<int64_t, 2> dilation,
                  const std::string& padding_mode, const std::string& activation, int32_t row, int32_t threads,
                  si_value_type x_type, si_value_type y_type, const si_quantization* quantization) const {
    si_conv_args args = sized<si_conv_args>();
    args.x = reinterpret_cast<const void*>(x);
    args.y = reinterpret_cast<void*>(y);
    args.bias = reinterpret_cast<const float*>(bias);
    args.batch = batch;
    args.h = h;
    args.w = w;
    std::copy(stride.begin(), stride.end(), args.stride);
    std::copy(padding.begin(), padding.end(), args.padding);
    std::copy(dilation.begin(), dilation.end(), args.dilation);
    args.padding_mode = padding_of(padding_mode);
    args.activation = activation_of(activation);
    args.row = row;
    args.threads = threads;
    args.x_type = x_type;
    args.y_type = y_type;
    args.quantization = quantization;
    check(without_gil([&] { return si_conv(handle_, &args); }));
  }

  si_weights* handle_ = nullptr;
  si_weight_info info_ = sized<si_weight_info>();
};

// Weights.linear(x, y, bias, n, ldx, ldy, channel_major, activation, row, threads), by position. Reading ten arguments
// by name and type, as pybind11 does, takes a small layer longer than its kernel.
PyObject* linear(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  if (count != 10) return PyErr_Format(PyExc_TypeError, "linear() expected 10 arguments, got %zd", count);
  const auto integer = [&](int at) { return PyLong_AsLongLong(given[at]); };
  const auto narrow = [&](int at) {
    return static_cast<int32_t>(std::clamp<long long>(PyLong_AsLongLong(given[at]), INT32_MIN, INT32_MAX));
  };
  const auto address = [&](int at) { return static_cast<float*>(PyLong_AsVoidPtr(given[at])); };
  try {
    const char* activation = PyUnicode_AsUTF8(given[7]);
    si_linear_args args{sizeof(si_linear_args),
                        address(0),
                        address(1),
                        address(2),
                        integer(3),
                        integer(4),
                        integer(5),
                        SI_TOKEN_MAJOR,
                        SI_ACT_NONE,
                        narrow(8),
                        narrow(9),
                        SI_F32,
                        SI_F32,
                        nullptr,
                        nullptr,
                        SI_F32};
    const int channel_major = PyObject_IsTrue(given[6]);
    if (PyErr_Occurred()) return nullptr;
    args.layout = channel_major ? SI_CHANNEL_MAJOR : SI_TOKEN_MAJOR;
    args.activation = activation_of(activation);
    py::handle(self).cast<const Weights&>().linear(args);
    Py_RETURN_NONE;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// A method of the type itself: Python then checks that `self` is one of its instances.
void add_linear(const py::class_<Weights>& type) {
  static PyMethodDef method{"linear", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&linear)),
                            METH_FASTCALL, nullptr};
  type.attr("linear") =
      py::reinterpret_steal<py::object>(PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type.ptr()), &method));
}

}  // namespace

void add_weights(py::module_& m) {
  m.def("pack", &pack, py::arg("format"), py::arg("weight"), py::arg("groups") = 1, py::kw_only(),
        py::arg("kblock") = SI_KBLOCK_AUTO, py::arg("n") = 2, py::arg("m") = 4, py::arg("block") = 64,
        py::arg("value_type") = "float32", py::arg("target") = py::none(), py::arg("scales") = py::none(),
        py::arg("g") = 0);
  m.def("seal", &seal, py::arg("blob").noconvert(), "Writes the checksum into the header, in place.");
  py::class_<Weights> weights(m, "Weights");
  weights.def(py::init<uintptr_t, size_t>(), py::arg("ptr"), py::arg("nbytes"))
      .def_property_readonly("format", [](const Weights& w) { return name_of(w.info().format); })
      .def_property_readonly("value_type", [](const Weights& w) { return name_of(w.info().value_type); })
      .def_property_readonly("shape", [](const Weights& w) { return shape_of(w.info().desc); })
      .def_property_readonly("groups", [](const Weights& w) { return w.info().desc.groups; })
      .def_property_readonly("nnz", [](const Weights& w) { return w.info().nnz; })
      .def_property_readonly("nbytes", [](const Weights& w) { return w.info().bytes; })
      .def("info", [](const Weights& w) { return info_of(w.info()); })
      .def("unpack", &Weights::unpack, "The dense weight; the memory of the buffer has to outlast the call.")
      .def("conv", &Weights::conv, py::arg("x"), py::arg("y"), py::arg("bias"), py::arg("batch"), py::arg("h"),
           py::arg("w"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("padding_mode"),
           py::arg("activation"), py::arg("row"), py::arg("threads"))
      .def("linear_int8", &Weights::linear_int8)
      .def("conv_int8", &Weights::conv_int8)
      .def("linear_bf16", &Weights::linear_bf16)
      .def("conv_bf16", &Weights::conv_bf16)
      .def("recurrent", &Weights::recurrent, py::arg("gates"), py::arg("bias"), py::arg("h"), py::arg("c"),
           py::arg("y"), py::arg("steps"), py::arg("batch"), py::arg("step_rows"), py::arg("batch_rows"),
           py::arg("batch_sizes"), py::arg("cell"), py::arg("reverse"), py::arg("row"), py::arg("threads"));
  add_linear(weights);
}

}  // namespace si::python
