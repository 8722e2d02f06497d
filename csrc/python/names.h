// Names that Python uses for the numbers of the C API.
//
// An unknown name throws std::invalid_argument, which is Python's ValueError.
#pragma once

#include <sparseinfer.h>

#include <cstddef>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace si::python {

// A struct of the C API that gives its size.
template <class Sized>
Sized sized() {
  Sized out{};
  out.struct_size = sizeof out;
  return out;
}

template <class Value>
Value lookup(const char* what, const std::string& name, std::initializer_list<std::pair<const char*, Value>> table) {
  std::string known;
  for (const auto& [key, value] : table) {
    if (name == key) return value;
    known += known.empty() ? key : std::string(", ") + key;
  }
  throw std::invalid_argument("expected " + std::string(what) + " to be one of " + known + "; got '" + name + "'");
}

// The table of formats.
inline const std::vector<si_format_info>& formats() {
  static const std::vector<si_format_info> all = [] {
    std::vector<si_format_info> found(si_format_count(), sized<si_format_info>());
    for (size_t i = 0; i < found.size(); ++i)
      if (si_format_at(i, &found[i]) != SI_OK) throw std::runtime_error(si_last_error());
    return found;
  }();
  return all;
}

inline si_format format_of(const std::string& name) {
  std::string known;
  for (const si_format_info& format : formats()) {
    if (name == format.name) return format.format;
    known += known.empty() ? format.name : std::string(", ") + format.name;
  }
  throw std::invalid_argument("expected format to be one of " + known + "; got '" + name + "'");
}

inline const si_format_info& format_info(si_format id) {
  for (const si_format_info& format : formats())
    if (format.format == id) return format;
  throw std::runtime_error("expected a format of the library, got number " + std::to_string(id));
}

inline const char* name_of(si_format id) { return format_info(id).name; }

inline si_op op_of(const std::string& name) {
  return lookup<si_op>("op", name, {{"linear", SI_OP_LINEAR}, {"conv", SI_OP_CONV}});
}

inline si_value_type value_type_of(const std::string& name) {
  return lookup<si_value_type>(
      "value_type", name,
      {{"float32", SI_F32}, {"float16", SI_F16}, {"bfloat16", SI_BF16}, {"int8", SI_I8}, {"uint8", SI_U8}});
}

inline const char* name_of(si_value_type type) {
  static constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "int8", "uint8", "int64", "bool"};
  return kNames[type];
}

inline si_activation activation_of(const std::string& name) {
  return lookup<si_activation>("activation", name,
                               {{"none", SI_ACT_NONE},
                                {"relu", SI_ACT_RELU},
                                {"relu6", SI_ACT_RELU6},
                                {"gelu", SI_ACT_GELU},
                                {"gelu_tanh", SI_ACT_GELU_TANH},
                                {"silu", SI_ACT_SILU},
                                {"sigmoid", SI_ACT_SIGMOID},
                                {"tanh", SI_ACT_TANH},
                                {"hardswish", SI_ACT_HARDSWISH},
                                {"hardsigmoid", SI_ACT_HARDSIGMOID}});
}

inline const char* name_of(si_activation activation) {
  static constexpr const char* kNames[] = {"none", "relu",    "relu6", "gelu",      "gelu_tanh",
                                           "silu", "sigmoid", "tanh",  "hardswish", "hardsigmoid"};
  return kNames[activation];
}

inline si_cell cell_of(const std::string& name) {
  return lookup<si_cell>(
      "cell", name,
      {{"lstm", SI_CELL_LSTM}, {"gru", SI_CELL_GRU}, {"rnn_tanh", SI_CELL_RNN_TANH}, {"rnn_relu", SI_CELL_RNN_RELU}});
}

inline si_padding padding_of(const std::string& name) {
  return lookup<si_padding>("padding_mode", name,
                            {{"zeros", SI_PAD_ZEROS},
                             {"reflect", SI_PAD_REFLECT},
                             {"replicate", SI_PAD_REPLICATE},
                             {"circular", SI_PAD_CIRCULAR}});
}

}  // namespace si::python
