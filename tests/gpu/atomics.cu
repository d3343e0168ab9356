// The floor of the backward: additions to memory alone, at the places where the kernel adds.
//
// Every group of dim / 4 lanes adds a row of one head to each of its tokens; -1 is no token.
#include <cuda_runtime.h>

#include <cstdint>

__global__ void add_rows(float* sums, const int* tokens, int64_t rows, int per_row, int heads, int dim,
                         int64_t rows_per_image, int64_t image_size) {
  const int lanes = dim / 4, lane = threadIdx.x % lanes;
  const int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  if (row >= rows) return;
  float* head = sums + row / rows_per_image * image_size + row % heads * dim;
  for (int i = 0; i < per_row; ++i) {
    const int token = tokens[row * per_row + i];
    if (token < 0) continue;
    float* at = head + int64_t(token) * heads * dim;
#if __CUDA_ARCH__ >= 900
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(
                     __cvta_generic_to_global(at + lane * 4)),
                 "f"(1.0f));
#else
    for (int j = 0; j < 4; ++j) atomicAdd(at + j * lanes + lane, 1.0f);
#endif
  }
}

extern "C" int add_rows_at(float* sums, const int* tokens, int64_t rows, int per_row, int heads, int dim,
                           int64_t rows_per_image, int64_t image_size, cudaStream_t stream) {
  const int64_t threads = rows * (dim / 4);
  add_rows<<<unsigned((threads + 255) / 256), 256, 0, stream>>>(sums, tokens, rows, per_row, heads, dim,
                                                                rows_per_image, image_size);
  return cudaGetLastError();
}
