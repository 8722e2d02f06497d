/* What functions of elements call. */
#pragma once

#include <math.h>
