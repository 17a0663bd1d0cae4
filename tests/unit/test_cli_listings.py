"""What the command line's listings, plans and explanations look like, without a runtime."""

from datetime import UTC, datetime

import click.testing
import msgspec
import pytest

from actors.cli.http import Json
from actors.cli.listings import list_text, part_text, ps_text, show_text
from actors.cli.main import root
from actors.cli.memory import loaded_text, plan_text
from actors.cli.why import why_text
from actors.errors import RequestError
from actors.protocol import (
    ContextChoice,
    Device,
    DeviceMemory,
    EvictionCandidate,
    EvictionRound,
    Explanation,
    LayerPlacement,
    LayoutRound,
    LoadDecision,
    LoadedModel,
    LoadOptions,
    LoadPlan,
    MemoryItem,
    MemoryReport,
    ModelSpec,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def tag(name: str, **rest: object) -> Json:
    return {"name": name, "digest": "0123456789abcdef", "size": 4_661_224_676, **rest}


def test_the_list() -> None:
    text = list_text([tag("llama3:latest", modified_at="2026-11-20T12:00:00.123456789Z")], NOW)
    assert text == (
        "NAME             ID              SIZE      MODIFIED\n"
        "llama3:latest    0123456789ab    4.7 GB    2 days ago"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("vram", "expires_at", "processor", "until"),
    [
        (0, "2026-11-22T12:04:00.5Z", "100% CPU", "4 minutes from now"),
        (4_661_224_676, "2318-11-22T12:00:00Z", "100% GPU", "Forever"),
        (2_423_836_831, "2026-11-22T11:00:00Z", "48%/52% CPU/GPU", "Stopping..."),
    ],
)
def test_the_table_of_ps(vram: int, expires_at: str, processor: str, until: str) -> None:
    text = ps_text([tag("m:latest", size_vram=vram, expires_at=expires_at, context_length=4096)], NOW)
    assert [cell.strip() for cell in text.splitlines()[1].split("    ") if cell.strip()] == [
        "m:latest", "0123456789ab", "4.7 GB", processor, "4096", until
    ]  # fmt: skip


def test_ps_says_how_far_a_load_is_and_who_waits_for_what() -> None:
    loading = tag("m:latest", expires_at="2026-11-22T12:04:00Z", context_length=4096, status="reading 37 %")
    waiting = [
        {"name": "m:latest", "status": "reading 37 %"},
        {"name": "n:latest", "status": "evicting o:1b", "requests_before": 2},
    ]
    rows = [line.split("    ") for line in ps_text([loading], NOW, waiting).splitlines()[1:]]
    assert [(row[0].strip(), row[-1].strip()) for row in rows] == [
        ("m:latest", "reading 37 %"),
        ("n:latest", "evicting o:1b, 2 before it"),
    ]


MIB = 1 << 20
FREE = {"cpu": 2000 * MIB, "gpu:0": 400 * MIB, "gpu:1": 150 * MIB}
DECISION = LoadDecision(
    model=ModelSpec("m:latest", "sha256:m", "/m", 1),
    options=LoadOptions(n_ctx=2048),
    began_at=NOW.timestamp() - 90,
    took_s=1.5,
    outcome="loaded",
    message="loaded on gpu:0 (3 layers)",
    devices=(Device("gpu:0", "cuda", "A card", 2000 * MIB, 1000 * MIB),),
    rounds=(
        LayoutRound("fit", (), 2048, FREE, {"cpu": 600 * MIB}, "evict", "gpu:0 lacks 500 MiB"),
        LayoutRound(
            "alloc",
            (LayerPlacement("gpu:0", (1, 2)), LayerPlacement("gpu:1", (3,)), LayerPlacement("cpu", (0,))),
            2048,
            FREE,
            {"cpu": 200 * MIB, "gpu:0": 300 * MIB, "gpu:1": 100 * MIB, "gpu:2": 0},
            "accept",
            "600 MiB of 1000 MiB on gpu:0",
        ),
    ),
    evictions=(
        EvictionRound(
            "gpu:0",
            500 * MIB,
            (
                EvictionCandidate("o:1b", 7.5, 2.0, {"gpu:0": 600 * MIB}, 0.27, True, False, True),
                EvictionCandidate("p:1b", 0.0, 2.0, {"gpu:0": 600 * MIB}, 9.0, False, False, False),
                EvictionCandidate("q:1b", 9.0, 2.0, {"gpu:0": 600 * MIB}, 0.2, True, True, False),
                EvictionCandidate("r:1b", 9.0, 2.0, {"gpu:1": 600 * MIB}, 0.2, True, False, False),
            ),
            "evicting o:1b",
        ),
    ),
)


def test_why_tells_the_figures_the_rounds_and_who_left() -> None:
    said = why_text(Explanation(("2026-11-22 m:latest took 1.50 s to load",), (DECISION,)), NOW)
    blocks = [[line.split("    ") for line in block.splitlines()] for block in said.split("\n\n")]
    cells = [[[cell.strip() for cell in row if cell.strip()] for row in block] for block in blocks]
    assert cells == [
        [
            ["m:latest: loaded after 1.50 s, begun About a minute ago"],
            ["loaded on gpu:0 (3 layers)"],
            ["asked for n_ctx 2048"],
        ],
        [["DEVICE", "NAME", "FREE", "TOTAL"], ["gpu:0", "A card", "1000.0 MiB", "2.0 GiB"]],
        [
            ["ASKED", "CONTEXT", "THEN", "DEVICE", "LAYERS", "NEEDS", "OF FREE"],
            ["fit", "2048", "evict", "cpu", "all", "600.0 MiB", "2.0 GiB"],
            ["alloc", "2048", "accept", "cpu", "1", "200.0 MiB", "2.0 GiB"],
            ["gpu:0", "2", "300.0 MiB", "400.0 MiB"],
            ["gpu:1", "1", "100.0 MiB", "150.0 MiB"],
        ],
        [["600 MiB of 1000 MiB on gpu:0"]],
        [
            ["500.0 MiB lacking on gpu:0: evicting o:1b"],
            ["MODEL", "HOLDS", "IDLE", "RELOAD", "COST"],
            ["o:1b", "600.0 MiB", "7.5 s", "2.0 s", "0.27", "leaves"],
            ["p:1b", "600.0 MiB", "busy", "2.0 s", "9", "stays"],
            ["q:1b", "600.0 MiB", "9.0 s", "2.0 s", "kept for ever", "stays"],
            ["r:1b", "0", "9.0 s", "2.0 s", "0.2", "stays"],
        ],
        [["2026-11-22 m:latest took 1.50 s to load"]],
    ]


SHOWN: Json = {
    "details": {"parameter_size": "8.0B", "quantization_level": "Q4_K_M"},
    "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
    "capabilities": ["completion", "tools"],
    "parameters": 'stop                           "<|eot|>"\ntemperature                    0.2',
    "system": "one\ntwo\nthree\nfour",
    "tensors": [{"name": "output.weight", "type": "Q6_K", "shape": [4, 2]}],
}


def test_show_prints_one_part_at_a_time() -> None:
    done = click.testing.CliRunner().invoke(root, ["show", "m", "--license", "--system"])
    assert (done.exit_code != 0, "only one of --license" in done.output) == (True, True)


def test_show_has_its_sections() -> None:
    text = show_text(SHOWN)
    assert "  Model\n    architecture      llama\n    parameters        8.0B" in text
    assert "  Capabilities\n    completion\n    tools\n" in text
    assert '    stop           "<|eot|>"' in text
    assert "three\n    ..." in text
    assert "Tensors" not in text
    assert "output.weight" in show_text(SHOWN, verbose=True)


def test_a_part_that_a_model_lacks_is_named() -> None:
    assert part_text(SHOWN, "system", "m") == "one\ntwo\nthree\nfour"
    with pytest.raises(RequestError, match="m has no license"):
        part_text(SHOWN, "license", "m")


def item(n: int) -> MemoryItem:
    return MemoryItem(planned_bytes=n, measured_bytes=n, status="allocated")


REPORT = MemoryReport(
    devices=(
        DeviceMemory(
            id="cpu", name="A CPU", weights=(item(1 << 20), item(1 << 20), item(3 << 20)),
            cache=(item(1 << 19), item(1 << 19)), graph=item(1 << 10), overhead=item(0),
        ),
    ),
    input_weights=item(2 << 20), n_layer=2, n_ctx=4096, n_ctx_train=8192, n_batch=512, n_parallel=4,
    n_cells=16384, kv_type="q8_0",
)  # fmt: skip
SPEC = ModelSpec("m:latest", "sha256:0", "/m.gguf", 1)


def test_layers_show_planned_beside_measured_and_the_sums() -> None:
    text = loaded_text(LoadedModel(SPEC, LoadOptions(), "1", 1, REPORT, None, 0), is_summed=False)
    assert (
        "m:latest: 2 layers, batch 512, q8_0 cache\n"
        "context 4096 (trained for 8192); 4 sequences share 16384 cells\n\ncpu (A CPU)\n\n" in text
    )
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "1.0", "MiB", "1.0", "MiB", "512.0", "KiB", "512.0", "KiB"] in rows
    assert ["output", "3.0", "MiB", "3.0", "MiB", "0", "0"] in rows
    assert ["cpu", "weights", "5.0", "MiB", "5.0", "MiB", "allocated"] in rows
    assert ["total", "8.0", "MiB", "8.0", "MiB", "allocated"] in rows
    assert max(map(len, text.splitlines())) <= 80


