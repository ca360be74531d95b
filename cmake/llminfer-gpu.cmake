# Libraries of GPU backends.

# llminfer_gpu_library(NAME LANGUAGE [OBJECT…]): library llminfer_NAME, target llminfer::NAME, of backends/NAME/runtime.cpp, the
# host code that all GPU backends share, and the kernels: as sources in LANGUAGE, or as objects that were made otherwise.
function(llminfer_gpu_library name language)
  add_library(llminfer_${name} runtime.cpp $<TARGET_OBJECTS:llminfer_gpu> ${ARGN})
  add_library(llminfer::${name} ALIAS llminfer_${name})
  llminfer_compile_settings(llminfer_${name})
  set_target_properties(llminfer_${name} PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
    EXPORT_NAME ${name} LINKER_LANGUAGE CXX)
  if(language)
    file(GLOB kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/backends/gpu/kernels/*.cu)
    set_source_files_properties(${kernels} PROPERTIES LANGUAGE ${language})
    target_sources(llminfer_${name} PRIVATE ${kernels})
  endif()
  target_link_libraries(llminfer_${name} PUBLIC llminfer)
  if(BUILD_SHARED_LIBS)  # the shared llminfer shows nothing of its inside
    target_sources(llminfer_${name} PRIVATE $<TARGET_OBJECTS:llminfer_backend_common> $<TARGET_OBJECTS:llminfer_quant>
      $<TARGET_OBJECTS:llminfer_core>)
    target_link_libraries(llminfer_${name} PRIVATE Threads::Threads)
    set(map ${PROJECT_SOURCE_DIR}/cmake/llminfer-gpu.map)
    target_link_options(llminfer_${name} PRIVATE LINKER:--version-script=${map} LINKER:--no-undefined)
    set_property(TARGET llminfer_${name} APPEND PROPERTY LINK_DEPENDS ${map})
  endif()
endfunction()

# llminfer_hip_objects(OBJECTS SOURCE…): objects of HIP sources, in the current folder, where HIP is not a language of CMake's.
function(llminfer_hip_objects objects)
  set(made "")
  foreach(source IN LISTS ARGN)
    get_filename_component(name ${source} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.o)
    add_custom_command(OUTPUT ${object} COMMAND ${LLMINFER_HIP_COMMAND} -MD -MF ${object}.d -c ${source} -o ${object}
      DEPENDS ${source} DEPFILE ${object}.d COMMENT "Building HIP object ${name}.o" VERBATIM)
    list(APPEND made ${object})
  endforeach()
  set(${objects} ${made} PARENT_SCOPE)
endfunction()

# llminfer_find_hip_compiler(): CMAKE_HIP_COMPILER, if nobody has named a compiler, where ROCm has the files that CMake's
# language HIP needs at the places where that looks for them. Debian's packages have them at others.
function(llminfer_find_hip_compiler)
  if(CMAKE_HIP_COMPILER OR LLMINFER_HIPCC)
    return()
  endif()
  foreach(root IN ITEMS $ENV{ROCM_PATH} ${CMAKE_PREFIX_PATH} /opt/rocm)
    if(EXISTS ${root}/lib/cmake/hip-lang/hip-lang-config.cmake AND EXISTS ${root}/llvm/bin/clang++)
      set(CMAKE_HIP_COMPILER ${root}/llvm/bin/clang++ CACHE FILEPATH "HIP compiler")
      return()
    endif()
  endforeach()
endfunction()
