// CUDA kernels on the processor: a stand-in for the toolkit's header, found before it on the include path.
//
// Every thread of a block is a fibre. The lanes of a warp run one after the other up to their next shuffle, exchange,
// and go on; a lane that shuffles differently from its neighbours, or ends before them, aborts the program, so the
// rule that all 32 lanes take part in every shuffle is tested too. Blocks and warps run in turn.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;

namespace emulator {

constexpr int WARP = 32;
constexpr size_t STACK = 256 << 10;

struct Exchange {
  unsigned char bytes[8];
  int source, size, width;
  bool xor_lane;
};

struct Lane {
  jmp_buf place;  // swapcontext would ask the system at every switch
  std::unique_ptr<char[]> stack;
  bool done;
  int shuffles;
};

inline jmp_buf scheduler;
inline std::vector<Lane> lanes(WARP);
inline Exchange exchanges[2][WARP];  // of the running shuffle and of the one before, which slower lanes still read
inline int current;
inline std::function<void()>* body;

inline void fail(const char* why) {
  std::fprintf(stderr, "emulator: block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, why);
  std::abort();
}

inline void pause() {
  if (!_setjmp(lanes[current].place)) _longjmp(scheduler, 1);
}

inline void resume() {
  if (!_setjmp(scheduler)) _longjmp(lanes[current].place, 1);
}

// A lane's fibre is entered once, and runs one body after the other.
inline void run_lane() {
  for (;;) {
    pause();
    (*body)();
    lanes[current].done = true;
  }
}

inline ucontext_t starter;

inline void start_lane() {
  ucontext_t context;
  getcontext(&context);
  lanes[current].stack = std::make_unique<char[]>(STACK);
  context.uc_stack.ss_sp = lanes[current].stack.get();
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, run_lane, 0);
  if (!_setjmp(scheduler)) swapcontext(&starter, &context);
}

template <typename T>
T shuffle(unsigned mask, T x, int source, int width, bool xor_lane) {
  if (mask != 0xffffffffu) fail("a mask that leaves lanes out");
  const int me = current, turn = lanes[me].shuffles++ % 2;
  Exchange& mine = exchanges[turn][me];
  mine = {{}, source, int(sizeof(T)), width, xor_lane};
  std::memcpy(mine.bytes, &x, sizeof(T));
  pause();
  const int base = me / width * width;
  const int from = xor_lane ? me ^ source : base + source % width;
  if (from / width != me / width) fail("a lane outside the group");
  const Exchange& other = exchanges[turn][from];
  if (other.size != int(sizeof(T)) || other.width != width || other.xor_lane != xor_lane) fail("shuffles differ");
  T result;
  std::memcpy(&result, other.bytes, sizeof(T));
  return result;
}

inline void run_warp(unsigned first_thread) {
  for (current = 0; current < WARP; ++current) {
    if (!lanes[current].stack) start_lane();
    lanes[current].done = false;
    lanes[current].shuffles = 0;
  }
  for (bool running = true; running;) {
    int done = 0;
    for (current = 0; current < WARP; ++current) {
      threadIdx = dim3(first_thread + current);
      resume();
      done += lanes[current].done;
    }
    if (done != 0 && done != WARP) fail("some lanes ended while others shuffle");
    running = done == 0;
  }
}

}  // namespace emulator

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... args) {
  if (config->blockDim.x % emulator::WARP || !config->gridDim.x) return cudaErrorInvalidConfiguration;
  if (config->dynamicSmemBytes > 48 << 10 || config->blockDim.x > 1024) return cudaErrorInvalidConfiguration;
  std::function<void()> body = [&] { kernel(args...); };
  emulator::body = &body;
  blockDim = config->blockDim;
  gridDim = config->gridDim;
  for (unsigned block = 0; block < gridDim.x; ++block) {
    blockIdx = dim3(block);
    for (unsigned thread = 0; thread < blockDim.x; thread += emulator::WARP) emulator::run_warp(thread);
  }
  return cudaSuccess;
}

template <typename T>
T __shfl_sync(unsigned mask, T x, int lane, int width) {
  return emulator::shuffle(mask, x, lane, width, false);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int bits, int width) {
  return emulator::shuffle(mask, x, bits, width, true);
}
template <typename T>
T __ldg(const T* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T)) emulator::fail("a misaligned load");
  return *at;
}
template <typename T, typename U>
T atomicAdd(T* at, U x) {
  const T old = *at;
  *at += x;
  return old;
}
template <typename T>
T atomicMax(T* at, T x) {
  const T old = *at;
  *at = std::max(old, x);
  return old;
}
inline long long __double2ll_rn(double x) { return std::llrint(x); }
inline long long __double_as_longlong(double x) {
  long long bits;
  std::memcpy(&bits, &x, sizeof(x));
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

struct cudaFuncAttributes {};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* at, int byte, size_t size, cudaStream_t) {
  std::memset(at, byte, size);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
