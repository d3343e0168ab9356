// The CUDA library behind ms_deform_attn.h: checks, the choice of a kernel, launches on the given stream.

#include <algorithm>
#include <climits>
#include <initializer_list>
#include <iterator>
#include <type_traits>

#include "backward.cuh"
#include "forward.cuh"

namespace msda {
namespace {

int status(cudaError_t error) {
  if (error == cudaSuccess) return LOCAP_MSDA_OK;
  cudaGetLastError();  // reported here: not once more to whoever asks next
  return LOCAP_MSDA_CUDA_ERROR + int(error);
}

// Makes a device current for one call.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error = cudaGetDevice(&before_);
    if (error == cudaSuccess && before_ != device) {
      error = cudaSetDevice(device);
      changed_ = error == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  cudaError_t error;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, cudaStream_t stream,
                   const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

bool multiplies_within(int64_t limit, std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (size && product > limit / size) return false;
    product *= std::max<int64_t>(size, 1);
  }
  return true;
}

// Checked sizes and the levels. LOCAP_MSDA_OK or an error.
int read_problem(const locap_msda_problem& given, Problem& p) {
  const int64_t sizes[] = {given.batch, given.tokens, given.heads, given.dim,
                           given.queries, given.levels, given.points};
  if (std::any_of(std::begin(sizes), std::end(sizes), [](int64_t size) { return size < 0; })) {
    return LOCAP_MSDA_BAD_SIZES;
  }
  if (given.levels > LOCAP_MSDA_MAX_LEVELS || given.tokens >= MAX_TOKENS ||
      given.queries > INT_MAX - BackwardTile::QUERIES || given.heads > INT_MAX || given.dim > INT_MAX ||
      !multiplies_within(INT_MAX, {given.levels, given.points}) ||
      !multiplies_within(INT64_MAX / 16, {given.batch, given.tokens, given.heads, given.dim}) ||
      !multiplies_within(INT64_MAX / 16, {given.batch, given.queries, given.heads, given.dim}) ||
      !multiplies_within(INT64_MAX / 32, {given.batch, given.queries, given.heads, given.levels, given.points})) {
    return LOCAP_MSDA_BAD_SIZES;
  }
  p.tokens = int(given.tokens);
  p.queries = int(given.queries);
  p.heads = int(given.heads);
  p.dim = int(given.dim);
  p.levels = int(given.levels);
  p.points = int(given.points);
  p.value_image = given.value_strides[0];
  p.value_token = given.value_strides[1];
  p.value_head = given.value_strides[2];
  p.queries_are_tokens = given.queries == given.tokens;
  int64_t start = 0;
  for (int l = 0; l < p.levels; ++l) {
    const int64_t height = given.shapes[2 * l], width = given.shapes[2 * l + 1];
    if (height < 0 || width < 0 || !multiplies_within(given.tokens, {height, width})) return LOCAP_MSDA_BAD_SIZES;
    const int64_t size = height * width;
    // Samples of an empty level count for nothing, but they read: from token 0.
    p.level[l] = size ? Level{int(height), int(width), uint32_t(start), 0} : Level{0, 0, 0, 0};
    start += size;
    if (start > given.tokens) return LOCAP_MSDA_BAD_SIZES;
  }
  return start == given.tokens ? LOCAP_MSDA_OK : LOCAP_MSDA_BAD_SIZES;
}

// Divides the queries into tiles and returns the number of blocks; 0 if there are too many.
template <typename Tile>
int64_t divide(Problem& p, int64_t batch) {
  int64_t tiles = 0;
  if (p.queries_are_tokens) {
    for (int l = 0; l < p.levels; ++l) {
      p.level[l].first_tile = uint32_t(tiles);
      tiles += (int64_t(p.level[l].height) + Tile::HEIGHT - 1) / Tile::HEIGHT *
               ((int64_t(p.level[l].width) + Tile::WIDTH - 1) / Tile::WIDTH);
    }
  } else {
    tiles = (int64_t(p.queries) + Tile::QUERIES - 1) / Tile::QUERIES;
  }
  p.tiles = int(tiles);
  return multiplies_within(INT_MAX, {batch, tiles, p.heads}) ? batch * tiles * p.heads : 0;
}

bool nothing_to_sum(const locap_msda_problem& given) {
  return !given.batch || !given.tokens || !given.heads || !given.dim || !given.queries || !given.levels ||
         !given.points;
}

cudaError_t clear(void* at, int64_t count, int64_t size, cudaStream_t stream) {
  return at && count ? cudaMemsetAsync(at, 0, size_t(count * size), stream) : cudaSuccess;
}

bool aligned(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

// Wide loads need every row of channels to begin on 16 bytes.
bool rows_aligned(const locap_msda_problem& given, int64_t size, std::initializer_list<const void*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), aligned) &&
         std::all_of(given.value_strides, given.value_strides + 3,
                     [size](int64_t stride) { return stride * size % 16 == 0; });
}

template <int VEC_, int LANES_>
struct Shape {
  static constexpr int VEC = VEC_, LANES = LANES_;
};

// Calls `use` with the lanes of a width that has its own kernel, else with those of the kernel for any width.
template <typename T, typename Use>
int with_shape(int64_t dim, bool wide, const Use& use) {
  if constexpr (sizeof(T) <= 4) {
    constexpr int VEC = 16 / sizeof(T);
    switch (wide ? dim : 0) {
      case 16:
        return use(Shape<VEC, 16 / VEC>{});
      case 32:
        return use(Shape<VEC, 32 / VEC>{});
      case 64:
        return use(Shape<VEC, 64 / VEC>{});
      case 128:
        return use(Shape<VEC, 128 / VEC>{});
      default:
        break;
    }
  }
  return use(Shape<1, 8>{});
}

// One call: the problem as given and as the kernels read it.
struct Call {
  const locap_msda_problem& given;
  Problem problem{};
  cudaStream_t stream = static_cast<cudaStream_t>(given.stream);

