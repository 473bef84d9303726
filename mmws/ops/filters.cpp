// Standardized filters, and their gradient: each value is read from memory once. mmws/ops/cpp_kernels.py builds this
// file, and documents the two functions.
//
// The formulas are those of kernels.py. A row has one filter. A row fits into the cache of a core, so only its first
// pass reads memory. Sums have LANES parts: compilers turn the inner loops into vector instructions.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

// Compile a function for several CPUs. The program takes the best one that its CPU has.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define FOR_EACH_CPU
#endif
#ifdef _MSC_VER
#define INLINE __forceinline
#else
#define INLINE inline __attribute__((always_inline))
#endif

namespace {

constexpr int64_t LANES = 32;
constexpr int64_t PARALLEL = 32768;  // fewer values are not worth a second thread

// Return the sum of f(i) for i from 0 to n - 1.
template <typename T, typename F>
INLINE double sum(int64_t n, F f) {
  T lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int64_t lane = 0; lane < LANES; ++lane) lanes[lane] += f(i + lane);
  double total = 0;
  for (; i < n; ++i) total += f(i);
  for (int64_t lane = 0; lane < LANES; ++lane) total += lanes[lane];
  return total;
}

template <typename T>
INLINE void standardize_row(const T* x, T* y, int64_t n, double eps, double unbias, T* reciprocal, T* affine) {
  constexpr double tiny = std::numeric_limits<T>::min();
  const T first = x[0];  // differences from it: a constant filter has the variance 0 exactly
  const T mean = static_cast<T>(first + sum<T>(n, [=](int64_t i) { return x[i] - first; }) / n);
  const double offset = sum<T>(n, [=](int64_t i) { return x[i] - mean; }) / n;  // of the rounded mean
  double squares = sum<T>(n, [=](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / n;
  if (!std::isfinite(squares))  // too large for T
    squares = sum<double>(n, [=](int64_t i) { return std::pow(static_cast<double>(x[i]) - mean, 2); }) / n;
  const double biased = std::sqrt(squares - offset * offset + tiny);
  const double std = biased * unbias, divisor = std + eps;
  const T scale = biased <= 2 * std::sqrt(tiny) ? 0 : static_cast<T>(1 / divisor);
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * scale;
  const double factor = std::sqrt(divisor / std) * unbias;
  *reciprocal = static_cast<T>(factor);
  *affine = static_cast<T>(1 / (factor * divisor));
}

template <typename T>
INLINE void gradient_row(const T* grad, const T* y, T* out, int64_t n, double reciprocal, double affine) {
  const double mean = sum<T>(n, [=](int64_t i) { return grad[i]; }) / n;
  const double product = sum<T>(n, [=](int64_t i) { return grad[i] * y[i]; }) / n;
  const T scale = static_cast<T>(reciprocal * affine);
  const T along = static_cast<T>(-affine * reciprocal * reciprocal * reciprocal * product);
  const T shift = static_cast<T>(-reciprocal * affine * mean);
  for (int64_t i = 0; i < n; ++i) out[i] = scale * grad[i] + along * y[i] + shift;
}

FOR_EACH_CPU void standardize(const float* x, float* y, int64_t n, double eps, double unbias, float* r, float* a) {
  standardize_row(x, y, n, eps, unbias, r, a);
}
FOR_EACH_CPU void standardize(const double* x, double* y, int64_t n, double eps, double unbias, double* r, double* a) {
  standardize_row(x, y, n, eps, unbias, r, a);
}
FOR_EACH_CPU void gradient(const float* grad, const float* y, float* out, int64_t n, double r, double a) {
  gradient_row(grad, y, out, n, r, a);
}
FOR_EACH_CPU void gradient(const double* grad, const double* y, double* out, int64_t n, double r, double a) {
  gradient_row(grad, y, out, n, r, a);
}

template <typename F>
void for_each_row(const at::Tensor& rows, F f) {
  const int64_t count = rows.size(0);
  const bool serial = rows.numel() < PARALLEL || at::in_parallel_region();
  [[maybe_unused]] const int threads = serial ? 1 : at::get_num_threads();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < count; ++row) f(row);
}

void check(const at::Tensor& rows, const at::Tensor& other) {
  TORCH_CHECK(rows.dim() == 2 && rows.is_contiguous() && other.is_contiguous() && rows.sizes() == other.sizes() &&
              rows.scalar_type() == other.scalar_type() && rows.is_cpu() && other.is_cpu(),
              "expected two contiguous matrices of one shape and dtype, on the CPU");
}

at::Tensor standardize_rows(const at::Tensor& rows, double eps, bool unbiased, at::Tensor out) {
  check(rows, out);
  const int64_t count = rows.size(0), n = rows.size(1);
  const double unbias = std::sqrt(static_cast<double>(n) / static_cast<double>(n - unbiased));
  at::Tensor factors = at::empty({2, count}, rows.options());
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "standardize_rows", [&] {
    const scalar_t* x = rows.const_data_ptr<scalar_t>();
    scalar_t *y = out.mutable_data_ptr<scalar_t>(), *f = factors.mutable_data_ptr<scalar_t>();
    for_each_row(rows, [&](int64_t row) {
      standardize(x + row * n, y + row * n, n, eps, unbias, f + row, f + count + row);
    });
  });
  if (!out.is_inference()) out.unsafeGetTensorImpl()->bump_version();  // a graph that has saved it must not use it
  return factors;
}

at::Tensor gradient_rows(const at::Tensor& grad, const at::Tensor& standardized, const at::Tensor& both_factors) {
  check(grad, standardized);
  const at::Tensor factors = both_factors.contiguous();
  TORCH_CHECK(factors.numel() == 2 * grad.size(0) && factors.scalar_type() == grad.scalar_type(),
              "expected two factors per filter");
  const int64_t count = grad.size(0), n = grad.size(1);
  at::Tensor out = at::empty_like(grad);
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "gradient_rows", [&] {
    const scalar_t *g = grad.const_data_ptr<scalar_t>(), *y = standardized.const_data_ptr<scalar_t>();
    const scalar_t* f = factors.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    for_each_row(grad, [&](int64_t row) {
      gradient(g + row * n, y + row * n, to + row * n, n, f[row], f[count + row]);
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY(mmws_cpp, library) {
  library.def("standardize_rows(Tensor rows, float eps, bool unbiased, Tensor(a!) out) -> Tensor");
  library.def("gradient_rows(Tensor grad, Tensor standardized, Tensor factors) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmws_cpp, CPU, library) {
  library.impl("standardize_rows", &standardize_rows);
  library.impl("gradient_rows", &gradient_rows);
}
