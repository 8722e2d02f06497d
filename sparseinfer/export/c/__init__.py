"""Models for C programs: as an object that the library runs, or as plain C that needs no library.

`records` reads a model file that the library has checked; `amalgamation` writes plain C for it, of
the pieces in `embedded/` (`pieces`), the memory that `arena` plans, the constants that `weights`
lays out and the calls of `nodes`. `folder` writes either form.
"""