  int64_t values() const { return given.batch * given.tokens * given.heads * given.dim; }
  int64_t outputs() const { return given.batch * given.queries * given.heads * given.dim; }
  int64_t samples() const { return given.batch * given.queries * given.heads * given.levels * given.points; }
};

template <typename T, typename Inputs>
int forward(const Call& call, const Inputs& inputs, const void* value, void* out) {
  if (nothing_to_sum(call.given)) return status(clear(out, call.outputs(), sizeof(T), call.stream));
  const bool wide = rows_aligned(call.given, sizeof(T), {value, out});
  return with_shape<T>(call.given.dim, wide, [&](auto shape) {
    constexpr int VEC = decltype(shape)::VEC, LANES = decltype(shape)::LANES;
    Problem problem = call.problem;
    const int64_t blocks = divide<ForwardTile<LANES>>(problem, call.given.batch);
    if (!blocks) return int(LOCAP_MSDA_BAD_SIZES);
    return status(launch(forward_kernel<VEC, LANES, T, Inputs>, blocks, FORWARD_THREADS<LANES>, 0, call.stream, problem,
                         inputs, static_cast<const T*>(value), static_cast<T*>(out)));
  });
}

// The softmax keeps a number per sample in shared memory: fewer threads where there are many samples.
template <typename Shape, typename T, typename Inputs, typename Sum>
int launch_backward(const Call& call, const Inputs& inputs, const T* value, const T* grad_out, const Sum& sum) {
  constexpr int LANES = Shape::LANES;
  constexpr int64_t LIMIT = 48 << 10;
  int threads = BACKWARD_THREADS<LANES>;
  int64_t shared = 0;
  if constexpr (Inputs::fused) {
    const int64_t steps = (call.given.points + STEP<LANES> - 1) / STEP<LANES>;
    const int64_t bytes = call.given.levels * steps * int64_t(sizeof(typename Inputs::real));
    while (threads > 32 && bytes * threads > LIMIT) threads /= 2;
    shared = bytes * threads;
    if (shared > LIMIT) return LOCAP_MSDA_BAD_SIZES;
  }
  Problem problem = call.problem;
  const int64_t blocks = divide<BackwardTile>(problem, call.given.batch);
  if (!blocks) return LOCAP_MSDA_BAD_SIZES;
  return status(launch(backward_kernel<Shape::VEC, LANES, T, Inputs, Sum>, blocks, threads, shared, call.stream, problem,
                       inputs, value, grad_out, sum));
}

int64_t exact_bytes(const locap_msda_problem& given) {
  return 256 + given.batch * given.tokens * given.heads * given.dim * int64_t(sizeof(unsigned long long));
}

template <typename T, typename Inputs>
int backward_exactly(const Call& call, const Inputs& inputs, const T* value, const T* grad_out,
                     typename Inputs::real* grad_value) {
  using real = typename Inputs::real;
  if (call.given.workspace_bytes < exact_bytes(call.given)) return LOCAP_MSDA_WORKSPACE_TOO_SMALL;
  Units* units = static_cast<Units*>(call.given.workspace);
  auto* sums = reinterpret_cast<unsigned long long*>(static_cast<char*>(call.given.workspace) + 256);
  const auto blocks_for = [](int64_t count) { return (count + MAX_THREADS - 1) / MAX_THREADS; };
  const auto scan_blocks = [&](int64_t count) { return std::min<int64_t>(blocks_for(count), 1024); };
  cudaError_t error = clear(call.given.workspace, exact_bytes(call.given), 1, call.stream);
  if (error == cudaSuccess) {
    error = launch(find_largest<T>, scan_blocks(call.outputs()), MAX_THREADS, 0, call.stream, grad_out, call.outputs(),
                   &units->grad_out);
  }
  if constexpr (!Inputs::fused) {
    if (error == cudaSuccess) {
      error = launch(find_largest<real>, scan_blocks(call.samples()), MAX_THREADS, 0, call.stream, inputs.weights,
                     call.samples(), &units->weight);
    }
  }
  if (error == cudaSuccess) {
    const double terms = double(call.given.queries) * double(call.given.points);
    error = launch(choose_units, 1, 32, 0, call.stream, units, terms, bool(Inputs::fused));
  }
  if (error != cudaSuccess) return status(error);
  const int code = launch_backward<Shape<1, 8>>(call, inputs, value, grad_out, FixedPoint<real>{sums, units});
  if (code != LOCAP_MSDA_OK) return code;
  return status(launch(to_floating<real>, blocks_for(call.values()), MAX_THREADS, 0, call.stream, sums, units,
                       call.values(), grad_value));
}

template <typename T, typename Inputs>
int backward(const Call& call, const Inputs& inputs, const void* value_, const void* grad_out_, void* grad_value_,
             int64_t point_size) {
  using real = typename Inputs::real;
  const T *value = static_cast<const T*>(value_), *grad_out = static_cast<const T*>(grad_out_);
  real* grad_value = static_cast<real*>(grad_value_);
  if (nothing_to_sum(call.given)) {
    cudaError_t error = clear(grad_value, call.values(), sizeof(real), call.stream);
    if (error == cudaSuccess) error = clear(inputs.grad_points(), 2 * call.samples(), point_size, call.stream);
    if (error == cudaSuccess) error = clear(inputs.grad_shares(), call.samples(), point_size, call.stream);
    return status(error);
  }
  if (call.given.deterministic && grad_value) return backward_exactly(call, inputs, value, grad_out, grad_value);
  const cudaError_t error = clear(grad_value, call.values(), sizeof(real), call.stream);
  if (error != cudaSuccess) return status(error);
  const bool wide = rows_aligned(call.given, sizeof(T), {value, grad_out, grad_value});
  return with_shape<T>(call.given.dim, wide, [&](auto shape) {
    return launch_backward<decltype(shape)>(call, inputs, value, grad_out, Floating<real>{grad_value});
  });
}

// Calls `use` with a T* of the given type code.
template <typename Use>
int with_type(int dtype, const Use& use) {
  switch (dtype) {
    case LOCAP_MSDA_F32:
      return use(static_cast<float*>(nullptr));
    case LOCAP_MSDA_F16:
      return use(static_cast<__half*>(nullptr));
    case LOCAP_MSDA_BF16:
      return use(static_cast<__nv_bfloat16*>(nullptr));
    case LOCAP_MSDA_F64:
      return use(static_cast<double*>(nullptr));
    default:
      return LOCAP_MSDA_BAD_DTYPE;
  }
}

// Checks the call, makes its device current and calls `use` with the call and the type of value.
template <typename Use>
int with_call(const locap_msda_problem* given, const Use& use) {
  Call call{*given};
  const int code = read_problem(*given, call.problem);
  if (code != LOCAP_MSDA_OK) return code;
  const DeviceGuard guard(given->device);
  if (guard.error != cudaSuccess) return status(guard.error);
  return with_type(given->dtype, [&](auto type) { return use(call, type); });
}

template <typename T>
Given<wider<T>> given_inputs(const void* locations, const void* weights, void* grad_locations, void* grad_weights) {
  using C = wider<T>;
  return {static_cast<const C*>(locations), static_cast<const C*>(weights), static_cast<C*>(grad_locations),
          static_cast<C*>(grad_weights)};
}

// Calls `use` with the fused inputs and the size of one of their offsets.
template <typename T, typename Use>
int with_fused_inputs(const locap_msda_problem& given, const void* offsets, const void* logits, const void* reference,
                      void* grad_offsets, void* grad_logits, const Use& use) {
  using C = wider<T>;
  if (given.reference_dim != 2 && given.reference_dim != 4) return LOCAP_MSDA_BAD_SIZES;
  const int64_t* strides = given.reference_strides;
  const bool boxes = given.reference_dim == 4;
  const bool wide = given.points_dtype == LOCAP_MSDA_F32 || given.points_dtype == LOCAP_MSDA_F64;
  if (given.points_dtype != given.dtype && !(sizeof(T) == 2 && given.points_dtype == LOCAP_MSDA_F32)) {
    return LOCAP_MSDA_BAD_DTYPE;
  }
  const auto* points = static_cast<const C*>(reference);
  const Fused<T, C> inputs{offsets,    logits,     points,     grad_offsets, grad_logits,
                           strides[0], strides[1], strides[2], boxes,        wide};
  return use(inputs, int64_t(wide ? sizeof(C) : sizeof(T)));
}

}  // namespace
}  // namespace msda

