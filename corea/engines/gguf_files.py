"""GGUF files, in which llama.cpp keeps models, written out as folders of safetensors.

A file is written out once, into an entry of :mod:`corea.store` that is named after its SHA-256.
What is decided here:

1. Weights are the file's numbers as float32. Those of a file of 4 bits are 4-bit numbers still:
   a file in the folder says which file and type they are from, and so does the provenance of
   what a model answers (:func:`corea.engines.loading.model_facts`).
2. The header is read here first, whose counts and lengths are held against the file's size before
   a library allocates anything by them. Then transformers reads the file.
3. All weights of the file must be in the model that transformers makes of it, which leaves out what
   it does not know, and positions must be plain: it does not read how they are scaled.
4. Text is split before it is encoded as the file says. Where transformers does not know the rule
   it would take GPT-2's; SmolLM's and a few others, which take digits one by one before, are put
   right here, and what is known to neither is refused.
5. A chat ends where the template puts an end token, whether or not the file names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import math
import mmap
import struct
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from corea.engines.model_errors import ModelError, first_line, quiet
from corea.store import make

GGUF_FACTS = "gguf.json"
"""File in the folder of a model that was a GGUF file: which one, and of what type."""

_INSTEAD = "name a folder with the model as safetensors instead"
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_FORMATS |= {12: "d"}  # of scalars, by GGUF's number of their type
_TEXT, _ARRAY = 8, 9
_LEAST_TENSOR, _LEAST_FIELD = 24, 13  # bytes
_LONGEST_ARRAY = 2**12  # whose numbers are kept: those of a layer each, not of a token each
_SIZES = (  # that some weight has as one of its dimensions, or that are less than one
    *("block_count", "embedding_length", "feed_forward_length", "vocab_size", "expert_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "rope.dimension_count"),
)
_AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo"}  # how text is split, by llama.cpp's names
_DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")

_written: dict[tuple[Path, int, int], Path] = {}  # by this process, so that a file is read once


@dataclass(frozen=True)
class Header:
    """What stands before the weights of a GGUF file."""

    name: str  # of the file
    fields: Mapping[str, Any]  # of an array of texts or of many numbers, its length
    tensors: Mapping[str, tuple[tuple[int, ...], int]]  # shape, fastest first; GGUF's type
    size: int  # bytes that the file must have

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it, such as ``"llama"``."""
        return str(self.fields.get("general.architecture", ""))

    @property
    def weights(self) -> int:
        """How many."""
        return sum(math.prod(shape) for shape, _ in self.tensors.values())

    @property
    def quantization(self) -> str:
        """The type of most weights, such as ``"Q4_1"``."""
        from gguf import GGMLQuantizationType

        counts = Counter[int]()
        for shape, kind in self.tensors.values():
            counts[kind] += math.prod(shape)
        return str(GGMLQuantizationType(counts.most_common(1)[0][0]).name)

    def number(self, key: str) -> int:
        """A number of the architecture, the largest where each layer has one; 0 if unstated."""
        value = self.fields.get(f"{self.architecture}.{key}", 0)
        value = max(value, default=0) if isinstance(value, list) else value
        return value if isinstance(value, int) else 0


def is_gguf(path: str | Path) -> bool:
    """Whether a model is a GGUF file, by its name."""
    return Path(path).suffix == ".gguf"


def written_out(path: Path) -> Path:
    """The folder that a GGUF file was written out to, made if it is not there.

    A ModelError says what of the file cannot be read, and what to do.
    """
    if not path.is_file():
        raise ModelError(f"{path.as_posix()}: no such file")
    status = path.stat()
    key = (path.resolve(), status.st_size, status.st_mtime_ns)
    if key not in _written or not _written[key].is_dir():
        require_package(path)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        _written[key] = make(
            "gguf",
            {"sha256": digest, "gguf": version("gguf")},
            partial(_write_out, path, digest),
            code=[Path("corea", "engines", "gguf_files.py")],
        )
    return _written[key]


