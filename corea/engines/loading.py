"""Models as files: weights and tokenizers, from a folder, a GGUF file or a hub.

A model is a folder, a GGUF file, or a name on a hub. Of a folder safetensors only are read, no
code from it is run, and what is wrong is said in a :class:`ModelError`. Files are of bounded size
before a library reads them, and the chat template, a program, is rendered in a process with limits
(:mod:`corea.engines.chat_template`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corea.checks import one_of
from corea.engines.chat_template import PROBE, TemplateError, user_message
from corea.engines.gguf_files import GGUF_FACTS, is_gguf, written_out
from corea.engines.model_errors import ModelError, first_line, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REVISIONS: Mapping[str, str] = {
    "Qwen/Qwen2.5-0.5B-Instruct": "7ae557604adf67be50417f59c2c2f167def9a775",
    "Qwen/Qwen2.5-1.5B-Instruct": "989aa7980e4cf806f80c7fef2b1adb7bc71aa306",
    "Qwen/Qwen2.5-7B-Instruct": "a09a35458c702b33eeacc393d103063234e8bc28",
    "Qwen/Qwen2.5-32B-Instruct": "5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd",
    "Qwen/Qwen3-1.7B": "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e",
    "Qwen/Qwen3-4B": "1cfa9a7208912126459214e8b04321603b3df60c",
    "Qwen/Qwen3-8B": "b968826d9c46dd6066d109eabc6255188de91218",
    "meta-llama/Llama-3.1-8B-Instruct": "0e9e39f249a16976918f6564b8830bc894c89659",
}
"""Commits of the models on the hub that profiles name without one; of any other, the newest."""
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w.-]+))?")
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt")
_READ_AS_JSON = (  # by transformers, as a whole
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "chat_template.json", "adapter_config.json"),
    "model.safetensors.index.json",
)
# bytes of a file: several times the largest of published models
_LARGEST = {"tokenizer.json": 2**27, ".jinja": 2**20, ".safetensors": 2**25}  # of the last: header
_LARGEST_OTHER = 2**24


PRECISIONS = ("", "auto", "float32", "bfloat16")
"""Names of what a model may compute in."""


def model_folder(path: str | Path) -> Path:
    """The folder with a model's files; those of a hub of models are fetched if need be.

    Args:
        path: A folder with ``config.json``, safetensors and ``tokenizer.json``; a file that ends
            in ``.gguf``, which is written out once (:mod:`corea.engines.gguf_files`); or a name
            such as ``"Qwen/Qwen2.5-7B-Instruct"``, with ``@`` and a commit where it is to be
            another than that of :data:`REVISIONS`.
    """
    folder = Path(path)
    if is_gguf(path):
        folder = written_out(folder)
    elif not folder.is_dir():
        named = _HUB_NAME.fullmatch(str(path))
        if not named:
            raise ModelError(f"{path}: no such folder")
        revision = named["revision"] or REVISIONS.get(named["name"])
        folder = _fetched(named["name"], revision)
    _require_model_files(folder)
    return folder


def _fetched(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    with quiet():
        try:
            patterns = list(_MODEL_FILES)
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        except GatedRepoError as error:
            raise ModelError(
                f"{name}: not to be had without agreement. Ask for access on its page on the hub "
                "and log in with `hf auth login`, or name a folder"
            ) from error
        except RepositoryNotFoundError as error:
            raise ModelError(f"{name}: neither a folder nor a model on the hub") from error
        except Exception as error:  # of several libraries: no network, no such commit, no space
            raise ModelError(
                f"{name}: cannot be fetched ({first_line(error)}). Connect to the network, or "
                "name a folder with the model"
            ) from error


def resolved_precision(name: str) -> str:
    """A precision by its name, where ``"auto"`` is what is fast on this machine.

    That is bfloat16 on a GPU that computes in it and on a CPU with instructions for it (AMX,
    AVX512-BF16, or Arm's BF16), where it took a third of the time of float32; and else float32.
    Any other of :data:`PRECISIONS` is itself; empty stands for that of a model's files.
    """
    one_of(name, "precision", PRECISIONS)
    if name != "auto":
        return name
    import torch

    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = fast_bfloat16()
    return "bfloat16" if fast else "float32"


def fast_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply in bfloat16."""
    import torch

    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _display_name(path: str | Path, folder: Path) -> str:
    """What a model is called in an error: no path of this machine."""
    if is_gguf(path):
        return Path(path).name
    return str(path) if _HUB_NAME.fullmatch(str(path)) else folder.name


def load_model(
    path: str | Path, *, device: str | None = None, dtype: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a model and its tokenizer from a folder, or from a hub of models by name.

    The model is in evaluation mode; the tokenizer pads on the left. ``device`` is by default the
    first GPU or else the CPU; ``dtype`` is the weights' own when ``"auto"``.
    """
    import torch
    import transformers

    folder = model_folder(path)
    name = _display_name(path, folder)
    safe = {"trust_remote_code": False}
    with quiet():
        try:
            read: Any = transformers.AutoModelForCausalLM.from_pretrained
            model, report = read(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **safe
            )
            tokenizer = _tokenizer_class(folder).from_pretrained(folder, **safe)
        except Exception as error:  # of several libraries, down to Rust
            raise ModelError(f"{name}: cannot be read ({first_line(error)})") from error
    wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if wrong:
        raise ModelError(f"{name}: the weights are not those of its config.json: {wrong}")
    _complete_tokenizer(tokenizer, model.generation_config.eos_token_id, name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer that :func:`load_model` would, without the model."""
    folder = model_folder(path)
    name = _display_name(path, folder)
    with quiet():
        try:
            tokenizer = _tokenizer_class(folder).from_pretrained(folder, trust_remote_code=False)
            config = generation_config(folder)
        except Exception as error:  # of several libraries, down to Rust
            raise ModelError(f"{name}: cannot be read ({first_line(error)})") from error
    _complete_tokenizer(tokenizer, config.eos_token_id, name)
    return tokenizer


def model_facts(path: str | Path, precision: str = "") -> dict[str, str]:
    """What belongs into the provenance of a model's results, beside its identity.

    That is the precision it computed in and, of one from a GGUF file, that its weights are the
    numbers of such a file, written out.
    """
    folder = model_folder(path)
    config = read_json(folder / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype") or "as stored"
    facts = {"precision": resolved_precision(precision) or str(stored)}
    if (folder / GGUF_FACTS).is_file():
        told = read_json(folder / GGUF_FACTS)
        facts["weights"] = (
            f"of a GGUF file (SHA-256 {told.get('sha256')}), most of them numbers in "
            f"{told.get('quantization')}, written out as {told.get('written_as')}"
        )
    return facts


def template_warning(path: str | Path) -> str:
    """What to do about a model whose tokenizer has no chat template; empty if it has one."""
    folder = model_folder(path)
    if load_tokenizer(path).chat_template:
        return ""
    return (
        f"Warning: the tokenizer of {_display_name(path, folder)} has no chat template, so the "
        "questions were put to it as plain text. A model that was trained to chat answers those "
        "badly: name one with a template (an -Instruct version), or put its template into a folder "
        "with the model as chat_template.jinja. A base model that was not trained to chat is asked "
        "as it should be."
    )


def end_ids(config: Any, tokenizer: Any) -> list[int]:
    """The ids of the end tokens that generation config and tokenizer name, in rising order."""
    named = _as_list(config.eos_token_id) + _as_list(tokenizer.eos_token_id)
    if not named:
        raise ValueError("neither tokenizer nor generation config names an end token")
    return sorted(set(named))


def _as_list(ids: int | Sequence[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _require_model_files(folder: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder.name}: no {name}; expected the folder of a model")
    templates = (*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja"))
    for path in (*folder.glob("*.json"), *folder.glob("*.txt"), *templates):
        largest = _LARGEST.get(path.name) or _LARGEST.get(path.suffix, _LARGEST_OTHER)
        if path.is_file() and path.stat().st_size > largest:
            raise ModelError(
                f"{folder.name}: {path.relative_to(folder).as_posix()} has "
                f"{path.stat().st_size:,} bytes; expected at most {largest:,}"
            )
    for name in _READ_AS_JSON:
        if (folder / name).is_file():
            read_json(folder / name)
    for path in folder.glob("*.safetensors"):
        _require_header(path)
    if not list(folder.glob("*.safetensors")):
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        found = f"found {', '.join(others)}" if others else "found none"
        raise ModelError(f"{folder.name}: {found}; expected weights as *.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file in a model's folder."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path.parent.name}: cannot be read ({path.name}: {first_line(error)})"
        ) from None
    if not isinstance(content, dict):
        raise ModelError(
            f"{path.parent.name}: cannot be read ({path.name} is a {type(content).__name__}; "
            "expected an object)"
        )
    return content


def _require_header(path: Path) -> None:
    """Refuse weights whose list of tensors, a JSON text, is larger than the file or any model's."""
    with path.open("rb") as stream:
        stated = int.from_bytes(stream.read(8), "little")
    limit = min(_LARGEST[".safetensors"], path.stat().st_size - 8)
    if stated > limit:
        raise ModelError(
            f"{path.parent.name}: cannot be read ({path.name}: SafetensorError: a header of "
            f"{stated:,} bytes; expected at most {limit:,})"
        )


def generation_config(folder: Path) -> Any:
    """The generation config of a model; what ``config.json`` says of it where there is none."""
    import transformers

    try:
        return transformers.GenerationConfig.from_pretrained(folder)
    except OSError:  # there is none
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return transformers.GenerationConfig.from_model_config(config)


def _tokenizer_class(folder: Path) -> Any:
    """What reads a tokenizer as it was written.

    ``AutoTokenizer`` goes by the model's architecture: for a Qwen2 model with a tokenizer of its
    own it puts Qwen2's way of splitting text in place of that of ``tokenizer.json``.
    """
    import transformers

    config = folder / "tokenizer_config.json"
    named = read_json(config).get("tokenizer_class") if config.is_file() else None
    generic = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
    return transformers.PreTrainedTokenizerFast if named in generic else transformers.AutoTokenizer


def _complete_tokenizer(tokenizer: Any, ends: int | Sequence[int] | None, name: str) -> None:
    """Give it an end token, one for padding, and the side on which generation pads."""
    known = set(tokenizer.get_vocab().values())
    if outside := [i for i in _as_list(ends) if not isinstance(i, int) or i not in known]:
        raise ModelError(
            f"{name}: the end token {outside[0]!r} is not in the vocabulary of {len(tokenizer):,} "
            "tokens"
        )
    if tokenizer.chat_template:
        try:
            user_message(tokenizer, PROBE)
        except TemplateError as error:
            raise ModelError(f"{name}: its chat template cannot be used ({error})") from error
    if tokenizer.eos_token is None:
        if not _as_list(ends):
            raise ModelError(f"{name}: neither tokenizer nor config names an end token")
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(_as_list(ends)[0])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
