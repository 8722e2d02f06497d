# Writes a C++ file with the hash of everything that decides how fast the kernels are: the sources, and how they are
# compiled. Tests are not among them.
#
#   cmake -DROOT=. -DCOMPILED_WITH="GNU 12.2" -DOUT=source_hash.cc -P source_hash.cmake
file(GLOB_RECURSE sources RELATIVE "${ROOT}"
  "${ROOT}/csrc/*.cc" "${ROOT}/csrc/*.h" "${ROOT}/csrc/*.inc")
list(FILTER sources EXCLUDE REGEX "(_test\\.cc$|^csrc/testing/)")
list(APPEND sources CMakeLists.txt)
list(SORT sources)
set(text "${COMPILED_WITH}")
foreach(source IN LISTS sources)
  file(SHA256 "${ROOT}/${source}" hash)
  string(APPEND text "\n${source} ${hash}")
endforeach()
string(SHA256 hash "${text}")
string(SUBSTRING "${hash}" 0 16 hash)
file(WRITE "${OUT}" "namespace si {\nextern const char* const source_hash;\n"
  "const char* const source_hash = \"${hash}\";\n}  // namespace si\n")
