"""A scripted CUDA driver and a scripted TensorRT, so that everything around the vendor's calls runs without a GPU.

``driver`` has the functions of libcuda that we call. "Device" memory is host memory; work queued on a stream runs when
the stream is synchronized, not before; a recorded graph runs when launched and synchronized; calls that need a context
fail in a thread that has none; any call can be made to fail.

``vendor`` has the classes of the ``tensorrt`` module that we call. It records the network definition and, as an engine,
computes it from the documented meaning of each layer, every layer's result rounded to its declared type.
"""

import ctypes
import itertools
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from backends.cuda import Gpu, open_gpu
from subnets import UnavailableError

OUT_OF_MEMORY, INVALID_CONTEXT = 2, 201
NAMES = {
    OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY",
    INVALID_CONTEXT: b"CUDA_ERROR_INVALID_CONTEXT",
    700: b"CUDA_ERROR_ILLEGAL_ADDRESS",
}
TOTAL_BYTES = 1 << 30


def pytest_configure(config):
    config.addinivalue_line("markers", "rtx: runs the real TensorRT-RTX builder, which needs no GPU")


def _value(argument):
    return getattr(argument, "value", argument) or 0


class Function:
    """One function of the library: takes ``argtypes`` like a foreign function, counts its calls, may fail."""

    def __init__(self, driver, name):
        self.driver, self.name = driver, name

    def __call__(self, *arguments):
        assert len(arguments) == len(self.argtypes), self.name
        self.driver.calls.append(self.name)
        if status := self.driver.failing.get(self.name, 0):
            return status
        return getattr(self.driver, f"_{self.name}", lambda *_: 0)(*arguments) or 0


class Driver:
    """The library object itself; ``failing`` maps a function's name to the status it returns."""

    def __init__(self, capability=(8, 6)):
        self.capability, self.failing, self.calls = capability, {}, []
        self.memory, self.pinned, self.streams, self.graphs = {}, {}, {}, {}
        self.held_bytes = 0
        self._handles = itertools.count(1000)
        self._functions = {}
        self._thread = threading.local()

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)
        return self._functions.setdefault(name, Function(self, name))

    @property
    def allocated(self):
        """What nobody has freed yet."""
        return len(self.memory) + len(self.pinned) + len(self.streams) + len(self.graphs)

    def enqueue(self, stream, work):
        """Queues work on a stream as a library's kernel would be; a status."""
        if not getattr(self._thread, "current", False):
            return INVALID_CONTEXT
        self.streams[_value(stream)].append(work)
        return 0

    def recording(self, stream):
        return getattr(self.streams[_value(stream)], "recording", False)

    def _cuDriverGetVersion(self, version):
        version._obj.value = 13000

    def _cuDeviceGetName(self, text, size, device):
        text.value = b"Scripted GPU"

    def _cuDeviceGetAttribute(self, value, which, device):
        value._obj.value = self.capability[{75: 0, 76: 1}[which]]

    def _cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = 77

    def _cuCtxSetCurrent(self, context):
        self._thread.current = _value(context) == 77

    def _cuMemGetInfo_v2(self, free, total):
        held = sum(len(block) for block in self.memory.values()) + self.held_bytes
        free._obj.value, total._obj.value = TOTAL_BYTES - held, TOTAL_BYTES

    def _cuMemAlloc_v2(self, address, size):
        block = ctypes.create_string_buffer(size)
        address._obj.value = ctypes.addressof(block)
        self.memory[address._obj.value] = block

    def _cuMemFree_v2(self, address):
        del self.memory[_value(address)]

    def _cuMemHostAlloc(self, address, size, flags):
        block = ctypes.create_string_buffer(size)
        address._obj.value = ctypes.addressof(block)
        self.pinned[address._obj.value] = block

    def _cuMemFreeHost(self, address):
        del self.pinned[_value(address)]

    def _copy(self, target, source, size, stream):
        target, source = _value(target), _value(source)
        return self.enqueue(stream, lambda: ctypes.memmove(target, source, size))

    _cuMemcpyHtoDAsync_v2 = _cuMemcpyDtoHAsync_v2 = _copy

    def _cuStreamCreate(self, stream, flags):
        stream._obj.value = next(self._handles)
        self.streams[stream._obj.value] = Queue()

    def _cuStreamDestroy_v2(self, stream):
        del self.streams[_value(stream)]

    def _cuStreamSynchronize(self, stream):
        queue = self.streams[_value(stream)]
        work, queue[:] = list(queue), []
        for item in work:
            item()

    def _cuStreamBeginCapture_v2(self, stream, mode):
        queue = self.streams[_value(stream)]
        assert not queue, "work is still queued"
        queue.recording = True

    def _cuStreamEndCapture(self, stream, graph):
        queue = self.streams[_value(stream)]
        queue.recording = False
        graph._obj.value = next(self._handles)
        self.graphs[graph._obj.value], queue[:] = list(queue), []

    def _cuGraphInstantiateWithFlags(self, executable, graph, flags):
        executable._obj.value = next(self._handles)
        self.graphs[executable._obj.value] = list(self.graphs[_value(graph)])

    def _cuGraphLaunch(self, executable, stream):
        for work in self.graphs[_value(executable)]:
            if status := self.enqueue(stream, work):
                return status
        return 0

    def _cuGraphDestroy(self, graph):
        del self.graphs[_value(graph)]

    _cuGraphExecDestroy = _cuGraphDestroy

    def _cuGetErrorName(self, status, text):
        if status not in NAMES:
            return 1
        text._obj.value = NAMES[status]
        return 0