def require_package(path: Path) -> None:
    """Refuse where the package is missing that reads GGUF files."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{path.name}: the package gguf is not installed, which reads such files. It is of the "
            f"extra `train`, which `make` installs; or {_INSTEAD}"
        )


# --- the header -------------------------------------------------------------------------------


def read_header(path: Path) -> Header:
    """What a GGUF file says of itself; a ModelError names what it says that cannot be."""
    require_package(path)
    with path.open("rb") as stream:
        if (mark := stream.read(4)) != b"GGUF":
            raise ModelError(
                f"{path.name}: starts with {mark!r}; expected b'GGUF', its format's mark"
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                header = _Reading(path.name, content).header()
            except (struct.error, UnicodeDecodeError) as error:
                raise ModelError(
                    f"{path.name}: its header is damaged, or the file truncated "
                    f"({first_line(error)}). Fetch it again, or {_INSTEAD}"
                ) from error
            found = len(content)
    if found < header.size:
        raise ModelError(
            f"{path.name}: has {found:,} bytes; expected {header.size:,} by its header. It is "
            f"truncated: fetch it again, or {_INSTEAD}"
        )
    largest = max((max(shape, default=0) for shape, _ in header.tensors.values()), default=0)
    largest = max(largest, len(header.tensors))
    for key in _SIZES:
        if header.number(key) > largest:
            raise ModelError(
                f"{path.name}: {header.architecture}.{key} is {header.number(key):,}; expected at "
                f"most {largest:,}, the largest dimension of its weights"
            )
    return header


@dataclass
class _Reading:
    """A header that is being read, never beyond the end of its file."""

    name: str
    content: mmap.mmap
    place: int = 4  # byte, behind the mark

    def header(self) -> Header:
        version, n_tensors, n_fields = self.number("I"), self.number("Q"), self.number("Q")
        if version not in (2, 3):
            raise ModelError(f"{self.name}: is GGUF of version {version}; expected 2 or 3")
        if n_tensors * _LEAST_TENSOR + n_fields * _LEAST_FIELD > len(self.content):
            raise ModelError(
                f"{self.name}: says that it holds {n_tensors:,} tensors and {n_fields:,} fields; "
                f"expected no more than fit into its {len(self.content):,} bytes"
            )
        fields = {self.text(): self.value(self.number("I")) for _ in range(n_fields)}
        tensors, end = {}, 0
        for _ in range(n_tensors):
            name = self.text()
            shape = tuple(self.number("Q") for _ in range(self.dimensions(name)))
            kind, offset = self.number("I"), self.number("Q")
            tensors[name] = (shape, kind)
            end = max(end, offset + self.stored(name, shape, kind))
        aligned = fields.get("general.alignment", 32)
        if not isinstance(aligned, int) or not 0 < aligned <= 2**16:
            raise ModelError(f"{self.name}: general.alignment is {aligned!r}; expected some bytes")
        start = -(-self.place // aligned) * aligned
        return Header(self.name, fields, tensors, start + end)

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.content, self.place)
        self.place += struct.calcsize(f"<{form}")
        return value

    def bytes(self, count: int) -> bytes:
        if count > len(self.content) - self.place:
            raise struct.error(f"{count:,} bytes are stated behind byte {self.place:,}")
        self.place += count
        return self.content[self.place - count : self.place]

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind in _FORMATS:
            return self.number(_FORMATS[kind])
        if kind != _ARRAY:
            raise struct.error(f"a value of type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind == _TEXT:
            for _ in range(count):  # each takes 8 bytes at least, so the file's end is met
                self.bytes(self.number("Q"))
        elif kind not in _FORMATS:
            raise struct.error(f"an array of values of type {kind}")
        elif count <= _LONGEST_ARRAY:
            return [self.number(_FORMATS[kind]) for _ in range(count)]
        else:
            self.bytes(count * struct.calcsize(f"<{_FORMATS[kind]}"))
        return count

    def dimensions(self, tensor: str) -> int:
        found: int = self.number("I")
        if found > 4:
            raise ModelError(f"{self.name}: {tensor} has {found:,} dimensions; expected at most 4")
        return found

    def stored(self, tensor: str, shape: tuple[int, ...], kind: int) -> int:
        """The bytes of a tensor."""
        from gguf import GGML_QUANT_SIZES

        if kind not in GGML_QUANT_SIZES:
            raise ModelError(
                f"{self.name}: {tensor} is of GGUF's type {kind}, which the package gguf does not "
                f"know. Update it, or {_INSTEAD}"
            )
        block, size = GGML_QUANT_SIZES[kind]  # type: ignore[index]  # an IntEnum's
        return math.prod(shape) // block * size


# --- writing it out ---------------------------------------------------------------------------


def _write_out(path: Path, digest: str, folder: Path) -> None:
    """Fill a folder from a GGUF file."""
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    header = read_header(path)
    _require_known(header)
    with tempfile.TemporaryDirectory() as alone:  # no other file beside it is read
        Path(alone, "model.gguf").symlink_to(path.resolve())
        given: Any = {"gguf_file": "model.gguf", "trust_remote_code": False}
        # transformers shows its progress whatever it is told
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            try:
                tokenizer: Any = transformers.AutoTokenizer.from_pretrained(alone, **given)
                read: Any = transformers.AutoModelForCausalLM.from_pretrained(
                    alone,
                    dtype=torch.float32,
                    quantization_config=transformers.GgufConfig(dequantize=True),
                    **given,
                )
                model = _plain(read)
            except Exception as error:  # of several libraries
                raise ModelError(
                    f"{path.name}: transformers cannot read it ({first_line(error)}). Fetch it "
                    f"again, or {_INSTEAD}"
                ) from error
            _require_all_weights(header, model)
            if header.fields.get("tokenizer.ggml.pre") in _DIGITS_FIRST:
                tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                    [
                        pre_tokenizers.Digits(individual_digits=True),
                        pre_tokenizers.ByteLevel(add_prefix_space=False),
                    ]
                )
            model.generation_config = transformers.GenerationConfig(
                bos_token_id=model.config.bos_token_id,
                eos_token_id=_ends(tokenizer, model.config.eos_token_id),
                pad_token_id=model.config.pad_token_id,
            )
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    _keep_splitting(folder)
    facts = {"sha256": digest, "quantization": header.quantization, "written_as": "float32"}
    Path(folder, GGUF_FACTS).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def _plain(read: Any) -> Any:
    """The model as transformers has it from safetensors; weights that are tied stay so."""
    import torch
    import transformers

    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model


def _require_known(header: Header) -> None:
    """Refuse an architecture, positions or a vocabulary that transformers would not read."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf import GGUF_ARCHS
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    others = {"general", "tokenizer", "t5", "umt5"}  # no architectures, or of no use here
    known = {*GGUF_CONFIG_MAPPING, *GGUF_ARCHS} - others
    if _bare(header.architecture) not in map(_bare, known):
        raise ModelError(
            f"{header.name}: its architecture is {header.architecture!r}, which transformers does "
            f"not read from GGUF; it reads {', '.join(sorted(known))}. Or {_INSTEAD}"
        )
    scaled = header.fields.get(f"{header.architecture}.rope.scaling.type", "none")
    if scaled != "none" and _bare(header.architecture) != "gptoss":
        raise ModelError(
            f"{header.name}: scales its positions ({scaled!r}), which transformers does not read "
            f"from GGUF; {_INSTEAD}"
        )
    fields = header.fields
    split = fields.get("tokenizer.ggml.pre", "")
    if fields.get("tokenizer.ggml.model") == "gpt2" and split not in (
        GGUF_PRE_TOKENIZER_SPLITS.keys() | _AS_GPT2 | _DIGITS_FIRST
    ):
        raise ModelError(
            f"{header.name}: its tokenizer splits text as {split!r}, which transformers does not "
            f"know; {_INSTEAD}"
        )


def _bare(architecture: str) -> str:
    """Without the marks in which llama.cpp and transformers differ."""
    return architecture.replace("-", "").replace("_", "")


def _require_all_weights(header: Header, model: Any) -> None:
    """Refuse a model that lacks weights of the file, or has others."""
    read = sum(weight.numel() for weight in model.parameters())
    if read != header.weights:
        raise ModelError(
            f"{header.name}: holds {header.weights:,} weights, of which transformers makes a model "
            f"of {read:,}: it does not read all of this file. {_INSTEAD.capitalize()}"
        )


def _ends(tokenizer: Any, named: int | list[int] | None) -> list[int]:
    """The end tokens that the file names, and those with which its chat template ends a message."""
    found = {named} if isinstance(named, int) else {*(named or [])}
    vocabulary, template = tokenizer.get_vocab(), tokenizer.chat_template or ""
    found |= {vocabulary[end] for end in _ENDS if end in vocabulary and end in template}
    return sorted(found)


def _keep_splitting(folder: Path) -> None:
    """Have the tokenizer read as it was written, and not as its class would make it anew."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(
        json.dumps(config | {"tokenizer_class": "TokenizersBackend"}, indent=2), "utf-8"
    )
