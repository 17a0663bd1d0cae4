"""Every message that crosses a socket, by conversation.  `docs/protocol.md` is generated from this file.

A connection carries many streams.  A request opens a stream, items follow, an end or an error closes it, and
either side may cancel it.  Items flow against credit, so a reader that stops reading pauses its own stream
only.  Token ids and handles travel; tensors never do.

Change a message: raise PROTOCOL_VERSION and add a line to PROTOCOL_CHANGES; a test compares the schema.

Longer than a module should be, on purpose: the protocol is one thing, to be read from top to bottom.
"""

import enum
from typing import Annotated, Literal

import msgspec

PROTOCOL_VERSION = 4
PROTOCOL_CHANGES = {
    1: "first version",
    2: "LoadOptions.kv_type may be q8_0; MemoryReport says kv_type",
    3: "Diagnose and MeasureDevices; Device says compute, memory_from, swap_bytes, bytes_per_s, copy_s; "
    "Devices lists usable ones only; LoadPlan shows contexts; Explain may name a model, Explanation tells of "
    "loads; Loaded tells who waits; Keep; Alloc is answered by LoadProgress items, too",
    4: "MemoryReport says n_cells, the pool of all sequences; Generate may name n_ctx and max_repetition; an "
    "answer may end with the reason repetition",
}

