"""What the kernels are compiled to for an H100, which needs none: the compiler runs on any machine.

Elsewhere in these tests Triton interprets kernels. It decides that when it is imported, so that
they are compiled in a process of their own, which this file is the program of.
"""

import os
import re
import subprocess
import sys
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from d2dmoe.activations import ACTIVATIONS

pytest.importorskip("triton", reason="this platform has no Triton")


pytestmark = pytest.mark.workflow  # a process of its own
SHARED_MEMORY = 227 * 2**10  # bytes, of an H100's multiprocessor for one program


class Kernel(NamedTuple):
    ptx: str
    shared: int


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    """Those of routed layers, ungated in bf16 and gated in fp32, by name and dtype; and one of
    decoding in fp16 for each activation, by name and activation."""
    call = [sys.executable, __file__]
    env = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for part in done.stdout.split("// kernel ")[1:]:
        about, ptx = part.split("\n", 1)
        name, form, shared = about.split()
        key = f"{name} {form}"
        most = max(int(shared), found[key].shared if key in found else 0)
        found[key] = Kernel(ptx, most)  # of decoding, for a single token
    return found


@pytest.fixture(scope="module")
def ptx(kernels) -> dict[str, str]:
    """PTX of the bf16 layer's kernels, by name."""
    return {key.split()[0]: kernel.ptx for key, kernel in kernels.items() if "bfloat16" in key}


def test_every_kernel_fits_into_a_multiprocessor(kernels):
    names = {"_layer", "_router_hidden", "_activate", "_add", "_sum"}
    assert {key.split()[0] for key in kernels} == names
    assert {key: k.shared for key, k in kernels.items() if k.shared > SHARED_MEMORY} == {}


def test_the_experts_run_on_the_tensor_cores_and_add_eight_numbers_at_once(ptx):
    layer = ptx["_layer"]
    assert "wgmma.mma_async" in layer and "cp.async.bulk.tensor" in layer
    assert re.search(r"red\.global\.gpu\.relaxed\.add\.noftz\.v8\.bf16 ", layer)


def test_a_superblock_is_released_by_its_routing_and_acquired_by_its_tiles(ptx):
    """In between, lists are read past the L1 cache."""
    assert re.search(r"bar\.sync[^@]*@\S+ (red|atom)\.global\.gpu\.release\.add", ptx["_layer"])
    assert re.search(r"(ld|atom)\.global\.gpu\.acquire", ptx["_layer"])
    assert "ld.global.cg" in ptx["_layer"]


def test_decoding_multiplies_on_the_tensor_cores(ptx):
    assert {"_router_hidden", "_activate", "_add"} <= ptx.keys()
    assert "mma.sync" in ptx["_activate"] and "mma.sync" in ptx["_add"]


def test_decoding_one_token_fetches_the_second_matrix_ahead(ptx):
    assert "cp.async.bulk.prefetch.L2.global" in ptx["_activate"]


def test_columns_that_were_put_in_order_are_fenced_before_they_are_read(ptx):
    """By the tensor memory accelerator, which does not see other instructions' writes otherwise."""
    assert re.search(r"acquire[\s\S]*fence\.proxy\.async\.global", ptx["_layer"])


def test_the_outputs_are_added_from_the_registers_that_a_product_left_them_in(ptx):
    """Between the last product and the additions nothing passes through shared memory."""
    lines = ptx["_layer"].splitlines()
    added = [i for i, line in enumerate(lines) if "add.noftz.v8.bf16" in line]
    product = max(i for i in range(added[0]) if "wgmma.mma_async" in lines[i])
    assert added and not [x for x in lines[product : added[-1]] if re.search("st.*shared", x)]


def test_every_activation_is_compiled_to_code_of_its_own(kernels):
    """Known functions by what only they need: an error function's constant, an exponential."""
    codes = {name: kernels[f"_activate {name}"].ptx for name in ACTIVATIONS}
    assert len(set(codes.values())) == len(ACTIVATIONS)
    exponential = {name for name, code in codes.items() if "ex2.approx" in code}
    assert {"gelu_tanh", "quick_gelu", "silu"} <= exponential
    assert exponential.isdisjoint({"relu", "relu_squared"})


def main() -> None:
    """Call the layer as on a GPU, but print its kernels instead of launching them."""
    import torch
    from small_kernels import make_mask, make_router, make_tokens, make_weights, quantized
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from d2dmoe.kernels import decode, persistent
    from d2dmoe.kernels.launch import Launch

    device = {"get_current_device": lambda: 0, "get_current_stream": lambda _device: 0}
    target = GPUTarget("cuda", 90, 32)
    driver.set_active(SimpleNamespace(**device, get_current_target=lambda: target))
    run = JITFunction.run

    form = ""

    def compile_only(self, *, grid, warmup, **options) -> None:
        kernel = run(self, grid=grid, warmup=True, **options)
        print(f"// kernel {self.__name__} {form} {kernel.metadata.shared}\n{kernel.asm['ptx']}")

    JITFunction.run = compile_only
    decode._launches_early = lambda _device: True  # as on a GPU
    launches = {torch.bfloat16: Launch(), torch.float32: Launch(block_k=32, registers=None)}
    for name, (form, launch) in zip(("relu", "gelu_tanh glu"), launches.items(), strict=True):
        weights = make_weights(name, 24, 128, d_model=256, d_out=256, dtype=form)
        router = make_router(24, 128, 256, "regression", dtype=form)
        z = make_tokens(13000, 256, dtype=form)
        persistent.run(z, weights, launch, router=router, tau=0.5)
        for stored, tokens in product((weights, quantized(weights)), (4, 1)):
            decode.run(z[:tokens], stored, router=router, tau=0.5)
    for form in ACTIVATIONS:
        weights = make_weights(form, 8, 16, d_model=64, d_out=64, dtype=torch.float16)
        z, mask = make_tokens(4, 64, dtype=torch.float16), make_mask(4, 8, 0.5)
        decode._activations(z, weights, mask, None, 0.0, pdl=True)


if __name__ == "__main__":
    main()
