"""Lines of logs and messages that show why a process ended or did not start.

Those of vLLM, PyTorch and huggingface_hub are as these print them; what is specific stands before
what may also be a consequence.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LAST_LINES = 5
_ERROR_LINES = 2
# Lines that only say that something else, further up, has failed.
_CONSEQUENCE = re.compile(r"root cause above|Engine core initialization failed|EngineDeadError")
_ERROR = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception)\b:")


@dataclass(frozen=True, slots=True)
class Sign:
    """A pattern, the cause that it shows, and what to do about it."""

    pattern: re.Pattern[str]
    cause: str
    resolution: str


def sign_in(*texts: str, table: Sequence[Sign] = ()) -> Sign | None:
    """Return the first sign of the table (that of logs) which one of the texts shows."""
    signs = table or _SIGNS
    return next((s for s in signs if any(s.pattern.search(text) for text in texts)), None)


def key_lines(log: str, sign: Sign | None = None) -> list[str]:
    """The line that shows the sign, the last errors, and the last lines of the log, in order."""
    lines = [line for line in log.splitlines() if line.strip()]
    kept = set(range(len(lines))[-_LAST_LINES:])
    errors = [n for n, x in enumerate(lines) if _ERROR.search(x) and not _CONSEQUENCE.search(x)]
    kept.update(errors[-_ERROR_LINES:])
    if sign is not None:
        kept.update([n for n, line in enumerate(lines) if sign.pattern.search(line)][-1:])
    return [lines[n] for n in sorted(kept)]


def _sign(pattern: str, cause: str, resolution: str, *, flags: int = 0) -> Sign:
    return Sign(re.compile(pattern, flags), cause, resolution)


_NOT_GIVEN = "the Hugging Face hub does not give the model to this token"
_ACCESS = "put a token that has it into the Secret that model.tokenSecret names."

_SIGNS = (
    _sign(
        r"unrecognized arguments|error: argument |invalid choice: "
        r"|the following arguments are required|error: ambiguous option",
        "vLLM does not know an argument it was given",
        "Compare extraArgs with the options of this vLLM version.",
    ),
    _sign(
        r"max seq len|maximum number of tokens that can be stored in KV cache"
        r"|estimated maximum model length is",
        "the KV cache that is left does not hold one request of --max-model-len",
        "Lower --max-model-len, raise --gpu-memory-utilization, or give the model more GPUs "
        "(gpu.count).",
    ),
    _sign(
        r"max_model_len .*(?:is greater than|exceeds) the derived max_model_len",
        "--max-model-len is more than the model allows",
        "Lower --max-model-len to what the model's config.json has.",
    ),
    _sign(
        r"less than desired GPU memory utilization",
        "another process holds memory of the GPU",
        "Look for other processes on that GPU (time slicing, MPS, pods that are being deleted), "
        "or lower --gpu-memory-utilization.",
    ),
    _sign(
        r"(?:CUDA|HIP)(?: error:)? out of memory|OutOfMemoryError"
        r"|No available memory for the cache|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU's memory does not hold the model and its cache",
        "Give the model more GPUs (gpu.count), or lower --max-model-len or "
        "--gpu-memory-utilization.",
    ),
    _sign(
        r"No space left on device: '/psm_|</torch_[^>]*>: (?:No space|Cannot allocate)"
        r"|(?:No space|[Ee]rror|fail|Fail)[^\n]*/dev/shm|/dev/shm[^\n]*(?:No space|[Ee]rror)"
        r"|[Bb]us error|[Ii]nsufficient shared memory|shared memory (?:segment|object)\b",
        "its shared memory (/dev/shm) is too small or not there",
        "Raise sharedMemory in the values: tensor parallelism needs gigabytes of it.",
    ),
    _sign(
        r"No space left on device|Disk quota exceeded|Not enough free disk space",
        "a volume is full",
        "Raise modelCache.sizeLimit, or load from a claim that is large enough.",
    ),
    _sign(
        r"driver on your system is too old|CUDA driver version is insufficient"
        r"|unsatisfied condition: cuda|driver/library version mismatch"
        r"|forward compatibility was attempted",
        "the node's GPU driver does not fit the image's CUDA",
        "Update the node's driver, or use an image of vLLM for an older CUDA.",
    ),
    _sign(
        r"no kernel image is available|(?:only supported|requires?)[^\n]*compute capability"
        r"|is not supported for the current GPU",
        "this kind of GPU cannot run what is asked of it",
        "Choose nodes with a newer GPU (nodeSelector), or another --dtype or --quantization.",
    ),
    _sign(
        r"no CUDA-capable device|NVIDIA driver|CUDA driver version|No CUDA GPUs are available"
        r"|Failed to infer device type|libcuda\.so[^\n]*cannot open|nvidia-container-cli"
        r"|could not select device driver|unhealthy devices|CUDA error: system not yet initialized",
        "the container finds no usable GPU",
        "Check gpu.count, the node's driver and the device plugin.",
    ),
    _sign(
        r"larger than the number of available GPUs|must be divisible by tensor parallel size",
        "the tensor parallel size does not fit the GPUs, or the model",
        "Set gpu.count to a number that divides the model's attention heads, and no other "
        "--tensor-parallel-size.",
    ),
    _sign(
        r"RepositoryNotFoundError|RevisionNotFoundError|\b(?:Remote)?EntryNotFoundError"
        r"|Repository Not Found"
        r"|does not appear to have a file|is not a valid model identifier|HFValidationError"
        r"|Invalid repository ID or local directory|Cannot find any model weights",
        "the model or its revision is not where the values say",
        "Check model.path and model.revision, and for a private repository that the token may "
        "read it (model.tokenSecret).",
    ),
    _sign(
        r"must be authenticated|be authenticated to access|Invalid user token"
        r"|LocalTokenNotFoundError|Token is required|Invalid credentials in Authorization header",
        f"{_NOT_GIVEN}, which is missing or not valid",
        f"Ask for access on the model's page, and {_ACCESS}",
    ),
    _sign(
        r"gated repo|GatedRepoError|401 Client Error|403 Client Error",
        _NOT_GIVEN,
        f"Ask for access on the model's page, and {_ACCESS}",
        flags=re.IGNORECASE,
    ),
    _sign(
        r"429 Client Error|Too Many Requests",
        "the host that the model is loaded from limits the number of requests",
        "Load with a token, from a mirror (HF_ENDPOINT), or from a claim that holds the model.",
    ),
    _sign(
        r"NoCredentialsError|Unable to locate credentials|InvalidAccessKeyId|AccessDenied"
        r"|SignatureDoesNotMatch|ExpiredToken|NoSuchBucket|NoSuchKey|AuthorizationFailure",
        "the object store does not give the model",
        "Check bucket and path, and the credentials that the pod is given.",
    ),
    _sign(
        r"[Mm]odel architectures? .* (?:are|is) not supported|does not recognize this architecture"
        r"|Unrecognized model in|has no vLLM implementation",
        "this version of vLLM does not support the model's architecture",
        "Use an image of a vLLM (and transformers) that supports it.",
    ),
    _sign(
        r"requires you to execute the configuration file|contains custom code which must be"
        r"|set the option `?trust_remote_code=True",
        "the model brings code of its own, which is not trusted",
        "Read that code, pin model.revision, and add --trust-remote-code to extraArgs.",
    ),
    _sign(
        r"SafetensorError|[Ee]rror while deserializing header|HeaderTooLarge|HeaderTooSmall"
        r"|MetadataIncompleteBuffer|PytorchStreamReader failed",
        "a file of weights is damaged or incomplete",
        "Delete it from the model's cache or claim, and load it again.",
    ),
    _sign(
        r"exec format error|no match for platform|no matching manifest for",
        "the image is for another processor architecture than the node's",
        "Use an image for the node's architecture, or choose nodes by kubernetes.io/arch.",
    ),
    _sign(
        r"executable file not found|exec: .*no such file or directory",
        "the image does not have the command",
        "Compare the command with what the image has: `vllm serve` came with vLLM 0.6.",
    ),
    _sign(
        r"[Aa]ddress already in use",
        "its port is taken in the pod",
        "Give each container of the pod a port of its own.",
    ),
    _sign(
        r"NCCL error|nccl(?:System|Internal|UnhandledCuda)Error|ncclRemoteError",
        "the GPUs cannot talk to each other (NCCL)",
        "Read NCCL's lines in the log (NCCL_DEBUG=INFO has more); sharedMemory may be too small.",
    ),
    _sign(
        r"illegal memory access|uncorrectable ECC|unspecified launch failure|device-side assert"
        r"|fallen off the bus",
        "the GPU, or a kernel on it, has failed",
        "Look at the node's GPU (nvidia-smi, Xid in dmesg); elsewhere it is a bug of the build.",
    ),
    _sign(
        r"PermissionError|[Pp]ermission denied|Read-only file system",
        "it may not read, write or run a file",
        "Compare the owner of the volumes' files with podSecurityContext (runAsUser, fsGroup).",
    ),
    _sign(
        r"SSLCertVerificationError|CERTIFICATE_VERIFY_FAILED",
        "the certificate of the host that the model is loaded from is not trusted",
        "Give the pod the CA of that host or of the proxy (SSL_CERT_FILE, REQUESTS_CA_BUNDLE).",
    ),
    _sign(
        r"ConnectionError|ConnectTimeout|Max retries exceeded|Name or service not known"
        r"|[Nn]ame resolution|Could not resolve host|LocalEntryNotFoundError|ProxyError"
        r"|OfflineModeIsEnabled|[Cc]ouldn't connect to",
        "a host that the model is loaded from cannot be reached",
        "Check the network policy and the proxy, or load from a claim that holds the model.",
    ),
    _sign(
        r"validation errors? for \w*(?:Config|Args)\b",
        "vLLM does not accept its configuration",
        "The log says which argument and why: correct extraArgs.",
    ),
)

EXIT_CODES = {
    0: ("its process ends without an error", "Check command and arguments: a server runs on."),
    126: ("its command may not be run", "Check the command, and that the image has it executable."),
    127: ("its command is not found", "Compare the command with what the image has."),
    132: (
        "its processor does not know an instruction (SIGILL)",
        "Choose nodes whose processors have AVX2 or AVX-512, or an image that needs neither.",
    ),
    134: ("it aborted (SIGABRT)", "The last lines of the log say why."),
    135: (
        "its shared memory (/dev/shm) is too small or not there (SIGBUS)",
        "Raise sharedMemory in the values: tensor parallelism needs gigabytes of it.",
    ),
    137: (
        "something killed it (SIGKILL)",
        "Look for a shortage of memory on the node (dmesg), and at who deletes or evicts pods.",
    ),
    143: ("something ended it (SIGTERM)", "Look at who deletes or evicts pods, and at its probes."),
    139: (
        "it crashed in native code (SIGSEGV)",
        "Compare the image's CUDA with the node's driver; the last lines of the log say where.",
    ),
}
"""Cause and resolution by exit code, for a log that shows neither."""
