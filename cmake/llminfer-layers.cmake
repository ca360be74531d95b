# Each layer of the library is an object library, so that a test links just the layers below it; llminfer itself is all of
# them together.

# llminfer_layer(NAME [DEPENDS LAYER…] [LINK LIBRARY…] [TOGETHER FILE…]): object library llminfer_NAME of the .cpp files in this
# folder. TOGETHER: those whose own names do not collide, without .cpp, which a unity build compiles eight at a time.
function(llminfer_layer name)
  cmake_parse_arguments(arg "" "" "DEPENDS;LINK;TOGETHER" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cpp)
  add_library(llminfer_${name} OBJECT ${sources})
  llminfer_compile_settings(llminfer_${name})
  llminfer_precompile(llminfer_${name} llminfer_precompiled)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")  # whose baseline has no fused multiply-add
    target_compile_options(llminfer_${name} PRIVATE -ffp-contract=off)  # the same bits on all processors
  endif()
  foreach(layer IN LISTS arg_DEPENDS)
    target_link_libraries(llminfer_${name} PUBLIC llminfer_${layer})
  endforeach()
  target_link_libraries(llminfer_${name} PUBLIC ${arg_LINK})
  set_target_properties(llminfer_${name} PROPERTIES UNITY_BUILD_MODE GROUP)
  set(count 0)
  foreach(file IN LISTS arg_TOGETHER)
    math(EXPR group "${count} / 8")
    math(EXPR count "${count} + 1")
    set_source_files_properties(${file}.cpp PROPERTIES UNITY_GROUP ${group})
  endforeach()
  set_property(GLOBAL APPEND PROPERTY LLMINFER_LAYERS llminfer_${name})
endfunction()

# What every target of the project is compiled with.
function(llminfer_compile_settings target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall> $<$<COMPILE_LANGUAGE:CXX>:-Wextra>)
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
  if(LLMINFER_SANITIZE)
    target_compile_options(${target} PUBLIC -fsanitize=${LLMINFER_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${LLMINFER_SANITIZE})
  endif()
  if(BUILD_SHARED_LIBS)
    target_compile_definitions(${target} PRIVATE LLMINFER_SHARED)
  endif()
endfunction()

# llminfer_precompile(TARGET OWNER [HEADER…]): with the common headers, precompiled once for all targets that name OWNER;
# that one itself names what else they have. Sources with instruction sets of their own skip them, and a project that has
# this one as a part is not asked to care.
function(llminfer_precompile target owner)
  if(CMAKE_DISABLE_PRECOMPILE_HEADERS OR NOT PROJECT_IS_TOP_LEVEL)
    return()
  endif()
  if(target STREQUAL owner)
    target_precompile_headers(${target} PRIVATE "${PROJECT_SOURCE_DIR}/cmake/precompiled.hpp" ${ARGN})
  else()
    target_precompile_headers(${target} REUSE_FROM ${owner})
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # for ccache, both
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
    if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)  # which then warns of its own std::string
      target_compile_options(${target} PRIVATE -Wno-stringop-overflow -Wno-array-bounds)
    endif()
  elseif(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-Xclang -fno-pch-timestamp>")
  endif()
endfunction()

add_library(llminfer_precompiled OBJECT ${PROJECT_SOURCE_DIR}/cmake/precompiled.cpp)
llminfer_compile_settings(llminfer_precompiled)
llminfer_precompile(llminfer_precompiled llminfer_precompiled)

# For programs that offer the components of this build: LLMINFER_HAS_CUDA, LLMINFER_HAS_HIP, LLMINFER_HAS_MPI.
function(llminfer_link_components target)
  foreach(component cuda hip mpi)
    if(TARGET llminfer_${component})
      string(TOUPPER ${component} upper)
      target_link_libraries(${target} PRIVATE llminfer::${component})
      target_compile_definitions(${target} PRIVATE LLMINFER_HAS_${upper})
    endif()
  endforeach()
endfunction()

# For targets in which gcc 12 sees overlapping copies inside std::string's own functions (bug 105651 of gcc, mended in 13).
function(llminfer_without_restrict_warnings target)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-restrict)
  endif()
endfunction()

# The library: the objects of all layers.
function(llminfer_add_library)
  get_property(layers GLOBAL PROPERTY LLMINFER_LAYERS)
  add_library(llminfer)
  add_library(llminfer::llminfer ALIAS llminfer)
  foreach(layer IN LISTS layers)
    target_sources(llminfer PRIVATE $<TARGET_OBJECTS:${layer}>)
  endforeach()
  target_compile_features(llminfer PUBLIC cxx_std_20)
  target_include_directories(llminfer PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
  target_link_libraries(llminfer PRIVATE PkgConfig::LLMINFER_PCRE2 PkgConfig::LLMINFER_UTF8PROC Threads::Threads)
  if(BUILD_SHARED_LIBS)
    target_compile_definitions(llminfer PUBLIC LLMINFER_SHARED)
    if(NOT APPLE)  # libstdc++ gives its templates default visibility, whatever -fvisibility says; the script hides them
      set(map ${PROJECT_SOURCE_DIR}/cmake/llminfer.map)
      target_link_options(llminfer PRIVATE LINKER:--version-script=${map})
      set_property(TARGET llminfer APPEND PROPERTY LINK_DEPENDS ${map})
    endif()
  endif()
  if(LLMINFER_SANITIZE)
    target_link_options(llminfer PUBLIC -fsanitize=${LLMINFER_SANITIZE})
  endif()
  set_target_properties(llminfer PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
    LINKER_LANGUAGE CXX)
endfunction()