using namespace msda;

extern "C" {

int locap_msda_cuda_abi(void) { return LOCAP_MSDA_ABI; }

int locap_msda_cuda_usable(int device) {
  int devices = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && (device < 0 || device >= devices)) error = cudaErrorInvalidDevice;
  if (error != cudaSuccess) return status(error);
  const DeviceGuard guard(device);
  if (guard.error != cudaSuccess) return status(guard.error);
  cudaFuncAttributes attributes;  // fails where the library holds no code for this device
  return status(cudaFuncGetAttributes(&attributes, forward_kernel<1, 8, float, Given<float>>));
}

const char* locap_msda_cuda_error_text(int code) {
  switch (code) {
    case LOCAP_MSDA_OK:
      return "no error";
    case LOCAP_MSDA_BAD_DTYPE:
      return "these element types do not go together";
    case LOCAP_MSDA_BAD_SIZES:
      return "sizes are negative, too large or contradict each other";
    case LOCAP_MSDA_WORKSPACE_TOO_SMALL:
      return "the workspace is too small";
    default:
      return code >= LOCAP_MSDA_CUDA_ERROR ? cudaGetErrorString(cudaError_t(code - LOCAP_MSDA_CUDA_ERROR))
                                           : "unknown error";
  }
}

int64_t locap_msda_cuda_workspace(const locap_msda_problem* problem, int function) {
  const bool sums = function == LOCAP_MSDA_BACKWARD || function == LOCAP_MSDA_FUSED_BACKWARD;
  return sums && problem->deterministic && !nothing_to_sum(*problem) ? exact_bytes(*problem) : 0;
}

