// The CUDA library, its kernels run by the emulator.
#include "cuda_runtime.h"

namespace msda {
double kept_by_all[6144];  // a block's dynamic shared memory
}

#include "cuda.cu"