class Queue(list):
    recording = False


class Tensor:
    """A value in the recorded network: how to compute it, and its declared type."""

    def __init__(self, dtype, compute):
        self.dtype, self.compute, self.name = dtype, compute, ""


class Layer(SimpleNamespace):
    """A layer with the options we set; its result is computed from what they are in the end."""

    def __init__(self, inputs, dtype, function, **options):
        super().__init__(inputs=list(inputs), **options)
        self._output = Tensor(dtype, lambda values: function(self, *(tensor_of(t, values) for t in self.inputs)))

    def get_output(self, index):
        assert index == 0
        return self._output

    def set_input(self, index, tensor):
        self.inputs[index:] = [tensor]


def tensor_of(tensor, values):
    """A tensor's value in this run, rounded to its type."""
    import torch

    if id(tensor) not in values:
        found = tensor.compute(values)
        kind = {"f16": torch.float16, "bf16": torch.bfloat16}.get(tensor.dtype)
        values[id(tensor)] = found if kind is None else found.to(kind).float()
    return values[id(tensor)]


class Weights:
    def __init__(self, *arguments):
        if isinstance(arguments[0], np.ndarray):
            self.array = arguments[0]
            self.dtype = {"float32": "f32", "float16": "f16", "int8": "i8"}[self.array.dtype.name]
        elif len(arguments) == 3:
            self.dtype, address, count = arguments
            assert self.dtype == "bf16"
            bits = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(address)).astype(np.uint32) << 16
            self.array = bits.view(np.float32)
        else:
            self.dtype, self.array = arguments[0], None

    def torch(self, shape):
        import torch

        return torch.from_numpy(self.array.astype(np.float32).reshape(shape))


