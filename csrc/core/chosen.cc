#include "core/chosen.h"

#include "core/error.h"

namespace si {

si_status left_out(const char* what, const char* name, const char* option) {
  return fail(SI_ERR_UNSUPPORTED, "expected a library that has ", what, " ", name,
              ", got one that was built without it; try a build with ", option, " of ALL, or a list that names ", name);
}

}  // namespace si
