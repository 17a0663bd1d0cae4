# The kernels, one object library per instruction set of this processor: the same body, each with its own flags.
# Gives runtime_options, what all our own objects share, and CPU_ISAS, the names of the libraries.

# No contraction of a * b + c: the kernels say themselves where they want it, so that dequantisation gives the bits
# the formats define.
add_library(runtime_options INTERFACE)
target_compile_options(runtime_options INTERFACE -Wall -Wextra -Wno-psabi -ffp-contract=off)

function(add_kernels name optimisation)
  add_library(cpu_${name} OBJECT ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/isa_${name}.cpp)
  target_link_libraries(cpu_${name} PRIVATE runtime_options)
  set_target_properties(cpu_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
  if(RUNTIME_SANITIZE)
    set(optimisation -O1) # instrumented vector code at -O3 compiles for many minutes
  endif()
  target_compile_options(cpu_${name} PRIVATE ${optimisation} ${ARGN})
  set(CPU_ISAS ${CPU_ISAS} cpu_${name} PARENT_SCOPE)
endfunction()

set(CPU_ISAS)
add_kernels(generic -O2)
add_kernels(avx512_emulated -O2)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(AVX2 -mavx2 -mfma -mf16c -mbmi2)
  add_kernels(avx2 -O3 ${AVX2})
  add_kernels(avxvnni -O3 ${AVX2} -mavxvnni)
  # -Wno-maybe-uninitialized: false alarms inside GCC's own AVX-512 headers (GCC bug 105593)
  add_kernels(
    avx512 -O3 ${AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -Wno-maybe-uninitialized)
  target_compile_definitions(runtime_options INTERFACE KERNELS_X86=1)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  add_kernels(neon -O3 -march=armv8.2-a+dotprod)
  target_compile_definitions(runtime_options INTERFACE KERNELS_ARM=1)
endif()
