# Fails when an instruction-set object offers anything but its table of kernels: an inline function compiled for AVX-512
# there could be the copy that the linker keeps for everybody, and would crash older CPUs.
#
#   cmake -DNM=nm -DOBJECTS="a.o;b.o" -P check_isolation.cmake
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" --defined-only --extern-only --demangle "${object}"
    OUTPUT_VARIABLE symbols RESULT_VARIABLE status OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(status)
    message(FATAL_ERROR "could not read the symbols of ${object}")
  endif()
  string(REPLACE ";" "," symbols "${symbols}")
  string(REPLACE "\n" ";" symbols "${symbols}")
  set(tables 0)
  foreach(symbol IN LISTS symbols)
    if(symbol MATCHES "^[0-9a-f]+ T si::[a-z0-9]+_tile_kernels\\(\\)$")
      math(EXPR tables "${tables} + 1")
    else()
      message(SEND_ERROR "${object} must not define: ${symbol}")
    endif()
  endforeach()
  if(NOT tables EQUAL 1)
    message(SEND_ERROR "expected one table of kernels in ${object}, got ${tables}")
  endif()
endforeach()
