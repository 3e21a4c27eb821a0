// The Python module `_native`: addresses and sizes in, nothing out. The callers check shapes and dtypes.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "layers.h"

#include <mutex>

using namespace m7b;

namespace {

// Arguments one after another, as integers or addresses.
class Arguments {
public:
    Arguments(PyObject *const *args, Py_ssize_t n) : args_(args), left_(n) {}

    long long integer() { return take() ? PyLong_AsLongLong(args_[-1]) : 0; }
    int size() { return int(integer()); }
    template <class T> T *address() { return take() ? static_cast<T *>(PyLong_AsVoidPtr(args_[-1])) : nullptr; }
    Array array() {
        void *data = address<void>();
        return {data, size()};
    }
    bool is_wrong() {
        if (left_ && !PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "wrong number of arguments");
        return PyErr_Occurred() != nullptr;
    }

private:
    bool take() {
        if (left_ == 0) return left_ = -1, PyErr_SetString(PyExc_TypeError, "too few arguments"), false;
        if (left_ < 0) return false;
        left_--, args_++;
        return true;
    }

    PyObject *const *args_;
    Py_ssize_t left_;
};

std::mutex one_call; // scratch memory is shared from call to call

// Runs `work` without Python's lock.
template <class F> PyObject *run(Arguments &arguments, F work) {
    if (arguments.is_wrong()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    {
        std::lock_guard<std::mutex> lock(one_call);
        work();
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *py_quantize(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    int type = a.size();
    Array x = a.array();
    int n_rows = a.size(), n_in = a.size();
    const float *importance = a.address<float>();
    uint8_t *blocks = a.address<uint8_t>();
    int n_threads = a.size();
    return run(a, [&] { quantize(type, x, n_rows, n_in, importance, blocks, n_threads); });
}

PyObject *py_pack(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    int type = a.size();
    const uint8_t *blocks = a.address<uint8_t>();
    int n_rows = a.size(), n_in = a.size();
    uint8_t *panels = a.address<uint8_t>();
    int n_threads = a.size();
    return run(a, [&] { pack(type, blocks, n_rows, n_in, panels, n_threads); });
}

PyObject *py_widen(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    int type = a.size();
    const uint8_t *blocks = a.address<uint8_t>();
    size_t n_blocks = size_t(a.integer());
    float *values = a.address<float>();
    int n_threads = a.size();
    return run(a, [&] { widen(type, blocks, n_blocks, values, n_threads); });
}

PyObject *py_look_up(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    int type = a.size();
    const uint8_t *panels = a.address<uint8_t>();
    int n_in = a.size();
    const int64_t *rows = a.address<int64_t>();
    int n_rows = a.size();
    Array y = a.array();
    int n_threads = a.size();
    return run(a, [&] { look_up(type, panels, n_in, rows, n_rows, y, n_threads); });
}

PyObject *py_linear(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    Weight weight = {};
    weight.type = a.size(), weight.panels = a.address<uint8_t>(), weight.n_out = a.size();
    Array x = a.array();
    int T = a.size(), n_in = a.size();
    weight.y = a.address<void>();
    int n_threads = a.size();
    return run(a, [&] { linear(&weight, 1, x, T, n_in, n_threads); });
}

PyObject *py_linear_bf16(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    const uint16_t *weight = a.address<uint16_t>();
    Array x = a.array();
    int T = a.size(), n_in = a.size(), n_out = a.size();
    Array y = a.array();
    int n_threads = a.size();
    return run(a, [&] { linear_bf16(weight, x, T, n_in, n_out, y, n_threads); });
}

PyObject *py_attend(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    Array queries = a.array();
    const uint16_t *keys = a.address<uint16_t>(), *values = a.address<uint16_t>();
    const Span *spans = a.address<Span>();
    int n_spans = a.size(), layer = a.size();
    Heads heads = {};
    heads.H = a.size(), heads.K = a.size(), heads.D = a.size();
    Array out = a.array();
    int n_threads = a.size();
    return run(a, [&] { attend(queries, keys, values, spans, n_spans, layer, heads, out, n_threads); });
}

PyObject *py_rms_norm(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n > 0 ? n - 1 : 0);
    Array x = a.array(), weight = a.array();
    int T = a.size(), dim = a.size();
    Array y = a.array();
    int n_threads = a.size();
    float eps = n > 0 ? float(PyFloat_AsDouble(args[n - 1])) : 0;
    return run(a, [&] { rms_norm(x, weight, T, dim, eps, y, n_threads); });
}

PyObject *py_rotate(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    Array x = a.array();
    const float *cos = a.address<float>(), *sin = a.address<float>();
    int T = a.size(), heads = a.size(), D = a.size();
    Array y = a.array();
    int n_threads = a.size();
    return run(a, [&] { rotate(x, cos, sin, T, heads, D, y, n_threads); });
}

PyObject *py_swiglu(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    Array gate = a.array(), up = a.array();
    size_t size = size_t(a.integer());
    Array y = a.array();
    int n_threads = a.size();
    return run(a, [&] { swiglu(gate, up, size, y, n_threads); });
}

PyObject *py_forward(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n > 0 ? n - 1 : 0);
    const Layer *layers = a.address<Layer>();
    int first = a.size(), end = a.size();
    Sizes s = {};
    s.dim = a.size(), s.hidden_dim = a.size();
    s.heads.H = a.size(), s.heads.K = a.size(), s.heads.D = a.size();
    uint16_t *h = a.address<uint16_t>();
    int N = a.size();
    const float *cos = a.address<float>(), *sin = a.address<float>();
    const Span *spans = a.address<Span>();
    int n_spans = a.size();
    const Part *parts = a.address<Part>();
    int n_parts = a.size(), n_threads = a.size();
    s.eps = n > 0 ? float(PyFloat_AsDouble(args[n - 1])) : 0;
    return run(a, [&] { forward(layers, first, end, s, h, N, cos, sin, spans, n_spans, parts, n_parts, n_threads); });
}

PyObject *py_add_update(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    const Update *update = a.address<Update>();
    Array x = a.array();
    int T = a.size(), n_in = a.size(), n_out = a.size();
    Array y = a.array();
    int n_threads = a.size();
    const Addition addition = {update, n_out, y};
    return run(a, [&] { add_updates(&addition, 1, x, T, n_in, n_threads); });
}

PyObject *py_prefer_large_pages(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    void *memory = a.address<void>();
    size_t size = size_t(a.integer());
    return run(a, [&] { prefer_large_pages(memory, size); });
}

PyObject *py_linear_levels(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    LevelWeight weight;
    weight.quants = a.address<uint8_t>(), weight.scales = a.address<float>(), weight.levels = a.address<float>();
    Array x = a.array();
    int T = a.size(), n_in = a.size(), n_out = a.size();
    Array y = a.array();
    int n_threads = a.size();
    return run(a, [&] { linear_levels(weight, x, T, n_in, n_out, y, n_threads); });
}

PyObject *py_sum_bytes(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    const uint8_t *bytes = a.address<uint8_t>();
    size_t size = size_t(a.integer());
    int n_threads = a.size();
    uint64_t sum = 0;
    PyObject *none = run(a, [&] { sum = sum_bytes(bytes, size, n_threads); });
    if (!none) return nullptr;
    Py_DECREF(none);
    return PyLong_FromUnsignedLongLong(sum);
}

PyObject *py_panel_bytes(PyObject *, PyObject *const *args, Py_ssize_t n) {
    Arguments a(args, n);
    int type = a.size(), n_in = a.size();
    if (a.is_wrong()) return nullptr;
    return PyLong_FromSize_t(panel_bytes(type, n_in / BLOCK));
}

PyObject *py_instruction_set(PyObject *, PyObject *) { return PyUnicode_FromString(kernels().name); }

PyObject *py_use(PyObject *, PyObject *name) {
    PyObject *bytes = PyUnicode_AsASCIIString(name);
    if (!bytes) return nullptr;
    bool is_there = use(PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    return PyBool_FromLong(is_there);
}

#define FAST(name) {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(py_##name)), METH_FASTCALL, nullptr}
PyMethodDef methods[] = {
    FAST(quantize), FAST(pack), FAST(widen), FAST(look_up), FAST(linear), FAST(linear_bf16), FAST(linear_levels), FAST(attend), FAST(rms_norm),
    FAST(rotate), FAST(swiglu), FAST(forward), FAST(add_update), FAST(prefer_large_pages), FAST(sum_bytes), FAST(panel_bytes),
    {"instruction_set", py_instruction_set, METH_NOARGS, nullptr},
    {"use", py_use, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

} // namespace

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&definition); }