class Network:
    """INetworkDefinition: strongly typed, so layers refuse inputs of unlike types as the vendor's does."""

    def __init__(self):
        self.input = self.output = self.shape = None

    def add_input(self, name, dtype, shape):
        assert name == "input" and dtype == "f32"
        self.shape, self.input = tuple(shape), Tensor(dtype, lambda values: values["input"])
        return self.input

    def mark_output(self, tensor):
        assert tensor.dtype == "f32"
        self.output = tensor

    def compute(self, images):
        """The logits of a batch, as f32 tensors."""
        return tensor_of(self.output, {"input": images})

    def add_cast(self, tensor, dtype):
        return Layer([tensor], dtype, lambda layer, x: x)

    def add_constant(self, shape, weights):
        return Layer([], weights.dtype, lambda layer: weights.torch(tuple(shape)))

    def add_convolution_nd(self, tensor, maps, window, kernel, bias):
        import torch

        def compute(layer, x, *given):
            (top, left), (bottom, right) = layer.pre_padding, layer.post_padding
            x = torch.nn.functional.pad(x, (left, right, top, bottom))
            weight = given[0] if given else kernel.torch((maps, x.shape[1] // layer.num_groups, *window))
            offset = None if layer.bias.array is None else layer.bias.torch((maps,))
            return torch.nn.functional.conv2d(
                x, weight, offset, layer.stride_nd, 0, layer.dilation_nd, layer.num_groups
            )

        assert kernel.dtype == tensor.dtype and bias.dtype == tensor.dtype
        return Layer([tensor], tensor.dtype, compute, bias=bias, num_output_maps=maps, num_groups=1)

    def add_pooling_nd(self, tensor, kind, window):
        import torch

        def compute(layer, x):
            assert layer.pre_padding == layer.post_padding
            up = layer.padding_mode == "EXPLICIT_ROUND_UP"
            if kind == "MAX":
                return torch.nn.functional.max_pool2d(x, window, layer.stride_nd, layer.pre_padding, ceil_mode=up)
            count = not layer.average_count_excludes_padding
            return torch.nn.functional.avg_pool2d(x, window, layer.stride_nd, layer.pre_padding, up, count)

        return Layer([tensor], tensor.dtype, compute)

    def add_activation(self, tensor, kind):
        import torch

        functions = {
            "RELU": lambda layer, x: x.clamp(min=0),
            "SIGMOID": lambda layer, x: torch.sigmoid(x),
            "CLIP": lambda layer, x: x.clamp(layer.alpha, layer.beta),
            "LEAKY_RELU": lambda layer, x: torch.where(x >= 0, x, layer.alpha * x),
            "HARD_SIGMOID": lambda layer, x: (layer.alpha * x + layer.beta).clamp(0, 1),
            "GELU_ERF": lambda layer, x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        }
        return Layer([tensor], tensor.dtype, functions[kind])

    def add_elementwise(self, left, right, operation):
        assert left.dtype == right.dtype
        functions = {"SUM": lambda layer, a, b: a + b, "PROD": lambda layer, a, b: a * b}

        def compute(layer, a, b):
            assert a.ndim == b.ndim, "both sides need one rank"
            return functions[operation](layer, a, b)

        return Layer([left, right], left.dtype, compute)

    def add_reduce(self, tensor, operation, axes, keep_dims):
        def compute(layer, x):
            chosen = [axis for axis in range(x.ndim) if axes >> axis & 1]
            return x.mean(chosen, keepdim=keep_dims) if operation == "AVG" else x.amax(chosen, keepdim=keep_dims)

        return Layer([tensor], tensor.dtype, compute)

    def add_shuffle(self, tensor):
        def compute(layer, x):
            return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(layer.reshape_dims)])

        return Layer([tensor], tensor.dtype, compute)

    def add_matrix_multiply(self, left, left_as, right, right_as):
        assert left.dtype == right.dtype and left_as == "NONE"
        return Layer([left, right], left.dtype, lambda layer, a, b: a @ (b.T if right_as == "TRANSPOSE" else b))

    def add_quantize(self, tensor, scale, dtype):
        assert dtype == "i8"
        return Layer([tensor, scale], dtype, lambda layer, x, s: (x / s).round().clamp(-128, 127))

    def add_dequantize(self, tensor, scale, dtype):
        def compute(layer, x, s):
            return x * (s.reshape([-1 if axis == layer.axis else 1 for axis in range(x.ndim)]) if s.ndim else s)

        assert tensor.dtype == "i8" and scale.dtype == "f32"
        return Layer([tensor, scale], dtype, compute, axis=None)


class Config:
    def __init__(self):
        self.profiles, self.cleared = [], []

    def clear_flag(self, flag):
        self.cleared.append(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.range)
        return len(self.profiles) - 1


class Profile:
    def set_shape(self, name, least, best, most):
        assert name == "input"
        self.range = least, best, most


