"""Check the JSON documents of a `.pt2` file: torch turns names into Python code, and calls what a target names."""

import json
import re
from collections.abc import Iterator
from typing import Any

# PyTorch's operators that classifiers compute with: shapes, elements, arithmetic, layers, rounding. Each
# may also work in place (`add_`). All others are refused: `from_file` writes any file, some read memory unchecked.
_OPERATORS = """
alias broadcast_to cat chunk clone col2im concat concatenate constant_pad_nd contiguous copy detach expand expand_as
flatten flip im2col item lift_fresh lift_fresh_copy mT moveaxis movedim narrow numel numpy_T pad permute pixel_shuffle
pixel_unshuffle reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad1d replication_pad2d reshape
reshape_as roll select size slice split split_with_sizes squeeze stack swapaxes swapdims sym_numel sym_size
sym_storage_offset sym_stride t tensor_split tile to _to_copy transpose type_as unbind unflatten unfold unsafe_chunk
unsafe_split unsafe_split_with_sizes _unsafe_view unsqueeze view view_as view_as_complex view_as_real

arange argmax argmin argsort bucketize cumprod cumsum diff embedding eye fill full full_like gather index index_add
index_copy index_fill index_put index_select linspace masked_fill masked_scatter masked_select meshgrid new_full
new_ones new_zeros one_hot ones ones_like scalar_tensor scatter scatter_add scatter_reduce searchsorted select_scatter
slice_scatter sort take_along_dim topk tril triu where zero zeros zeros_like

abs acos add addcdiv addcmul all amax amin aminmax any asin atan atan2 bitwise_and bitwise_not bitwise_or bitwise_xor
ceil clamp clamp_max clamp_min clip cos cosh count_nonzero div divide eq erf erfc exp exp2 expm1 floor floor_divide
fmod frac ge greater greater_equal gt hypot isclose isfinite isinf isnan le lerp less less_equal linalg_norm
linalg_vector_norm log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor logsumexp lt max
maximum mean min minimum mul multiply nan_to_num ne neg negative norm not_equal polar pow prod reciprocal remainder
round rsqrt rsub sgn sigmoid sign sin sinh special_erf special_expit sqrt square std std_mean sub subtract sum tan
tanh true_divide trunc var var_mean

adaptive_avg_pool1d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d addbmm addmm
affine_grid_generator alpha_dropout avg_pool1d avg_pool2d baddbmm batch_norm bilinear bmm celu conv1d
conv2d conv3d conv_transpose2d convolution cosine_similarity dot dropout einsum elu feature_alpha_dropout
feature_dropout _fused_rms_norm gelu glu grid_sampler grid_sampler_2d group_norm hardsigmoid hardswish hardtanh inner
instance_norm layer_norm leaky_relu linear log_sigmoid _log_softmax log_softmax matmul max_pool1d max_pool2d
max_pool2d_with_indices mish mm mv native_batch_norm _native_batch_norm_legit_no_training native_dropout
_native_batch_norm_legit lstm gru rnn_tanh rnn_relu
native_group_norm native_layer_norm outer prelu _prelu_kernel relu relu6 rms_norm _safe_softmax
scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu selu silu
_softmax softmax softplus softsign tensordot upsample_bicubic2d _upsample_bicubic2d_aa upsample_bilinear2d
_upsample_bilinear2d_aa upsample_nearest1d upsample_nearest2d _upsample_nearest_exact2d

_assert_async _assert_scalar _assert_tensor_metadata fake_quantize_per_channel_affine
fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask
sym_constrain_range sym_constrain_range_for_size
"""
_COMPUTING = frozenset(_OPERATORS.split())
# Operators of arithmetic on sizes. torch calls them with inputs by position; for others it prints names into code.
_ON_SIZES = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|truediv|and_|or_)"
    r"|torch\.sym_(not|int|float|ite|max|min|sqrt)"
)
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.\w+", re.ASCII)
_ROUNDING = re.compile(r"torch\.ops\.quantized_decomposed\.((de)?quantize_per|choose_qparams|fake_quant_per)_\w+\.\w+")
# Names of values, parameters and modules, which become Python code; a second call of a module ends with `@1`.
_NAME = re.compile(r"[\w.@-]*", re.ASCII)
# Sizes as sympy prints them; they are evaluated.
_WORDS = "Symbol|Integer|Rational|Mul|Add|Pow|Max|Min|Mod|FloorDiv|True|False|positive|integer|nonnegative"
_SIZES = re.compile(rf"(?:[\s\d,()=*+/-]|'[su]\d++'|[su]\d++|{_WORDS})*+", re.ASCII)
_LONGEST_SIZE = 4096
_POWER = re.compile(r"\*\*|Pow")
# Keys of entries that could be code wherever they occur. Programs of a classifier, as `torch.export.save` writes them,
# have none of them.
_ABSENT = {"use_pickle", "guards_code", "as_custom_obj", "as_graph", "as_operator"}
# Text that only operators and people read: under these keys, and of a node's metadata.
_TEXT = {"as_string", "as_strings", "torch_version"}
_METADATA = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"}
_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict")


