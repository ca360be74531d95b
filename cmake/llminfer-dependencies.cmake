# The packages that llminfer stands on. None is visible in a public header. The pkg-config targets bear our own prefix, so
# that a host that looks for the same packages in its own way is not disturbed.
find_package(nlohmann_json 3.11 REQUIRED)  # JSON
find_package(PkgConfig REQUIRED)
pkg_check_modules(LLMINFER_PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)       # regular expressions of tokenizers and settings
pkg_check_modules(LLMINFER_UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)  # Unicode normalisation
find_package(Eigen3 3.4 REQUIRED NO_MODULE)  # the quantizer's Cholesky decompositions
find_package(Threads REQUIRED)
