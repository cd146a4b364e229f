"""InternLM2 as transformers' stock Llama: names, the fused attention weight, settings, and the sentencepiece tokenizer.

InternLM2 is a Llama whose query, key and value weights are one matrix; no code from the hub is needed to run it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ullsam.errors import InputError, reason
from ullsam.files import assign, cast, check_names, local_folder, read_json, read_safetensors
from ullsam.pretrained import OPENERS, empty_lm

NAMES = {  # Llama -> InternLM2
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wqkv",
    "self_attn.k_proj": "attention.wqkv",
    "self_attn.v_proj": "attention.wqkv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
LARGEST = dict.fromkeys(SIZES, 2**20) | {"num_hidden_layers": 1000}  # what a damaged file may ask for


def internlm2_name(name: str) -> str:
    """InternLM2's name of a weight that Llama calls `name`; three of Llama's share one."""
    return re.sub("|".join(map(re.escape, NAMES)), lambda found: NAMES[found.group()], name)


def take_part(wqkv: Tensor, part: str, config) -> Tensor:
    """The rows of "q", "k" or "v" in InternLM2's fused matrix ((heads + 2 * kv heads) * d, D), in Llama's order.

    The fused rows stand in groups, one per key head: its G query heads, the key head, the value head, d rows each.
    """
    groups, d = config.num_key_value_heads, config.head_dim
    queries = config.num_attention_heads // groups
    rows = {"q": slice(0, queries), "k": slice(queries, queries + 1), "v": slice(queries + 1, queries + 2)}[part]
    blocks = wqkv.view(groups, queries + 2, d, wqkv.shape[-1])  # (rows, D) -> (kv heads, G + 2, d, D)
    return blocks[:, rows].reshape(-1, wqkv.shape[-1])  # -> (heads * d or kv heads * d, D)


def fuse(q: Tensor, k: Tensor, v: Tensor, config) -> Tensor:
    """The inverse of `take_part`: q (heads * d, D), k and v (kv heads * d, D) -> ((heads + 2 * kv heads) * d, D)."""
    groups, d, width = config.num_key_value_heads, config.head_dim, q.shape[-1]
    blocks = [x.view(groups, -1, d, width) for x in (q, k, v)]  # (rows, D) -> (kv heads, G or 1, d, D)
    return torch.cat(blocks, dim=1).flatten(0, 2)


def to_llama(state: dict[str, Tensor], lm: nn.Module, source, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """InternLM2's weights one by one under Llama's names, for the model `lm`.

    Args:
        state: InternLM2's weights, all names beginning with `prefix`.
        source: what an error message calls the origin of the weights.

    Raises:
        InputError: names that are missing or left over, or a fused matrix of another size.
    """
    own = list(lm.state_dict())
    check_names({prefix + internlm2_name(name) for name in own}, state, source)
    rows = (lm.config.num_attention_heads + 2 * lm.config.num_key_value_heads) * lm.config.head_dim
    for name in own:
        weight = state[prefix + internlm2_name(name)]
        part = re.search(r"\.([qkv])_proj\.", name)
        if part and len(weight) != rows:
            raise InputError(
                f"{source} has {prefix + internlm2_name(name)} with {len(weight)} rows where its settings say "
                f"{rows}; the config.json belongs to another model."
            )
        yield name, take_part(weight, part.group(1), lm.config) if part else weight


def from_llama(lm: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """A Llama's weights one by one under InternLM2's names."""
    state = lm.state_dict()
    for name, weight in state.items():
        if re.search(r"\.[kv]_proj\.", name):
            continue
        if ".q_proj." in name:
            others = (state[name.replace("q_proj", x)] for x in ("k_proj", "v_proj"))
            weight = fuse(weight, *others, lm.config)
        yield prefix + internlm2_name(name), weight


def llama_config(values: dict, source):
    """The LlamaConfig of InternLM2's settings (a config.json's, or InternVL's with the language model's inside).

    The dynamic scaling of the rotary positions is left out: it changes nothing up to 32768 tokens.

    Raises:
        InputError: the settings are of another language model, or incomplete.
    """
    from transformers import LlamaConfig

    inner = values.get("llm_config", values)
    values = inner if isinstance(inner, dict) else {}
    kind, biased = values.get("model_type") or values.get("architectures") or "unknown", bool(values.get("bias"))
    if kind != "internlm2" or biased:
        raise InputError(
            f"{source} describes a language model of type {kind}{' with biases' * biased}, "
            "not InternLM2; InternVL2.5-2B and internlm2_5-1_8b have it."
        )
    absent = [name for name in SIZES if type(values.get(name)) is not int or not 1 <= values[name] <= LARGEST[name]]
    if absent:
        raise InputError(f"{source} does not say {', '.join(absent)}, or no possible size; get its config.json again.")
    try:
        return LlamaConfig(
            **{name: values[name] for name in SIZES},
            rms_norm_eps=positive(values.get("rms_norm_eps", 1e-6)),
            rope_theta=positive(values.get("rope_theta", 10000)),
            tie_word_embeddings=False,
            max_position_embeddings=values.get("max_position_embeddings", 32768),
            bos_token_id=values.get("bos_token_id", 1),
            eos_token_id=values.get("eos_token_id", 2),
            pad_token_id=values.get("pad_token_id", 2),
        )
    except Exception as error:  # transformers' own checks raise several kinds
        raise InputError(f"{source} has settings that no InternLM2 has ({reason(error)}); get it again.") from error


def positive(value) -> float:
    """The number, or a ValueError where it is none above 0."""
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"{value} is not above 0")
    return float(value)


def is_internlm2(values: dict) -> bool:
    """Whether a config.json is InternLM2's, or InternVL's with InternLM2 inside."""
    return values.get("model_type") in ("internlm2", "internvl_chat")


def load_internlm2(
    source: str | Path, dtype: torch.dtype | None = torch.float32, device="cpu"
) -> tuple[nn.Module, dict[str, Tensor]]:
    """InternLM2 as a `LlamaForCausalLM`, and the projection in front of it if the file has one.

    Args:
        source: folder or hub name of InternVL2.5-2B (whose vision transformer is left out) or of internlm2_5-1_8b-chat,
            with config.json and safetensors in one file or in shards.
        dtype: of the weights; None keeps the file's.
        device: where they go.

    Returns:
        The language model, and InternVL's projection under the names 0.weight ... 3.bias of `norm_mlp`, empty without.

    Raises:
        InputError: a file or shard is missing or damaged, or holds another model.
    """
    folder = local_folder(source)
    lm = empty_lm(llama_config(read_json(folder / "config.json"), folder / "config.json"))
    state = read_safetensors(folder)
    prefix = "language_model." if any(k.startswith("language_model.") for k in state) else ""
    language = {k: v for k, v in state.items() if k.startswith(prefix)}
    projection = {k.removeprefix("mlp1."): v for k, v in state.items() if k.startswith("mlp1.")}
    if prefix:
        rest = [k for k in state if not k.startswith((prefix, "mlp1.", "vision_model."))]
        check_names([], rest, folder)
    assign(lm, cast(to_llama(language, lm, folder, prefix), dtype, device), folder)
    return lm.to(device).eval(), cast(projection.items(), dtype, device)


def open_internlm2(name: str | Path, dtype: torch.dtype):
    """InternLM2 and its tokenizer where the folder or hub name holds it, else None; makes it known to `llm.load_llm`."""
    folder = local_folder(name)
    if not (folder / "config.json").is_file() or not is_internlm2(read_json(folder / "config.json")):
        return None
    return load_internlm2(folder, dtype)[0], load_tokenizer(folder)


OPENERS.append(open_internlm2)


def load_tokenizer(folder: str | Path):
    """The tokenizer of a folder: a tokenizer.json, or InternLM2's sentencepiece file with its special tokens.

    Raises:
        InputError: neither is there, the file is damaged, or the package sentencepiece is missing.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
            if not tokenizer("a cell").input_ids:
                raise ValueError("it has no token for a text")
            return tokenizer
        except Exception as error:  # the tokenizers library raises plain exceptions
            raise InputError(f"{folder / 'tokenizer.json'} is damaged ({reason(error)}); get it again.") from error
    if not (folder / "tokenizer.model").is_file():
        raise InputError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); download it into that folder.")
    special = _special_tokens(folder)
    tokens = _bpe(_pieces(folder / "tokenizer.model"), special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        additional_special_tokens=[x for i, x in sorted(special.items()) if i > 2],
        clean_up_tokenization_spaces=False,
    )


