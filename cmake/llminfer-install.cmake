# Install rules: headers, library, CMake package and pkg-config file.
include(GNUInstallDirs)
install(DIRECTORY include/llminfer DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS llminfer EXPORT llminfer-targets)
