"""GGUF through llama.cpp's own `gguf` package: the tensors, the sizes, the vocabulary and the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunery.bases import Base
from tunery.errors import ConfigError, ModelError

# model_type -> whether llama.cpp wants the rows of query and key in the order of the original Llama weights
_FAMILIES = {"llama": True, "qwen2": False, "qwen3": False}
ELSEWHERE = "export it merged, and convert that folder with llama.cpp's convert_hf_to_gguf.py"

# How llama.cpp cuts text before it merges bytes, by the name it knows each way by, and whether a piece that is a
# token itself is not merged. A base's own way may have another name and still come to the same tokens.
_PRE_TOKENIZERS: Mapping[str, tuple[str, bool]] = {
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        False,
    ),
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        True,
    ),
    "poro-chat": (r" ?[^(\s|.,!?…。，、।۔،)]+", False),
}
# What tokenizers treat differently: quotes before letters, digits, marks, white space, scripts, code, emoji. Beside it
# each token's own text is tried, alone and after an apostrophe: tokens show where their tokenizer does not cut.
_PROBE = (
    "It's the dog's 'tis 'sorrel' don't WE'LL they'RE l'été naı̈ve cafe\u0301 A\u030angstro\u0308m 3 33 333 3333 "
    "1,234.56 $12 €3,50 50% #A-17 (x) [y] {z} a_b a.b@c.de /usr/bin http://x.y/z?q=1&r=2 "
    "\t tab  two   three\n\nnew\r\nline \n "
    'sp\n  x = {"k": [1, null]}; // !!!??? ... … — “q” ‘q’ «q» Grüße Straße İstanbul Ωμέγα Привет мир 你好，世界。 '
    "こんにちは 한국어 नमस्ते। สวัสดี العربية، עברית 👍🏽 👩‍💻 🇩🇪 ½ ² ℃ ﬁ <|x|> ~`^\\\u00a0\u200b end "
)


def check(base: Base) -> None:
    """Raises ConfigError without the `gguf` package, ModelError for a base that cannot be written as GGUF here."""
    try:
        import gguf  # noqa: F401  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError:
        raise ConfigError("GGUF files need the package gguf", hint='pip install "tunery[gguf]"') from None
    config = base.config
    kind = config.get("model_type")
    rope = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("rope_type", "default")
    sliding = config.get("use_sliding_window") and config.get("sliding_window")
    why = None
    if kind not in _FAMILIES or not base.architecture.endswith("ForCausalLM"):
        why = f"{base.architecture} is none of {', '.join(_FAMILIES)}"
    elif rope != "default":
        why = f'its positions are scaled ("{rope}")'
    elif kind != "qwen2" and (config.get("attention_bias") or config.get("mlp_bias")):
        why = "its layers have biases"
    elif sliding:
        why = f"its attention slides over {sliding} tokens"
    if why:
        raise ModelError(f'"{base.name}" cannot be written as GGUF here: {why}', hint=ELSEWHERE)


def write_gguf(model: Any, tokenizer: Any, file: Path, *, dtype: str, name: str, stop_id: int) -> None:
    """Write a merged transformers model (fp32) and its fast tokenizer. Matrices get `dtype`, vectors stay fp32.

    Raises ModelError for a tokenizer whose tokens llama.cpp would not reproduce.
    """
    import gguf  # pyright: ignore[reportMissingImports]

    config = model.config
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"))
    _add_sizes(writer, config)
    _add_vocabulary(writer, gguf.TokenType, tokenizer, config.vocab_size, stop_id)
    for tensor, values in _tensors(model, gguf):
        raw = getattr(gguf.GGMLQuantizationType, kind if values.ndim > 1 else "F32")
        writer.add_tensor(tensor, gguf.quants.quantize(values, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: Any, types: Any, tokenizer: Any, size: int, stop_id: int) -> None:
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    added = {t["id"]: types.CONTROL if t["special"] else types.USER_DEFINED for t in core["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types([added.get(i, types.NORMAL) if i in by_id else types.UNUSED for i in range(size)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in core["model"]["merges"]])
    writer.add_eos_token_id(stop_id)
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer(tokenizer: Any) -> str:
    """The name of llama.cpp's pre-tokenizer that gives this tokenizer's tokens. Raises ModelError."""
    from tokenizers import Tokenizer

    mine = tokenizer.backend_tokenizer
    core = json.loads(mine.to_str())
    byte_level = core["model"].get("type") == "BPE" and not core["model"].get("byte_fallback")
    normalized = core.get("normalizer") and core["normalizer"].get("type") != "NFC"  # llama.cpp leaves text as it is
    if byte_level and not normalized:
        words = [mine.decode([i], skip_special_tokens=False) for i in core["model"]["vocab"].values()]
        texts = [_PROBE, *words, *("'" + word for word in words)]
        expected = _encoded(mine, texts)
        for name, (pattern, ignore_merges) in _PRE_TOKENIZERS.items():
            split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
            theirs = core | {
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_only]},
                "model": core["model"] | {"ignore_merges": ignore_merges},
            }
            if _encoded(Tokenizer.from_str(json.dumps(theirs)), texts) == expected:
                return name
    raise ModelError("llama.cpp has no tokenizer that gives this base's tokens", hint=ELSEWHERE)


def _encoded(core: Any, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in core.encode_batch(texts, add_special_tokens=False)]


def _tensors(model: Any, gguf: Any) -> Iterator[tuple[str, Any]]:
    """(GGUF name, fp32 array) of each parameter; an output head tied to the embedding is left out."""
    config = model.config
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = values.float().cpu().numpy()
        projection = name.split(".")[-2]
        if _FAMILIES[config.model_type] and projection in heads:
            array = _interleaved(array, heads[projection])
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f'GGUF has no name for the tensor "{name}"', hint=ELSEWHERE)
        yield found, array


def _interleaved(array: Any, heads: int) -> Any:
    """transformers turns halves of a head, llama.cpp pairs of neighbours: (H * D, I), rows put in that order."""
    rows = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return rows.swapaxes(1, 2).reshape(array.shape)