class Context:
    def __init__(self, vendor, engine):
        self.vendor, self.engine, self.addresses, self.shape, self.profile = vendor, engine, {}, None, None

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return index < max(1, len(self.engine.profiles))

    def set_input_shape(self, name, shape):
        if self.engine.profiles:
            least, _, most = self.engine.profiles[self.profile]
            fits = all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        else:
            fits = tuple(shape) == self.engine.network.shape
        self.shape = tuple(shape)
        return fits

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        driver = self.vendor.driver
        if self.vendor.failing or (self.vendor.synchronizes and driver.recording(stream)):
            self.engine.log.log(
                self.vendor.ILogger.ERROR, self.vendor.failing or "operation not permitted when capturing"
            )
            return False
        return driver.enqueue(stream, self._run) == 0

    def _run(self):
        import torch

        images = ctypes.string_at(self.addresses["input"], 4 * math.prod(self.shape))
        batch = torch.frombuffer(bytearray(images), dtype=torch.float32).reshape(self.shape)
        with torch.inference_mode():
            logits = self.engine.network.compute(batch).contiguous().numpy()
        self.vendor.runs.append(self.shape)
        ctypes.memmove(self.addresses["logits"], logits.ctypes.data, logits.nbytes)


class LoadedEngine:
    num_io_tensors = 2

    def __init__(self, vendor, log, network, profiles):
        self.vendor, self.log, self.network, self.profiles = vendor, log, network, profiles
        self.num_optimization_profiles = max(1, len(profiles))

    def get_tensor_name(self, index):
        return ("logits", "input")[index]

    def get_tensor_mode(self, name):
        return {"input": "INPUT", "logits": "OUTPUT"}[name]

    def create_execution_context(self):
        return Context(self.vendor, self)


class _Names:
    """An enumeration whose every member is its own name."""

    def __getattr__(self, name):
        return name


class Vendor:
    """The module. ``refuses`` makes builds fail and ``failing`` runs, with that text; ``synchronizes`` recording."""

    float32, float16, bfloat16, int8 = "f32", "f16", "bf16", "i8"
    ActivationType = ElementWiseOperation = ReduceOperation = MatrixOperation = _Names()
    PoolingType = PaddingMode = BuilderFlag = TensorIOMode = _Names()
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ComputeCapability = SimpleNamespace(__members__={"NONE": 0, "CURRENT": 1, "SM75": 75, "SM86": 86})
    Weights = Weights

    class ILogger:
        ERROR, WARNING = 1, 2

    def __init__(self, driver, version="10.9"):
        self.driver, self.__version__ = driver, version
        self.refuses = self.failing = ""
        self.synchronizes = False
        self.built, self.runs, self._plans = [], [], {}

    def Builder(self, log):
        def build(network, config):
            if self.refuses:
                log.log(self.ILogger.WARNING, "not the cause")
                log.log(self.ILogger.ERROR, self.refuses)
                return None
            plan = f"plan {len(self._plans)} of a scripted vendor".encode()
            self._plans[plan] = network, tuple(config.profiles)
            self.built.append(config)
            return plan

        return SimpleNamespace(
            create_network=lambda flags: Network(),
            create_builder_config=Config,
            create_optimization_profile=Profile,
            build_serialized_network=build,
        )

    def Runtime(self, log):
        def load(plan):
            if plan not in self._plans:
                log.log(self.ILogger.ERROR, "serialization assertion failed")
                return None
            return LoadedEngine(self, log, *self._plans[plan])

        return SimpleNamespace(deserialize_cuda_engine=load)


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def gpu(driver):
    return Gpu(driver, driver="580.95")


@pytest.fixture
def vendor(driver):
    return Vendor(driver)


@pytest.fixture
def scripted():
    """The classes, for tests that need another GPU or another version."""
    return SimpleNamespace(Driver=Driver, Vendor=Vendor)


@pytest.fixture
def real_gpu():
    try:
        return open_gpu()
    except UnavailableError as error:
        pytest.skip(str(error))
