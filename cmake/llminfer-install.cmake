# Install rules: headers, library, CMake package and pkg-config file. Both packages can be moved with their prefix.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/llminfer)
install(DIRECTORY include/llminfer DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp")
install(TARGETS llminfer EXPORT llminfer-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT llminfer-targets NAMESPACE llminfer:: DESTINATION ${package_dir})

# The GPU backends and MPI, components of the package.
foreach(component cuda hip mpi)
  if(TARGET llminfer_${component})
    install(TARGETS llminfer_${component} EXPORT llminfer-${component}-targets
      ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
      RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
    install(EXPORT llminfer-${component}-targets NAMESPACE llminfer:: DESTINATION ${package_dir})
  endif()
endforeach()

# What the consumer of a static library has to link besides. A shared library brings it along by itself.
set(LLMINFER_PACKAGE_DEPENDENCIES "")
set(LLMINFER_PC_REQUIRES_PRIVATE "")
set(LLMINFER_PC_LIBS_PRIVATE "")
set(LLMINFER_PC_CFLAGS "")
if(BUILD_SHARED_LIBS)
  set(LLMINFER_PC_CFLAGS "-DLLMINFER_SHARED")
else()
  set(LLMINFER_PC_REQUIRES_PRIVATE "libpcre2-8 libutf8proc")
  set(LLMINFER_PC_LIBS_PRIVATE "${CMAKE_THREAD_LIBS_INIT} -lstdc++ -lm")
  set(LLMINFER_PACKAGE_DEPENDENCIES "find_dependency(Threads)
find_dependency(PkgConfig)
llminfer_find_module(LLMINFER_PCRE2 libpcre2-8)
llminfer_find_module(LLMINFER_UTF8PROC libutf8proc)")
endif()
string(REGEX REPLACE " +" " " LLMINFER_PC_LIBS_PRIVATE "${LLMINFER_PC_LIBS_PRIVATE}")

set(LLMINFER_PACKAGE_FINDS_HIP OFF)
if(CMAKE_HIP_COMPILER)  # ROCm has a CMake package
  set(LLMINFER_PACKAGE_FINDS_HIP ON)
endif()

configure_package_config_file(cmake/llminferConfig.cmake.in ${PROJECT_BINARY_DIR}/llminferConfig.cmake
  INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/llminferConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/llminferConfig.cmake ${PROJECT_BINARY_DIR}/llminferConfigVersion.cmake
  DESTINATION ${package_dir})

# The prefix as seen from the pkg-config file, so that `cmake --install --prefix` may choose another one.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(LLMINFER_PC_PREFIX ${CMAKE_INSTALL_PREFIX})
  set(LLMINFER_PC_LIBDIR ${CMAKE_INSTALL_FULL_LIBDIR})
  set(LLMINFER_PC_INCLUDEDIR ${CMAKE_INSTALL_FULL_INCLUDEDIR})
else()
  file(RELATIVE_PATH up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
  string(REGEX REPLACE "/$" "" up "${up}")
  set(LLMINFER_PC_PREFIX "\${pcfiledir}/${up}")
  set(LLMINFER_PC_LIBDIR "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
  set(LLMINFER_PC_INCLUDEDIR "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
configure_file(cmake/llminfer.pc.in ${PROJECT_BINARY_DIR}/llminfer.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/llminfer.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
