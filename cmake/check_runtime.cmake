# Fails when the library needs anything of a C++ runtime: exceptions, type information, new and delete, guards of static
# objects, or the compiled part of the standard library. Then a C program could not link it. Without THREADS it needs
# neither libpthread nor libdl, and without FILES no function that opens one.
#
#   cmake -DNM=nm -DLIBRARY=libsparseinfer.a -DTHREADS=ON -DFILES=ON -P check_runtime.cmake
execute_process(COMMAND "${NM}" --undefined-only "${LIBRARY}" OUTPUT_VARIABLE symbols RESULT_VARIABLE status)
if(status)
  message(FATAL_ERROR "could not read the symbols of ${LIBRARY}")
endif()
string(REGEX MATCHALL " U [^\n]+" symbols "${symbols}")
set(ours 0)
foreach(symbol IN LISTS symbols)
  if(symbol MATCHES "^ U (_ZN2si|_ZNK2si)")
    math(EXPR ours "${ours} + 1")
  elseif(symbol MATCHES "^ U (_Z|__cxa_|__gxx_|_Unwind_|__dynamic_cast)")
    message(SEND_ERROR "the library must not need:${symbol}")
  elseif(NOT THREADS AND symbol MATCHES "^ U (pthread_|dl[a-z]+$|dl_)")
    message(SEND_ERROR "the library without threads must not need:${symbol}")
  elseif(NOT FILES AND symbol MATCHES "^ U (f?open(64)?|read|mmap(64)?)$")
    message(SEND_ERROR "the library without files must not need:${symbol}")
  endif()
endforeach()
if(ours EQUAL 0)
  message(SEND_ERROR "expected symbols of the library itself among those that its parts need, got none")
endif()
