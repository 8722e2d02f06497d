# What goes into the library beside the instruction sets: operators, formats and types of values, each by the names of
# its table. Sets `left_out` to the names that are left out; core/chosen.h reads SI_WITHOUT_name = 1 of each.

# The names in a table of lines MACRO(..., name, ...): the argument of number `at`.
function(names_of_table table macro at out)
  file(STRINGS "${source_dir}/${table}" lines REGEX "^${macro}\\(")
  set(names "")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "^${macro}\\(" "" line "${line}")
    string(REGEX MATCHALL "[^,]+" arguments "${line}")
    list(GET arguments ${at} name)
    string(STRIP "${name}" name)
    list(APPEND names "${name}")
  endforeach()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source_dir}/${table}")
  set(${out} "${names}" PARENT_SCOPE)
endfunction()

# Appends to `left_out` what an option does not name of `known`.
macro(choose option known)
  if(NOT ${option} STREQUAL "ALL")
    foreach(name IN LISTS ${option})
      if(NOT name IN_LIST ${known})
        message(FATAL_ERROR "expected ${option} to be ALL or some of '${${known}}', got '${name}'; try ALL")
      endif()
    endforeach()
    set(rest ${${known}})
    list(REMOVE_ITEM rest ${${option}})
    list(APPEND left_out ${rest})
  endif()
endmacro()

names_of_table(runtime/operators.inc SI_OPERATOR 1 operators)
names_of_table(formats/formats.inc SI_FORMAT 0 formats)
set(types float32 float16 bfloat16 int8)
set(left_out "")
choose(SPARSEINFER_OPERATORS operators)
choose(SPARSEINFER_FORMATS formats)
choose(SPARSEINFER_TYPES types)
# The steps of recurrent layers are a function of the C API and no operator of a model.
if(NOT SPARSEINFER_OPERATORS STREQUAL "ALL")
  list(APPEND left_out recurrent)
endif()