int locap_msda_cuda_forward(const locap_msda_problem* problem, const void* value, const void* locations,
                            const void* weights, void* out) {
  return with_call(problem, [&](const Call& call, auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return forward<T>(call, given_inputs<T>(locations, weights, nullptr, nullptr), value, out);
  });
}

int locap_msda_cuda_backward(const locap_msda_problem* problem, const void* value, const void* locations,
                             const void* weights, const void* grad_out, void* grad_value, void* grad_locations,
                             void* grad_weights) {
  return with_call(problem, [&](const Call& call, auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return backward<T>(call, given_inputs<T>(locations, weights, grad_locations, grad_weights), value, grad_out,
                       grad_value, sizeof(wider<T>));
  });
}

int locap_msda_cuda_fused_forward(const locap_msda_problem* problem, const void* value, const void* offsets,
                                  const void* logits, const void* reference, void* out) {
  return with_call(problem, [&](const Call& call, auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return with_fused_inputs<T>(*problem, offsets, logits, reference, nullptr, nullptr,
                                [&](const auto& inputs, int64_t) { return forward<T>(call, inputs, value, out); });
  });
}

int locap_msda_cuda_fused_backward(const locap_msda_problem* problem, const void* value, const void* offsets,
                                   const void* logits, const void* reference, const void* grad_out, void* grad_value,
                                   void* grad_offsets, void* grad_logits) {
  return with_call(problem, [&](const Call& call, auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return with_fused_inputs<T>(*problem, offsets, logits, reference, grad_offsets, grad_logits,
                                [&](const auto& inputs, int64_t point_size) {
                                  return backward<T>(call, inputs, value, grad_out, grad_value, point_size);
                                });
  });
}

}  // extern "C"