Count = Annotated[int, msgspec.Meta(ge=0)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Msg(
    msgspec.Struct, frozen=True, tag=True, tag_field="type", forbid_unknown_fields=True, omit_defaults=True
):
    """Base of everything that crosses a socket."""


# --- Any actor ---------------------------------------------------------------------------------------------


class GetStats(Msg, frozen=True):
    """Anyone -> any actor: how are you?  Answered by one Stats."""


class Stats(Msg, frozen=True):
    """An actor's health and counters; gauge names are the metric names of `docs/architecture.md`."""

    name: str
    pid: int
    build: str
    uptime_s: float
    gauges: dict[str, float]


# --- Discovery ---------------------------------------------------------------------------------------------


class SubscribeDevices(Msg, frozen=True):
    """Scheduler or client -> discovery: one Devices now, another whenever something changes.  Never ends.

    After a start the first one waits until all libraries were looked at, or for so long as is sensible.
    """


class MeasureDevices(Msg, frozen=True):
    """Scheduler or client -> discovery: measure free memory anew.  Answered by one Devices.

    Opens no context on any device.  A device that does not answer in time keeps its last figures.
    """


class Device(Msg, frozen=True):
    """One device.  `is_usable` is False with a reason when runners cannot execute on it."""

    id: str  # "cpu"; the device's UUID ("GPU-1b2c..."), else its PCI id, else "cuda:0"
    library: str  # "cpu", "cuda", "rocm", "sim"
    name: str
    total_bytes: Count
    free_bytes: Count
    is_usable: bool = True
    reason: str = ""
    is_integrated: bool = False
    pci_id: str = ""  # "0000:01:00.0"
    compute: str = ""  # "8.6", "gfx1100"
    # who says what is free: "host" (memory shared with it), "nvml", "amdsmi", "sysfs", "library" (as of the
    # probe), "sim"
    memory_from: str = ""
    swap_bytes: Count = 0  # free swap; of the host only
    bytes_per_s: float = 0.0  # measured speed of reading its memory; 0: not measured
    copy_s: float = 0.0  # measured time of a small copy between it and the host; 0: not measured


class CpuInfo(Msg, frozen=True):
    """The host's processor: cores that do work inside this container, and instruction sets found."""

    model: str
    n_cores: int  # physical performance cores, cut to the container's quota
    n_threads: int  # logical processors
    instruction_sets: tuple[str, ...]  # of those the kernels know: "avx2", "avx512vnni", ...


class Devices(Msg, frozen=True):
    """Discovery's answer: what runners can use and how much memory is free now.

    The host is always listed, since every load needs its memory; `is_usable` says whether kernels run on it.
    """

    cpu: CpuInfo
    devices: tuple[Device, ...]


class LibraryReport(Msg, frozen=True):
    """What the probe of one library found, or why it found nothing.

    found    there are devices; each says whether runners can use it
    none     nothing there that this library could drive
    missing  a driver or a Python package is missing; `reason` names it, `mend` says how to get it
    failed   the probe crashed, hung or spoke rubbish; it is tried again in the background
    pending  its probe has not answered yet
    off      not looked at: the settings say so
    """

    library: str
    state: Literal["found", "none", "missing", "failed", "pending", "off"]
    devices: tuple[Device, ...] = ()
    reason: str = ""
    mend: str = ""
    facts: dict[str, str] = {}  # versions of drivers and packages, the kernels' instruction set
    unchecked: tuple[str, ...] = ()  # ids of devices that are still to be tried, each in its own process
    next_try_s: float | None = None  # None: nothing is to be tried again


class FreeMemory(Msg, frozen=True):
    """Probe -> discovery, on its standard output: the memory of one device now."""

    id: str
    total_bytes: Count
    free_bytes: Count


class Diagnose(Msg, frozen=True):
    """Client -> discovery: what was found, and why not more?  Answered by one Diagnosis.

    Libraries without usable devices are looked at again first, unless `is_cached`.
    """

    is_cached: bool = False


class MemoryLimit(Msg, frozen=True):
    """A control group that bounds us."""

    path: str
    limit_bytes: Count
    used_bytes: Count  # page cache that is given back on demand included


class HostReport(Msg, frozen=True):
    """The host's memory; total and free are cut to the limits."""

    total_bytes: Count
    free_bytes: Count
    swap_total_bytes: Count
    swap_free_bytes: Count
    limits: tuple[MemoryLimit, ...]  # innermost first


class Diagnosis(Msg, frozen=True):
    """Everything that discovery knows, for people."""

    cpu: CpuInfo
    host: HostReport
    devices: tuple[Device, ...]  # usable ones, as in Devices
    filtered: tuple[Device, ...]  # found, and not offered to the scheduler; each has its reason
    libraries: tuple[LibraryReport, ...]
    variables: dict[str, str]  # environment variables that hide or rename devices, as they are set
    idle_variables: dict[str, str]  # variables that are set and decide nothing, with the reason
    versions: dict[str, str]  # of the runtime, Python and the system


# --- Runner host -------------------------------------------------------------------------------------------


class SpawnRunner(Msg, frozen=True):
    """Scheduler -> runner host: start a runner.  Answered by one RunnerStarted when its socket answers."""

    runner_id: str


class RunnerStarted(Msg, frozen=True):
    """The runner listens at `address`."""

    runner_id: str
    pid: int
    address: str


class StopRunner(Msg, frozen=True):
    """Scheduler -> runner host: SIGTERM, wait, SIGKILL.  Answered by one RunnerExited."""

    runner_id: str


class WatchRunners(Msg, frozen=True):
    """Scheduler -> runner host: a RunnerStarted for each runner alive, then a RunnerExited for each death."""


class RunnerExited(Msg, frozen=True):
    """A runner is gone.  `last_words` is the end of its standard error."""

    runner_id: str
    pid: int
    exit_code: int  # negative: killed by that signal
    last_words: str = ""


class Inspect(Msg, frozen=True):
    """Gateway -> runner host: read a file's header in a short-lived process.  Answered by one ModelInfo."""

    path: str


class TensorEntry(Msg, frozen=True):
    """One tensor of a model file; shape in GGUF order."""

    name: str
    dtype: str
    shape: tuple[int, ...]


Scalar = str | int | float | bool | None


class ModelInfo(Msg, frozen=True):
    """What a model file says of itself.  Arrays of more than 5 items arrive empty unless they are short."""

    architecture: str
    metadata: dict[str, Scalar | list[Scalar]]
    tensors: tuple[TensorEntry, ...]
    n_parameters: Count
    file_type: str  # "Q4_K_M", "Q8_0", ... by general.file_type
    chat_template: str | None = None
    is_supported: bool = True  # a runner here can run the family
    reason: str = ""
    bos_text: str = ""  # the texts of the special tokens that templates mention
    eos_text: str = ""


# --- Loading -----------------------------------------------------------------------------------------------


class ModelSpec(Msg, frozen=True):
    """A model of the library, resolved: what the scheduler and the runner need to know of it."""

    name: str  # shortest display name, with tag
    digest: str  # of the GGUF blob, "sha256:..."
    path: str  # absolute path of the GGUF file
    size_bytes: Count


class LoadOptions(Msg, frozen=True):
    """What decides how a model is loaded; a difference means a reload."""

    n_ctx: Count = 0  # positions that one sequence may use; 0: the default
    n_batch: Count = 0  # inputs in one forward pass; 0: the default
    n_gpu: int = -1  # layers on GPUs; -1: as many as fit
    n_thread: Count = 0  # 0: one per performance core
    n_parallel: Count = 0  # sequences at once; 0: the default
    kv_type: Literal["", "f16", "f32", "q8_0"] = ""  # "": f16


class LayerPlacement(Msg, frozen=True):
    """These layers live on this device.  The output layer is index n_layer."""

    device: str
    layers: tuple[int, ...]


class Fit(Msg, frozen=True):
    """Scheduler -> runner: size this layout without allocating.  Answered by one MemoryReport."""

    model: ModelSpec
    options: LoadOptions
    placement: tuple[LayerPlacement, ...]


class Alloc(Msg, frozen=True):
    """Scheduler -> runner: allocate everything for this layout, measure.

    Answered by LoadProgress items, then one MemoryReport.
    """

    model: ModelSpec
    options: LoadOptions
    placement: tuple[LayerPlacement, ...]


class Commit(Msg, frozen=True):
    """Scheduler -> runner: load tensor data.  Answered by LoadProgress items, then one MemoryReport."""


class Close(Msg, frozen=True):
    """Scheduler -> runner: free everything, a load under way included.  The stream ends when done."""


class Keep(Msg, frozen=True):
    """Scheduler -> runner: remember this, and say it when you register.  The stream ends when it is known."""

    keep_alive_s: float  # that the model stays after its last use; negative: for ever
    is_pinned: bool = False  # no load of another model makes it leave


class LoadProgress(Msg, frozen=True):
    """Where a load is.  Silence longer than the stall time-out, and only that, kills a load."""

    phase: Literal["starting", "fitting", "allocating", "reading", "finalising"]
    done_bytes: Count = 0
    total_bytes: Count = 0

    def __str__(self) -> str:
        """Phase and percentage: "reading 37 %"."""
        if self.total_bytes == 0:
            return self.phase
        return f"{self.phase} {100 * self.done_bytes // self.total_bytes} %"


class MemoryItem(Msg, frozen=True):
    """One allocation: what the plan says, and what the device gave."""

    planned_bytes: Count
    measured_bytes: Count = 0
    status: Literal["planned", "allocated", "failed"] = "planned"


class DeviceMemory(Msg, frozen=True):
    """A model's memory on one device.  Lists are indexed by layer, the output layer last."""

    id: str
    name: str  # for people: "NVIDIA H100 80GB HBM3"
    weights: tuple[MemoryItem, ...]
    cache: tuple[MemoryItem, ...]
    graph: MemoryItem  # compute buffer: the largest of the plans that share it
    overhead: MemoryItem  # library and process context


class MemoryReport(Msg, frozen=True):
    """Exact memory of a layout per device and layer; `failure` names the allocation that failed."""

    devices: tuple[DeviceMemory, ...]
    input_weights: MemoryItem  # embedding and whatever else stays on the input side
    n_layer: int
    n_ctx: int  # after clamping to what the model was trained for
    n_ctx_train: int
    n_batch: int
    n_parallel: int
    n_cells: int = 0  # of the pool that all sequences share
    failure: str = ""
    kv_type: str = "f16"  # of the cache's keys and values


# --- Scheduling --------------------------------------------------------------------------------------------


class Acquire(Msg, frozen=True):
    """Gateway or client -> scheduler: a lease on a loaded model.

    Answered by Queued and LoadProgress items while it takes time, then one Lease.  The stream stays open; the
    lease is released by closing it.
    """

    model: ModelSpec
    options: LoadOptions
    # after the last lease; negative: for ever; None: what the model was loaded with, or the default
    keep_alive_s: float | None = None


class Queued(Msg, frozen=True):
    """Why the caller waits."""

    position: Count
    reason: str  # "another model is loading", "evicting llama3.2:1b", ...

    def __str__(self) -> str:
        """The reason, and how many requests come first: "evicting llama3.2:1b, 2 before it"."""
        return f"{self.reason}, {self.position} before it" if self.position else self.reason


class Lease(Msg, frozen=True):
    """The model is loaded at this runner, and stays while the stream is open."""

    runner_id: str
    address: str
    n_ctx: int  # positions for a sequence of this caller: what it asked for, as far as the model has them
    load_s: float  # what this caller waited for the load; 0 when it was loaded already


class Unload(Msg, frozen=True):
    """Gateway or client -> scheduler: unload once idle.  The stream ends when this is accepted."""

    digest: str


class ListLoaded(Msg, frozen=True):
    """Anyone -> scheduler: what is loaded.  Answered by one Loaded."""


class LoadedModel(Msg, frozen=True):
    """A model in memory."""

    model: ModelSpec
    options: LoadOptions
    runner_id: str
    runner_pid: int
    report: MemoryReport
    expires_in_s: float | None  # None: never; 0 and less: stopping
    n_leases: Count
    progress: LoadProgress | None = None  # while it loads


class WaitingModel(Msg, frozen=True):
    """A model that somebody waits for."""

    model: ModelSpec
    options: LoadOptions
    n_waiting: Count  # requests
    waited_s: float  # the first of them
    position: Count  # requests before them
    reason: str  # "evicting llama3.2:1b", "reading 37 %", ...
    progress: LoadProgress | None = None  # while it loads


class Loaded(Msg, frozen=True):
    """The scheduler's answer to ListLoaded: what is in memory, and what somebody waits for, in order."""

    models: tuple[LoadedModel, ...]
    waiting: tuple[WaitingModel, ...] = ()


class PlanLoad(Msg, frozen=True):
    """Client -> scheduler: the exact memory a load would take, without loading.  Answered by one LoadPlan."""

    model: ModelSpec
    options: LoadOptions


class ContextChoice(Msg, frozen=True):
    """What a context of this length would take, beside the memory that is free now."""

    n_ctx: Count
    n_offloaded: Count  # layers on GPUs, the output layer among them
    cache_bytes: Count  # of all sequences, on all devices
    total_bytes: Count
    is_full_speed: bool  # every layer that could be on a GPU is; without GPUs: the host holds it
    is_chosen: bool = False  # what a load takes when nobody names a context; or what was named


class LoadPlan(Msg, frozen=True):
    """A fitted layout beside the memory that is free now."""

    report: MemoryReport
    placement: tuple[LayerPlacement, ...]
    devices: tuple[Device, ...]
    fits: bool
    verdict: str  # in words, with the numbers
    contexts: tuple[ContextChoice, ...] = ()  # the trade of context against memory and speed, shortest first


class Explain(Msg, frozen=True):
    """Client -> scheduler: why did you decide what you decided?  Answered by one Explanation."""

    digest: str = ""  # of one model; "": of all


class LayoutRound(Msg, frozen=True):
    """One question to the runner of a load, and what followed from its answer."""

    question: Literal["fit", "alloc"]
    placement: tuple[LayerPlacement, ...]  # what was asked; none: all on the CPU
    n_ctx: Count
    free_bytes: dict[str, int]  # what the load could count on, by device id
    need_bytes: dict[str, int]  # what the placement takes, by device id
    outcome: Literal["try", "accept", "evict", "refuse"]
    reason: str


class EvictionCandidate(Msg, frozen=True):
    """A model in memory, as the choice of victims saw it."""

    name: str
    idle_s: float
    reload_s: float  # what its load took
    held_bytes: dict[str, int]  # by device id
    cost: float  # seconds of reloading for each second of idleness; the cheapest set leaves
    is_idle: bool
    is_pinned: bool
    is_chosen: bool


class EvictionRound(Msg, frozen=True):
    """One look for room."""

    device: str  # "": a place under max_loaded
    shortage_bytes: Count
    candidates: tuple[EvictionCandidate, ...]
    outcome: str  # "evicted a, b", "waiting for users of c to finish", why nobody could leave


class LoadDecision(Msg, frozen=True):
    """The latest load of a model: what was decided, from which numbers, and how it went."""

    model: ModelSpec
    options: LoadOptions
    began_at: float  # seconds since 1970
    took_s: float  # so far, while the outcome is open
    outcome: Literal["loading", "loaded", "refused", "cancelled"]
    message: str  # what it waits for, where it was loaded, or the error
    devices: tuple[Device, ...]  # as they were at the latest fit
    rounds: tuple[LayoutRound, ...]
    evictions: tuple[EvictionRound, ...]


class Explanation(Msg, frozen=True):
    """The latest decisions, oldest first, each with its numbers; and the latest load of each model."""

    decisions: tuple[str, ...]
    loads: tuple[LoadDecision, ...] = ()


class Register(Msg, frozen=True):
    """Runner -> scheduler, at every (re)connection: I live, and this is what I hold.

    The stream stays open; its end tells the scheduler at once that the runner is gone.
    """

    runner_id: str
    pid: int
    address: str
    model: ModelSpec | None = None  # None: nothing committed yet
    options: LoadOptions | None = None
    report: MemoryReport | None = None
    keep: Keep | None = None  # what the scheduler said last


# --- Generating --------------------------------------------------------------------------------------------


class Sampling(Msg, frozen=True):
    """How the next token is chosen; BEHAVIOUR section E gives order and definitions."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1  # -1: a random one


class Generate(Msg, frozen=True):
    """Gateway or client -> runner: sample after a prompt.  Answered by Chunk items, then one Finished."""

    prompt: str | tuple[TokenId, ...]  # text is tokenised by the runner, special tokens parsed
    sampling: Sampling
    n_predict: int = -1  # -1: until the model stops
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False  # what ends a text is a token like any other
    n_keep: int = 4  # inputs kept at the front when the context is full or the prompt too long
    truncate: bool = True
    shift: bool = True
    n_ctx: Count = 0  # positions that it may use; 0, or more than there are: those that the model has
    groups: tuple[tuple[Count, Count], ...] = ()  # (first, n) of inputs for one batch, and dropped together
    max_repetition: Count = 0  # tokens of one group over and over after which it ends; 0: it goes on for ever
    n_logprobs: int = -1  # -1: none; k: the chosen token's and the k most likely
    resume: tuple[TokenId, ...] = ()  # tokens already delivered by a runner that died


class TokenLogprob(Msg, frozen=True):
    """Log-probability of one token under the raw logits."""

    token: TokenId
    piece: bytes
    logprob: float


class Logprob(Msg, frozen=True):
    """The chosen token's, and the most likely ones in falling order."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


class Chunk(Msg, frozen=True):
    """Newly generated tokens and the text they complete; text is held back while it may still change."""

    text: str
    tokens: tuple[TokenId, ...]
    logprobs: tuple[Logprob, ...] = ()


class DoneReason(enum.Enum):
    """Why a sequence ended; the gateway decides what each API calls it.

    A runner counts the last two and does not send them: nobody is left to hear of a cancelled sequence, and
    an error is told as an error.
    """

    EOS = "eos"
    STOP_STRING = "stop_string"
    LIMIT = "limit"
    CONTEXT = "context"
    REPETITION = "repetition"
    CANCELLED = "cancelled"
    ERROR = "error"


class Finished(Msg, frozen=True):
    """The last item of a Generate.  Counts are what was processed, durations what it took."""

    reason: DoneReason
    prompt_tokens: Count  # cached ones included, dropped ones not
    cached_tokens: Count
    dropped_tokens: Count  # cut from the front of a prompt that was too long
    predicted_tokens: Count
    queue_s: float
    prompt_s: float
    predict_s: float
    stop_string: str = ""
    context: tuple[TokenId, ...] = ()  # the prompt as processed, and what was generated


class Tokenize(Msg, frozen=True):
    """Gateway or client -> runner.  Answered by one Tokens."""

    text: str
    add_special: bool = True
    parse_special: bool = True


class Tokens(Msg, frozen=True):
    """Token ids."""

    tokens: tuple[TokenId, ...]


class Detokenize(Msg, frozen=True):
    """Gateway or client -> runner.  Answered by one Text."""

    tokens: tuple[TokenId, ...]


class Text(Msg, frozen=True):
    """Decoded text, invalid bytes replaced."""

    text: str


# --- Model library -----------------------------------------------------------------------------------------


class Resolve(Msg, frozen=True):
    """Client -> gateway: which model is this name?  Answered by one ModelSpec."""

    name: str


class ListModels(Msg, frozen=True):
    """Client -> gateway: the library.  Answered by one Models."""


class Models(Msg, frozen=True):
    """The library, newest first."""

    models: tuple[ModelSpec, ...]


# --- Frames ------------------------------------------------------------------------------------------------

Request = (
    GetStats
    | SubscribeDevices
    | MeasureDevices
    | Diagnose
    | SpawnRunner
    | StopRunner
    | WatchRunners
    | Inspect
    | Fit
    | Alloc
    | Commit
    | Close
    | Keep
    | Acquire
    | Unload
    | ListLoaded
    | PlanLoad
    | Explain
    | Register
    | Generate
    | Tokenize
    | Detokenize
    | Resolve
    | ListModels
)

Item = (
    Stats
    | Devices
    | Diagnosis
    | RunnerStarted
    | RunnerExited
    | ModelInfo
    | LoadProgress
    | MemoryReport
    | Queued
    | Lease
    | Loaded
    | LoadPlan
    | Explanation
    | Chunk
    | Finished
    | Tokens
    | Text
    | ModelSpec
    | Models
)


class ErrorInfo(Msg, frozen=True):
    """An error as data: code, what happened, where, and what to do about it."""

    code: str
    message: str
    where: str = ""
    mend: str = ""
    http_status: int = 500


class Hello(Msg, frozen=True):
    """First frame each way.  Its fields never change, so that any two versions can tell each other apart."""

    name: str
    pid: int
    version: int
    build: str


class Open(Msg, frozen=True):
    """A request opens a stream.  Ids rise; the side that connected opens streams, so ids never meet."""

    stream: Count
    credit: Count  # items the opener is ready to take
    body: Request


class Push(Msg, frozen=True):
    """One item of a stream, paid for with one credit."""

    stream: Count
    body: Item


class Credit(Msg, frozen=True):
    """The reader is ready for n more items."""

    stream: Count
    n: Count


class End(Msg, frozen=True):
    """The answer is complete; the stream is closed."""

    stream: Count


class Fail(Msg, frozen=True):
    """The answer failed; the stream is closed.  On stream 0: why the sender closes the connection."""

    stream: Count
    error: ErrorInfo


class Cancel(Msg, frozen=True):
    """The opener wants no more; answered by End, or crossed by End or Fail."""

    stream: Count


Frame = Hello | Open | Push | Credit | End | Fail | Cancel
