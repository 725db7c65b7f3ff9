// The device's properties, and kernels as nvcc's host code registers and launches them.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace {

std::map<const void*, std::string> kernels;

int launch(const void* function, void** arguments, void* on) {
  std::lock_guard guard(lock);
  counters().kernels++;
  const auto known = kernels.find(function);
  const std::string& name = known == kernels.end() ? std::string() : known->second;
  Op op = kernel(name, arguments);
  if (!op) {
    counters().unknown_kernels++;
    static const bool verbose = getenv("FAKE_CUDA_VERBOSE");
    if (verbose) fprintf(stderr, "fake_cuda: no kernel %s\n", name.c_str());
    return fail(kNotSupported);
  }
  return enqueue(on, std::move(op));
}

}  // namespace

struct Dim3 {
  unsigned x, y, z;
};

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*,
                            void*, void*, int*) {
  std::lock_guard guard(lock);
  kernels[function] = name;
}

namespace {
struct Configuration {
  Dim3 grid, block;
  size_t shared;
  void* stream;
};
thread_local std::vector<Configuration> configurations;
}  // namespace

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void** stream) {
  const Configuration last = configurations.back();
  configurations.pop_back();
  *grid = last.grid, *block = last.block, *shared = last.shared, *stream = last.stream;
  return 0;
}
int __cudaGetKernel(void** kernel, const void* function) {
  *kernel = const_cast<void*>(function);
  return 0;
}
int __cudaLaunchKernel(void* kernel, Dim3, Dim3, void** arguments, size_t, void* stream) {
  return launch(kernel, arguments, stream);
}
int cudaLaunchKernel(const void* function, Dim3, Dim3, void** arguments, size_t, void* stream) {
  return launch(function, arguments, stream);
}
int cudaLaunchCooperativeKernel(const void* function, Dim3, Dim3, void** arguments, size_t,
                                void* stream) {
  return launch(function, arguments, stream);
}
int cudaLaunchKernelExC(const void* configuration, const void* function, void** arguments) {
  void* stream;
  memcpy(&stream, static_cast<const char*>(configuration) + 32, sizeof stream);
  return launch(function, arguments, stream);
}

int cudaGetDeviceCount(int* count) { return *count = 1, 0; }
int cudaGetDevice(int* device) { return *device = 0, 0; }
int cudaSetDevice(int) {
  std::lock_guard guard(lock);
  return broken();
}
int cudaDriverGetVersion(int* version) { return *version = 13000, 0; }
int cudaRuntimeGetVersion(int* version) { return *version = 13000, 0; }

int cudaGetDeviceProperties(void* properties, int) {  // CUDA 13's cudaDeviceProp: offsets in bytes
  char* const at = static_cast<char*>(properties);
  memset(at, 0, 1008);
  strcpy(at, "Fake GPU");
  auto put = [at](size_t offset, auto value) { memcpy(at + offset, &value, sizeof value); };
  put(288, size_t{1} << 30);   // totalGlobalMem
  put(296, size_t{49152});     // sharedMemPerBlock
  put(304, 65536);             // regsPerBlock
  put(308, 32);                // warpSize
  put(320, 1024);              // maxThreadsPerBlock
  for (int axis = 0; axis < 3; axis++) put(324 + 4 * axis, 1024), put(336 + 4 * axis, 65535);
  put(360, 9);                 // major
  put(384, 132);               // multiProcessorCount
  put(588, 1);                 // unifiedAddressing
  put(604, 2048);              // maxThreadsPerMultiProcessor
  put(624, size_t{233472});    // sharedMemPerMultiprocessor
  put(632, 65536);             // regsPerMultiprocessor
  put(672, size_t{232448});    // sharedMemPerBlockOptin
  return 0;
}
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  const std::map<int, int> known{{1, 1024}, {8, 49152}, {10, 32}, {16, 132}, {39, 2048},
                                 {75, 9},   {76, 0},    {81, 233472}, {97, 232448}};
  const auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;
  return 0;
}
int cudaFuncGetAttributes(void* attributes, const void*) {
  memset(attributes, 0, 144);
  const int threads = 1024;
  memcpy(static_cast<char*>(attributes) + 24, &threads, sizeof threads);
  return 0;
}
int cudaFuncSetAttribute(const void*, int, int) { return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                           unsigned) {
  return *blocks = 2, 0;
}
// Functions that the provider needs to load, and that our graphs never call.

#define REFUSED(name) \
  int name() { return fail(kNotSupported); }
REFUSED(cudaFreeAsync)
REFUSED(cudaGetDriverEntryPointByVersion)
REFUSED(cudaKernelSetAttributeForDevice)
REFUSED(cudaLibraryGetKernel)
REFUSED(cudaLibraryLoadData)
REFUSED(cudaLibraryUnload)
REFUSED(cudaMallocFromPoolAsync)
REFUSED(cudaMemcpy2DAsync)
REFUSED(cudaMemcpyFromSymbol)
REFUSED(cudaMemPoolCreate)
REFUSED(cudaMemPoolDestroy)
REFUSED(cudaMemPoolGetAttribute)
REFUSED(cudaMemPoolSetAttribute)
REFUSED(cudaMemPoolTrimTo)

}  // extern "C"
