# libsparseinfer_cuda.so from csrc/cuda, with nvcc called directly: CMake's own CUDA language would probe the compiler at every
# configure, and the kernels need nothing else of it. The CUDA runtime is linked statically, so that the library is one
# file which the driver alone suffices to load.
set(cuda_library "${PROJECT_BINARY_DIR}/python/libsparseinfer_cuda.so")
set(build_cuda OFF)
if(NOT SPARSEINFER_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "expected SPARSEINFER_CUDA to be AUTO, ON or OFF, got '${SPARSEINFER_CUDA}'; try AUTO")
endif()
if(NOT SPARSEINFER_CUDA STREQUAL "OFF")
  find_program(SPARSEINFER_NVCC nvcc HINTS "$ENV{CUDA_HOME}/bin" /usr/local/cuda/bin)
  if(SPARSEINFER_CUDA STREQUAL "ON")
    if(NOT SPARSEINFER_NVCC)
      message(FATAL_ERROR "expected nvcc on PATH for SPARSEINFER_CUDA=ON, got none; try SPARSEINFER_CUDA=OFF")
    endif()
    set(build_cuda ON)
  elseif(SPARSEINFER_NVCC AND EXISTS /dev/nvidiactl)
    # An nvcc that is too old, or that refuses this C++ compiler, must not fail an installation that did not ask for it.
    file(WRITE "${PROJECT_BINARY_DIR}/probe.cu" "#include <cuda_bf16.h>\n")
    execute_process(
      COMMAND "${SPARSEINFER_NVCC}" -std=c++17 -arch=sm_90a "-ccbin=${CMAKE_CXX_COMPILER}" -c probe.cu -o probe.o
      WORKING_DIRECTORY "${PROJECT_BINARY_DIR}" RESULT_VARIABLE probe OUTPUT_QUIET ERROR_QUIET)
    if(probe EQUAL 0)
      set(build_cuda ON)
    else()
      message(STATUS "No CUDA kernels: ${SPARSEINFER_NVCC} cannot compile for sm_90a with ${CMAKE_CXX_COMPILER}")
    endif()
  endif()
endif()

if(build_cuda)
  set(cuda_source "${PROJECT_SOURCE_DIR}/csrc/cuda/nm24_linear.cu")
  # Machine code for 8.x and for 9.0, and PTX, which the driver compiles for what comes later.
  add_custom_command(OUTPUT "${cuda_library}"
    COMMAND "${CMAKE_COMMAND}" -E make_directory "${PROJECT_BINARY_DIR}/python"
    COMMAND "${SPARSEINFER_NVCC}" -std=c++17 -O3 -shared -cudart static --threads 2
      "-ccbin=${CMAKE_CXX_COMPILER}" -Xcompiler=-fPIC,-fvisibility=hidden
      -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=compute_80
      "-I${PROJECT_SOURCE_DIR}/csrc" "${cuda_source}" -o "${cuda_library}"
    DEPENDS "${cuda_source}" "${PROJECT_SOURCE_DIR}/csrc/cuda/instructions.cuh" VERBATIM)
  add_custom_target(sparseinfer_cuda ALL DEPENDS "${cuda_library}")
  if(TARGET _C)
    # So that setup.py's one target builds both.
    add_dependencies(_C sparseinfer_cuda)
  endif()
else()
  # One of an earlier configuration must not be installed.
  file(REMOVE "${cuda_library}")
endif()