def test_runs_of_equal_layers_can_be_summed() -> None:
    text = loaded_text(LoadedModel(SPEC, LoadOptions(), "1", 1, REPORT, None, 0), is_summed=True)
    assert ["0-1", "2.0", "MiB", "2.0", "MiB", "1.0", "MiB", "1.0", "MiB"] in [
        line.split() for line in text.splitlines()
    ]


def test_a_plan_ends_with_its_verdict() -> None:
    plan = LoadPlan(
        report=REPORT, placement=(LayerPlacement("cpu", (0, 1, 2)),), fits=True, verdict="it fits: 8.0 MiB",
        devices=(Device("cpu", "cpu", "A CPU", 1 << 31, 1 << 30),),
    )  # fmt: skip
    text = plan_text("m", plan, is_summed=False)
    assert "cpu (A CPU): 1.0 GiB free" in text
    assert "MEASURED" not in text
    assert text.endswith("it fits: 8.0 MiB")


def test_a_plan_shows_the_trade_of_context_against_memory_and_speed() -> None:
    gpu = Device("g", "cuda", "A GPU", 1 << 31, 1 << 30)
    contexts = (
        ContextChoice(4096, 3, 1 << 20, 9 << 20, is_full_speed=True, is_chosen=True),
        ContextChoice(8192, 1, 2 << 20, 10 << 20, is_full_speed=False),
    )
    plan = LoadPlan(REPORT, (), (gpu,), fits=True, verdict="", contexts=contexts)
    rows = [line.split("  ") for line in plan_text("m", plan, is_summed=False).splitlines()]
    shown = [[cell.strip() for cell in row if cell] for row in rows]
    assert ["CONTEXT", "GPU LAYERS", "CACHE", "TOTAL", "FULL SPEED"] in shown
    assert ["4096", "3 of 3", "1.0 MiB", "9.0 MiB", "yes, taken"] in shown
    assert ["8192", "1 of 3", "2.0 MiB", "10.0 MiB", "no"] in shown
    on_cpu = plan_text("m", msgspec.structs.replace(plan, devices=()), is_summed=False)
    assert "CONTEXT    CACHE      TOTAL       FITS" in on_cpu
