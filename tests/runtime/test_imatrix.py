"""llama.cpp's importance matrices: read in both layouts, written in the newer one."""

import struct

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from m7b.errors import DamagedCheckpoint, M7bError, UsageError
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.gguf import NAMES
from m7b.runtime.quantize.imatrix import Reading, read_imatrix, write_imatrix
from tests.support.checkpoints import mistral, write_gguf

N_TOKENS = 96


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return open_checkpoint(write_gguf(mistral(), tmp_path_factory.mktemp("model") / "f32.gguf")).config


@pytest.fixture
def means(config):
    torch.manual_seed(0)
    shapes = config.tensor_shapes()
    return {
        name: torch.rand(shape[1])
        for name, shape in shapes.items()
        if name.startswith("layers.") and len(shape) > 1
    }


def write_dat(file, means, n_calls=3):
    """The older layout, by hand: values times the calls, then the calls and the name of a text."""
    with file.open("wb") as out:
        out.write(struct.pack("<i", len(means)))
        for name, mean in means.items():
            stored = translate_name(name, NAMES).encode()
            out.write(struct.pack("<i", len(stored)) + stored + struct.pack("<ii", n_calls, len(mean)))
            out.write((mean * n_calls).numpy().astype("<f4").tobytes())
        out.write(struct.pack("<ii", n_calls, 8) + b"text.txt")


def write_newer(file, means, counts=N_TOKENS):
    """The newer layout, by the gguf package, with the sums that some versions add."""
    writer = GGUFWriter(file, "llama")
    writer.add_type("imatrix")
    for name, mean in means.items():
        stored = translate_name(name, NAMES)
        writer.add_tensor(f"{stored}.in_sum2", (mean * counts).numpy()[None])
        writer.add_tensor(f"{stored}.counts", np.array([[counts]], dtype=np.float32))
        writer.add_tensor(f"{stored}.in_sum", np.zeros((1, len(mean)), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_ours(file, means):
    write_imatrix(file, means, Reading("text.txt", N_TOKENS, 64))


@pytest.mark.parametrize("write", [write_dat, write_newer, write_ours], ids=["dat", "gguf", "ours"])
def test_every_layout_gives_the_mean_squares(config, means, tmp_path, write):
    write(tmp_path / "imatrix", means)
    found = read_imatrix(tmp_path / "imatrix", config)
    assert found.keys() == means.keys()
    for name, mean in means.items():
        torch.testing.assert_close(found[name], mean)


def test_what_is_written_is_laid_out_as_llama_imatrix_does(config, means, tmp_path):
    write_ours(tmp_path / "imatrix.gguf", means)
    reader = GGUFReader(tmp_path / "imatrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["text.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert reader.fields["imatrix.chunk_size"].contents() == 64
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    sums, counts = tensors["blk.0.ffn_down.weight.in_sum2"], tensors["blk.0.ffn_down.weight.counts"]
    mean = means["layers.0.feed_forward.w2.weight"]
    assert sums.shape.tolist() == [len(mean), 1]
    assert counts.shape.tolist() == [1, 1]
    np.testing.assert_allclose(sums.data[0] / counts.data[0], mean, rtol=1e-6)


@pytest.mark.parametrize("write", [write_dat, write_newer], ids=["dat", "gguf"])
def test_a_file_that_is_cut_short_anywhere_is_refused(config, means, tmp_path, write):
    write(tmp_path / "whole", means)
    whole = (tmp_path / "whole").read_bytes()
    for size in range(0, len(whole) - 300, len(whole) // 40):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(M7bError):
            read_imatrix(tmp_path / "cut", config)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda means: means.popitem(), UsageError, "another model: it says nothing about layers"),
        (
            lambda means: means.update({"layers.0.attention.wq.weight": torch.ones(7)}),
            UsageError,
            "7 columns",
        ),
        (
            lambda means: means["layers.0.attention.wq.weight"].fill_(float("nan")),
            DamagedCheckpoint,
            "no mean squares",
        ),
    ],
    ids=["a weight is missing", "another width", "no numbers"],
)
def test_figures_that_do_not_fit_the_model_are_refused(config, means, tmp_path, change, error, told):
    change(means)
    write_newer(tmp_path / "imatrix.gguf", means)
    with pytest.raises(error, match=told):
        read_imatrix(tmp_path / "imatrix.gguf", config)
