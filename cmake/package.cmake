# What other projects build on: the targets sparseinfer::static, sparseinfer::shared and sparseinfer::sparseinfer for
# add_subdirectory and FetchContent, and the same three, with a package for pkg-config, where this one is installed.
include(GNUInstallDirs)

# A target for the file, and not the one that builds it: a program of C that links that one would be linked as C++, for
# it has sources of C++.
add_library(sparseinfer::static STATIC IMPORTED GLOBAL)
set_target_properties(sparseinfer::static PROPERTIES
  IMPORTED_LOCATION "${PROJECT_BINARY_DIR}/lib/libsparseinfer.a"
  INTERFACE_INCLUDE_DIRECTORIES "${PROJECT_SOURCE_DIR}/csrc/include"
  INTERFACE_LINK_LIBRARIES "${core_libraries}")
add_dependencies(sparseinfer::static sparseinfer_core)

file(STRINGS "${PROJECT_SOURCE_DIR}/csrc/include/sparseinfer.h" abi_line REGEX "^#define SI_ABI_VERSION [0-9]+$")
string(REGEX MATCH "[0-9]+$" abi_version "${abi_line}")
if(abi_version STREQUAL "")
  message(FATAL_ERROR "expected '#define SI_ABI_VERSION N' in sparseinfer.h, got none")
endif()

if(SPARSEINFER_SHARED)
  add_library(sparseinfer_shared SHARED)
  foreach(objects IN LISTS core_objects)
    target_sources(sparseinfer_shared PRIVATE $<TARGET_OBJECTS:${objects}>)
  endforeach()
  target_include_directories(sparseinfer_shared INTERFACE "${PROJECT_SOURCE_DIR}/csrc/include")
  target_link_libraries(sparseinfer_shared PRIVATE ${core_libraries})
  # Linked as C, so that it needs no library of C++.
  set_target_properties(sparseinfer_shared PROPERTIES OUTPUT_NAME sparseinfer LINKER_LANGUAGE C
    VERSION ${abi_version} SOVERSION ${abi_version}
    LIBRARY_OUTPUT_DIRECTORY "$<1:${PROJECT_BINARY_DIR}/lib>")
  add_library(sparseinfer::shared ALIAS sparseinfer_shared)
endif()

# As BUILD_SHARED_LIBS has it for the libraries of a project; the static one unless it is set.
add_library(sparseinfer_default INTERFACE)
if(BUILD_SHARED_LIBS AND SPARSEINFER_SHARED)
  target_link_libraries(sparseinfer_default INTERFACE sparseinfer::shared)
else()
  target_link_libraries(sparseinfer_default INTERFACE sparseinfer::static)
endif()
add_library(sparseinfer::sparseinfer ALIAS sparseinfer_default)

if(SPARSEINFER_INSTALL)
  include(CMakePackageConfigHelpers)
  set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/sparseinfer")
  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/sparseinferConfig.cmake.in"
    "${PROJECT_BINARY_DIR}/sparseinferConfig.cmake" INSTALL_DESTINATION "${package_dir}"
    PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
  # A version before 1.0 may change anything between its minor versions.
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/sparseinferConfigVersion.cmake"
    VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
  # What a program needs beside the static library; of the shared one it needs nothing else.
  set(static_libraries "-lm")
  if(SPARSEINFER_THREADS)
    string(APPEND static_libraries " -pthread")
    foreach(library IN LISTS CMAKE_DL_LIBS)
      string(APPEND static_libraries " -l${library}")
    endforeach()
  endif()
  if(SPARSEINFER_SHARED)
    set(public_libraries "")
    set(private_libraries "${static_libraries}")
  else()
    set(public_libraries " ${static_libraries}")
    set(private_libraries "")
  endif()
  # Relative to the package's own file, so that what is installed may be moved.
  file(RELATIVE_PATH pc_to_prefix "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
  configure_file("${PROJECT_SOURCE_DIR}/cmake/sparseinfer.pc.in" "${PROJECT_BINARY_DIR}/sparseinfer.pc" @ONLY)

  install(FILES "${PROJECT_SOURCE_DIR}/csrc/include/sparseinfer.h" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(TARGETS sparseinfer_core ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
  if(SPARSEINFER_SHARED)
    install(TARGETS sparseinfer_shared LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
  endif()
  install(FILES "${PROJECT_BINARY_DIR}/sparseinferConfig.cmake"
    "${PROJECT_BINARY_DIR}/sparseinferConfigVersion.cmake" DESTINATION "${package_dir}")
  install(FILES "${PROJECT_BINARY_DIR}/sparseinfer.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
endif()