def _special_tokens(folder: Path) -> dict[int, str]:
    """Id -> text of the tokens that stand outside the text, as the tokenizer's settings list them."""
    special, names = {0: "<unk>", 1: "<s>", 2: "</s>"}, ("tokenizer_config.json", "added_tokens.json")
    settings, added = (read_json(folder / name) if (folder / name).is_file() else {} for name in names)
    try:
        special |= {int(i): str(token["content"]) for i, token in settings.get("added_tokens_decoder", {}).items()}
        return special | {int(i): text for text, i in added.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{' or '.join(names)} in {folder} is damaged ({reason(error)}); get it again.") from error


def _pieces(path: Path) -> list[tuple[str, float]]:
    """Text and score of every piece of a sentencepiece model that leaves text as it is."""
    try:
        import sentencepiece
    except ImportError as error:
        raise InputError("InternLM2's tokenizer needs the package sentencepiece; run: pip install 'ullsam[full]'") from error
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path} is not a sentencepiece model ({type(error).__name__}); get it again.") from error
    sample = "a  b\uff11\ufb01"
    if model.decode(model.encode(sample)) != sample or model.encode("a", out_type=str)[0].startswith("\u2581"):
        raise InputError(f"{path} rewrites text before it splits it, which InternLM2's does not; give InternLM2's file.")
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]


def _bpe(pieces: list[tuple[str, float]], special: dict[int, str]):
    """The same byte-pair encoding in the tokenizers library: a better score is an earlier merge."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    texts = [special.get(i, text) for i, (text, _) in enumerate(pieces)]
    vocabulary = {text: i for i, text in enumerate(texts)}
    ranked = sorted(
        (-score, i, text[:cut], text[cut:])
        for i, (text, score) in enumerate(pieces)
        if i not in special
        for cut in range(1, len(text))
        if text[:cut] in vocabulary and text[cut:] in vocabulary
    )
    merges = [(left, right) for _, _, left, right in ranked]
    tokens = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokens.normalizer = normalizers.Replace(" ", "\u2581")
    tokens.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens.add_special_tokens([AddedToken(text, normalized=False, special=True) for _, text in sorted(special.items())])
    return tokens
