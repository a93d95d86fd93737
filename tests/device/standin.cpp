// A device that is none: its memory and kernels are the CPU's, its rules those of a GPU. Tensors of two devices do not
// mix, NumPy and the CPU's generators are refused, and what waits for a real device is announced. Optionally it has no
// 64-bit floats, as Apple's MPS. There are two such devices, as what forgets a device's number works with one.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

namespace {

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex COUNT = 2;
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

std::atomic<bool> has_float64{true};
std::atomic<void (*)(const char*)> listener{nullptr};
thread_local int depth = 0;  // within a fallback, whose copies are no copies of the program's
thread_local c10::DeviceIndex current = 0;

void announce_wait(const std::string& reason) {
  auto listen = listener.load();
  if (!depth && listen) listen(reason.c_str());
}

void check_type(c10::ScalarType type) {
  if (depth || has_float64 || (type != c10::kDouble && type != c10::kComplexDouble)) return;
  TORCH_CHECK_TYPE(false, "Cannot convert a tensor of this device to float64: it has no such type. Use float32.");
}

// ---------------------------------------------------------------- memory and devices

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* data = size ? std::malloc(size) : nullptr;
    return {data, data, &std::free, c10::Device(TYPE, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t size) const override { std::memcpy(to, from, size); }
};
Memory memory;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return TYPE; }
  c10::Device getDevice() const override { return {TYPE, current}; }
  void setDevice(c10::Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    uncheckedSetDevice(device);
    return before;
  }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return COUNT; }
  void synchronizeDevice(const c10::DeviceIndex) const override { announce_wait("synchronisation"); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return COUNT; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
};
Hooks hooks;

// ---------------------------------------------------------------- tensors

c10::Device choose_device(std::optional<c10::Device> device) {
  const auto chosen = device && device->has_index() ? *device : c10::Device(TYPE, current);
  TORCH_CHECK(chosen.index() < COUNT, "There is no stand-in device of the number ", int(chosen.index()));
  return chosen;
}

at::Tensor empty(c10::IntArrayRef sizes, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                 std::optional<c10::Device> device, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  const auto type = dtype.value_or(c10::get_default_dtype_as_scalartype());
  check_type(type);
  c10::DeviceGuard guard(choose_device(device));
  return at::detail::empty_generic(sizes, &memory, KEYS, type, format);
}

at::Tensor empty_strided(c10::IntArrayRef sizes, c10::IntArrayRef strides, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
  const auto type = dtype.value_or(c10::get_default_dtype_as_scalartype());
  check_type(type);
  c10::DeviceGuard guard(choose_device(device));
  return at::detail::empty_strided_generic(sizes, strides, &memory, KEYS, type);
}

// The same memory as a tensor of the CPU.
at::Tensor as_cpu(const at::Tensor& tensor) {
  if (tensor.device().type() != TYPE) return tensor;
  auto storage = tensor.storage();
  auto* start = static_cast<char*>(storage.mutable_data());
  if (start) start += tensor.storage_offset() * tensor.element_size();
  auto keep = [storage](void*) {};
  return at::from_blob(start, tensor.sizes(), tensor.strides(), keep, tensor.options().device(at::kCPU));
}

at::Tensor to_device(const at::Tensor& tensor, c10::Device device) {
  if (!tensor.defined()) return tensor;
  c10::DeviceGuard guard(device);
  at::Tensor copy =
      at::detail::empty_strided_generic(tensor.sizes(), tensor.strides(), &memory, KEYS, tensor.scalar_type());
  as_cpu(copy).copy_(tensor);
  return copy;
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool) {
  check_type(target.scalar_type());  // a copy to the CPU converts on the device
  check_type(source.scalar_type());
  if (target.is_cpu()) announce_wait("copy to the CPU");
  at::NoGradGuard guard;
  as_cpu(target).copy_(as_cpu(source));
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
  if (target.sizes() != source.sizes()) target.resize_(source.sizes());
  return copy_from(source, target, false);
}

c10::Scalar read_scalar(const at::Tensor& tensor) {
  announce_wait("number read");
  return at::native::_local_scalar_dense_cpu(as_cpu(tensor));
}

const at::Tensor& resize(const at::Tensor& tensor, c10::SymIntArrayRef sizes, std::optional<c10::MemoryFormat> format) {
  auto* impl = tensor.unsafeGetTensorImpl();
  const auto wanted = C10_AS_INTARRAYREF_SLOW(sizes);
  impl->set_sizes_contiguous(wanted);
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  const auto bytes = at::detail::computeStorageNbytesContiguous(wanted, tensor.element_size(), tensor.storage_offset());
  if (bytes > storage->nbytes()) {
    c10::DeviceGuard guard(tensor.device());
    auto larger = memory.allocate(bytes);
    if (storage->nbytes()) std::memcpy(larger.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr(std::move(larger));
    storage->set_nbytes(bytes);
  }
  if (format && *format != c10::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  return tensor;
}

at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / tensor.element_size());
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(c10::IntArrayRef(&count, 1));
  return tensor;
}

at::Tensor& set_storage_offset(at::Tensor& tensor, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef sizes,
                               c10::SymIntArrayRef strides) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(storage);
  impl->set_storage_offset(offset.expect_int());
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides));
  return tensor;
}