def find_code(document: Any) -> tuple[str, str] | None:
    """Return the key and the value of an entry that torch could run or evaluate; None if it only reads the document.

    Args:
        document: parsed JSON of a program, of its weights or of its constants.
    """
    for key, value in _entries(document):
        if not _is_data(key, value):
            return key, str(value)
    return None


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Return every value with the key that it belongs to, and every key with the key `name`."""
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            yield "name", inner_key
            yield inner_key, inner
            if not _is_metadata(inner_key, inner):
                yield from _entries(inner, inner_key)
    elif isinstance(value, list):
        for inner in value:
            yield key, inner
            yield from _entries(inner, key)


def _is_metadata(key: str, value: Any) -> bool:
    """Whether an entry is a node's metadata; a tensor may have that name too."""
    of_node = key == "metadata" and isinstance(value, dict) and value.keys() <= _METADATA
    return of_node and all(isinstance(text, str) for text in value.values())


def _is_data(key: str, value: Any) -> bool:
    if key in _ABSENT:
        return not value
    if key in _TEXT or not isinstance(value, str):
        return True
    if key == "target":
        return _computes(value)
    if key == "expr_str":
        return _is_size(value)
    if key in ("in_spec", "out_spec"):
        return _is_structure(json.loads(value))
    if key == "path_name":
        return re.fullmatch(r"(weight|tensor)_\d+", value, re.ASCII) is not None
    return _NAME.fullmatch(value) is not None and not any(map(_is_internal, value.split(".")))


def _is_internal(part: str) -> bool:
    """Whether a part of a name is one of Python's own, such as `__class__`."""
    return part.startswith("__") and part.endswith("__")


def _computes(target: str) -> bool:
    """Whether a target is an operator that only computes; that of an input or an output is empty."""
    if aten := _ATEN.fullmatch(target):
        return aten[1] in _COMPUTING or aten[1].removesuffix("_") in _COMPUTING
    return not target or any(known.fullmatch(target) is not None for known in (_ON_SIZES, _ROUNDING))


def _is_size(expression: str) -> bool:
    """Whether an expression is made of sizes, and evaluating it takes no time to speak of."""
    if len(expression) > _LONGEST_SIZE or _SIZES.fullmatch(expression) is None:
        return False
    powers, digits = (
        len(_POWER.findall(expression)),
        max(map(len, re.findall(r"(?<![su\d])\d+", expression)), default=0),
    )
    return powers == 0 or (powers == 1 and digits <= 2)


def _is_structure(spec: Any) -> bool:
    """Return whether inputs or outputs are specified as plain containers: others name classes that torch imports."""
    if not isinstance(spec, list) or len(spec) != 2 or spec[0] != 1:
        return False
    return all(_is_container(node) for node in _nodes(spec[1]))


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    children = node.get("children_spec") if isinstance(node, dict) else None
    for child in children if isinstance(children, list) else ():
        yield from _nodes(child)


def _is_container(node: Any) -> bool:
    if not isinstance(node, dict) or node.keys() != {"type", "context", "children_spec"}:
        return False
    if node["type"] is None:
        return node["context"] is None
    if node["type"] not in _CONTAINERS or not isinstance(node["context"], str):
        return False
    keys = json.loads(node["context"])
    return keys is None or (isinstance(keys, list) and all(isinstance(k, str) and k.isidentifier() for k in keys))
