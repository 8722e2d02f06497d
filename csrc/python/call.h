// Calls of the C API from Python: a failure is an exception, and the interpreter's lock is free meanwhile.
#pragma once

#include <pybind11/pybind11.h>
#include <sparseinfer.h>

#include <stdexcept>
#include <string>

namespace si::python {

inline void check(si_status status) {
  if (status == SI_OK) return;
  const std::string message = si_last_error();
  switch (status) {
    case SI_ERR_ARGUMENT:
    case SI_ERR_CORRUPT:
      throw pybind11::value_error(message);
    case SI_ERR_MEMORY:
      PyErr_SetString(PyExc_MemoryError, message.c_str());
      throw pybind11::error_already_set();
    default:
      throw std::runtime_error(message);
  }
}

// While the interpreter exits, taking the lock again ends a daemon thread by unwinding its stack, which aborts the
// process when a destructor does it: py::gil_scoped_release does.
template <class Fn>
si_status without_gil(Fn&& fn) {
  PyThreadState* const state = PyEval_SaveThread();
  const si_status status = fn();
  PyEval_RestoreThread(state);
  return status;
}

// The parts of the module.
void add_weights(pybind11::module_& module);
void add_models(pybind11::module_& module);

}  // namespace si::python