at::Tensor view(const at::Tensor& tensor, c10::SymIntArrayRef sizes) {
  return at::native::view(tensor, C10_AS_INTARRAYREF_SLOW(sizes));
}

at::Tensor reshape_alias(const at::Tensor& tensor, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides) {
  return at::native::_reshape_alias(tensor, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides));
}

// ---------------------------------------------------------------- convolutions, which have no fallback

void check_same(const at::Tensor& one, const at::Tensor& other) {
  check_type(one.scalar_type());
  TORCH_CHECK(one.device() == other.device(), "Input type (", one.device(), ") and weight type (", other.device(),
              ") should be the same");
}

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                    bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  check_same(x, weight);
  std::optional<at::Tensor> own;
  if (bias && bias->defined()) {
    check_same(x, *bias);
    own = as_cpu(*bias);
  }
  auto result = at::convolution_symint(as_cpu(x), as_cpu(weight), own, stride, padding, dilation, transposed,
                                       output_padding, groups);
  return to_device(result, x.device());
}

// oneDNN writes past the memory of some tensors that are channels last (see training.precision), and so are weights
// of 1 x 1 by their strides, which ``contiguous`` leaves as they are.
at::Tensor copy_contiguous(const at::Tensor& tensor) { return as_cpu(tensor).clone(at::MemoryFormat::Contiguous); }

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolve_backward(
    const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& weight, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
    c10::SymInt groups, std::array<bool, 3> mask) {
  check_same(x, weight);
  check_same(gradient, weight);
  std::vector<c10::SymInt> bias{transposed ? weight.sym_size(1) * groups : weight.sym_size(0)};
  auto sizes = mask[2] ? at::OptionalSymIntArrayRef(bias) : at::OptionalSymIntArrayRef();
  auto [of_x, of_weight, of_bias] =
      at::convolution_backward_symint(copy_contiguous(gradient), copy_contiguous(x), copy_contiguous(weight), sizes,
                                      stride, padding, dilation, transposed, output_padding, groups, mask);
  return {to_device(of_x, x.device()), to_device(of_weight, x.device()), to_device(of_bias, x.device())};
}

// ---------------------------------------------------------------- everything else

// How large their results are is only known on the device.
const std::set<std::string> WAITING = {"aten::nonzero",    "aten::equal",      "aten::masked_select", "aten::_unique2",
                                       "aten::unique_dim", "aten::is_nonzero", "aten::bincount"};
// They take tensors of the CPU beside those of a device.
const std::set<std::string> MIXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::copy_"};

struct Arguments {
  std::optional<c10::Device> device;
  bool mixes_devices = false, has_cpu = false, has_mask = false, has_cpu_generator = false;

  void add(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    const bool is_own = tensor.device().type() == TYPE;
    if (is_own || tensor.dim()) check_type(tensor.scalar_type());
    if (is_own) {
      mixes_devices |= device && *device != tensor.device();
      device = tensor.device();
    } else if (tensor.is_cpu() && tensor.dim()) {
      has_cpu = true;
    }
  }

  void add(const c10::IValue& value) {
    if (value.isTensor()) {
      add(value.toTensor());
    } else if (value.isGenerator() && value.toGenerator().defined()) {
      has_cpu_generator |= value.toGenerator().device().is_cpu();
    } else if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) add(tensor);
    } else if (value.isOptionalTensorList()) {
      for (const auto& tensor : value.toOptionalTensorVector()) {
        if (!tensor) continue;
        add(*tensor);
        has_mask |= tensor->scalar_type() == c10::kBool && tensor->device().type() == TYPE;
      }
    }
  }
};

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  const auto first = stack->size() - count;
  const std::string name = schema.name();
  Arguments arguments;
  for (size_t i = 0; i < count; ++i) {
    const auto& value = (*stack)[first + i];
    arguments.add(value);
    const bool is_type = schema.arguments()[i].name() == "dtype" && value.isInt();
    if (is_type) check_type(static_cast<c10::ScalarType>(value.toInt()));
  }
  TORCH_CHECK(!arguments.mixes_devices && !(arguments.device && arguments.has_cpu && !MIXING.count(name)),
              "Expected all tensors to be on the same device, but found at least two devices in ", name);
  TORCH_CHECK(!arguments.has_cpu_generator, "Expected a 'standin' device type for generator but found 'cpu' in ", name);
  if (WAITING.count(name)) announce_wait(name);
  if (arguments.has_mask && name != "aten::index") announce_wait(name + " by a mask");  // which asks for nonzero
  struct Within {
    Within() { ++depth; }
    ~Within() { --depth; }
  } within;
  at::native::cpu_fallback(op, stack);
}

}  // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("convolution_overrideable", convolve);
  m.impl("convolution_backward_overrideable", convolve_backward);
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", read_scalar);
  m.impl("resize_", resize);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage_offset);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

// ---------------------------------------------------------------- for Python, by ctypes

extern "C" {
void standin_start() {
  c10::SetAllocator(TYPE, &memory);
  at::RegisterPrivateUse1HooksInterface(&hooks);
}
void standin_allow_float64(int allow) { has_float64 = allow; }
void standin_listen(void (*listen)(const char*)) { listener = listen; }
int standin_current() { return current; }
void standin_set_current(int device) { current = device; }
}
