/* How the program fails: one line on stderr. */
#ifndef SPARSEINFER_TOOLS_COMPLAIN_H
#define SPARSEINFER_TOOLS_COMPLAIN_H

/* Prints a line, formatted as printf does, and gives 0, so that a reader ends with `return complain(...)`. */
int complain(const char* format, ...) __attribute__((format(printf, 1, 2)));

#endif
